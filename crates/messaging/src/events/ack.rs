//! Every acknowledgement that the broker gets. When one is lost, the message is delivered again, and recognised by its id.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use tokio::time::{Instant, interval_at};

use super::outcome::{ConsumerEvent, Observe, Outcome};
use super::queue::Deferred;
use super::subjects::event_type;

/// The longest delay before an event that failed is delivered again.
const MAX_DELAY: Duration = Duration::from_mins(1);

/// Acknowledges the deliveries of one consumer.
pub(super) struct Acks {
    client: async_nats::Client,
    ack_wait: Duration,
    observe: Observe,
    /// The start of the subjects that the consumer's deliveries are acknowledged on.
    prefix: OnceLock<String>,
}

impl Acks {
    pub(super) fn new(client: async_nats::Client, ack_wait: Duration, observe: Observe) -> Self {
        Self { client, ack_wait, observe, prefix: OnceLock::new() }
    }

    /// Acknowledges messages, and waits until the broker has the last. It handles a connection's acknowledgements in order, so
    /// it then has those before, too.
    pub(super) async fn ack(&self, messages: Vec<Arc<Message>>) {
        let Some((last, others)) = messages.split_last() else { return };
        for message in others {
            self.report_lost(message, message.ack().await);
        }
        self.report_lost(last, last.double_ack().await);
    }

    /// Ends the deliveries of a message that became a dead letter.
    pub(super) async fn term(&self, message: &Message) {
        self.report_lost(message, message.double_ack_with(AckKind::Term).await);
    }

    /// Has a message delivered again, the later the more often it failed.
    pub(super) async fn nak_after_failure(&self, message: &Message, failures: u32) {
        self.report_lost(message, message.ack_with(AckKind::Nak(Some(delay(failures)))).await);
    }

    /// Gives messages back, to be delivered again at once and not after the broker's wait.
    pub(super) async fn nak(&self, messages: Vec<Arc<Message>>) {
        for message in messages {
            let _ = message.ack_with(AckKind::Nak(None)).await;
        }
    }

    /// Whether a message can be asked for again by its sequence: [`Self::nak_deferred`] can name it.
    pub(super) fn can_defer(&self, message: &Message) -> bool {
        let Some(prefix) = message.reply.as_deref().and_then(prefix) else { return false };
        self.prefix.get_or_init(|| prefix.to_owned());
        true
    }

    /// Has the broker deliver deferred messages again, by their stream sequences.
    pub(super) async fn nak_deferred(&self, deferred: Vec<(u64, Deferred)>) {
        let Some(prefix) = self.prefix.get() else { return };
        for (stream_sequence, Deferred { consumer_sequence, deliveries, .. }) in deferred {
            // The last two are the time of the delivery and the messages behind it, which the broker does not read.
            let subject = format!("{prefix}.{deliveries}.{stream_sequence}.{consumer_sequence}.0.0");
            let _ = self.client.publish(subject, AckKind::Nak(None).into()).await;
        }
    }

    /// Reports, for ever, that the messages that `held` returns are still being worked on.
    pub(super) async fn send_progress_acks(&self, held: impl Fn() -> Vec<Arc<Message>>) -> Infallible {
        // A wait of zero has no period.
        let period = (self.ack_wait / 3).max(Duration::from_millis(1));
        let mut ticks = interval_at(Instant::now() + period, period);
        loop {
            ticks.tick().await;
            for message in held() {
                let _ = message.ack_with(AckKind::Progress).await;
            }
        }
    }

    /// Does something that may take long, and reports meanwhile that these messages are still being worked on.
    pub(super) async fn with_progress_acks<T>(
        &self,
        held: &[Arc<Message>],
        work: impl Future<Output = T>,
    ) -> T {
        tokio::select! {
            done = work => done,
            never = self.send_progress_acks(|| held.to_vec()) => match never {},
        }
    }

    fn report_lost(&self, message: &Message, sent: Result<(), async_nats::Error>) {
        if let Err(error) = sent {
            tracing::debug!(error = %error, "an acknowledgement was lost");
            let outcome = ConsumerEvent::Outcome(event_type(&message.subject), Outcome::NotAcknowledged);
            (self.observe)(&outcome);
        }
    }
}

/// The part of a delivery's reply subject that names the consumer: `$JS.ACK.<stream>.<consumer>`, before the delivery's five
/// numbers (NATS ADR-15). `None` of any other form, whose messages are delivered again after the broker's wait.
fn prefix(reply: &str) -> Option<&str> {
    let prefix = reply.rsplitn(6, '.').nth(5)?;
    (prefix.split('.').count() == 4).then_some(prefix)
}

/// How long an event waits that failed so often: 1 s, 2 s, 4 s and so on up to a minute.
fn delay(failures: u32) -> Duration {
    Duration::from_secs(1)
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)))
        .min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redelivery_delay_doubles_up_to_a_minute() {
        let seconds: Vec<u64> = (1..=8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delay(u32::MAX), MAX_DELAY);
    }

    #[test]
    fn only_the_documented_form_of_a_reply_subject_has_a_prefix() {
        let prefixed = |reply| prefix(reply).is_some();
        assert_eq!(prefix("$JS.ACK.EVENTS.worker.1.2.3.4.5"), Some("$JS.ACK.EVENTS.worker"));
        assert!(!prefixed("$JS.ACK.domain.account.EVENTS.worker.1.2.3.4.5.6"));
        assert!(!prefixed("_INBOX.1"));
    }
}
