//! Search in nyms: every suffix of every nym is a key of one index, so a match anywhere is a prefix of some suffix.

use diesel::sql_types::{BigInt, Text};
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

/// The suffixes of a class that begin with the text, in their order: at most `$bound`, which never is more than `$most`.
macro_rules! suffixes {
    ($class:literal, $room:literal, $most:literal, $bound:literal) => {
        concat!(
            "SELECT * FROM (SELECT s.member, s.suffix, s.class FROM nym_suffixes AS s
                 WHERE s.shard = $1 AND s.community = $2 AND s.class = ",
            $class,
            " AND s.suffix >= $3 AND s.suffix < $4 ORDER BY s.suffix, s.member LIMIT ",
            $most,
            ") AS s ",
            $room,
            " ORDER BY s.suffix, s.member LIMIT ",
            $bound
        )
    };
}

impl Community {
    /// Visible members whose nym matches: exactly, then from its start, then from a word's start, then inside; among
    /// equals by the text from the match on. Later kinds of match are only looked for while the earlier ones leave room.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn profile_search(
        &self,
        query: &SearchQuery,
        limit: SearchLimit,
    ) -> Result<Vec<Profile>, Error> {
        let text = query.key().as_str();
        // One nym can match in several places, so more suffixes than profiles are read: as many as a nym has.
        let suffixes = i64::try_from(Nym::MAX).unwrap_or(i64::MAX);
        let statement = self
            .statement(concat!(
                "WITH starts AS MATERIALIZED (",
                suffixes!("0", "", "100", "$limit"),
                "), words AS MATERIALIZED (",
                suffixes!("1", "WHERE (SELECT count(*) FROM starts) < $limit", "3200", "$limit * $5"),
                "), insides AS MATERIALIZED (",
                suffixes!(
                    "2",
                    "WHERE (SELECT count(DISTINCT m.member) FROM (TABLE starts UNION ALL TABLE words) AS m) < $limit",
                    "3200",
                    "$limit * $5"
                ),
                "), k AS MATERIALIZED (
                     SELECT * FROM (
                         SELECT DISTINCT ON (member) member, class, suffix
                         FROM (TABLE starts UNION ALL TABLE words UNION ALL TABLE insides) AS matches
                         ORDER BY member, class, suffix
                     ) AS best
                     ORDER BY class, suffix, member LIMIT $limit
                 )
                 SELECT m.* FROM k",
                member_of_each_key!("k.member"),
                "ORDER BY k.class, k.suffix, k.member"
            ))
            .bind::<Text, _>(text.to_owned())
            .bind::<Text, _>(behind_every_nym(text))
            .bind::<BigInt, _>(suffixes);
        let rows: Vec<ProfileRow> = self.store.rows("profile_search", statement, limit).await?;
        let policy = self.policy_of(rows.iter().map(|row| row.tier)).await?;
        rows.into_iter().map(|row| row.profile(&policy)).collect()
    }
}
