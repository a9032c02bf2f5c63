use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use muster_domain::{
    Activity, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect, GuildId,
    MaxClockSkew, MemberEffect, Nym, TimeBounds, UserId,
};
use muster_messaging::client::{Client, ClientError, CommunityClient, EventPublisher};
use muster_messaging::connection::NatsConfig;
use muster_messaging::wire::query::Caller;
use muster_messaging::wire::request::{DirectoryRequest, PageRequest, SearchRequest};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::setting::{GUILD, Setting, connect};

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
    pub(super) fn start(setting: &Setting) -> Self {
        let counts = Arc::new(Counts::default());
        let configs = setting.sibling_and_gateway();
        let for_task = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            if let Err(error) = work(configs, &for_task).await {
                for_task.fails(&error);
            }
        });
        Self { counts, task }
    }

    pub(super) fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// How many requests failed, those that met a rate limit aside.
    pub(super) fn failed(&self) -> u64 {
        self.counts.failed.load(Ordering::Relaxed)
    }

    pub(super) fn last_failure(&self) -> Option<String> {
        self.counts.last.lock().ok().and_then(|last| last.clone())
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

    fn takes<T>(&self, answer: Result<T, ClientError>) {
        match answer {
            Ok(_) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.code().is_some_and(|code| code.number() == 429) => {}
            Err(error) => self.fails(&error.into()),
        }
    }
}

async fn work(configs: Result<[NatsConfig; 2]>, counts: &Counts) -> Result<()> {
    let [sibling, gateway] = configs?;
    let client = Client::new(connect(sibling).await?);
    let publisher = EventPublisher::new(&connect(gateway).await?);
    let mut events = Events::new()?;
    // The worker makes the stream when it is started for the first time.
    while publisher.publish(&events.guild()?).await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
    publisher.publish_all(events.members()?, |_| {}).await?;
    let community = loop {
        match client.find_community(GuildId::parse(GUILD)?).await {
            Ok(found) => break found.community_id,
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    };
    let asking = client.community(community);
    let caller = client.on_behalf_of(Caller::parse("stilgar")?).community(community);
    for round in 0_u64.. {
        ask(&asking, &caller, round, counts).await?;
        if round % 5 == 0 {
            publisher.publish(&events.activity(round)?).await.ok();
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn ask(asking: &CommunityClient, caller: &CommunityClient, round: u64, counts: &Counts) -> Result<()> {
    match round % 8 {
        0 => counts.takes(asking.profiles_ranked(PageRequest::first(100)).await),
        1 => counts.takes(asking.badges_leaderboard(PageRequest::default()).await),
        2 => counts.takes(asking.tiers_progression(PageRequest::default()).await),
        3 => counts.takes(asking.directory_list(DirectoryRequest::default()).await),
        4 => {
            let query = "member 1".to_owned();
            counts.takes(asking.profiles_search(SearchRequest { query, limit: None }).await);
        }
        // More than the cap, which is brought down to it.
        5 => counts.takes(asking.profiles_active(PageRequest::first(5000)).await),
        6 => counts.takes(asking.stats().await),
        _ => counts.takes(caller.tiers_threshold().await),
    }
    Ok(())
}

/// The community's events, each a millisecond after the one before.
struct Events {
    guild: GuildId,
    at: i64,
}

impl Events {
    fn new() -> Result<Self> {
        let now = OffsetDateTime::now_utc();
        Ok(Self { guild: GuildId::parse(GUILD)?, at: i64::try_from(now.unix_timestamp_nanos() / 1_000_000)? })
    }

    fn event(&mut self, effect: Effect) -> Result<Event> {
        self.at += 1;
        let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
        let at = EventTime::parse(self.at, times)?;
        Ok(Event { id: EventId::new(Uuid::new_v4()), at, guild: self.guild.clone(), effect })
    }

    fn guild(&mut self) -> Result<Event> {
        self.event(Effect::Guild(GuildEffect::Join { name: Some(CommunityName::parse("Sietch Tabr")?) }))
    }

    fn member(&mut self, number: i64, effect: MemberEffect) -> Result<Event> {
        let user = UserId::parse(format!("user{number}"))?;
        self.event(Effect::Member { user, effect })
    }

    fn members(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for number in 0..MEMBERS {
            let username = Nym::parse(format!("Member {number}"))?;
            events.push(self.member(number, MemberEffect::Join { username: Some(username) })?);
            let conviction = Some(Conviction::clamp(number * 5));
            events.push(self.member(number, MemberEffect::ScoreSet { conviction, activity: None })?);
            if number % 3 == 0 {
                let kind = BadgeKind::parse("water-bearer")?;
                events.push(self.member(number, MemberEffect::BadgeAward { kind, reason: None, by: None })?);
            }
        }
        Ok(events)
    }

    fn activity(&mut self, round: u64) -> Result<Event> {
        let number = i64::try_from(round)? % MEMBERS;
        self.member(number, MemberEffect::ActivityAdd { amount: Activity::clamp(1) })
    }
}
