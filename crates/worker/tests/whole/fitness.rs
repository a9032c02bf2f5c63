//! What the worker says and does about servers and streams that it should not work with.

use std::io::{Write, stderr};
use std::path::Path;
use std::{env, fs};

use anyhow::{Result, ensure};
use muster_domain::Version;
use xtask::tool::Server;
use xtask::worker::Worker;

use crate::setting::{Guild, Setting, eventually};

/// Debian's, which is older than the least version.
const OLD_NATS: &str = "/usr/sbin/nats-server";

/// Whether there is one. Where its absence decides, it fails the test.
fn has_old_nats() -> Result<bool> {
    let is_there = Path::new(OLD_NATS).exists();
    let decides = env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
    ensure!(is_there || !decides, "there is no {OLD_NATS}");
    if !is_there {
        writeln!(
            stderr(),
            "NOT RUN: there is no {OLD_NATS} here, a server that is too old. It did not pass."
        )?;
    }
    Ok(is_there)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn has_metric(worker: &Worker, line: &str) -> bool {
    worker.get("/metrics").is_ok_and(|(_, text)| text.lines().any(|shown| shown == line))
}

/// Makes (`CREATE`) or changes (`UPDATE`) the stream of events, as an operator would, with these settings.
async fn events(setting: &Setting, what: &str, settings: &str) -> Result<()> {
    stream(setting, what, "EVENTS", "events.>", settings).await
}

async fn stream(setting: &Setting, what: &str, name: &str, subjects: &str, settings: &str) -> Result<()> {
    let command = format!(
        r#"ask $JS.API.STREAM.{what}.{name} {{"name":"{name}","subjects":["{subjects}"],"retention":"limits","storage":"file","num_replicas":1,"duplicate_window":120000000000,{settings}}}"#
    );
    let streams = setting.configuration.as_client(&setting.services.clients.streams);
    let answer = streams.run(&command).await?;
    ensure!(text(&answer.stdout).contains("\"config\""), "{}{}", text(&answer.stdout), text(&answer.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_can_lose_events_is_refused_by_name_until_it_is_mended() -> Result<()> {
    let setting = Setting::new().await?;
    events(&setting, "CREATE", r#""discard":"old","max_msgs_per_subject":1,"max_age":3600000000000"#).await?;
    let served = setting.configuration.run("serve").await?;
    let said = text(&served.stderr);
    ensure!(served.status.code() == Some(1), "{said}");
    for wanted in [
        "max_msgs_per_subject=1",
        "nats stream edit EVENTS --max-msgs-per-subject=-1",
        "max_age=1h",
        "nats stream edit EVENTS --max-age=7d",
    ] {
        ensure!(said.contains(wanted), "{wanted}: {said}");
    }
    let report = setting.configuration.run("check").await?;
    ensure!(report.status.code() == Some(1));
    let report = text(&report.stdout);
    for wanted in [
        "events         REFUSED max_msgs_per_subject=1: the oldest of a subject is dropped",
        "events         REFUSED max_age=1h: ",
        "events         ok      storage=file",
        "events         warning num_replicas=1: ",
        "consumer       ok      the consumer does not exist yet",
        "changes        ok      the stream CHANGES does not exist yet",
    ] {
        ensure!(report.contains(wanted), "{wanted}: {report}");
    }

    let development = setting.configuration.with("MUSTER__ENVIRONMENT", "development");
    let report = development.run("check").await?;
    ensure!(report.status.success(), "{}", text(&report.stdout));
    ensure!(text(&report.stdout).contains("events         warning max_msgs_per_subject=1: "));
    let worker = development.serve(&setting.services)?;
    ensure!(fs::read_to_string(&worker.log)?.contains("max_msgs_per_subject"), "it is warned of");
    ensure!(worker.stop()? == Some(0));

    events(&setting, "UPDATE", r#""discard":"old","max_msgs_per_subject":-1,"max_age":604800000000000"#)
        .await?;
    let report = setting.configuration.run("check").await?;
    ensure!(report.status.success(), "{}", text(&report.stdout));
    ensure!(setting.serve()?.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_no_changes_is_warned_of_and_keeps_nothing_from_being_served() -> Result<()> {
    let setting = Setting::new().await?;
    stream(&setting, "CREATE", "CHANGES", "changes.v2.>", r#""discard":"new""#).await?;
    let report = setting.configuration.run("check").await?;
    ensure!(report.status.success(), "{}", text(&report.stdout));
    let wanted = "changes        warning subjects=changes.v2.>: it does not store every change";
    ensure!(text(&report.stdout).contains(wanted), "{}", text(&report.stdout));
    let worker = setting.serve()?;
    eventually("the log warns of it", async || {
        let remedy = "nats stream edit CHANGES --subjects='changes.>'";
        fs::read_to_string(&worker.log).is_ok_and(|log| log.contains(remedy))
    })
    .await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_stream_drops_unread_are_counted_and_logged() -> Result<()> {
    let setting = Setting::new().await?;
    events(&setting, "CREATE", r#""discard":"old","max_msgs":50"#).await?;
    let development = setting.configuration.with("MUSTER__ENVIRONMENT", "development");
    let worker = development.serve(&setting.services)?;
    ensure!(has_metric(&worker, "muster_events_dropped 0"), "a counter begins at 0");
    ensure!(worker.stop()? == Some(0));
    let (_, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let events: Vec<_> = (0..80).map(|n| guild.join(&format!("user{n}"))).collect();
    publisher.publish_all(events, |_| ()).await?;
    let worker = development.serve(&setting.services)?;
    eventually("it is counted", || async { has_metric(&worker, "muster_events_dropped 30") }).await?;
    eventually("the rest is applied", || async {
        worker.event_counts().is_ok_and(|counts| counts.applied == 50)
    })
    .await?;
    let log = fs::read_to_string(&worker.log)?;
    let lines = log.lines().filter(|line| line.contains("dropped events before they were applied"));
    ensure!(lines.count() == 1, "one line for it: {log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_the_events_under_another_name_is_refused_at_once() -> Result<()> {
    let setting = Setting::new().await?;
    let make = r#"ask $JS.API.STREAM.CREATE.DEAD_LETTERS {"name":"DEAD_LETTERS","subjects":["dead.events","events.>"],"retention":"limits","storage":"file","num_replicas":1,"discard":"new"}"#;
    let made = setting.configuration.as_client(&setting.services.clients.streams).run(make).await?;
    ensure!(text(&made.stdout).contains("\"config\""), "{}", text(&made.stdout));
    let began = std::time::Instant::now();
    let served = setting.configuration.run("serve").await?;
    let said = text(&served.stderr);
    ensure!(served.status.code() == Some(1), "{said}");
    ensure!(said.contains("stream=DEAD_LETTERS: it takes events.>"), "{said}");
    ensure!(began.elapsed() < std::time::Duration::from_secs(10), "it was waited for: {:?}", began.elapsed());
    let checked = setting.configuration.run("check").await?;
    let report = text(&checked.stdout);
    ensure!(checked.status.code() == Some(1), "{report}");
    ensure!(report.contains("events         REFUSED stream=DEAD_LETTERS: it takes events.>"), "{report}");
    ensure!(!report.contains("the stream EVENTS does not exist yet: the worker creates it"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_kept_for_longer_than_they_are_remembered_are_warned_of() -> Result<()> {
    let setting = Setting::new().await?;
    events(&setting, "CREATE", r#""discard":"new","max_age":0"#).await?;
    let report = text(&setting.configuration.run("check").await?.stdout);
    ensure!(
        report.contains("events         warning max_age=0: events are kept for longer than their ids"),
        "{report}"
    );
    events(&setting, "UPDATE", r#""discard":"new","max_age":1728000000000000"#).await?;
    let report = text(&setting.configuration.run("check").await?.stdout);
    ensure!(report.contains("events         ok      max_age=20d"), "{report}");
    let shorter = setting.configuration.with("MUSTER__EVENTS__REMEMBER_DAYS", "19");
    let report = text(&shorter.run("check").await?.stdout);
    ensure!(report.contains("events         warning max_age=20d: "), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_nats_server_is_refused_in_production_and_warned_of_elsewhere() -> Result<()> {
    if !has_old_nats()? {
        return Ok(());
    }
    let mut setting = Setting::new().await?;
    setting.services.nats.stop();
    let options = &mut setting.services.nats.options;
    options.server = Server { program: OLD_NATS.into(), version: Version([2, 9, 10]) };
    for unknown in ["min_version: \"1.3\"", "handshake_first: true", "sync_interval: always"] {
        options.change(unknown, "")?;
    }
    setting.services.nats.restart()?;
    setting.configuration = setting.configuration.with("MUSTER__NATS__TLS_FIRST", "false");
    let served = setting.configuration.with("MUSTER__ENVIRONMENT", "production").run("serve").await?;
    let said = text(&served.stderr);
    ensure!(served.status.code() == Some(1) && said.contains("2.10.4 is the least"), "{said}");
    let report = setting.configuration.with("MUSTER__ENVIRONMENT", "production").run("check").await?;
    ensure!(report.status.code() == Some(1));
    ensure!(
        text(&report.stdout).contains("nats           REFUSED nats-server 2."),
        "{}",
        text(&report.stdout)
    );

    let development = setting.configuration.with("MUSTER__ENVIRONMENT", "development");
    let report = development.run("check").await?;
    ensure!(report.status.success(), "{}", text(&report.stdout));
    ensure!(
        text(&report.stdout).contains("nats           warning nats-server 2."),
        "{}",
        text(&report.stdout)
    );
    let worker = development.serve(&setting.services)?;
    ensure!(fs::read_to_string(&worker.log)?.contains("2.10.4 is the least"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_nats_server_is_warned_of_when_it_takes_anothers_place() -> Result<()> {
    if !has_old_nats()? {
        return Ok(());
    }
    let mut setting = Setting::new().await?;
    setting.services.nats.stop();
    for unknown in ["min_version: \"1.3\"", "handshake_first: true", "sync_interval: always"] {
        setting.services.nats.options.change(unknown, "")?;
    }
    setting.services.nats.restart()?;
    let worker = setting.configuration.with("MUSTER__NATS__TLS_FIRST", "false").serve(&setting.services)?;
    let told = || fs::read_to_string(&worker.log).is_ok_and(|log| log.contains("2.10.4 is the least"));
    ensure!(!told());
    setting.services.nats.stop();
    setting.services.nats.options.server = Server { program: OLD_NATS.into(), version: Version([2, 9, 10]) };
    setting.services.nats.restart()?;
    eventually("the warning", || async { told() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_carries_too_little_is_warned_of() -> Result<()> {
    let mut setting = Setting::new().await?;
    setting.services.nats.stop();
    setting.services.nats.options.change("max_payload: 1MB", "max_payload: 1024")?;
    setting.services.nats.restart()?;
    let report = text(&setting.configuration.run("check").await?.stdout);
    ensure!(report.contains("max_payload=1024: an answer of one row may need"), "{report}");
    let worker = setting.serve()?;
    ensure!(fs::read_to_string(&worker.log)?.contains("max_payload=1024"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_does_not_permit_is_in_the_log() -> Result<()> {
    let setting = Setting::new().await?;
    let allowed = r#"subscribe: { allow: ["muster.v1.>", "muster.replicas.>""#;
    setting.services.nats.change_accounts(allowed, &allowed.replace("muster.v1.>", "muster.v2.>"))?;
    let worker = setting.serve()?;
    let told = || fs::read_to_string(&worker.log).is_ok_and(|log| log.contains("Permissions Violation"));
    eventually("the warning", || async { told() }).await
}
