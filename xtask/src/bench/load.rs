//! A community to measure on: made by events through a checkout's worker, kept in the cache, served from a copy.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use muster_domain::{CommunityId, Environment, TlsPolicy};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::Connection;
use muster_messaging::tls::material::{Material, MinimumVersion};
use muster_storage::{Store, StoreConfig};
use serde_json::Value;
use time::OffsetDateTime;
use tokio_postgres_rustls::MakeRustlsConnect;
use xtask::services::Services;
use xtask::tool::{cache, output, postgres_server};
use xtask::worker::{self, Configuration};

use super::seed;
use crate::cargo;
use crate::description::text;

pub(super) const DATABASE: &str = "postgres";
/// The database of the yardstick that does not move with Muster's schema, on the same server (`ideal.sql`).
pub(super) const IDEAL_DATABASE: &str = "ideal";
pub(super) const PATIENCE: Duration = Duration::from_secs(1800);
/// How many events are published before the worker has to apply them.
const AHEAD: usize = 50_000;

/// One community, with a checkout's worker and servers of its own.
pub(super) struct Community {
    /// Whose worker: `this` or `other`.
    pub(super) name: &'static str,
    pub(super) members: i64,
    pub(super) configuration: Configuration,
    pub(super) services: Services,
    pub(super) client: Client,
    publisher: EventPublisher,
    pub(super) nats: async_nats::Client,
    trust: Arc<Material>,
}

impl Community {
    /// Starts its servers on a copy of what is kept, which is made when it is missing.
    pub(super) async fn start(name: &'static str, root: &Path, worker: &Path, members: i64) -> Result<Self> {
        let kept = cache()?.join(format!("bench-{members}-{}", digest(root)?));
        if !kept.is_dir() {
            println!("making a community of {members} members by {name} worker");
            let mut making = Self::open(name, worker, None, members).await?;
            making.fill().await?;
            let client = making.connect(DATABASE).await?;
            client.batch_execute("CREATE DATABASE ideal").await?;
            let ideal = include_str!("ideal.sql").replace(":members", &members.to_string());
            making.connect(IDEAL_DATABASE).await?.batch_execute(&ideal).await?;
            for database in [DATABASE, IDEAL_DATABASE] {
                making.connect(database).await?.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
            }
            client.batch_execute("CHECKPOINT").await?;
            making.services.postgres.stop();
            keep(&making.services.postgres.data(), &kept)?;
        }
        Self::open(name, worker, Some(kept), members).await
    }

    async fn open(name: &'static str, worker: &Path, kept: Option<PathBuf>, members: i64) -> Result<Self> {
        let services = Services::start_with(1, |postgres, nodes| {
            // What is only being made need not survive a crash.
            postgres.durable = kept.is_some();
            postgres.copy_of = kept;
            let settings = include_str!("postgresql.conf").lines().filter_map(|line| line.split_once(" = "));
            postgres.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
            nodes.iter_mut().try_for_each(|nats| {
                // Whoever has a certificate may do everything.
                nats.accounts.clear();
                nats.change("verify_and_map: true", "verify: true")?;
                // The worker is measured, not the broker's disk.
                nats.change("sync_interval: always", "sync_interval: \"2m\"")
            })
        })?;
        let configuration = Configuration::new(worker.to_owned(), &services)?
            // Work is measured, not its refusal.
            .with("MUSTER__LIMITS__COMMUNITY_PER_SECOND", "1000000")
            .with("MUSTER__LIMITS__COMMUNITY_BURST", "1000000")
            .with("MUSTER__LOG__FILTER", "warn");
        let operator = &services.clients.operator;
        let trust = Arc::new(Material::load(&services.authority.files(operator), MinimumVersion::Tls13)?);
        let connection = Connection::open(services.nats_config(operator, "bench")?).await?;
        let (client, publisher) = (Client::new(connection.clone()), EventPublisher::new(&connection));
        let nats = async_nats::ConnectOptions::new().require_tls(true).tls_first();
        let nats = nats.tls_client_config(trust.client_config().as_ref().clone());
        let nats = nats.connect(services.nats.url()).await.context("cannot connect to NATS")?;
        Ok(Self { name, members, configuration, services, client, publisher, nats, trust })
    }

