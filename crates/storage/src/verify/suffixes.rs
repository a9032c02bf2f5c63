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

/// ASCII's white space and punctuation, which are named, since a regular expression for each suffix takes a third of the whole
/// comparison. `\x24` is a dollar sign, which would begin the name of a value.
macro_rules! separators {
    () => {
        "E' \\t\\n\\f\\r!\"#\\x24%&''()*+,-./:;<=>?@[\\\\]^_`{|}~'"
    };
}

/// The class of the suffix of `m.nym_key` that begins at `s.at`: 1 behind a separator.
macro_rules! class {
    () => {
        concat!(
            "CASE
                 WHEN s.at = 1 THEN 0
                 WHEN strpos(",
            separators!(),
            ", substr(m.nym_key, s.at - 1, 1)) > 0 THEN 1
                 ELSE 2
             END"
        )
    };
}

/// From how many letters of the nym of `m` on there are to be suffixes.
macro_rules! letters {
    () => {
        "least(length(m.nym_key), 32)"
    };
}

/// Whether the row `k` holds suffixes of the nym of `m`, the first from `s.at` on. A suffix's length says where in the nym it begins, so that the
/// nym is not taken apart for each.
macro_rules! is_of_nym {
    () => {
        concat!(
            "k.suffix <> '' AND s.at >= 1 AND s.at + k.inside <= ",
            letters!(),
            " AND right(m.nym_key, length(k.suffix)) = k.suffix AND k.class = ",
            class!(),
            " AND translate(substr(m.nym_key, s.at, k.inside), ",
            separators!(),
            ", '') = substr(m.nym_key, s.at, k.inside)"
        )
    };
}

macro_rules! at {
    () => {
        "CROSS JOIN LATERAL (SELECT length(m.nym_key) - length(k.suffix) + 1 AS at) AS s"
    };
}

/// From which letters of the nym of `m` on the row `k` has suffixes: a bit for each. The rows of a member begin at different letters, and each has a
/// run of them. So the sum of theirs has the lowest bits set, and no other, if and only if there is one suffix from each of these letters.
macro_rules! bits {
    () => {
        "(((2::bigint << k.inside) - 1) << (s.at - 1))"
    };
}

macro_rules! all_bits {
    () => {
        concat!("(1::bigint << ", letters!(), ") - 1")
    };
}

/// Members that have not one suffix from each letter, of those who are the rows.
const MISSING: OfMember = OfMember {
    what: "nym_suffixes",
    compare: concat!(
        "SELECT m.member, m.member::text AS key, kept.suffixes::text AS kept, ",
        letters!(),
        "::text AS counted
         FROM $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
         CROSS JOIN LATERAL (
             SELECT coalesce(sum(k.inside + 1), 0) AS suffixes, coalesce(sum(",
        bits!(),
        "), 0) AS bits
             FROM generate_series(1, ",
        letters!(),
        ") AS s (at)
             JOIN nym_suffixes AS k ON k.shard = $1 AND k.community = $2 AND k.class = ",
        class!(),
        " AND k.suffix = substr(m.nym_key, s.at) COLLATE \"C\" AND k.member = m.member
         ) AS kept
         WHERE kept.bits <> ",
        all_bits!(),
        " LIMIT $limit"
    ),
    repair: &[
        concat!(
            "DELETE FROM nym_suffixes AS k
             USING $rows JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
             CROSS JOIN LATERAL generate_series(1, ",
            letters!(),
            ") AS s (at)
             WHERE k.shard = $1 AND k.community = $2 AND k.class = ",
            class!(),
            " AND k.suffix = substr(m.nym_key, s.at) COLLATE \"C\" AND k.member = m.member"
        ),
        concat!(
            "INSERT INTO nym_suffixes (shard, community, class, suffix, member, inside)
             SELECT w.shard, $2, min(w.class), substr(w.nym_key, min(w.at)), w.member, count(*) - 1
             FROM (SELECT *, max(c.at) FILTER (WHERE c.class < 2) OVER (PARTITION BY c.shard, c.member ORDER BY c.at) AS word
                 FROM (SELECT m.shard, m.member, m.nym_key, s.at, ",
            class!(),
            " AS class
                     FROM $rows JOIN members AS m
                         ON m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible
                     CROSS JOIN LATERAL generate_series(1, ",
            letters!(),
            ") AS s (at)) AS c) AS w
             GROUP BY w.shard, w.member, w.nym_key, w.word, (w.at - w.word) / 8"
        ),
    ],
    recheck_tier: false,
};

/// How many rows there are of suffixes, and of visible members.
const COUNT: &str =
    "SELECT (SELECT count(*) FROM nym_suffixes WHERE shard = $1 AND community = $2) AS suffixes,
         (SELECT count(*) FROM members WHERE shard = $1 AND community = $2 AND visible) AS members
     LIMIT $limit";

/// Visible members that have not one suffix from each letter.
const SHORT: &str = concat!(
    "SELECT m.member FROM members AS m
     LEFT JOIN nym_suffixes AS k ON k.shard = $1 AND k.community = $2 AND k.member = m.member
         AND length(k.suffix) BETWEEN 1 AND length(m.nym_key) ",
    at!(),
    " WHERE m.shard = $1 AND m.community = $2 AND m.visible
     GROUP BY m.member, m.nym_key HAVING coalesce(sum(",
    bits!(),
    "), 0) <> ",
    all_bits!(),
    " ORDER BY m.member LIMIT $limit"
);

/// Rows of suffixes that no visible member's nym has. Sorted, since a planner of a cluster's node that expects many of them
/// would else look up a member for each.
const STRAY: &str = concat!(
    "SELECT k.class, k.suffix, k.member
     FROM nym_suffixes AS k
     LEFT JOIN members AS m ON m.shard = $1 AND m.community = $2 AND m.member = k.member AND m.visible ",
    at!(),
    " WHERE k.shard = $1 AND k.community = $2 AND (",
    is_of_nym!(),
    ") IS NOT TRUE ORDER BY k.member LIMIT $limit"
);

const REMOVE: &str = concat!(
    "DELETE FROM nym_suffixes AS k USING $rows
     WHERE k.shard = $1 AND k.community = $2 AND k.class = rows.class AND k.suffix = rows.suffix COLLATE \"C\"
         AND k.member = rows.member AND NOT EXISTS (SELECT FROM members AS m ",
    at!(),
    " WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member AND m.visible AND ",
    is_of_nym!(),
    ")"
);

impl Community {
    /// Suffixes that should not be there come first: without them, a member's rows say by themselves whether there is one from each
    /// letter. Only of those of whom that is not so is each suffix looked up.
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
            let short: Vec<ShortRow> = self.counted(self.statement(SHORT), Members::MAX).await?;
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
