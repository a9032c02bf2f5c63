//! Many clients of one community ask without pause; another community does not wait for them.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use muster_messaging::api::{community, profiles};
use muster_messaging::client::CommunityClient;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::setting::{Guild, Setting, community, eventually};

const MEMBERS: usize = 300;
const ASKERS: usize = 200;

/// How long an answer takes, at the median of forty, and how many were refused.
async fn median(community: &CommunityClient) -> (Duration, usize) {
    let (mut took, mut refused) = (Vec::new(), 0);
    for _ in 0..40 {
        let asked = Instant::now();
        match community.ask(&profiles::Ranked::first(10)).await {
            Ok(_) => took.push(asked.elapsed()),
            Err(_) => refused += 1,
        }
        sleep(Duration::from_millis(5)).await;
    }
    took.sort();
    (took.get(took.len() / 2).copied().unwrap_or(Duration::MAX), refused)
}

/// What [`median`] comes to: alone, in the crowded community, and in another one.
async fn measured(per_second: &str) -> Result<[(Duration, usize); 3]> {
    let setting = Setting::new().await?;
    let configuration = setting
        .configuration
        .with("MUSTER__LIMITS__COMMUNITY_PER_SECOND", per_second)
        .with("MUSTER__LIMITS__COMMUNITY_BURST", per_second);
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut communities = Vec::new();
    for name in ["tabr", "tuek"] {
        let mut guild = Guild::new(name);
        let mut events = vec![guild.join_guild()];
        events.extend((0..MEMBERS).map(|n| guild.join(&format!("user{n}"))));
        publisher.publish_all(events, |_| {}).await?;
        let joined = client.community(community(&client, name).await?);
        let all = async || {
            joined
                .ask(&community::Stats {})
                .await
                .is_ok_and(|stats| usize::try_from(stats.members).is_ok_and(|members| members == MEMBERS))
        };
        eventually("every member", all).await?;
        communities.push(joined);
    }
    let [crowded, other] = communities.as_slice() else { bail!("there are not two communities") };
    let quiet = median(other).await;
    let mut crowd = JoinSet::new();
    // What asks is a connection of its own, so that only the worker is shared.
    let askers = setting.client().await?.0.community(crowded.id());
    for _ in 0..ASKERS {
        let asker = askers.clone();
        crowd.spawn(async move {
            loop {
                if asker.ask(&profiles::Ranked::first(1000)).await.is_err() {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    sleep(Duration::from_secs(2)).await;
    let (same, beside) = (median(crowded).await, median(other).await);
    crowd.shutdown().await;
    ensure!(worker.stop()? == Some(0));
    Ok([quiet, same, beside])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_in_one_community_delays_no_other() -> Result<()> {
    // Without a limit, as far as the crowd is concerned, and by default.
    for per_second in ["100000", "100"] {
        let [quiet, same, beside] = measured(per_second).await?;
        ensure!(per_second != "100" || same.1 > 0, "the crowd does not use up the community's allowance");
        ensure!(beside.1 == 0, "{} requests of another community were refused", beside.1);
        // Most of it is the processor's time, which the crowd's own clients take here as well.
        ensure!(beside.0 < Duration::from_secs(1), "alone {quiet:?}, beside the crowd {beside:?}");
    }
    Ok(())
}
