//! Certificates and secrets change under a working worker.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::pem::read_certificates;
use tokio::time::sleep;

use crate::setting::{Guild, PATIENCE, Setting, community, eventually};

fn serial(pem: &[u8]) -> Result<String> {
    let chain = read_certificates(pem)?;
    Ok(Certificate::parse(chain.first().context("no certificate")?)?.serial)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_fails_no_request_and_loses_no_event_and_a_bad_file_changes_nothing() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("8800");
    publisher.publish(&guild.join_guild()).await?;
    let id = community(&client, "8800").await?;

    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let asking = tokio::spawn({
        let (client, stop, asked) = (client.community(id), Arc::clone(&stop), Arc::clone(&asked));
        async move {
            while !stop.load(Ordering::SeqCst) {
                client.stats().await?;
                asked.fetch_add(1, Ordering::SeqCst);
            }
            anyhow::Ok(())
        }
    });
    let publishing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut published = 0_u32;
            while !stop.load(Ordering::SeqCst) {
                publisher.publish(&guild.join(&published.to_string())).await?;
                published += 1;
            }
            anyhow::Ok(published)
        }
    });

    // A good one: the serial that is in use afterwards is the new one's.
    let files = &setting.services.worker;
    let (old_certificate, old_key) = (fs::read(&files.certificate_file)?, fs::read(&files.key_file)?);
    setting.services.authority.client("worker")?;
    let new = serial(&fs::read(&files.certificate_file)?)?;
    ensure!(new != serial(&old_certificate)?, "a new certificate has a new serial");
    let log = || fs::read_to_string(worker.log());
    eventually("the rotation", async || {
        log().is_ok_and(|log| log.lines().any(|line| line.contains("are in use") && line.contains(&new)))
    })
    .await?;

    // A bad one: a certificate without its key.
    fs::write(&files.certificate_file, &old_certificate)?;
    eventually("the refusal", async || {
        worker
            .get("/metrics")
            .is_ok_and(|(_, text)| text.contains("muster_rotations_total{outcome=\"refused\"} 1\n"))
    })
    .await?;
    ensure!(log()?.contains("does not belong to the certificate"), "the log says why");
    ensure!(worker.get("/readyz")?.0 == 200, "what was in use stays");

    // Mended, it is taken up without waiting for a restart.
    fs::write(&files.key_file, &old_key)?;
    eventually("the second rotation", async || {
        worker
            .get("/metrics")
            .is_ok_and(|(_, text)| text.contains("muster_rotations_total{outcome=\"taken\"} 2\n"))
    })
    .await?;

    let before = asked.load(Ordering::SeqCst);
    eventually("some more answers", async || asked.load(Ordering::SeqCst) > before + 20).await?;
    stop.store(true, Ordering::SeqCst);
    asking.await?.context("a request failed")?;
    let published = publishing.await?.context("an event was not taken")?;
    let last = tokio::time::Instant::now() + PATIENCE;
    loop {
        let members = client.community(id).stats().await?.members;
        if members == u64::from(published) {
            break;
        }
        ensure!(tokio::time::Instant::now() < last, "{members} of {published} members");
        sleep(std::time::Duration::from_millis(50)).await;
    }
    ensure!(worker.stop()? == Some(0), "it stops in good order");
    Ok(())
}
