//! What a community has from its first transaction on: its state, its stripes, its totals and the default tiers.

use diesel::QueryableByName;
use diesel::sql_types::{Array, Integer, SmallInt, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Shard, Stripe, TierPolicy};

use uuid::Uuid;

use super::tiers;
use crate::error::Error;
use crate::schema::community_states;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Named;

columns! {
    struct New {
        community: i32 => Integer,
        community_id: Uuid => SqlUuid,
    }
}

/// Makes what is not there yet of communities of one shard, which have a row in `communities`. Two writers may do so at once: the second
/// waits for the first, so no other lock may be held.
pub(crate) async fn make(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &[Named],
) -> Result<(), Error> {
    let mut rows: Vec<New> = communities
        .iter()
        .map(|named| New { community: named.tenant.community, community_id: named.id.get() })
        .collect();
    rows.sort_unstable_by_key(|row| row.community);
    let keys = rows.len();
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO community_states (shard, $names) SELECT $1, rows.* FROM $rows
         ON CONFLICT (shard, community) DO NOTHING RETURNING community",
    );
    let made: Vec<MadeRow> = statement::by_keys(connection, insert.rows(rows), keys).await?;
    let made: Vec<i32> = made.iter().map(|row| row.community).collect();
    if made.is_empty() {
        return Ok(());
    }
    let stripes = Statement::in_shard(
        shard,
        "INSERT INTO community_stripes (shard, community, stripe)
         SELECT $1, c.community, s.stripe FROM unnest($2) AS c (community) CROSS JOIN unnest($3) AS s (stripe)",
    )
    .bind::<Array<Integer>, _>(made.clone())
    .bind::<Array<SmallInt>, _>(Stripe::all().map(|stripe| i16::from(stripe.number())).collect::<Vec<_>>());
    statement::execute(connection, stripes).await?;
    let totals = Statement::in_shard(
        shard,
        "INSERT INTO community_totals (shard, community) SELECT $1, c.community FROM unnest($2) AS c (community)",
    )
    .bind::<Array<Integer>, _>(made.clone());
    statement::execute(connection, totals).await?;
    tiers::policy_insert(connection, shard, &made, &TierPolicy::default()).await
}

#[derive(QueryableByName)]
#[diesel(table_name = community_states)]
struct MadeRow {
    community: i32,
}
