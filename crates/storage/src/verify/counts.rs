//! The kept counts, each compared with the rows of the whole community.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;

use crate::community::Community;
use crate::error::Error;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;
use crate::verify::counting::{COUNTING, plan_for_counting};
use crate::verify::report::{Batch, Compared, Verification, count, is_full};
use crate::write::lock;
use crate::write::repair::{self, Kept};

/// One kept count. A comparison answers how many keys there are, and those that differ.
pub(super) struct OfCommunity {
    what: &'static str,
    kept: Kept,
    compare: &'static str,
}

/// What was kept and counted by key, compared.
macro_rules! compare {
    ($kept:expr, $counted:expr) => {
        compare!("", $kept, $counted)
    };
    ($with:expr, $kept:expr, $counted:expr) => {
        concat!(
            "WITH ", $with, "compared AS MATERIALIZED (
                 SELECT key, k.n AS kept, c.n AS counted FROM (", $kept, ") AS k FULL JOIN (", $counted, ") AS c USING (key)
             )
             SELECT total.rows, d.* FROM (SELECT count(*) AS rows FROM compared) AS total
             LEFT JOIN (SELECT key, kept::text, counted::text,
                     (coalesce(counted, 0) - coalesce(kept, 0))::text AS missing
                 FROM compared WHERE coalesce(kept, 0) <> coalesce(counted, 0) ORDER BY key LIMIT $limit) AS d ON true"
        )
    };
}

/// The buckets of a level, from those of the level below.
macro_rules! level {
    ($level:literal, $below:literal) => {
        concat!(
            "level_",
            $level,
            " AS MATERIALIZED (
                 SELECT bucket >> 5 AS bucket, sum(n)::bigint AS n FROM level_",
            $below,
            " GROUP BY bucket >> 5
             ), "
        )
    };
}

/// The buckets of a level that are counted: see [`is_counted`](crate::board::is_counted).
macro_rules! of_level {
    ($level:literal) => {
        concat!(
            " UNION ALL SELECT ",
            $level,
            " || ' ' || bucket, n FROM level_",
            $level,
            " WHERE bucket & 31 <> 0"
        )
    };
}

/// A board's tree, counted level by level from the scores.
macro_rules! compare_board {
    ($board:literal, $score:literal, $ranked:literal) => {
        compare!(
            concat!(
                "level_0 AS MATERIALIZED (
                     SELECT ",
                $score,
                " AS bucket, count(*) AS n FROM members
                     WHERE shard = $1 AND community = $2 AND ",
                $ranked,
                " GROUP BY 1
                 ), ",
                level!(1, 0),
                level!(2, 1),
                level!(3, 2),
                level!(4, 3),
                level!(5, 4),
                level!(6, 5),
                level!(7, 6),
                level!(8, 7),
                level!(9, 8),
                level!(10, 9)
            ),
            concat!(
                "SELECT level || ' ' || bucket AS key, members AS n FROM board_counts
                 WHERE shard = $1 AND community = $2 AND (level IN (0, 10) OR bucket & 31 <> 0) AND board = ",
                $board
            ),
            concat!(
                "SELECT 0 || ' ' || bucket AS key, n FROM level_0",
                of_level!(1),
                of_level!(2),
                of_level!(3),
                of_level!(4),
                of_level!(5),
                of_level!(6),
                of_level!(7),
                of_level!(8),
                of_level!(9),
                " UNION ALL SELECT 10 || ' ' || bucket, n FROM level_10"
            )
        )
    };
}

/// The held badges of visible members: of all but those who are not visible, who are far fewer to look for.
macro_rules! held {
    () => {
        "FROM badge_ops AS o WHERE o.shard = $1 AND o.community = $2 AND o.is_badge AND o.revoked_at IS NULL
             AND NOT EXISTS (SELECT FROM members AS m
                 WHERE m.shard = $1 AND m.community = $2 AND m.member = o.member AND NOT m.visible)"
    };
}

