//! The state of a link, and when it is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectErrorKind, Event, ServerError};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::log_budget::{Line, LogBudget};

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// There is.
    Connected,
    /// There is none at the moment; it is being restored.
    Disconnected {
        /// Since when.
        since: Instant,
    },
    /// It was closed on purpose.
    Closed,
    /// It is not restored any more: the process should end, and be started anew with what it lacks.
    Failed(LinkFailure),
}

/// Why a link is not restored any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkFailure {
    /// The servers refused the credentials again and again.
    #[error(
        "the NATS servers refuse the credentials: check that the user exists and that its secret is current"
    )]
    Refused,
    /// No server was reached for too long.
    #[error("no NATS server was reached for too long: check the servers, the network and the certificates")]
    Unreachable,
    /// A server asked for credentials without having proved by TLS who it is, where TLS is required.
    #[error(
        "a NATS server did not prove its identity by TLS, which is required: no credentials were sent to it"
    )]
    NotTls,
    /// The library's own task ended.
    #[error(
        "the NATS client ended by itself, as a message whose header it cannot read makes it do: start again, and see who publishes"
    )]
    Ended,
}

/// Counts of a link since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Connections after the first.
    pub reconnects: u64,
    /// Refusals of the credentials.
    pub refusals: u64,
    /// Messages dropped because a subscription was not read fast enough.
    pub slow_consumers: u64,
}

/// Turns the library's events into a state and counts, and bounds what it would repeat for ever.
pub(super) struct Monitor {
    pub(super) client: Client,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) counts: watch::Sender<LinkCounts>,
    pub(super) given_up: Arc<AtomicBool>,
    pub(super) unproven: Arc<AtomicBool>,
    pub(super) give_up_after: Duration,
    pub(super) max_refusals: u32,
    pub(super) connections: u64,
    pub(super) refusals: u32,
    pub(super) log: LogBudget,
}

/// How often the state is compared with the library's own: of its events it drops those that come too fast.
const COMPARE: Duration = Duration::from_secs(1);
/// Lines a minute about errors that the server reports.
pub(super) const LINES_PER_MINUTE: u32 = 10;

impl Monitor {
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut compare = interval(COMPARE);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let broken_since = match *self.state.borrow() {
                LinkState::Disconnected { since } => Some(since),
                _ => None,
            };
            let given_up = async {
                match broken_since {
                    Some(since) => match since.checked_add(self.give_up_after) {
                        Some(end) => tokio::time::sleep_until(end).await,
                        None => std::future::pending().await,
                    },
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event).await,
                    None => return self.fail(LinkFailure::Ended),
                },
                () = given_up => self.fail(LinkFailure::Unreachable),
                _ = compare.tick() => self.compare(),
            }
        }
    }

    async fn handle_event(&mut self, event: Event) {
        let failed = matches!(*self.state.borrow(), LinkState::Failed(_));
        match event {
            Event::Connected => {
                self.connections = self.connections.saturating_add(1);
                if self.connections > 1 {
                    self.count(|counts| &mut counts.reconnects);
                }
                self.refusals = 0;
                if !failed {
                    self.state.send_replace(LinkState::Connected);
                }
            }
            Event::Disconnected if !failed => {
                self.state.send_replace(LinkState::Disconnected { since: Instant::now() });
            }
            Event::Closed if !failed => {
                self.state.send_replace(LinkState::Closed);
            }
            Event::LameDuckMode => {
                // Fails only on a connection that is closed.
                let _ = self.client.force_reconnect().await;
            }
            Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) => {
                self.count(|counts| &mut counts.slow_consumers);
            }
            Event::ServerError(ServerError::AuthorizationViolation) => self.refused(),
            Event::ClientError(ClientError::Other(text)) if is_refusal(&text) => self.refused(),
            // Such as a subject that its user may not use: whoever waits there waits in vain.
            Event::ServerError(ServerError::Other(text)) => {
                if let Some(Line { left_out }) = self.log.line() {
                    tracing::warn!(error = text, left_out, "the NATS server reports an error");
                }
            }
            _ => {}
        }
    }

    /// Takes the library's own state where its event was dropped.
    fn compare(&mut self) {
        let is = self.client.connection_state();
        let was = *self.state.borrow();
        match (was, is) {
            (LinkState::Connected, State::Disconnected) => {
                self.state.send_replace(LinkState::Disconnected { since: Instant::now() });
            }
            (LinkState::Disconnected { .. }, State::Connected) => {
                self.refusals = 0;
                self.state.send_replace(LinkState::Connected);
            }
            _ => {}
        }
    }

    fn count(&self, what: impl FnOnce(&mut LinkCounts) -> &mut u64) {
        self.counts.send_modify(|counts| {
            let count = what(counts);
            *count = count.saturating_add(1);
        });
    }

    fn refused(&mut self) {
        if self.unproven.load(Ordering::Acquire) {
            return self.fail(LinkFailure::NotTls);
        }
        self.count(|counts| &mut counts.refusals);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= self.max_refusals {
            self.fail(LinkFailure::Refused);
        }
    }

    fn fail(&self, why: LinkFailure) {
        self.given_up.store(true, Ordering::Release);
        self.state.send_if_modified(|state| match state {
            LinkState::Closed | LinkState::Failed(_) => false,
            _ => {
                tracing::error!(error = %why, "the connection to NATS failed permanently");
                *state = LinkState::Failed(why);
                true
            }
        });
    }
}

/// The library tells why an attempt to reconnect failed only by the text of its kind.
fn is_refusal(text: &str) -> bool {
    [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication]
        .iter()
        .any(|kind| kind.to_string() == text)
}
