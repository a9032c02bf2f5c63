//! The TLS gate as an operator sees it: policy, certificates, refusals, in the log, the metrics and the report.

use std::fs;

use anyhow::{Context, Result, ensure};
use time::{Duration, OffsetDateTime};
use xtask::services::{Authority, Postgres, PostgresOptions};
use xtask::worker::Worker;

use crate::setting::{Setting, eventually, metric};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ready(worker: &Worker) -> bool {
    worker.get("/readyz").is_ok_and(|(status, _)| status == 200)
}

/// A certificate of a server on this machine that ended an hour ago.
fn expired(authority: &Authority, name: &str) -> Result<xtask::services::Identity> {
    let now = OffsetDateTime::now_utc();
    let validity = now - Duration::days(2)..now - Duration::HOUR;
    authority.issue(name, &["localhost", "127.0.0.1"], validity)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_and_its_reason_are_shown_wherever_somebody_looks() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let in_test =
        setting.configuration.with("MUSTER__ENVIRONMENT", "test").with("MUSTER__LOG__FORMAT", "json");
    let in_test = in_test.with("MUSTER__REQUIRE_TLS", "false");
    let tightened = in_test.with("MUSTER__REQUIRE_TLS", "true");
    let mut seen = 0;
    for (configuration, policy) in [
        (&setting.configuration, "required: production"),
        (&tightened, "required: configured"),
        (&in_test, "optional: test"),
    ] {
        let worker = configuration.serve(&setting.services)?;
        let log = fs::read_to_string(&worker.log)?;
        ensure!(log.lines().nth(seen).context("no log")?.contains(policy), "{log}");
        let series = format!("muster_tls_policy_info{{policy=\"{policy}\"}} ");
        ensure!(metric(&worker, &series) == Some(1.0), "{policy} is in the metrics");
        let log = worker.log.clone();
        ensure!(worker.stop()? == Some(0), "it stops cleanly");
        seen = fs::read_to_string(log)?.lines().count();
        let report = text(&configuration.run("check").await?.stdout);
        ensure!(report.lines().next().context("no report")?.contains(policy), "{report}");
        if policy.starts_with("required") {
            let plaintext = configuration.with("MUSTER__NATS__URLS", "nats://localhost:4222");
            let said = text(&plaintext.run("serve").await?.stderr);
            ensure!(said.contains(policy), "{said}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_of_each_server_what_it_showed_and_why_it_is_refused() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let port = setting.services.nats.port;
    // The certificate is good for localhost and 127.0.0.1, and nobody is at 127.0.0.9.
    let urls = format!("tls://localhost:{port},tls://127.0.0.9:{port},tls://127.0.0.1:{port}");
    let output = setting.configuration.with("MUSTER__NATS__URLS", urls).run("check").await?;
    let report = text(&output.stdout);
    ensure!(output.status.code() == Some(1), "one of three does not work: {report}");
    for wanted in [
        format!("nats           ok      tls://localhost:{port}: connected to nats-0, version"),
        format!("nats           REFUSED tls://127.0.0.9:{port}: no NATS server could be reached"),
        format!("nats           ok      tls://127.0.0.1:{port}: connected to nats-0, version"),
        "nats           localhost by TLS 1.3 shows CN=nats-0 [localhost, 127.0.0.1, ::1, nats-0.nats.nats.svc] \
         by CN=ca, "
            .to_owned(),
        "postgres       localhost by TLS 1.3 shows CN=postgres [localhost, 127.0.0.1, ::1] by CN=ca, "
            .to_owned(),
        "certificate    nats own: CN=muster-worker [muster-worker] by CN=ca, ".to_owned(),
        "certificate    nats trusts: CN=ca [] by CN=ca, ".to_owned(),
        "certificate    postgres trusts: CN=ca".to_owned(),
    ] {
        ensure!(report.contains(&wanted), "{wanted}: {report}");
    }
    ensure!(report.lines().filter(|line| line.contains("SHA-256 ")).count() >= 6, "{report}");

    let mixed = format!("tls://localhost:{port},nats://worker:hunter2@localhost:{port},ws://localhost:1");
    let output = setting.configuration.with("MUSTER__NATS__URLS", mixed).run("check").await?;
    let report = text(&output.stdout);
    ensure!(output.status.code() == Some(64), "{report}");
    ensure!(report.contains(&format!("nats server    ok      tls://localhost:{port} (TLS)")), "{report}");
    ensure!(report.matches("nats server    REFUSED").count() == 2 && !report.contains("hunter2"), "{report}");

    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_is_trusted_in_place_of_the_systems_authorities() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let path = |authority: &Authority| authority.certificate_file().display().to_string();
    let stranger = Authority::create(setting.services.directory.path(), "stranger")?;
    // To the worker, the system trusts whom this variable names: here, who signed for both servers.
    let trusted = setting.configuration.with("SSL_CERT_FILE", path(&setting.services.authority));
    for (variable, refusal) in [
        ("MUSTER__NATS__CA_FILE", "nats           REFUSED localhost: "),
        ("MUSTER__DATABASE__CA_FILE", "postgres       REFUSED localhost: "),
    ] {
        let output = trusted.with(variable, path(&stranger)).run("check").await?;
        let report = text(&output.stdout);
        ensure!(output.status.code() == Some(1), "{report}");
        ensure!(
            report.lines().any(|line| line.contains(refusal) && line.contains("UnknownIssuer")),
            "{report}"
        );
    }
    let report = text(&trusted.run("check").await?.stdout);
    ensure!(!report.contains("REFUSED"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_or_open_database_is_refused() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let services = &setting.services;
    let start = |name: &str, tls: bool| {
        let identity = services.authority.server(name)?;
        let mut options = PostgresOptions::new(services.postgres.options.server.clone(), identity);
        options.tls = options.tls.filter(|_| tls);
        options.settings = vec![("ssl_max_protocol_version".to_owned(), "TLSv1.2".to_owned())];
        Postgres::start(&services.directory, name, options)
    };
    let (old, open) = (start("old", true)?, start("open", false)?);
    let report_on = async |postgres: &Postgres, minimum: &str| -> Result<String> {
        let url = postgres.url("postgres").replace("sslmode=disable", "sslmode=verify-full");
        let file = services.directory.secret_file("other-database-url", &url)?;
        let configuration = setting
            .configuration
            .with("MUSTER__DATABASE__URL_FILE", file.display().to_string())
            .with("MUSTER__DATABASE__MINIMUM_TLS", minimum);
        Ok(text(&configuration.run("check").await?.stdout))
    };
    let report = report_on(&old, "1.3").await?;
    ensure!(
        report.contains("postgres       FAILED") && !report.contains("postgres       localhost"),
        "{report}"
    );
    let report = report_on(&old, "1.2").await?;
    ensure!(report.contains("postgres       localhost by TLS 1.2 shows CN=old"), "{report}");
    let report = report_on(&open, "1.2").await?;
    ensure!(report.contains("postgres       FAILED") && report.contains("does not support TLS"), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_ends_soon_is_counted_down_and_warned_of() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let now = OffsetDateTime::now_utc();
    let validity = now - Duration::HOUR..now + Duration::days(10);
    setting.services.authority.issue("muster-worker", &["muster-worker"], validity)?;
    let worker = setting.serve()?;
    let days =
        |of: &str| metric(&worker, &format!("muster_certificate_expiry_days{{certificate=\"{of}\"}} "));
    eventually("the gauge", async || days("nats_own").is_some_and(|days| (9.9..10.0).contains(&days)))
        .await?;
    for other in ["nats_authority", "nats_server", "postgres_authority", "postgres_server"] {
        ensure!(days(other).is_some_and(|days| (29.0..30.0).contains(&days)), "{other}: {:?}", days(other));
    }
    let log = fs::read_to_string(&worker.log)?;
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("ends soon: renew it")).collect();
    ensure!(warnings.len() == 1, "one certificate ends within 14 days, and it is told once: {log}");
    ensure!(
        warnings.concat().contains("CN=muster-worker") && warnings.concat().contains("nats_own"),
        "{log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_server_is_refused_and_the_log_and_the_metrics_say_why() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let refused = |place: &str| {
        metric(&worker, &format!("muster_tls_handshakes_total{{place=\"{place}\",verdict=\"refused\"}} "))
    };
    let logged = || fs::read_to_string(&worker.log).unwrap_or_default();

    setting.services.nats.kill()?;
    expired(&setting.services.authority, "nats-0")?;
    setting.services.nats.restart()?;
    eventually("NATS to be refused", async || refused("nats") > Some(0.0) && !ready(&worker)).await?;
    ensure!(
        logged().contains("a server's certificate is refused") && logged().contains("expired"),
        "{}",
        logged()
    );
    setting.services.authority.server("nats-0")?;
    setting.services.nats.reload()?;
    eventually("readiness", async || ready(&worker)).await?;

    setting.services.postgres.kill()?;
    setting.services.postgres.install_identity(&expired(&setting.services.authority, "postgres")?)?;
    setting.services.postgres.restart()?;
    eventually("PostgreSQL to be refused", async || refused("postgres") > Some(0.0) && !ready(&worker))
        .await?;
    setting.services.postgres.install_identity(&setting.services.authority.server("postgres")?)?;
    setting.services.postgres.reload()?;
    eventually("readiness", async || ready(&worker)).await?;
    ensure!(worker.stop()? == Some(0), "it stops cleanly");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_user_is_not_tried_for_ever() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let mut worker = setting.serve()?;
    setting.services.nats.rename_user("muster-worker", "muster-worker-2")?;
    ensure!(worker.wait()? == Some(1), "it ends, to be started anew with what it lacks");
    let log = fs::read_to_string(&worker.log)?;
    let off = log.lines().position(|line| line.contains("not ready") && line.contains("\"part\":\"nats\""));
    let end = log.lines().position(|line| line.contains("refuse the credentials"));
    ensure!(off.context("readiness goes off")? < end.context("the log says why")?, "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_without_tls_is_waited_out() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let mut worker = setting
        .configuration
        .with("MUSTER__NATS__GIVE_UP_AFTER_MS", "15000")
        .with("MUSTER__SHUTDOWN__DEADLINE_MS", "2000")
        .serve(&setting.services)?;
    setting.services.nats.kill()?;
    let options = &mut setting.services.nats.options;
    let (before, block) = options.node.split_once("\ntls {\n").context("no block tls")?;
    let (_, after) = block.split_once("\n}\n").context("an endless block tls")?;
    options.node = format!("{before}\n{after}");
    setting.services.nats.restart()?;
    eventually("readiness to go off", async || !ready(&worker)).await?;
    let (_, parts) = worker.get("/readyz")?;
    ensure!(parts.contains("\"nats\":false") && parts.contains("\"running\":true"), "{parts}");
    ensure!(worker.get("/livez")?.0 == 200, "liveness stays on");
    ensure!(worker.wait()? == Some(1), "it ends when it has waited long enough");
    let log = fs::read_to_string(&worker.log)?;
    ensure!(log.contains("no NATS server was reached for too long"), "{log}");
    Ok(())
}
