//! The servers and the worker fail; nothing is lost, nothing is applied twice.

use std::time::Duration;

use anyhow::Result;
use muster_domain::Event;
use muster_messaging::api::{ErrorCode, community, profiles};
use muster_messaging::client::CommunityClient;
use tokio::time::{Instant, sleep};
use xtask::worker::Worker;

use crate::setting::{Guild, Setting, community, eventually};

const MEMBERS: i64 = 200;

/// Joins, scores and many additions: what they come to is [`is_whole`].
fn events(guild: &mut Guild) -> Vec<Event> {
    let mut events = vec![guild.join_guild()];
    for n in 0..MEMBERS {
        let user = format!("user{n}");
        events.extend([guild.join(&user), guild.score(&user, n)]);
    }
    for round in 0..20 {
        for n in 0..MEMBERS {
            events.push(guild.add(&format!("user{n}"), n + round));
        }
    }
    events
}

/// Whether every event had its effect, once.
async fn is_whole(community: &CommunityClient) -> bool {
    let Ok(stats) = community.ask(&community::Stats {}).await else { return false };
    let Ok(active) = community.ask(&profiles::Active::first(1000)).await else { return false };
    let activity: i64 = active.items.iter().map(|item| item.activity.get()).sum();
    let expected: i64 = (0..20).map(|round| (0..MEMBERS).map(|n| n + round).sum::<i64>()).sum();
    stats.members == u64::try_from(MEMBERS).unwrap()
        && stats.conviction_total == (0..MEMBERS).sum::<i64>()
        && activity == expected
}

fn ready(worker: &Worker) -> bool {
    worker.get("/readyz").is_ok_and(|(status, _)| status == 200)
}

fn alive(worker: &Worker) -> bool {
    worker.get("/livez").is_ok_and(|(status, _)| status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_killed_again_and_again() -> Result<()> {
    let setting = Setting::new().await?;
    let mut worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let all = events(&mut guild);
    let publishing = tokio::spawn(async move { publisher.publish_all(all, |_| {}).await });
    for _ in 0..5 {
        sleep(Duration::from_millis(150)).await;
        worker.kill()?;
        worker = setting.serve()?;
    }
    publishing.await??;
    let community = client.community(community(&client, "tabr").await?);
    // What a killed worker had taken is delivered again after the broker's wait for its acknowledgement.
    let deadline = Instant::now() + Duration::from_secs(90);
    while !is_whole(&community).await {
        assert!(Instant::now() < deadline, "the effects never became whole: {:?}", worker.event_counts());
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(worker.stop()?, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_killed_and_comes_back() -> Result<()> {
    let mut setting = Setting::of_one_server().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let mut all = events(&mut guild);
    let later = all.split_off(1000);
    publisher.publish_all(all, |_| {}).await?;
    let community = client.community(community(&client, "tabr").await?);
    setting.services.postgres.kill()?;
    let killed = Instant::now();
    eventually("readiness to go off", || async { !ready(&worker) }).await?;
    assert!(killed.elapsed() < Duration::from_secs(6), "readiness went off after {:?}", killed.elapsed());
    assert!(alive(&worker), "liveness stays on");
    let refused = community.ask(&community::Stats {}).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::Unavailable), "{refused}");
    publisher.publish_all(later, |_| {}).await?;
    setting.services.postgres.restart()?;
    let restarted = Instant::now();
    eventually("readiness to come back", || async { ready(&worker) }).await?;
    eventually("every event's effect", || is_whole(&community)).await?;
    assert!(restarted.elapsed() < Duration::from_secs(20), "all was back after {:?}", restarted.elapsed());
    assert_eq!(worker.event_counts()?.lost, 0, "an outage makes no dead letters");
    assert_eq!(worker.stop()?, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_is_killed_and_comes_back() -> Result<()> {
    let mut setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let mut all = events(&mut guild);
    let later = all.split_off(2000);
    publisher.publish_all(all, |_| {}).await?;
    setting.services.nats.kill()?;
    eventually("readiness to go off", || async { !ready(&worker) }).await?;
    assert!(alive(&worker), "liveness stays on");
    setting.services.nats.restart()?;
    eventually("readiness to come back", || async { ready(&worker) }).await?;
    // The publisher's own connection comes back by itself as well.
    let community_id = community(&client, "tabr").await?;
    publisher.publish_all(later, |_| {}).await?;
    let community = client.community(community_id);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_whole(&community).await {
        assert!(Instant::now() < deadline, "the effects never became whole: {:?}", worker.event_counts());
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(worker.stop()?, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_the_stream_and_one_leaves_under_load() -> Result<()> {
    let setting = Setting::new().await?;
    let leaving = setting.serve()?;
    let second = setting.configuration.elsewhere()?;
    let staying = second.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut guild = Guild::new("tabr");
    let all = events(&mut guild);
    let publishing = tokio::spawn(async move { publisher.publish_all(all, |_| {}).await });
    let id = community(&client, "tabr").await?;
    let asking = {
        let community = client.community(id);
        tokio::spawn(async move {
            let until = Instant::now() + Duration::from_secs(3);
            let mut answered = 0_u32;
            // However slow the machine is, requests go on until some were asked while the worker left.
            while Instant::now() < until
                || (answered <= 50 && Instant::now() < until + Duration::from_secs(60))
            {
                community.ask(&profiles::Ranked::first(50)).await?;
                answered += 1;
            }
            Ok::<_, muster_messaging::client::ClientError>(answered)
        })
    };
    sleep(Duration::from_millis(800)).await;
    assert_eq!(leaving.stop()?, Some(0), "a stop under load is a clean one");
    publishing.await??;
    let answered = asking.await?.expect("no request fails while one of two workers stops");
    assert!(answered > 50);
    let community = client.community(id);
    eventually("every event's effect", || is_whole(&community)).await?;
    assert_eq!(staying.stop()?, Some(0));
    Ok(())
}
