//! Existing streams whose settings are not as they should be.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use async_nats::jetstream::{self, consumer};
use muster_messaging::events::consumer::{Consumer, ConsumerConfig, ConsumerError, Unfit};
use muster_messaging::events::fitness::{Place, Verdict};
use muster_messaging::events::stream::inspect;

use crate::broker::until;
use crate::events::Fixture;

const REMEMBER: Duration = Duration::from_hours(30 * 24);

fn events(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config {
        name: "EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        discard: DiscardPolicy::New,
        ..Config::default()
    };
    change(&mut config);
    config
}

#[tokio::test]
async fn a_stream_that_can_lose_events_is_refused_until_its_setting_is_corrected() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    context.create_stream(events(|config| config.max_messages_per_subject = 1)).await.unwrap();
    let refused = Consumer::open(&fixture.connection, ConsumerConfig::default()).await.unwrap_err();
    assert!(matches!(&refused, ConsumerError::Unfit(findings) if findings.len() == 1), "{refused:?}");
    let said = refused.to_string();
    assert!(said.contains("the stream EVENTS: max_msgs_per_subject=1"), "{said}");
    assert!(said.contains("nats stream edit EVENTS --max-msgs-per-subject=-1"), "{said}");
    let config = ConsumerConfig { unfit: Unfit::Warn, ..ConsumerConfig::default() };
    Consumer::open(&fixture.connection, config).await.unwrap();

    context.update_stream(events(|config| config.max_messages_per_subject = -1)).await.unwrap();
    Consumer::open(&fixture.connection, ConsumerConfig::default()).await.unwrap();
}

#[tokio::test]
async fn existing_streams_and_consumers_are_judged_and_missing_ones_are_not() {
    let fixture = Fixture::new().await;
    assert_eq!(inspect(&fixture.connection, "muster-worker", REMEMBER).await.unwrap(), []);
    let context = jetstream::new(fixture.broker.raw().await);
    let stream = context.create_stream(events(|config| config.max_messages = 5)).await.unwrap();
    let new = consumer::pull::Config {
        durable_name: Some("muster-worker".to_owned()),
        deliver_policy: consumer::DeliverPolicy::New,
        ..consumer::pull::Config::default()
    };
    stream.create_consumer(new).await.unwrap();
    let dead = Config {
        name: "DEAD_LETTERS".to_owned(),
        subjects: vec!["dead.events".to_owned()],
        max_messages: 10,
        ..Config::default()
    };
    context.create_stream(dead).await.unwrap();
    let findings = inspect(&fixture.connection, "muster-worker", REMEMBER).await.unwrap();
    let unfit: Vec<(Place, &str)> =
        findings.iter().filter(|it| it.is_unfit()).map(|it| (it.place, it.setting)).collect();
    assert_eq!(
        unfit,
        [
            (Place::Consumer, "deliver_policy"),
            (Place::DeadLetters, "discard"),
            (Place::DeadLetters, "max_msgs")
        ]
    );
    let fine = findings.iter().filter(|it| it.verdict == Verdict::Fine && it.place == Place::Events);
    assert!(fine.count() >= 6, "{findings:?}");
    let refused =
        Consumer::open(&fixture.connection, ConsumerConfig::default()).await.unwrap_err().to_string();
    assert!(refused.contains("nats consumer rm EVENTS muster-worker"), "{refused}");
    assert!(refused.contains("nats stream edit DEAD_LETTERS --discard=new"), "{refused}");
}

#[tokio::test]
async fn a_stream_of_another_name_that_takes_the_events_is_named() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    let other = |name: &str, subject: &str| Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..Config::default()
    };
    for (subject, place) in [("events.member.>", Place::Events), ("dead.*", Place::DeadLetters)] {
        context.create_stream(other("OLD", subject)).await.unwrap();
        let findings = inspect(&fixture.connection, "muster-worker", REMEMBER).await.unwrap();
        let told: Vec<_> = findings.iter().map(|it| (it.place, it.value.as_str(), it.is_unfit())).collect();
        assert_eq!(told, [(place, "OLD", true)]);
        // Whatever is asked for: there is nothing to go on with.
        for unfit in [Unfit::Refuse, Unfit::Warn] {
            let config = ConsumerConfig { unfit, ..ConsumerConfig::default() };
            let refused = Consumer::open(&fixture.connection, config).await.unwrap_err();
            assert!(matches!(&refused, ConsumerError::Unfit(findings) if findings.len() == 1), "{refused:?}");
            let said = refused.to_string();
            assert!(
                said.contains("stream=OLD: it takes ") && said.contains("nats stream edit OLD"),
                "{said}"
            );
        }
        for made in ["OLD", "EVENTS"] {
            let _ = context.delete_stream(made).await;
        }
    }
    Consumer::open(&fixture.connection, ConsumerConfig::default()).await.unwrap();
}

#[tokio::test]
async fn a_consumer_tells_whether_an_event_may_come_again_whose_id_is_forgotten() {
    let fixture = Fixture::new().await;
    let context = jetstream::new(fixture.broker.raw().await);
    let open = async || Consumer::open(&fixture.connection, ConsumerConfig::default()).await.unwrap();
    assert!(!open().await.may_repeat_forgotten(), "of a stream as it is made");
    for (days, may_repeat) in [(30, false), (31, true), (0, true)] {
        context.delete_stream("EVENTS").await.unwrap();
        let kept = events(|config| config.max_age = Duration::from_hours(24 * days));
        context.create_stream(kept).await.unwrap();
        assert_eq!(open().await.may_repeat_forgotten(), may_repeat, "{days} days");
    }
    // Of one that is being read from, too.
    let reading = open()
        .await
        .start(|_| std::future::ready(Ok(())), std::sync::Arc::new(|_| Box::pin(std::future::ready(Ok(())))));
    assert!(reading.may_repeat_forgotten());
    let kept = events(|config| config.max_age = Duration::from_hours(24 * 7));
    context.update_stream(kept).await.unwrap();
    until("the change to be seen", async || !reading.may_repeat_forgotten()).await;
}
