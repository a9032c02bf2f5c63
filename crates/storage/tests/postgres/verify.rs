//! A verification finds what drifted, and repairs it while events go on.

use muster_domain::PageLimit;
use muster_storage::Store;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, apply, awarded, guild, joined, policy, scored, user, view};

/// Nothing has drifted in any community.
pub(crate) async fn all_exact(store: &Store) {
    for id in store.community_ids(PageLimit::MAX, None).await.unwrap() {
        let found = store.community(id).await.unwrap().verify(false).await.unwrap();
        assert_eq!(found.drifted, [], "{:#?}", found.compared);
    }
}

/// The table and column, and what makes it drift.
const DRIFTS: [(&str, &str); 20] = [
    ("scores.visible", "UPDATE scores SET visible = NOT visible WHERE conviction = 30"),
    ("profiles.badge_count", "UPDATE profiles SET badge_count = badge_count + 3 WHERE user_id = 'u4'"),
    ("tier_changes.visible", "UPDATE tier_changes SET visible = NOT visible WHERE promotion"),
    ("nym_tails", "DELETE FROM nym_tails WHERE class = 0"),
    (
        "nym_tails without a nym",
        "INSERT INTO nym_tails SELECT community_id, 2, 'stray', profile_id FROM profiles WHERE user_id = 'u3'",
    ),
    ("rank_counts of conviction", "DELETE FROM rank_counts WHERE ladder = 1 AND level = 0"),
    ("rank_counts of badges", "UPDATE rank_counts SET members = members + 2 WHERE ladder = 2 AND level = 10"),
    (
        "rank_counts of conviction",
        "INSERT INTO rank_counts SELECT community_id, 1, 0, 7777, 1 FROM communities",
    ),
    ("tier_counts", "UPDATE tier_counts SET members = members - 1"),
    ("community_counts.members", "UPDATE community_counts SET members = 0"),
    (
        "community_counts.conviction_total",
        "UPDATE community_counts SET conviction_total = conviction_total - 0.5",
    ),
    ("community_counts.badges", "UPDATE community_counts SET badges = badges + 1"),
    ("community_days.active", "UPDATE community_days SET active = active + 1"),
    ("community_days.joined", "DELETE FROM community_days"),
    ("community_days.awarded", "UPDATE community_days SET awarded = awarded + 5"),
    ("community_days.promoted", "UPDATE community_days SET promoted = promoted + 5"),
    ("badge_kinds.holders", "DELETE FROM badge_kinds"),
    (
        "badge_kinds.first_awarded_at",
        "UPDATE badge_kinds SET first_awarded_at = first_awarded_at + interval '3 days'",
    ),
    (
        "badge_kinds.first_awarded_at",
        "UPDATE badge_kinds SET first_awarded_at = first_awarded_at - interval '3 days'",
    ),
    ("tier_policies.cut", "UPDATE tier_policies SET cut = cut + 15 WHERE cut IS NOT NULL"),
];

#[tokio::test]
async fn drift_in_each_kept_table_is_found_and_repaired_while_events_go_on() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("verified");
    let events = (0..40_u8).flat_map(|n| {
        [
            joined(&guild, &user(n), START, "ab c"),
            scored(&guild, &user(n), START + 1, i64::from(n / 2) * 10),
            awarded(&guild, &user(n), START + 2, "k"),
        ]
    });
    let community = apply(&store, &guild, events.collect()).await;
    community.tier_policy_replace(&policy(&[20, 50], &[2, 7])).await.unwrap();
    // Of members whom none of the events below move: a move away from a tier that drifted is recorded as one from it.
    let tier = ("profiles.tier", "UPDATE profiles SET tier = 's0' WHERE user_id IN ('u1', 'u11', 'u13')");
    for (number, (what, sql)) in DRIFTS.into_iter().chain([tier]).enumerate() {
        assert!(client.execute(sql, &[]).await.unwrap() > 0, "{what}: nothing drifts");
        let community = view(&store, &guild).await;
        let found = community.verify(false).await.unwrap();
        let of = found.compared.iter().find(|compared| compared.what == what).unwrap();
        assert!(of.drifted > 0 && of.repaired == 0 && !found.is_exact(), "{what}: {found:#?}");
        let at = START + 10 + i64::try_from(number).unwrap() * 100;
        let going_on = async {
            for step in 0..20_u8 {
                let event = scored(&guild, &user(step * 2), at + i64::from(step), i64::from(step) * 13);
                apply(&store, &guild, vec![event]).await;
            }
        };
        let (repaired, ()) = tokio::join!(community.verify(true), going_on);
        assert!(repaired.unwrap().is_exact(), "{what}");
        all_exact(&store).await;
        consistency::check(&client).await;
    }
}
