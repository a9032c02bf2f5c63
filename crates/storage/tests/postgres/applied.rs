//! The ids of applied events: found again for as long as they are remembered, whatever day the event is of, and then forgotten.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_domain::{Activity, Event, EventId, EventType, MemberEffect, PageLimit};
use muster_storage::{QueryObservation, Store};
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, added, apply, awarded, guild, joined, member, revoked, user};

const DAY: i64 = 86_400_000;

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// How many of the events had an effect, and how many had been applied before.
async fn applied(store: &Store, events: &[Event]) -> (usize, usize) {
    let applied = store.events_apply(events.to_vec()).await.unwrap();
    let of = |counts: &std::collections::BTreeMap<EventType, usize>| counts.values().sum::<usize>();
    (of(&applied.fresh), of(&applied.duplicates))
}

async fn activity(client: &Client) -> i64 {
    client.query_one("SELECT activity FROM members", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn no_event_is_taken_for_applied_that_left_nothing() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("shardless");
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "x")]).await;
    client.batch_execute("DELETE FROM shards").await.unwrap();
    let refused = store.events_apply(vec![added(&guild, &user(1), START + 1, 5)]).await.unwrap_err();
    assert!(refused.to_string().contains("shards"), "{refused}");
    assert!(store.events_probe(Some(guild.clone())).await.is_err(), "no event is at fault");
    client.batch_execute("INSERT INTO shards SELECT generate_series(0, 15)").await.unwrap();
    apply(&store, &guild, vec![added(&guild, &user(1), START + 1, 5)]).await;
    let active = community.profile_list_active(PageLimit::MAX, None).await.unwrap().items;
    assert_eq!(active.first().map(|profile| profile.activity.get()), Some(5));
}

#[tokio::test]
async fn copies_of_one_batch_that_say_other_days_are_one_event() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("copies");
    let first = added(&guild, &user(1), now() - DAY, 5);
    let second = Event { id: first.id, ..added(&guild, &user(1), now(), 7) };
    assert_eq!(applied(&store, &[first.clone(), second]).await, (1, 1));
    assert_eq!(applied(&store, &[first]).await, (0, 1));
    assert_eq!(activity(&client).await, 5);
}

#[tokio::test]
async fn an_event_has_one_effect_whatever_day_it_is_of() {
    let database = Database::migrated().await;
    let (seen, client) = (Arc::new(Mutex::new(Vec::new())), database.client().await);
    let seeing = Arc::clone(&seen);
    let observe = Arc::new(move |observation: &QueryObservation| seeing.lock().unwrap().push(*observation));
    let store = Store::open(database.config().observe(observe)).await.unwrap();
    let guild = guild("days");
    // Of every day that has a partition, the edge behind which events are old, and far beyond both.
    let days = (-1..70).chain([100, 400, 4000]);
    let events: Vec<Event> =
        days.map(|day| added(&guild, &user(1), now() - day * DAY + 3_600_000, 1)).collect();
    assert_eq!(applied(&store, &events).await, (74, 0));
    for again in [events.clone(), events.iter().rev().cloned().collect(), [events.clone(), events].concat()] {
        assert_eq!(applied(&store, &again).await, (0, again.len()));
    }
    assert_eq!(activity(&client).await, 74);
    let seen = seen.lock().unwrap();
    assert!(
        seen.iter().all(|query| query.failure.is_none()),
        "that an event came again is no failure: {seen:?}"
    );
}

#[tokio::test]
async fn an_event_that_grows_old_between_its_deliveries_has_one_effect() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("edge");
    // Within the next seconds each is as old as events get in the partition of their day.
    let edge = now() - 15 * DAY;
    let events: Vec<Event> = (0..8).map(|number| added(&guild, &user(1), edge + 500 * number, 1)).collect();
    assert_eq!(applied(&store, &events).await, (8, 0));
    for _ in 0..6 {
        assert_eq!(applied(&store, &events).await, (0, 8));
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    assert_eq!(activity(&client).await, 8);
}

