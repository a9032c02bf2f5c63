//! A dead letter is dropped only after the broker has stored its event again.

use async_nats::HeaderMap;
use async_nats::jetstream::{self, Context};
use muster_domain::PageLimit;
use muster_messaging::events::dead_letter::{
    DeadLetterError, DeadLetters, SEQUENCE, SUBJECT, TRUNCATED_FROM,
};
use muster_messaging::request::TRACEPARENT;

use crate::broker::Broker;

const PAYLOAD: &[u8] = b"{\"event_type\":\"member.leave\"}\xff";

async fn stream(context: &Context, name: &str, subject: &str) -> jetstream::stream::Stream {
    let config = jetstream::stream::Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        ..Default::default()
    };
    context.create_stream(config).await.unwrap()
}

async fn publish_dead_letter(context: &Context, headers: &[(&'static str, &str)]) -> u64 {
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.insert(*name, *value);
    }
    let sent = context.publish_with_headers("dead.events", all, PAYLOAD.into()).await.unwrap();
    sent.await.unwrap().sequence
}

#[tokio::test]
async fn a_replayed_dead_letter_stays_until_its_event_is_stored() {
    let broker = Broker::plain();
    let context = jetstream::new(broker.raw().await);
    let connection = broker.connect().await;
    assert!(matches!(DeadLetters::open(&connection).await, Err(DeadLetterError::Unreachable(_))));
    stream(&context, "DEAD_LETTERS", "dead.events").await;
    let letters = DeadLetters::open(&connection).await.unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let whole =
        publish_dead_letter(&context, &[(SUBJECT, "events.member.leave"), (TRACEPARENT, trace)]).await;
    let truncated =
        publish_dead_letter(&context, &[(SUBJECT, "events.member.leave"), (TRUNCATED_FROM, "9000000")]).await;
    let strange = publish_dead_letter(&context, &[(SUBJECT, "muster.v1.communities.find")]).await;

    // No stream stores the event, then another one than that of events does.
    assert!(matches!(letters.replay(whole).await, Err(DeadLetterError::NotPublished { .. })));
    stream(&context, "OTHER", "events.>").await;
    assert!(matches!(letters.replay(whole).await, Err(DeadLetterError::NotPublished { .. })));
    context.delete_stream("OTHER").await.unwrap();
    assert_eq!(letters.kept().await.unwrap().count, 3);

    let events = stream(&context, "EVENTS", "events.>").await;
    let sequence = letters.replay(whole).await.unwrap();
    let event = events.get_raw_message(sequence).await.unwrap();
    assert_eq!((event.subject.as_str(), event.payload.as_ref()), ("events.member.leave", PAYLOAD));
    assert_eq!(event.headers.get(TRACEPARENT).map(|value| value.as_str()), Some(trace));
    assert!(matches!(letters.replay(whole).await, Err(DeadLetterError::NotFound(_))));
    assert!(matches!(
        letters.replay(truncated).await,
        Err(DeadLetterError::Truncated { whole: 9_000_000, .. })
    ));
    assert!(matches!(letters.replay(strange).await, Err(DeadLetterError::NotAnEvent(_))));
    let (kept, next) = letters.list(0, PageLimit::clamp(1)).await.unwrap();
    assert_eq!((kept[0].sequence, kept[0].truncated_from, next), (truncated, Some(9_000_000), Some(strange)));
    letters.drop(truncated).await.unwrap();
    assert!(matches!(letters.drop(truncated).await, Err(DeadLetterError::NotFound(_))));
    assert_eq!(letters.kept().await.unwrap().count, 1);
}

#[tokio::test]
async fn a_cut_dead_letter_is_replayed_from_the_stream_of_events() {
    let broker = Broker::plain();
    let context = jetstream::new(broker.raw().await);
    let connection = broker.connect().await;
    stream(&context, "DEAD_LETTERS", "dead.events").await;
    let events = stream(&context, "EVENTS", "events.>").await;
    let letters = DeadLetters::open(&connection).await.unwrap();
    // As large as the broker takes: there is no room for a header beside it.
    let whole = [PAYLOAD, &vec![b' '; 1_048_576 - PAYLOAD.len()]].concat();
    let other = [b"x", PAYLOAD].concat();
    let mut truncated = Vec::new();
    for payload in [&whole, &other, &whole] {
        let sent = context.publish("events.member.leave", payload.clone().into()).await.unwrap();
        let sequence = sent.await.unwrap().sequence.to_string();
        let size = payload.len().to_string();
        let headers = [(SUBJECT, "events.member.leave"), (SEQUENCE, &sequence), (TRUNCATED_FROM, &size)];
        truncated.push(publish_dead_letter(&context, &headers).await);
    }
    events.delete_message(3).await.unwrap();

    let sequence = letters.replay(truncated[0]).await.unwrap();
    assert_eq!(events.get_raw_message(sequence).await.unwrap().payload, whole);
    let refused = letters.replay(truncated[1]).await.unwrap_err();
    assert!(
        matches!(refused, DeadLetterError::Truncated { .. }),
        "another event of that sequence: {refused}"
    );
    let refused = letters.replay(truncated[2]).await.unwrap_err().to_string();
    assert!(refused.contains("holds the first 30 of 1048576 bytes"), "{refused}");
    assert_eq!(letters.kept().await.unwrap().count, 2);
}
