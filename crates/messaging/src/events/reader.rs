//! Reads the stream ahead of the lanes, and keeps what was taken in queues from which they take batches.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use muster_domain::{Effect, Event, GuildId, Stripe, TimeBounds};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::consumer::{ConsumerError, Delivered, Happening, Inner, MAX_BATCH, Outcome};
use super::envelope::{self, Decoded, EventBounds};
use super::fitness::{self, Finding};
use super::lane;
use super::losses::Held;
use super::stream::{self, EVENTS};
use super::waiting::{Came, Owner, PutOff, Taken, Waiting};
use crate::connection::LinkState;
use crate::request::TRACEPARENT;

/// How long one wait for the first event lasts.
const WAIT: Duration = Duration::from_secs(2);
/// How much longer than that the broker may take to say that there is none.
const SILENCE: Duration = Duration::from_secs(2);
/// How many events are taken at once beside the first, and of how many bytes.
const READ: usize = 4000;
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long they may take, which the server has ready.
const REST: Duration = Duration::from_secs(5);
/// The most bytes of a batch.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How often it is looked whether what was put off is to come.
const ASK: Duration = Duration::from_millis(20);
/// How soon it is seen that the store is back, or that the connection is.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is looked what the stream dropped: soon after a gap was seen, else only now and then.
const LOOK_AT_GAPS: Duration = Duration::from_secs(1);
const LOOKS_APART: u32 = 5;
/// How often lost events are logged while more and more are.
const LOG_LOSSES: Duration = Duration::from_mins(1);
/// The longest `traceparent` that is passed on.
const MAX_TRACEPARENT: usize = 128;

/// What the reader gives to the lanes.
pub(super) struct Taking {
    waiting: Mutex<Waiting<Item>>,
    /// Something waits that did not, or may be worked on that might not.
    more: Notify,
    /// How many lanes may work on one community at once when the end of the stream is in sight.
    lanes: usize,
    /// How many lanes wait for the store. Meanwhile nothing is read: it would all be put off, again and again.
    stalled: AtomicUsize,
}

/// What was taken and what is to be done with it.
pub(super) struct Item {
    pub(super) message: Arc<Message>,
    pub(super) work: Work,
}

/// What is to be done with a message.
pub(super) enum Work {
    /// Its event is to be applied.
    Apply(Delivered),
    /// It can never be applied, for this reason.
    Bury(String),
}

impl Work {
    /// The stripe that it changes members of; the first, where it does of none.
    fn stripe(&self) -> Stripe {
        match self {
            Self::Apply(Delivered { event: Event { effect: Effect::Member { user, .. }, .. }, .. }) => {
                Stripe::of(user)
            }
            Self::Apply(_) | Self::Bury(_) => Stripe::default(),
        }
    }
}

/// A batch. Until it is dropped, no other lane works on its stripes of its communities.
pub(super) struct Batch<'a> {
    pub(super) items: Vec<Item>,
    lines: Vec<(Owner, Stripe)>,
    taking: &'a Taking,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.taking.lock().release(std::mem::take(&mut self.lines));
        self.taking.more.notify_waiters();
    }
}

/// Until it is dropped, nothing is read.
pub(super) struct Stall<'a>(&'a Taking);

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Taking {
    /// For so many lanes, of which one is kept from every community that has the others.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting::new()),
            more: Notify::new(),
            lanes: lanes.saturating_sub(1).max(1),
            stalled: AtomicUsize::new(0),
        }
    }

    /// Takes note whether reading is behind. While it is, each community has one lane: what stands behind a flood is found the
    /// sooner the less the database and the broker are busy with it.
    fn reading(&self, behind: bool) {
        self.lock().allow(if behind { 1 } else { self.lanes });
    }

    /// Waits for a batch of up to `most` events.
    pub(super) async fn batch(&self, most: usize) -> Batch<'_> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let taken = self.lock().take(most.clamp(1, MAX_BATCH), BATCH_BYTES);
            if let Some(Taken { items, lines }) = taken {
                return Batch { items, lines, taking: self };
            }
            more.await;
        }
    }

    /// Puts back what could not be applied for a fault of the community's rows, to be taken again after the time.
    pub(super) fn hold(&self, guild: &GuildId, items: Vec<Item>, until: Instant) {
        let items = items.into_iter().map(|item| (item.work.stripe(), bytes_of(&item.message), item));
        self.lock().hold(Some(guild.clone()), items.collect(), until);
    }

    /// Takes note that events of these communities could be applied.
    pub(super) fn trust<'a>(&self, guilds: impl IntoIterator<Item = &'a GuildId>) {
        let mut waiting = self.lock();
        if waiting.holds_any() {
            for guild in guilds {
                waiting.trust(&Some(guild.clone()));
            }
        }
    }

    /// Stops reading for as long as a lane waits for the store.
    pub(super) fn stall(&self) -> Stall<'_> {
        self.stalled.fetch_add(1, Ordering::Relaxed);
        Stall(self)
    }

    // A panic with the lock held leaves queues that are whole.
    fn lock(&self) -> MutexGuard<'_, Waiting<Item>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that reads.
