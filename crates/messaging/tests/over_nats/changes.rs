//! Changes reach a real stream once, in order, and whoever follows them goes on where it stopped.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Config;
use muster_domain::{
    Change, ChangeData, ChangeId, Changed, CommunityId, Disappearance, GuildId, ProfileId, TraceParent,
    UserId,
};
use muster_messaging::changes::follower::{Changes, FollowError};
use muster_messaging::changes::publisher::{ChangePublisher, ChangesBounds};
use muster_messaging::changes::wire;
use muster_messaging::client::{Client, ClientError};
use muster_messaging::connection::{Connection, NatsConfig};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::broker::{Broker, Setup};

fn community(number: u128) -> CommunityId {
    CommunityId::new(Uuid::from_u128(number))
}

/// How long publishing may take.
pub(crate) const BUDGET: Duration = Duration::from_secs(10);

/// Change `number` of a community.
fn change(of: u128, number: u64) -> Change {
    let data = match number % 2 {
        0 => ChangeData::Disappeared(Disappearance::Hidden),
        _ => ChangeData::Appeared { tier: None },
    };
    Change {
        id: ChangeId::new(Uuid::from_u128(of << 64 | u128::from(number))),
        number,
        at: time::macros::datetime!(2026-11-25 12:00 UTC),
        community: community(of),
        guild: GuildId::parse("810").ok(),
        what: Changed::Member {
            profile: ProfileId::new(Uuid::from_u128(7)),
            user: UserId::parse("7").unwrap(),
            data,
        },
        traceparent: (number == 1).then(|| TraceParent::parse("00-ab-cd-01").unwrap()),
    }
}

pub(crate) fn changes(of: u128, numbers: std::ops::RangeInclusive<u64>) -> Vec<Change> {
    numbers.map(|number| change(of, number)).collect()
}

struct Fixture {
    broker: Broker,
    publisher: ChangePublisher,
    client: Client,
}

impl Fixture {
    async fn start() -> Self {
        let broker = Broker::plain();
        let connection = broker.connect().await;
        let publisher = ChangePublisher::open(&connection, &ChangesBounds::default()).await.unwrap();
        Self { broker, publisher, client: Client::new(connection) }
    }

    /// Publishes all of them.
    async fn publish(&self, changes: &[Change]) {
        let published = self.publisher.publish(changes, BUDGET).await;
        assert!(published.error.is_none(), "{published:?}");
        assert_eq!(published.count, changes.len());
    }

    /// The changes that the stream has, in its order.
    async fn stored(&self) -> Vec<Change> {
        let context = jetstream::new(self.broker.raw().await);
        let mut stream = context.get_stream("CHANGES").await.unwrap();
        let messages = stream.info().await.unwrap().state.messages;
        let mut stored = Vec::new();
        for sequence in 1..=messages {
            stored.push(wire::decode(&stream.get_raw_message(sequence).await.unwrap().payload).unwrap());
        }
        stored
    }
}

/// The numbers of the next changes, each acknowledged.
pub(crate) async fn follow(changes: &mut Changes, number: usize) -> Vec<u64> {
    let mut numbers = Vec::new();
    for _ in 0..number {
        let delivered = timeout(Duration::from_secs(20), changes.next()).await.unwrap().unwrap();
        numbers.push(delivered.change.number);
        delivered.ack().await.unwrap();
    }
    numbers
}

#[tokio::test]
async fn changes_are_stored_once_in_order_however_often_they_are_published() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=1)).await;
    fixture.publish(&changes(1, 2..=1500)).await;
    // A batch of which the stream has a part, as after a crash before that was noted.
    fixture.publish(&changes(1, 1400..=1600)).await;
    let mixed = [changes(1, 1601..=1603), changes(2, 1..=3)].concat();
    fixture.publish(&mixed).await;
    fixture.publish(&mixed).await;
    let mut expected = changes(1, 1..=1603);
    expected.extend(changes(2, 1..=3));
    for change in &mut expected {
        change.traceparent = None;
    }
    assert_eq!(fixture.stored().await, expected);
    let last = fixture.publisher.last_of(community(1)).await.unwrap();
    assert_eq!(last, Some((1603, change(1, 1603).id)));
    assert_eq!(fixture.publisher.last_of(community(3)).await.unwrap(), None);
    // What follows what was published last needs no look at the stream.
    assert!(fixture.publisher.communities_to_check(&changes(1, 1604..=1605)).is_empty());
    assert_eq!(fixture.publisher.communities_to_check(&changes(2, 3..=5)), [(community(2), 3)].into());
    assert_eq!(fixture.publisher.communities_to_check(&changes(3, 1..=2)), [(community(3), 1)].into());
}

