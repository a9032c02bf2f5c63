//! The database fails without being away: the store's fault is told from an event's, nothing is lost, and the log stays short.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_domain::{BadgeKind, Event, MemberEffect};
use muster_messaging::EventPublisher;
use muster_messaging::api::{Caller, tiers};
use tokio::time::{Instant, sleep};
use xtask::services::Postgres;
use xtask::worker::{Configuration, Worker};

use crate::setting::{Guild, PATIENCE, Setting, eventually, eventually_within, metric};
use crate::verify::{psql, psql_command};

/// How long readiness may take to go off.
const SOON: Duration = Duration::from_secs(5);
/// How long everything may take to be applied when a fault is mended.
const MENDED: Duration = Duration::from_secs(10);

fn consumer_ready(worker: &Worker) -> bool {
    worker.get("/readyz").is_ok_and(|(_, parts)| parts.contains(r#""consumer":true"#))
}

/// The metric of faults of this scope, whatever their code; and whether one has this code.
fn faults(worker: &Worker, scope: &str, code: &str) -> (u64, bool) {
    let (_, text) = worker.get("/metrics").unwrap_or_default();
    let prefix = format!("muster_store_faults{{scope=\"{scope}\"");
    let lines = || text.lines().filter(|line| line.starts_with(&prefix));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let coded = lines().any(|line| line.contains(&format!("sqlstate=\"{code}\"")) && value(line) > 0);
    (lines().map(value).sum(), coded)
}

fn lines(worker: &Worker) -> usize {
    fs::read_to_string(&worker.log).unwrap_or_default().lines().count()
}

/// Joins, scores and a badge of so many members.
fn events(guild: &mut Guild, members: i64) -> Vec<Event> {
    let kind = BadgeKind::parse("k").unwrap();
    let mut events = vec![guild.join_guild()];
    for n in 0..members {
        let user = format!("user{n}");
        let badge = MemberEffect::BadgeAward { kind: kind.clone(), reason: None, by: None };
        events.extend([guild.join(&user), guild.score(&user, n), guild.member(&user, badge)]);
    }
    events
}

/// A trigger by which every write of a table's rows fails that meets the condition.
fn trigger(table: &str, condition: &str) -> String {
    trigger_that("RAISE EXCEPTION 'it fails'", table, condition)
}

fn trigger_that(does: &str, table: &str, condition: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN IF {condition} THEN {does}; END IF; RETURN NEW; END $$;
         CREATE TRIGGER fails BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fails()"
    )
}

/// The condition that a row is of this community.
fn is_of(guild: &str) -> String {
    format!("NEW.community = (SELECT community FROM communities WHERE guild_id = '{guild}')")
}

/// A worker that has applied the first event of this community.
async fn with_community(
    setting: &Setting,
    configuration: &Configuration,
    name: &str,
) -> Result<(Worker, EventPublisher, Guild)> {
    let worker = configuration.serve(&setting.services)?;
    let (_, publisher) = setting.client().await?;
    let mut guild = Guild::new(name);
    publisher.publish(&guild.join_guild()).await?;
    eventually("the community", || async { worker.event_counts().is_ok_and(|it| it.applied == 1) }).await?;
    Ok((worker, publisher, guild))
}

/// A worker whose role may only what it needs, so that it can be taken from it.
async fn confined(setting: &Setting) -> Result<Worker> {
    psql(
        setting,
        "CREATE ROLE confined LOGIN PASSWORD 'of-the-confined';
         GRANT ALL ON ALL TABLES IN SCHEMA public TO confined;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO confined",
    )?;
    let postgres = &setting.services.postgres;
    let own = format!("{}:{}@", Postgres::USER, postgres.options.password);
    let url = postgres.url("postgres").replace(&own, "confined:of-the-confined@");
    let file = setting.services.directory.secret_file("confined-url", &url)?;
    let file = file.display().to_string();
    setting.configuration.with("MUSTER__DATABASE__URL_FILE", file).serve(&setting.services)
}

/// Events of four new communities.
fn of_four_guilds(number: usize) -> Vec<Event> {
    (0..4).flat_map(|guild| events(&mut Guild::new(&format!("guild-{number}-{guild}")), 100)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_the_whole_store_stalls_reading_and_costs_no_event() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let worker = confined(&setting).await?;
    let (_, publisher) = setting.client().await?;
    let mut published = 0;
    for (number, (code, fails, mended)) in [
        (
            "42501",
            "REVOKE INSERT ON applied_events FROM confined".to_owned(),
            "GRANT ALL ON applied_events TO confined",
        ),
        // One that only some events meet.
        (
            "42501",
            "REVOKE UPDATE ON badge_kinds FROM confined".to_owned(),
            "GRANT ALL ON badge_kinds TO confined",
        ),
        (
            "42P01",
            "ALTER TABLE board_entries RENAME TO moved".to_owned(),
            "ALTER TABLE moved RENAME TO board_entries",
        ),
        ("P0001", trigger("members", "true"), "DROP TRIGGER fails ON members"),
    ]
    .into_iter()
    .enumerate()
    {
        psql(&setting, &fails)?;
        let (began, before) = (Instant::now(), lines(&worker));
        let all = of_four_guilds(number);
        published += u64::try_from(all.len())?;
        publisher.publish_all(all, |_| {}).await?;
        eventually("readiness to go off", || async { !consumer_ready(&worker) }).await?;
        ensure!(began.elapsed() < SOON, "{fails}: readiness went off after {:?}", began.elapsed());
        eventually("the metric", || async { faults(&worker, "store", code) == (1, true) }).await?;
        sleep(Duration::from_secs(12)).await;
        ensure!(!consumer_ready(&worker), "{fails}: it is ready");
        // A minute has no more than this, since a fault that lasts is logged once a minute.
        let told = lines(&worker) - before;
        ensure!((1..20).contains(&told), "{fails}: {told} lines\n{}", worker.log_tail());
        psql(&setting, mended)?;
        let mended = Instant::now();
        eventually("every event's effect", || async {
            worker.event_counts().is_ok_and(|counts| counts.applied == published)
        })
        .await?;
        ensure!(mended.elapsed() < MENDED, "{fails}: all was applied after {:?}", mended.elapsed());
        eventually("readiness", || async { consumer_ready(&worker) }).await?;
        eventually("no fault to be shown", || async { faults(&worker, "store", code) == (0, false) }).await?;
        ensure!(worker.event_counts()?.lost == 0, "{fails}: there are dead letters");
    }
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_while_others_pass_is_a_dead_letter_and_delays_nobody() -> Result<()> {
    let setting = Setting::new().await?;
    let configuration = setting.configuration.with("MUSTER__EVENTS__MAX_DELIVERIES", "3");
    let worker = configuration.serve(&setting.services)?;
    let (_, publisher) = setting.client().await?;
    psql(&setting, &trigger("members", "NEW.conviction = 666"))?;
    let mut tabr = Guild::new("tabr");
    let mut all = events(&mut tabr, 1000);
    for guild in 0..3 {
        all.extend(events(&mut Guild::new(&format!("guild-{guild}")), 200));
    }
    // The trigger refuses one of these by itself: the score of user 666.
    let good = u64::try_from(all.len())? - 1;
    publisher.publish_all(all, |_| {}).await?;
    let began = Instant::now();
    let applied = |number| worker.event_counts().is_ok_and(|counts| counts.applied == number);
    eventually("its neighbours' effect", || async { applied(good) }).await?;
    ensure!(worker.event_counts()?.lost == 0, "they waited for it: {:?}", began.elapsed());
    let lost = |number| worker.event_counts().is_ok_and(|counts| counts.lost == number);
    eventually("a dead letter", || async { lost(1) }).await?;
    ensure!(consumer_ready(&worker) && faults(&worker, "store", "P0001").0 == 0);

    // With nothing else in the stream there is nothing to compare them with.
    for _ in 0..3 {
        publisher.publish(&tabr.score("user1", 666)).await?;
    }
    eventually("their dead letters", || async { lost(4) }).await?;
    ensure!(consumer_ready(&worker) && applied(good));
    let told = fs::read_to_string(&worker.log)?;
    ensure!(!told.contains("the store is at fault") && !told.contains("rows cannot be changed"), "{told}");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_one_communitys_rows_makes_its_events_wait_and_no_others() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let configuration = setting.configuration.with("MUSTER__EVENTS__MAX_DELIVERIES", "2");
    let (worker, publisher, mut broken) = with_community(&setting, &configuration, "broken").await?;
    let applied = |number| worker.event_counts().is_ok_and(|counts| counts.applied == number);
    psql(&setting, &trigger("members", &is_of("broken")))?;

    // Without the guild's, which changes no member: alone it is applied.
    let mut all = events(&mut broken, 300).split_off(1);
    let waits = u64::try_from(all.len())?;
    let mut others = Vec::new();
    for guild in 0..3 {
        others.extend(events(&mut Guild::new(&format!("guild-{guild}")), 200));
    }
    let goes_on = u64::try_from(others.len())?;
    all.extend(others);
    let (began, before) = (Instant::now(), lines(&worker));
    publisher.publish_all(all, |_| {}).await?;
    eventually("the others' effect", || async { applied(1 + goes_on) }).await?;
    ensure!(began.elapsed() < MENDED, "the others were held up: {:?}", began.elapsed());
    eventually("the metric", || async { faults(&worker, "community", "P0001") == (1, true) }).await?;
    sleep(Duration::from_secs(12)).await;
    ensure!(faults(&worker, "store", "none").0 == 0 && consumer_ready(&worker), "others are read");
    let mut late = Guild::new("late");
    publisher.publish(&late.join_guild()).await?;
    eventually("what comes later", || async { applied(2 + goes_on) }).await?;
    let told = lines(&worker) - before;
    ensure!((1..20).contains(&told), "{told} lines\n{}", worker.log_tail());

    psql(&setting, "DROP TRIGGER fails ON members")?;
    let mended = Instant::now();
    eventually("its events' effect", || async { applied(2 + goes_on + waits) }).await?;
    ensure!(mended.elapsed() < MENDED, "all was applied after {:?}", mended.elapsed());
    ensure!(worker.event_counts()?.lost == 0, "there are dead letters");
    eventually("no fault to be shown", || async { faults(&worker, "community", "P0001").0 == 0 }).await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

/// Each member of one community takes its time, so that a batch of them takes longer than any write may.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_too_long_is_divided_and_stops_nobody() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let configuration = setting.configuration.with("MUSTER__DATABASE__QUERY_TIMEOUT_MS", "500");
    let (worker, publisher, mut slow) = with_community(&setting, &configuration, "slow").await?;
    let applied = |number| worker.event_counts().is_ok_and(|counts| counts.applied == number);
    psql(&setting, &trigger_that("PERFORM pg_sleep(0.02)", "members", &is_of("slow")))?;
    let mut all = events(&mut slow, 600).split_off(1);
    all.extend((0..3).flat_map(|guild| events(&mut Guild::new(&format!("guild-{guild}")), 200)));
    let published = u64::try_from(all.len())? + 1;
    publisher.publish_all(all, |_| {}).await?;
    eventually("the others' effect", || async { worker.event_counts().is_ok_and(|it| it.applied >= 1800) })
        .await?;
    eventually_within(PATIENCE * 3, "every event's effect", || async { applied(published) }).await?;
    let told = fs::read_to_string(&worker.log)?;
    let failed =
        metric(&worker, "muster_query_failures_total{query=\"events_apply\",failure=\"unavailable\"}");
    ensure!(failed.is_some_and(|number| number > 0.0), "no batch took too long: {failed:?}\n{told}");
    ensure!(!told.contains("the store is at fault"), "{told}");
    ensure!(worker.event_counts()?.lost == 0, "there are dead letters");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

/// A server that no longer lets anybody write or commit, for everybody alike, without an error.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_hang_are_told_within_seconds_and_cost_no_event() -> Result<()> {
    let setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let (_, publisher) = setting.client().await?;
    let mut published = 0;
    for (number, (code, hangs, mended)) in [
        // As an administrator's who has begun a change and went for lunch.
        (
            Some("55P03"),
            "BEGIN; LOCK TABLE members IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3600)",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3600)' AND pid <> pg_backend_pid()",
        ),
        // As with a synchronous standby that is gone.
        (None, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "ALTER SYSTEM RESET synchronous_standby_names"),
    ]
    .into_iter()
    .enumerate()
    {
        let hanging = match code {
            Some(_) => Some(psql_command(&setting, hangs)?.spawn()?),
            None => {
                psql(&setting, hangs)?;
                psql(&setting, "SELECT pg_reload_conf()")?;
                None
            }
        };
        sleep(Duration::from_secs(1)).await;
        let began = Instant::now();
        let all = of_four_guilds(number);
        published += u64::try_from(all.len())?;
        publisher.publish_all(all, |_| {}).await?;
        eventually("readiness to go off", || async { !consumer_ready(&worker) }).await?;
        ensure!(began.elapsed() < SOON, "{hangs}: readiness went off after {:?}", began.elapsed());
        if let Some(code) = code {
            ensure!(faults(&worker, "store", code) == (1, true), "{hangs}: {}", worker.log_tail());
        }
        sleep(Duration::from_secs(40)).await;
        ensure!(!consumer_ready(&worker), "{hangs}: it is ready");
        psql(&setting, mended)?;
        psql(&setting, "SELECT pg_reload_conf()")?;
        let mended = Instant::now();
        eventually("every event's effect", || async {
            worker.event_counts().is_ok_and(|counts| counts.applied + counts.duplicates == published)
        })
        .await?;
        ensure!(mended.elapsed() < MENDED, "{hangs}: all was applied after {:?}", mended.elapsed());
        eventually("readiness", || async { consumer_ready(&worker) }).await?;
        ensure!(worker.event_counts()?.lost == 0, "{hangs}: there are dead letters");
        if let Some(mut hanging) = hanging {
            hanging.wait()?;
        }
    }
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_short_whatever_fails() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let configuration = setting
        .configuration
        .with("MUSTER__EVENTS__MAX_DELIVERIES", "1000")
        .with("MUSTER__LIMITS__CALLER_BURST", "1")
        .with("MUSTER__LIMITS__CALLER_PER_SECOND", "1");
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    publisher.publish(&tabr.join_guild()).await?;
    let id = crate::setting::community(&client, "tabr").await?;
    let before = lines(&worker);
    let retried = "muster_events_total{type=\"score.set\",outcome=\"retried\"} ";
    // Malformed ones, poison, and requests that meet a table that is gone.
    for number in 0..300 {
        publisher.publish_raw("events.member.join".to_owned(), format!("{{{number}").into_bytes()).await?;
    }
    psql(&setting, &trigger("members", "NEW.conviction = 700"))?;
    publisher.publish_all((0..300).map(|n| tabr.score(&format!("user{n}"), 700)), |_| {}).await?;
    // Each takes an attempt alone, and its share of probes.
    eventually_within(PATIENCE * 3, "each to have failed", || async {
        worker.event_counts().is_ok_and(|counts| counts.lost == 300)
            && metric(&worker, retried).is_some_and(|number| number >= 300.0)
    })
    .await?;
    psql(&setting, "ALTER TABLE tier_changes RENAME TO moved")?;
    for _ in 0..300 {
        let asked = client.community(id).ask(&tiers::Changes::first(1)).await;
        ensure!(asked.is_err(), "the table is gone");
    }
    psql(&setting, "ALTER TABLE moved RENAME TO tier_changes")?;
    // Many callers, each of whom asks too often.
    let mut refused = 0;
    for number in 0..200 {
        let of_caller = client.clone().on_behalf_of(Caller::parse(format!("caller{number}"))?).community(id);
        for _ in 0..3 {
            refused += usize::from(of_caller.ask(&tiers::Threshold {}).await.is_err());
        }
    }
    ensure!(refused >= 200, "{refused} are refused");
    // A broker that goes away and comes back.
    for _ in 0..2 {
        setting.services.nats.stop();
        sleep(Duration::from_secs(6)).await;
        setting.services.nats.restart()?;
        eventually("the connection", || async { worker.get("/readyz").is_ok_and(|(code, _)| code == 200) })
            .await?;
    }
    let log = fs::read_to_string(&worker.log)?;
    ensure!(
        log.contains("requests are refused: the rate limit is exceeded")
            && !log.contains("\"target\":\"async_nats"),
        "{log}"
    );
    let told = lines(&worker) - before;
    ensure!((3..100).contains(&told), "{told} lines\n{}", worker.log_tail());
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
