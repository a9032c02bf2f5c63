//! Events through a real stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt;
use muster_domain::{
    Activity, Effect, Event, EventId, EventTime, EventType, GuildId, MaxClockSkew, MemberEffect, Shard,
    TimeBounds, UserId,
};
use muster_messaging::client::EventPublisher;
use muster_messaging::connection::Connection;
use muster_messaging::events::consumer::{
    ApplyError, Consumer, ConsumerConfig, ConsumerError, ConsumerEvent, Delivered, Lag, Outcome,
};
use muster_messaging::events::envelope::encode;
use muster_messaging::events::fault::{Fault, FaultScope, Probe, StoreFailure};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::broker::{Broker, until};

fn times() -> TimeBounds {
    TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default())
}

pub(crate) fn event(n: u128) -> Event {
    Event {
        id: EventId::new(Uuid::from_u128(n)),
        at: EventTime::parse(1_700_000_000_000_i64, times()).unwrap(),
        guild: GuildId::parse("42").unwrap(),
        effect: Effect::Member {
            user: UserId::parse("7").unwrap(),
            effect: MemberEffect::ActivityAdd { amount: Activity::clamp(1_i64) },
        },
        traceparent: None,
    }
}

/// The probe of a store that works.
pub(crate) fn working_store() -> Probe {
    Arc::new(|_| Box::pin(std::future::ready(Ok(()))))
}

#[derive(Default)]
pub(crate) struct Ledger {
    applied: Mutex<BTreeMap<u128, u32>>,
    observed: Mutex<Vec<ConsumerEvent>>,
}

fn number(delivered: &Delivered) -> u128 {
    delivered.event.id.get().as_u128()
}

impl Ledger {
    pub(crate) fn applied(&self) -> BTreeSet<u128> {
        self.applied.lock().unwrap().keys().copied().collect()
    }

    fn outcomes(&self, event_type: Option<EventType>, outcome: Outcome) -> usize {
        let wanted = ConsumerEvent::Outcome(event_type, outcome);
        self.observed.lock().unwrap().iter().filter(|observed| **observed == wanted).count()
    }

    /// Applies all or nothing: nothing when `refuse` has something against one of them.
    pub(crate) fn apply(
        &self,
        events: &[Delivered],
        refuse: impl Fn(&Delivered) -> Option<ApplyError>,
    ) -> Result<(), ApplyError> {
        for delivered in events {
            if let Some(error) = refuse(delivered) {
                return Err(error);
            }
        }
        for delivered in events {
            *self.applied.lock().unwrap().entry(number(delivered)).or_insert(0) += 1;
        }
        Ok(())
    }
}

pub(crate) struct Fixture {
    pub(crate) broker: Broker,
    pub(crate) connection: Connection,
    pub(crate) publisher: EventPublisher,
    pub(crate) ledger: Arc<Ledger>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let broker = Broker::plain();
        let connection = broker.connect().await;
        let publisher = EventPublisher::new(&connection);
        Self { broker, connection, publisher, ledger: Arc::default() }
    }

    pub(crate) async fn open(&self, config: ConsumerConfig) -> Consumer {
        let ledger = Arc::clone(&self.ledger);
        let observe =
            Arc::new(move |event: &ConsumerEvent| ledger.observed.lock().unwrap().push(event.clone()));
        Consumer::open(&self.connection, ConsumerConfig { observe, ..config }).await.unwrap()
    }

    pub(crate) fn apply<R>(
        &self,
        refuse: R,
    ) -> impl Fn(Vec<Delivered>) -> std::future::Ready<Result<(), ApplyError>> + Send + Sync + 'static + use<R>
    where
        R: Fn(&Delivered) -> Option<ApplyError> + Send + Sync + 'static,
    {
        let ledger = Arc::clone(&self.ledger);
        move |events| std::future::ready(ledger.apply(&events, &refuse))
    }

    async fn all_acknowledged(&self, consumer: &Consumer) {
        until("everything is acknowledged", async || {
            consumer.lag().await.is_ok_and(|lag| lag == Lag::default())
        })
        .await;
    }

    /// Every dead letter: its headers and its payload.
    async fn dead_letters(&self) -> Vec<(BTreeMap<String, String>, String)> {
        let context = jetstream::new(self.broker.raw().await);
        let stream = context.get_stream("DEAD_LETTERS").await.unwrap();
        let config = jetstream::consumer::pull::Config::default();
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.fetch().max_messages(100).messages().await.unwrap();
        let mut dead = Vec::new();
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            let headers = message.headers.as_ref().unwrap();
            let headers =
                headers.iter().map(|(name, values)| (name.to_string(), values[0].to_string())).collect();
            dead.push((headers, String::from_utf8_lossy(&message.payload).into_owned()));
        }
        dead
    }
}

