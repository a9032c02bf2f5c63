//! Activity that was added since it was last set.

use std::collections::{HashMap, HashSet};

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Activity, Shard};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change::Watermark;
use crate::error::Error;
use crate::schema::activity_adds;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Insertion, Statement};

columns! {
    /// An addition.
    pub(crate) struct Add {
        community: i32 => Integer,
        member: i64 => BigInt,
        at: OffsetDateTime => Timestamptz,
        event_id: Uuid => SqlUuid,
        amount: i64 => BigInt,
    }
}

columns! {
    #[derive(Clone)]
    struct Set {
        community: i32 => Integer,
        member: i64 => BigInt,
        at: OffsetDateTime => Timestamptz,
        event_id: Uuid => SqlUuid,
    }
}

/// Of members whose activity is set anew: what had been added after that. Additions before it will never count again, and are removed.
pub(crate) async fn added_since(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    set: Vec<((i32, i64), Watermark)>,
) -> Result<HashMap<(i32, i64), Activity>, Error> {
    let set: Vec<Set> = set
        .into_iter()
        .map(|((community, member), (at, event_id))| Set { community, member, at, event_id })
        .collect();
    let sum = Statement::in_shard(
        shard,
        "SELECT rows.community, rows.member, least(sum(a.amount), 9007199254740991)::bigint AS amount
         FROM $rows CROSS JOIN LATERAL (SELECT a.amount FROM activity_adds AS a
             WHERE a.shard = $1 AND a.community = rows.community AND a.member = rows.member
                 AND (a.at, a.event_id) > (rows.at, rows.event_id) OFFSET 0) AS a
         GROUP BY 1, 2",
    );
    let prune = Statement::in_shard(
        shard,
        "DELETE FROM activity_adds AS a
         USING $rows CROSS JOIN LATERAL (SELECT r.ctid FROM activity_adds AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member
                 AND (r.at, r.event_id) < (rows.at, rows.event_id) OFFSET 0) AS row
         WHERE a.shard = $1 AND a.ctid = row.ctid",
    );
    let sums: Vec<SumRow> = statement::of_each(connection, sum, set.clone()).await?;
    statement::write(connection, prune, set).await?;
    Ok(sums.into_iter().map(|row| ((row.community, row.member), Activity::clamp(row.amount))).collect())
}

/// Keeps additions, which the event that sets the activity may still come behind, and answers those that were not kept yet. One
/// is kept already where its event comes again after its id was forgotten: it has counted.
pub(crate) async fn insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut adds: Vec<Add>,
    insertion: Insertion,
) -> Result<HashSet<((i32, i64), Watermark)>, Error> {
    adds.sort_unstable_by_key(|add| (add.community, add.member, add.at, add.event_id));
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO activity_adds (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .guarded(
        insertion,
        " ON CONFLICT (shard, community, member, at, event_id) DO NOTHING RETURNING community, member, at, event_id",
    );
    if insertion == Insertion::Plain {
        let all = adds.iter().map(|add| ((add.community, add.member), (add.at, add.event_id))).collect();
        statement::write(connection, insert, adds).await?;
        return Ok(all);
    }
    let rows: Vec<KeptRow> = statement::of_each(connection, insert, adds).await?;
    Ok(rows.into_iter().map(|row| ((row.community, row.member), (row.at, row.event_id))).collect())
}

#[derive(QueryableByName)]
#[diesel(table_name = activity_adds)]
struct KeptRow {
    community: i32,
    member: i64,
    at: OffsetDateTime,
    event_id: Uuid,
}

#[derive(QueryableByName)]
struct SumRow {
    #[diesel(sql_type = Integer)]
    community: i32,
    #[diesel(sql_type = BigInt)]
    member: i64,
    #[diesel(sql_type = BigInt)]
    amount: i64,
}
