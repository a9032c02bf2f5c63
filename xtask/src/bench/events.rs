//! Events end to end beside ideal events: how many a second, and PostgreSQL's processor time of each.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use tokio_postgres::Client;
use uuid::Uuid;

use super::load::{Community, DATABASE, IDEAL_DATABASE, PATIENCE};
use super::report::{Limit, Measured, float, median};
use super::seed;

/// How each round draws members, of how many communities: the measured one, or a thousand that the first of two rounds makes.
const ROUNDS: [(&str, u32, i64); 5] = [
    (NO_CHANGES, seed::SKEWED, 1),
    ("skewed draw", seed::SKEWED, 1),
    ("uniform draw", seed::UNIFORM, 1),
    ("a thousand new communities", seed::UNIFORM, 1000),
    ("a thousand communities", seed::UNIFORM, 1000),
];
const WITH_CHANGES: &str = "events: rate without changes / with";
const NO_CHANGES: &str = "skewed draw, no changes";
/// Ideal events in one transaction: as many as the worker applies in one.
const BATCH: usize = 1000;

/// Applies so many events a round: ideal ones beside the first community, then each community's.
pub(super) async fn measure(communities: &[&Community], events: usize) -> Result<Measured> {
    let this = communities.first().context("no community")?;
    let (mut rows, mut limits, mut rate_of_one) = (Vec::new(), Vec::new(), f64::INFINITY);
    let (database, mut rate_without) = (this.connect(DATABASE).await?, 0.0);
    for (seed, (round, draw, guilds)) in (1..).zip(ROUNDS) {
        println!("  {round}");
        let types = if round == NO_CHANGES { 0 } else { 127_i16 };
        database.execute("UPDATE community_states SET change_types = $1", &[&types]).await?;
        let members = if guilds == 1 { this.members } else { 10 * guilds };
        let mix = || Ok::<_, anyhow::Error>(seed::mix(seed, (draw, guilds), members)?.take(events).collect());
        let client = this.connect(IDEAL_DATABASE).await?;
        let ((), ideal) = meter(this, events, apply_ideal(&client, mix()?)).await?;
        let mut rates = vec![("ideal", ideal)];
        for community in communities {
            rates.push((community.name, end_to_end(community, mix()?).await?));
        }
        let [ideal_postgres, ideal_a_second] = ideal;
        for (who, [postgres, a_second]) in rates {
            let (of_postgres, of_rate) = (postgres / ideal_postgres, a_second / ideal_a_second);
            rows.push((format!("{round}: {who}"), vec![postgres, a_second, of_postgres, of_rate]));
            if who != this.name {
                continue;
            }
            if round == NO_CHANGES {
                rate_without = a_second;
            } else if guilds == 1 {
                let ratio = rate_without / a_second;
                limits.extend((draw == seed::SKEWED).then(|| Limit::new(WITH_CHANGES, ratio, 1.11)));
                let name = format!("events, {round}: PostgreSQL's processor time / the ideal's");
                limits.push(Limit::new(name, of_postgres, 2.5));
                rate_of_one = rate_of_one.min(a_second);
            } else if round == "a thousand communities" {
                let name = "events: rate of one community / of a thousand";
                limits.push(Limit::new(name, rate_of_one / a_second, 1.43));
            }
        }
    }
    limits.push(Limit::new("changes: seconds to publish 100,000", publish(this, &database).await?, 30.0));
    limits.push(Limit::new("changes: milliseconds until one is published", delay(this).await?, 200.0));
    let sql = "SELECT d.deadlocks::float8, 1 - m.n_tup_hot_upd::float8 / m.n_tup_upd
         FROM pg_stat_database AS d, pg_stat_user_tables AS m
         WHERE d.datname = current_database() AND m.relname = 'members'";
    let statistics = database.query_one(sql, &[]).await?;
    limits.push(Limit::new("events: deadlocks", statistics.try_get(0)?, 0.0));
    limits.push(Limit::new("events: updates of members that touch an index", statistics.try_get(1)?, 0.05));
    for community in communities {
        let size = "SELECT pg_database_size(current_database())::float8 / $1";
        let size = community.connect(DATABASE).await?.query_one(size, &[&float(community.members)]).await?;
        println!("  database of {}: {:.0} bytes a member", community.name, size.try_get::<_, f64>(0)?);
    }
    let title = format!("Processor time of an event, {} members", this.members);
    let columns = vec!["PostgreSQL, µs", "events a second", "PostgreSQL/ideal", "rate/ideal"];
    Ok(Measured { title, columns, charted: rows.len(), rows, limits })
}

