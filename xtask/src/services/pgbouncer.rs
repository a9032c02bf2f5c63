use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::postgres::{free_port, give, make_directory, unprivileged_owner};
use super::run_directory::write_secret;
use super::{Authority, PgBouncerServer, Postgres, Process, RunDirectory};

/// How long a start may take.
const START: Duration = Duration::from_secs(20);

/// For how long a client has a server connection to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Until the client goes.
    Session,
    /// Until its transaction ends.
    Transaction,
    /// Until its statement ends.
    Statement,
}

impl fmt::Display for PoolMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Statement => "statement",
        })
    }
}

/// A private PgBouncer before a PostgreSQL cluster, on a free port of 127.0.0.1: verified TLS on both its sides. It is
/// stopped when this value is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    _process: Process,
    port: u16,
    url: String,
}

impl PgBouncer {
    /// Starts it under `name`. Its clients log in as the cluster's superuser.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn start(
        directory: &RunDirectory,
        name: &str,
        server: &PgBouncerServer,
        mode: PoolMode,
        authority: &Authority,
        postgres: &Postgres,
    ) -> Result<Self> {
        let owner = unprivileged_owner()?;
        let place = directory.path().join(name);
        make_directory(&place, owner.as_ref())?;
        let write = |file: &str, content: &str| {
            let path = place.join(file);
            write_secret(&path, content)?;
            give(&path, owner.as_ref())
        };
        let identity = authority.server(name)?;
        write("server.pem", &fs::read_to_string(&identity.certificate_file)?)?;
        write("server.key", &fs::read_to_string(&identity.key_file)?)?;
        write("ca.pem", &fs::read_to_string(authority.certificate_file())?)?;
        let (user, password) = (postgres.user(), postgres.password());
        write("users", &format!("\"{user}\" \"{password}\"\n"))?;
        let (port, server_port, at) = (free_port()?, postgres.port(), place.display());
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             pool_mode = {mode}\ndefault_pool_size = 50\nauth_type = scram-sha-256\nauth_file = {at}/users\n\
             client_tls_sslmode = require\nclient_tls_cert_file = {at}/server.pem\nclient_tls_key_file = {at}/server.key\n\
             server_tls_sslmode = verify-full\nserver_tls_ca_file = {at}/ca.pem\n"
        );
        write("pgbouncer.ini", &configuration)?;
        let mut command = Command::new(&server.program);
        command.arg(place.join("pgbouncer.ini")).current_dir(&place);
        if let Some(owner) = &owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        // SIGINT would wait for clients to go.
        let mut process = Process::start(directory, name, &mut command, Signal::SIGTERM)?;
        process.wait_until(START, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())?;
        let url = postgres.url("postgres");
        let url = url.replace(&format!(":{server_port}/"), &format!(":{port}/"));
        let url =
            Some(url).filter(|url| url.contains(&format!(":{port}/"))).context("a URL without a port")?;
        Ok(Self { _process: process, port, url })
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's URL of the database `postgres`, password included.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}
