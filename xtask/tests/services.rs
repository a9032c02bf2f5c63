//! The servers start, speak TLS only, survive what the fault tests do to them, and leave nothing behind.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xtask::services::{Authority, Postgres, PostgresOptions, RunDirectory, Services};
use xtask::tool::postgres_server;

fn refuses(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// What a server says to this, in plaintext; nothing when it says nothing.
fn answer(port: u16, request: &[u8]) -> String {
    let (mut stream, mut answer) = (TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap(), [0; 4096]);
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    stream.write_all(request).unwrap();
    let read = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

/// What PostgreSQL's protocol calls SSLRequest: it answers `S` if it speaks TLS, `N` if not.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

#[test]
fn both_speak_tls_only_and_come_back_after_a_kill() {
    let mut services = Services::start(1, false).unwrap();
    let (postgres, nats) = (services.postgres.port, services.nats.port);
    assert_eq!(answer(postgres, &SSL_REQUEST), "S");
    let refused = answer(postgres, b"\0\0\0\x27\0\x03\0\0user\0muster\0database\0postgres\0\0");
    assert!(refused.contains("no pg_hba.conf entry") && refused.contains("no encryption"), "{refused}");
    assert_eq!(answer(nats, b""), "", "nothing is said before the handshake");

    services.postgres.kill().unwrap();
    services.nats.kill().unwrap();
    assert!(refuses(postgres) && refuses(nats));
    services.postgres.restart().unwrap();
    services.nats.restart().unwrap();
    assert_eq!((services.postgres.port, services.nats.port), (postgres, nats));

    let directory = services.directory.path().to_owned();
    drop(services);
    assert!(refuses(postgres) && refuses(nats) && !directory.exists());
}

#[test]
fn the_servers_are_configured_as_shipped_and_keys_are_for_their_owner_only() {
    let services = Services::start(1, false).unwrap();
    for name in ["node.conf", "nats.conf", "accounts.conf"] {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/nats").join(name);
        let used = services.nats.configuration().join(name);
        assert_eq!(fs::read(used).unwrap(), fs::read(shipped).unwrap(), "{name}");
    }
    assert_eq!(fs::metadata(services.clients.worker.key_file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_cluster_without_a_certificate_refuses_tls_and_one_that_does_not_start_shows_its_log() {
    let directory = RunDirectory::create().unwrap();
    let authority = Authority::create(directory.path(), "ca").unwrap();
    let mut options = PostgresOptions::new(postgres_server().unwrap(), authority.server("unused").unwrap());
    options.tls = None;
    let postgres = Postgres::start(&directory, "postgres", options.clone()).unwrap();
    assert_eq!(answer(postgres.port, &SSL_REQUEST), "N");
    options.settings = vec![("no_such_setting".to_owned(), "on".to_owned())];
    let error = format!("{:#}", Postgres::start(&directory, "broken", options).unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
}

#[test]
fn a_killed_run_leaves_nothing_behind() {
    // Set for a copy of this test program that is to be killed.
    const KILLED: &str = "XTASK_KILLED_RUN";
    if std::env::var_os(KILLED).is_some() {
        let services = Services::start(1, false).unwrap();
        let directory = services.directory.path().display();
        println!("started {} {} {directory}", services.postgres.port, services.nats.port);
        std::thread::sleep(Duration::from_secs(600));
    }
    let mut run = Command::new(std::env::current_exe().unwrap())
        .args(["a_killed_run_leaves_nothing_behind", "--exact", "--nocapture", "--quiet"])
        .env(KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    let told = lines.find_map(|line| Some(line.split_once("started ")?.1.to_owned())).unwrap();
    let words: Vec<&str> = told.split(' ').collect();
    let [postgres, nats] = [words[0], words[1]].map(|port| port.parse::<u16>().unwrap());
    let directory = Path::new(words[2]);
    assert!(directory.exists() && !refuses(postgres) && !refuses(nats));

    run.kill().unwrap();
    run.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while directory.exists() || !refuses(postgres) || !refuses(nats) {
        assert!(Instant::now() < end, "{} or its servers are still there", directory.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