/// Has so many changes wait in one community, and tells how long a worker takes to publish them.
async fn publish(community: &Community, database: &Client) -> Result<f64> {
    let fill = "WITH one AS (SELECT * FROM community_states WHERE community = (SELECT min(community) FROM communities)),
             counted AS (UPDATE community_states AS s SET changes = s.changes + 100000 FROM one
                 WHERE s.shard = one.shard AND s.community = one.community)
         INSERT INTO changes (shard, change_type, community, number, at, change_id, profile_id, user_id)
         SELECT shard, 2, community, changes + n, now(), gen_random_uuid(), gen_random_uuid(), 'u' || n
         FROM one, generate_series(1, 100000) AS n";
    database.execute(fill, &[]).await?;
    let (begun, worker) = (Instant::now(), community.configuration.serve(&community.services)?);
    while database.query_one("SELECT EXISTS (SELECT FROM changes)", &[]).await?.get(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.stop()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// The median time from the publication of an event to that of the change that it makes, while nothing else happens.
async fn delay(community: &Community) -> Result<f64> {
    let worker = community.configuration.serve(&community.services)?;
    let mut changes = community.nats.subscribe("changes.v1.*.member.renamed").await?;
    let mix = seed::mix(9, (seed::UNIFORM, 1), community.members)?;
    let mut times = Vec::new();
    for event in mix.filter(|event| event.subject == "events.member.update").take(200) {
        let (begun, _) = (Instant::now(), community.publish([event].into_iter()).await?);
        // Whoever has left has no change.
        if tokio::time::timeout(Duration::from_secs(2), changes.next()).await.is_ok() {
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    worker.stop()?;
    Ok(median(times))
}

/// Applies events: of each its id is inserted and its member's score updated, in transactions of [`BATCH`].
async fn apply_ideal(client: &Client, events: Vec<seed::Event>) -> Result<()> {
    let statement = "WITH recorded AS (INSERT INTO events SELECT unnest($1::uuid[]))
         UPDATE members AS m SET score = n.score
         FROM unnest($2::bigint[], $3::bigint[]) AS n (id, score) WHERE m.id = n.id";
    let statement = client.prepare(statement).await?;
    for batch in events.chunks(BATCH) {
        let ids: Vec<Uuid> = batch.iter().map(|event| event.id).collect();
        let members: Vec<i64> = batch.iter().map(|event| event.member).collect();
        let scores: Vec<i64> = batch.iter().map(|event| event.score).collect();
        client.execute(&statement, &[&ids, &members, &scores]).await?;
    }
    Ok(())
}

/// Publishes events, then starts a worker and waits until it has acknowledged all of them.
async fn end_to_end(community: &Community, events: Vec<seed::Event>) -> Result<[f64; 2]> {
    let count = events.len();
    // The worker creates the stream if it is missing.
    community.configuration.serve(&community.services)?.stop()?;
    community.purge().await?;
    community.publish(events.into_iter()).await?;
    let applying = async {
        let worker = community.configuration.serve(&community.services)?;
        worker.until_acknowledged(&community.client, PATIENCE).await?;
        Ok(worker)
    };
    let (worker, rate) = meter(community, count, applying).await?;
    worker.stop()?;
    Ok(rate)
}

/// PostgreSQL's processor time of an event in microseconds, by the system's account, and events a second during some work.
async fn meter<T>(of: &Community, n: usize, work: impl Future<Output = Result<T>>) -> Result<(T, [f64; 2])> {
    let server = of.services.postgres.id().context("PostgreSQL is stopped")?;
    let (begun, used) = (Instant::now(), processor_time(server));
    let done = work.await?;
    let (seconds, used) = (begun.elapsed().as_secs_f64(), processor_time(server) - used);
    Ok((done, [used / float(n), float(n) / seconds]))
}

/// The processor time of a process, its children and those that have ended, in microseconds.
fn processor_time(id: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    let ids = children.split_whitespace().map(str::to_owned).chain([id.to_string()]);
    let stats = ids.filter_map(|id| fs::read_to_string(format!("/proc/{id}/stat")).ok());
    let ticks = stats.map(|stat| {
        // The second field is a name in brackets, which may hold anything; the twelfth of the others and three more are times.
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse::<u32>().ok()).sum::<u32>()
    });
    // Linux counts a hundred ticks a second here.
    float(ticks.sum::<u32>()) * 10_000.0
}
