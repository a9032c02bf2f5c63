//! What stands in the files of certificates and secrets, as the worker's own process takes it.

use std::fs;
use std::process::Output;

use anyhow::{Result, ensure};
use time::{Duration, OffsetDateTime};
use xtask::services::Authority;

use crate::setting::{Setting, eventually, metric};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A name that expired a month ago, signed by nobody in particular.
fn expired(setting: &Setting) -> Result<String> {
    let now = OffsetDateTime::now_utc();
    let validity = now - Duration::days(60)..now - Duration::days(30);
    let issued = setting.services.authority.issue("old", &[], validity)?;
    Ok(fs::read_to_string(issued.certificate_file)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_joined_without_a_newline_are_all_trusted_and_counted() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let directory = tempfile::tempdir()?;
    let first = Authority::create(directory.path(), "first")?;
    let first = fs::read_to_string(first.certificate_file())?;
    let real = fs::read_to_string(setting.services.authority.certificate_file())?;
    let joined = directory.path().join("joined.pem");
    // As `cat` makes it. The one that matters is the second.
    fs::write(&joined, format!("{}{real}", first.trim_end()))?;
    let path = joined.display().to_string();
    let both =
        setting.configuration.with("MUSTER__NATS__CA_FILE", &path).with("MUSTER__DATABASE__CA_FILE", &path);
    let output = both.run("check").await?;
    let report = said(&output);
    ensure!(output.status.success(), "{report}");
    for place in ["nats", "postgres"] {
        ensure!(report.contains(&format!("file           {place} {path}: 2 certificates\n")), "{report}");
    }
    let certificate = setting.services.clients.worker.certificate_file.display();
    ensure!(report.contains(&format!("file           nats {certificate}: 1 certificate\n")), "{report}");
    let key = setting.services.clients.worker.key_file.display();
    ensure!(report.contains(&format!("file           nats {key}: 1 key\n")), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_read_whole_exits_64_with_its_line() -> Result<()> {
    let setting = Setting::new().await?;
    let directory = tempfile::tempdir()?;
    let ca = fs::read_to_string(setting.services.authority.certificate_file())?;
    let key = fs::read_to_string(&setting.services.clients.worker.key_file)?;
    let encrypted = key.replacen("-----\n", "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1);
    let line = ca.lines().count() + 1;
    let cases = [
        (
            "MUSTER__NATS__CA_FILE",
            format!("{ca}{}", ca.replacen("-----BEGIN", "----BEGIN", 1)),
            format!("line {line} is not quite a marker"),
        ),
        ("MUSTER__NATS__CA_FILE", format!("{ca}{key}"), format!("line {line} begins a key")),
        (
            "MUSTER__DATABASE__CA_FILE",
            format!("{ca}-----BEGIN CERTIFICATE-----\n"),
            "does not end".to_owned(),
        ),
        ("MUSTER__DATABASE__CA_FILE", String::new(), "is empty".to_owned()),
        ("MUSTER__NATS__KEY_FILE", encrypted, "openssl pkey -in FILE".to_owned()),
        (
            "MUSTER__NATS__KEY_FILE",
            key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            "encrypted".to_owned(),
        ),
        ("MUSTER__NATS__KEY_FILE", format!("{key}{key}"), "second key".to_owned()),
    ];
    for (variable, text, named) in cases {
        let path = directory.path().join("given.pem");
        fs::write(&path, text)?;
        let output = setting.configuration.with(variable, path.display().to_string()).run("serve").await?;
        let said = said(&output);
        ensure!(output.status.code() == Some(64), "{variable}: {said}");
        ensure!(said.contains("given.pem ") && said.contains(&named), "{named}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_beside_a_valid_one_is_warned_of_and_ends_nothing() -> Result<()> {
    let setting = Setting::new().await?;
    let directory = tempfile::tempdir()?;
    let old = expired(&setting)?;
    let (chain, authorities) = (directory.path().join("chain.pem"), directory.path().join("authorities.pem"));
    let own = fs::read_to_string(&setting.services.clients.worker.certificate_file)?;
    let ca = fs::read_to_string(setting.services.authority.certificate_file())?;
    fs::write(&chain, format!("{own}{old}"))?;
    fs::write(&authorities, format!("{old}{ca}"))?;
    let (chain, authorities) = (chain.display().to_string(), authorities.display().to_string());
    let configuration = setting
        .configuration
        .with("MUSTER__NATS__CERTIFICATE_FILE", &chain)
        .with("MUSTER__NATS__CA_FILE", &authorities);
    let checked = configuration.run("check").await?;
    let report = said(&checked);
    ensure!(checked.status.success(), "{report}");
    ensure!(
        report.contains(&format!("NOT USED {authorities}: the certificate of CN=old in line 1 ")),
        "{report}"
    );
    ensure!(report.contains(&format!("NOT USED {chain}: the certificate of CN=old in line ")), "{report}");
    let worker = configuration.serve(&setting.services)?;
    let told = || {
        let log = fs::read_to_string(&worker.log).unwrap_or_default();
        log.lines().filter(|line| line.contains("is passed over") && line.contains("CN=old")).count()
    };
    eventually("both warnings", async || told() == 2).await?;
    // What is not used is no reason for an alert.
    let gauge = "muster_certificate_expiry_days{certificate=\"nats_own\"} ";
    eventually("the gauge", async || metric(&worker, gauge).is_some_and(|days| days > 29.0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_empty_or_not_one_exits_64_by_key_and_file() -> Result<()> {
    let setting = Setting::new().await?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("secret");
    let given = path.display().to_string();
    let kinds = [
        ("database.url_file", "MUSTER__DATABASE__URL_FILE"),
        ("nats.password_file", "MUSTER__NATS__PASSWORD_FILE"),
        ("nats.token_file", "MUSTER__NATS__TOKEN_FILE"),
        ("nats.nkey_file", "MUSTER__NATS__NKEY_FILE"),
        ("nats.credentials_file", "MUSTER__NATS__CREDENTIALS_FILE"),
    ];
    let told = async |key: &str, variable: &'static str, bytes: &[u8], named: &str| -> Result<()> {
        fs::write(&path, bytes)?;
        let mut configuration = setting.configuration.with(variable, &given);
        if key == "nats.password_file" {
            configuration = configuration.with("MUSTER__NATS__USER", "worker");
        }
        let output = configuration.run("serve").await?;
        let said = said(&output);
        ensure!(output.status.code() == Some(64), "{key}: {said}");
        ensure!(
            said.contains(&format!("{key}: {given} {named}")) && !said.contains("hunter2"),
            "{key}: {said}"
        );
        Ok(())
    };
    for (key, variable) in kinds {
        told(key, variable, b"", "is empty").await?;
        told(key, variable, b" \r\n\n", "is empty").await?;
        told(key, variable, b"\xef\xbb\xbfhunter2", "begins with a byte order mark").await?;
    }
    told("nats.nkey_file", "MUSTER__NATS__NKEY_FILE", b"hunter2\n", "is refused: the NKey file").await?;
    let truncated = b"-----BEGIN NATS USER JWT-----\nhunter2.b.c\n------END NATS USER JWT------\n";
    told("nats.credentials_file", "MUSTER__NATS__CREDENTIALS_FILE", truncated, "is refused: the NATS cred")
        .await?;
    Ok(())
}
