//! Nothing is sent but over TLS to whom is meant.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_domain::Version;
use muster_messaging::client::{Client, ClientError};
use muster_messaging::connection::{
    Connection, ConnectionError, Credentials, CredentialsError, LinkFailure, LinkState, NatsConfig,
};
use muster_messaging::tls::material::{TlsFiles, TlsVersion};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::broker::{Broker, PASSWORD, Setup, material, stranger, until, version};

/// A round trip, which shows that the connection works.
async fn asks(connection: &Connection) {
    let guild = muster_domain::GuildId::parse("1").unwrap();
    let error = Client::new(connection.clone()).find_community(guild).await.unwrap_err();
    assert!(matches!(error, ClientError::NoResponders), "{error:?}");
}

#[tokio::test]
async fn mutual_tls_connects_and_shows_with_whom() {
    let broker = Broker::start(&Setup::default());
    for url in [
        format!("tls://127.0.0.1:{}", broker.port),
        format!("nats+tls://127.0.0.1:{}", broker.port),
        format!("wss://127.0.0.1:{}", broker.ws_port),
    ] {
        let config = broker.config_of(&url, &broker.client);
        let material = material(&config);
        let connection = Connection::open(config).await.unwrap();
        asks(&connection).await;
        assert_eq!((material.accepted(), material.refused()), (1, 0), "{url}");
        let peer = material.peers().pop().unwrap();
        assert_eq!(
            (peer.name.as_str(), &peer.certificate.names[..]),
            ("127.0.0.1", &["127.0.0.1".to_owned()][..]),
            "{url}"
        );
        assert_eq!(peer.version, Some(TlsVersion::Tls13), "{url}");
        connection.drain(Duration::from_secs(5)).await.unwrap();
        assert_eq!(*connection.state().borrow(), LinkState::Closed);
    }
}

#[tokio::test]
async fn a_wrong_authority_a_wrong_name_and_no_certificate_are_refused() {
    let broker = Broker::start(&Setup::default());
    let url = format!("tls://127.0.0.1:{}", broker.port);
    let stranger = stranger(&broker.directory);
    let stranger = stranger.files(&stranger.client("muster-worker").unwrap());
    let config = broker.config_of(&url, &stranger);
    let refused = material(&config);
    let error = Connection::open(config).await.unwrap_err();
    assert!(matches!(error, ConnectionError::Tls(_)), "{error:?}");
    assert_eq!((refused.accepted(), refused.refused()), (0, 1));

    let by_name = format!("tls://localhost:{}", broker.port);
    let error = Connection::open(broker.config_of(&by_name, &broker.client)).await.unwrap_err();
    assert!(matches!(error, ConnectionError::Tls(_)), "{error:?}");
    let wss = format!("wss://localhost:{}", broker.ws_port);
    let error = Connection::open(broker.config_of(&wss, &broker.client)).await.unwrap_err();
    assert!(matches!(error, ConnectionError::Tls(_) | ConnectionError::Unreachable(_)), "{error:?}");

    let nobody = TlsFiles { certificate: None, key: None, ..broker.client.clone() };
    assert!(Connection::open(broker.config_of(&url, &nobody)).await.is_err());
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_once() {
    let broker = Broker::start(&Setup { user: "somebody else", ..Setup::default() });
    let error = Connection::open(broker.config()).await.unwrap_err();
    assert!(matches!(error, ConnectionError::Refused(_)), "{error:?}");
    assert!(!format!("{error:?} {error}").contains(PASSWORD));
}

/// A server that says what a nats-server without TLS says, and keeps whatever it is sent.
async fn plaintext_server() -> (u16, Arc<Mutex<Vec<u8>>>, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let (keep, count) = (Arc::clone(&heard), Arc::clone(&connections));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let keep = Arc::clone(&keep);
            tokio::spawn(async move {
                let info = r#"{"server_id":"x","version":"2.9.10","max_payload":1048576,"headers":true,"nonce":"abc"}"#;
                stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    keep.lock().unwrap().extend_from_slice(&buffer[..read]);
                }
            });
        }
    });
    (port, heard, connections)
}

#[tokio::test]
async fn a_plaintext_server_gets_no_credentials() {
    let broker = Broker::start(&Setup::default());
    let (port, heard, _) = plaintext_server().await;
    for scheme in ["tls", "wss"] {
        let mut config = broker.config_of(&format!("{scheme}://127.0.0.1:{port}"), &broker.client);
        config.connect_timeout = Duration::from_millis(500);
        assert!(Connection::open(config).await.is_err());
        until("it was spoken to", async || !heard.lock().unwrap().is_empty()).await;
        let heard = heard.lock().unwrap();
        assert!(!String::from_utf8_lossy(&heard).contains("s3cret"), "{scheme}");
        assert!(!String::from_utf8_lossy(&heard).contains("CONNECT {"), "{scheme}");
    }
}

