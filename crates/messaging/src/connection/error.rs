//! Why there is no connection.

use std::time::Duration;

use async_nats::ConnectErrorKind;

use super::monitor::LinkFailure;
use crate::events::error::Cause;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// A server's name or certificate was not what it must be, or it does not speak TLS.
    #[error(
        "no NATS server proved its identity by TLS: check the CA, the server's name and the dates of its certificate"
    )]
    Tls(#[source] Cause),
    /// The credentials were refused.
    #[error(
        "the NATS server refuses the credentials: check that the user exists and that its secret is current"
    )]
    Refused(#[source] Cause),
    /// No server could be reached.
    #[error(
        "no NATS server could be reached: check that it runs, that its address is right, and that tls_first is set where the server has \
         handshake_first"
    )]
    Unreachable(#[source] Cause),
    /// It took too long.
    #[error(
        "no NATS server answered within {0:?}: check that it runs, that no firewall drops its packets, and that tls_first is set where \
         the server has handshake_first"
    )]
    TimedOut(Duration),
    /// The files of the certificates are not in order.
    #[error("the certificates for NATS are not taken up, and those in use stay")]
    Material(#[source] Cause),
    /// It was opened and must not be used.
    #[error(transparent)]
    Failed(LinkFailure),
    /// It was closed.
    #[error("the connection to NATS is closed")]
    Closed,
    /// It did not close in time.
    #[error("the connection to NATS did not drain within {0:?}: messages not sent by then are lost")]
    Undrained(Duration),
}

impl ConnectionError {
    pub(super) fn from_connect(error: async_nats::ConnectError) -> Self {
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Self::Refused(error.into())
            }
            ConnectErrorKind::Tls => Self::Tls(error.into()),
            _ if is_from_tls(&error) => Self::Tls(error.into()),
            _ => Self::Unreachable(error.into()),
        }
    }
}

fn is_from_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let within = |error: &(dyn std::error::Error + 'static)| {
        error.is::<rustls::Error>()
            || error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .is_some_and(|inner| inner.is::<rustls::Error>() || is_from_tls(inner))
    };
    std::iter::successors(Some(error), |error| error.source()).any(within)
}