#[tokio::test]
async fn every_event_is_applied_and_acknowledged() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    let consuming = consumer.start(fixture.apply(|_| None), working_store());
    let told = Mutex::new(0);
    let published = fixture
        .publisher
        .publish_all((1..=5000).map(event), |so_far| *told.lock().unwrap() = so_far)
        .await
        .unwrap();
    assert_eq!((published, *told.lock().unwrap()), (5000, 5000));
    until("all are applied", async || fixture.ledger.applied().len() == 5000).await;
    fixture.all_acknowledged(&consumer).await;
    consuming.stop(Duration::from_secs(10)).await.unwrap();
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_duplicate_event_is_passed_to_the_store_twice() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    for _ in 0..2 {
        fixture.publisher.publish(&event(1)).await.unwrap();
    }
    let _consuming = consumer.start(fixture.apply(|_| None), working_store());
    fixture.all_acknowledged(&consumer).await;
    assert_eq!(fixture.ledger.applied.lock().unwrap()[&1], 2);
}

#[tokio::test]
async fn a_malformed_event_becomes_a_dead_letter_at_its_first_delivery() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    let raw = |subject: &str, payload: &str| {
        fixture.publisher.publish_raw(subject.to_owned(), payload.as_bytes().to_vec())
    };
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", trace);
    let context = async_nats::jetstream::new(fixture.broker.raw().await);
    let sent = context.publish_with_headers("events.member.join", headers, "{".into()).await.unwrap();
    sent.await.unwrap();
    let no_guild = r#"{"event_id":"00000000-0000-0000-0000-000000000001","event_type":"member.leave","timestamp":1700000000000,"guild_id":null,"user_id":"7","data":null}"#;
    let sequence = raw("events.member.leave", no_guild).await.unwrap();
    raw("events.member.leave", &"[".repeat(200_000)).await.unwrap();
    raw("events.member.leave", &"x".repeat(300_000)).await.unwrap();
    let large = "z".repeat(1_047_900);
    raw("events.member.leave", &large).await.unwrap();
    let whole = "y".repeat(1_048_576);
    raw("events.member.leave", &whole).await.unwrap();
    raw("events.message.create", r#"{"event_type":"message.create"}"#).await.unwrap();
    let outage = r#"{"event_id":"00000000-0000-0000-0000-000000000002","event_type":"guild.leave","timestamp":1700000000000,"guild_id":"42","data":{"unavailable":true}}"#;
    raw("events.guild.leave", outage).await.unwrap();
    fixture.publisher.publish(&event(9)).await.unwrap();

    let consuming = consumer.start(fixture.apply(|_| None), working_store());
    fixture.all_acknowledged(&consumer).await;
    consuming.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(fixture.ledger.applied(), BTreeSet::from([9]));
    assert_eq!(fixture.ledger.outcomes(None, Outcome::Unknown), 1);
    assert_eq!(fixture.ledger.outcomes(Some(EventType::GuildLeave), Outcome::Outage), 1);
    assert_eq!(fixture.ledger.outcomes(Some(EventType::MemberLeave), Outcome::Malformed), 5);
    let dead = fixture.dead_letters().await;
    assert_eq!(dead.len(), 6);
    let (headers, payload) =
        dead.iter().find(|(headers, _)| headers["Muster-Sequence"] == sequence.to_string()).unwrap();
    assert_eq!(payload, no_guild, "copied whole");
    assert_eq!(headers["Muster-Reason"], "guild_id is missing");
    assert_eq!(headers["Muster-Subject"], "events.member.leave");
    assert_eq!(headers["Muster-Deliveries"], "1");
    let traced: Vec<&String> = dead.iter().filter_map(|(headers, _)| headers.get("traceparent")).collect();
    assert_eq!(traced, [trace]);
    assert!(headers["Muster-Time"].ends_with('Z'));
    assert!(dead.iter().any(|(headers, _)| headers["Muster-Reason"].contains("at most 262144")));
    assert!(dead.iter().any(|(_, payload)| *payload == large), "whole beside the headers");
    let truncated = dead.iter().find(|(headers, _)| headers.contains_key("Muster-Cut-From")).unwrap();
    assert_eq!(truncated.0["Muster-Cut-From"], "1048576", "no room beside the headers");
}