/// As when the stream keeps events for longer than their ids are remembered, and is read from its beginning.
#[tokio::test]
async fn events_whose_ids_were_forgotten_neither_fail_nor_count_again() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("again");
    let set = |at, activity: i64| {
        let activity = Some(Activity::clamp(activity));
        member(&guild, &user(1), at, MemberEffect::ScoreSet { conviction: None, activity })
    };
    let mut events = vec![joined(&guild, &user(1), START, "x"), joined(&guild, &user(2), START, "y")];
    for number in 0..20 {
        let at = START + 100 * number;
        events.extend([
            added(&guild, &user(1), at, 1),
            added(&guild, &user(2), at + 1, 3),
            awarded(&guild, &user(number % 3), at + 2, "k"),
            awarded(&guild, &user(number % 2), at + 3, "k"),
            revoked(&guild, &user(number % 2), at + 4 + number % 5 * 200, "k"),
        ]);
    }
    events.push(set(START + 1_050, 100));
    let rows = async || {
        let sql = "SELECT format('%s %s %s', user_id, activity, badge_count) FROM members
             UNION ALL SELECT t::text FROM badge_ops AS t UNION ALL SELECT t::text FROM activity_adds AS t ORDER BY 1";
        let rows = client.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    apply(&store, &guild, events.clone()).await;
    let before = rows().await;
    assert!(before.iter().any(|row| row.starts_with("u1 109 ")), "{before:?}");
    for at_once in [1, 7, events.len()] {
        client.batch_execute("DELETE FROM applied_events").await.unwrap();
        for part in events.chunks(at_once) {
            store.events_apply(part.to_vec()).await.unwrap();
        }
        assert_eq!(rows().await, before, "{at_once} at once");
        // With what is new among them.
        events.rotate_left(11);
    }
    client.batch_execute("DELETE FROM applied_events").await.unwrap();
    events.extend([added(&guild, &user(1), START + 5_000, 2), set(START + 1_150, 200)]);
    apply(&store, &guild, events).await;
    let first: i64 =
        client.query_one("SELECT activity FROM members WHERE user_id = 'u1'", &[]).await.unwrap().get(0);
    assert_eq!(first, 200 + 8 + 2);
    consistency::check(&client).await;
}

#[tokio::test]
async fn additions_whose_events_are_forgotten_are_folded_by_month_and_by_year() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("folded");
    // An event with such an id has its member's additions looked at.
    let mut ids = (1_u128..).map(|number| EventId::new(Uuid::from_u128(number * 31)));
    let mut of = |who: &str, days: i64, count: i64| -> Vec<Event> {
        let noon = (now() / DAY - days) * DAY + DAY / 2;
        let adds = (0..count).map(|number| added(&guild, &user(who), noon + number, 3));
        adds.zip(&mut ids).map(|(event, id)| Event { id, ..event }).collect()
    };
    let mut events = Vec::new();
    for who in ["often", "once"] {
        for (days, count) in [(800, 6), (300, 5), (200, 5), (100, 5), (10, 5)] {
            events.extend(of(who, days, if who == "once" { 1 } else { count }));
        }
    }
    apply(&store, &guild, events).await;
    let kept = async |who: &str| {
        let sql = "SELECT a.amount FROM activity_adds AS a JOIN members AS m USING (shard, community, member)
             WHERE m.user_id = $1 ORDER BY a.at, a.event_id";
        let rows = client.query(sql, &[&user(who).as_str()]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>()
    };
    let activity = async |who: &str| -> i64 {
        let sql = "SELECT activity FROM members WHERE user_id = $1";
        client.query_one(sql, &[&user(who).as_str()]).await.unwrap().get(0)
    };
    store.set_folding(true);
    apply(&store, &guild, of("often", 1, 1)).await;
    assert_eq!(kept("often").await, vec![3; 27], "their ids are remembered");
    store.set_folding(false);
    client.batch_execute("DELETE FROM applied_events").await.unwrap();
    apply(&store, &guild, of("often", 1, 1)).await;
    assert_eq!(kept("often").await, vec![3; 28], "an event may come again whose id is forgotten");
    store.set_folding(true);
    apply(&store, &guild, [of("often", 1, 1), of("once", 1, 1)].concat()).await;
    let folded = [vec![3, 15, 15, 15, 15], vec![3; 8]].concat();
    assert_eq!(
        kept("often").await,
        folded,
        "the first alone, then a sum for each period, then what is not old"
    );
    assert_eq!(kept("once").await, vec![3; 6]);
    assert_eq!((activity("often").await, activity("once").await), (87, 18));
    apply(&store, &guild, [of("often", 1, 1), of("often", 800, 1)].concat()).await;
    let folded = [vec![3, 18, 15, 15, 15], vec![3; 9]].concat();
    let late = "one that is late is kept by itself until its id is forgotten";
    assert_eq!(kept("often").await.len(), folded.len() + 1, "{late}");
    client.batch_execute("DELETE FROM applied_events").await.unwrap();
    apply(&store, &guild, of("often", 1, 1)).await;
    assert_eq!(kept("often").await, [folded, vec![3]].concat(), "{late}");
    let late = |activity| {
        let effect = MemberEffect::ScoreSet { conviction: None, activity: Some(Activity::clamp(activity)) };
        member(&guild, &user("often"), now() - 250 * DAY, effect)
    };
    apply(&store, &guild, vec![late(1000)]).await;
    assert_eq!(
        activity("often").await,
        1000 + 15 + 15 + 15 + 3 * 5,
        "what was added since it was set counts"
    );
    consistency::check(&client).await;
}

