//! A verification finds what drifted, and repairs it while events go on.

use std::time::Duration;

use muster_domain::PageLimit;
use muster_storage::Store;

use crate::support::consistency;
use crate::support::database::Database;
use crate::support::events::{START, added, apply, awarded, guild, joined, policy, scored, user, view};

/// Nothing has drifted in any community.
pub(crate) async fn all_exact(store: &Store) {
    for id in store.community_ids(PageLimit::MAX, None).await.unwrap() {
        let found = store.community(id).await.unwrap().verify(false).await.unwrap();
        assert_eq!(found.drifted, [], "{:#?}", found.compared);
    }
}

/// The table and column, and what makes it drift.
pub(crate) const DRIFTS: [(&str, &str); 32] = [
    (
        "badge_ops.is_badge",
        "UPDATE badge_ops SET is_badge = false WHERE member = (SELECT min(member) FROM members WHERE user_id = 'u5')",
    ),
    (
        "badge_ops.is_badge",
        "UPDATE badge_ops SET revoked_at = at, revoked_by = 'x'
         WHERE is_badge AND member = (SELECT min(member) FROM members WHERE user_id = 'u7')",
    ),
    ("members.badge_count", "UPDATE members SET badge_count = badge_count + 3 WHERE user_id = 'u4'"),
    ("tier_changes.visible", "UPDATE tier_changes SET visible = NOT visible WHERE promotion"),
    ("board_entries of conviction", "DELETE FROM board_entries WHERE board = 1 AND negated_score = -30"),
    (
        "board_entries of activity",
        "INSERT INTO board_entries SELECT shard, 2, community, -777, joined_at, member FROM members WHERE user_id = 'u3'",
    ),
    ("board_entries of badges", "UPDATE board_entries SET negated_score = negated_score - 2 WHERE board = 3"),
    ("board_entries.tier", "UPDATE board_entries SET tier = NULL WHERE board = 3"),
    ("directory", "UPDATE directory SET nym_key = 'stray', joined_at = '2001-01-01'"),
    ("directory", "DELETE FROM directory"),
    ("nym_suffixes", "DELETE FROM nym_suffixes WHERE class = 0"),
    ("nym_suffixes", "UPDATE nym_suffixes SET inside = inside - 1 WHERE inside > 0"),
    // As many as there are to be, but one of them twice.
    (
        "nym_suffixes",
        "WITH gone AS (DELETE FROM nym_suffixes WHERE class = 1 RETURNING *)
         INSERT INTO nym_suffixes SELECT shard, 2, community, member, 'b ' || suffix FROM gone",
    ),
    ("nym_suffixes without a nym", "UPDATE nym_suffixes SET inside = inside + 1"),
    (
        "nym_suffixes without a nym",
        "INSERT INTO nym_suffixes SELECT shard, 2, community, member, 'stray' FROM members WHERE user_id = 'u3'",
    ),
    ("board_counts of conviction", "DELETE FROM board_counts WHERE board = 1 AND level = 0"),
    (
        "board_counts of badges",
        "UPDATE board_counts SET members = members + 2 WHERE board = 3 AND level = 10",
    ),
    (
        "board_counts of conviction",
        "INSERT INTO board_counts SELECT shard, 1, community, 0, 7777, 1 FROM communities",
    ),
    (
        "board_counts of activity",
        "INSERT INTO board_counts SELECT shard, 2, community, 3, 1, 4 FROM communities",
    ),
    ("tier_counts", "UPDATE tier_counts SET members = members - 1"),
    ("community_totals.members", "UPDATE community_totals SET members = 0"),
    ("community_totals.conviction", "UPDATE community_totals SET conviction = conviction - 0.5"),
    ("community_totals.badges", "UPDATE community_totals SET badges = badges + 1"),
    ("community_days.active", "UPDATE community_days SET active = active + 1"),
    ("community_days.joined", "DELETE FROM community_days"),
    ("community_days.awarded", "UPDATE community_days SET awarded = awarded + 5"),
    ("community_days.promoted", "UPDATE community_days SET promoted = promoted + 5"),
    ("badge_kinds.holders", "UPDATE badge_kinds SET holders = holders + 1"),
    ("badge_kinds.first_awarded_at", "UPDATE badge_kinds SET first_awarded_at = '2101-01-01'"),
    ("badge_kinds.first_awarded_at", "UPDATE badge_kinds SET first_awarded_at = '2001-01-01'"),
    ("tiers.threshold", "UPDATE tiers SET threshold = threshold + 15 WHERE threshold IS NOT NULL"),
    ("tiers.threshold", "UPDATE tiers SET threshold = NULL WHERE last_rank = 2"),
];