#[tokio::test]
async fn an_event_that_fails_once_is_retried() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    fixture.publisher.publish_all((1..=20).map(event), |_| ()).await.unwrap();
    let _consuming = consumer.start(
        fixture.apply(|delivered| {
            let fails = number(delivered) == 7 && delivered.deliveries == 1;
            fails.then(|| ApplyError::Failed("serialization failure".into()))
        }),
        working_store(),
    );
    fixture.all_acknowledged(&consumer).await;
    assert_eq!(fixture.ledger.applied().len(), 20);
    assert_eq!(fixture.ledger.outcomes(Some(EventType::ActivityAdd), Outcome::Retried), 1);
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn events_wait_for_a_store_outage_and_none_becomes_a_dead_letter() {
    let fixture = Fixture::new().await;
    let config = ConsumerConfig {
        max_deliveries: 1,
        ack_wait: Duration::from_millis(300),
        ..ConsumerConfig::default()
    };
    let consumer = fixture.open(config).await;
    fixture.publisher.publish_all((1..=20).map(event), |_| ()).await.unwrap();
    let calls = AtomicU32::new(0);
    let _consuming = consumer.start(
        fixture.apply(move |_| {
            let refused = calls.fetch_add(1, Ordering::SeqCst) < 4;
            refused.then(|| ApplyError::Unavailable("connection refused".into()))
        }),
        working_store(),
    );
    fixture.all_acknowledged(&consumer).await;
    assert!(
        fixture.ledger.applied.lock().unwrap().values().all(|times| *times == 1),
        "retried, not delivered again"
    );
    assert_eq!(fixture.ledger.applied().len(), 20);
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_poison_event_becomes_a_dead_letter_and_does_not_delay_its_neighbours() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig { max_deliveries: 2, ..ConsumerConfig::default() }).await;
    fixture.publisher.publish_all((1..=100).map(event), |_| ()).await.unwrap();
    let _consuming = consumer.start(
        fixture.apply(|delivered| match number(delivered) {
            50 => Some(ApplyError::Failed("it always fails".into())),
            60 => Some(ApplyError::Poison(delivered.event.id, "it never will".to_owned())),
            70 => panic!("a defect in the store"),
            _ => None,
        }),
        working_store(),
    );
    until("all but the poison are applied", async || fixture.ledger.applied().len() == 97).await;
    assert_eq!(
        fixture.ledger.outcomes(Some(EventType::ActivityAdd), Outcome::GivenUp),
        1,
        "the neighbours did not wait for the retried events"
    );
    fixture.all_acknowledged(&consumer).await;
    let dead = fixture.dead_letters().await;
    let mut reasons: Vec<(&str, &str)> =
        dead.iter().map(|(h, _)| (h["Muster-Reason"].as_str(), h["Muster-Deliveries"].as_str())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons.len(), 3);
    assert_eq!(reasons[0], ("it always fails", "2"));
    assert_eq!(reasons[1], ("it never will", "1"));
    assert!(reasons[2].0.contains("panic") && reasons[2].1 == "2", "{reasons:?}");
    assert_eq!(fixture.ledger.applied().len(), 97);
}

