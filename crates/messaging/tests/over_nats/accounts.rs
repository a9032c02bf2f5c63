//! What infra/nats keeps its users from doing. What they may do is seen to work when the runbooks are run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::connection::State;
use muster_messaging::changes::publisher::{ChangePublisher, ChangesBounds};
use muster_messaging::client::Client;
use muster_messaging::connection::{Connection, NatsConfig};
use serde_json::{Value, json};
use tokio::time::timeout;
use xtask::services::{Authority, Nats, NatsOptions, RunDirectory, nats_config};

use crate::broker::{material, until};
use crate::changes::{BUDGET, changes, follow};

/// The community that the configuration's reader may read, and its subjects.
pub(crate) const READERS: u128 = 0x018f_4e2a_0000_7000_8000_0000_0000_0001;
pub(crate) const READERS_CHANGES: &str = "changes.v1.018f4e2a-0000-7000-8000-000000000001.>";

/// What the server tells a client, such as that something is not permitted.
pub(crate) type Told = Arc<Mutex<Vec<String>>>;

/// The library's own client, configured as Muster's would be.
pub(crate) async fn raw(
    url: &str,
    config: &NatsConfig,
) -> Result<(async_nats::Client, Told), async_nats::ConnectError> {
    let told = Told::default();
    let keep = Arc::clone(&told);
    let options = async_nats::ConnectOptions::new()
        .tls_first()
        .max_reconnects(2)
        .tls_client_config(material(config).client_config().as_ref().clone())
        .event_callback(move |event| {
            keep.lock().unwrap().push(event.to_string());
            std::future::ready(())
        });
    Ok((options.connect(url).await?, told))
}

