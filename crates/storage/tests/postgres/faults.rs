//! A database that is slow, gone, read-only or not who it says it is: a typed refusal in time, and then all is well again.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_domain::{CommunityName, Effect, Environment, Event, GuildEffect, PageLimit, Shard, TlsPolicy};
use muster_storage::{Community, Erasure, Error, Store, StoreConfig};
use secrecy::SecretString;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_postgres::Client;
use uuid::Uuid;
use xtask::services::{Authority, RunDirectory};

use crate::support::database::{Database, ca_file, config, connect, trusting, url};
use crate::support::events::{START, apply, guild, joined, scored, user, view};
use crate::support::{cluster, consistency};

/// How long a read may take in these tests; a write may take six times as long.
const READ: Duration = Duration::from_millis(500);
/// Far above what any call here may take, and far below its taking no end.
const PATIENCE: Duration = Duration::from_secs(20);

struct Setting {
    store: Store,
    community: Community,
    client: Client,
    database: Database,
}

impl Setting {
    async fn new() -> Self {
        let database = Database::migrated().await;
        let store = Store::open(database.config().pool_size(3).query_timeout(READ)).await.unwrap();
        let guild = guild("faults");
        let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "x")]).await;
        Self { store, community, client: database.client().await, database }
    }

    async fn read(&self) -> Result<usize, Error> {
        Ok(self.community.profile_list_ranked(PageLimit::MAX, None).await?.items.len())
    }

    async fn write(&self, score: i64) -> Result<(), Error> {
        let event = scored(&guild("faults"), &user(1), START + score, score);
        self.store.events_apply(vec![event]).await.map(drop)
    }

    /// How many of the store's sessions do what the condition says.
    async fn sessions(&self, condition: &str) -> i64 {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'muster' AND {condition}"
        );
        self.client.query_one(&sql, &[]).await.unwrap().get(0)
    }

    async fn until_sessions(&self, condition: &str, count: i64) {
        let end = Instant::now() + PATIENCE;
        while self.sessions(condition).await != count {
            assert!(Instant::now() < end, "there are never {count} sessions with {condition}");
            tokio::task::yield_now().await;
        }
    }
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(error @ Error::Unavailable(_)) => {
            assert!(error.is_transient());
            told(&error)
        }
        other => panic!("not unavailable: {other:?}"),
    }
}

/// What an error and its causes say.
fn told(error: &Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said
}

#[tokio::test]
async fn a_read_that_waits_too_long_is_given_up_on_both_sides() {
    let mut setting = Setting::new().await;
    // Without the server's own bounds, so that only the client's going ends the wait.
    let unbounded = "&options=-c%20lock_timeout%3D0%20-c%20statement_timeout%3D0";
    let config = config(&(url(setting.database.name()) + unbounded), trusting(&ca_file()));
    setting.store = Store::open(config.pool_size(3).query_timeout(READ)).await.unwrap();
    setting.community = setting.store.community(setting.community.id()).await.unwrap();
    setting.client.batch_execute("BEGIN; LOCK TABLE members IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let start = Instant::now();
    // More than the pool holds: those behind wait for a connection, not for ever.
    let reads = futures_util::future::join_all((0..6).map(|_| setting.read())).await;
    for read in reads {
        unavailable(read);
    }
    assert!(start.elapsed() < PATIENCE);
    assert!(setting.store.ping().await.is_ok(), "what needs no lock is answered");
    // The server does not go on waiting for those who have gone.
    setting.until_sessions("wait_event_type = 'Lock'", 0).await;
    setting.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(setting.read().await.unwrap(), 1);
    assert_eq!(setting.store.pool_status().in_use, 0);
}

#[tokio::test]
async fn a_write_that_waits_too_long_is_rolled_back() {
    let setting = Setting::new().await;
    for lock in [
        "UPDATE community_stripes SET stripe = stripe",
        "UPDATE community_states SET active = active",
        "LOCK TABLE members IN ACCESS EXCLUSIVE MODE",
    ] {
        setting.client.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
        let said = unavailable(setting.write(10).await);
        assert!(said.contains("lock timeout"), "{said}");
        setting.client.batch_execute("COMMIT").await.unwrap();
        setting.until_sessions("state <> 'idle'", 0).await;
        setting.write(20).await.unwrap();
    }
    assert_eq!(setting.read().await.unwrap(), 1);
    consistency::check(&setting.client).await;
}

#[tokio::test]
async fn a_caller_that_stops_waiting_leaves_nothing_half_done() {
    let setting = Setting::new().await;
    setting.client.batch_execute("BEGIN; UPDATE community_states SET active = active").await.unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(50), setting.write(10)).await;
    assert!(given_up.is_err());
    setting.client.batch_execute("COMMIT").await.unwrap();
    setting.until_sessions("state <> 'idle'", 0).await;
    let scores = "SELECT count(*) FROM members WHERE conviction = 10";
    let end = Instant::now() + PATIENCE;
    while setting.client.query_one(scores, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(Instant::now() < end, "the write that was begun is not finished");
    }
    consistency::check(&setting.client).await;
}

