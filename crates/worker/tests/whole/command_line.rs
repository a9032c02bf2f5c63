//! What the binary says and how it exits.

use anyhow::Result;

use crate::setting::{Guild, Setting, community};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_exits_64_and_names_what_is_wrong() -> Result<()> {
    let setting = Setting::new().await?;
    let tls = setting.services.nats.url();
    let wrong = [
        ("MUSTER__NATS__URLS", format!("{tls},nats://worker:hunter2@other:4222"), "nats://other:4222"),
        ("MUSTER__NATS__URLS", "ws://other:80".to_owned(), "ws://other"),
        ("MUSTER__NATS__URL", tls.clone(), "url"),
        ("MUSTER__ENVIRONMENT", "staging".to_owned(), "staging"),
        ("MUSTER__DATABASE__POOL_SIZE", "0".to_owned(), "database.pool_size"),
        ("MUSTER__DATABASE__URL_FILE", "/nowhere/url".to_owned(), "database.url_file"),
        ("MUSTER__NATS__CA_FILE", "/nowhere/ca.pem".to_owned(), "/nowhere/ca.pem"),
        ("MUSTER__LOG__FORMAT", "xml".to_owned(), "log.format"),
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
async fn check_tells_what_would_work_and_what_would_not() -> Result<()> {
    let mut setting = Setting::new().await?;
    let well = setting.configuration.run("check").await?;
    assert!(well.status.success(), "{}{}", text(&well.stdout), text(&well.stderr));
    assert!(text(&well.stdout).contains("required: production"));
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
    let nobody = setting.configuration.run("ask muster.v1.communities.find {}").await?;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("nobody answers there"), "{}", text(&nobody.stderr));
    let _worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let id = community(&client, "tabr").await?;
    let found = setting.configuration.run(r#"ask muster.v1.communities.find {"guild_id":"tabr"}"#).await?;
    assert!(found.status.success(), "{}", text(&found.stderr));
    assert!(text(&found.stdout).contains(&id.to_string()), "{}", text(&found.stdout));
    // It needs no database of its own.
    let alone = setting.configuration.with("MUSTER__DATABASE__URL_FILE", "/nowhere/url");
    let stats = alone.run(&format!("ask muster.v1.{id}.community.stats --caller paul")).await?;
    assert!(
        stats.status.success() && text(&stats.stdout).contains("\"members\":0"),
        "{}",
        text(&stats.stdout)
    );
    let refused = setting.configuration.run(r#"ask muster.v1.communities.find {"limt":5}"#).await?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stdout).contains("\"invalid_request\""), "{}", text(&refused.stdout));
    Ok(())
}
