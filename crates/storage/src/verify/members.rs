//! What is kept of each member apart from the member's row, compared range by range of members.

use std::collections::BTreeSet;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text};
use futures_util::FutureExt;

use crate::community::Community;
use crate::error::Error;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::verify::counting::REPAIRED_AT_ONCE;
use crate::verify::report::{Batch, Compared, Progress, Verification, count, is_full};
use crate::write::change::MemberChange;
use crate::write::{lock, member};

/// How many members are compared by one statement.
const RANGE: i64 = 50_000;

/// A value of each member. A comparison is of the members behind `$3` up to `$4`, named of each table, so that of
/// each only the range is read; a repair is of the members that are its rows.
pub(super) struct OfMember {
    pub(super) what: &'static str,
    pub(super) compare: &'static str,
    pub(super) repair: &'static [&'static str],
    /// Whether the tier of whoever is repaired is to be looked at again.
    pub(super) recheck_tier: bool,
}

/// What the operations of each of the `pairs` of a member and a kind come to, in their order: an award is a badge
/// unless the operation before it is an award, too, and the next revocation revokes it. An operation that is of
/// another sort than the one before it begins a run: each run of awards is followed by one of revocations.
macro_rules! folded {
    () => {
        "operations AS (
             SELECT o.*, lag(o.award) OVER (PARTITION BY o.member, o.kind ORDER BY o.at, o.op_id) AS before
             FROM pairs CROSS JOIN LATERAL (SELECT o.member, o.kind, o.at, o.op_id, o.award, o.is_badge, o.by, o.reason,
                     o.revoked_at, o.revoked_by, o.revoke_reason
                 FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = $2 AND o.member = pairs.member AND o.kind = pairs.kind OFFSET 0) AS o
         ), turns AS (
             SELECT o.*, o.award AND o.before IS NOT TRUE AS badge,
                 lead(o.at) OVER same AS next_at, lead(o.by) OVER same AS next_by, lead(o.reason) OVER same AS next_reason
             FROM operations AS o
             WINDOW same AS (PARTITION BY o.member, o.kind, o.award = coalesce(o.before, false) ORDER BY o.at, o.op_id)
         ), folded AS (
             SELECT t.member, t.kind, t.at, t.op_id, t.is_badge, t.revoked_at, t.revoked_by, t.revoke_reason, t.badge,
                 CASE WHEN t.badge THEN t.next_at END AS ended_at, CASE WHEN t.badge THEN t.next_by END AS ended_by,
                 CASE WHEN t.badge THEN t.next_reason END AS end_reason
             FROM turns AS t
         )"
    };
}

const FOLD_OF_ROWS: &str = concat!(
    "WITH pairs AS MATERIALIZED (
         SELECT DISTINCT o.member, o.kind FROM $rows CROSS JOIN LATERAL (SELECT o.member, o.kind FROM badge_ops AS o
             WHERE o.shard = $1 AND o.community = $2 AND o.member = rows.member OFFSET 0) AS o
     ), ",
    folded!(),
    " UPDATE badge_ops AS b SET is_badge = f.badge, revoked_at = f.ended_at, revoked_by = f.ended_by,
         revoke_reason = f.end_reason
     FROM folded AS f
     WHERE b.shard = $1 AND b.community = $2 AND b.member = f.member AND b.kind = f.kind AND b.at = f.at
         AND b.op_id = f.op_id
         AND (f.is_badge, f.revoked_at, f.revoked_by, f.revoke_reason)
             IS DISTINCT FROM (f.badge, f.ended_at, f.ended_by, f.end_reason)"
);