/// Cuts off the store's sessions while nothing else of the test runs, so that no client has noticed when this returns.
fn cut_off(database: &Database) {
    let name = database.name().to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let cut = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE datname = $1 AND application_name = 'muster'";
        runtime.block_on(async { connect("postgres").await.execute(cut, &[&name]).await.unwrap() });
    })
    .join()
    .unwrap();
}

#[tokio::test]
async fn cut_off_connections_are_replaced_unnoticed_by_readers() {
    let setting = Setting::new().await;
    for round in 0..5 {
        for read in futures_util::future::join_all((0..6).map(|_| setting.read())).await {
            read.unwrap();
        }
        cut_off(&setting.database);
        assert_eq!(setting.read().await.unwrap(), 1);
        cut_off(&setting.database);
        // A write is not repeated behind the caller's back: whether it was committed may be unknown. It may say so once
        // for each connection, and then goes through.
        let mut failures = 0;
        while let Err(error) = setting.write(100 + round).await {
            assert!(error.is_transient(), "{error:?}");
            failures += 1;
            assert!(failures <= 3, "{error:?}");
        }
    }
    consistency::check(&setting.client).await;
}

#[tokio::test]
async fn a_table_that_is_altered_costs_a_reader_nothing_and_a_writer_one_try() {
    let setting = Setting::new().await;
    let warm = async || {
        for read in futures_util::future::join_all((0..6).map(|_| setting.read())).await {
            read.unwrap();
        }
    };
    for (round, change) in [
        "ALTER TABLE members ALTER COLUMN nick TYPE varchar(400)",
        "ALTER TABLE members ALTER COLUMN nick TYPE text",
        "ALTER TABLE members ALTER COLUMN username TYPE varchar(400)",
    ]
    .into_iter()
    .enumerate()
    {
        let score = i64::try_from(round).unwrap() * 10;
        warm().await;
        setting.write(score).await.unwrap();
        setting.client.batch_execute(change).await.unwrap();
        for _ in 0..5 {
            assert_eq!(setting.read().await.unwrap(), 1, "{change}");
        }
        // A write is not repeated by itself, and the sessions that it does not use are replaced with its own.
        if let Err(error) = setting.write(score + 1).await {
            assert_eq!(
                (error.is_transient(), error.sqlstate().as_deref()),
                (true, Some("0A000")),
                "{error:?}"
            );
            setting.write(score + 1).await.unwrap();
        }
        warm().await;
    }
    consistency::check(&setting.client).await;
}

