//! Search in nyms: every suffix of every nym is a key of an index, so a match anywhere is a prefix of some suffix.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Text};
use muster_domain::{Nym, NymKey, Profile, SearchLimit, SearchQuery};

use crate::community::Community;
use crate::error::Error;
use crate::read::profile::{ProfileRow, member_of_each_key};

/// A text that sorts behind every nym key that begins with `start`: no key is as long.
pub(crate) fn behind_every_nym(start: &str) -> String {
    let mut text = start.to_owned();
    text.extend(std::iter::repeat_n(char::MAX, NymKey::MAX.saturating_add(1)));
    text
}

/// The suffixes of a class that stand first in their rows and begin with the text, in their order: at most `$most`, which is written out for
/// the planner's sake.
macro_rules! suffixes {
    ($class:literal, $most:literal) => {
        concat!(
            "SELECT * FROM (SELECT s.member, s.suffix, s.class FROM nym_suffixes AS s
                 WHERE s.shard = $1 AND s.community = $2 AND s.class = ",
            $class,
            " AND s.suffix >= $3 AND s.suffix < $4 ORDER BY s.suffix, s.member LIMIT ",
            $most,
            ") AS s"
        )
    };
}

/// The suffixes that begin with the text, from the next letters on of what stands first in their rows. Each letter has an index, without
/// the member: of equals any come.
macro_rules! insides {
    ($(($inside:literal, $letter:literal)),+) => {
        concat!($(
            " UNION ALL SELECT * FROM (SELECT s.member, substr(s.suffix, ", $letter, ") AS suffix, 2::smallint AS class
                 FROM nym_suffixes AS s
                 WHERE s.shard = $1 AND s.community = $2 AND s.inside >= ", $inside,
            " AND substr(s.suffix, ", $letter, ") >= $3 AND substr(s.suffix, ", $letter, ") < $4
                 ORDER BY substr(s.suffix, ", $letter, ") LIMIT 3200) AS s"
        ),+)
    };
}

/// How many suffixes are read for each profile that there is room for. One nym can match in several places, though few do; where too
/// few profiles were found for that, as many are read as a nym has.
const COPIES: [usize; 2] = [2, Nym::MAX];

impl Community {
    /// Visible members whose nym matches: exactly, then from its start, then from a word's start, then inside; among
    /// equals by the text from the match on. Later kinds of match are only looked for while the earlier ones leave room.
    /// Of members who match inside by the very same text, and for not all of whom there is room, any are answered.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn profile_search(
        &self,
        query: &SearchQuery,
        limit: SearchLimit,
    ) -> Result<Vec<Profile>, Error> {
        let mut rows: Vec<MatchRow> = Vec::new();
        for copies in COPIES {
            rows = self.matches(query, limit, copies).await?;
            if !rows.iter().any(|row| row.is_short) {
                break;
            }
        }
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        rows.into_iter().map(|row| row.profile.profile(&policy)).collect()
    }

    async fn matches(
        &self,
        query: &SearchQuery,
        limit: SearchLimit,
        copies: usize,
    ) -> Result<Vec<MatchRow>, Error> {
        let text = query.key().as_str();
        let statement = self
            .statement(concat!(
                "WITH starts AS MATERIALIZED (",
                suffixes!("0", "100"),
                " ORDER BY s.suffix, s.member LIMIT $limit
                 ), words AS MATERIALIZED (",
                suffixes!("1", "3200"),
                " ORDER BY s.suffix, s.member
                     LIMIT CASE WHEN (SELECT count(*) FROM starts) < $limit THEN $limit * $5 ELSE 0 END
                 ), before AS MATERIALIZED (
                     SELECT count(DISTINCT m.member) AS members FROM (TABLE starts UNION ALL TABLE words) AS m
                 ), insides AS MATERIALIZED (
                     SELECT * FROM (",
                suffixes!("2", "3200"),
                insides!(("1", "2"), ("2", "3"), ("3", "4"), ("4", "5"), ("5", "6"), ("6", "7"), ("7", "8")),
                ") AS s
                     ORDER BY s.suffix
                     LIMIT CASE WHEN (SELECT members FROM before) < $limit THEN $limit * $5 ELSE 0 END
                 ), k AS MATERIALIZED (
                     SELECT * FROM (
                         SELECT DISTINCT ON (member) member, class, suffix
                         FROM (TABLE starts UNION ALL TABLE words UNION ALL TABLE insides) AS matches
                         ORDER BY member, class, suffix
                     ) AS best
                     ORDER BY class, suffix, member LIMIT $limit
                 )
                 SELECT m.*, (SELECT members FROM before) < $limit AND (SELECT count(*) FROM words) >= $limit * $5
                     OR (SELECT count(*) FROM k) < $limit AND (SELECT count(*) FROM insides) >= $limit * $5 AS is_short
                 FROM k",
                member_of_each_key!("k.member"),
                "ORDER BY k.class, k.suffix, k.member"
            ))
            .bind::<Text, _>(text.to_owned())
            .bind::<Text, _>(behind_every_nym(text))
            .bind::<BigInt, _>(i64::try_from(copies).map_err(Error::defect)?);
        self.store.rows("profile_search", statement, limit).await
    }
}

#[derive(QueryableByName)]
struct MatchRow {
    #[diesel(embed)]
    profile: ProfileRow,
    /// Whether what was not read could belong in between or behind.
    #[diesel(sql_type = Bool)]
    is_short: bool,
}
