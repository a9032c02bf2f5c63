//! Communities: made where a chat server is new, complete from their first transaction on, and changed by events of the server.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::QueryableByName;
use diesel::sql_types::{Array, Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{GuildId, Shard, Stripe, TierPolicy};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change::{CommunityChange, newer};
use super::lock::Locked;
use super::numbers::{self, Sequence};
use super::tiers;
use crate::error::Error;
use crate::schema::community_states;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Statement};
use crate::store::Store;
use crate::tenant::Named;

impl Store {
    /// Finds the communities of these chat servers. Those that are not known yet are made, in transactions of their own: they
    /// hold no lock that another could wait for while this waits for the other's.
    pub(crate) async fn communities_ensure(
        &self,
        guilds: BTreeSet<GuildId>,
    ) -> Result<HashMap<GuildId, Named>, Error> {
        let mut communities = self.communities_cached(&guilds).await;
        let missed: BTreeSet<GuildId> =
            guilds.into_iter().filter(|guild| !communities.contains_key(guild)).collect();
        if missed.is_empty() {
            return Ok(communities);
        }
        let mut found = self.communities_known(&missed).await?;
        let unknown: BTreeSet<GuildId> =
            missed.iter().filter(|guild| !found.contains_key(*guild)).cloned().collect();
        if !unknown.is_empty() {
            let made = unknown.clone();
            self.write("communities_ensure", move |connection| {
                async move { make(connection, made).await }.boxed()
            })
            .await?;
            found.extend(self.communities_known(&unknown).await?);
        }
        let mut shards: BTreeMap<Shard, Vec<Named>> = BTreeMap::new();
        for named in found.values() {
            shards.entry(named.tenant.shard).or_default().push(*named);
        }
        for (shard, communities) in shards {
            let completing = self.in_shard(shard);
            completing
                .write("communities_ensure", move |connection| {
                    async move { complete(connection, shard, &communities).await }.boxed()
                })
                .await?;
        }
        self.keep_keys(&found).await;
        communities.extend(found);
        Ok(communities)
    }
}

columns! {
    struct CommunityRow {
        community_id: Uuid => SqlUuid,
        guild_id: String => Text,
        shard: i16 => SmallInt,
        community: i32 => Integer,
    }
}

/// Makes the communities of these chat servers that are not there yet.
pub(super) async fn make(connection: &mut AsyncPgConnection, guilds: BTreeSet<GuildId>) -> Result<(), Error> {
    let numbers = numbers::next(connection, Sequence::Communities, guilds.len()).await?;
    let mut rows = Vec::with_capacity(guilds.len());
    for (guild, number) in guilds.into_iter().zip(numbers) {
        rows.push(CommunityRow {
            community_id: Uuid::now_v7(),
            shard: i16::from(Shard::of(&guild).number()),
            guild_id: guild.into(),
            community: i32::try_from(number).map_err(Error::defect)?,
        });
    }
    let insert = Statement::shared(
        "INSERT INTO communities ($names) SELECT rows.* FROM $rows ON CONFLICT (guild_id) DO NOTHING",
    );
    statement::write(connection, insert, rows).await?;
    Ok(())
}

columns! {
    struct StateRow {
        community: i32 => Integer,
        community_id: Uuid => SqlUuid,
    }
}

/// Gives communities of one shard what they do not have yet beside their row in `communities`: a state, stripes, totals
/// and the default tiers. Two writers may do so at once: the second waits for the first, so no other lock may be held.
pub(crate) async fn complete(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &[Named],
) -> Result<(), Error> {
    let mut rows: Vec<StateRow> = communities
        .iter()
        .map(|named| StateRow { community: named.tenant.community, community_id: named.id.get() })
        .collect();
    rows.sort_unstable_by_key(|row| row.community);
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO community_states (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
         ON CONFLICT (shard, community) DO NOTHING RETURNING community",
    );
    let made: Vec<MadeRow> = statement::of_each(connection, insert, rows).await?;
    let made: Vec<i32> = made.iter().map(|row| row.community).collect();
    if made.is_empty() {
        return Ok(());
    }
    let stripes = Statement::in_shard(
        shard,
        "INSERT INTO community_stripes (shard, community, stripe)
         SELECT here.shard, c.community, s.stripe
         FROM shards AS here CROSS JOIN unnest($2) AS c (community) CROSS JOIN unnest($3) AS s (stripe) WHERE here.shard = $1",
    )
    .bind::<Array<Integer>, _>(made.clone())
    .bind::<Array<SmallInt>, _>(Stripe::all().map(|stripe| i16::from(stripe.number())).collect::<Vec<_>>());
    statement::execute(connection, stripes).await?;
    let totals = Statement::in_shard(
        shard,
        "INSERT INTO community_totals (shard, community) SELECT here.shard, c.community
         FROM shards AS here CROSS JOIN unnest($2) AS c (community) WHERE here.shard = $1",
    )
    .bind::<Array<Integer>, _>(made.clone());
    statement::execute(connection, totals).await?;
    tiers::policy_insert(connection, shard, &made, &TierPolicy::default()).await
}

columns! {
    struct StateChange {
        community: i32 => Integer,
        name: Option<String> => Nullable<Text>,
        name_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        name_set_by: Option<Uuid> => Nullable<SqlUuid>,
        active: Option<bool> => Nullable<Bool>,
        active_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        active_set_by: Option<Uuid> => Nullable<SqlUuid>,
    }
}

/// Changes what events of these communities' servers say of them, where that is newer than what is stored.
pub(super) async fn change(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    locked: &BTreeMap<i32, Locked>,
    changes: &HashMap<i32, CommunityChange>,
) -> Result<(), Error> {
    let mut rows = Vec::new();
    for (community, stored) in locked {
        let Some(change) = changes.get(community) else { continue };
        let name = newer(&change.name, stored.name);
        let active = newer(&change.active, stored.active);
        if name.is_none() && active.is_none() {
            continue;
        }
        rows.push(StateChange {
            community: *community,
            name: name.and_then(|(_, name)| name.as_ref()).map(|name| name.as_str().to_owned()),
            name_set_at: name.map(|(watermark, _)| watermark.0),
            name_set_by: name.map(|(watermark, _)| watermark.1),
            active: active.map(|(_, active)| *active),
            active_set_at: active.map(|(watermark, _)| watermark.0),
            active_set_by: active.map(|(watermark, _)| watermark.1),
        });
    }
    let update = Statement::in_shard(
        shard,
        concat!(
            "UPDATE community_states AS c SET
                 name = CASE WHEN rows.name_set_at IS NULL THEN c.name ELSE rows.name END,
                 name_set_at = coalesce(rows.name_set_at, c.name_set_at),
                 name_set_by = coalesce(rows.name_set_by, c.name_set_by), active = coalesce(rows.active, c.active),
                 active_set_at = coalesce(rows.active_set_at, c.active_set_at),
                 active_set_by = coalesce(rows.active_set_by, c.active_set_by)
             FROM ",
            rows_in!("community_states"),
            " WHERE c.shard = $1 AND c.ctid = found.ctid"
        ),
    );
    statement::write(connection, update, rows).await?;
    Ok(())
}

#[derive(QueryableByName)]
#[diesel(table_name = community_states)]
struct MadeRow {
    community: i32,
}