#[tokio::test]
async fn a_community_whose_batches_take_long_and_fail_is_by_itself_until_one_passes() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig { lanes: 1, ..ConsumerConfig::default() }).await;
    // A batch is of one shard.
    let shard = |name: &str| Shard::of(&GuildId::parse(name).unwrap());
    let fast = (0..).map(|n: u32| n.to_string()).find(|name| shard(name) == shard("slow")).unwrap();
    let named = fast.clone();
    let (batches, ledger) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(&fixture.ledger));
    let (gate, held) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicU32::new(0)));
    let (seen, holding, open) = (Arc::clone(&batches), Arc::clone(&held), Arc::clone(&gate));
    let apply = move |events: Vec<Delivered>| {
        let of = |guild: &str| events.iter().filter(|it| it.event.guild.as_str() == guild).count();
        let (slow, holds) = (of("slow"), of("gate") > 0);
        seen.lock().unwrap().push((slow, of(&named)));
        let (ledger, holding, open) = (Arc::clone(&ledger), Arc::clone(&holding), Arc::clone(&open));
        async move {
            if holds {
                holding.fetch_add(1, Ordering::SeqCst);
                open.acquire().await.unwrap().forget();
            }
            if slow > 10 {
                tokio::time::sleep(Duration::from_millis(1600)).await;
                return Err(ApplyError::Failed("it takes too long".into()));
            }
            ledger.apply(&events, |_| None)
        }
    };
    let _consuming = consumer.start(apply, working_store());
    let of = |guild: &str, n| Event { guild: GuildId::parse(guild).unwrap(), ..event(n) };
    for round in 0..4 {
        fixture.publisher.publish(&of("gate", 10_000 + round)).await.unwrap();
        until("the lane is held", async || u128::from(held.load(Ordering::SeqCst)) == round + 1).await;
        let both = (1..=20).flat_map(|n| [of("slow", round * 20 + n), of(&fast, 1000 + round * 20 + n)]);
        fixture.publisher.publish_all(both, |_| ()).await.unwrap();
        until("they are read", async || consumer.lag().await.unwrap().unacknowledged == 41).await;
        gate.add_permits(1);
        fixture.all_acknowledged(&consumer).await;
    }
    assert_eq!(fixture.ledger.applied().len(), 4 * 41);
    let batches = batches.lock().unwrap();
    let mixed = batches.iter().filter(|(slow, fast)| *slow > 0 && *fast > 0).count();
    assert_eq!(mixed, 1, "{batches:?}");
}

/// The probe of a store that is at fault: every probe fails, or only that of one community.
fn failing_probe(at_fault: &Arc<AtomicU32>, of: Option<&'static str>) -> Probe {
    let at_fault = Arc::clone(at_fault);
    Arc::new(move |guild: Option<GuildId>| {
        let is_meant = of.is_none() || guild.is_some_and(|guild| Some(guild.as_str()) == of);
        let fails = is_meant && at_fault.load(Ordering::SeqCst) > 0;
        let failure = StoreFailure { code: Some("42501".to_owned()), why: "not permitted".to_owned() };
        Box::pin(std::future::ready(if fails { Err(failure) } else { Ok(()) }))
    })
}