#[tokio::test]
async fn a_message_says_whose_change_it_is_and_of_which_trace() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=2)).await;
    let context = jetstream::new(fixture.broker.raw().await);
    let first = context.get_stream("CHANGES").await.unwrap().get_raw_message(1).await.unwrap();
    assert_eq!(first.subject.as_str(), "changes.v1.00000000-0000-0000-0000-000000000001.member.appeared");
    assert_eq!(first.headers.get("Nats-Msg-Id").unwrap().as_str(), change(1, 1).id.to_string());
    assert_eq!(first.headers.get("traceparent").unwrap().as_str(), "00-ab-cd-01");
}

#[tokio::test]
async fn a_stream_without_batches_is_published_to_one_by_one() {
    let broker = Broker::plain();
    let context = jetstream::new(broker.raw().await);
    let config =
        Config { name: "CHANGES".to_owned(), subjects: vec!["changes.>".to_owned()], ..Config::default() };
    context.create_stream(config).await.unwrap();
    let connection = broker.connect().await;
    let publisher = ChangePublisher::open(&connection, &ChangesBounds::default()).await.unwrap();
    let fixture = Fixture { broker, publisher, client: Client::new(connection) };
    fixture.publish(&changes(1, 1..=40)).await;
    fixture.publish(&changes(1, 30..=50)).await;
    // Without time for all of them it stops between two, and returns how far it came.
    let published = fixture.publisher.publish(&changes(1, 51..=60), Duration::ZERO).await;
    assert!(published.count < 10 && published.error.is_none(), "{published:?}");
    let numbers: Vec<u64> = fixture.stored().await.iter().map(|change| change.number).collect();
    let last = 50 + u64::try_from(published.count).unwrap();
    assert_eq!(numbers, (1..=last).collect::<Vec<u64>>());
}

#[tokio::test]
async fn changes_that_the_broker_did_not_store_are_not_counted_as_published() {
    let mut fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=3)).await;
    fixture.broker.kill();
    let published = fixture.publisher.publish(&changes(1, 4..=9), BUDGET).await;
    assert_eq!(published.count, 0);
    assert!(published.error.is_some());
    fixture.broker.restart(&Setup { tls: false, ..Setup::default() });
    crate::broker::until("it is published again", async || {
        fixture.publisher.publish(&changes(1, 4..=9), BUDGET).await.count == 6
    })
    .await;
    let numbers: Vec<u64> = fixture.stored().await.iter().map(|change| change.number).collect();
    assert_eq!(numbers, (1..=9).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_follower_goes_on_where_it_stopped_and_sees_again_what_it_did_not_acknowledge() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=4)).await;
    fixture.publish(&changes(2, 1..=2)).await;
    let one = fixture.client.community(community(1));
    let mut following = one.changes("roles").await.unwrap();
    assert_eq!(follow(&mut following, 2).await, [1, 2]);
    let delivered = following.next().await.unwrap();
    assert_eq!((delivered.change.number, delivered.deliveries), (3, 1));
    // Nothing comes before it is acknowledged.
    assert!(timeout(Duration::from_millis(500), following.next()).await.is_err());
    delivered.ack().await.unwrap();
    drop(following);
    fixture.publish(&changes(1, 5..=6)).await;
    let mut following = one.changes("roles").await.unwrap();
    assert_eq!(follow(&mut following, 3).await, [4, 5, 6]);
    let mut all = fixture.client.changes("everything").await.unwrap();
    assert_eq!(follow(&mut all, 8).await, [1, 2, 3, 4, 1, 2, 5, 6]);
    let traced = fixture.client.changes("traced").await.unwrap().next().await.unwrap();
    assert_eq!(traced.change.traceparent.map(String::from).as_deref(), Some("00-ab-cd-01"));
}

#[tokio::test]
async fn a_change_that_is_given_back_comes_again_after_its_time_and_before_others() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=2)).await;
    let mut following = fixture.client.community(community(1)).changes("roles").await.unwrap();
    let delivered = following.next().await.unwrap();
    delivered.in_progress().await.unwrap();
    let given_back = Instant::now();
    delivered.retry_after(Duration::from_secs(1)).await.unwrap();
    let again = timeout(Duration::from_secs(20), following.next()).await.unwrap().unwrap();
    assert_eq!((again.change.number, again.deliveries), (1, 2));
    assert!(given_back.elapsed() >= Duration::from_millis(900), "{:?}", given_back.elapsed());
    again.ack().await.unwrap();
    assert_eq!(follow(&mut following, 1).await, [2]);
}

