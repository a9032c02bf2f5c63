//! The log's reader stops reading: nothing waits for it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_domain::GuildId;
use muster_messaging::api::community;
use muster_messaging::client::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use xtask::services::get;

use crate::setting::{Guild, Setting, community, eventually};

/// A worker whose log nobody reads.
struct Unread(Child);

impl Drop for Unread {
    fn drop(&mut self) {
        // Fails where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks until lines are dropped, each question being a line of the log.
async fn flood(client: &Client, dropped: impl Fn() -> u64, more_than: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while dropped() <= more_than {
        let asking = (0..500).map(|_| client.find_community(GuildId::parse("nowhere").unwrap()));
        futures_util::future::join_all(asking).await;
        ensure!(Instant::now() < deadline, "nothing was dropped");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_log_delays_nothing_and_its_dropped_lines_are_counted() -> Result<()> {
    let setting = Setting::new().await?;
    let configuration =
        setting.configuration.with("MUSTER__LOG__FILTER", "debug").with("MUSTER__LOG__FORMAT", "json");
    let mut command = configuration.command("serve");
    let mut worker = Unread(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    let log = worker.0.stderr.take().context("a pipe")?;
    let address = configuration.address;
    let is_ready = async || get(address, "/readyz").is_ok_and(|(status, _)| status == 200);
    eventually("readiness", is_ready).await?;
    let dropped = || -> u64 {
        let metrics = get(address, "/metrics").map(|(_, text)| text).unwrap_or_default();
        let line = metrics.lines().find_map(|line| line.strip_prefix("muster_log_lines_dropped_total "));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let (client, publisher) = setting.client().await?;
    flood(&client, dropped, 0).await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    client.community(community(&client, "tabr").await?).ask(&community::Stats {}).await?;
    ensure!(get(address, "/livez")?.0 == 200 && is_ready().await);

    // It is read again: whole lines, and among them how many are missing.
    let before = dropped();
    let reader = std::thread::spawn(move || -> Result<_> {
        let (mut log, mut told) = (BufReader::new(log), 0);
        let mut line = String::new();
        // Some may have been dropped and told already while the pipe had room.
        while told < before {
            line.clear();
            ensure!(log.read_line(&mut line)? > 0, "{told} of {before} are told");
            let line: Value = serde_json::from_str(&line).context("not a whole line")?;
            if let Some(number) = line["log.lines_dropped"].as_u64() {
                ensure!(line["level"] == "WARN", "{line}");
                told += number;
            }
        }
        Ok((log, told))
    });
    let (log, told) =
        tokio::task::spawn_blocking(move || reader.join()).await?.ok().context("the reader")??;
    // Nobody reads any more, so more may be dropped by now.
    eventually("each that is told to be counted", async || told <= dropped()).await?;

    // And not any more, until it ends.
    flood(&client, dropped, dropped()).await?;
    let told = Instant::now();
    kill_process(Pid::from_raw(i32::try_from(worker.0.id())?).unwrap(), Signal::TERM)?;
    let ended = tokio::task::spawn_blocking(move || worker.0.wait().map(|status| (status, worker))).await??;
    ensure!(ended.0.code() == Some(0) && told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    drop(log);
    Ok(())
}
