use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::find::packaged;
use super::{Authority, Postgres, Process, RunDirectory, free_address};

/// How long a start may take.
const START: Duration = Duration::from_secs(20);

/// A private PgBouncer before a PostgreSQL cluster, on a free port of 127.0.0.1: verified TLS on both its sides. It is
/// stopped when this value is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    _process: Process,
    url: String,
}

impl PgBouncer {
    /// Starts it under `name`, in this `pool_mode`. Its clients log in as the cluster's superuser.
    pub fn start(
        directory: &RunDirectory,
        name: &str,
        pool_mode: &str,
        authority: &Authority,
        postgres: &Postgres,
    ) -> Result<Self> {
        let place = directory.path().join(name);
        postgres.owner().make_directory(&place)?;
        let write = |file: &str, content: &str| postgres.owner().write(&place.join(file), content);
        let copy = |from: &Path, to: &str| write(to, &fs::read_to_string(from)?);
        let identity = authority.server(name)?;
        copy(&identity.certificate_file, "server.pem")?;
        copy(&identity.key_file, "server.key")?;
        copy(authority.certificate_file(), "ca.pem")?;
        write("users", &format!("\"{}\" \"{}\"\n", postgres.user(), postgres.password()))?;
        let address = free_address()?;
        let (port, server_port) = (address.port(), postgres.port());
        let configuration = include_str!("pgbouncer.ini")
            .replace("PLACE", &place.display().to_string())
            .replace("POOL_MODE", pool_mode)
            .replace("SERVER_PORT", &server_port.to_string())
            .replace("LISTEN_PORT", &port.to_string());
        write("pgbouncer.ini", &configuration)?;
        let mut command = Command::new(packaged("pgbouncer", "pgbouncer")?);
        postgres.owner().runs(command.arg(place.join("pgbouncer.ini")).current_dir(&place));
        // SIGINT would wait for clients to go.
        let mut process = Process::start(directory, name, &mut command, Signal::SIGTERM)?;
        process.wait_until(START, || TcpStream::connect(address).ok())?;
        let url = postgres.url("postgres").replace(&format!(":{server_port}/"), &format!(":{port}/"));
        Ok(Self { _process: process, url })
    }

    /// The superuser's URL of the database `postgres`, password included.
    pub fn url(&self) -> &str {
        &self.url
    }
}
