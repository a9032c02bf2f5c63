//! Changes in the stream, whatever fails: every one once, in order, and enough to rebuild tiers and badges.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::setting::{Guild, PATIENCE, Setting, community, eventually, metric};
use crate::verify::psql;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use muster_domain::{
    BadgeKind, Change, ChangeData, Changed, CommunityId, Disappearance, Event, GuildId, MemberEffect,
    ProfileId,
};
use muster_messaging::api::{Rows, admin, profiles};
use muster_messaging::changes::wire;
use muster_messaging::client::{Client, CommunityClient};
use serde_json::{Value, json};
use tokio::time::sleep;

/// The stream of changes, as the worker may read it.
struct Stream(Client);

impl Stream {
    async fn of(setting: &Setting) -> Result<Self> {
        Ok(Self(Client::new(setting.connect(&setting.services.clients.worker).await?)))
    }

    async fn ask(&self, what: &str, body: &Value) -> Result<Value> {
        let subject = format!("$JS.API.STREAM.{what}.CHANGES");
        let answer = self.0.ask_by_hand(&subject, body.to_string().into_bytes()).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Creates it with these settings, before the worker would.
    async fn create(&self, settings: Value) -> Result<()> {
        let answer = self.ask("CREATE", &settings).await?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(())
    }

    /// Every change that it has.
    async fn read(&self) -> Result<Vec<Change>> {
        let info = self.ask("INFO", &json!({})).await?;
        let number =
            |path| info.pointer(path).and_then(Value::as_u64).with_context(|| format!("a stream in {info}"));
        let mut changes = Vec::new();
        for sequence in number("/state/first_seq")?.max(1)..=number("/state/last_seq")? {
            let message = self.ask("MSG.GET", &json!({ "seq": sequence })).await?;
            let data = message.pointer("/message/data").and_then(Value::as_str);
            let data = data.with_context(|| format!("a message in {message}"))?;
            changes.push(wire::decode(&STANDARD.decode(data)?)?);
        }
        Ok(changes)
    }
}

/// What a follower knows of a community from nothing but its changes.
#[derive(Debug, Default)]
struct Follower {
    /// Of the last change.
    number: u64,
    /// Each visible person's tier and badges.
    members: BTreeMap<String, (Option<String>, Vec<String>)>,
}

impl Follower {
    /// Reads all that the stream has of a community. Each change is there once, and one more than the one before.
    async fn read(stream: &Stream, community: CommunityId) -> Result<Self> {
        let mut follower = Self::default();
        for change in stream.read().await?.into_iter().filter(|change| change.community == community) {
            follower.take(change)?;
        }
        Ok(follower)
    }

    fn take(&mut self, change: Change) -> Result<()> {
        ensure!(change.number == self.number + 1, "{change:?} behind number {}", self.number);
        self.number = change.number;
        let Changed::Member { user, data, .. } = change.what else { bail!("nothing is lost here") };
        let user = String::from(user);
        if let ChangeData::Appeared { tier } = data {
            let before = self.members.insert(user.clone(), (tier.map(String::from), Vec::new()));
            ensure!(before.is_none(), "{user} appears twice");
            return Ok(());
        }
        if matches!(data, ChangeData::Disappeared(Disappearance::Erased)) {
            self.members.remove(&user);
            return Ok(());
        }
        let member = self.members.get_mut(&user).with_context(|| format!("{user} has not appeared"))?;
        match data {
            ChangeData::TierPromoted { from, to } | ChangeData::TierDemoted { from, to } => {
                ensure!(member.0 == from.map(String::from), "{user} held another tier");
                member.0 = to.map(String::from);
            }
            ChangeData::BadgeAwarded(badge) => member.1.push(badge.badge_id.to_string()),
            ChangeData::BadgeRevoked(badge) => member.1.retain(|held| *held != badge.badge_id.to_string()),
            ChangeData::Disappeared(_) => drop(self.members.remove(&user)),
            ChangeData::Appeared { .. } | ChangeData::Renamed { .. } => {}
        }
        Ok(())
    }

