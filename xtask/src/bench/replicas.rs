//! What replicas give and cost: requests a second answered by one worker and by several, and events a second published to
//! one NATS server and to three that keep each event on two disks at least.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, StorageType};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream;
use muster_messaging::endpoint::Endpoint;
use serde::Serialize;
use xtask::services::{Nats, NatsOptions, NatsUser, nats_server};

use super::community::{Community, connect};

/// How long each row is measured.
const TIME: Duration = Duration::from_secs(5);
/// How many ask at once.
const CALLERS: usize = 16;
/// How many published events wait at once.
const PUBLISHED_AT_ONCE: usize = 512;
/// How large a published event is.
const EVENT_BYTES: usize = 256;
/// How long a cluster may take to agree on who leads.
const ELECTION: Duration = Duration::from_secs(30);

/// How many there were, and how much they did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Replicas {
    pub(super) what: &'static str,
    pub(super) replicas: usize,
    pub(super) a_second: f64,
}

/// Measures all of it.
///
/// # Errors
/// When a server does not start or a request or an event fails.
pub(super) async fn measure(community: &Community) -> Result<Vec<Replicas>> {
    let mut measured = Vec::new();
    for replicas in 1..=3 {
        let a_second = requests(community, replicas).await?;
        println!("  {replicas} workers: {a_second:.0} first pages of the leaderboard a second");
        measured.push(Replicas { what: "requests", replicas, a_second });
    }
    for replicas in [1, 3] {
        let a_second = publishing(community, replicas).await?;
        println!("  {replicas} NATS servers, each event synced to disk: {a_second:.0} published a second");
        measured.push(Replicas { what: "published events", replicas, a_second });
    }
    Ok(measured)
}

async fn requests(community: &Community, replicas: usize) -> Result<f64> {
    let mut workers = vec![community.configuration.serve(&community.services)?];
    for _ in 1..replicas {
        workers.push(community.configuration.elsewhere()?.serve(&community.services)?);
    }
    let client = community.nats().await?;
    let subject = Endpoint::ProfilesRanked.subject(community.id);
    let begun = Instant::now();
    let asking = (0..CALLERS).map(|_| async {
        let mut answers = 0_u32;
        while begun.elapsed() < TIME {
            let answer = client.request(subject.clone(), "{}".into()).await;
            answer.context("a page was not answered")?;
            answers += 1;
        }
        Ok::<_, anyhow::Error>(answers)
    });
    let answers: u32 = try_join_all(asking).await?.into_iter().sum();
    let took = begun.elapsed();
    for worker in workers {
        worker.stop()?;
    }
    Ok(f64::from(answers) / took.as_secs_f64())
}

async fn publishing(community: &Community, replicas: usize) -> Result<f64> {
    let directory = &community.services.directory;
    let held = (0..replicas).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let routes = held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    drop(held);
    let authority = &community.services.authority;
    let user = NatsUser::new("everybody");
    let mut servers = Vec::new();
    for (number, &port) in routes.iter().enumerate() {
        let name = format!("replica-{replicas}-{number}");
        let identity = authority.node(&name, &name)?;
        let mut options = NatsOptions::new(nats_server()?, identity, authority.certificate_file());
        options.log_in(std::slice::from_ref(&user))?;
        options.cluster = (replicas > 1).then(|| (port, routes.clone()));
        servers.push(Nats::start(directory, &name, options)?);
    }
    let first = servers.first().context("no server")?;
    let context = jetstream::new(connect(&community.services, &first.url(), &user).await?);
    let config = Config {
        name: "MEASURED".to_owned(),
        subjects: vec!["measured".to_owned()],
        storage: StorageType::File,
        num_replicas: replicas,
        ..Config::default()
    };
    let begun = Instant::now();
    while let Err(error) = context.create_stream(config.clone()).await {
        if begun.elapsed() > ELECTION {
            return Err(error).context("the servers do not become a cluster");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let begun = Instant::now();
    let context = &context;
    let made = std::iter::from_fn(|| (begun.elapsed() < TIME).then(|| vec![b'x'; EVENT_BYTES]));
    let mut sending = stream::iter(made)
        .map(|payload| async move {
            let sent = context.publish("measured", payload.into()).await.context("an event was not sent")?;
            sent.await.context("the stream did not take an event")
        })
        .buffered(PUBLISHED_AT_ONCE);
    let mut published = 0_u32;
    while let Some(taken) = sending.next().await {
        taken?;
        published += 1;
    }
    Ok(f64::from(published) / begun.elapsed().as_secs_f64())
}
