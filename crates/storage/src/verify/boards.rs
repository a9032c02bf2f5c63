//! The entries of the boards. They lie in the order of scores and not of members, so that each board is compared whole.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, SmallInt, Text, Timestamptz};
use time::OffsetDateTime;

use crate::community::Community;
use crate::error::Error;
use crate::sql::columns::columns;
use crate::verify::counting::REPAIRED_AT_ONCE;
use crate::verify::report::{Batch, Compared, Progress, Verification, count, is_full};

const BOARDS: [(i16, &str); 3] =
    [(1, "board_entries of conviction"), (2, "board_entries of activity"), (3, "board_entries of badges")];
const TIERS: &str = "board_entries.tier";

/// The score of the member `m` on the board `$3`.
macro_rules! score {
    () => {
        "(CASE $3 WHEN 1 THEN m.conviction WHEN 2 THEN m.activity ELSE m.badge_count END)"
    };
}

/// Whether a member is to be on the board `$3`.
macro_rules! ranked {
    () => {
        "m.visible AND ($3 <> 2 OR m.activity > 0)"
    };
}

/// Sorted, here and below, since a planner of a cluster's node that expects many differences would else look up a member for
/// each entry.
const COMPARE: &str = concat!(
    "SELECT coalesce(m.member, e.member) AS member, e.negated_score, e.joined_at,
         CASE WHEN e.member IS NOT NULL THEN concat_ws(', ', -e.negated_score, e.joined_at) END AS kept,
         CASE WHEN m.member IS NOT NULL THEN concat_ws(', ', -m.negated_score, m.joined_at) END AS counted
     FROM (SELECT m.member, -",
    score!(),
    " AS negated_score, m.joined_at FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND ",
    ranked!(),
    ") AS m
     FULL JOIN (SELECT e.member, e.negated_score, e.joined_at FROM board_entries AS e
         WHERE e.shard = $1 AND e.community = $2 AND e.board = $3) AS e ON e.member = m.member
     WHERE e.negated_score IS DISTINCT FROM m.negated_score OR e.joined_at IS DISTINCT FROM m.joined_at
     ORDER BY 1 LIMIT $limit"
);

const REMOVE: &str = concat!(
    "DELETE FROM board_entries AS e USING $rows
     WHERE e.shard = $1 AND e.community = $2 AND e.board = $3 AND e.negated_score = rows.negated_score
         AND e.joined_at = rows.joined_at AND e.member = rows.member
         AND NOT EXISTS (SELECT FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member AND ",
    ranked!(),
    " AND m.joined_at = rows.joined_at AND -",
    score!(),
    " = rows.negated_score)"
);

const INSERT: &str = concat!(
    "INSERT INTO board_entries (shard, community, board, negated_score, joined_at, member, tier)
     SELECT m.shard, $2, $3, -",
    score!(),
    ", m.joined_at, m.member, CASE $3 WHEN 3 THEN m.tier END
     FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND ",
    ranked!(),
    " ON CONFLICT DO NOTHING"
);

const COMPARE_TIERS: &str =
    "SELECT e.member, e.negated_score, e.joined_at, e.tier::text AS kept, m.tier::text AS counted
     FROM board_entries AS e JOIN members AS m ON m.member = e.member
     WHERE e.shard = $1 AND e.community = $2 AND e.board = $3 AND m.shard = $1 AND m.community = $2
         AND m.tier IS DISTINCT FROM e.tier ORDER BY e.member LIMIT $limit";

const SET_TIERS: &str = "UPDATE board_entries AS e SET tier = m.tier
     FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member
     WHERE e.shard = $1 AND e.community = $2 AND e.board = $3 AND e.negated_score = rows.negated_score
         AND e.joined_at = rows.joined_at AND e.member = rows.member";

/// How one comparison of a board is made and put right.
struct Check {
    what: &'static str,
    board: i16,
    compare: &'static str,
    repair: &'static [&'static str],
}

impl Community {
    /// Board entries: members without one or with a wrong one, and entries of no member.
    pub(super) async fn verify_entries(&self, repair: bool, found: &mut Verification) -> Result<(), Error> {
        for (board, what) in BOARDS {
            let check = Check { what, board, compare: COMPARE, repair: &[REMOVE, INSERT] };
            self.verify_board(&check, repair, found).await?;
        }
        Ok(())
    }

    /// The tiers on the board of badges, once the entries are right.
    pub(super) async fn verify_tiers_of_entries(
        &self,
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let check = Check { what: TIERS, board: 3, compare: COMPARE_TIERS, repair: &[SET_TIERS] };
        self.verify_board(&check, repair, found).await
    }

    async fn verify_board(&self, check: &Check, repair: bool, found: &mut Verification) -> Result<(), Error> {
        let mut compared = Compared::nothing(check.what);
        let entries = self
            .statement(
                "SELECT count(*) AS entries FROM board_entries WHERE shard = $1 AND community = $2 AND board = $3 LIMIT $limit",
            )
            .bind::<SmallInt, _>(check.board);
        let entries: Vec<EntriesRow> = self.counted(entries, Batch::clamp(1)).await?;
        compared.rows = u64::try_from(entries.first().map_or(0, |row| row.entries)).map_err(Error::defect)?;
        let mut progress = Progress::default();
        loop {
            let compare = self.statement(check.compare).bind::<SmallInt, _>(check.board);
            let rows: Vec<EntryDrift> = self.counted(compare, Batch::MAX).await?;
            let (full, differing) = (is_full(&rows, Batch::MAX)?, count(rows.len())?);
            if progress.is_stuck(rows.iter().map(|row| row.member)) {
                compared.uncount_repaired(differing);
                break;
            }
            compared.add_drifted(differing);
            for row in &rows {
                found.name(check.what, row.member.to_string(), row.kept.clone(), row.counted.clone());
            }
            if !repair {
                break;
            }
            for drifted in rows.chunks(REPAIRED_AT_ONCE) {
                let statement = |sql: &'static str| {
                    let rows = drifted.iter().map(|row| Entry {
                        member: row.member,
                        negated_score: row.negated_score,
                        joined_at: row.joined_at,
                    });
                    self.statement(sql).bind::<SmallInt, _>(check.board).rows(rows.collect())
                };
                self.write_locked(check.repair.iter().map(|sql| statement(sql)).collect()).await?;
            }
            compared.add_repaired(differing);
            if !full {
                break;
            }
        }
        found.compared.push(compared);
        Ok(())
    }
}

columns! {
    struct Entry {
        member: i64 => BigInt,
        negated_score: Option<i64> => Nullable<BigInt>,
        joined_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
    }
}

/// An entry that differs; without a place where it is missing.
#[derive(QueryableByName)]
struct EntryDrift {
    #[diesel(sql_type = BigInt)]
    member: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    negated_score: Option<i64>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    joined_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<Text>)]
    kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    counted: Option<String>,
}

#[derive(QueryableByName)]
struct EntriesRow {
    #[diesel(sql_type = BigInt)]
    entries: i64,
}
