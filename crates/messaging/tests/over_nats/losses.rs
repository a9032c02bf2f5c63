//! Events that a real stream drops before they are applied are counted, and no others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use futures_util::future::join_all;
use muster_messaging::events::consumer::{ApplyError, Consumer, ConsumerConfig, Delivered, Unfit};
use muster_messaging::events::envelope::encode;

use crate::broker::until;
use crate::events::{Fixture, event, working_store};

/// A loss is found and counted within some seconds; on a busy machine it may take so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Creates the stream with this change.
async fn stream(fixture: &Fixture, change: impl FnOnce(&mut Config)) -> Stream {
    let mut config =
        Config { name: "EVENTS".to_owned(), subjects: vec!["events.>".to_owned()], ..Config::default() };
    change(&mut config);
    jetstream::new(fixture.broker.raw().await).create_stream(config).await.unwrap()
}

fn config() -> ConsumerConfig {
    ConsumerConfig { unfit: Unfit::Warn, ..ConsumerConfig::default() }
}

async fn publish(fixture: &Fixture, numbers: std::ops::RangeInclusive<u128>) {
    fixture.publisher.publish_all(numbers.map(event), |_| ()).await.unwrap();
}

/// Publishes events of some eight kilobytes each.
async fn publish_large(fixture: &Fixture, numbers: std::ops::RangeInclusive<u128>) {
    for number in numbers {
        let (subject, payload) = encode(&event(number));
        let padded = format!(
            "{{\"padding\":\"{}\",{}",
            "x".repeat(8_000),
            String::from_utf8(payload).unwrap().strip_prefix('{').unwrap()
        );
        fixture.publisher.publish_raw(subject, padded.into_bytes()).await.unwrap();
    }
}

async fn dropped(consumer: &Consumer) -> u64 {
    consumer.lag().await.unwrap().dropped
}