/// Passes everything on to `to`, but puts `announced` into the server's first line.
async fn announcing_proxy(to: u16, announced: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let announced = announced.clone();
            tokio::spawn(async move {
                let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", to)).await.unwrap());
                let mut info = String::new();
                server.read_line(&mut info).await.unwrap();
                let info = info.replacen('{', &format!(r#"{{"connect_urls":[{announced}],"#), 1);
                client.write_all(info.as_bytes()).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn announced_servers_are_never_spoken_to() {
    let broker = Broker::start(&Setup::default());
    let (hostile, heard, connections) = plaintext_server().await;
    let announced =
        format!(r#""127.0.0.1:{hostile}","ws://127.0.0.1:{hostile}","nats://127.0.0.1:{hostile}""#);
    let proxy = announcing_proxy(broker.port, announced).await;
    let config = broker.config_of(&format!("tls://127.0.0.1:{proxy}"), &broker.client);
    let connection = Connection::open(config).await.unwrap();
    for round in 1..=5 {
        asks(&connection).await;
        connection.renew().await.unwrap();
        until("it is connected anew", async || connection.counts().reconnects >= round).await;
    }
    asks(&connection).await;
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_restarted_without_tls_is_never_spoken_to_in_plaintext() {
    let mut broker = Broker::start(&Setup::default());
    let mut config = broker.config();
    config.give_up_after = Duration::from_secs(2);
    let connection = Connection::open(config).await.unwrap();
    broker.restart(&Setup { tls: false, ..Setup::default() });
    let mut state = connection.state();
    let failed = state.wait_for(|state| matches!(state, LinkState::Failed(_)));
    let failed = *tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap().unwrap();
    assert_eq!(failed, LinkState::Failed(LinkFailure::Unreachable));
    assert_eq!(connection.counts().reconnects, 0);
}

#[tokio::test]
async fn a_revoked_user_is_given_up_after_a_bound() {
    let mut broker = Broker::start(&Setup::default());
    let mut config = broker.config();
    config.max_refusals = 3;
    let connection = Connection::open(config).await.unwrap();
    broker.restart(&Setup { user: "somebody else", ..Setup::default() });
    let mut state = connection.state();
    let failed = state.wait_for(|state| matches!(state, LinkState::Failed(_)));
    let failed = *tokio::time::timeout(Duration::from_secs(20), failed).await.unwrap().unwrap();
    assert_eq!(failed, LinkState::Failed(LinkFailure::Refused));
    assert_eq!(connection.counts().refusals, 3);
}

#[tokio::test]
async fn a_rotated_certificate_is_shown_by_the_next_connection() {
    let broker = Broker::start(&Setup::default());
    let config = broker.config();
    let material = material(&config);
    let other = Connection::open(config.clone()).await.unwrap();
    let connection = Connection::open(config).await.unwrap();
    let first = material.peers().pop().unwrap().certificate.serial;
    let own = material.own()[0].serial.clone();

    broker.authority.client("muster-worker").unwrap();
    assert!(connection.reload().await.unwrap());
    assert_ne!(material.own()[0].serial, own);
    until("it is connected anew", async || connection.counts().reconnects >= 1).await;
    asks(&connection).await;
    assert_eq!(material.accepted(), 3);
    // So is whoever shares them, though they were read already, and once.
    assert!(other.reload().await.unwrap() && !other.reload().await.unwrap());
    until("the other is connected anew", async || other.counts().reconnects >= 1).await;
    assert!(!connection.reload().await.unwrap());
    assert_eq!(material.peers().pop().unwrap().certificate.serial, first);
}

#[tokio::test]
async fn a_killed_server_is_found_again() {
    let mut broker = Broker::start(&Setup::default());
    let connection = Connection::open(broker.config()).await.unwrap();
    let mut state = connection.state();
    broker.kill();
    state.wait_for(|state| matches!(state, LinkState::Disconnected { .. })).await.unwrap();
    broker.restart(&Setup::default());
    state.wait_for(|state| *state == LinkState::Connected).await.unwrap();
    asks(&connection).await;
    assert_eq!(connection.counts().reconnects, 1);
}

#[tokio::test]
async fn a_server_that_stands_still_is_given_up_and_found_again() {
    let broker = Broker::start(&Setup::default());
    let config = NatsConfig { ping_interval: Duration::from_millis(200), ..broker.config() };
    let connection = Connection::open(config).await.unwrap();
    broker.stand_still(true);
    until("two pings to stay unanswered", async || {
        matches!(*connection.state().borrow(), LinkState::Disconnected { .. })
    })
    .await;
    broker.stand_still(false);
    until("the link", async || *connection.state().borrow() == LinkState::Connected).await;
    asks(&connection).await;
}

#[tokio::test]
async fn tls_goes_first_where_the_server_does_it() {
    if version() < Version([2, 10, 4]) {
        println!("this nats-server has no handshake_first; nothing to see");
        return;
    }
    let broker = Broker::start(&Setup { more_tls: ", handshake_first: true", ..Setup::default() });
    let mut config = broker.config();
    config.tls_first = true;
    asks(&Connection::open(config).await.unwrap()).await;
}

#[tokio::test]
async fn a_token_or_broken_credentials_do_not_pass_for_a_user() {
    let broker = Broker::start(&Setup::default());
    let mut config = broker.config();
    config.credentials = Credentials::Token(PASSWORD.into());
    assert!(matches!(Connection::open(config).await, Err(ConnectionError::Refused(_))));
    let error = Credentials::file(&PASSWORD.into()).unwrap_err();
    assert_eq!(error, CredentialsError::File);
    assert!(!format!("{error:?} {error}").contains(PASSWORD));
}
