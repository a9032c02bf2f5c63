//! What each endpoint answers about one community whose events are known, over the real wire.
#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, so it cannot panic")]

use anyhow::{Context, Result, ensure};
use muster_domain::{Awarder, BadgeKind, CommunityId, Event, MemberEffect, Nym, Reason};
use muster_messaging::client::{Client, EventPublisher};
use serde_json::{Value, json};

use crate::setting::{Guild, Setting, community, eventually};

/// The first of 80 leaves. The others have 20 conviction more each, from -80, and the last two are equal.
fn events(guild: &mut Guild) -> Vec<Event> {
    let kind = |kind: &str| BadgeKind::parse(kind).unwrap();
    let award = |of: &str, by: &str| MemberEffect::BadgeAward {
        kind: kind(of),
        reason: Reason::parse("earned").ok(),
        by: Awarder::parse(by).ok(),
    };
    let mut events = vec![guild.join_guild()];
    for n in 0..80 {
        let user = format!("user{n}");
        events.extend([guild.join(&user), guild.score(&user, if n == 78 { 1480 } else { n * 20 - 100 })]);
    }
    let nick = Nym::parse("100% Naib").ok();
    events.extend([
        guild.member("user0", MemberEffect::Leave),
        guild.member("user1", MemberEffect::Update { nick }),
        guild.add("user3", 70),
        guild.add("user7", 50),
        guild.member("user5", award("crysknife", "stilgar")),
        guild.member("user5", award("sandrider", "chani")),
        guild.member("user6", award("crysknife", "stilgar")),
        guild.member("user9", award("sandrider", "chani")),
        guild.member("user9", MemberEffect::BadgeRevoke { kind: kind("sandrider"), reason: None, by: None }),
    ]);
    events
}

/// Asks as a client of any language would.
struct Asking {
    client: Client,
    prefix: String,
}

impl Asking {
    async fn ask(&self, endpoint: &str, request: &Value) -> Result<Value> {
        let subject = format!("{}.{endpoint}", self.prefix);
        let answer = self.client.ask_by_hand(&subject, request.to_string().into_bytes()).await?;
        ensure!(!answer.is_error, "{endpoint} {request}: {}", String::from_utf8_lossy(&answer.body));
        Ok(serde_json::from_slice(&answer.body)?)
    }

    async fn profile_id(&self, user: &str) -> Result<Value> {
        Ok(self.ask("profiles.get", &json!({"user_id": user})).await?["profile_id"].take())
    }

    /// Each list with its request, and these fields of the items that it answers.
    async fn lists(&self, expected: &[(&str, Value, Vec<&str>, Value)]) -> Result<()> {
        for (endpoint, request, fields, expected) in expected {
            let page = self.ask(endpoint, request).await?;
            assert_eq!(columns(&page, fields), *expected, "{endpoint} {request}");
        }
        Ok(())
    }

    /// All items of a list, in pages of this many.
    async fn walk(&self, endpoint: &str, request: &Value, size: u32) -> Result<Vec<Value>> {
        let (mut request, mut all) = (request.clone(), Vec::new());
        request["limit"] = json!(size);
        loop {
            let mut page = self.ask(endpoint, &request).await?;
            all.extend(page["items"].as_array().context("a page has items")?.clone());
            request["cursor"] = page["next"].take();
            if request["cursor"].is_null() {
                return Ok(all);
            }
        }
    }
}