/// A column of days, and what of visible members happened when.
macro_rules! compare_days {
    ($column:literal, $happened:expr) => {
        compare!(
            concat!(
                "SELECT day::text AS key, ",
                $column,
                " AS n FROM community_days WHERE shard = $1 AND community = $2"
            ),
            concat!(
                "SELECT (h.at AT TIME ZONE 'UTC')::date::text AS key, count(*) AS n FROM (",
                $happened,
                ") AS h
                 GROUP BY (h.at AT TIME ZONE 'UTC')::date"
            )
        )
    };
}

/// A column of the community's totals.
macro_rules! compare_total {
    ($column:literal, $counted:expr) => {
        compare!(
            concat!(
                "SELECT '' AS key, ",
                $column,
                " AS n FROM community_totals WHERE shard = $1 AND community = $2"
            ),
            concat!("SELECT '' AS key, ", $counted)
        )
    };
}

/// The trees that ranks are read from, and thresholds moved by.
pub(super) const BOARDS: [OfCommunity; 3] = [
    OfCommunity {
        what: "board_counts of conviction",
        kept: Kept::ConvictionBoard,
        compare: compare_board!(1, "conviction", "visible"),
    },
    OfCommunity {
        what: "board_counts of activity",
        kept: Kept::ActivityBoard,
        compare: compare_board!(2, "activity", "visible AND activity > 0"),
    },
    OfCommunity {
        what: "board_counts of badges",
        kept: Kept::BadgeBoard,
        compare: compare_board!(3, "badge_count::bigint", "visible"),
    },
];

/// All others.
pub(super) const COUNTS: [OfCommunity; 10] = [
    OfCommunity {
        what: "tier_counts",
        kept: Kept::Tiers,
        compare: compare!(
            "SELECT tier::text AS key, members AS n FROM tier_counts WHERE shard = $1 AND community = $2",
            "SELECT tier::text AS key, count(*) AS n FROM members
             WHERE shard = $1 AND community = $2 AND visible AND tier IS NOT NULL GROUP BY tier"
        ),
    },
    OfCommunity {
        what: "community_totals.members",
        kept: Kept::Members,
        compare: compare_total!(
            "members",
            "count(*) AS n FROM members WHERE shard = $1 AND community = $2 AND visible"
        ),
    },
    OfCommunity {
        what: "community_totals.conviction",
        kept: Kept::Conviction,
        compare: compare_total!(
            "conviction",
            "sum(conviction) AS n FROM members WHERE shard = $1 AND community = $2 AND visible"
        ),
    },
    OfCommunity {
        what: "community_totals.badges",
        kept: Kept::Badges,
        compare: compare_total!(
            "badges",
            concat!("count(*) AS n ", held!())
        ),
    },
    OfCommunity {
        what: "community_days.active",
        kept: Kept::Active,
        compare: compare_days!(
            "active",
            "SELECT last_active_at AS at FROM members
             WHERE shard = $1 AND community = $2 AND visible AND last_active_at IS NOT NULL"
        ),
    },
    OfCommunity {
        what: "community_days.joined",
        kept: Kept::Joined,
        compare: compare_days!(
            "joined",
            "SELECT joined_at AS at FROM members WHERE shard = $1 AND community = $2 AND visible"
        ),
    },
    OfCommunity {
        what: "community_days.awarded",
        kept: Kept::Awarded,
        compare: compare_days!(
            "awarded",
            concat!("SELECT o.at ", held!())
        ),
    },
    OfCommunity {
        what: "community_days.promoted",
        kept: Kept::Promoted,
        compare: compare_days!(
            "promoted",
            "SELECT at FROM tier_changes WHERE shard = $1 AND community = $2 AND visible AND promotion"
        ),
    },
    OfCommunity {
        what: "badge_kinds.holders",
        kept: Kept::Holders,
        compare: compare!(
            "SELECT kind::text AS key, holders AS n FROM badge_kinds WHERE shard = $1 AND community = $2",
            concat!("SELECT o.kind::text AS key, count(*) AS n ", held!(), " GROUP BY o.kind")
        ),
    },
    // In seconds since 1970. A kind stays known from its first award although the person who had it was erased with
    // it: once somebody was erased, an earlier date than that of any badge is no drift.
    OfCommunity {
        what: "badge_kinds.first_awarded_at",
        kept: Kept::FirstAwarded,
        compare: compare!(
            "SELECT kind::text AS key, extract(epoch FROM first_awarded_at) AS n FROM badge_kinds
             WHERE shard = $1 AND community = $2",
            "SELECT k.kind::text AS key, extract(epoch FROM CASE WHEN b.first > k.first_awarded_at AND e.erased
                 THEN k.first_awarded_at ELSE coalesce(b.first, k.first_awarded_at) END) AS n
             FROM badge_kinds AS k
             LEFT JOIN (SELECT kind, min(at) AS first FROM badge_ops
                 WHERE shard = $1 AND community = $2 AND is_badge GROUP BY kind) AS b ON b.kind = k.kind
             CROSS JOIN (SELECT EXISTS (SELECT FROM members
                 WHERE shard = $1 AND community = $2 AND erased_at IS NOT NULL) AS erased) AS e
             WHERE k.shard = $1 AND k.community = $2"
        ),
    },
];

