//! Asks the running worker whether it is alive, for a container that has neither shell nor client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);

/// The answer of the worker at `address`; an error when it does not answer or is unhealthy.
pub(crate) async fn ask(address: SocketAddr) -> std::io::Result<()> {
    // An address to listen on everywhere is asked on this machine.
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let asked = async {
        let mut stream = TcpStream::connect((host, address.port())).await?;
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        if status.ends_with(b" 200") { Ok(()) } else { Err(std::io::Error::other("the worker is unhealthy")) }
    };
    tokio::time::timeout(TIMEOUT, asked).await?
}