/// What tiers and boards follow from.
pub(super) const OF_MEMBERS: [OfMember; 3] = [
    // With what revoked the badge. A pair of one operation is what that says; only the others, and those where more
    // is said, are folded.
    OfMember {
        what: "badge_ops.is_badge",
        compare: concat!(
            "WITH pairs AS MATERIALIZED (
                 SELECT o.member, o.kind FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = $2 AND o.member > $3 AND o.member <= $4
                 GROUP BY o.member, o.kind HAVING count(*) > 1
                 UNION SELECT o.member, o.kind FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = $2 AND o.member > $3 AND o.member <= $4
                     AND (o.is_badge <> o.award OR o.revoked_at IS NOT NULL)
             ), ",
            folded!(),
            " SELECT f.member, f.op_id::text AS key,
                 concat_ws(' ', f.is_badge::text, 'revoked ' || f.revoked_at, 'by ' || f.revoked_by, f.revoke_reason) AS kept,
                 concat_ws(' ', f.badge::text, 'revoked ' || f.ended_at, 'by ' || f.ended_by, f.end_reason) AS counted
             FROM folded AS f
             WHERE (f.is_badge, f.revoked_at, f.revoked_by, f.revoke_reason)
                 IS DISTINCT FROM (f.badge, f.ended_at, f.ended_by, f.end_reason) LIMIT $limit"
        ),
        repair: &[FOLD_OF_ROWS],
        recheck_tier: false,
    },
    OfMember {
        what: "members.badge_count",
        compare: "SELECT m.member, m.profile_id::text AS key, m.badge_count::text AS kept,
                coalesce(held.badges, 0)::text AS counted
            FROM members AS m LEFT JOIN (SELECT o.member, count(*) AS badges FROM badge_ops AS o
                WHERE o.shard = $1 AND o.community = $2 AND o.member > $3 AND o.member <= $4
                    AND o.is_badge AND o.revoked_at IS NULL
                GROUP BY o.member) AS held ON held.member = m.member
            WHERE m.shard = $1 AND m.community = $2 AND m.member > $3 AND m.member <= $4
                AND m.badge_count <> coalesce(held.badges, 0) LIMIT $limit",
        repair: &["UPDATE members AS m SET badge_count = (SELECT count(*) FROM badge_ops AS o
                WHERE o.shard = $1 AND o.community = $2 AND o.member = m.member AND o.is_badge AND o.revoked_at IS NULL)
            FROM $rows WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member"],
        recheck_tier: false,
    },
    OfMember {
        what: "tier_changes.visible",
        compare: "SELECT c.member, c.change::text AS key, c.visible::text AS kept, m.visible::text AS counted
            FROM tier_changes AS c JOIN members AS m ON m.member = c.member
            WHERE c.shard = $1 AND c.community = $2 AND c.member > $3 AND c.member <= $4
                AND m.shard = $1 AND m.community = $2 AND m.member > $3 AND m.member <= $4
                AND c.visible <> m.visible LIMIT $limit",
        repair: &["UPDATE tier_changes AS c SET visible = m.visible
            FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member
            WHERE c.shard = $1 AND c.community = $2 AND c.member = m.member AND c.visible <> m.visible"],
        recheck_tier: false,
    },
];

/// What follows from tiers.
pub(super) const DIRECTORY: OfMember = OfMember {
    what: "directory",
    compare: "SELECT coalesce(d.member, m.member) AS member, coalesce(d.member, m.member)::text AS key,
            CASE WHEN d.member IS NOT NULL THEN concat_ws(', ', d.nym_key, d.joined_at, d.tier) END AS kept,
            CASE WHEN m.member IS NOT NULL THEN concat_ws(', ', m.nym_key, m.joined_at, m.tier) END AS counted
        FROM (SELECT d.member, d.nym_key, d.joined_at, d.tier FROM directory AS d
            WHERE d.shard = $1 AND d.community = $2 AND d.member > $3 AND d.member <= $4) AS d
        FULL JOIN (SELECT m.member, m.nym_key, m.joined_at, m.tier FROM members AS m
            WHERE m.shard = $1 AND m.community = $2 AND m.member > $3 AND m.member <= $4 AND m.visible) AS m
            ON m.member = d.member
        WHERE d.nym_key IS DISTINCT FROM m.nym_key OR d.joined_at IS DISTINCT FROM m.joined_at
            OR d.tier IS DISTINCT FROM m.tier LIMIT $limit",
    repair: &[
        "DELETE FROM directory AS d USING $rows
         WHERE d.shard = $1 AND d.community = $2 AND d.member = rows.member AND NOT EXISTS (SELECT FROM members AS m
             WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible)",
        "INSERT INTO directory AS d (shard, community, member, tier, joined_at, nym_key)
         SELECT m.shard, $2, m.member, m.tier, m.joined_at, m.nym_key
         FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
         ON CONFLICT (shard, community, member) DO UPDATE SET tier = excluded.tier, joined_at = excluded.joined_at,
             nym_key = excluded.nym_key",
    ],
    recheck_tier: false,
};