#[tokio::test]
async fn what_begins_a_word_is_the_same_to_a_writer_and_to_a_verification() {
    let database = Database::migrated().await;
    let store = database.store().await;
    let guild = guild("words");
    let separators = (0..=127_u8).map(char::from).filter(|c| *c == ' ' || c.is_ascii_punctuation());
    let others = ['a', '0', 'é', '、', '\u{a0}', '€'];
    let events = (0..).zip(separators.chain(others));
    let events = events.map(|(n, c)| joined(&guild, &user(n), START, &format!("a{c}b")));
    apply(&store, &guild, events.collect()).await;
    all_exact(&store).await;
}

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
    let tier = (
        "members.tier",
        "UPDATE members AS m SET tier = t.tier FROM tiers AS t
         WHERE t.shard = m.shard AND t.community = m.community AND t.name = 's0' AND m.user_id IN ('u1', 'u11', 'u13')",
    );
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

#[tokio::test]
async fn an_entry_that_has_drifted_into_the_place_of_another_makes_no_event_fail() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("stray");
    apply(&store, &guild, vec![added(&guild, &user(3), START, 7)]).await;
    let stray = "INSERT INTO board_entries SELECT shard, 2, community, -777, joined_at, member FROM members";
    client.execute(stray, &[]).await.unwrap();
    let community = apply(&store, &guild, vec![added(&guild, &user(3), START + 1, 770)]).await;
    let active = community.profile_list_active(PageLimit::MAX, None).await.unwrap().items;
    assert_eq!(active.iter().map(|profile| profile.activity.get()).collect::<Vec<_>>(), [777]);
    all_exact(&store).await;
}

/// Two tables of which a repair deletes rows that should not be there, more than one answer holds.
#[tokio::test]
async fn a_repair_that_changes_nothing_ends_and_is_not_exact() {
    let database = Database::migrated().await;
    let (store, client) = (database.store().await, database.client().await);
    let guild = guild("stuck");
    let community = apply(&store, &guild, vec![joined(&guild, &user(1), START, "ab c")]).await;
    for stray in [
        "INSERT INTO board_entries SELECT shard, 2, community, -1000 - n, joined_at, member
         FROM members, generate_series(1, 32000) AS n",
        "INSERT INTO nym_suffixes SELECT shard, 2, community, member, 'stray' || n
         FROM members, generate_series(1, 32000) AS n",
    ] {
        client.execute(stray, &[]).await.unwrap();
    }
    client
        .batch_execute("CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
        .await
        .unwrap();
    for table in ["board_entries", "nym_suffixes"] {
        let keep =
            format!("CREATE TRIGGER keep BEFORE DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION keep()");
        client.batch_execute(&keep).await.unwrap();
    }
    let stuck = tokio::time::timeout(Duration::from_secs(60), community.verify(true)).await;
    let found = stuck.expect("a verification that ends").unwrap();
    assert!(!found.is_exact());
    for what in ["board_entries of activity", "nym_suffixes without a nym"] {
        let of = found.compared.iter().find(|compared| compared.what == what).unwrap();
        assert!(of.drifted > 0 && of.repaired == 0, "{of:?}");
    }
    client.batch_execute("DROP TRIGGER keep ON board_entries").await.unwrap();
    client.batch_execute("DROP TRIGGER keep ON nym_suffixes").await.unwrap();
    assert!(community.verify(true).await.unwrap().is_exact());
    all_exact(&store).await;
    consistency::check(&client).await;
}
