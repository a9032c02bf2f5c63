//! The suffixes of nyms. They lie in no order of members, so that they are compared whole, and what every member is
//! to have is only made where something is missing.

use std::collections::BTreeSet;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, SmallInt, Text};
use muster_domain::Limit;

use crate::community::Community;
use crate::error::Error;
use crate::sql::columns::columns;
use crate::verify::counting::REPAIRED_AT_ONCE;
use crate::verify::members::{MemberDrift, OfMember};
use crate::verify::report::{Batch, Compared, Progress, Verification, count, is_full};

/// The most members whose suffixes are looked up after one counting.
type Members = Limit<100_000>;

/// The class of the suffix of `m.nym_key` that begins at `s.at`: 1 behind ASCII's white space or punctuation, which are named,
/// since a regular expression for each suffix takes a third of the whole comparison. `\x24` is a dollar sign, which would begin the
/// name of a value.
macro_rules! class {
    () => {
        "CASE
             WHEN s.at = 1 THEN 0
             WHEN strpos(E' \\t\\n\\f\\r!\"#\\x24%&''()*+,-./:;<=>?@[\\\\]^_`{|}~', substr(m.nym_key, s.at - 1, 1)) > 0 THEN 1
             ELSE 2
         END"
    };
}

/// The suffixes that the visible members of `$rows` are to have.
macro_rules! wanted {
    () => {
        concat!(
            "(SELECT m.shard, m.member, ",
            class!(),
            "::smallint AS class, substr(m.nym_key, s.at) AS suffix
              FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
              CROSS JOIN LATERAL generate_series(1, least(length(m.nym_key), 32)) AS s (at)) AS w"
        )
    };
}

/// Suffixes that are missing, of the members that are the rows of either statement.
const MISSING: OfMember = OfMember {
    what: "nym_suffixes",
    compare: concat!(
        "SELECT w.member, w.member || ' ' || w.suffix AS key, NULL::text AS kept, w.class::text AS counted FROM ",
        wanted!(),
        " WHERE NOT EXISTS (SELECT FROM nym_suffixes AS k WHERE k.shard = $1 AND k.community = $2 AND k.class = w.class
              AND k.suffix = w.suffix COLLATE \"C\" AND k.member = w.member) LIMIT $limit"
    ),
    repair: &[concat!(
        "INSERT INTO nym_suffixes (shard, community, class, suffix, member)
         SELECT w.shard, $2, w.class, w.suffix, w.member FROM ",
        wanted!(),
        " ON CONFLICT DO NOTHING"
    )],
    recheck_tier: false,
};

/// How many suffixes there are, and how many there are to be. A nym has one from each of its first 32 characters, no
/// two alike.
const COUNT: &str = "SELECT k.suffixes, w.members, w.wanted FROM
         (SELECT count(*) AS suffixes FROM nym_suffixes WHERE shard = $1 AND community = $2) AS k
     CROSS JOIN (SELECT count(*) AS members, coalesce(sum(least(length(nym_key), 32)), 0)::bigint AS wanted FROM members
         WHERE shard = $1 AND community = $2 AND visible) AS w
     LIMIT $limit";

/// Visible members that have another number of suffixes than their nyms.
const SHORT: &str = "SELECT m.member
     FROM members AS m LEFT JOIN (SELECT member, count(*) AS suffixes FROM nym_suffixes
         WHERE shard = $1 AND community = $2 GROUP BY member) AS k ON k.member = m.member
     WHERE m.shard = $1 AND m.community = $2 AND m.visible
         AND coalesce(k.suffixes, 0) <> least(length(m.nym_key), 32)
     ORDER BY m.member LIMIT $limit";