#[tokio::test]
async fn a_store_fault_found_by_the_probe_stops_reading_and_counts_against_no_event() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig { max_deliveries: 1, ..ConsumerConfig::default() }).await;
    fixture.publisher.publish_all((1..=200).map(event), |_| ()).await.unwrap();
    let at_fault = Arc::new(AtomicU32::new(1));
    let (failing, calls) = (Arc::clone(&at_fault), Arc::new(AtomicU32::new(0)));
    let called = Arc::clone(&calls);
    let apply = fixture.apply(move |_| {
        called.fetch_add(1, Ordering::SeqCst);
        (failing.load(Ordering::SeqCst) > 0).then(|| ApplyError::Failed("not permitted".into()))
    });
    let consuming = consumer.start(apply, failing_probe(&at_fault, None));
    let fault = Fault { scope: FaultScope::Store, code: Some("42501".to_owned()), count: 1 };
    until("the fault is known", async || consuming.faults() == [fault.clone()]).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(calls.load(Ordering::SeqCst) < 20, "nothing is split: {calls:?}");
    fixture.publisher.publish_all((201..=300).map(event), |_| ()).await.unwrap();
    assert_eq!(consuming.faults(), [fault]);
    at_fault.store(0, Ordering::SeqCst);
    fixture.all_acknowledged(&consumer).await;
    assert!(fixture.ledger.applied.lock().unwrap().values().all(|times| *times == 1));
    assert_eq!(fixture.ledger.applied().len(), 300);
    assert_eq!(fixture.ledger.outcomes(Some(EventType::ActivityAdd), Outcome::Retried), 0);
    until("the fault is over", async || consuming.faults().is_empty()).await;
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_batch_that_hangs_is_a_store_fault_when_the_probe_fails_and_none_when_it_does_not() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    let (at_fault, probes) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (counted, failing) = (Arc::clone(&probes), failing_probe(&at_fault, None));
    let probe: Probe = Arc::new(move |guild| {
        counted.fetch_add(1, Ordering::SeqCst);
        failing(guild)
    });
    let (release, released) = tokio::sync::watch::channel(false);
    let ledger = Arc::clone(&fixture.ledger);
    let apply = move |events: Vec<Delivered>| {
        let (mut released, ledger) = (released.clone(), Arc::clone(&ledger));
        async move {
            let _ = released.wait_for(|released| *released).await;
            ledger.apply(&events, |_| None)
        }
    };
    let consuming = consumer.start(apply, probe);
    fixture.publisher.publish_all((1..=50).map(event), |_| ()).await.unwrap();
    until("the store is probed twice", async || probes.load(Ordering::SeqCst) >= 2).await;
    assert_eq!(consuming.faults(), []);
    at_fault.store(1, Ordering::SeqCst);
    let began = Instant::now();
    let fault = Fault { scope: FaultScope::Store, code: Some("42501".to_owned()), count: 1 };
    until("the fault is known", async || consuming.faults() == [fault.clone()]).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(consuming.faults(), [fault], "until the batch ends");
    release.send_replace(true);
    fixture.all_acknowledged(&consumer).await;
    assert_eq!(fixture.ledger.applied().len(), 50);
    until("the fault is over", async || consuming.faults().is_empty()).await;
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_community_fault_pauses_its_events_and_no_others() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig { max_deliveries: 1, ..ConsumerConfig::default() }).await;
    let of = |guild: &str, number| Event { guild: GuildId::parse(guild).unwrap(), ..event(number) };
    let mixed = (1..=300).map(|n| of(["42", "43", "44"][usize::try_from(n % 3).unwrap()], n));
    fixture.publisher.publish_all(mixed, |_| ()).await.unwrap();
    let at_fault = Arc::new(AtomicU32::new(1));
    let (failing, tries) = (Arc::clone(&at_fault), AtomicU32::new(0));
    let apply = fixture.apply(move |delivered| {
        let fails = delivered.event.guild.as_str() == "42" && failing.load(Ordering::SeqCst) > 0;
        // In turn as a failure that may be anybody's, and as others being in the way.
        let busy = tries.fetch_add(u32::from(fails), Ordering::SeqCst).is_multiple_of(2);
        let error = if busy { ApplyError::Busy } else { ApplyError::Failed };
        fails.then(|| error("not permitted".into()))
    });
    let consuming = consumer.start(apply, failing_probe(&at_fault, Some("42")));
    until("the others' are applied", async || fixture.ledger.applied().len() == 200).await;
    until("the fault is known", async || {
        consuming.faults().iter().any(|fault| fault.scope == FaultScope::Community && fault.count == 1)
    })
    .await;
    fixture.publisher.publish(&of("43", 301)).await.unwrap();
    until("others are read", async || fixture.ledger.applied().contains(&301)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(fixture.ledger.applied().len(), 201);
    at_fault.store(0, Ordering::SeqCst);
    fixture.all_acknowledged(&consumer).await;
    assert_eq!(fixture.ledger.applied().len(), 301);
    assert_eq!(consuming.faults(), []);
    assert!(fixture.dead_letters().await.is_empty());
}

