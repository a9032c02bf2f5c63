//! Starting before what it needs: it waits within a bound, in whatever order things come, and can be stopped at any moment.

use std::net::TcpListener;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use xtask::services::Services;
use xtask::worker::{Configuration, Worker};

use crate::setting::{Setting, eventually, metric};

/// The parts that are ready, by the worker's own words.
fn parts(worker: &Worker) -> serde_json::Value {
    let answer = worker.get("/readyz").ok();
    answer.and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or_default()
}

async fn comes(worker: &Worker, part: &str, ready: bool) -> Result<()> {
    eventually(&format!("{part} {ready}"), async || parts(worker).get(part) == Some(&ready.into())).await
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fresh servers whose database has no schema.
async fn bare() -> Result<(Services, Configuration)> {
    let services = tokio::task::spawn_blocking(|| Services::start(1, false)).await??;
    let configuration = Configuration::new(env!("CARGO_BIN_EXE_muster-worker").into(), &services)?;
    Ok((services, configuration))
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_and_schema_may_come_after_the_worker_in_any_order() -> Result<()> {
    for nats_first in [true, false] {
        let (mut services, configuration) = bare().await?;
        services.nats.kill()?;
        services.postgres.kill()?;
        let migrate = || {
            let mut migrate = tokio::process::Command::from(configuration.command("migrate --wait=60"));
            tokio::spawn(async move { migrate.kill_on_drop(true).output().await })
        };
        let worker = configuration.start(&services)?;
        comes(&worker, "postgres", false).await?;
        ensure!(worker.get("/livez")?.0 == 200 && worker.get("/readyz")?.0 == 503);
        let migrating = if nats_first {
            let migrating = migrate();
            services.nats.restart()?;
            comes(&worker, "nats", true).await?;
            ensure!(parts(&worker)["postgres"] == false);
            services.postgres.restart()?;
            migrating
        } else {
            services.postgres.restart()?;
            comes(&worker, "postgres", true).await?;
            ensure!(parts(&worker)["migrations"] == false && parts(&worker)["nats"] == false);
            let migrating = migrate();
            services.nats.restart()?;
            comes(&worker, "nats", true).await?;
            migrating
        };
        let migrated = migrating.await??;
        ensure!(migrated.status.success(), "{}", stderr(&migrated));
        eventually("readiness", async || worker.get("/readyz").is_ok_and(|(status, _)| status == 200))
            .await?;
        let log = std::fs::read_to_string(&worker.log)?;
        for line in ["waiting for a dependency", "all dependencies are available", "muster-worker is ready"] {
            ensure!(log.matches(line).count() == 1, "{line}: {log}");
        }
        ensure!(worker.stop()? == Some(0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_that_stays_away_ends_the_start_after_its_bound_and_is_named() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let mut services = setting.services;
    services.postgres.kill()?;
    let waiting = setting.configuration.with("MUSTER__STARTUP__WAIT_MS", "1500");
    let started = Instant::now();
    let output = waiting.run("serve").await?;
    ensure!(output.status.code() == Some(1), "{}", stderr(&output));
    ensure!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    let said = stderr(&output);
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.starts_with("muster-worker: gave up after 1 s: the database is unavailable"), "{said}");
    for command in ["migrate", "migrate --wait=1", "check --wait=1"] {
        let output = waiting.run(command).await?;
        ensure!(output.status.code() == Some(1), "{command}: {}", stderr(&output));
    }
    // What is wrong is wrong at once, whatever is missing beside it.
    for (variable, value) in
        [("MUSTER__NATS__URLS", "nats://localhost:4222"), ("MUSTER__DATABASE__CA_FILE", "/nowhere")]
    {
        let started = Instant::now();
        let output = setting.configuration.with(variable, value).run("serve").await?;
        ensure!(output.status.code() == Some(64), "{variable}: {}", stderr(&output));
        ensure!(started.elapsed() < Duration::from_secs(5), "{variable}: {:?}", started.elapsed());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_until_refused_credentials_are_accepted() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    // The server knows nobody of the name that the worker's certificate bears.
    setting.services.nats.rename_user("muster-worker", "muster-worker-2")?;
    let works = async || setting.configuration.run("check").await.is_ok_and(|output| output.status.success());
    eventually("the refusal", async || !works().await).await?;
    let short = setting.configuration.with("MUSTER__STARTUP__WAIT_MS", "500").run("serve").await?;
    ensure!(
        short.status.code() == Some(1) && stderr(&short).contains("refuses the credentials"),
        "{}",
        stderr(&short)
    );
    let worker = setting.configuration.start(&setting.services)?;
    comes(&worker, "postgres", true).await?;
    ensure!(parts(&worker)["nats"] == false);
    eventually("the refusal to be counted", async || {
        metric(&worker, "muster_nats_refusals_total").is_some_and(|refusals| refusals > 0.0)
    })
    .await?;
    setting.services.nats.rename_user("muster-worker-2", "muster-worker")?;
    eventually("readiness", async || worker.get("/readyz").is_ok_and(|(status, _)| status == 200)).await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_stopped_at_once_by_any_signal_whatever_it_waits_for() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    // Somebody who takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let port = silent.local_addr()?.port();
    let url = setting.services.postgres.url("postgres");
    let url = url.replace(&setting.services.postgres.port.to_string(), &port.to_string());
    let file = setting.services.directory.secret_file("silent-url", &url)?;
    let silent_database =
        setting.configuration.with("MUSTER__DATABASE__URL_FILE", file.display().to_string());
    let silent_nats = setting.configuration.with("MUSTER__NATS__URLS", format!("tls://localhost:{port}"));
    for configuration in [&silent_database, &silent_nats] {
        for signal in [Signal::TERM, Signal::HUP] {
            let mut worker = configuration.start(&setting.services)?;
            eventually("its port", async || worker.get("/livez").is_ok()).await?;
            kill_process(Pid::from_raw(i32::try_from(worker.id())?).unwrap(), signal)?;
            let told = Instant::now();
            ensure!(worker.wait()? == Some(0), "{}", worker.log_tail());
            ensure!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
        }
    }
    for (command, code) in [("migrate --wait", 143), ("check", 143)] {
        let mut child = silent_database.command(command).spawn()?;
        std::thread::sleep(Duration::from_millis(700));
        kill_process(Pid::from_raw(i32::try_from(child.id())?).unwrap(), Signal::TERM)?;
        let told = Instant::now();
        ensure!(child.wait()?.code() == Some(code), "{command}");
        ensure!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    }
    Ok(())
}