impl Community {
    /// Compares values of all members, range by range.
    pub(super) async fn verify_members(
        &self,
        checks: &'static [OfMember],
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let mut compared: Vec<Compared> = checks.iter().map(|check| Compared::nothing(check.what)).collect();
        let mut after = 0;
        loop {
            let range = self
                .statement(
                    "SELECT coalesce(max(r.member), 0) AS last, count(*) AS members FROM (SELECT m.member FROM members AS m
                         WHERE m.shard = $1 AND m.community = $2 AND m.member > $3 ORDER BY m.member LIMIT $4) AS r",
                )
                .bind::<BigInt, _>(after)
                .bind::<BigInt, _>(RANGE);
            let range: Option<RangeRow> = self.store.optional("verify", range).await?;
            let range = range.ok_or_else(|| Error::defect("members cannot be counted"))?;
            let members = u64::try_from(range.members).map_err(Error::defect)?;
            // The last range has no end, so that what is of no member is in a range, too.
            let is_last = range.members < RANGE;
            let until = if is_last { i64::MAX } else { range.last };
            for (check, compared) in checks.iter().zip(&mut compared) {
                compared.rows = compared.rows.saturating_add(members);
                // A range may hold more drifted rows than one answer: their members are repaired, then the rest.
                let mut progress = Progress::default();
                loop {
                    let statement =
                        self.statement(check.compare).bind::<BigInt, _>(after).bind::<BigInt, _>(until);
                    let rows: Vec<MemberDrift> = self.counted(statement, Batch::MAX).await?;
                    let full = is_full(&rows, Batch::MAX)?;
                    if progress.is_stuck(rows.iter().map(|row| row.member)) {
                        compared.uncount_repaired(count(rows.len())?);
                        break;
                    }
                    self.drifted_members(check, repair, rows, compared, found).await?;
                    if !repair || !full {
                        break;
                    }
                }
            }
            if is_last {
                break;
            }
            after = range.last;
        }
        found.compared.extend(compared);
        Ok(())
    }

    /// Names members that drifted, and repairs them.
    pub(super) async fn drifted_members(
        &self,
        check: &'static OfMember,
        repair: bool,
        rows: Vec<MemberDrift>,
        compared: &mut Compared,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let differing = count(rows.len())?;
        compared.add_drifted(differing);
        let members: BTreeSet<i64> = rows.iter().map(|row| row.member).collect();
        let members: Vec<i64> = members.into_iter().collect();
        for row in rows {
            found.name(check.what, row.key, row.kept, row.counted);
        }
        if !repair {
            return Ok(());
        }
        for drifted in members.chunks(REPAIRED_AT_ONCE) {
            let (tenant, drifted) = (self.tenant, drifted.to_vec());
            self.store
                .write("verify", move |connection| {
                    async move {
                        let held = lock::all_members(connection, tenant).await?;
                        lock::community(connection, tenant).await?;
                        for sql in check.repair {
                            let rows = drifted.iter().map(|member| Drifted { member: *member }).collect();
                            let repair = Statement::in_community(tenant, sql).rows(rows);
                            statement::execute(connection, repair).await?;
                        }
                        if check.recheck_tier {
                            let recheck = || MemberChange { recheck_tier: true, ..MemberChange::default() };
                            let members = drifted.into_iter().map(|member| (member, recheck())).collect();
                            member::change_known(connection, &held, tenant, members).await?;
                        }
                        Ok(())
                    }
                    .boxed()
                })
                .await?;
        }
        compared.add_repaired(differing);
        Ok(())
    }
}

columns! {
    struct Drifted {
        member: i64 => BigInt,
    }
}

#[derive(QueryableByName)]
pub(super) struct MemberDrift {
    #[diesel(sql_type = BigInt)]
    pub(super) member: i64,
    #[diesel(sql_type = Text)]
    pub(super) key: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    pub(super) counted: Option<String>,
}

#[derive(QueryableByName)]
struct RangeRow {
    #[diesel(sql_type = BigInt)]
    last: i64,
    #[diesel(sql_type = BigInt)]
    members: i64,
}