#[tokio::test]
async fn a_follower_waits_out_a_broker_that_is_away_and_skips_what_it_cannot_read() {
    let mut fixture = Fixture::start().await;
    let one = fixture.client.community(community(1));
    let mut following = one.changes("roles").await.unwrap();
    fixture.broker.kill();
    fixture.broker.restart(&Setup { tls: false, ..Setup::default() });
    crate::broker::until("it is published", async || {
        fixture.publisher.publish(&changes(1, 1..=1), BUDGET).await.count == 1
    })
    .await;
    assert_eq!(follow(&mut following, 1).await, [1]);
    let subject = format!("changes.v1.{}.season.ended", community(1));
    jetstream::new(fixture.broker.raw().await).publish(subject, "{}".into()).await.unwrap().await.unwrap();
    fixture.publish(&changes(1, 2..=2)).await;
    match timeout(Duration::from_secs(20), following.next()).await.unwrap() {
        Err(FollowError::Unreadable(unreadable)) => unreadable.skip().await.unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(follow(&mut following, 1).await, [2]);
}

#[tokio::test]
async fn a_name_that_follows_another_community_is_not_taken_from_it() {
    let fixture = Fixture::start().await;
    fixture.publish(&[changes(1, 1..=2), changes(2, 1..=2)].concat()).await;
    let mut first = fixture.client.community(community(1)).changes("roles").await.unwrap();
    assert_eq!(follow(&mut first, 1).await, [1]);
    let other = fixture.client.community(community(2)).changes("roles").await;
    assert!(matches!(other, Err(FollowError::Taken(..))), "{other:?}");
    assert!(matches!(fixture.client.changes("roles").await, Err(FollowError::Taken(..))));
    assert_eq!(follow(&mut first, 1).await, [2]);
}

#[tokio::test]
async fn a_follower_is_told_when_its_consumer_is_gone_though_it_was_not_waiting() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=1)).await;
    let mut following = fixture.client.community(community(1)).changes("roles").await.unwrap();
    assert_eq!(follow(&mut following, 1).await, [1]);
    let stream = jetstream::new(fixture.broker.raw().await).get_stream("CHANGES").await.unwrap();
    stream.delete_consumer("roles").await.unwrap();
    // The broker says so only to a request that waits at that moment.
    let next = timeout(Duration::from_secs(20), following.next()).await.unwrap();
    assert!(matches!(next, Err(FollowError::Gone(_))), "{next:?}");
}

#[tokio::test]
async fn a_follower_and_who_asks_are_told_when_the_link_is_given_up() {
    let mut fixture = Fixture::start().await;
    let config = NatsConfig { give_up_after: Duration::from_millis(200), ..fixture.broker.plain_config() };
    let client =
        Client::new(Connection::open(config).await.unwrap()).with_timeout(Duration::from_millis(500));
    let one = client.community(community(1));
    let mut following = one.changes("roles").await.unwrap();
    fixture.broker.kill();
    let next = timeout(Duration::from_secs(20), following.next()).await.unwrap();
    assert!(matches!(next, Err(FollowError::Link(_))), "{next:?}");
    let again = one.changes("roles").await;
    assert!(matches!(again, Err(FollowError::Link(_))), "{again:?}");
    let asked = client.find_community(GuildId::parse("1").unwrap()).await;
    assert!(matches!(asked, Err(ClientError::Connection(_))), "{asked:?}");
}

#[tokio::test]
async fn a_publisher_whose_stream_was_deleted_says_so_and_another_creates_it_again() {
    let fixture = Fixture::start().await;
    fixture.publish(&changes(1, 1..=1)).await;
    assert!(!fixture.publisher.is_gone().await);
    jetstream::new(fixture.broker.raw().await).delete_stream("CHANGES").await.unwrap();
    assert!(fixture.publisher.publish(&changes(1, 2..=3), BUDGET).await.error.is_some());
    assert!(fixture.publisher.is_gone().await);
    let connection = fixture.broker.connect().await;
    let another = ChangePublisher::open(&connection, &ChangesBounds::default()).await.unwrap();
    assert_eq!(another.publish(&changes(1, 2..=3), BUDGET).await.count, 2);
}
