//! The servers start, speak TLS only, survive what the fault tests do to them, and leave nothing behind.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xtask::services::{
    Authority, Identity, Nats, NatsOptions, Postgres, PostgresOptions, RunDirectory, Services, nats_server,
    postgres_server,
};

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn refuses(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// Asks PostgreSQL for TLS as its protocol says (SSLRequest): it answers `S` if it will, `N` if not.
fn answer_to_ssl_request(port: u16) -> u8 {
    let mut stream = connect(port);
    stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    answer[0]
}

/// What PostgreSQL says to a session that starts without TLS.
fn answer_to_plaintext_start(port: u16) -> String {
    let mut stream = connect(port);
    let body = b"\0\x03\0\0user\0muster\0database\0postgres\0\0";
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    stream.write_all(&length).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = [0; 256];
    let read = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

fn nats_options(authority: &Authority) -> NatsOptions {
    NatsOptions::new(nats_server().unwrap(), authority.server("nats").unwrap(), authority.certificate_file())
}

/// The first line that a NATS server says in plaintext; nothing when it says none.
fn info(port: u16) -> String {
    let mut answer = [0; 4096];
    let mut stream = connect(port);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let read = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// Asks a question with psql, if this machine has it.
fn psql(postgres: &Postgres, ca: &Path, sql: &str) -> Option<String> {
    let psql = [postgres.server().bin.join("psql"), PathBuf::from("/usr/bin/psql")]
        .into_iter()
        .find(|path| path.is_file())?;
    let output = Command::new(psql)
        .args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", sql, &postgres.url("postgres")])
        .env("PGSSLROOTCERT", ca)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn both_start_with_tls_and_leave_nothing_behind() {
    let services = Services::start(false).unwrap();
    let (postgres, nats) = (services.postgres.port(), services.nats.port());
    let directory = services.directory.path().to_owned();

    assert_eq!(answer_to_ssl_request(postgres), b'S');
    let refused = answer_to_plaintext_start(postgres);
    assert!(refused.contains("no pg_hba.conf entry") && refused.contains("no encryption"), "{refused}");
    let ca = services.authority.certificate_file();
    if let Some(answer) =
        psql(&services.postgres, ca, "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    {
        assert_eq!(answer, "t|TLSv1.3");
    }
    // As infra/nats says: nothing is said before the handshake.
    if services.nats.tls_first() {
        assert_eq!(info(nats), "");
    }

    drop(services);
    assert!(refuses(postgres) && refuses(nats));
    assert!(!directory.exists());
}

#[test]
fn a_killed_server_comes_back_with_its_data_on_its_port() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let options = PostgresOptions::new(postgres_server().unwrap(), authority.server("postgres").unwrap());
    let mut postgres = Postgres::start(&directory, "postgres", options).unwrap();
    let port = postgres.port();
    let ca = authority.certificate_file();
    psql(&postgres, ca, "CREATE TABLE kept AS SELECT 7 AS seven");
    psql(&postgres, ca, "CHECKPOINT");
    postgres.kill().unwrap();
    assert!(refuses(port));
    postgres.restart().unwrap();
    assert_eq!(postgres.port(), port);
    assert!(psql(&postgres, ca, "SELECT seven FROM kept").is_none_or(|answer| answer == "7"));

    let mut nats = Nats::start(&directory, "nats", nats_options(&authority)).unwrap();
    let port = nats.port();
    nats.kill().unwrap();
    assert!(refuses(port));
    nats.options_mut().plaintext = true;
    nats.restart().unwrap();
    assert_eq!(nats.port(), port);
    let info = info(port);
    for part in [r#""auth_required":true"#, r#""jetstream":true"#] {
        assert!(info.contains(part) && !info.contains("tls_required"), "{info}");
    }
}

#[test]
fn a_cluster_without_a_certificate_refuses_tls() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let mut options = PostgresOptions::new(postgres_server().unwrap(), authority.server("unused").unwrap());
    options.tls = None;
    let postgres = Postgres::start(&directory, "postgres", options).unwrap();
    assert_eq!(answer_to_ssl_request(postgres.port()), b'N');
}

#[test]
fn the_servers_configuration_is_the_shipped_one_byte_for_byte() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let nats = Nats::start(&directory, "nats", nats_options(&authority)).unwrap();
    for name in ["node.conf", "nats.conf", "accounts.conf"] {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/nats").join(name);
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        let (shipped, used) = (read(&shipped), read(&nats.configuration().join(name)));
        if nats.tls_first() {
            assert_eq!(used, shipped, "{name}");
            continue;
        }
        // A server that is too old does without what it does not know, and without nothing else.
        let old = |line: &&str| {
            let unknown = ["min_version:", "handshake_first:", "sync_interval:"];
            !unknown.iter().any(|key| line.trim_start().starts_with(key))
        };
        assert!(used.lines().eq(shipped.lines().filter(old)), "{name}");
    }
}

#[test]
fn a_server_that_does_not_start_shows_its_log() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let mut options = nats_options(&authority);
    options.tls.key_file = directory.path().join("no-such-key");
    let error = format!("{:#}", Nats::start(&directory, "nats", options).unwrap_err());
    assert!(error.contains("no-such-key"), "{error}");
}