/// The server refuses each of these subjects to whoever publishes on it.
pub(crate) async fn assert_refused(raw: &async_nats::Client, told: &Told, subjects: &[&'static str]) {
    for &subject in subjects {
        raw.publish(subject, "{}".into()).await.unwrap();
        raw.flush().await.unwrap();
        let refusal = format!("Permissions Violation for Publish to \"{subject}\"").to_lowercase();
        until(subject, async || told.lock().unwrap().iter().any(|it| it.to_lowercase().contains(&refusal)))
            .await;
    }
}

/// One node as it is shipped.
struct Shipped {
    nats: Nats,
    authority: Authority,
    _directory: RunDirectory,
}

impl Shipped {
    fn start() -> Self {
        let directory = RunDirectory::create().unwrap();
        let authority = Authority::create(directory.path(), "ca").unwrap();
        let nats =
            Nats::start_nodes(&directory, NatsOptions::nodes(&authority, 1).unwrap()).unwrap().remove(0);
        Self { nats, authority, _directory: directory }
    }

    /// The configuration of a client whose certificate bears this name.
    fn config(&self, name: &str) -> NatsConfig {
        let identity = self.authority.client(name).unwrap();
        nats_config(&[self.nats.url()], &self.authority, &identity, name).unwrap()
    }

    async fn client(&self, name: &str) -> Result<(async_nats::Client, Told), async_nats::ConnectError> {
        raw(&self.nats.url(), &self.config(name)).await
    }

    async fn connect(&self, name: &str) -> Connection {
        Connection::open(self.config(name)).await.unwrap()
    }
}

/// Has `muster-streams` make a consumer by which the changes of these subjects are followed, and answers what the server says.
pub(crate) async fn make_follower(streams: &async_nats::Client, name: &str, subjects: &str) -> Value {
    let config = json!({
        "durable_name": name, "filter_subject": subjects, "deliver_policy": "all", "ack_policy": "explicit",
        "ack_wait": 2_000_000_000_u64, "max_ack_pending": 1, "replay_policy": "instant",
    });
    let ask = json!({ "stream_name": "CHANGES", "config": config }).to_string();
    let answer =
        streams.request(format!("$JS.API.CONSUMER.CREATE.CHANGES.{name}.{subjects}"), ask.into()).await;
    serde_json::from_slice(&answer.unwrap().payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operating_user_is_refused_what_its_runbooks_do_not_need() {
    let shipped = Shipped::start();
    let everybody = [
        "dead.events",
        "changes.v1.018f4e2a-0000-7000-8000-000000000001.tier.promoted",
        "muster.replicas.clear",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.others.1",
    ];
    let streams = [
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.MSG.GET.EVENTS",
        "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "$JS.API.STREAM.CREATE.OTHERS",
        "$JS.API.STREAM.DELETE.CHANGES",
        "$JS.API.STREAM.PURGE.CHANGES",
        "$JS.API.STREAM.MSG.GET.CHANGES",
        "$JS.API.CONSUMER.CREATE.CHANGES.other.changes.>",
        "$JS.API.CONSUMER.MSG.NEXT.CHANGES.reader-changes",
        "$JS.API.CONSUMER.CREATE.EVENTS.other.events.>",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.muster-worker",
        "$JS.ACK.EVENTS.muster-worker.1.1.1.1.1",
        "events.member.join",
        "muster.v1.communities.find",
        "$SRV.PING",
    ];
    let repair = [
        "$JS.API.STREAM.DELETE.DEAD_LETTERS",
        "$JS.API.STREAM.PURGE.DEAD_LETTERS",
        "$JS.API.STREAM.UPDATE.DEAD_LETTERS",
        "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "$JS.API.CONSUMER.DELETE.EVENTS.muster-worker",
        "muster.v1.communities.find",
    ];
    let operator = ["events.member.join", "$JS.API.STREAM.INFO.EVENTS", "$JS.API.STREAM.INFO.DEAD_LETTERS"];
    let gateway = ["muster.v1.communities.find", "$JS.API.STREAM.INFO.EVENTS", "$SRV.PING"];
    let reader = [
        "$JS.API.CONSUMER.CREATE.CHANGES.reader-changes.changes.v1.018f4e2a-0000-7000-8000-000000000001.>",
        "$JS.API.CONSUMER.CREATE.CHANGES.reader-changes.changes.>",
        "$JS.API.CONSUMER.CREATE.CHANGES.reader-changes",
        "$JS.API.CONSUMER.DURABLE.CREATE.CHANGES.reader-changes",
        "$JS.API.CONSUMER.CREATE.CHANGES",
        "$JS.API.CONSUMER.DELETE.CHANGES.reader-changes",
        "$JS.muster.API.CONSUMER.CREATE.CHANGES.reader-changes.changes.>",
        "$JS.muster.API.CONSUMER.INFO.CHANGES.other-changes",
        "$JS.muster.API.CONSUMER.MSG.NEXT.CHANGES.other-changes",
        "$JS.muster.API.STREAM.MSG.GET.CHANGES",
        "$JS.API.CONSUMER.MSG.NEXT.EVENTS.muster-worker",
        "$JS.ACK.CHANGES.other-changes.1.1.1.1.1",
        "$JS.API.STREAM.INFO.CHANGES",
        "$JS.API.STREAM.MSG.GET.CHANGES",
        "$JS.API.DIRECT.GET.CHANGES",
        "events.member.join",
    ];
    for (name, denied) in [
        ("muster-streams", &streams[..]),
        ("muster-reader", &reader),
        ("muster-repair", &repair),
        ("muster-operator", &operator),
        ("muster-gateway", &gateway),
    ] {
        let (raw, told) = shipped.client(name).await.unwrap();
        assert_refused(&raw, &told, denied).await;
        assert_refused(&raw, &told, &everybody).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_follows_the_changes_of_its_community_and_no_other() {
    let shipped = Shipped::start();
    let worker = shipped.connect("muster-worker").await;
    let publisher = ChangePublisher::open(&worker, &ChangesBounds::default()).await.unwrap();
    let all = [changes(READERS, 1..=2), changes(7, 1..=2), changes(READERS, 3..=4)].concat();
    let published = publisher.publish(&all, BUDGET).await;
    assert_eq!((published.count, published.error.is_none()), (all.len(), true));
    let last = publisher.last_of(all[0].community).await.unwrap();
    assert_eq!(last.map(|(number, _)| number), Some(4));

    let reader = Client::new(shipped.connect("muster-reader").await);
    let own = reader.community(all[0].community);
    let (streams, _) = shipped.client("muster-streams").await.unwrap();
    let made = make_follower(&streams, "reader-changes", READERS_CHANGES).await;
    assert_eq!(made["config"]["filter_subject"], READERS_CHANGES, "{made}");

    let mut following = own.changes("reader-changes").await.unwrap();
    assert_eq!(follow(&mut following, 2).await, [1, 2]);
    // It is killed between receipt and acknowledgement.
    assert_eq!(following.next().await.unwrap().change.number, 3);
    drop(following);
    let (raw, _) = shipped.client("muster-reader").await.unwrap();
    let asked = raw.request("$JS.muster.API.CONSUMER.INFO.CHANGES.reader-changes", "".into()).await.unwrap();
    let info: Value = serde_json::from_slice(&asked.payload).unwrap();
    assert_eq!((&info["num_ack_pending"], &info["ack_floor"]["consumer_seq"]), (&json!(1), &json!(2)));
    let mut again = Client::new(shipped.connect("muster-reader").await)
        .community(all[0].community)
        .changes("reader-changes")
        .await
        .unwrap();
    let told = timeout(Duration::from_secs(60), again.next()).await.unwrap().unwrap();
    assert_eq!((told.change.number, told.deliveries), (3, 2));
    told.ack().await.unwrap();
    assert_eq!(follow(&mut again, 1).await, [4]);
    let another = reader.community(all[2].community);
    let (every, others, unknown) = tokio::join!(
        reader.changes("reader-changes"),
        another.changes("reader-changes"),
        own.changes("other-changes")
    );
    for (refused, why) in [
        (every, "use another name"),
        (others, "use another name"),
        (unknown, "check that the stream and this consumer exist"),
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_certificate_is_disconnected_and_its_successor_is_let_in() {
    let shipped = Shipped::start();
    let (leaked, _) = shipped.client("muster-gateway").await.unwrap();
    let (other, _) = shipped.client("muster-operator").await.unwrap();
    shipped.nats.rename_user("muster-gateway", "muster-gateway-2").unwrap();
    until("it is disconnected", async || leaked.connection_state() == State::Disconnected).await;
    assert!(shipped.client("muster-gateway").await.is_err(), "it does not come back");
    assert!(shipped.client("muster-gateway-2").await.is_ok(), "its successor is let in");
    assert_eq!(other.connection_state(), State::Connected, "who else was there stays");
}