    /// Whether it knows what the lists say.
    async fn agrees(mut self, community: &CommunityClient) -> Result<bool> {
        let listed = community.ask(&profiles::Ranked::first(1000)).await?.items;
        let same_members = listed.len() == self.members.len();
        for ranked in listed {
            let profile = ranked.profile;
            let Some((tier, mut badges)) = self.members.remove(profile.user_id.as_str()) else {
                return Ok(false);
            };
            let held = community.ask(&badges_of(profile.profile_id)).await?.items;
            let mut held: Vec<String> = held.iter().map(|badge| badge.badge_id.to_string()).collect();
            held.sort_unstable();
            badges.sort_unstable();
            if tier != profile.tier.map(String::from) || badges != held {
                return Ok(false);
            }
        }
        Ok(same_members)
    }
}

fn badges_of(profile_id: ProfileId) -> profiles::Badges {
    profiles::Badges { profile_id, limit: Rows::default(), cursor: None }
}

/// Events by which members come, go, rise, fall, and win and lose badges.
fn events(guild: &mut Guild, rounds: i64) -> Vec<Event> {
    let mut events = vec![guild.join_guild()];
    for round in 0..rounds {
        for n in 0..60_i64 {
            let user = format!("user{n}");
            let kind = BadgeKind::parse(format!("kind{}", round % 2)).unwrap();
            events.push(guild.join(&user));
            events.push(guild.score(&user, (n * 37 + round * 211) % 1500));
            events.push(match (n + round) % 4 {
                0 => guild.member(&user, MemberEffect::Leave),
                1 => guild.member(&user, MemberEffect::BadgeRevoke { kind, reason: None, by: None }),
                _ => guild.member(&user, MemberEffect::BadgeAward { kind, reason: None, by: None }),
            });
        }
    }
    events
}

/// Waits until the stream has every change of the community, and a follower of them knows what the lists say.
async fn all_are_published(setting: &Setting, client: &Client, guild: &str) -> Result<()> {
    let stream = Stream::of(setting).await?;
    for _ in 0..120 {
        let found = client.find_community(GuildId::parse(guild)?).await?;
        let follower = Follower::read(&stream, found.community_id).await?;
        if follower.number == found.changes && follower.agrees(&client.community(found.community_id)).await? {
            return Ok(());
        }
        sleep(Duration::from_millis(500)).await;
    }
    bail!("the stream never had all changes")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_agrees_with_the_lists_though_workers_are_killed_and_share_the_work() -> Result<()> {
    let setting = Setting::new().await?;
    let beside = setting.configuration.elsewhere()?.serve(&setting.services)?;
    let mut worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let all = events(&mut Guild::new("tabr"), 25);
    let publishing = tokio::spawn(async move { publisher.publish_all(all, |_| {}).await });
    let id = community(&client, "tabr").await?;
    for _ in 0..4 {
        sleep(Duration::from_millis(300)).await;
        worker.kill()?;
        worker = setting.serve()?;
    }
    publishing.await??;
    worker.until_acknowledged(&setting.streams().await?, PATIENCE * 3).await?;
    let tabr = client.community(id);
    all_are_published(&setting, &client, "tabr").await?;
    // An operator's acts are published, too; of a person who is hidden already only the erasure.
    let first = tabr.ask(&profiles::Ranked::first(1)).await?.items.remove(0).profile.profile_id;
    tabr.ask(&admin::HideProfile { profile_id: first }).await?;
    tabr.ask(&admin::EraseProfile { profile_id: first }).await?;
    all_are_published(&setting, &client, "tabr").await?;
    ensure!(worker.stop()? == Some(0) && beside.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_reach_a_broker_that_was_away_when_it_returns() -> Result<()> {
    let mut setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut all = events(&mut Guild::new("tabr"), 20);
    let later = all.split_off(1800);
    publisher.publish_all(all, |_| {}).await?;
    setting.services.nats.kill()?;
    sleep(Duration::from_secs(2)).await;
    setting.services.nats.restart()?;
    community(&client, "tabr").await?;
    publisher.publish_all(later, |_| {}).await?;
    worker.until_acknowledged(&setting.streams().await?, PATIENCE * 3).await?;
    all_are_published(&setting, &client, "tabr").await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_for_which_the_stream_has_no_room_wait_and_events_go_on() -> Result<()> {
    let setting = Setting::new().await?;
    // A stream that refuses what it has no room for, made before the worker would make its own.
    let stream = Stream::of(&setting).await?;
    let settings = json!({"name": "CHANGES", "subjects": ["changes.>"], "max_msgs": 3, "discard": "new"});
    stream.create(settings).await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    publisher.publish_all(events(&mut Guild::new("tabr"), 2), |_| {}).await?;
    let tabr = client.community(community(&client, "tabr").await?);
    eventually("all members", async || {
        tabr.ask(&profiles::Ranked::first(1000)).await.is_ok_and(|page| page.items.len() > 40)
    })
    .await?;
    // However many events came together, there are more members than the stream has room for.
    let shows = |series: &str, least: f64| metric(&worker, series).is_some_and(|value| value > least);
    eventually("changes that wait", async || shows("muster_changes_waiting ", 30.0)).await?;
    eventually("their age", async || shows("muster_changes_oldest_waiting_seconds ", 1.0)).await?;
    ensure!(worker.get("/readyz")?.0 == 200, "events and questions go on");
    ensure!(stream.read().await?.len() == 3);
    let lines = worker.log_tail();
    ensure!(lines.matches("changes are not published").count() == 1, "said once: {lines}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_never_go_back_though_the_database_does() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    publisher.publish_all((0..20).map(|n| guild.join(&format!("user{n}"))), |_| {}).await?;
    let id = community(&client, "tabr").await?;
    let tabr = client.community(id);
    eventually("all members", async || {
        tabr.ask(&profiles::Ranked::first(100)).await.is_ok_and(|page| page.items.len() == 20)
    })
    .await?;
    all_are_published(&setting, &client, "tabr").await?;
    let before = Follower::read(&Stream::of(&setting).await?, id).await?.number;
    let published = metric(&worker, "muster_changes_published_total ");
    ensure!(published == u32::try_from(before).ok().map(f64::from), "{published:?} of {before}");
    ensure!(worker.stop()? == Some(0));
    // As a backup of before most of it has the numbers.
    psql(&setting, "UPDATE community_states SET changes = 3; UPDATE changes_published SET number = 3")?;
    let worker = setting.serve()?;
    publisher.publish(&guild.join("late")).await?;
    let stream = Stream::of(&setting).await?;
    let is_published = async |stream: &Stream| {
        let changes = stream.read().await.unwrap_or_default();
        changes.last().is_some_and(|last| last.number == before + 2)
    };
    eventually("a number above the stream's, with a gap", async || is_published(&stream).await).await?;
    ensure!(client.find_community(GuildId::parse("tabr")?).await?.changes == before + 2);
    ensure!(
        worker.log_tail().contains("the stream has later changes than the database"),
        "{}",
        worker.log_tail()
    );
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
