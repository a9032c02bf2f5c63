//! Events end to end beside ideal events: how many a second, and what each costs PostgreSQL and the worker.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use serde::Serialize;
use serde_json::json;
use xtask::worker::Worker;

use super::load::Community;
use super::report::{Limit, Measured, float, number, table};
use super::seed::{SKEWED, UNIFORM};
use super::{ideal, seed};

/// How each round draws members, how many times the wanted number of events it applies, and by how many workers.
///
/// The first change of a page after a checkpoint writes the whole page to the log. The first round, longer and of members drawn
/// evenly, pays for most pages; the others show what lasts.
const ROUNDS: [(&str, u32, usize, usize); 4] = [
    ("uniform draw, after a checkpoint", UNIFORM, 3, 1),
    ("skewed draw", SKEWED, 1, 1),
    ("uniform draw", UNIFORM, 1, 1),
    ("skewed draw, two workers", SKEWED, 1, 2),
];

/// How fast events were applied.
#[derive(Debug, Serialize)]
struct Rate {
    /// How members were drawn, and who applied their events.
    name: String,
    events: usize,
    a_second: f64,
    /// Processor time an event, in microseconds.
    postgres_us: f64,
    worker_us: f64,
}

/// Measures so many events of each round, on this checkout's community and on the other's.
pub(super) async fn measure(this: &Community, other: Option<&Community>, events: usize) -> Result<Measured> {
    let (mut rates, mut rows, mut limits) = (Vec::new(), Vec::new(), Vec::new());
    for (seed, (round, draw, times, workers)) in (1..).zip(ROUNDS) {
        println!("  {round}");
        let mix = || Ok::<_, anyhow::Error>(seed::mix(seed, draw, this.members)?.take(events * times));
        let client = this.connect(ideal::DATABASE).await?;
        let events: Vec<seed::Event> = mix()?.collect();
        let ideal = metered(this, &[], events.len(), ideal::apply(&client, &events)).await?;
        let mut round_rates = vec![Rate { name: format!("{round}: ideal"), ..ideal }];
        for side in [this].into_iter().chain(other) {
            let rate = end_to_end(side, mix()?, workers).await?;
            round_rates.push(Rate { name: format!("{round}: {}", side.name), ..rate });
        }
        let bases = [round_rates.first(), round_rates.get(2)];
        rows.extend(round_rates.iter().map(|rate| row(rate, bases)));
        if let ([ideal, this, ..], 1, 1) = (round_rates.as_slice(), times, workers) {
            let name = format!("events, {round}: PostgreSQL's processor time / the ideal's");
            limits.push(Limit::new(name, this.postgres_us / ideal.postgres_us, 2.5));
        }
        rates.extend(round_rates);
    }
    println!("{}", table(HEADER, rows));
    let bars = rates.iter().map(|rate| (rate.name.clone(), vec![rate.postgres_us, rate.worker_us]));
    let title =
        format!("Processor time an event in µs: PostgreSQL blue, worker red; {} members", this.members);
    Ok(Measured { limits, figures: json!(rates), title, bars: bars.collect() })
}

/// Publishes events, then starts so many workers and waits until the broker has all acknowledgements.
async fn end_to_end(
    side: &Community,
    mix: impl Iterator<Item = seed::Event>,
    workers: usize,
) -> Result<Rate> {
    // The worker makes the stream where it is missing.
    side.configuration.serve(&side.services)?.stop()?;
    side.stream().await?.purge().await.context("the stream cannot be purged")?;
    seed::publish(&side.nats, mix).await?;
    let mut serving = vec![side.configuration.serve(&side.services)?];
    for _ in 1..workers {
        serving.push(side.configuration.elsewhere()?.serve(&side.services)?);
    }
    // A worker that is ready has begun already: what was applied before is not counted.
    let left = side.waiting().await?;
    let ids: Vec<u32> = serving.iter().map(Worker::id).collect();
    let applying =
        async { try_join_all(serving.iter().map(|worker| side.applied(0, worker))).await.map(drop) };
    let rate = metered(side, &ids, left, applying).await?;
    for worker in serving {
        worker.stop()?;
    }
    Ok(rate)
}

/// The rate of some work, and its processor time by the system's account.
async fn metered(
    community: &Community,
    workers: &[u32],
    events: usize,
    work: impl Future<Output = Result<()>>,
) -> Result<Rate> {
    let server = community.services.postgres.id().context("PostgreSQL is stopped")?;
    let used = || {
        let workers: f64 = workers.iter().map(|id| processor_time(*id)).sum();
        [processor_time(server), workers]
    };
    let (begun, [postgres, worker]) = (Instant::now(), used());
    work.await?;
    let a_second = float(events) / begun.elapsed().as_secs_f64();
    let [postgres_now, worker_now] = used();
    let (postgres_us, worker_us) =
        ((postgres_now - postgres) / float(events), (worker_now - worker) / float(events));
    Ok(Rate { name: String::new(), events, a_second, postgres_us, worker_us })
}

/// The processor time of a process and its children in microseconds, with what they have waited for.
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

const HEADER: &str = "members drawn: who|events|a second|PostgreSQL µs each|worker µs each|rate/ideal|PostgreSQL/ideal|\
                      rate/other|PostgreSQL/other";

/// A rate, and its ratios to the ideal and to the other of the round.
fn row(rate: &Rate, bases: [Option<&Rate>; 2]) -> Vec<String> {
    let numbers = [rate.a_second, rate.postgres_us, rate.worker_us].map(|figure| number(figure, 0));
    let ratios = bases.into_iter().flat_map(|base| {
        let [a_second, postgres_us] = base.map_or([f64::NAN; 2], |base| [base.a_second, base.postgres_us]);
        [rate.a_second / a_second, rate.postgres_us / postgres_us].map(|ratio| number(ratio, 2))
    });
    [rate.name.clone(), rate.events.to_string()].into_iter().chain(numbers).chain(ratios).collect()
}