/// Suffixes that no visible member's nym has. A suffix's length says where in the nym it begins, so that the nym is
/// not taken apart for each. Sorted, since a planner of a cluster's node that expects many of them
/// would else look up a member for each.
const STRAY: &str = concat!(
    "SELECT k.class, k.suffix, k.member
     FROM nym_suffixes AS k
     LEFT JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = k.member AND m.visible
     CROSS JOIN LATERAL (SELECT length(m.nym_key) - length(k.suffix) + 1 AS at) AS s
     WHERE k.shard = $1 AND k.community = $2 AND (
         k.suffix <> '' AND s.at BETWEEN 1 AND 32 AND right(m.nym_key, length(k.suffix)) = k.suffix AND k.class = ",
    class!(),
    ") IS NOT TRUE ORDER BY k.member LIMIT $limit"
);

const REMOVE: &str = concat!(
    "DELETE FROM nym_suffixes AS k USING $rows
     WHERE k.shard = $1 AND k.community = $2 AND k.class = rows.class AND k.suffix = rows.suffix COLLATE \"C\"
         AND k.member = rows.member AND NOT EXISTS (
             SELECT FROM members AS m CROSS JOIN LATERAL generate_series(1, least(length(m.nym_key), 32)) AS s (at)
             WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
                 AND substr(m.nym_key, s.at) = rows.suffix COLLATE \"C\" AND rows.class = ",
    class!(),
    ")"
);

impl Community {
    /// Suffixes that should not be there come first: without them, a member that has as many as its nym has them all,
    /// and so do all members together. Only of those that have not is each suffix looked up.
    pub(super) async fn verify_suffixes(&self, repair: bool, found: &mut Verification) -> Result<(), Error> {
        let mut stray = Compared::nothing("nym_suffixes without a nym");
        let mut missing = Compared::nothing(MISSING.what);
        // Of whom suffixes that should not be there were found, in the last answer of them.
        let mut suspects: BTreeSet<i64> = BTreeSet::new();
        let mut progress = Progress::default();
        loop {
            let rows: Vec<SuffixRow> = self.counted(self.statement(STRAY), Batch::MAX).await?;
            let (full, differing) = (is_full(&rows, Batch::MAX)?, count(rows.len())?);
            if progress.is_stuck(rows.iter().map(|row| row.member)) {
                stray.uncount_repaired(differing);
                break;
            }
            stray.add_drifted(differing);
            for row in &rows {
                let key = format!("{} {}", row.member, row.suffix);
                found.name(stray.what, key, Some(row.class.to_string()), None);
            }
            suspects.extend(rows.iter().map(|row| row.member));
            if !repair {
                break;
            }
            for drifted in rows.chunks(REPAIRED_AT_ONCE) {
                let suffixes = drifted.iter().map(|row| Suffix {
                    class: row.class,
                    suffix: row.suffix.clone(),
                    member: row.member,
                });
                self.write_locked(vec![self.statement(REMOVE).rows(suffixes.collect())]).await?;
            }
            stray.add_repaired(differing);
            if !full {
                break;
            }
            let members = std::mem::take(&mut suspects);
            self.missing_suffixes(members, repair, &mut missing, found).await?;
        }
        let mut progress = Progress::default();
        loop {
            let counts: Vec<CountRow> = self.counted(self.statement(COUNT), Members::clamp(1)).await?;
            let counts = counts.first().ok_or_else(|| Error::defect("suffixes cannot be counted"))?;
            missing.rows = u64::try_from(counts.members).map_err(Error::defect)?;
            stray.rows = u64::try_from(counts.suffixes).map_err(Error::defect)?;
            let mut short = Vec::new();
            // A stray one that stays would make up for one that is missing.
            if counts.suffixes != counts.wanted || stray.repaired < stray.drifted {
                short = self.counted::<ShortRow, _>(self.statement(SHORT), Members::MAX).await?;
            }
            let full = is_full(&short, Members::MAX)?;
            if progress.is_stuck(short.iter().map(|row| row.member)) {
                missing.uncount_repaired(count(short.len())?);
                break;
            }
            suspects.extend(short.iter().map(|row| row.member));
            let members = std::mem::take(&mut suspects);
            self.missing_suffixes(members, repair, &mut missing, found).await?;
            if !repair || !full {
                break;
            }
        }
        found.compared.extend([missing, stray]);
        Ok(())
    }

    async fn missing_suffixes(
        &self,
        members: BTreeSet<i64>,
        repair: bool,
        missing: &mut Compared,
        found: &mut Verification,
    ) -> Result<(), Error> {
        for members in Vec::from_iter(members).chunks(REPAIRED_AT_ONCE) {
            let rows = members.iter().map(|member| Suspect { member: *member }).collect();
            // Few of many: planned as any other, and not as what counts everything.
            let compare = self.statement(MISSING.compare).rows(rows);
            let rows: Vec<MemberDrift> = self.store.rows("verify", compare, Batch::MAX).await?;
            self.drifted_members(&MISSING, repair, rows, missing, found).await?;
        }
        Ok(())
    }
}

columns! {
    struct Suspect {
        member: i64 => BigInt,
    }
}

columns! {
    struct Suffix {
        class: i16 => SmallInt,
        suffix: String => Text,
        member: i64 => BigInt,
    }
}

#[derive(QueryableByName)]
struct CountRow {
    #[diesel(sql_type = BigInt)]
    suffixes: i64,
    #[diesel(sql_type = BigInt)]
    members: i64,
    #[diesel(sql_type = BigInt)]
    wanted: i64,
}

#[derive(QueryableByName)]
struct ShortRow {
    #[diesel(sql_type = BigInt)]
    member: i64,
}

#[derive(QueryableByName)]
struct SuffixRow {
    #[diesel(sql_type = SmallInt)]
    class: i16,
    #[diesel(sql_type = Text)]
    suffix: String,
    #[diesel(sql_type = BigInt)]
    member: i64,
}
