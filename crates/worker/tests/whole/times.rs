//! An event of a clock that is wrong changes nothing, and says so.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::{GuildId, TimeBounds, UserId};
use muster_messaging::api::{Rows, admin, profiles};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::sleep;

use crate::setting::{Guild, Setting, community, eventually};

/// Far more than a test may take.
const SLACK: i64 = 120_000;
const TEN_MINUTES: i64 = 600_000;

fn now() -> Result<i64> {
    Ok(i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000)?)
}

/// An event as it is published.
fn raw(number: usize, event_type: &str, guild: &str, timestamp: i128, data: &str) -> (String, Vec<u8>) {
    let event = format!(
        r#"{{"event_id":"6f1c2a0e-8f1d-4f7e-9d55-{number:012x}","event_type":"{event_type}","timestamp":{timestamp},
            "guild_id":"{guild}","user_id":"user1","data":{data}}}"#
    );
    (format!("events.{event_type}"), event.into_bytes())
}

/// Times from all of what 64 bits hold: its ends, the surroundings of both bounds, and some of every magnitude.
fn any_times(now: i64) -> Vec<i64> {
    let (earliest, latest) = (TimeBounds::EARLIEST, now + TEN_MINUTES);
    let mut times = vec![i64::MIN, -1, 0, 1, 1_700_000_000, i64::MAX, 253_402_300_799_999];
    times.extend([earliest - 1, earliest - 86_400_000, latest + SLACK, latest + 86_400_000]);
    times.extend((0..63).flat_map(|bit| [1_i64 << bit, -(1_i64 << bit)]));
    let mut drawn = 0x9E37_79B9_7F4A_7C15_u64;
    times.extend((0..100).map(|_| {
        drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        drawn.cast_signed()
    }));
    times.retain(|time| *time < earliest || *time >= latest + SLACK);
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_beyond_the_bounds_moves_a_score_a_rank_or_presence() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    for event in [tabr.join_guild(), tabr.join("user1"), tabr.score("user1", 5), tabr.join("user2")] {
        publisher.publish(&event).await?;
    }
    publisher.publish(&tabr.score("user2", 7)).await?;
    let tabr_community = client.community(community(&client, "tabr").await?);
    let get = || async {
        Ok::<_, anyhow::Error>(tabr_community.ask(&profiles::Get::UserId(UserId::parse("user1")?)).await?)
    };
    // Events of two members are applied in either order.
    let is_scored =
        async || get().await.is_ok_and(|found| found.rank.get() == 2 && found.profile.conviction.get() == 5);
    eventually("the scores", is_scored).await?;
    let before = get().await?;

    let times = any_times(now()?);
    for (number, time) in times.iter().enumerate() {
        let (event_type, data) = match number % 3 {
            0 => ("score.set", r#"{"conviction":1000}"#),
            1 => ("member.leave", "null"),
            _ => ("member.update", r#"{"nick":"moved","roles":[]}"#),
        };
        let (subject, payload) = raw(number, event_type, "tabr", i128::from(*time), data);
        publisher.publish_raw(subject, payload).await?;
    }
    // One for a community that nobody knows yet, and one of a number that 64 bits do not hold.
    let (subject, payload) = raw(9000, "member.join", "unheard", 253_402_300_799_999, r#"{"username":"a"}"#);
    publisher.publish_raw(subject, payload).await?;
    let (subject, payload) = raw(9001, "score.set", "tabr", i128::MAX, r#"{"conviction":1000}"#);
    publisher.publish_raw(subject, payload).await?;
    let expected = u64::try_from(times.len())? + 2;
    eventually("a dead letter of each", || async {
        worker.event_counts().is_ok_and(|counts| counts.lost == expected)
    })
    .await?;
    let after = get().await?;
    ensure!(format!("{before:?}") == format!("{after:?}"), "{before:?} became {after:?}");
    ensure!(client.find_community(GuildId::parse("unheard")?).await.is_err(), "a community was made");

    // One of now is behind none of them.
    let (subject, payload) = raw(9002, "score.set", "tabr", now()?.into(), r#"{"conviction":9}"#);
    publisher.publish_raw(subject, payload).await?;
    eventually("the score", async || get().await.is_ok_and(|found| found.profile.conviction.get() == 9))
        .await?;
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_ahead_is_a_dead_letter_that_names_it_until_its_time_has_come() -> Result<()> {
    let setting = Setting::new().await?;
    let ahead = 5000_i64;
    let configuration = setting.configuration.with("MUSTER__EVENTS__MAX_CLOCK_SKEW_MS", "1000");
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let at = now()? + ahead;
    let (subject, payload) = raw(1, "guild.join", "tabr", at.into(), r#"{"name":"Sietch Tabr"}"#);
    publisher.publish_raw(subject, payload).await?;
    let lost = |number| worker.event_counts().is_ok_and(|counts| counts.lost == number);
    eventually("a dead letter", || async { lost(1) }).await?;
    let repair = configuration.as_client(&setting.services.clients.repair);
    let listed = repair.run("deadletters list --json").await?;
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    let letter = &listed["items"][0];
    let reason = letter["reason"].as_str().context("a reason")?;
    ensure!(reason.contains(&at.to_string()) && reason.contains("more than 1000 ms ahead"), "{reason}");
    ensure!(letter["deliveries"] == 1, "{letter}");

    // Too early, it comes back; when its time has come, it is applied.
    ensure!(repair.run("deadletters replay 1").await?.status.success());
    eventually("it is back", || async { lost(2) }).await?;
    ensure!(client.find_community(GuildId::parse("tabr")?).await.is_err());
    sleep(Duration::from_millis(u64::try_from((at - now()?).max(0))?)).await;
    ensure!(repair.run("deadletters replay 2").await?.status.success());
    community(&client, "tabr").await?;
    ensure!(lost(2), "no further one");
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_acts_a_thousand_times_behind_a_badge_as_far_ahead_as_may_be() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    publisher.publish(&tabr.join_guild()).await?;
    publisher.publish(&tabr.join("user1")).await?;
    let at = now()? + TEN_MINUTES - 10_000;
    let (subject, payload) = raw(1, "badge.award", "tabr", at.into(), r#"{"kind":"k","reason":" ","by":""}"#);
    publisher.publish_raw(subject, payload).await?;
    let tabr = client.community(community(&client, "tabr").await?);
    let user = profiles::Get::UserId(UserId::parse("user1")?);
    let get = || async { tabr.ask(&user).await };
    eventually("the member", async || get().await.is_ok()).await?;
    let profile_id = get().await?.profile.profile_id;
    let badges = profiles::Badges { profile_id, limit: Rows::of(10), cursor: None };
    let held = || async { tabr.ask(&badges).await };
    eventually("the badge", async || held().await.is_ok_and(|page| page.items.len() == 1)).await?;
    // What is blank is none, in an event as in a request.
    let badge = &held().await?.items[0];
    ensure!(badge.reason.is_none() && badge.awarded_by.is_none(), "{badge:?}");
    let kind = muster_domain::BadgeKind::parse("k")?;
    for _ in 0..500 {
        let kind = kind.clone();
        let revoke = admin::RevokeBadge { profile_id, kind: kind.clone(), reason: None, revoked_by: None };
        tabr.ask(&revoke).await?;
        let award = admin::AwardBadge { profile_id, kind, reason: None, awarded_by: None };
        ensure!(tabr.ask(&award).await?.created);
    }
    ensure!(worker.stop()? == Some(0));
    Ok(())
}
