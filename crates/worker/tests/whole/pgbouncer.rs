//! A private PgBouncer before a test's PostgreSQL.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use xtask::services::{Postgres, Process, Services, free_address, give_to_owner, run_as_owner};
use xtask::tool::packaged;

/// How long a start may take.
const START: Duration = Duration::from_secs(20);

/// One on a free port of 127.0.0.1: verified TLS on both its sides. It is stopped when this value is dropped.
pub(crate) struct PgBouncer {
    _process: Process,
    url: String,
}

impl PgBouncer {
    /// Starts it under `name`, in this `pool_mode`. Its clients log in as the cluster's superuser.
    pub(crate) fn start(services: &Services, name: &str, pool_mode: &str) -> Result<Self> {
        let Services { postgres, authority, directory, .. } = services;
        let place = directory.path().join(name);
        fs::create_dir(&place)?;
        let identity = authority.server(name)?;
        fs::copy(&identity.certificate_file, place.join("server.pem"))?;
        fs::copy(&identity.key_file, place.join("server.key"))?;
        fs::copy(authority.certificate_file(), place.join("ca.pem"))?;
        let login = format!("\"{}\" \"{}\"\n", Postgres::USER, postgres.options.password);
        directory.secret_file(&format!("{name}/users"), &login)?;
        let address = free_address()?;
        let (port, server_port) = (address.port(), postgres.port);
        let configuration = include_str!("pgbouncer.ini")
            .replace("PLACE", &place.display().to_string())
            .replace("POOL_MODE", pool_mode)
            .replace("SERVER_PORT", &server_port.to_string())
            .replace("LISTEN_PORT", &port.to_string());
        fs::write(place.join("pgbouncer.ini"), configuration)?;
        give_to_owner(&place)?;
        let mut command = Command::new(packaged("pgbouncer", "pgbouncer")?);
        run_as_owner(command.arg(place.join("pgbouncer.ini")).current_dir(&place))?;
        // SIGINT would wait for clients to go.
        let mut process = Process::start(directory, name, &mut command, Signal::SIGTERM)?;
        process.wait_until(START, || TcpStream::connect(address).ok())?;
        let url = postgres.url("postgres").replace(&format!(":{server_port}/"), &format!(":{port}/"));
        Ok(Self { _process: process, url })
    }

    /// The superuser's URL of the database `postgres`, password included.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}
