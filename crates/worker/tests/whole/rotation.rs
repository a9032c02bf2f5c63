//! Certificates and secrets change under a working worker.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use muster_messaging::api::community;
use muster_messaging::client::{Client, CommunityClient, EventPublisher};
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::pem::{Purpose, read};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use xtask::services::Authority;
use xtask::worker::Worker;

use crate::setting::{Guild, PATIENCE, Setting, community, eventually};

fn serial(pem: &[u8]) -> Result<String> {
    let chain = read(pem, Purpose::Chain)?.certificates;
    let (_, leaf) = chain.first().context("no certificate")?;
    Ok(Certificate::parse(leaf)?.serial)
}

/// Between two requests, and between two events: it is a rotation that is looked at here, not a machine without a free moment.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Requests and events all the while. [`Load::end`] fails when one of them did.
struct Load {
    community: CommunityClient,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    asking: JoinHandle<Result<()>>,
    publishing: JoinHandle<Result<u32>>,
}

impl Load {
    async fn begin(client: &Client, publisher: EventPublisher) -> Result<Self> {
        let mut guild = Guild::new("8800");
        publisher.publish(&guild.join_guild()).await?;
        let community = client.community(community(client, "8800").await?);
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let asking = tokio::spawn({
            let (community, stop, answered) = (community.clone(), Arc::clone(&stop), Arc::clone(&answered));
            async move {
                while !stop.load(Ordering::SeqCst) {
                    community.ask(&community::Stats {}).await?;
                    answered.fetch_add(1, Ordering::SeqCst);
                    sleep(PAUSE).await;
                }
                anyhow::Ok(())
            }
        });
        let publishing = tokio::spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut published = 0_u32;
                while !stop.load(Ordering::SeqCst) {
                    let (event, mut tries) = (guild.join(&published.to_string()), 0);
                    // While the server takes up its files it may find no stream for a moment: a gateway publishes again.
                    while let Err(error) = publisher.publish(&event).await {
                        tries += 1;
                        ensure!(tries < 20, "{error}");
                        sleep(PAUSE).await;
                    }
                    published += 1;
                    sleep(PAUSE).await;
                }
                anyhow::Ok(published)
            }
        });
        Ok(Self { community, stop, answered, asking, publishing })
    }

    /// Waits for some more answers.
    async fn goes_on(&self) -> Result<()> {
        let before = self.answered.load(Ordering::SeqCst);
        eventually("some more answers", async || self.answered.load(Ordering::SeqCst) > before + 20).await
    }

    /// No request has failed, and every event that was taken has its effect.
    async fn end(self) -> Result<()> {
        self.goes_on().await?;
        self.stop.store(true, Ordering::SeqCst);
        self.asking.await?.context("a request failed")?;
        let published = self.publishing.await?.context("an event was not taken")?;
        let last = tokio::time::Instant::now() + PATIENCE;
        loop {
            let members = self.community.ask(&community::Stats {}).await?.members;
            if members == u64::from(published) {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < last, "{members} of {published} members");
            sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// Waits until so many rotations had this outcome.
async fn rotations(worker: &Worker, outcome: &str, number: u32) -> Result<()> {
    let series = format!("muster_rotations_total{{outcome=\"{outcome}\"}} {number}\n");
    let mut seen = Ok(());
    // What a machine under load was too slow for is refused, and tried again only half a minute later.
    for _ in 0..3 {
        let shown = async || worker.get("/metrics").is_ok_and(|(_, text)| text.contains(&series));
        seen = eventually(&series, shown).await;
        if seen.is_ok() {
            break;
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_fails_no_request_and_loses_no_event_and_a_bad_file_changes_nothing() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let load = Load::begin(&client, publisher).await?;

    // A good one: the serial that is in use afterwards is the new one's.
    let files = &setting.services.clients.worker;
    let (old_certificate, old_key) = (fs::read(&files.certificate_file)?, fs::read(&files.key_file)?);
    setting.services.authority.client("muster-worker")?;
    let new = serial(&fs::read(&files.certificate_file)?)?;
    ensure!(new != serial(&old_certificate)?, "a new certificate has a new serial");
    let log = || fs::read_to_string(&worker.log);
    eventually("the rotation", async || {
        log().is_ok_and(|log| log.lines().any(|line| line.contains("are in use") && line.contains(&new)))
    })
    .await?;

    // A bad one: a certificate without its key.
    fs::write(&files.certificate_file, &old_certificate)?;
    rotations(&worker, "refused", 1).await?;
    ensure!(log()?.contains("does not belong to the certificate"), "the log says why");
    ensure!(worker.get("/readyz")?.0 == 200, "what was in use stays");

    // Mended, it is taken up without waiting for a restart.
    fs::write(&files.key_file, &old_key)?;
    rotations(&worker, "taken", 2).await?;
    load.end().await?;
    ensure!(worker.stop()? == Some(0), "it stops cleanly");
    Ok(())
}

/// A secret mounted as Kubernetes does it: each file is a link into `..data`, itself a link that one rename replaces.
struct Volume(PathBuf);

impl Volume {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn put(&self, version: &str, files: &[(&str, &[u8])]) -> Result<()> {
        let directory = self.0.join(version);
        fs::create_dir(&directory)?;
        for (name, content) in files {
            fs::write(directory.join(name), content)?;
            if !self.0.join(name).is_symlink() {
                symlink(Path::new("..data").join(name), self.0.join(name))?;
            }
        }
        symlink(version, self.0.join("..data_tmp"))?;
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data"))?;
        Ok(())
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_secret_moves_nats_and_postgresql_to_a_new_authority_under_load() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let volume = Volume::new(setting.services.directory.path().join("volume"))?;
    let old_ca = fs::read(setting.services.authority.certificate_file())?;
    let new_authority = Authority::create(setting.services.directory.path(), "new-ca")?;
    let new_ca = fs::read(new_authority.certificate_file())?;
    let own = |setting: &Setting| -> Result<[Vec<u8>; 2]> {
        let identity = &setting.services.clients.worker;
        Ok([fs::read(&identity.certificate_file)?, fs::read(&identity.key_file)?])
    };
    let mount = |version: &str, ca: &[u8], [certificate, key]: [Vec<u8>; 2]| {
        volume.put(version, &[("ca.crt", ca), ("tls.crt", &certificate), ("tls.key", &key)])
    };
    mount("..1", &old_ca, own(&setting)?)?;
    let worker = setting
        .configuration
        .with("MUSTER__NATS__CA_FILE", volume.file("ca.crt"))
        .with("MUSTER__NATS__CERTIFICATE_FILE", volume.file("tls.crt"))
        .with("MUSTER__NATS__KEY_FILE", volume.file("tls.key"))
        .with("MUSTER__DATABASE__CA_FILE", volume.file("ca.crt"))
        .serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let load = Load::begin(&client, publisher).await?;

    // Both authorities are trusted, and the worker has a new certificate.
    setting.services.authority.client("muster-worker")?;
    let renewed = own(&setting)?;
    let new_serial = serial(&renewed[0])?;
    mount("..2", &[old_ca, new_ca.clone()].concat(), renewed)?;
    rotations(&worker, "taken", 1).await?;
    ensure!(fs::read_to_string(&worker.log)?.contains(&new_serial), "the new serial is the one in use");
    load.goes_on().await?;

    // The servers move to the new authority, and then the old one is trusted no more.
    new_authority.server("nats-0")?;
    setting.services.nats.reload()?;
    setting.services.postgres.install_identity(&new_authority.server("new-postgres")?)?;
    setting.services.postgres.reload()?;
    load.goes_on().await?;
    mount("..3", &new_ca, own(&setting)?)?;
    rotations(&worker, "taken", 2).await?;
    load.goes_on().await?;

    // A secret without authorities is refused for both, and nothing changes.
    mount("..4", b"", own(&setting)?)?;
    rotations(&worker, "refused", 1).await?;
    ensure!(fs::read_to_string(&worker.log)?.contains("ca.crt is empty"), "the log says why");
    ensure!(worker.get("/readyz")?.0 == 200, "what was in use stays");
    load.end().await?;
    ensure!(worker.stop()? == Some(0), "it stops cleanly");
    Ok(())
}
