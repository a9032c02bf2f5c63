//! The shipped server configuration, started as the three nodes that it is for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_domain::{
    Activity, CommunityId, Effect, Event, EventId, EventTime, GuildId, MaxClockSkew, MemberEffect, PageLimit,
    ProfileId, TimeBounds, UserId, Version,
};
use muster_messaging::api::{Endpoint, ErrorCode, Question, ServiceError, admin, community};
use muster_messaging::changes::publisher::{ChangePublisher, ChangesBounds};
use muster_messaging::client::{Client, ClientError, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig};
use muster_messaging::events::consumer::{Consumer, ConsumerConfig, Delivered};
use muster_messaging::events::dead_letter::DeadLetters;
use muster_messaging::events::stream::StreamBounds;
use muster_messaging::replicas::{clear_everywhere, listen};
use muster_messaging::service::{Service, ServiceConfig, serve};
use muster_messaging::tls::material::TlsFiles;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use uuid::Uuid;
use xtask::services::{Authority, Nats, NatsOptions, RunDirectory, nats_config};

use crate::accounts::{READERS, READERS_CHANGES, Told, assert_refused, make_follower, raw};
use crate::broker::{until, version};
use crate::changes::{BUDGET, changes, follow};

/// The oldest server that the configuration is for.
const FLOOR: Version = Version([2, 12, 6]);

struct Cluster {
    nodes: Vec<Nats>,
    authority: Authority,
    _directory: RunDirectory,
}

impl Cluster {
    fn start() -> Self {
        let directory = RunDirectory::create().unwrap();
        let authority = Authority::create(directory.path(), "ca").unwrap();
        let nodes = Nats::start_nodes(&directory, NatsOptions::nodes(&authority, 3).unwrap()).unwrap();
        Self { nodes, authority, _directory: directory }
    }

    fn url(&self) -> String {
        self.nodes[0].url()
    }

    /// The configuration of a client whose certificate bears this name.
    fn config(&self, name: &str) -> NatsConfig {
        let urls: Vec<String> = self.nodes.iter().map(Nats::url).collect();
        nats_config(&urls, &self.authority, &self.authority.client(name).unwrap(), name).unwrap()
    }

    async fn raw(&self, name: &str) -> (async_nats::Client, Told) {
        raw(&self.url(), &self.config(name)).await.unwrap()
    }

    async fn connect(&self, name: &str) -> Connection {
        let opened = Mutex::new(None);
        until(name, async || match Connection::open(self.config(name)).await {
            Ok(connection) => opened.lock().unwrap().replace(connection).is_none(),
            Err(_) => false,
        })
        .await;
        opened.into_inner().unwrap().unwrap()
    }
}

/// A client's configuration in one version of TLS, with a certificate where the files have one.
fn speaking(version: &'static SupportedProtocolVersion, files: &TlsFiles) -> ClientConfig {
    let certificates = |path: &Option<PathBuf>| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path.as_ref().unwrap()).unwrap().map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&files.ca));
    let config =
        ClientConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
    let Some(key) = &files.key else { return config.with_no_client_auth() };
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    config.with_client_auth_cert(certificates(&files.certificate), key).unwrap()
}

/// Whether a node takes who comes as a route for one.
async fn welcomes_route(node: &Nats, config: ClientConfig) -> bool {
    let (port, _) = node.options.cluster.as_ref().unwrap();
    let stream = TcpStream::connect(("127.0.0.1", *port)).await.unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream);
    let Ok(mut stream) = connected.await else { return false };
    // The server looks at the names of a certificate that it verified when the other says who it is.
    let hello = "CONNECT {\"cluster\":\"muster\",\"name\":\"stranger\"}\r\nPING\r\n";
    if stream.write_all(hello.as_bytes()).await.is_err() {
        return false;
    }
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.split(' ').next() {
            Some("PONG") => return true,
            Some("-ERR") => return false,
            _ => {}
        }
    }
    false
}

