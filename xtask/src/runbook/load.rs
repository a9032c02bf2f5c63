use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_domain::{
    Activity, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect, GuildId,
    MaxClockSkew, MemberEffect, Nym, TimeBounds, UserId,
};
use muster_messaging::client::{Client, ClientError, CommunityClient, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig};
use muster_messaging::wire::query::Caller;
use muster_messaging::wire::request::{DirectoryRequest, PageRequest, SearchRequest};
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
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    failed: AtomicU64,
    last: Mutex<Option<String>>,
}

impl Load {
    pub(super) fn start(setting: &Setting) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let [sibling, gateway] = setting.sibling_and_gateway()?;
        let for_task = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            if let Err(error) = work(sibling, gateway, &for_task).await {
                for_task.fails(&error);
            }
        });
        Ok(Self { counts, task })
    }

    /// How many requests were answered and how many failed so far, those that met a rate limit aside.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.answered.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }

    /// How many were answered since `before`, of which none may have failed.
    pub(super) fn none_failed_since(&self, (answered, failed): (u64, u64)) -> Result<u64> {
        let now = self.counts();
        let last = self.counts.last.lock().ok().and_then(|last| last.clone()).unwrap_or_default();
        ensure!(now.1 == failed, "{} requests failed, and none should: {last}", now.1 - failed);
        ensure!(now.0 > answered, "no request was made, which proves nothing");
        Ok(now.0 - answered)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counts {
    fn fails(&self, error: &anyhow::Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.last.lock() {
            *last = Some(format!("{error:#}"));
        }
    }

    fn takes(&self, answer: Result<(), ClientError>) {
        match answer {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Err(error) if error.code().is_some_and(|code| code.number() == 429) => {}
            Err(error) => self.fails(&error.into()),
        }
    }
}

async fn work(sibling: NatsConfig, gateway: NatsConfig, counts: &Counts) -> Result<()> {
    let client = Client::new(Connection::open(sibling).await?);
    let publisher = EventPublisher::new(&Connection::open(gateway).await?);
    // The worker makes the stream when it is started for the first time.
    let name = Some(CommunityName::parse("Sietch Tabr")?);
    while publisher.publish(&event(Effect::Guild(GuildEffect::Join { name: name.clone() }))?).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
    for number in 0..MEMBERS {
        let (username, kind) = (Nym::parse(format!("Member {number}"))?, BadgeKind::parse("water-bearer")?);
        let conviction = Some(Conviction::clamp(number * 5));
        let mut events = vec![
            member(number, MemberEffect::Join { username: Some(username) })?,
            member(number, MemberEffect::ScoreSet { conviction, activity: None })?,
        ];
        if number % 3 == 0 {
            events.push(member(number, MemberEffect::BadgeAward { kind, reason: None, by: None })?);
        }
        publisher.publish_all(events, |_| {}).await?;
    }
    let community = loop {
        match client.find_community(GuildId::parse(GUILD)?).await {
            Ok(found) => break found.community_id,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let asking = client.community(community);
    let caller = client.on_behalf_of(Caller::parse("stilgar")?).community(community);
    for round in 0_i64.. {
        counts.takes(ask(&asking, &caller, round).await);
        if round % 5 == 0 {
            let active = MemberEffect::ActivityAdd { amount: Activity::clamp(1) };
            publisher.publish(&member(round % MEMBERS, active)?).await.ok();
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn ask(asking: &CommunityClient, caller: &CommunityClient, round: i64) -> Result<(), ClientError> {
    match round % 8 {
        0 => asking.profiles_ranked(PageRequest::first(100)).await.map(drop),
        1 => asking.badges_leaderboard(PageRequest::default()).await.map(drop),
        2 => asking.tiers_progression(PageRequest::default()).await.map(drop),
        3 => asking.directory_list(DirectoryRequest::default()).await.map(drop),
        4 => {
            let request = SearchRequest { query: "member 1".to_owned(), limit: None };
            asking.profiles_search(request).await.map(drop)
        }
        // More than the cap, which is brought down to it.
        5 => asking.profiles_active(PageRequest::first(5000)).await.map(drop),
        6 => asking.stats().await.map(drop),
        _ => caller.tiers_threshold().await.map(drop),
    }
}

fn member(number: i64, effect: MemberEffect) -> Result<Event> {
    event(Effect::Member { user: UserId::parse(format!("user{number}"))?, effect })
}

fn event(effect: Effect) -> Result<Event> {
    let now = OffsetDateTime::now_utc();
    let milliseconds = i64::try_from(now.unix_timestamp_nanos() / 1_000_000)?;
    let at = EventTime::parse(milliseconds, TimeBounds::at(now, MaxClockSkew::default()))?;
    Ok(Event { id: EventId::new(Uuid::new_v4()), at, guild: GuildId::parse(GUILD)?, effect })
}
