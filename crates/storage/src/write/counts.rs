//! The kept counts: what a transaction changes is summed and written once, whatever the number of rows it comes from. They are written
//! here alone, and by [repair](super::repair) where they have drifted.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Date as SqlDate, Integer, SmallInt, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use muster_domain::Shard;
use time::{Date, OffsetDateTime, UtcOffset};

use crate::board::{Board, TOP_LEVEL, bucket, is_counted};
use crate::error::Error;
use crate::schema::board_counts;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Statement};

/// What a visible member counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) conviction: i64,
    pub(crate) activity: i64,
    pub(crate) badge_count: i32,
    pub(crate) joined_at: OffsetDateTime,
    pub(crate) last_active_at: Option<OffsetDateTime>,
}

impl Standing {
    /// The score on a board, where the member is on it.
    pub(crate) fn score(&self, board: Board) -> Option<i64> {
        match board {
            Board::Conviction => Some(self.conviction),
            Board::Activity => Some(self.activity).filter(|activity| *activity > 0),
            Board::Badges => Some(i64::from(self.badge_count)),
        }
    }
}

#[derive(Default)]
struct Totals {
    members: i64,
    /// Of a whole batch of the highest scores, which is more than 64 bits hold.
    conviction: i128,
    badges: i64,
}

#[derive(Default, Clone, Copy)]
struct DayCounts {
    active: i64,
    joined: i64,
    awarded: i64,
    promoted: i64,
}

struct KindCounts {
    holders: i64,
    first_awarded_at: OffsetDateTime,
}

/// The changes of one transaction to every kept count. In the order of keys, so that they are written in that order.
#[derive(Default)]
pub(crate) struct Changes {
    scores: BTreeMap<(i32, Board, i64), i64>,
    tiers: BTreeMap<(i32, i16), i64>,
    totals: BTreeMap<i32, Totals>,
    days: BTreeMap<(i32, Date), DayCounts>,
    kinds: BTreeMap<(i32, i32), KindCounts>,
}

/// The day that an activity, a joining, an award or a promotion is counted on.
fn utc_day(at: OffsetDateTime) -> Date {
    at.to_offset(UtcOffset::UTC).date()
}

impl Changes {
    /// Counts what a visible member stands for in place of what it stood for; `None` is not visible.
    pub(crate) fn standing(&mut self, community: i32, before: Option<Standing>, after: Option<Standing>) {
        if before == after {
            return;
        }
        for (standing, sign) in before.map(|b| (b, -1_i64)).into_iter().chain(after.map(|a| (a, 1))) {
            for board in Board::ALL {
                let Some(score) = standing.score(board) else { continue };
                add(self.scores.entry((community, board, score)).or_default(), sign);
            }
            let totals = self.totals.entry(community).or_default();
            add(&mut totals.members, sign);
            totals.conviction = totals
                .conviction
                .saturating_add(i128::from(sign).saturating_mul(i128::from(standing.conviction)));
            add(&mut totals.badges, sign.saturating_mul(i64::from(standing.badge_count)));
            add(&mut self.day(community, standing.joined_at).joined, sign);
            if let Some(at) = standing.last_active_at {
                add(&mut self.day(community, at).active, sign);
            }
        }
    }

    /// Counts a visible member in a tier (sign 1), or no longer in it (sign -1).
    pub(crate) fn tier(&mut self, community: i32, tier: Option<i16>, sign: i64) {
        if let Some(tier) = tier {
            add(self.tiers.entry((community, tier)).or_default(), sign);
        }
    }

    /// Counts a held badge of a visible member (sign 1), or one that is no longer held (sign -1). Sign 0 only makes the date of its
    /// kind's first award known.
    pub(crate) fn badge(&mut self, community: i32, kind: i32, awarded_at: OffsetDateTime, sign: i64) {
        let kind = self
            .kinds
            .entry((community, kind))
            .or_insert(KindCounts { holders: 0, first_awarded_at: awarded_at });
        add(&mut kind.holders, sign);
        kind.first_awarded_at = kind.first_awarded_at.min(awarded_at);
        add(&mut self.day(community, awarded_at).awarded, sign);
    }

    /// Counts a visible member's promotion (sign 1), or one that is forgotten (sign -1).
    pub(crate) fn promotion(&mut self, community: i32, at: OffsetDateTime, sign: i64) {
        add(&mut self.day(community, at).promoted, sign);
    }

    fn day(&mut self, community: i32, at: OffsetDateTime) -> &mut DayCounts {
        self.days.entry((community, utc_day(at))).or_default()
    }

