//! Events end to end: how many a second, with how many workers, and how long others wait in a flood.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_nats::jetstream;
use async_nats::jetstream::context::PublishAckFuture;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;
use xtask::worker::Worker;

use super::community::Community;
use super::database::Planner;
use super::mix::{Draw, Mix, Ready, user};
use super::{baseline, counts, processes};

/// How much longer the first row is.
const AFTER_A_CHECKPOINT: u64 = 3;
/// How many events wait for the stream's word at once.
const PUBLISHED_AT_ONCE: usize = 1024;
/// How long the worker may stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a flood lasts, and how often the other community has an event in it.
const FLOOD: Duration = Duration::from_secs(10);
const BESIDE: Duration = Duration::from_millis(100);
/// The most that an event beside a flood may be waited for.
const FLOOD_PATIENCE: Duration = Duration::from_secs(180);

/// One row of the table of rates.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Rate {
    pub(super) what: String,
    pub(super) events: u64,
    pub(super) seconds: f64,
    pub(super) a_second: f64,
    /// Processor time an event, in microseconds: of the worker or workers, and of PostgreSQL.
    pub(super) worker_us: f64,
    pub(super) postgres_us: f64,
}

impl Rate {
    pub(super) fn new(
        what: String,
        events: u64,
        took: Duration,
        worker: Duration,
        postgres: Duration,
    ) -> Self {
        let number = f64::from(u32::try_from(events).unwrap_or(u32::MAX)).max(1.0);
        let seconds = took.as_secs_f64().max(1e-6);
        Self {
            what,
            events,
            seconds,
            a_second: number / seconds,
            worker_us: worker.as_secs_f64() * 1e6 / number,
            postgres_us: postgres.as_secs_f64() * 1e6 / number,
        }
    }
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
pub(super) struct Events {
    pub(super) rates: Vec<Rate>,
    /// Delays of the other community's events in a flood, in milliseconds, shortest first.
    pub(super) flood_ms: Vec<f64>,
    pub(super) flooded: u64,
    pub(super) deadlocks: i64,
    /// Kept numbers that differ from plain counting, and in how many rows.
    pub(super) differences: Vec<(String, usize)>,
}

/// Measures all of it.
///
/// # Errors
/// When a server fails or the worker stands still.
pub(super) async fn measure(community: &Community, events: u64) -> Result<Events> {
    let admin = community.database.connect(Planner::Free).await?;
    admin
        .batch_execute(
            "CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
             ALTER DATABASE postgres SET pg_stat_statements.track = 'all';
             CREATE EXTENSION IF NOT EXISTS pg_prewarm;
             SELECT sum(pg_prewarm(oid::regclass)) FROM pg_class
             WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')",
        )
        .await?;
    let mut context = jetstream::new(community.nats().await?);
    // A stream of a million messages is not emptied at once.
    context.set_timeout(PATIENCE);
    // The worker makes the stream. What an earlier measurement left in it is not this one's.
    let worker = community.configuration.serve(&community.services)?;
    worker.stop()?;
    context.get_stream("EVENTS").await?.purge().await.context("the stream cannot be emptied")?;
    let mut measured = Events::default();
    let deadlocks = deadlocks(&admin).await?;
    // The first change of each page after a checkpoint writes the whole page to the log: in a few seconds that is most of
    // the work, in the quarter of an hour to the next checkpoint little of it. So the first row, longer than the others and
    // of members drawn evenly, pays for most pages, and the others show what lasts. Each row finds larger tables than the one
    // before: two workers are measured between twice one.
    let rows = [
        (1, Draw::Uniform, 1, events * AFTER_A_CHECKPOINT),
        (2, Draw::Skewed, 1, events),
        (4, Draw::Skewed, 2, events),
        (6, Draw::Skewed, 1, events),
        (3, Draw::Uniform, 1, events),
    ];
    for (seed, draw, workers, events) in rows {
        let mut rate = end_to_end(community, &context, &admin, seed, draw, workers, events).await?;
        match seed {
            1 => rate.what.insert_str(0, "after a checkpoint, "),
            6 => rate.what.insert_str(0, "again, "),
            _ => {}
        }
        println!(
            "  {}: {:.0} a second; processor time an event: worker {:.0} µs, PostgreSQL {:.0} µs",
            rate.what, rate.a_second, rate.worker_us, rate.postgres_us
        );
        if seed == 2 {
            slowest(&admin).await?;
        }
        measured.rates.push(rate);
    }
    measured.flood_ms = flood(community, &context, &mut measured.flooded).await?;
    measured.deadlocks = self::deadlocks(&admin).await? - deadlocks;
    measured.differences = counts::differences(&community.database).await?;
    // Last, for it writes past everything that keeps counts.
    let rate = baseline::measure(community, Draw::Skewed, events).await?;
    println!("  {}: {:.0} a second; PostgreSQL {:.0} µs", rate.what, rate.a_second, rate.postgres_us);
    measured.rates.push(rate);
    Ok(measured)
}

/// Now, in milliseconds since 1970.
pub(super) fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

async fn publish(context: &jetstream::Context, ready: Ready) -> Result<PublishAckFuture> {
    context.publish(ready.subject, ready.payload.into()).await.context("an event was not sent")
}

async fn end_to_end(
    community: &Community,
    context: &jetstream::Context,
    admin: &Client,
    seed: u64,
    draw: Draw,
    workers: usize,
    events: u64,
) -> Result<Rate> {
    let stream = context.get_stream("EVENTS").await?;
    let mix = Mix::new(seed, draw, community.guild.as_str(), community.members, now() - 60_000);
    let take = usize::try_from(events).unwrap_or(usize::MAX);
    let mut sending = stream::iter(mix.take(take))
        .map(|ready| async {
            publish(context, ready).await?.await.context("the stream did not take an event")
        })
        .buffered(PUBLISHED_AT_ONCE);
    while let Some(taken) = sending.next().await {
        taken?;
    }
    admin.batch_execute("SELECT pg_stat_statements_reset()").await?;
    let postgres = community.services.postgres.id().context("PostgreSQL is stopped")?;
    let before = processes::time_with_children(postgres);
    let mut serving: Vec<Worker> = Vec::new();
    for number in 0..workers {
        let configuration = match number {
            0 => None,
            _ => Some(community.configuration.elsewhere()?),
        };
        serving.push(configuration.as_ref().unwrap_or(&community.configuration).serve(&community.services)?);
    }
    // The broker tells how much is left. A worker that is ready has begun already, so what it had done until then counts
    // as done in no time at all: it is left out.
    let mut left = left(&stream).await?;
    let begun = Instant::now();
    let done_before = events.saturating_sub(left);
    let used: Duration = serving.iter().map(|worker| processes::time(worker.id())).sum();
    let mut moved = Instant::now();
    let took = loop {
        let now = self::left(&stream).await?;
        if now == 0 {
            break begun.elapsed();
        }
        if now != left {
            left = now;
            moved = Instant::now();
        }
        if moved.elapsed() > PATIENCE {
            let tail = serving.first().map(Worker::log_tail).unwrap_or_default();
            bail!(
                "the worker has stood still for {PATIENCE:?}, {left} of {events} left; its log ends:\n{tail}"
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let worker_time = serving.iter().map(|worker| processes::time(worker.id())).sum::<Duration>() - used;
    let postgres_time = processes::time_with_children(postgres).saturating_sub(before);
    for worker in serving {
        worker.stop()?;
    }
    stream.purge().await.context("the stream cannot be emptied")?;
    let what = format!("{workers} worker{}, {} draw", if workers == 1 { "" } else { "s" }, draw.name());
    Ok(Rate::new(what, events.saturating_sub(done_before), took, worker_time, postgres_time))
}

/// How many events are not acknowledged. How far all before are, the floor, would not tell: some are put off.
async fn left(stream: &jetstream::stream::Stream) -> Result<u64> {
    let info = stream.consumer_info("muster-worker").await?;
    Ok(info.num_pending + u64::try_from(info.num_ack_pending)?)
}

/// Floods one community, and sees how long each event of another takes from being published to being visible.
async fn flood(community: &Community, context: &jetstream::Context, flooded: &mut u64) -> Result<Vec<f64>> {
    let worker = community.configuration.serve(&community.services)?;
    let client = community.database.connect(Planner::AsWorker).await?;
    let look = client
        .prepare(
            "SELECT s.conviction FROM communities AS c
             JOIN profiles AS p USING (community_id) JOIN scores AS s USING (community_id, profile_id)
             WHERE c.guild_id = $1 AND p.user_id = $2",
        )
        .await?;
    let beside = user(10_000_000 + 1);
    let begun = Instant::now();
    let mut mix = Mix::new(5, Draw::Skewed, community.guild.as_str(), community.members, now() - 60_000);
    let flooding = async {
        let made = std::iter::from_fn(|| if begun.elapsed() < FLOOD { mix.next() } else { None });
        let mut sending = stream::iter(made)
            .map(|ready| async {
                publish(context, ready).await?.await.context("the stream did not take an event")
            })
            .buffered(PUBLISHED_AT_ONCE);
        let mut sent = 0_u64;
        while let Some(taken) = sending.next().await {
            taken?;
            sent += 1;
            if sent.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
        Ok::<_, anyhow::Error>(sent)
    };
    let published = std::sync::Mutex::new(Vec::<Instant>::new());
    let total = FLOOD.as_millis() / BESIDE.as_millis();
    let publishing = async {
        let mut ticks = tokio::time::interval(BESIDE);
        for number in 1..=total {
            ticks.tick().await;
            // Told apart by its score, which grows.
            let envelope = json!({
                "event_id": Uuid::new_v4(), "event_type": "score.set", "shard_id": 0, "timestamp": now(),
                "guild_id": community.small_guild, "channel_id": null, "user_id": beside,
                "data": {"conviction": 1_000_000_000 + i64::try_from(number).unwrap_or(0)},
            });
            let ready =
                Ready { subject: "events.score.set".to_owned(), payload: envelope.to_string().into_bytes() };
            if let Ok(mut published) = published.lock() {
                published.push(Instant::now());
            }
            publish(context, ready).await?.await.context("the stream did not take an event")?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let watching = async {
        let mut delays: Vec<Duration> = Vec::new();
        while u128::try_from(delays.len()).unwrap_or(u128::MAX) < total {
            let row = client.query_opt(&look, &[&community.small_guild.as_str(), &beside]).await?;
            let seen = row.map_or(0, |row| row.get::<_, i64>(0) - 1_000_000_000);
            let now = Instant::now();
            if let Ok(published) = published.lock() {
                while i64::try_from(delays.len()).unwrap_or(i64::MAX) < seen {
                    let Some(at) = published.get(delays.len()) else { break };
                    delays.push(now.duration_since(*at));
                }
            }
            if begun.elapsed() > FLOOD_PATIENCE {
                println!("  {} events beside the flood were not seen in time", total);
                delays.resize(usize::try_from(total).unwrap_or(0), FLOOD_PATIENCE);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, anyhow::Error>(delays)
    };
    let (sent, (), delays) = tokio::try_join!(flooding, publishing, watching)?;
    *flooded = sent;
    let mut delays: Vec<f64> = delays.iter().map(|delay| delay.as_secs_f64() * 1000.0).collect();
    delays.sort_by(f64::total_cmp);
    // What is left of the flood is applied before anything is counted.
    let stream = context.get_stream("EVENTS").await?;
    let end = Instant::now() + FLOOD_PATIENCE;
    loop {
        let left = left(&stream).await?;
        if left == 0 {
            break;
        }
        if Instant::now() > end {
            bail!("the flood was not applied within {FLOOD_PATIENCE:?}; {left} events wait");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    worker.stop()?;
    Ok(delays)
}

async fn deadlocks(admin: &Client) -> Result<i64> {
    let sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    Ok(admin.query_one(sql, &[]).await?.get(0))
}

/// Prints the statements that took the most time.
async fn slowest(admin: &Client) -> Result<()> {
    let sql = "SELECT format('%8s ms %8s calls %9s rows %10s buffers %8s read  %s%s', round(total_exec_time)::bigint, calls,
             rows, shared_blks_hit + shared_blks_read, shared_blks_read, CASE WHEN toplevel THEN '' ELSE '  ' END,
             left(regexp_replace(query, '\\s+', ' ', 'g'), 110))
         FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 24";
    println!(
        "  statements by time (those within functions and triggers indented, and counted in what called them):"
    );
    for row in admin.query(sql, &[]).await? {
        println!("  {}", row.get::<_, String>(0));
    }
    Ok(())
}
