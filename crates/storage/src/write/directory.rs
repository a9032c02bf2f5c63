//! The directory's rows: written when a member's name, joining or tier changes.

use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use muster_domain::Shard;
use time::OffsetDateTime;

use crate::error::Error;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};

columns! {
    /// A visible member, as listed.
    pub(crate) struct Listed {
        community: i32 => Integer,
        member: i64 => BigInt,
        tier: Option<i16> => Nullable<SmallInt>,
        joined_at: OffsetDateTime => Timestamptz,
        nym_key: String => Text,
    }
}

columns! {
    /// A member who is listed no longer.
    pub(crate) struct Unlisted {
        community: i32 => Integer,
        member: i64 => BigInt,
    }
}

/// Lists members that were not listed.
pub(crate) async fn add(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<Listed>,
) -> Result<(), Error> {
    if members.is_empty() {
        return Ok(());
    }
    // A row that has drifted into the table makes no event fail.
    let insert = "INSERT INTO directory (shard, $names) SELECT $1, rows.* FROM $rows
         ON CONFLICT (shard, community, member) DO UPDATE SET tier = excluded.tier,
             joined_at = excluded.joined_at, nym_key = excluded.nym_key";
    statement::execute(connection, Statement::in_shard(shard, insert).rows(members)).await?;
    Ok(())
}

/// Lists known members as they are now.
pub(crate) async fn update(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<Listed>,
) -> Result<(), Error> {
    if members.is_empty() {
        return Ok(());
    }
    let update =
        "UPDATE directory AS d SET tier = rows.tier, joined_at = rows.joined_at, nym_key = rows.nym_key
         FROM $rows CROSS JOIN LATERAL (SELECT r.ctid FROM directory AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member LIMIT 1) AS row
         WHERE d.shard = $1 AND d.ctid = row.ctid";
    statement::execute(connection, Statement::in_shard(shard, update).rows(members)).await?;
    Ok(())
}

/// Takes members off the list.
pub(crate) async fn remove(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<Unlisted>,
) -> Result<(), Error> {
    if members.is_empty() {
        return Ok(());
    }
    let delete = "DELETE FROM directory AS d
         USING $rows CROSS JOIN LATERAL (SELECT r.ctid FROM directory AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member LIMIT 1) AS row
         WHERE d.shard = $1 AND d.ctid = row.ctid";
    statement::execute(connection, Statement::in_shard(shard, delete).rows(members)).await?;
    Ok(())
}