    /// Writes what ranks are read from. Thresholds are found by it, so it comes before them.
    pub(crate) async fn write_scores(
        &mut self,
        connection: &mut AsyncPgConnection,
        shard: Shard,
    ) -> Result<(), Error> {
        let mut buckets: BTreeMap<(i32, i16, i16, i64), i64> = BTreeMap::new();
        for ((community, board, score), delta) in std::mem::take(&mut self.scores) {
            for level in (0..=TOP_LEVEL).filter(|_| delta != 0) {
                let bucket = bucket(score, level);
                if is_counted(bucket, level) {
                    add(buckets.entry((community, board.number(), level, bucket)).or_default(), delta);
                }
            }
        }
        let rows: Vec<Counted> = buckets
            .into_iter()
            .filter(|(_, delta)| *delta != 0)
            .map(|((community, board, level, bucket), members)| Counted {
                community,
                board,
                level,
                bucket,
                members,
            })
            .collect();
        // A bucket without members is removed: scores that nobody has any more leave nothing behind.
        let count = Statement::in_shard(
            shard,
            "WITH counted AS (
                 INSERT INTO board_counts AS c (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
                 ON CONFLICT (shard, community, board, level, bucket)
                     DO UPDATE SET members = c.members + excluded.members
                 RETURNING c.community, c.board, c.level, c.bucket, c.members
             )
             SELECT community, board, level, bucket FROM counted WHERE members = 0",
        );
        let emptied: Vec<BucketRow> = statement::of_each(connection, count, rows).await?;
        let emptied = emptied.into_iter().map(|row| Emptied {
            community: row.community,
            board: row.board,
            level: row.level,
            bucket: row.bucket,
        });
        let remove = concat!(
            "DELETE FROM board_counts AS c USING ",
            rows_in!("board_counts", "board", "level", "bucket"),
            " WHERE c.shard = $1 AND c.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, remove), emptied.collect()).await?;
        Ok(())
    }

    /// Writes all other counts. The communities are locked.
    pub(crate) async fn write(self, connection: &mut AsyncPgConnection, shard: Shard) -> Result<(), Error> {
        let tiers: Vec<TierDelta> = self
            .tiers
            .into_iter()
            .filter(|(_, members)| *members != 0)
            .map(|((community, tier), members)| TierDelta { community, tier, members })
            .collect();
        let count = Statement::in_shard(
            shard,
            "INSERT INTO tier_counts AS c (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
             ON CONFLICT (shard, community, tier) DO UPDATE SET members = c.members + excluded.members",
        );
        statement::write(connection, count, tiers).await?;
        let totals: Vec<TotalDelta> = self
            .totals
            .into_iter()
            .filter(|(_, totals)| totals.members != 0 || totals.conviction != 0 || totals.badges != 0)
            .map(|(community, totals)| TotalDelta {
                community,
                members: totals.members,
                badges: totals.badges,
                conviction: totals.conviction.to_string(),
            })
            .collect();
        let count = Statement::in_shard(
            shard,
            "INSERT INTO community_totals AS c (shard, $names)
             SELECT here.shard, rows.community, rows.members, rows.badges, rows.conviction::numeric
             FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
             ON CONFLICT (shard, community) DO UPDATE SET members = c.members + excluded.members,
                 conviction = c.conviction + excluded.conviction, badges = c.badges + excluded.badges",
        );
        statement::write(connection, count, totals).await?;
        let days: Vec<DayDelta> = self
            .days
            .into_iter()
            .filter(|(_, day)| [day.active, day.joined, day.awarded, day.promoted].iter().any(|n| *n != 0))
            .map(|((community, day), counts)| DayDelta {
                community,
                day,
                active: counts.active,
                joined: counts.joined,
                awarded: counts.awarded,
                promoted: counts.promoted,
            })
            .collect();
        let count = Statement::in_shard(
            shard,
            "INSERT INTO community_days AS c (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
             ON CONFLICT (shard, community, day) DO UPDATE SET active = c.active + excluded.active,
                 joined = c.joined + excluded.joined, awarded = c.awarded + excluded.awarded,
                 promoted = c.promoted + excluded.promoted",
        );
        statement::write(connection, count, days).await?;
        let kinds: Vec<KindDelta> = self
            .kinds
            .into_iter()
            .map(|((community, kind), counts)| KindDelta {
                community,
                kind,
                holders: counts.holders,
                first_awarded_at: counts.first_awarded_at,
            })
            .collect();
        let count = concat!(
            "UPDATE badge_kinds AS k SET holders = k.holders + rows.holders,
                 first_awarded_at = least(k.first_awarded_at, rows.first_awarded_at) FROM ",
            rows_in!("badge_kinds", "kind"),
            " WHERE k.shard = $1 AND k.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, count), kinds).await?;
        Ok(())
    }
}

columns! {
    /// A member who appears in lists (true) or disappears from them.
    #[derive(Clone)]
    pub(crate) struct VisibilityChange {
        community: i32 => Integer,
        member: i64 => BigInt,
        visible: bool => Bool,
    }
}

/// Counts, among what visible members hold and went through, all that these hold and went through, or no longer any of it.
pub(crate) async fn apply_visibility(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: &[VisibilityChange],
) -> Result<(), Error> {
    // Each is a statement of its own, and reads what it needs again: one that writes two tables would have to be taken apart where the
    // tables are distributed.
    const HELD: &str = "UPDATE badge_kinds AS k SET holders = k.holders + s.sign
         FROM (SELECT rows.community, b.kind, sum(CASE WHEN rows.visible THEN 1 ELSE -1 END) AS sign
             FROM $rows CROSS JOIN LATERAL (SELECT o.kind FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = rows.community AND o.member = rows.member
                     AND o.is_badge AND o.revoked_at IS NULL OFFSET 0) AS b GROUP BY 1, 2) AS s
             CROSS JOIN LATERAL (SELECT r.ctid FROM badge_kinds AS r
                 WHERE r.shard = $1 AND r.community = s.community AND r.kind = s.kind LIMIT 1) AS row
         WHERE k.shard = $1 AND k.ctid = row.ctid";
    const AWARDED: &str = "INSERT INTO community_days AS c (shard, community, day, awarded)
         SELECT here.shard, rows.community, (b.at AT TIME ZONE 'UTC')::date, sum(CASE WHEN rows.visible THEN 1 ELSE -1 END)
         FROM shards AS here CROSS JOIN $rows CROSS JOIN LATERAL (SELECT o.at FROM badge_ops AS o
             WHERE o.shard = $1 AND o.community = rows.community AND o.member = rows.member
                 AND o.is_badge AND o.revoked_at IS NULL OFFSET 0) AS b
         WHERE here.shard = $1 GROUP BY 1, 2, 3 ORDER BY 2, 3
         ON CONFLICT (shard, community, day) DO UPDATE SET awarded = c.awarded + excluded.awarded";
    const PROMOTED: &str = "INSERT INTO community_days AS d (shard, community, day, promoted)
         SELECT here.shard, rows.community, (c.at AT TIME ZONE 'UTC')::date, sum(CASE WHEN rows.visible THEN 1 ELSE -1 END)
         FROM shards AS here CROSS JOIN $rows CROSS JOIN LATERAL (SELECT r.at FROM tier_changes AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member AND r.promotion OFFSET 0) AS c
         WHERE here.shard = $1 GROUP BY 1, 2, 3 ORDER BY 2, 3
         ON CONFLICT (shard, community, day) DO UPDATE SET promoted = d.promoted + excluded.promoted";
    const HISTORY: &str = "UPDATE tier_changes AS c SET visible = rows.visible
         FROM $rows CROSS JOIN LATERAL (SELECT r.ctid FROM tier_changes AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member OFFSET 0) AS row
         WHERE c.shard = $1 AND c.ctid = row.ctid";
    for sql in [HELD, AWARDED, PROMOTED, HISTORY] {
        statement::write(connection, Statement::in_shard(shard, sql), members.to_vec()).await?;
    }
    Ok(())
}

fn add(count: &mut i64, delta: i64) {
    *count = count.saturating_add(delta);
}

columns! {
    struct Counted {
        community: i32 => Integer,
        board: i16 => SmallInt,
        level: i16 => SmallInt,
        bucket: i64 => BigInt,
        members: i64 => BigInt,
    }
}

columns! {
    struct Emptied {
        community: i32 => Integer,
        board: i16 => SmallInt,
        level: i16 => SmallInt,
        bucket: i64 => BigInt,
    }
}

columns! {
    struct TierDelta {
        community: i32 => Integer,
        tier: i16 => SmallInt,
        members: i64 => BigInt,
    }
}

columns! {
    struct TotalDelta {
        community: i32 => Integer,
        members: i64 => BigInt,
        badges: i64 => BigInt,
        conviction: String => Text,
    }
}

columns! {
    struct DayDelta {
        community: i32 => Integer,
        day: Date => SqlDate,
        active: i64 => BigInt,
        joined: i64 => BigInt,
        awarded: i64 => BigInt,
        promoted: i64 => BigInt,
    }
}

columns! {
    struct KindDelta {
        community: i32 => Integer,
        kind: i32 => Integer,
        holders: i64 => BigInt,
        first_awarded_at: OffsetDateTime => Timestamptz,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = board_counts)]
struct BucketRow {
    community: i32,
    board: i16,
    level: i16,
    bucket: i64,
}