    async fn fill(&self) -> Result<()> {
        let migrated = self.configuration.run("migrate").await?;
        ensure!(migrated.status.success(), "migrate fails: {}", String::from_utf8_lossy(&migrated.stderr));
        let worker = self.configuration.serve(&self.services)?;
        let mut events = seed::community(self.members)?.peekable();
        while events.peek().is_some() {
            self.publish(events.by_ref().take(AHEAD)).await?;
            worker.until_acknowledged(&self.client, PATIENCE).await?;
            // A full stream takes no more.
            self.purge().await?;
        }
        worker.stop()?;
        Ok(())
    }

    /// A bare connection to one of the server's databases, over TLS as the worker's.
    pub(super) async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        let url = self.services.postgres.url(database).replace("verify-full", "require");
        let tls = MakeRustlsConnect::new(self.trust.client_config().as_ref().clone());
        let (client, connection) = tokio_postgres::connect(&url, tls).await?;
        // Its errors are those of the statements that it carries.
        tokio::spawn(connection);
        Ok(client)
    }

    pub(super) async fn store(&self) -> Result<Store> {
        let url = self.services.postgres.url(DATABASE).into();
        let policy = TlsPolicy::new(Environment::Production, false);
        Ok(Store::open(StoreConfig::new(&url, policy, Some(self.trust.client_config()))?).await?)
    }

    /// Asks on a subject; an answer that is an error is one here, too.
    pub(super) async fn ask(&self, subject: &str, body: &str) -> Result<Vec<u8>> {
        let answer = self.client.ask_by_hand(subject, body.into()).await.context(subject.to_owned())?;
        ensure!(!answer.is_error, "{subject}: {}", String::from_utf8_lossy(&answer.body));
        Ok(answer.body)
    }

    /// The subject of a bare responder that answers every request with `answer`.
    pub(super) async fn echo(&self, answer: Vec<u8>) -> Result<String> {
        let (nats, subject, answer) = (self.nats.clone(), self.nats.new_inbox(), Bytes::from(answer));
        let mut requests = nats.subscribe(subject.clone()).await?;
        tokio::spawn(async move {
            while let Some(reply) = requests.next().await.and_then(|request| request.reply) {
                nats.publish(reply, answer.clone()).await?;
            }
            anyhow::Ok(())
        });
        Ok(subject)
    }

    /// The measured community's id, by a worker that serves, whose answers may be those of another version.
    pub(super) async fn id(&self) -> Result<CommunityId> {
        let guild = format!(r#"{{"guild_id":"{}"}}"#, seed::GUILD);
        let found: Value = serde_json::from_slice(&self.ask("muster.v1.communities.find", &guild).await?)?;
        Ok(text(&found, "/community_id").parse()?)
    }

    /// Publishes events, many at once, and waits until the stream has acknowledged all of them.
    pub(super) async fn publish(&self, events: impl Iterator<Item = seed::Event>) -> Result<()> {
        worker::publish(&self.publisher, events.map(|event| (event.subject, event.payload))).await
    }

    /// Empties the stream of events, which the worker makes when it first serves.
    pub(super) async fn purge(&self) -> Result<()> {
        let answer = String::from_utf8(self.ask("$JS.API.STREAM.PURGE.EVENTS", "").await?)?;
        ensure!(answer.contains(r#""success":true"#), "the stream cannot be purged: {answer}");
        Ok(())
    }
}

/// What tells whether a kept community is of a checkout's schema, of these events and of this week.
fn digest(checkout: &Path) -> Result<String> {
    let script = r#"cat "$1"/crates/storage/migrations/*/up.sql "$2"/seed.* "$2"/ideal.sql | sha256sum"#;
    let own = cargo::root().join("xtask/src/bench");
    let digest = output(Command::new("sh").args(["-c", script, "sh"]).arg(checkout).arg(own))?;
    let digest: String = digest.chars().take(12).collect();
    Ok(format!("{digest}-{}-{}", OffsetDateTime::now_utc().iso_week(), postgres_server()?.version))
}

/// Moves a stopped cluster into the cache, whole or not at all even to another file system. What is two weeks old goes.
fn keep(data: &Path, kept: &Path) -> Result<()> {
    let script = r#"mkdir -p "$1" && find "$1" -maxdepth 1 -name 'bench-*' -mtime +14 -exec rm -rf {} + &&
        rm -rf "$3.arriving" && mv "$2" "$3.arriving" && mv "$3.arriving" "$3""#;
    output(Command::new("sh").args(["-c", script, "sh"]).arg(cache()?).arg(data).arg(kept)).map(drop)
}