#[tokio::test]
async fn a_read_only_database_refuses_writes_until_it_is_none() {
    let setting = Setting::new().await;
    let name = setting.database.name();
    let read_only = async |on: &str| {
        let alter = format!("ALTER DATABASE {name} SET default_transaction_read_only = {on}");
        setting.client.batch_execute(&format!("BEGIN READ WRITE; {alter}; COMMIT")).await.unwrap();
    };
    read_only("on").await;
    let store = Store::open(setting.database.config().pool_size(3)).await.unwrap();
    for _ in 0..5 {
        let event = scored(&guild("faults"), &user(1), START + 1, 1);
        let said = unavailable(store.events_apply(vec![event]).await);
        assert!(said.contains("read-only"), "{said}");
    }
    let community = store.community(setting.community.id()).await.unwrap();
    assert_eq!(community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len(), 1);
    read_only("off").await;
    let mut failures = 0;
    let event = scored(&guild("faults"), &user(1), START + 1, 77);
    while let Err(error) = store.events_apply(vec![event.clone()]).await {
        failures += 1;
        assert!(error.is_transient() && failures <= 3, "{error:?}");
    }
    assert_eq!(setting.read().await.unwrap(), 1);
    consistency::check(&setting.client).await;
}

/// As a server may that was restored: a number that the store keeps is now another community's.
#[tokio::test]
async fn keys_that_are_another_communitys_by_now_are_refused_and_looked_up_again() {
    let setting = Setting::new().await;
    let (store, lost) = (&setting.store, guild("faults"));
    let taken_over = async || {
        let mut others = std::iter::repeat_with(|| guild(&format!("other-{}", Uuid::new_v4())));
        let other = others.find(|other| Shard::of(other) == Shard::of(&lost)).unwrap();
        let (known, new) = (store.community_find(&lost).await.unwrap().community_id.get(), Uuid::now_v7());
        for (sql, guild) in [
            ("UPDATE community_states SET community_id = $2 WHERE community_id = $1 AND $3 <> ''", &other),
            ("UPDATE communities SET community_id = $2, guild_id = $3 WHERE community_id = $1", &other),
        ] {
            assert_eq!(setting.client.execute(sql, &[&known, &new, &guild.as_str()]).await.unwrap(), 1);
        }
        other
    };
    let of_other = async |other| {
        let community = view(store, &other).await;
        let members = community.profile_list_ranked(PageLimit::MAX, None).await.unwrap().items.len();
        let erasures = community.erasure_list(PageLimit::MAX, None).await.unwrap().len();
        (members, erasures, store.community_find(&other).await.unwrap().name)
    };

    let other = taken_over().await;
    let event = joined(&lost, &user(2), START, "x");
    let said = unavailable(store.events_apply(vec![event.clone()]).await);
    assert!(said.contains("not in the database"), "{said}");
    assert_eq!(store.events_apply(vec![event]).await.unwrap().fresh.len(), 1);
    assert_eq!(of_other(other).await, (1, 0, None));

    let other = taken_over().await;
    let name = CommunityName::parse_optional("mine").unwrap();
    let effect = Effect::Guild(GuildEffect::Update { name });
    let event = Event { effect, ..joined(&lost, &user(2), START + 1, "x") };
    unavailable(store.events_apply(vec![event.clone()]).await);
    assert_eq!(store.events_apply(vec![event]).await.unwrap().fresh.len(), 1);
    assert_eq!(of_other(other).await, (1, 0, None));
    assert!(store.community_find(&lost).await.unwrap().name.is_some());

    let other = taken_over().await;
    let person = store.erasure_key().person(&lost, "u3");
    let erasure = Erasure { guild: lost.clone(), person, erased_at: OffsetDateTime::now_utc() };
    unavailable(store.erasures_remember(vec![erasure.clone()]).await);
    assert_eq!(store.erasures_remember(vec![erasure]).await.unwrap(), 1);
    assert_eq!(of_other(other).await.1, 0);
    assert_eq!(of_other(lost.clone()).await.1, 1);
}