/// How many ids are kept of events of so many days ago, and of those that were old when they came.
async fn kept(client: &Client, days: i64) -> i64 {
    let sql = "SELECT count(*) FROM applied_events
         WHERE slot = (floor(extract(epoch FROM now()) / 86400)::bigint - $1) % 64";
    client.query_one(sql, &[&days]).await.unwrap().get(0)
}

#[tokio::test]
async fn pruning_forgets_the_applied_ids_of_past_days_and_no_others() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("prune");
    apply(&store, &guild, vec![joined(&guild, &user(1), now(), "x")]).await;
    client.batch_execute("DELETE FROM applied_events").await.unwrap();
    let days = "INSERT INTO applied_events (shard, slot, community, event_id)
             SELECT shard, (floor(extract(epoch FROM now()) / 86400)::bigint - day) % 64, community, gen_random_uuid()
             FROM communities CROSS JOIN generate_series(-1, 60) AS day CROSS JOIN generate_series(1, 3)";
    let old = "INSERT INTO applied_events
             SELECT shard, 64, community, gen_random_uuid(), now() - day * interval '1 day'
             FROM communities CROSS JOIN generate_series(0, 39) AS day CROSS JOIN generate_series(1, 100)";
    for sql in [days, old] {
        client.execute(sql, &[]).await.unwrap();
    }
    let mut forgotten = 0;
    for _ in 0..200 {
        let now = store.applied_events_prune(Duration::from_secs(20 * 86_400)).await.unwrap();
        forgotten += now;
        if now == 0 {
            break;
        }
    }
    assert!(forgotten >= 2000, "{forgotten}");
    assert_eq!(store.applied_events_prune(Duration::from_secs(20 * 86_400)).await.unwrap(), 0);
    for day in -1..=35 {
        assert_eq!(kept(&client, day).await, 3, "{day} days ago");
    }
    // An event may be fifteen days old when it is applied, and is remembered from then on.
    for day in 37..=60 {
        assert_eq!(kept(&client, day).await, 0, "{day} days ago");
    }
    let old =
        "SELECT count(*), count(*) FILTER (WHERE applied_at > now() - interval '20 days') FROM applied_events
         WHERE slot = 64";
    let row = client.query_one(old, &[]).await.unwrap();
    let (kept, recent): (i64, i64) = (row.get(0), row.get(1));
    // Those of twenty days ago are so to a moment.
    assert!((2000..=2100).contains(&kept) && recent == 2000, "{kept}, {recent}");
}
