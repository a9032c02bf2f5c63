//! What the binary says and how it exits.

use anyhow::Result;

use crate::setting::{Guild, Setting, community, eventually};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_exits_64_and_names_what_is_wrong() -> Result<()> {
    let setting = Setting::new().await?;
    let tls = setting.services.nats.url();
    let directory = &setting.services.directory;
    let url = directory.secret_file("wrong-url", "postgres://u:hunter2@db/muster?sslmode=prefer")?;
    let url = url.display().to_string();
    // Nobody writes to it.
    let pipe = directory.path().join("muster.pipe").display().to_string();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status()?.success());
    let wrong = [
        ("MUSTER__NATS__URLS", format!("{tls},nats://worker:hunter2@other:4222"), "nats://other:4222"),
        ("MUSTER__NATS__URLS", "ws://other:80".to_owned(), "ws://other"),
        ("MUSTER__NATS__URL", tls.clone(), "url"),
        ("MUSTER__ENVIRONMENT", "staging".to_owned(), "staging"),
        ("MUSTER__DATABASE__POOL_SIZE", "0".to_owned(), "database.pool_size"),
        ("MUSTER__DATABASE__URL_FILE", "/nowhere/url".to_owned(), "database.url_file"),
        ("MUSTER__NATS__CA_FILE", "/nowhere/ca.pem".to_owned(), "/nowhere/ca.pem"),
        ("MUSTER__LOG__FORMAT", "xml".to_owned(), "log.format"),
        ("MUSTER__LOG__FILTER", "nonsense".to_owned(), "log.filter"),
        ("MUSTER__LOG__FILTER", "info,muster=loud".to_owned(), "muster=loud"),
        ("muster__environment", "development".to_owned(), "write MUSTER__ENVIRONMENT"),
        ("MUSTER_REQUIRE_TLS", "false".to_owned(), "write MUSTER__REQUIRE_TLS"),
        ("MUSTER__NATS__TLS_FIRST", "hunter2".to_owned(), "nats.tls_first"),
        ("MUSTER__DATABASE__URL_FILE", String::new(), "database.url_file"),
        ("MUSTER_CONFIG_FILE", "/nowhere/muster.toml".to_owned(), "/nowhere/muster.toml"),
        ("MUSTER_CONFIG_FILE", pipe.clone(), "muster.pipe: the configuration is not a regular file"),
        ("MUSTER__DATABASE__URL_FILE", url.clone(), "database.url_file: "),
        ("MUSTER__DATABASE__URL_FILE", url, "wrong-url "),
        ("MUSTER__TRACES__CA_FILE", pipe, "traces.ca_file: is set and would not be used"),
    ];
    for (variable, value, named) in wrong {
        let output = setting.configuration.with(variable, &value).run("serve").await?;
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{variable}={value}: {said}");
        assert!(said.contains(named), "{variable}={value}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_is_warned_of_once_in_a_process_however_often_it_connects() -> Result<()> {
    let setting = Setting::new().await?;
    let development = setting
        .configuration
        .with("MUSTER__ENVIRONMENT", "development")
        .with("MUSTER__NATS__URLS", "nats://127.0.0.1:1,nats://127.0.0.1:2");
    for (command, warnings) in [("check --wait=1", 1), ("verify --all", 0)] {
        let output = development.run(command).await?;
        let said = text(&output.stderr);
        assert_eq!(said.matches("is spoken to in plaintext").count(), warnings, "{command}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_asks_for_what_it_needs_and_for_nothing_else() -> Result<()> {
    let setting = Setting::new().await?;
    let without_nats = setting
        .configuration
        .with("MUSTER__NATS__URLS", "")
        .with("MUSTER__NATS__CA_FILE", "/nowhere/ca.pem")
        .with("MUSTER__NATS__KEY_FILE", "/nowhere/key.pem");
    for command in ["migrate", "verify --all", "erasures export", "pseudonym paul"] {
        let output = without_nats.run(command).await?;
        assert!(output.status.success(), "{command}: {}", text(&output.stderr));
    }
    let without_database = setting
        .configuration
        .with("MUSTER__DATABASE__URL_FILE", "")
        .with("MUSTER__DATABASE__CA_FILE", "/nowhere/ca.pem");
    let worker = setting.serve()?;
    let clients = &setting.services.clients;
    let listed = without_database.as_client(&clients.repair).run("deadletters list").await?;
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    let operator = without_database.as_client(&clients.operator);
    let asked = operator.run(r#"ask muster.v1.communities.find {"limt":5}"#).await?;
    assert!(text(&asked.stdout).contains("\"invalid_request\""), "{}", text(&asked.stderr));
    let neither = without_database.with("MUSTER__NATS__URLS", "").with("MUSTER__NATS__USER", "");
    let health = neither.run("health").await?;
    assert!(health.status.success(), "{}", text(&health.stderr));
    assert_eq!(worker.stop()?, Some(0));
    for (configuration, named) in [(without_nats, "nats.urls"), (without_database, "database.url_file")] {
        for command in ["serve", "check"] {
            let output = configuration.run(command).await?;
            assert_eq!(output.status.code(), Some(64), "{command}");
            assert!(text(&output.stderr).contains(named), "{command}: {}", text(&output.stderr));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_filter_shows_what_none_shows() -> Result<()> {
    let setting = Setting::new().await?;
    let empty = [
        "MUSTER__LOG__FILTER",
        "MUSTER__LOG__FORMAT",
        "MUSTER__NATS__TOKEN_FILE",
        "MUSTER__TRACES__ENDPOINT",
        "MUSTER__EVENTS__BATCH",
        "MUSTER_CONFIG_FILE",
    ];
    let configuration =
        empty.into_iter().fold(setting.configuration.with(empty[0], ""), |all, name| all.with(name, ""));
    let worker = configuration.serve(&setting.services)?;
    let told =
        || std::fs::read_to_string(&worker.log).is_ok_and(|log| log.contains("muster-worker is ready"));
    eventually("the line of readiness", async || told()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_would_work_and_what_would_not() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let well = setting.configuration.run("check").await?;
    assert!(well.status.success(), "{}{}", text(&well.stdout), text(&well.stderr));
    assert!(text(&well.stdout).contains("required: production"));
    assert!(text(&well.stdout).contains("key exchange   X25519, "), "{}", text(&well.stdout));
    assert!(setting.configuration.run("health").await?.status.code() == Some(1), "nothing is running yet");
    let worker = setting.serve()?;
    assert!(setting.configuration.run("health").await?.status.success());
    assert_eq!(worker.stop()?, Some(0));
    setting.services.postgres.stop();
    let ill = setting.configuration.run("check").await?;
    assert_eq!(ill.status.code(), Some(1));
    assert!(text(&ill.stdout).contains("postgres       FAILED"), "{}", text(&ill.stdout));
    assert!(text(&ill.stdout).contains("nats           ok"), "{}", text(&ill.stdout));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ask_prints_the_answer_and_exits_by_it() -> Result<()> {
    let setting = Setting::new().await?;
    let operator = setting.configuration.as_client(&setting.services.clients.operator);
    let nobody = operator.run("ask muster.v1.communities.find {}").await?;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("no responders"), "{}", text(&nobody.stderr));
    let _worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let id = community(&client, "tabr").await?;
    let found = operator.run(r#"ask muster.v1.communities.find {"guild_id":"tabr"}"#).await?;
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert!(text(&found.stdout).contains(&id.to_string()), "{}", text(&found.stdout));
    // It needs no database of its own.
    let alone = operator.with("MUSTER__DATABASE__URL_FILE", "/nowhere/url");
    let stats = alone.run(&format!("ask muster.v1.{id}.community.stats --caller paul")).await?;
    assert!(
        stats.status.success() && text(&stats.stdout).contains("\"members\":0"),
        "{}",
        text(&stats.stdout)
    );
    let refused = operator.run(r#"ask muster.v1.communities.find {"limt":5}"#).await?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stdout).contains("\"invalid_request\""), "{}", text(&refused.stdout));
    Ok(())
}