/// Where commits wait for a standby, one of nothing waits for none, so that it would tell of what is not there yet.
#[tokio::test]
async fn a_batch_that_was_applied_before_has_something_to_commit() {
    if cluster::is_one("a row's lock is waited for on a node, whose sessions are not seen here").await {
        return;
    }
    let setting = Setting::new().await;
    let effect = Effect::Guild(GuildEffect::Update { name: CommunityName::parse_optional("mine").unwrap() });
    let of_guild = Event { effect, ..joined(&guild("faults"), &user(1), START + 1, "x") };
    for (again, row) in [
        (of_guild, "UPDATE community_states SET active = active"),
        (scored(&guild("faults"), &user(1), START + 2, 7), "UPDATE community_stripes SET stripe = stripe"),
    ] {
        setting.store.events_apply(vec![again.clone()]).await.unwrap();
        setting.client.batch_execute(&format!("BEGIN; {row}")).await.unwrap();
        let store = setting.store.clone();
        let applying = tokio::spawn(async move { store.events_apply(vec![again]).await });
        setting.until_sessions("wait_event_type = 'Lock'", 1).await;
        setting.client.batch_execute("COMMIT").await.unwrap();
        assert!(applying.await.unwrap().unwrap().fresh.is_empty());
    }
}

#[tokio::test]
async fn a_used_up_pool_refuses_in_time() {
    let setting = Setting::new().await;
    let config = setting.database.config().pool_size(1).acquire_timeout(Duration::from_millis(100));
    let store = Store::open(config.query_timeout(PATIENCE)).await.unwrap();
    let community = store.community(setting.community.id()).await.unwrap();
    setting.client.batch_execute("BEGIN; LOCK TABLE members IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let holder = tokio::spawn(async move { community.profile_list_ranked(PageLimit::MAX, None).await });
    setting.until_sessions("wait_event_type = 'Lock'", 1).await;
    unavailable(store.ping().await);
    assert_eq!(store.pool_status().in_use, 1);
    setting.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(holder.await.unwrap().unwrap().items.len(), 1);
    store.ping().await.unwrap();
    store.close();
    unavailable(store.ping().await);
}

/// The configuration of a server that this test plays.
fn played(listener: &TcpListener) -> StoreConfig {
    let port = listener.local_addr().unwrap().port();
    let url =
        format!("postgres://muster:hunter2@localhost:{port}/muster?sslmode=verify-full&hostaddr=127.0.0.1");
    config(&url, trusting(&ca_file()))
}

#[tokio::test]
async fn a_server_without_tls_is_told_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = played(&listener);
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        // SSLRequest, and "no".
        assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
        stream.write_all(b"N").await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let said = unavailable(Store::open(config).await.map(drop));
    assert!(!said.contains("hunter2"), "{said}");
    assert_eq!(server.await.unwrap(), [0_u8; 0], "something was sent after the refusal");
}