#[tokio::test]
async fn a_deleted_or_replaced_stream_is_an_error() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    let mut consuming =
        fixture.open(ConsumerConfig::default()).await.start(fixture.apply(|_| None), working_store());
    context.delete_stream("EVENTS").await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), consuming.ended()).await.unwrap();
    assert!(matches!(ended, ConsumerError::StreamGone), "{ended:?}");

    let first = fixture.open(ConsumerConfig::default()).await;
    context.delete_stream("EVENTS").await.unwrap();
    let second = fixture.open(ConsumerConfig::default()).await;
    assert!(matches!(first.lag().await, Err(ConsumerError::StreamReplaced)));
    assert_eq!(second.lag().await.unwrap(), Lag::default());
}

#[tokio::test]
async fn a_stream_replaced_under_a_reader_that_still_gets_events_ends_it() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    let first = fixture.open(ConsumerConfig::default()).await;
    // Another worker has made both anew before this one asks for anything.
    context.delete_stream("EVENTS").await.unwrap();
    let _second = fixture.open(ConsumerConfig::default()).await;
    let mut consuming = first.start(fixture.apply(|_| None), working_store());
    let ended = tokio::time::timeout(Duration::from_secs(20), consuming.ended()).await.unwrap();
    assert!(matches!(ended, ConsumerError::StreamReplaced), "{ended:?}");
}

#[tokio::test]
async fn an_existing_stream_is_used_unchanged() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    let made = jetstream::stream::Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        max_messages: 77,
        discard: jetstream::stream::DiscardPolicy::New,
        ..Default::default()
    };
    context.create_stream(made).await.unwrap();
    fixture.publisher.publish(&event(1)).await.unwrap();
    let consumer = fixture.open(ConsumerConfig::default()).await;
    let lag = consumer.lag().await.unwrap();
    assert_eq!((lag.pending, lag.unacknowledged, lag.dropped, lag.filled_percent), (1, 0, 0, 1));
    assert!(lag.oldest.is_some_and(|age| age < Duration::from_secs(60)));
    let stream = context.get_stream("EVENTS").await.unwrap();
    assert_eq!(stream.cached_info().config.max_messages, 77);
}