impl Community {
    pub(super) async fn verify_counts(
        &self,
        checks: &'static [OfCommunity],
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        for check in checks {
            let mut compared = Compared::nothing(check.what);
            let mut first = true;
            loop {
                let tenant = self.tenant;
                let (rows, repaired) = self
                    .store
                    .write_within("verify", COUNTING, move |connection| {
                        compare(connection, tenant, check, repair).boxed()
                    })
                    .await?;
                if first {
                    let total = rows.first().map_or(0, |row| row.rows);
                    compared.rows = u64::try_from(total).map_err(Error::defect)?;
                    first = false;
                }
                let full = is_full(&rows, Batch::MAX)?;
                let mut differing = 0_u64;
                for row in rows {
                    let Some(key) = row.key else { continue };
                    differing = differing.saturating_add(1);
                    found.name(check.what, shown(key), row.kept, row.counted);
                }
                compared.add_drifted(differing);
                compared.add_repaired(count(repaired)?.min(differing));
                if !full || repaired == 0 {
                    break;
                }
            }
            found.compared.push(compared);
        }
        Ok(())
    }
}

/// A bucket's key with words.
fn shown(key: String) -> String {
    match key.split_once(' ') {
        Some((level, bucket)) => format!("level {level}, bucket {bucket}"),
        None => key,
    }
}

/// One comparison, and with `repair` its repair. The community's lock is taken only after the counting; the advisory
/// lock keeps a second verification from adding the same drift again.
async fn compare(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    check: &'static OfCommunity,
    repair: bool,
) -> Result<(Vec<CountDrift>, usize), Error> {
    plan_for_counting(connection).await?;
    if repair {
        let alone = Statement::shared("SELECT pg_advisory_xact_lock(hashtextextended('verify', $1))")
            .bind::<BigInt, _>(i64::from(tenant.community));
        statement::execute(connection, alone).await?;
    }
    let compare = Statement::in_community(tenant, check.compare);
    let rows: Vec<CountDrift> = statement::rows(connection, compare, Batch::MAX).await?;
    let drifts: Vec<(String, String)> =
        rows.iter().filter_map(|row| row.key.clone().zip(row.missing.clone())).collect();
    let mut repaired = 0;
    if repair && !drifts.is_empty() {
        lock::community(connection, tenant).await?;
        repaired = repair::add(connection, tenant, check.kept, &drifts).await?;
    }
    Ok((rows, repaired))
}

#[derive(QueryableByName)]
struct CountDrift {
    #[diesel(sql_type = BigInt)]
    rows: i64,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    counted: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    missing: Option<String>,
}