pub(super) struct Reader {
    pub(super) inner: Arc<Inner>,
    pub(super) taking: Arc<Taking>,
    pub(super) stop: CancellationToken,
    /// What the subjects begin with by which the consumer's deliveries are acknowledged.
    pub(super) acks: OnceLock<String>,
}

impl Reader {
    pub(super) async fn run(self) -> Result<(), ConsumerError> {
        let ended = tokio::select! {
            ended = self.read() => ended,
            () = self.keep() => Ok(()),
            () = self.ask() => Ok(()),
            () = self.watch() => Ok(()),
        };
        // Whoever reads on has it at once instead of after the broker's wait.
        let (waited, put_off) = self.taking.lock().drain();
        for item in waited {
            let _ = item.message.ack_with(AckKind::Nak(None)).await;
        }
        self.deliver_again(put_off).await;
        ended
    }

    async fn read(&self) -> Result<(), ConsumerError> {
        // While there is more, it is asked for before what came is looked at, so that the broker need not wait for that.
        let mut ahead: Option<pull::Batch> = None;
        while ahead.is_some() || !self.stop.is_cancelled() {
            if ahead.is_none() && self.is_stalled() {
                self.pause(LOOK).await;
                continue;
            }
            let read = match ahead.take() {
                Some(batch) => Ok(read_all(batch).await),
                None => self.pull().await,
            };
            match read {
                Ok(messages) => {
                    self.taking.reading(messages.len() >= READ);
                    if messages.len() >= READ && !self.is_stalled() && !self.stop.is_cancelled() {
                        ahead = self.fetch().await;
                    }
                    self.sort(messages).await;
                }
                Err(cause) => {
                    tracing::debug!(error = %cause, "events could not be taken");
                    stream::still_there(&self.inner.context, self.inner.stream_created).await?;
                    self.consumer_still_there().await?;
                    self.pause(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(())
    }

    fn is_stalled(&self) -> bool {
        self.taking.stalled.load(Ordering::Relaxed) > 0
    }

    /// Asks, for ever, for what was put off, when its turn comes; and lets communities take turns again that were held.
    async fn ask(&self) {
        let mut ticks = tokio::time::interval(ASK);
        loop {
            ticks.tick().await;
            if self.taking.lock().wake(Instant::now()) {
                self.taking.more.notify_waiters();
            }
            if !self.is_stalled() {
                let wanted = self.taking.lock().ask(Instant::now());
                self.deliver_again(wanted).await;
            }
        }
    }

    /// Has the broker deliver what was put off, by its sequences, again. What it then does not, it does when its wait is over.
    async fn deliver_again(&self, put_off: Vec<(u64, PutOff)>) {
        let Some(acks) = self.acks.get() else { return };
        for (sequence, PutOff { delivery, deliveries, .. }) in put_off {
            // The last two, when it was delivered and how much stood behind it, are for the reader alone.
            let subject = format!("{acks}.{deliveries}.{sequence}.{delivery}.0.0");
            let _ = self.inner.connection.client().publish(subject, AckKind::Nak(None).into()).await;
        }
    }

    /// Looks, for ever, what the stream dropped before it was applied, counts it, and says so.
    async fn watch(&self) {
        let mut ticks = tokio::time::interval(LOOK_AT_GAPS);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut watched = Watched::default();
        for round in (0..LOOKS_APART).cycle() {
            ticks.tick().await;
            if round > 0 && !self.inner.losses.suspects() {
                continue;
            }
            match self.look(&mut watched).await {
                Ok(lost) => watched.tell(&self.inner, lost),
                Err(error) => {
                    tracing::debug!(error = %error, "what the stream dropped is not known this time")
                }
            }
        }
    }

    /// One look: answers how many events are known to be lost beyond those that were.
    async fn look(&self, watched: &mut Watched) -> Result<u64, async_nats::Error> {
        let inner = &self.inner;
        let losses = &inner.losses;
        let reconnects = inner.connection.counts().reconnects;
        if std::mem::replace(&mut watched.reconnects, reconnects) != reconnects {
            losses.lose_sight();
        }
        // In this order: what the stream had dropped before the consumer is asked, the consumer cannot deliver any more.
        let stream = inner.context.get_stream(EVENTS).await?;
        let info = stream.cached_info();
        if info.created != inner.stream_created {
            return Ok(0);
        }
        watched.settings(fitness::of_events(&info.config));
        let consumer = inner.consumer.get_info().await?.delivered;
        losses.stands(consumer.consumer_sequence, consumer.stream_sequence, info.state.first_sequence);

        let suspects = losses.take();
        let deleted = info.state.deleted_count.unwrap_or(0);
        let now = (info.state.first_sequence, deleted);
        if suspects.is_empty() && std::mem::replace(&mut watched.held, now) == now {
            return Ok(0);
        }
        // Asked after the gaps were seen, and in full only where something within was deleted.
        let info = match stream.info_builder().with_deleted(deleted > 0).fetch().await {
            Ok(info) => info.info,
            Err(error) => {
                losses.give_back(suspects);
                watched.held = (0, 0);
                return Err(error.into());
            }
        };
        let mut deleted = info.state.deleted.unwrap_or_default();
        deleted.sort_unstable();
        let held = Held { first: info.state.first_sequence, deleted };
        let elsewhere = losses.last_elsewhere();
        let put_off = self.taking.lock().forget_gone(
            inner.config.ack_wait,
            |sequence| held.lacks(sequence),
            // What was given to others since the broker took it back may be with them.
            |until| elsewhere.is_none_or(|elsewhere| elsewhere <= until),
        );
        Ok(losses.count(&suspects, &held, put_off))
    }

    /// Tells the broker, for ever, that what waits is not lost.
    async fn keep(&self) {
        let mut signs = tokio::time::interval(self.inner.config.ack_wait / 3);
        signs.tick().await;
        loop {
            signs.tick().await;
            let held: Vec<Arc<Message>> = {
                let mut waiting = self.taking.lock();
                waiting.forget();
                waiting.iter().map(|item| Arc::clone(&item.message)).collect()
            };
            for message in held {
                // Lost, the event may be delivered a second time, which changes nothing.
                let _ = message.ack_with(AckKind::Progress).await;
            }
        }
    }

    /// Sleeps, unless reading is stopped.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn consumer_still_there(&self) -> Result<(), ConsumerError> {
        use async_nats::jetstream::context::ConsumerInfoErrorKind;
        match self.inner.consumer.get_info().await {
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Err(ConsumerError::DurableGone),
            // Not to be reached is not to be gone.
            _ => Ok(()),
        }
    }

    /// Waits for an event, then takes whatever else is ready, up to a bound.
    async fn pull(&self) -> Result<Vec<Message>, async_nats::Error> {
        let inner = &self.inner;
        let mut link = inner.connection.state();
        if *link.borrow_and_update() != LinkState::Connected {
            self.pause(LOOK).await;
            return Ok(Vec::new());
        }
        let asked = Instant::now();
        let mut wait = inner.consumer.batch().max_messages(1).expires(WAIT).messages().await?;
        let first = tokio::select! {
            first = wait.next() => first,
            // A request that was waiting for an answer is lost with its connection.
            _ = link.changed() => None,
            () = self.stop.cancelled() => {
                // What has arrived already goes back at once instead of after the broker's wait.
                if let Some(Some(Ok(message))) = wait.next().now_or_never() {
                    message.ack_with(AckKind::Nak(None)).await?;
                }
                None
            }
        };
        let Some(first) = first.transpose()? else {
            // The broker says so when it has nothing. One that says nothing at all may have no such consumer any more.
            return if asked.elapsed() > WAIT + SILENCE { Err("no answer".into()) } else { Ok(Vec::new()) };
        };
        let mut messages = vec![first];
        // From here on nothing fails: what was taken is worked on.
        if let Some(rest) = self.fetch().await {
            messages.extend(read_all(rest).await);
        }
        Ok(messages)
    }

    /// Asks for whatever is ready, up to a bound.
    async fn fetch(&self) -> Option<pull::Batch> {
        self.inner.consumer.fetch().max_messages(READ).max_bytes(READ_BYTES).messages().await.ok()
    }

    /// Puts messages into the queues; acknowledges those without effect, and puts off those without room.
    async fn sort(&self, messages: Vec<Message>) {
        let mut without_effect = Vec::new();
        let config = &self.inner.config;
        let times = TimeBounds::at(OffsetDateTime::now_utc(), config.max_clock_skew);
        let bounds = EventBounds { max_bytes: config.max_bytes, times };
        for message in messages {
            // Whatever is not of a stream was not asked for.
            let Ok(info) = message.info() else { continue };
            let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
            let came = Came {
                sequence: info.stream_sequence,
                delivery: info.consumer_sequence,
                deliveries,
                bytes: bytes_of(&message),
            };
            self.inner.losses.delivered(came);
            let owner: Owner = envelope::guild_of(&message.payload, config.max_bytes);
            if !self.taking.lock().has_room(&owner, came) {
                // Most of a flood goes this way: no more is read of it than whose it is.
                if deliveries == 1 {
                    self.inner.observe(envelope::event_type(&message.subject), Outcome::PutOff);
                }
                if let Some(acks) = message.reply.as_deref().and_then(acks_of) {
                    self.acks.get_or_init(|| acks.to_owned());
                    self.taking.lock().put_off(owner, came);
                }
                continue;
            }
            let work = match envelope::decode(&message.subject, &message.payload, bounds) {
                Ok(Decoded::Event(event)) => Work::Apply(Delivered {
                    sequence: info.stream_sequence,
                    deliveries,
                    traceparent: traceparent(&message),
                    event,
                }),
                Ok(Decoded::Outage) => {
                    self.inner.observe(envelope::event_type(&message.subject), Outcome::Outage);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Ok(Decoded::Unknown { .. }) => {
                    tracing::debug!("an event of unknown type is passed over");
                    self.inner.observe(None, Outcome::Unknown);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Err(reason) => Work::Bury(reason.to_string()),
            };
            let stripe = work.stripe();
            self.taking.lock().put(owner, stripe, came, Item { message: Arc::new(message), work });
        }
        self.taking.more.notify_waiters();
        lane::acknowledge(&self.inner, without_effect).await;
    }
}

/// What a message counts among those that wait. One that is larger than any event is not read, and must not wait for room that
/// there never is.
fn bytes_of(message: &Message) -> usize {
    message.length.min(*envelope::MAX_BYTES.end())
}

/// What the looks at the stream have seen so far.
#[derive(Default)]
struct Watched {
    reconnects: u64,
    /// The stream's first sequence, and how many above it were deleted.
    held: (u64, u64),
    /// Lost events that were not logged yet, and when some were last.
    untold: u64,
    told: Option<Instant>,
    /// Settings that can lose events; `None` before the first look.
    unfit: Option<Vec<String>>,
}

impl Watched {
    /// Counts lost events, and logs them: the first at once, then now and then.
    fn tell(&mut self, inner: &Inner, lost: u64) {
        if lost > 0 {
            (inner.config.observe)(&Happening::Dropped { events: lost });
            self.untold = self.untold.saturating_add(lost);
        }
        if self.untold > 0 && self.told.is_none_or(|told| told.elapsed() >= LOG_LOSSES) {
            tracing::error!(
                events = self.untold,
                since_start = inner.losses.total(),
                "the stream EVENTS dropped events before they were applied: they are lost to Muster"
            );
            (self.untold, self.told) = (0, Some(Instant::now()));
        }
    }

    /// Logs when the stream's settings come to lose events, and when they no longer do.
    fn settings(&mut self, findings: Vec<Finding>) {
        let unfit: Vec<String> = findings.iter().filter(|it| it.is_unfit()).map(Finding::to_string).collect();
        let before = self.unfit.replace(unfit.clone());
        // What they are at the start is told there.
        if before.as_ref().is_some_and(|before| *before != unfit) {
            match unfit.is_empty() {
                true => tracing::info!("the settings of the stream EVENTS are in order again"),
                false => tracing::error!(
                    settings = unfit.join("; "),
                    "the stream EVENTS was changed and can lose events"
                ),
            }
        }
    }
}

async fn read_all(mut batch: pull::Batch) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(REST, batch.next()).await {
        messages.push(message);
    }
    messages
}

/// The part of a delivery's reply subject that is the consumer's: `$JS.ACK.<stream>.<consumer>`, before the delivery's five
/// numbers (NATS ADR-15). `None` of any other form, whose deliveries come again by themselves.
fn acks_of(reply: &str) -> Option<&str> {
    let acks = reply.rsplitn(6, '.').nth(5)?;
    (acks.split('.').count() == 4).then_some(acks)
}

fn traceparent(message: &Message) -> Option<String> {
    let header = message.headers.as_ref()?.get(TRACEPARENT)?.as_str();
    (header.len() <= MAX_TRACEPARENT).then(|| header.to_owned())
}