#[test]
fn keys_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let identity = authority.client("client").unwrap();
    let mode = std::fs::metadata(&identity.key_file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Set for a copy of this test program that is to be killed.
const KILLED: &str = "MUSTER_XTASK_KILLED_RUN";

/// Not a test of its own: the run that [`a_killed_run_leaves_nothing_behind`] kills.
#[test]
fn the_run_that_is_killed() {
    if std::env::var_os(KILLED).is_none() {
        return;
    }
    let services = Services::start(false).unwrap();
    println!("{} {} {}", services.postgres.port(), services.nats.port(), services.directory.path().display());
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_killed_run_leaves_nothing_behind() {
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["the_run_that_is_killed", "--exact", "--nocapture", "--quiet"])
        .env(KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(run.stdout.take().unwrap());
    let is_told = |line: &String| line.split(' ').count() == 3 && line.contains('/');
    let told = output.lines().map(|line| line.unwrap()).find(|line| is_told(line)).unwrap();
    let mut words = told.split(' ');
    let mut port = || words.next().unwrap().parse::<u16>().unwrap();
    let (postgres, nats) = (port(), port());
    let directory = Path::new(words.next().unwrap());
    assert!(directory.exists() && !refuses(postgres) && !refuses(nats));

    run.kill().unwrap();
    run.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while directory.exists() || !refuses(postgres) || !refuses(nats) {
        assert!(Instant::now() < end, "{} or its servers are still there", directory.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The library's own client as one of the users, and what the server tells it.
async fn connect_as(services: &Services, client: &Identity) -> Option<(async_nats::Client, Told)> {
    let told = Told::default();
    let keep = Told::clone(&told);
    let mut options = async_nats::ConnectOptions::new()
        .require_tls(true)
        .max_reconnects(2)
        .add_root_certificates(services.authority.certificate_file().to_owned())
        .add_client_certificate(client.certificate_file.clone(), client.key_file.clone())
        .event_callback(move |event| {
            keep.lock().unwrap().push(event.to_string().to_lowercase());
            std::future::ready(())
        });
    if services.nats.tls_first() {
        options = options.tls_first();
    }
    Some((options.connect(services.nats.url()).await.ok()?, told))
}

type Told = Arc<Mutex<Vec<String>>>;

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the runbooks have each do is seen to work when they are run; this is what none of them may.
#[tokio::test(flavor = "multi_thread")]
async fn who_operates_may_what_the_runbooks_have_them_do_and_no_more() {
    let services = Services::start(false).unwrap();
    let clients = &services.clients;
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
    for (client, denied) in [
        (&clients.streams, &streams[..]),
        (&clients.repair, &repair),
        (&clients.operator, &operator),
        (&clients.gateway, &gateway),
    ] {
        let (raw, told) = connect_as(&services, client).await.unwrap();
        for subject in denied.iter().chain(&everybody) {
            raw.publish(*subject, "{}".into()).await.unwrap();
            raw.flush().await.unwrap();
            let refusal = format!("permissions violation for publish to \"{subject}\"").to_lowercase();
            let refused = || told.lock().unwrap().iter().any(|it| it.contains(&refusal));
            until(&format!("{subject} is refused to {client:?}"), refused).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_revoked_by_its_name_and_its_connection_cut() {
    let services = Services::start(false).unwrap();
    let (leaked, _) = connect_as(&services, &services.clients.gateway).await.unwrap();
    let (other, _) = connect_as(&services, &services.clients.operator).await.unwrap();
    services.nats.rename_user("muster-gateway", "muster-gateway-2").unwrap();
    let state = |client: &async_nats::Client| client.connection_state();
    until("the connection is cut", || state(&leaked) == async_nats::connection::State::Disconnected).await;
    assert!(connect_as(&services, &services.clients.gateway).await.is_none(), "it does not come back");
    let successor = services.authority.client("muster-gateway-2").unwrap();
    assert!(connect_as(&services, &successor).await.is_some(), "its successor is let in");
    assert_eq!(state(&other), async_nats::connection::State::Connected, "who else was there stays");
}
