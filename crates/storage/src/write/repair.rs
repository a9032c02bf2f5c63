//! Moves kept counts by what they drifted. This is the one other place, besides [counts](crate::write::counts), that
//! writes them, and a verification alone asks for it. A count is moved and not set, so that it comes out right
//! whatever events have moved it by since its drift was seen.

use diesel::sql_types::Text;
use diesel_async::AsyncPgConnection;

use crate::error::Error;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

columns! {
    /// What the count of a key is short of, which may be less than nothing. A key is a tier, a day or a kind; of a
    /// board it is a level and a bucket, with a blank between them.
    struct Missing {
        key: String => Text,
        missing: String => Text,
    }
}

/// A kept count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    ConvictionBoard,
    ActivityBoard,
    BadgeBoard,
    Tiers,
    Members,
    Conviction,
    Badges,
    Active,
    Joined,
    Awarded,
    Promoted,
    Holders,
    FirstAwarded,
}

macro_rules! board {
    ($board:literal) => {
        &[
            concat!(
                "INSERT INTO board_counts AS c (shard, community, board, level, bucket, members)
                 SELECT here.shard, $2, ",
                $board,
                ", split_part(rows.key, ' ', 1)::smallint, split_part(rows.key, ' ', 2)::bigint, rows.missing::bigint
                 FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
                 ON CONFLICT (shard, community, board, level, bucket) DO UPDATE SET members = c.members + excluded.members"
            ),
            // A bucket without members is removed.
            concat!(
                "DELETE FROM board_counts AS c USING $rows
                 WHERE c.shard = $1 AND c.community = $2 AND c.board = ",
                $board,
                " AND c.level = split_part(rows.key, ' ', 1)::smallint
                     AND c.bucket = split_part(rows.key, ' ', 2)::bigint AND c.members = 0"
            ),
        ]
    };
}

macro_rules! total {
    ($column:literal) => {
        &[concat!(
            "INSERT INTO community_totals AS c (shard, community, ",
            $column,
            ") SELECT here.shard, $2, rows.missing::numeric FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
              ON CONFLICT (shard, community) DO UPDATE SET ",
            $column,
            " = c.",
            $column,
            " + excluded.",
            $column
        )]
    };
}

macro_rules! day {
    ($column:literal) => {
        &[concat!(
            "INSERT INTO community_days AS c (shard, community, day, ",
            $column,
            ") SELECT here.shard, $2, rows.key::date, rows.missing::bigint
              FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
              ON CONFLICT (shard, community, day) DO UPDATE SET ",
            $column,
            " = c.",
            $column,
            " + excluded.",
            $column
        )]
    };
}

impl Kept {
    const fn statements(self) -> &'static [&'static str] {
        match self {
            Self::ConvictionBoard => board!("1"),
            Self::ActivityBoard => board!("2"),
            Self::BadgeBoard => board!("3"),
            Self::Tiers => &["INSERT INTO tier_counts AS c (shard, community, tier, members)
                 SELECT here.shard, $2, rows.key::smallint, rows.missing::bigint
                 FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
                 ON CONFLICT (shard, community, tier) DO UPDATE SET members = c.members + excluded.members"],
            Self::Members => total!("members"),
            Self::Conviction => total!("conviction"),
            Self::Badges => total!("badges"),
            Self::Active => day!("active"),
            Self::Joined => day!("joined"),
            Self::Awarded => day!("awarded"),
            Self::Promoted => day!("promoted"),
            Self::Holders => {
                &["UPDATE badge_kinds AS k SET holders = k.holders + rows.missing::bigint FROM $rows
                 WHERE k.shard = $1 AND k.community = $2 AND k.kind = rows.key::integer"]
            }
            // Events set a date, so that it is counted anew under the lock.
            Self::FirstAwarded => &["UPDATE badge_kinds AS k SET first_awarded_at = b.first
                 FROM (SELECT o.kind, min(o.at) AS first FROM badge_ops AS o
                     WHERE o.shard = $1 AND o.community = $2 AND o.is_badge
                         AND o.kind IN (SELECT rows.key::integer FROM $rows)
                     GROUP BY o.kind) AS b
                 WHERE k.shard = $1 AND k.community = $2 AND k.kind = b.kind"],
        }
    }
}

/// Moves counts of one sort; answers how many there were to move. The community is locked.
pub(crate) async fn add(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    kept: Kept,
    drifts: &[(String, String)],
) -> Result<usize, Error> {
    let mut moved = None;
    for sql in kept.statements() {
        let rows = drifts.iter().map(|(key, missing)| Missing { key: key.clone(), missing: missing.clone() });
        let repair = Statement::in_community(tenant, sql).rows(rows.collect());
        let touched = statement::execute(connection, repair).await?;
        moved.get_or_insert(touched);
    }
    Ok(moved.unwrap_or_default())
}