#[tokio::test]
async fn a_server_that_accepts_and_falls_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = played(&listener).query_timeout(READ);
    let start = Instant::now();
    unavailable(Store::open(config).await.map(drop));
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let directory = RunDirectory::create().unwrap();
    let stranger = Authority::create(directory.path(), "stranger").unwrap();
    let tls = trusting(stranger.certificate_file());
    let said = unavailable(Store::open(config(&url("postgres"), tls)).await.map(drop));
    assert!(said.contains("UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let url = url("postgres").replace("@localhost:", "@db.example.org:").replace('?', "?hostaddr=127.0.0.1&");
    let said = unavailable(Store::open(config(&url, trusting(&ca_file()))).await.map(drop));
    assert!(said.contains("not valid for name"), "{said}");
}

#[tokio::test]
async fn the_name_that_is_verified_is_that_of_the_host_that_is_tried() {
    let database = Database::migrated().await;
    let hosts = |hosts: &str| {
        let url = url(database.name());
        let (server, parameters) = url.split_once('?').unwrap();
        let (credentials, server) = server.split_once('@').unwrap();
        let (server, name) = server.split_once('/').unwrap();
        let (_, port) = server.split_once(':').unwrap();
        let hosts: Vec<String> = hosts.split(',').map(|host| format!("{host}:{port}")).collect();
        let addresses = vec!["127.0.0.1"; hosts.len()].join(",");
        let url = format!("{credentials}@{}/{name}?hostaddr={addresses}&{parameters}", hosts.join(","));
        config(&url, trusting(&ca_file()))
    };
    for good in ["db.example.org,localhost", "localhost,db.example.org", "db.example.org,127.0.0.1"] {
        Store::open(hosts(good)).await.unwrap();
    }
    let said = unavailable(Store::open(hosts("db.example.org,db2.example.org")).await.map(drop));
    for host in ["db.example.org:", "db2.example.org:"] {
        let part = said.split("; ").find(|part| part.contains(host));
        assert!(part.is_some_and(|part| part.contains("not valid for name")), "{host} {said}");
    }
}

#[tokio::test]
async fn a_handshake_goes_first_where_the_url_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("postgres://localhost:{port}/muster?hostaddr=127.0.0.1&sslnegotiation=direct");
    let config = config(&url, trusting(&ca_file()));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 1024];
        let length = stream.read(&mut hello).await.unwrap();
        hello[..length].to_vec()
    });
    unavailable(Store::open(config).await.map(drop));
    let hello = server.await.unwrap();
    // A record of a handshake, which names the protocol.
    assert_eq!(hello.first(), Some(&22));
    assert!(hello.windows(11).any(|part| part == b"\x0apostgresql"), "{hello:?}");
}

#[tokio::test]
async fn plaintext_is_not_even_configured_in_production() {
    let configured = |url: &str| {
        let tls = Some(Arc::new(trusting(&ca_file())));
        let policy = TlsPolicy::new(Environment::Production, false);
        StoreConfig::new(&SecretString::from(url), policy, tls)
    };
    let weaker = url("postgres").replace("verify-full", "prefer");
    assert!(matches!(configured(&weaker), Err(Error::Configuration(_))));
    for hidden in ["sslmode=verify-full&sslmode=disable", "sslmod%65=disable"] {
        let hidden = url("postgres").replace("sslmode=verify-full", hidden);
        assert!(matches!(configured(&hidden), Err(Error::Configuration(_))));
    }
    let unsaid = url("postgres").replace("sslmode=verify-full", "application_name=x");
    assert!(configured(&unsaid).unwrap().is_encrypted());
}

#[tokio::test]
async fn a_connection_error_does_not_show_the_password() {
    let url = url("no_such_database");
    let (_, rest) = url.split_once("//").unwrap();
    let (user, _) = rest.split_once('@').unwrap();
    let (_, password) = user.split_once(':').unwrap();
    let error = Store::open(config(&url, trusting(&ca_file()))).await.map(drop).unwrap_err();
    let said = format!("{} {error:?}", told(&error));
    assert!(said.contains("no_such_database"), "{said}");
    assert!(!said.contains(password), "{said}");
}

#[tokio::test]
async fn a_community_that_was_lost_with_its_primary_is_not_found() {
    let database = Database::migrated().await;
    let (store, client, guild) = (database.store().await, database.client().await, guild("lost"));
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "x")]).await;
    store.community_find(&guild).await.unwrap();
    // Another that knows the keys, and not yet the policy.
    let other = database.store().await;
    other.change_waiting(community.id(), 1).await.unwrap();
    // As a standby is that takes the primary's place without its last transactions.
    let lose = "DELETE FROM community_stripes; DELETE FROM community_states; DELETE FROM communities";
    client.batch_execute(lose).await.unwrap();
    let found = store.community_find(&guild).await;
    assert!(found.as_ref().is_err_and(Error::is_transient), "{found:?}");
    let found = store.community_find(&guild).await;
    assert!(matches!(found, Err(Error::NotFound(_))), "{found:?}");
    for store in [store, other] {
        let viewed = store.community(community.id()).await;
        assert!(matches!(viewed, Err(Error::NotFound(_))), "{viewed:?}");
    }
}
