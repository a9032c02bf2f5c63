use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Result, ensure};
use muster_domain::GuildId;
use muster_messaging::api::{Caller, ErrorCode, profiles};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::setting::Setting;
use crate::demo::community::{self, GUILD, Member};

const MEMBERS: u32 = 300;
/// Between two questions: well below what a community may ask, since the runbooks ask as well.
const PAUSE: Duration = Duration::from_millis(40);
const RETRY: Duration = Duration::from_millis(200);
/// How many outcomes wait at most to be counted: those of forty minutes.
const OUTCOMES: usize = 1 << 16;

/// A sibling service at work while the runbooks are run: it asks, and events come in. Ended when dropped.
pub(super) struct Load {
    outcomes: Receiver<Outcome>,
    _task: JoinSet<()>,
}

/// Whether a request was answered, else why not. Those that met a rate limit are left out.
type Outcome = Result<(), String>;

impl Load {
    pub(super) fn start(setting: &Setting) -> Result<Self> {
        let services = &setting.services;
        let sibling = services.nats_config(&services.clients.operator, "sibling")?;
        let gateway = services.nats_config(&services.clients.gateway, "gateway")?;
        let (sender, outcomes) = sync_channel(OUTCOMES);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = work(sibling, gateway, &sender).await {
                sender.try_send(Err(format!("{error:#}"))).ok();
            }
        });
        Ok(Self { outcomes, _task: task })
    }

    /// How many requests were answered since this was asked last; none may have failed.
    pub(super) fn answered_without_failure(&self) -> Result<usize> {
        let (answered, failures): (Vec<_>, Vec<_>) = self.outcomes.try_iter().partition(Result::is_ok);
        ensure!(failures.is_empty(), "{} requests failed, and none should: {failures:?}", failures.len());
        ensure!(!answered.is_empty(), "no request was made, which proves nothing");
        Ok(answered.len())
    }
}

async fn work(sibling: NatsConfig, gateway: NatsConfig, outcomes: &SyncSender<Outcome>) -> Result<()> {
    let client = Client::new(Connection::open(sibling).await?);
    let publisher = EventPublisher::new(&Connection::open(gateway).await?);
    let members = community::members(MEMBERS);
    let mut events = community::founding(&members);
    let badge = json!({"kind": "water-bearer"});
    let badge = |member: &Member| community::event("badge.award", Some(&member.user_id), badge.clone());
    events.extend(members.iter().map(badge));
    // The worker makes the stream when it is started for the first time.
    while community::publish(&publisher, events.clone()).await.is_err() {
        sleep(RETRY).await;
    }
    let community = loop {
        match client.find_community(GuildId::parse(GUILD)?).await {
            Ok(found) => break found.community_id,
            Err(_) => sleep(RETRY).await,
        }
    };
    let asking = client.on_behalf_of(Caller::parse("stilgar")?).community(community);
    for (round, member) in members.iter().cycle().enumerate() {
        match asking.ask(&profiles::Ranked::first(100)).await {
            Ok(_) => outcomes.try_send(Ok(()))?,
            Err(error) if error.code() == Some(ErrorCode::RateLimited) => {}
            Err(error) => outcomes.try_send(Err(error.to_string()))?,
        }
        if round % 5 == 0 {
            let active = community::event("activity.add", Some(&member.user_id), json!({"amount": 1}));
            community::publish(&publisher, vec![active]).await.ok();
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
