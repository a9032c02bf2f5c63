//! Search in nyms: every tail of every nym is a key of one index, so a match anywhere is a prefix of some tail.

use diesel::sql_types::{Array, BigInt, Text, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{CommunityId, Nym, NymKey, Profile, ProfileId, SearchQuery, SuggestLimit};

use crate::Error;
use crate::community::Community;
use crate::profile::{ProfileRow, profile_columns, profile_of_each_key};
use crate::statement::{self, Statement};

/// A text that sorts behind every nym key that begins with `start`: no key is as long.
pub(crate) fn behind_every_nym(start: &str) -> String {
    let mut text = start.to_owned();
    text.extend(std::iter::repeat_n(char::MAX, NymKey::MAX.saturating_add(1)));
    text
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
        limit: SuggestLimit,
    ) -> Result<Vec<Profile>, Error> {
        let text = query.key().as_str();
        // One nym can match in several places, so more tails than profiles are read: as many as a nym has.
        let tails = i64::try_from(Nym::MAX).unwrap_or(i64::MAX);
        let statement = self
            .statement(concat!(
                "WITH starts AS MATERIALIZED (
                     SELECT t.profile_id, t.tail, t.class FROM nym_tails AS t
                     WHERE t.community_id = $1 AND t.class = 0 AND t.tail >= $2 AND t.tail < $3
                     ORDER BY t.tail, t.profile_id LIMIT $limit
                 ), words AS MATERIALIZED (
                     SELECT t.profile_id, t.tail, t.class FROM nym_tails AS t
                     WHERE t.community_id = $1 AND t.class = 1 AND t.tail >= $2 AND t.tail < $3
                         AND (SELECT count(*) FROM starts) < $limit
                     ORDER BY t.tail, t.profile_id LIMIT $limit * $4
                 ), insides AS MATERIALIZED (
                     SELECT t.profile_id, t.tail, t.class FROM nym_tails AS t
                     WHERE t.community_id = $1 AND t.class = 2 AND t.tail >= $2 AND t.tail < $3
                         AND (SELECT count(DISTINCT profile_id) FROM (TABLE starts UNION ALL TABLE words) AS m) < $limit
                     ORDER BY t.tail, t.profile_id LIMIT $limit * $4
                 ), k AS MATERIALIZED (
                     SELECT * FROM (
                         SELECT DISTINCT ON (profile_id) profile_id, class, tail
                         FROM (TABLE starts UNION ALL TABLE words UNION ALL TABLE insides) AS matches
                         ORDER BY profile_id, class, tail
                     ) AS best
                     ORDER BY class, tail, profile_id LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                " FROM k",
                profile_of_each_key!(),
                "ORDER BY k.class, k.tail, k.profile_id"
            ))
            .bind::<Text, _>(text.to_owned())
            .bind::<Text, _>(behind_every_nym(text))
            .bind::<BigInt, _>(tails);
        let rows: Vec<ProfileRow> = self.store.rows("profile_search", statement, limit).await?;
        rows.into_iter().map(TryInto::try_into).collect()
    }
}

/// A visible member and the folded key of a nym.
type Named = (CommunityId, ProfileId, String);

/// Makes members found by their nyms.
pub(crate) async fn tails_add(connection: &mut AsyncPgConnection, members: Vec<Named>) -> Result<(), Error> {
    let insert = "INSERT INTO nym_tails
         SELECT m.community_id, t.class, t.tail, m.profile_id
         FROM unnest($1, $2, $3) AS m (community_id, profile_id, nym_key) CROSS JOIN LATERAL nym_tails_of(m.nym_key) AS t";
    tails_change(connection, insert, members).await
}

/// Makes members no longer found by the nyms they had.
pub(crate) async fn tails_remove(
    connection: &mut AsyncPgConnection,
    members: Vec<Named>,
) -> Result<(), Error> {
    let delete = "DELETE FROM nym_tails AS d
         USING unnest($1, $2, $3) AS m (community_id, profile_id, nym_key)
             CROSS JOIN LATERAL nym_tails_of(m.nym_key) AS t
             CROSS JOIN LATERAL (SELECT r.ctid FROM nym_tails AS r
                 WHERE r.community_id = m.community_id AND r.class = t.class AND r.tail = t.tail COLLATE \"C\"
                     AND r.profile_id = m.profile_id LIMIT 1) AS row
         WHERE d.ctid = row.ctid";
    tails_change(connection, delete, members).await
}

async fn tails_change(
    connection: &mut AsyncPgConnection,
    sql: &'static str,
    members: Vec<Named>,
) -> Result<(), Error> {
    if members.is_empty() {
        return Ok(());
    }
    let change = Statement::new(sql)
        .bind::<Array<SqlUuid>, _>(members.iter().map(|member| member.0.get()).collect::<Vec<_>>())
        .bind::<Array<SqlUuid>, _>(members.iter().map(|member| member.1.get()).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(members.into_iter().map(|member| member.2).collect::<Vec<_>>());
    statement::execute(connection, change).await?;
    Ok(())
}
