//! The shipped server configuration, started as the three nodes that it is for.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_domain::{
    Activity, CommunityId, Effect, Event, EventId, EventTime, GuildId, MemberEffect, ProfileId, TlsPolicy,
    TlsReason, UserId,
};
use muster_messaging::client::{Client, ClientError, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig, Transport};
use muster_messaging::events::consumer::{Consumer, ConsumerConfig, Delivered};
use muster_messaging::events::stream::StreamBounds;
use muster_messaging::service::{ServiceConfig, serve};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_messaging::tls::server::Servers;
use muster_messaging::wire::answer::Answer;
use muster_messaging::wire::error::{ErrorCode, ServiceError};
use muster_messaging::wire::query::Question;
use tempfile::TempDir;
use uuid::Uuid;

use crate::broker::{Authority, binary, until, version};

/// The oldest server that the configuration is for.
const FLOOR: [u32; 3] = [2, 12, 6];
/// The community that the configuration's reader may read.
const READERS: &str = "018f4e2a-0000-7000-8000-000000000001";

struct Cluster {
    nodes: Vec<Child>,
    directory: TempDir,
    authority: Authority,
    urls: Vec<String>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// As many free ports as are asked for, told apart by being held at once.
fn free_ports(number: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..number).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let server = authority.sign(directory.path(), "server", "127.0.0.1");
        let ports = free_ports(6);
        let (clients, routes) = ports.split_at(3);
        let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/nats/nats.conf");
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let file = |path: &Option<PathBuf>| quoted(path.as_ref().unwrap());
        let all: Vec<String> = routes.iter().map(|port| format!("\"tls://127.0.0.1:{port}\"")).collect();
        let nodes = (0..3)
            .map(|n| {
                let log = std::fs::File::create(directory.path().join(format!("{n}.log"))).unwrap();
                Command::new(binary())
                    .arg("-c")
                    .arg(&configuration)
                    .env("NATS_SERVER_NAME", format!("muster-nats-{n}"))
                    .env("NATS_LISTEN", format!("\"127.0.0.1:{}\"", clients[n]))
                    .env("NATS_CLUSTER_LISTEN", format!("\"127.0.0.1:{}\"", routes[n]))
                    .env("NATS_ROUTES", format!("[{}]", all.join(", ")))
                    .env("NATS_STORE", quoted(&directory.path().join(format!("store-{n}"))))
                    .env("NATS_TLS_CERTIFICATE", file(&server.certificate))
                    .env("NATS_TLS_KEY", file(&server.key))
                    .env("NATS_TLS_CA", file(&server.ca))
                    .stdout(Stdio::null())
                    .stderr(log)
                    .spawn()
                    .unwrap()
            })
            .collect();
        let urls = clients.iter().map(|port| format!("tls://127.0.0.1:{port}")).collect();
        Self { nodes, directory, authority, urls }
    }

    /// The configuration of a client whose certificate bears this name.
    fn config(&self, name: &str) -> NatsConfig {
        let directory = self.directory.path().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let files: TlsFiles = self.authority.sign(&directory, "client", name);
        let policy = TlsPolicy::Required(TlsReason::Production);
        let Servers::Tls(servers) = Servers::parse(&self.urls, policy).unwrap() else { panic!("not TLS") };
        let material = Arc::new(Material::load(&files, MinimumVersion::Tls13).unwrap());
        let mut config = NatsConfig::new(Transport::Tls { servers, material }, name);
        config.tls_first = true;
        config
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

fn event(n: u128) -> Event {
    Event {
        id: EventId::new(Uuid::from_u128(n)),
        at: EventTime::from_millis(1_700_000_000_000).unwrap(),
        guild: GuildId::parse("42").unwrap(),
        effect: Effect::Member {
            user: UserId::parse("7").unwrap(),
            effect: MemberEffect::ActivityAdd { amount: Activity::clamp(1_i64) },
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_cluster_confines_its_clients_and_outlives_a_node() {
    if version() < FLOOR.to_vec() {
        println!("SKIPPED: infra/nats needs nats-server 2.12.6; set MUSTER_TEST_NATS_SERVER to one");
        return;
    }
    let mut cluster = Cluster::start();
    let worker = cluster.connect("muster-worker").await;
    let bounds = StreamBounds { replicas: 3, ..StreamBounds::default() };
    let consumer = Mutex::new(None);
    until("the streams are made on three nodes", async || {
        let config = ConsumerConfig { bounds, ..ConsumerConfig::default() };
        match Consumer::open(&worker, config).await {
            Ok(opened) => consumer.lock().unwrap().replace(opened).is_none(),
            Err(_) => false,
        }
    })
    .await;
    let consumer = consumer.into_inner().unwrap().unwrap();
    let applied: Arc<Mutex<BTreeSet<u128>>> = Arc::default();
    let keep = Arc::clone(&applied);
    let _reading = consumer.start(move |events: Vec<Delivered>| {
        keep.lock().unwrap().extend(events.iter().map(|delivered| delivered.event.id.get().as_u128()));
        std::future::ready(Ok(()))
    });
    let seen: Arc<Mutex<Vec<Question>>> = Arc::default();
    let told = Arc::clone(&seen);
    let _service = serve(&worker, ServiceConfig::default(), move |request| {
        told.lock().unwrap().push(request.question.clone());
        std::future::ready(match request.question {
            Question::Find(_) => {
                let community = CommunityId::new(Uuid::nil());
                Ok(Answer::Community { community, name: None, active: true })
            }
            Question::Within(..) => Err(ServiceError::not_found("profile")),
        })
    })
    .await
    .unwrap();

    let own = CommunityId::new(READERS.parse().unwrap());
    let other = CommunityId::new(Uuid::from_u128(7));
    let somebody = ProfileId::new(Uuid::from_u128(1));
    let arrived = |error: ClientError| error.code() == Some(ErrorCode::NotFound);
    let client = |connection: Connection| Client::new(connection).with_timeout(Duration::from_secs(2));

    let reader = client(cluster.connect("muster-reader").await);
    until("the reader reads its community", async || reader.community(own).stats().await.is_err_and(arrived))
        .await;
    let guild = || GuildId::parse("1").unwrap();
    reader.find_community(guild()).await.unwrap();
    seen.lock().unwrap().clear();
    assert!(!reader.community(other).stats().await.is_err_and(arrived), "another's community");
    assert!(!reader.community(own).profiles_hide(somebody).await.is_err_and(arrived), "an admin subject");
    assert!(EventPublisher::new(reader.connection()).publish(&event(1)).await.is_err(), "an event");
    assert!(seen.lock().unwrap().is_empty(), "nothing of it arrived");

    let operator = client(cluster.connect("muster-operator").await);
    assert!(operator.community(other).profiles_hide(somebody).await.is_err_and(arrived), "operators may");
    let gateway = cluster.connect("muster-gateway").await;
    assert!(client(gateway.clone()).find_community(guild()).await.is_err(), "the gateway reads nothing");
    assert!(Connection::open(cluster.config("stranger")).await.is_err(), "a name that nobody knows");
    assert!(applied.lock().unwrap().is_empty());

    // Under load, the node that the reader is connected to is killed.
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let asking = tokio::spawn({
        let (stop, answered, reader) = (Arc::clone(&stop), Arc::clone(&answered), reader.clone());
        async move {
            let reader = reader.with_timeout(Duration::from_secs(10));
            while !stop.load(Ordering::SeqCst) {
                reader.find_community(GuildId::parse("1").unwrap()).await?;
                answered.fetch_add(1, Ordering::SeqCst);
            }
            Ok::<(), ClientError>(())
        }
    });
    let publishing = tokio::spawn({
        let (stop, publisher) = (Arc::clone(&stop), EventPublisher::new(&gateway));
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
