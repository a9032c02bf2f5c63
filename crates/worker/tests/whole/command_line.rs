//! What the binary says and how it exits.

use anyhow::Result;

use crate::setting::Setting;

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