/// Waits until every event was either applied or counted as dropped.
async fn all_accounted_for(fixture: &Fixture, consumer: &Consumer, published: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let lag = consumer.lag().await.unwrap();
        let applied = fixture.ledger.applied().len();
        if lag.pending == 0 && applied + usize::try_from(lag.dropped).unwrap() >= published {
            assert_eq!(applied + usize::try_from(lag.dropped).unwrap(), published, "{lag:?}");
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{applied} of {published} applied, {lag:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn events_dropped_by_a_full_stream_without_a_reader_are_counted() {
    let fixture = Fixture::new().await;
    stream(&fixture, |config| (config.max_messages, config.discard) = (2_000, DiscardPolicy::Old)).await;
    let first = fixture.open(config()).await;
    publish(&fixture, 1..=500).await;
    let consuming = first.start(fixture.apply(|_| None), working_store());
    until("the first are applied", async || fixture.ledger.applied().len() == 500).await;
    consuming.stop(Duration::from_secs(10)).await.unwrap();
    assert_eq!(dropped(&first).await, 0);

    publish(&fixture, 501..=6_500).await;
    let second = fixture.open(config()).await;
    let _consuming = second.start(fixture.apply(|_| None), working_store());
    all_accounted_for(&fixture, &second, 6_500).await;
    assert_eq!(dropped(&second).await, 4_000);
}

/// Some of them are queued and applied, some were deferred, and some were never delivered.
#[tokio::test]
async fn events_dropped_by_a_full_stream_with_a_slow_reader_are_counted() {
    let fixture = Fixture::new().await;
    stream(&fixture, |config| (config.max_messages, config.discard) = (1_500, DiscardPolicy::Old)).await;
    let consumer = fixture.open(config()).await;
    let open = Arc::new(AtomicBool::new(false));
    let (gate, ledger) = (Arc::clone(&open), Arc::clone(&fixture.ledger));
    let _consuming = consumer.start(
        move |events: Vec<Delivered>| {
            let (gate, ledger) = (Arc::clone(&gate), Arc::clone(&ledger));
            async move {
                while !gate.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                ledger.apply(&events, |_| None)
            }
        },
        working_store(),
    );
    publish_large(&fixture, 1..=1_400).await;
    until("all were delivered", async || consumer.lag().await.is_ok_and(|lag| lag.pending == 0)).await;
    publish_large(&fixture, 1_401..=4_000).await;
    open.store(true, Ordering::Relaxed);
    all_accounted_for(&fixture, &consumer, 4_000).await;
    assert!(dropped(&consumer).await > 300, "{}", dropped(&consumer).await);
}

#[tokio::test]
async fn expired_events_are_counted_though_none_follows() {
    let fixture = Fixture::new().await;
    stream(&fixture, |config| config.max_age = Duration::from_secs(2)).await;
    let first = fixture.open(config()).await;
    publish(&fixture, 1..=300).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let consumer = fixture.open(config()).await;
    let _consuming = consumer.start(fixture.apply(|_| None), working_store());
    until("all are counted", async || dropped(&consumer).await == 300).await;
    drop(first);
}

#[tokio::test]
async fn purged_and_deleted_events_are_counted_unless_they_were_applied() {
    let fixture = Fixture::new().await;
    let stream = stream(&fixture, |_| ()).await;
    let consumer = fixture.open(config()).await;
    publish(&fixture, 1..=20).await;
    stream.delete_message(3).await.unwrap();
    stream.delete_message(7).await.unwrap();
    let consuming = consumer.start(fixture.apply(|_| None), working_store());
    all_accounted_for(&fixture, &consumer, 20).await;
    assert_eq!(dropped(&consumer).await, 2);

    stream.delete_message(12).await.unwrap();
    stream.purge().await.unwrap();
    consuming.stop(Duration::from_secs(10)).await.unwrap();
    let consumer = fixture.open(config()).await;
    publish(&fixture, 21..=50).await;
    stream.purge().await.unwrap();
    let _consuming = consumer.start(fixture.apply(|_| None), working_store());
    until("the purge is counted", async || dropped(&consumer).await == 30).await;
    publish(&fixture, 51..=60).await;
    until("the rest is applied", async || fixture.ledger.applied().len() == 28).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(dropped(&consumer).await, 30, "each once");
}

#[tokio::test]
async fn two_readers_with_failures_deferrals_and_restarts_count_no_loss_and_then_the_same_one() {
    let fixture = Fixture::new().await;
    let stream = stream(&fixture, |config| config.max_bytes = 100 << 20).await;
    let config = || ConsumerConfig { ack_wait: Duration::from_secs(2), ..config() };
    let fails = |delivered: &Delivered| {
        let fails = delivered.sequence.is_multiple_of(50) && delivered.deliveries == 1;
        fails.then(|| ApplyError::Failed("a failure that passes".into()))
    };
    let mut consumers = [fixture.open(config()).await, fixture.open(config()).await];
    let mut consuming =
        consumers.each_ref().map(|consumer| Some(consumer.start(fixture.apply(fails), working_store())));
    for round in 0..6_u128 {
        publish_large(&fixture, round * 500 + 1..=round * 500 + 500).await;
        let which = usize::from(round % 2 == 0);
        consuming[which].take().unwrap().stop(Duration::from_secs(10)).await.unwrap();
        assert_eq!(dropped(&consumers[which]).await, 0);
        consumers[which] = fixture.open(config()).await;
        consuming[which] = Some(consumers[which].start(fixture.apply(fails), working_store()));
    }
    until("all are applied", async || fixture.ledger.applied().len() == 3_000).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(join_all(consumers.iter().map(dropped)).await, [0, 0]);

    join_all(consuming.map(|handle| handle.unwrap().stop(Duration::from_secs(10)))).await;
    publish(&fixture, 3_001..=3_400).await;
    let narrower = Config { max_messages: 100, ..stream.cached_info().config.clone() };
    jetstream::new(fixture.broker.raw().await).update_stream(narrower).await.unwrap();
    let consumers = [fixture.open(config()).await, fixture.open(config()).await];
    let _consuming =
        consumers.each_ref().map(|consumer| consumer.start(fixture.apply(|_| None), working_store()));
    until("the rest is applied", async || fixture.ledger.applied().len() == 3_100).await;
    until("it is counted", async || join_all(consumers.iter().map(dropped)).await == [300, 300]).await;
}