fn event(n: u128) -> Event {
    let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
    Event {
        id: EventId::new(Uuid::from_u128(n)),
        at: EventTime::parse(1_700_000_000_000_i64, times).unwrap(),
        guild: GuildId::parse("42").unwrap(),
        effect: Effect::Member {
            user: UserId::parse("7").unwrap(),
            effect: MemberEffect::ActivityAdd { amount: Activity::clamp(1_i64) },
        },
        traceparent: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_cluster_confines_its_clients_and_outlives_a_node() {
    if version() < FLOOR {
        println!("SKIPPED: infra/nats needs nats-server 2.12.6; set MUSTER_NATS_SERVER to one");
        return;
    }
    let mut cluster = Cluster::start();
    let worker = cluster.connect("muster-worker").await;
    let consumer = open_consumer(&worker).await;
    let applied: Arc<Mutex<BTreeSet<u128>>> = Arc::default();
    let keep = Arc::clone(&applied);
    let _reading = consumer.start(
        move |events: Vec<Delivered>| {
            keep.lock().unwrap().extend(events.iter().map(|delivered| delivered.event.id.get().as_u128()));
            std::future::ready(Ok(()))
        },
        std::sync::Arc::new(|_| Box::pin(std::future::ready(Ok(())))),
    );
    let seen: Arc<Mutex<Vec<Question>>> = Arc::default();
    let _service = answer(&worker, &seen).await;

    let reader = client(cluster.connect("muster-reader").await);
    a_reader_reads_its_own_community_and_nothing_else(&reader, &seen).await;
    an_operator_may_use_admin_subjects(&cluster).await;
    let gateway = cluster.connect("muster-gateway").await;
    the_gateway_publishes_and_reads_nothing(&gateway).await;
    the_repair_user_replays_and_drops_dead_letters_and_asks_nothing(&cluster).await;
    assert!(Connection::open(cluster.config("stranger")).await.is_err(), "a name that nobody knows");
    assert!(applied.lock().unwrap().is_empty());
    a_reader_follows_the_changes_of_its_community(&cluster, &worker, &reader).await;
    the_worker_hears_replicas_sees_its_lag_and_makes_dead_letters(&cluster, &worker, &consumer).await;
    the_worker_may_do_no_more_than_it_needs(&cluster).await;
    only_operators_discover_the_service(&cluster).await;
    the_servers_insist_on_the_handshake_a_certificate_and_tls_1_3(&cluster).await;
    the_routes_insist_on_a_nodes_certificate_and_tls_1_3(&cluster).await;
    reading_and_publishing_outlive_the_node_that_serves_them(&mut cluster, &reader, &gateway, &applied).await;
}

fn own() -> CommunityId {
    CommunityId::new(Uuid::from_u128(READERS))
}

fn other() -> CommunityId {
    CommunityId::new(Uuid::from_u128(7))
}

fn guild() -> GuildId {
    GuildId::parse("1").unwrap()
}

const HIDE: admin::HideProfile = admin::HideProfile { profile_id: ProfileId::new(Uuid::from_u128(1)) };

/// The service's own answer, so the question arrived.
fn arrived(error: ClientError) -> bool {
    error.code() == Some(ErrorCode::NotFound)
}

fn client(connection: Connection) -> Client {
    Client::new(connection).with_timeout(Duration::from_secs(2))
}

async fn open_consumer(worker: &Connection) -> Consumer {
    let bounds = StreamBounds { replicas: 3, ..StreamBounds::default() };
    let consumer = Mutex::new(None);
    until("the streams are made on three nodes", async || {
        let config = ConsumerConfig { bounds, ..ConsumerConfig::default() };
        match Consumer::open(worker, config).await {
            Ok(opened) => consumer.lock().unwrap().replace(opened).is_none(),
            Err(_) => false,
        }
    })
    .await;
    consumer.into_inner().unwrap().unwrap()
}

/// A service that keeps what it is asked.
async fn answer(worker: &Connection, seen: &Arc<Mutex<Vec<Question>>>) -> Service {
    let told = Arc::clone(seen);
    serve(worker, ServiceConfig::default(), move |request| {
        told.lock().unwrap().push(request.question.clone());
        std::future::ready(match request.question {
            Question::Find(ask) => {
                let community_id = CommunityId::new(Uuid::nil());
                Ok(ask.reply(community::Community { community_id, name: None, active: true, changes: 0 }))
            }
            Question::Within(..) => Err(ServiceError::not_found("profile")),
        })
    })
    .await
    .unwrap()
}

async fn a_reader_reads_its_own_community_and_nothing_else(reader: &Client, seen: &Mutex<Vec<Question>>) {
    until("the reader reads its community", async || {
        reader.community(own()).ask(&community::Stats {}).await.is_err_and(arrived)
    })
    .await;
    reader.find_community(guild()).await.unwrap();
    seen.lock().unwrap().clear();
    assert!(
        !reader.community(other()).ask(&community::Stats {}).await.is_err_and(arrived),
        "another's community"
    );
    assert!(!reader.community(own()).ask(&HIDE).await.is_err_and(arrived), "an admin subject");
    assert!(EventPublisher::new(reader.connection()).publish(&event(1)).await.is_err(), "an event");
    assert!(seen.lock().unwrap().is_empty(), "nothing of it arrived");
}

async fn an_operator_may_use_admin_subjects(cluster: &Cluster) {
    let operator = client(cluster.connect("muster-operator").await);
    assert!(operator.community(other()).ask(&HIDE).await.is_err_and(arrived), "operators may");
}

async fn the_gateway_publishes_and_reads_nothing(gateway: &Connection) {
    assert!(client(gateway.clone()).find_community(guild()).await.is_err(), "the gateway reads nothing");
    EventPublisher::new(gateway).publish_raw("events.member.join".to_owned(), b"?".to_vec()).await.unwrap();
}

async fn the_repair_user_replays_and_drops_dead_letters_and_asks_nothing(cluster: &Cluster) {
    let repair = cluster.connect("muster-repair").await;
    let letters = DeadLetters::open(&repair).await.unwrap();
    let kept = async || letters.list(1, PageLimit::MAX).await.unwrap().0;
    until("a dead letter", async || kept().await.len() == 1).await;
    letters.replay(1).await.unwrap();
    until("it is dead again", async || kept().await.iter().any(|letter| letter.sequence == 2)).await;
    letters.drop(2).await.unwrap();
    assert!(kept().await.is_empty());
    assert!(client(repair).find_community(guild()).await.is_err(), "who repairs asks nothing");
}

async fn a_reader_follows_the_changes_of_its_community(
    cluster: &Cluster,
    worker: &Connection,
    reader: &Client,
) {
    let bounds = ChangesBounds { replicas: 3, ..ChangesBounds::default() };
    let publisher = ChangePublisher::open(worker, &bounds).await.unwrap();
    assert_eq!(publisher.publish(&changes(READERS, 1..=3), BUDGET).await.count, 3);
    make_follower(&cluster.raw("muster-streams").await.0, "reader-changes", READERS_CHANGES).await;
    let mut following = reader.community(own()).changes("reader-changes").await.unwrap();
    assert_eq!(follow(&mut following, 3).await, [1, 2, 3]);
}

async fn the_worker_hears_replicas_sees_its_lag_and_makes_dead_letters(
    cluster: &Cluster,
    worker: &Connection,
    consumer: &Consumer,
) {
    let _listening = listen(worker, |_, _| 7).await.unwrap();
    let replica = cluster.connect("muster-worker").await;
    assert_eq!(clear_everywhere(&replica, own(), None).await.unwrap(), 7);
    assert_eq!(consumer.lag().await.unwrap().pending, 0);
    let streams = async_nats::jetstream::new(cluster.raw("muster-worker").await.0);
    let garbage = async_nats::jetstream::new(cluster.raw("muster-gateway").await.0);
    garbage.publish("events.member.join", "{".into()).await.unwrap().await.unwrap();
    until("it is a dead letter", async || {
        streams.get_stream("DEAD_LETTERS").await.is_ok_and(|it| it.cached_info().state.messages == 1)
    })
    .await;
}

async fn the_worker_may_do_no_more_than_it_needs(cluster: &Cluster) {
    let (raw, told) = cluster.raw("muster-worker").await;
    let denied = [
        "events.member.join",
        "muster.v1.communities.find",
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.UPDATE.EVENTS",
        "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "$JS.API.STREAM.MSG.GET.DEAD_LETTERS",
        "$JS.API.STREAM.CREATE.OTHERS",
        "$JS.API.CONSUMER.CREATE.EVENTS.other.events.>",
        "$JS.API.CONSUMER.CREATE.DEAD_LETTERS.muster-worker",
        "$JS.API.CONSUMER.DELETE.EVENTS.muster-worker",
        "$JS.API.STREAM.DELETE.CHANGES",
        "$JS.API.CONSUMER.CREATE.CHANGES.other.changes.>",
        "$SRV.PING",
        "$SYS.REQ.SERVER.PING",
    ];
    assert_refused(&raw, &told, &denied).await;
}

async fn only_operators_discover_the_service(cluster: &Cluster) {
    for (name, found) in [("muster-operator", true), ("muster-reader", false), ("muster-gateway", false)] {
        let (raw, _) = cluster.raw(name).await;
        let asked = tokio::time::timeout(Duration::from_secs(2), raw.request("$SRV.PING.muster", "".into()));
        assert_eq!(asked.await.is_ok_and(|answer| answer.is_ok()), found, "{name}");
    }
}

async fn the_servers_insist_on_the_handshake_a_certificate_and_tls_1_3(cluster: &Cluster) {
    let mut config = cluster.config("muster-reader");
    config.tls_first = false;
    config.connect_timeout = Duration::from_secs(1);
    assert!(Connection::open(config).await.is_err(), "INFO before the handshake");
    let files = cluster.authority.files(&cluster.authority.client("muster-reader").unwrap());
    let anonymous = TlsFiles { ca: files.ca.clone(), ..TlsFiles::default() };
    let config = NatsConfig::production([cluster.url()], &anonymous, "muster-reader").unwrap();
    let config = NatsConfig { tls_first: true, ..config };
    assert!(Connection::open(config).await.is_err(), "no certificate");
    for (version, welcome) in [(&TLS12, false), (&TLS13, true)] {
        let options =
            async_nats::ConnectOptions::new().tls_first().tls_client_config(speaking(version, &files));
        assert_eq!(options.connect(cluster.url()).await.is_ok(), welcome, "{version:?}");
    }
}

async fn the_routes_insist_on_a_nodes_certificate_and_tls_1_3(cluster: &Cluster) {
    let node = &cluster.nodes[0];
    let files = cluster.authority.files(&node.options.tls);
    let clients = cluster.authority.files(&cluster.authority.client("muster-reader").unwrap());
    let anonymous = TlsFiles { ca: files.ca.clone(), ..TlsFiles::default() };
    for (who, version, files, welcome) in [
        ("nobody", &TLS13, &anonymous, false),
        ("a client", &TLS13, &clients, false),
        ("a node", &TLS12, &files, false),
        ("a node", &TLS13, &files, true),
    ] {
        assert_eq!(welcomes_route(node, speaking(version, files)).await, welcome, "{who} {version:?}");
    }
}

async fn reading_and_publishing_outlive_the_node_that_serves_them(
    cluster: &mut Cluster,
    reader: &Client,
    gateway: &Connection,
    applied: &Mutex<BTreeSet<u128>>,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let asking = tokio::spawn({
        let (stop, answered, reader) = (Arc::clone(&stop), Arc::clone(&answered), reader.clone());
        async move {
            let reader = reader.with_timeout(Duration::from_secs(10));
            while !stop.load(Ordering::SeqCst) {
                reader.find_community(guild()).await?;
                answered.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<(), ClientError>(())
        }
    });
    let publishing = tokio::spawn({
        let (stop, publisher) = (Arc::clone(&stop), EventPublisher::new(gateway));
        async move {
            let mut published = 0_u128;
            while !stop.load(Ordering::SeqCst) {
                // Repeated with the same id until it is acknowledged, as a gateway does.
                while publisher.publish(&event(1000 + published)).await.is_err() {}
                published += 1;
            }
            published
        }
    });
    let answers = || answered.load(Ordering::SeqCst);
    until("answers come", async || answers() > 50).await;
    let (_, name) = reader.connection().server();
    let node: usize = name.rsplit('-').next().unwrap().parse().unwrap();
    cluster.nodes[node].kill().unwrap();
    let before = answers();
    until("answers come again", async || {
        answers() > before + 100 && reader.connection().counts().reconnects > 0
    })
    .await;
    stop.store(true, Ordering::SeqCst);
    asking.await.unwrap().unwrap();
    let published = publishing.await.unwrap();
    let wanted: BTreeSet<u128> = (0..published).map(|n| 1000 + n).collect();
    // A pull that the killed node had taken is given up only when its time is over.
    let all = async {
        while *applied.lock().unwrap() != wanted {
            tokio::time::sleep(Duration::from_millis(50)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(90), all).await.unwrap();
}
