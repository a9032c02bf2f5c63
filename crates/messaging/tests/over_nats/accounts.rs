//! What infra/nats keeps its users from doing. What they may do is seen to work when the runbooks are run.

use std::sync::{Arc, Mutex};

use async_nats::connection::State;
use muster_messaging::connection::NatsConfig;
use xtask::services::{Authority, Nats, NatsOptions, RunDirectory, nats_config};

use crate::broker::{material, until};

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

    /// A client whose certificate bears this name.
    async fn client(&self, name: &str) -> Result<(async_nats::Client, Told), async_nats::ConnectError> {
        let identity = self.authority.client(name).unwrap();
        let config = nats_config(&[self.nats.url()], &self.authority, &identity, name).unwrap();
        raw(&self.nats.url(), &config).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operating_user_is_refused_what_its_runbooks_do_not_need() {
    let shipped = Shipped::start();
    let everybody = ["dead.events", "muster.replicas.clear", "$SYS.REQ.SERVER.PING", "_INBOX.others.1"];
    let streams = [
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.MSG.GET.EVENTS",
        "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "$JS.API.STREAM.CREATE.OTHERS",
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
    for (name, denied) in [
        ("muster-streams", &streams[..]),
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
