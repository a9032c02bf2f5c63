//! The servers start, speak TLS only, survive what the fault tests do to them, and leave nothing behind.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use xtask::services::{
    Authority, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, RunDirectory, Services, nats_server,
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

/// The first line that a NATS server says.
fn info(port: u16) -> String {
    let mut answer = [0; 4096];
    let read = connect(port).read(&mut answer).unwrap();
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
    let info = info(nats);
    for part in
        [r#""tls_required":true"#, r#""tls_verify":true"#, r#""auth_required":true"#, r#""jetstream":true"#]
    {
        assert!(info.contains(part), "{part} is not in {info}");
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

    let mut nats = Nats::start(&directory, "nats", NatsOptions::new(nats_server().unwrap())).unwrap();
    let port = nats.port();
    assert!(!info(port).contains("tls_required"));
    nats.kill().unwrap();
    assert!(refuses(port));
    nats.options_mut().users = vec![NatsUser::new("somebody")];
    nats.options_mut().tls = Some(authority.server("nats").unwrap());
    nats.restart().unwrap();
    assert_eq!(nats.port(), port);
    let info = info(port);
    assert!(info.contains(r#""tls_required":true"#) && info.contains(r#""auth_required":true"#), "{info}");
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
fn a_web_socket_port_has_a_url_of_its_own() {
    let directory = RunDirectory::create().unwrap();
    let mut options = NatsOptions::new(nats_server().unwrap());
    options.websocket = true;
    let nats = Nats::start(&directory, "nats", options).unwrap();
    let url = nats.websocket_url().unwrap();
    assert!(url.starts_with("ws://localhost:"), "{url}");
    assert_ne!(url.rsplit(':').next().unwrap(), nats.port().to_string());
}

#[test]
fn a_server_that_does_not_start_shows_its_log() {
    let directory = RunDirectory::create().unwrap();
    let mut options = NatsOptions::new(nats_server().unwrap());
    options.further = "no_such_setting: true".to_owned();
    let error = format!("{:#}", Nats::start(&directory, "nats", options).unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
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