#[tokio::test]
async fn a_killed_broker_loses_no_event() {
    let mut fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    fixture.publisher.publish_all((1..=500).map(event), |_| ()).await.unwrap();
    let consuming = consumer.start(fixture.apply(|_| None), working_store());
    until("the first are applied", async || !fixture.ledger.applied().is_empty()).await;
    let setup = crate::broker::Setup { tls: false, ..Default::default() };
    fixture.broker.restart(&setup);
    until("it is connected anew", async || fixture.connection.counts().reconnects >= 1).await;
    fixture.publisher.publish_all((501..=600).map(event), |_| ()).await.unwrap();
    until("all are applied", async || fixture.ledger.applied().len() == 600).await;
    consuming.stop(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_flood_in_one_community_does_not_hold_up_another() {
    const FLOOD: u128 = 30_000;
    let fixture = Fixture::new().await;
    // Deferred events are delivered again only because they are requested.
    let config = ConsumerConfig { ack_wait: Duration::from_mins(5), ..ConsumerConfig::default() };
    let consumer = fixture.open(config).await;
    fixture.publisher.publish_all((1..=FLOOD).map(event), |_| ()).await.unwrap();
    let ledger = Arc::clone(&fixture.ledger);
    let _consuming = consumer.start(
        move |events: Vec<Delivered>| {
            let ledger = Arc::clone(&ledger);
            async move {
                // A store that takes 5000 events a second.
                tokio::time::sleep(Duration::from_micros(200) * u32::try_from(events.len()).unwrap()).await;
                ledger.apply(&events, |_| None)
            }
        },
        working_store(),
    );
    until("the flood is being applied", async || !fixture.ledger.applied().is_empty()).await;
    let other = Event { guild: GuildId::parse("43").unwrap(), ..event(FLOOD + 1) };
    for number in 1..=3 {
        let id = FLOOD + number;
        fixture
            .publisher
            .publish(&Event { id: EventId::new(Uuid::from_u128(id)), ..other.clone() })
            .await
            .unwrap();
        let published = Instant::now();
        until("the other community's event is applied", async || {
            fixture.ledger.applied.lock().unwrap().contains_key(&id)
        })
        .await;
        let (took, applied) = (published.elapsed(), fixture.ledger.applied().len());
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(applied < 29_000, "{applied} applied: the flood was over before the other's event came");
    }
    fixture.all_acknowledged(&consumer).await;
    assert_eq!(fixture.ledger.applied().len(), 30_003);
    let deferred = fixture.ledger.outcomes(Some(EventType::ActivityAdd), Outcome::Deferred);
    assert!((5_000..14_000).contains(&deferred), "{deferred} were deferred");
}

#[tokio::test]
async fn queued_and_deferred_events_go_back_at_once_when_the_consumer_stops() {
    // More than there is room for, so that some are deferred.
    const EVENTS: u128 = 20_000;
    let fixture = Fixture::new().await;
    let config = ConsumerConfig { batch: 10, ack_wait: Duration::from_mins(5), ..ConsumerConfig::default() };
    let first = fixture.open(config.clone()).await;
    fixture.publisher.publish_all((1..=EVENTS).map(event), |_| ()).await.unwrap();
    let ledger = Arc::clone(&fixture.ledger);
    let consuming = first.start(
        move |events: Vec<Delivered>| {
            let ledger = Arc::clone(&ledger);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                ledger.apply(&events, |_| None)
            }
        },
        working_store(),
    );
    until("some are applied", async || fixture.ledger.applied().len() >= 20).await;
    consuming.stop(Duration::from_secs(5)).await.unwrap();
    assert!(fixture.ledger.applied().len() < 200, "the rest waits");
    let second = fixture.open(config).await;
    let _consuming = second.start(fixture.apply(|_| None), working_store());
    fixture.all_acknowledged(&second).await;
    assert_eq!(fixture.ledger.applied().len(), 20_000);
}

#[tokio::test]
async fn an_event_carries_its_traceparent() {
    let fixture = Fixture::new().await;
    let consumer = fixture.open(ConsumerConfig::default()).await;
    let context = jetstream::new(fixture.broker.raw().await);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (number, traceparent) in [(1, parent.to_owned()), (2, "x".repeat(5000))] {
        let (subject, payload) = encode(&event(number));
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("traceparent", traceparent.as_str());
        context.publish_with_headers(subject, headers, payload.into()).await.unwrap().await.unwrap();
    }
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let see = Arc::clone(&seen);
    let _consuming = consumer.start(
        fixture.apply(move |delivered| {
            see.lock()
                .unwrap()
                .insert(number(delivered), delivered.event.traceparent.clone().map(String::from));
            None
        }),
        working_store(),
    );
    fixture.all_acknowledged(&consumer).await;
    let seen = seen.lock().unwrap();
    assert_eq!(seen[&1].as_deref(), Some(parent));
    assert_eq!(seen[&2], None, "too long to be one");
}
