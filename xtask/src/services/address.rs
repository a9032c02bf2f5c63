use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result};

/// An address of this machine whose port nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// Asks for a path by HTTP; answers the status and the body. It fails when there is no answer within five seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let mut answer = agent.get(format!("http://{address}{path}")).call()?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
}