/// Some fields of each item.
fn columns(page: &Value, fields: &[&str]) -> Value {
    let rows = page["items"].as_array().unwrap().iter();
    rows.map(|item| fields.iter().map(|field| item[*field].clone()).collect::<Value>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_endpoint_answers_from_the_events() -> Result<()> {
    let setting = Setting::new().await?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    let events = events(&mut tabr);
    let total = u64::try_from(events.len())?;
    publisher.publish_all(events, |_| {}).await?;
    eventually("the events' effect", || async { worker.event_counts().is_ok_and(|c| c.applied == total) })
        .await?;
    ensure!(worker.event_counts()?.lost == 0 && worker.event_counts()?.duplicates == 0);
    let id = community(&client, "tabr").await?;
    communities_find_answers_the_community(&client, id).await?;

    let asking = Asking { client, prefix: format!("muster.v1.{id}") };
    profiles_get_answers_the_whole_profile_by_each_key(&asking).await?;
    profiles_position_answers_the_distances(&asking).await?;
    community_stats_answers_the_counts(&asking).await?;
    tiers_threshold_answers_the_score_of_the_last_eligible_rank(&asking).await?;
    lists_of_profiles_answer_ranks_activity_and_matches(&asking).await?;
    lists_of_badges_answer_kinds_and_holders(&asking).await?;
    tiers_progression_answers_the_nearest_first(&asking).await?;
    directory_list_answers_by_sort_tier_and_page(&asking).await?;
    tiers_changes_answers_a_rise_and_those_who_made_room(&asking, &publisher, &mut tabr).await?;
    walks_by_cursor_come_to_what_one_page_holds(&asking).await?;
    assert_eq!(worker.stop()?, Some(0));
    Ok(())
}

async fn communities_find_answers_the_community(client: &Client, id: CommunityId) -> Result<()> {
    let service = Asking { client: client.clone(), prefix: "muster.v1".to_owned() };
    let found = service.ask("communities.find", &json!({"guild_id": "tabr"})).await?;
    let changes = found["changes"].as_u64().context("a number of changes")?;
    ensure!(changes > 0);
    assert_eq!(found, json!({"community_id": id, "name": "Sietch Tabr", "active": true, "changes": changes}));
    Ok(())
}

async fn profiles_get_answers_the_whole_profile_by_each_key(asking: &Asking) -> Result<()> {
    let mut whole = asking.ask("profiles.get", &json!({"user_id": "user5"})).await?;
    for request in [json!({"nym": "User5"}), json!({"profile_id": whole["profile_id"]})] {
        assert_eq!(asking.ask("profiles.get", &request).await?, whole, "{request}");
    }
    whole["profile_id"].take();
    let expected = json!({
        "profile_id": null, "user_id": "user5", "wallet": null, "nym": "user5", "conviction": 0, "activity": 0,
        "tier": "fremen", "badge_count": 2, "joined_at": "2023-11-14T22:13:32Z", "last_active_at": null,
        "rank": 75, "badge_rank": 1, "tenure": "elder",
    });
    assert_eq!(whole, expected);
    Ok(())
}

async fn profiles_position_answers_the_distances(asking: &Asking) -> Result<()> {
    let id = asking.profile_id("user10").await?;
    let position = asking.ask("profiles.position", &json!({"profile_id": id})).await?;
    let expected = json!({
        "profile_id": id, "rank": 70, "conviction": 100, "distance_above": 20, "distance_below": 20,
        "next_tier": "sietch", "next_tier_at": 500, "distance_to_next_tier": 400, "distance_to_entry": 20,
        "at_risk": false,
    });
    assert_eq!(position, expected);
    Ok(())
}

async fn community_stats_answers_the_counts(asking: &Asking) -> Result<()> {
    let mut stats = asking.ask("community.stats", &json!({})).await?;
    // How many moved on the way depends on how the events were batched.
    stats["promotions_this_week"].take();
    let expected = json!({
        "members": 79, "conviction_total": 55_320, "badges": 3, "active_this_week": 0, "new_this_week": 0,
        "promotions_this_week": null, "badges_this_week": 0,
        "tiers": [
            {"tier": "naib", "members": 7}, {"tier": "fedaykin", "members": 62}, {"tier": "sayyadina", "members": 0},
            {"tier": "sietch", "members": 0}, {"tier": "stillsuit", "members": 1}, {"tier": "fremen", "members": 5},
            {"tier": null, "members": 4},
        ],
    });
    assert_eq!(stats, expected);
    Ok(())
}

async fn tiers_threshold_answers_the_score_of_the_last_eligible_rank(asking: &Asking) -> Result<()> {
    let threshold = asking.ask("tiers.threshold", &json!({})).await?;
    assert_eq!(threshold, json!({"entry_rank": 69, "score": 120, "eligible": 69, "waiting": 10, "gap": 20}));
    Ok(())
}

async fn lists_of_profiles_answer_ranks_activity_and_matches(asking: &Asking) -> Result<()> {
    let around = asking.profile_id("user11").await?;
    asking
        .lists(&[
            (
                "profiles.ranked",
                json!({"limit": 4}),
                vec!["rank", "conviction", "tier"],
                json!([[1, 1480, "naib"], [1, 1480, "naib"], [3, 1440, "naib"], [4, 1420, "naib"]]),
            ),
            (
                "profiles.around",
                json!({"profile_id": around, "limit": 3}),
                vec!["user_id", "rank", "tier"],
                json!([["user12", 68, "fedaykin"], ["user11", 69, "fedaykin"], ["user10", 70, "stillsuit"]]),
            ),
            (
                "profiles.active",
                json!({}),
                vec!["user_id", "activity"],
                json!([["user3", 70], ["user7", 50]]),
            ),
            (
                "profiles.search",
                json!({"query": "USER7", "limit": 3}),
                vec!["nym"],
                json!([["user7"], ["user70"], ["user71"]]),
            ),
            (
                "profiles.search",
                json!({"query": "%"}),
                vec!["user_id", "nym"],
                json!([["user1", "100% Naib"]]),
            ),
        ])
        .await
}

async fn lists_of_badges_answer_kinds_and_holders(asking: &Asking) -> Result<()> {
    let of = asking.profile_id("user5").await?;
    asking
        .lists(&[
            (
                "profiles.badges",
                json!({"profile_id": of}),
                vec!["kind", "awarded_by", "reason"],
                json!([["sandrider", "chani", "earned"], ["crysknife", "stilgar", "earned"]]),
            ),
            (
                "badges.leaderboard",
                json!({"limit": 3}),
                vec!["user_id", "badge_count", "badge_rank"],
                json!([["user5", 2, 1], ["user6", 1, 2], ["user1", 0, 3]]),
            ),
            ("badges.kinds", json!({}), vec!["kind", "holders"], json!([["crysknife", 2], ["sandrider", 1]])),
        ])
        .await
}

async fn tiers_progression_answers_the_nearest_first(asking: &Asking) -> Result<()> {
    asking
        .lists(&[(
            "tiers.progression",
            json!({"limit": 2}),
            vec!["user_id", "next_tier", "distance"],
            json!([["user4", "fremen", 20], ["user9", "stillsuit", 20]]),
        )])
        .await
}

async fn directory_list_answers_by_sort_tier_and_page(asking: &Asking) -> Result<()> {
    asking
        .lists(&[
            ("directory.list", json!({"limit": 2}), vec!["user_id"], json!([["user1"], ["user10"]])),
            (
                "directory.list",
                json!({"sort": "badges", "limit": 2}),
                vec!["user_id"],
                json!([["user5"], ["user6"]]),
            ),
            ("directory.list", json!({"tier": "stillsuit"}), vec!["user_id"], json!([["user10"]])),
        ])
        .await?;
    let page = asking.ask("directory.list", &json!({"sort": "tenure", "limit": 2, "page": 2})).await?;
    assert_eq!(columns(&page, &["user_id", "tenure"]), json!([["user3", "elder"], ["user4", "elder"]]));
    assert_eq!((&page["total"], &page["total_pages"]), (&json!(79), &json!(40)));
    Ok(())
}

async fn tiers_changes_answers_a_rise_and_those_who_made_room(
    asking: &Asking,
    publisher: &EventPublisher,
    tabr: &mut Guild,
) -> Result<()> {
    publisher.publish(&tabr.score("user10", 2000)).await?;
    eventually("the rise", || async {
        let profile = asking.ask("profiles.get", &json!({"user_id": "user10"})).await;
        profile.is_ok_and(|profile| profile["rank"] == 1 && profile["tier"] == "naib")
    })
    .await?;
    let changes = asking.ask("tiers.changes", &json!({"limit": 3})).await?;
    let mut moved = columns(&changes, &["nym", "from", "to", "movement"]);
    moved.as_array_mut().context("no changes")?.sort_by_key(Value::to_string);
    let expected = json!([
        ["user10", "stillsuit", "naib", "promotion"],
        ["user11", "fedaykin", "stillsuit", "demotion"],
        ["user73", "naib", "fedaykin", "demotion"],
    ]);
    assert_eq!(moved, expected);
    Ok(())
}

async fn walks_by_cursor_come_to_what_one_page_holds(asking: &Asking) -> Result<()> {
    let of = asking.profile_id("user5").await?;
    for (endpoint, request) in [
        ("profiles.ranked", json!({})),
        ("profiles.active", json!({})),
        ("profiles.badges", json!({"profile_id": of})),
        ("badges.leaderboard", json!({})),
        ("badges.kinds", json!({})),
        ("tiers.progression", json!({})),
        ("tiers.changes", json!({})),
        ("directory.list", json!({"sort": "badges"})),
    ] {
        let at_once = asking.walk(endpoint, &request, 5_000_000).await?;
        assert!(at_once.len() > 1, "{endpoint} has {} items", at_once.len());
        for size in [1, 7] {
            assert_eq!(
                asking.walk(endpoint, &request, size).await?,
                at_once,
                "{endpoint} in pages of {size}"
            );
        }
        let mut most = request;
        most["limit"] = json!(5_000_000);
        assert_eq!(asking.ask(endpoint, &most).await?["limit"], 1000, "{endpoint}");
    }
    Ok(())
}
