//! A community to measure on: made by events through a checkout's worker, kept in the cache, served from a copy.
//!
//! What is kept is a stopped PostgreSQL cluster, `bench-<members>-<digest>-<week>-<version>`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use muster_domain::{CommunityId, Environment, TlsPolicy};
use muster_messaging::api::{Endpoint, community};
use muster_messaging::tls::material::{Material, MinimumVersion};
use muster_storage::{Store, StoreConfig};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use xtask::services::{
    Authority, Clients, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, RunDirectory, Services,
    cache, nats_server, postgres_server,
};
use xtask::worker::{Configuration, Worker};

use super::{ideal, seed};
use crate::cargo;

/// How the measured PostgreSQL is set: the buffers are a quarter of a machine with 24 GiB, as its manual advises.
pub(super) const SETTINGS: [(&str, &str); 7] = [
    ("shared_buffers", "6GB"),
    ("effective_cache_size", "12GB"),
    ("random_page_cost", "1.1"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("maintenance_work_mem", "512MB"),
    ("log_min_duration_statement", "1000"),
];
/// The database of the worker.
const DATABASE: &str = "postgres";
/// How long a worker may apply nothing while events wait.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many events are published before the worker has to catch up with half of them.
const AHEAD: usize = 50_000;

/// One community, with a checkout's worker and servers of its own.
pub(super) struct Community {
    /// `this` or `other`: whose worker.
    pub(super) name: &'static str,
    pub(super) members: i64,
    pub(super) configuration: Configuration,
    pub(super) services: Services,
    pub(super) nats: async_nats::Client,
    trust: Arc<Material>,
}

/// This checkout's community, and the other's of the same size.
pub(super) type Pair = (Community, Option<Community>);

impl Community {
    /// Starts its servers on a copy of what is kept, which is made when it is missing.
    pub(super) async fn start(
        name: &'static str,
        members: i64,
        checkout: &Path,
        worker: &Path,
    ) -> Result<Self> {
        let kept = cache()?.join(format!("bench-{members}-{}", digest(checkout)?));
        if !kept.is_dir() {
            println!("making a community of {members} members by {name} worker");
            let mut making = Self::open(name, None, members, worker).await?;
            making.fill().await?;
            let client = making.connect(DATABASE).await?;
            client.batch_execute(&format!("CREATE DATABASE {}", ideal::DATABASE)).await?;
            ideal::make(&making.connect(ideal::DATABASE).await?, members).await?;
            for database in [DATABASE, ideal::DATABASE] {
                making.connect(database).await?.batch_execute("VACUUM (FREEZE, ANALYZE)").await?;
            }
            client.batch_execute("CHECKPOINT").await?;
            making.services.postgres.stop();
            keep(making.services.postgres.data(), &kept)?;
        }
        Self::open(name, Some(kept), members, worker).await
    }

    async fn open(name: &'static str, kept: Option<PathBuf>, members: i64, worker: &Path) -> Result<Self> {
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let clients = Clients::issue(&authority)?;
        let mut options = PostgresOptions::new(postgres_server()?, authority.server("postgres")?);
        // What is only being made need not survive a crash.
        options.durable = kept.is_some();
        options.copy_of = kept;
        options.settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = Postgres::start(&directory, "postgres", options)?;
        let mut options =
            NatsOptions::new(nats_server()?, authority.server("nats")?, authority.certificate_file());
        let user = NatsUser::new("bench");
        options.log_in(std::slice::from_ref(&user))?;
        // The worker is measured, not the broker's disk.
        options.change("sync_interval: always", "sync_interval: \"2m\"")?;
        let nats = Nats::start(&directory, "nats", options)?;
        let files = authority.files(&clients.operator);
        let trust = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
        let services = Services { nats, postgres, clients, authority, directory };
        let password = services.directory.secret_file("password", &user.password)?;
        let configuration = Configuration::new(worker.to_owned(), &services)?
            .with("MUSTER__NATS__USER", user.name.clone())
            .with("MUSTER__NATS__PASSWORD_FILE", password.display().to_string())
            // Work is measured, not its refusal.
            .with("MUSTER__LIMITS__COMMUNITY_PER_SECOND", "1000000")
            .with("MUSTER__LIMITS__COMMUNITY_BURST", "1000000")
            .with("MUSTER__LOG__FILTER", "warn");
        let options = async_nats::ConnectOptions::new()
            .require_tls(true)
            .tls_first()
            .tls_client_config(trust.client_config().as_ref().clone())
            .user_and_password(user.name, user.password);
        let nats = options.connect(services.nats.url()).await.context("cannot connect to NATS")?;
        Ok(Self { name, members, configuration, services, nats, trust })
    }

    /// Makes the community by events alone.
    async fn fill(&self) -> Result<()> {
        let begun = Instant::now();
        let migrated = self.configuration.run("migrate").await?;
        ensure!(migrated.status.success(), "migrate fails: {}", String::from_utf8_lossy(&migrated.stderr));
        let worker = self.configuration.serve(&self.services)?;
        let (mut events, mut published) = (seed::community(self.members)?.peekable(), 0);
        while events.peek().is_some() {
            published += seed::publish(&self.nats, events.by_ref().take(AHEAD)).await?;
            self.applied(AHEAD / 2, &worker).await?;
            // A full stream takes no more, and what was applied need not stay.
            let stream = self.stream().await?;
            let floor = stream.consumer_info("muster-worker").await?.ack_floor.stream_sequence;
            stream.purge().sequence(floor + 1).await.context("the stream cannot be purged")?;
        }
        self.applied(0, &worker).await?;
        worker.stop()?;
        println!("  {published} events applied in {:.0} s", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// A bare connection to one of the server's databases, over TLS as the worker's.
    pub(super) async fn connect(&self, database: &str) -> Result<Client> {
        let postgres = &self.services.postgres;
        let mut host = tokio_postgres::Config::new();
        host.host("localhost").port(postgres.port()).dbname(database).ssl_mode(SslMode::Require);
        host.user(postgres.user()).password(postgres.password());
        host.options("-c plan_cache_mode=force_generic_plan -c jit=off");
        let tls = MakeRustlsConnect::new(self.trust.client_config().as_ref().clone());
        let (client, connection) = host.connect(tls).await.context("cannot connect to PostgreSQL")?;
        // Its errors are those of the statements that it carries.
        tokio::spawn(connection);
        Ok(client)
    }

    /// A store on the worker's database.
    pub(super) async fn store(&self) -> Result<Store> {
        let policy = TlsPolicy::new(Environment::Production, false);
        let url = self.services.postgres.url(DATABASE).into();
        let config = StoreConfig::new(&url, policy, Some(self.trust.client_config()))?;
        Ok(Store::open(config).await?)
    }

    /// Asks on a subject; an answer that is an error is one here, too.
    pub(super) async fn ask(&self, subject: String, body: Bytes) -> Result<Bytes> {
        let answer = self.nats.request(subject.clone(), body).await;
        let answer = answer.with_context(|| format!("{subject} is not answered"))?;
        let failed = answer.headers.is_some_and(|headers| headers.get("Nats-Service-Error").is_some());
        ensure!(!failed, "{subject}: {}", String::from_utf8_lossy(&answer.payload));
        Ok(answer.payload)
    }

    /// The measured community's id, by a worker that serves.
    pub(super) async fn id(&self) -> Result<CommunityId> {
        let body = json!({"guild_id": seed::GUILD}).to_string();
        let answer = self.ask(community::Find::DESCRIPTION.pattern(), body.into()).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let id = answer.get("community_id").and_then(Value::as_str).context("no community_id")?;
        Ok(CommunityId::new(id.parse()?))
    }

    /// The stream of events, which the worker makes when it first serves.
    pub(super) async fn stream(&self) -> Result<jetstream::stream::Stream> {
        Ok(jetstream::new(self.nats.clone()).get_stream("EVENTS").await?)
    }

    /// How many events are not acknowledged, by the broker's account.
    pub(super) async fn waiting(&self) -> Result<usize> {
        let info = self.stream().await?.consumer_info("muster-worker").await?;
        Ok(usize::try_from(info.num_pending)?.saturating_add(info.num_ack_pending))
    }

    /// Waits until at most `left` events are not acknowledged.
    pub(super) async fn applied(&self, left: usize, worker: &Worker) -> Result<()> {
        let (mut before, mut moved) = (usize::MAX, Instant::now());
        loop {
            let now = self.waiting().await?;
            if now <= left {
                return Ok(());
            }
            if now != before {
                (before, moved) = (now, Instant::now());
            }
            if moved.elapsed() > PATIENCE {
                bail!("the worker stands still, {now} events wait; its log ends:\n{}", worker.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What tells whether a kept community is of a checkout's schema, of these events and of this week.
fn digest(checkout: &Path) -> Result<String> {
    let script = r#"cat "$1"/crates/storage/migrations/*/up.sql "$2"/seed.* "$2"/ideal.sql | sha256sum"#;
    let own = cargo::root().join("xtask/src/bench");
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(checkout).arg(own).output()?;
    ensure!(output.status.success(), "no digest: {}", String::from_utf8_lossy(&output.stderr));
    let digest: String = String::from_utf8(output.stdout)?.chars().take(12).collect();
    Ok(format!("{digest}-{}-{}", OffsetDateTime::now_utc().iso_week(), postgres_server()?.version))
}

/// Moves a stopped cluster into the cache: whole or not at all, even where that is on another file system. What is two weeks
/// old goes.
fn keep(data: &Path, kept: &Path) -> Result<()> {
    let script = r#"mkdir -p "$1" && find "$1" -maxdepth 1 -name 'bench-*' -mtime +14 -exec rm -rf {} + &&
        rm -rf "$3.arriving" && mv "$2" "$3.arriving" && mv "$3.arriving" "$3""#;
    let status = Command::new("sh").args(["-c", script, "sh"]).arg(cache()?).arg(data).arg(kept).status()?;
    ensure!(status.success(), "{} cannot be kept in {}", data.display(), kept.display());
    Ok(())
}
