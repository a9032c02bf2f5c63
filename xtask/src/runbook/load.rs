use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_domain::{
    Activity, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect, GuildId,
    MaxClockSkew, MemberEffect, Nym, TimeBounds, UserId,
};
use muster_messaging::api::{Caller, badges, profiles, tiers};
use muster_messaging::client::{Client, ClientError, CommunityClient, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::setting::{GUILD, Setting};

/// How many members the community has.
const MEMBERS: i64 = 300;
/// Between two questions: well below what a community may ask, since the runbooks ask as well.
const PAUSE: Duration = Duration::from_millis(40);
const RETRY: Duration = Duration::from_millis(200);

/// A sibling service at work while the runbooks are run: it asks, and events come in. Ended when dropped.
pub(super) struct Load {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What became of the requests, those that met a rate limit aside.
#[derive(Clone, Default)]
pub(super) struct Seen {
    answered: u64,
    failures: Vec<String>,
}

impl Load {
    pub(super) fn start(setting: &Setting) -> Result<Self> {
        let [sibling, gateway] = setting.sibling_and_gateway()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let kept = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            if let Err(error) = work(sibling, gateway, &kept).await {
                locked(&kept).failures.push(format!("{error:#}"));
            }
        });
        Ok(Self { seen, task })
    }

    pub(super) fn seen(&self) -> Seen {
        locked(&self.seen).clone()
    }

    /// How many requests were answered since `before`; none may have failed.
    pub(super) fn answered_without_failure(&self, before: &Seen) -> Result<u64> {
        let now = self.seen();
        let failures = now.failures.get(before.failures.len()..).unwrap_or_default();
        ensure!(failures.is_empty(), "{} requests failed, and none should: {failures:?}", failures.len());
        ensure!(now.answered > before.answered, "no request was made, which proves nothing");
        Ok(now.answered - before.answered)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep(seen: &Mutex<Seen>, answer: Result<(), ClientError>) {
    match answer {
        Ok(()) => locked(seen).answered += 1,
        Err(error) if error.code().is_some_and(|code| code.number() == 429) => {}
        Err(error) => locked(seen).failures.push(error.to_string()),
    }
}

async fn work(sibling: NatsConfig, gateway: NatsConfig, seen: &Mutex<Seen>) -> Result<()> {
    let client = Client::new(Connection::open(sibling).await?);
    let publisher = EventPublisher::new(&Connection::open(gateway).await?);
    let name = Some(CommunityName::parse("Sietch Tabr")?);
    // The worker makes the stream when it is started for the first time.
    while publisher.publish(&event(Effect::Guild(GuildEffect::Join { name: name.clone() }))?).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
    let mut events = Vec::new();
    for number in 0..MEMBERS {
        let username = Some(Nym::parse(format!("Member {number}"))?);
        events.push(member(number, MemberEffect::Join { username })?);
        let conviction = Some(Conviction::clamp(number * 5));
        events.push(member(number, MemberEffect::ScoreSet { conviction, activity: None })?);
        let kind = BadgeKind::parse("water-bearer")?;
        events.push(member(number, MemberEffect::BadgeAward { kind, reason: None, by: None })?);
    }
    publisher.publish_all(events, |_| {}).await?;
    let community = loop {
        match client.find_community(GuildId::parse(GUILD)?).await {
            Ok(found) => break found.community_id,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let asking = client.on_behalf_of(Caller::parse("stilgar")?).community(community);
    for round in 0_i64.. {
        keep(seen, ask(&asking, round).await);
        if round % 5 == 0 {
            let active = MemberEffect::ActivityAdd { amount: Activity::clamp(1) };
            publisher.publish(&member(round % MEMBERS, active)?).await.ok();
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn ask(asking: &CommunityClient, round: i64) -> Result<(), ClientError> {
    match round % 5 {
        0 => asking.ask(&profiles::Ranked::first(100)).await.map(drop),
        // More than the cap, which is brought down to it.
        1 => asking.ask(&profiles::Active::first(5000)).await.map(drop),
        2 => asking.ask(&tiers::Progression::default()).await.map(drop),
        3 => asking.ask(&badges::Leaderboard::default()).await.map(drop),
        _ => asking.ask(&tiers::Threshold {}).await.map(drop),
    }
}

fn member(number: i64, effect: MemberEffect) -> Result<Event> {
    event(Effect::Member { user: UserId::parse(format!("user{number}"))?, effect })
}

fn event(effect: Effect) -> Result<Event> {
    let now = OffsetDateTime::now_utc();
    let at = i64::try_from(now.unix_timestamp_nanos() / 1_000_000)?;
    let at = EventTime::parse(at, TimeBounds::at(now, MaxClockSkew::default()))?;
    Ok(Event { id: EventId::new(Uuid::new_v4()), at, guild: GuildId::parse(GUILD)?, effect })
}
