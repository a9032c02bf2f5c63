//! The exactly-once application of events: their ids and their effects in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::sql_types::{Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{CommunityId, Effect, ErasureKey, Event, EventType, GuildId, Shard, Stripe};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change::{Changes, CommunityChange, newer};
use super::erased::Erased;
use super::lock::{self, Locked};
use super::numbers::{self, Sequence};
use super::{ids, member, probe, states};
use crate::error::Error;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::store::Store;
use crate::tenant::{Named, Tenant};

/// The most events of one batch.
pub const MAX_BATCH: usize = 2000;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Events that took effect now, by their type.
    pub fresh: BTreeMap<EventType, usize>,
    /// Events that had been applied before, by their type.
    pub duplicates: BTreeMap<EventType, usize>,
}

impl Applied {
    fn add(&mut self, other: Self) {
        for (sum, counts) in [(&mut self.fresh, other.fresh), (&mut self.duplicates, other.duplicates)] {
            for (event_type, count) in counts {
                let sum = sum.entry(event_type).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }
}

impl Store {
    /// Applies events, each once, whatever their order and however often they come. Those of communities of one shard are applied in one
    /// transaction; on an error, those of some shards may have been applied and those of others not.
    ///
    /// After an error that [is transient](Error::is_transient) it may be unknown whether they were committed; applying
    /// them again finds out by their ids.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::Defect`] when an event cannot be applied or there are more
    /// than [`MAX_BATCH`].
    pub async fn events_apply(&self, events: Vec<Event>) -> Result<Applied, Error> {
        if events.len() > MAX_BATCH {
            return Err(Error::defect(format!("a batch has at most {MAX_BATCH} events")));
        }
        let guilds: BTreeSet<GuildId> = events.iter().map(|event| event.guild.clone()).collect();
        let communities = self.communities_ensure(guilds).await?;
        let mut shards: BTreeMap<Shard, Vec<(i32, Event)>> = BTreeMap::new();
        for event in events {
            let named = communities.get(&event.guild);
            let named = named.ok_or_else(|| Error::defect("an ensured community is gone"))?;
            shards.entry(named.tenant.shard).or_default().push((named.tenant.community, event));
        }
        let known: BTreeMap<i32, CommunityId> =
            communities.values().map(|named| (named.tenant.community, named.id)).collect();
        let mut applied = Applied::default();
        for (shard, events) in shards {
            let (key, known) = (self.erasure_key().clone(), known.clone());
            let part = self.write("events_apply", move |connection| {
                async move { apply(connection, &key, shard, &known, events).await }.boxed()
            });
            match part.await {
                Ok(part) => applied.add(part),
                Err(error) => {
                    // The database may be another than that which the keys are from.
                    self.forget_keys(&communities).await;
                    return Err(error);
                }
            }
        }
        Ok(applied)
    }

    /// Writes what events of every kind write, for new members of a community, and takes it all back: in a new community, or in
    /// that of `guild`. It fails where events of any such community would: for want of a table, a permission or room, or by
    /// a trigger.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::Defect`] when such writes fail.
    pub async fn events_probe(&self, guild: Option<GuildId>) -> Result<(), Error> {
        let name =
            guild.map_or_else(|| format!("probe-{}", Uuid::now_v7()), |guild| guild.as_str().to_owned());
        let guild = GuildId::parse(name).map_err(Error::defect)?;
        let events = probe::events(&guild)?;
        let known = self.communities_known(&BTreeSet::from([guild.clone()])).await?;
        let community = known.get(&guild).copied();
        let key = self.erasure_key().clone();
        self.write_and_take_back("events_probe", move |connection| {
            async move { try_out(connection, &key, guild, community, events).await }.boxed()
        })
        .await
    }

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
                async move { communities_make(connection, made).await }.boxed()
            })
            .await?;
            found.extend(self.communities_known(&unknown).await?);
        }
        let mut shards: BTreeMap<Shard, Vec<Named>> = BTreeMap::new();
        for named in found.values() {
            shards.entry(named.tenant.shard).or_default().push(*named);
        }
        for (shard, communities) in shards {
            self.write("communities_ensure", move |connection| {
                async move { states::make(connection, shard, &communities).await }.boxed()
            })
            .await?;
        }
        self.keep_keys(&found).await;
        communities.extend(found);
        Ok(communities)
    }
}

columns! {
    struct Community {
        community_id: Uuid => SqlUuid,
        guild_id: String => Text,
        shard: i16 => SmallInt,
        community: i32 => Integer,
    }
}

/// Makes the communities of these chat servers that are not there yet.
async fn communities_make(
    connection: &mut AsyncPgConnection,
    guilds: BTreeSet<GuildId>,
) -> Result<(), Error> {
    let numbers = numbers::next(connection, Sequence::Communities, guilds.len()).await?;
    let mut rows = Vec::with_capacity(guilds.len());
    for (guild, number) in guilds.into_iter().zip(numbers) {
        rows.push(Community {
            community_id: Uuid::now_v7(),
            shard: i16::from(Shard::of(&guild).number()),
            guild_id: guild.into(),
            community: i32::try_from(number).map_err(Error::defect)?,
        });
    }
    let insert = Statement::shared(
        "INSERT INTO communities ($names) SELECT rows.* FROM $rows ON CONFLICT (guild_id) DO NOTHING",
    );
    statement::execute(connection, insert.rows(rows)).await?;
    Ok(())
}

/// Applies the events of a probe, in a community that is made where it is not there, and checks what a commit would.
async fn try_out(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    guild: GuildId,
    community: Option<Named>,
    batches: Vec<Vec<Event>>,
) -> Result<(), Error> {
    let (id, shard, number) = match community {
        Some(named) => (named.id, named.tenant.shard, named.tenant.community),
        None => {
            communities_make(connection, BTreeSet::from([guild.clone()])).await?;
            let find = Statement::shared(
                "SELECT community_id, shard, community FROM communities WHERE guild_id = $1",
            )
            .bind::<Text, _>(guild.as_str().to_owned());
            let made: Option<MadeRow> = statement::optional(connection, find).await?;
            // Made by another meanwhile, so it can be made.
            let Some(made) = made else { return Ok(()) };
            let shard = Shard::parse(made.shard).ok_or_else(|| Error::defect("there is no such shard"))?;
            (made.community_id.into(), shard, made.community)
        }
    };
    states::make(connection, shard, &[Named { id, tenant: Tenant { shard, community: number } }]).await?;
    for events in batches {
        let events = events.into_iter().map(|event| (number, event)).collect();
        apply(connection, key, shard, &BTreeMap::new(), events).await?;
    }
    ids::try_out(connection, shard, number).await?;
    statement::execute(connection, Statement::shared("SET CONSTRAINTS ALL IMMEDIATE")).await?;
    Ok(())
}

/// Applies events of communities of one shard; `known` are their ids, as far as the caller has them.
async fn apply(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    shard: Shard,
    known: &BTreeMap<i32, CommunityId>,
    events: Vec<(i32, Event)>,
) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    let mut stripes = BTreeSet::new();
    for (community, event) in &events {
        *applied.duplicates.entry(event.effect.event_type()).or_default() += 1;
        if let Effect::Member { user, .. } = &event.effect {
            stripes.insert((*community, Stripe::of(user)));
        }
    }
    let held = lock::stripes(connection, shard, &stripes).await?;
    let events = ids::record(connection, shard, events).await?;
    if events.is_empty() {
        return Ok(applied);
    }
    let erased = Erased::find(connection, key, shard, &events).await?;
    let mut touched = BTreeSet::new();
    let mut changes = Changes::default();
    for (community, event) in events {
        let event_type = event.effect.event_type();
        *applied.fresh.entry(event_type).or_default() += 1;
        if let Some(duplicates) = applied.duplicates.get_mut(&event_type) {
            *duplicates = duplicates.saturating_sub(1);
        }
        touched.insert(community);
        if let Some(event) = erased.admit(community, event) {
            changes.take(community, event);
        }
    }
    for ((community, user), change) in &mut changes.members {
        change.was_erased = erased.holds(*community, user.as_str());
    }
    let members = member::change(connection, shard, &touched, changes.members.into_iter().collect()).await?;
    let locked = lock::communities(connection, shard, &touched).await?;
    lock::are(&held, &locked, known)?;
    change_communities(connection, shard, &locked, &changes.communities).await?;
    members.write_shared(connection, shard, &held, &locked).await?;
    Ok(applied)
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

async fn change_communities(
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
    if rows.is_empty() {
        return Ok(());
    }
    let update = Statement::in_shard(
        shard,
        "UPDATE community_states AS c SET
             name = CASE WHEN rows.name_set_at IS NULL THEN c.name ELSE rows.name END,
             name_set_at = coalesce(rows.name_set_at, c.name_set_at),
             name_set_by = coalesce(rows.name_set_by, c.name_set_by), active = coalesce(rows.active, c.active),
             active_set_at = coalesce(rows.active_set_at, c.active_set_at),
             active_set_by = coalesce(rows.active_set_by, c.active_set_by)
         FROM $rows CROSS JOIN LATERAL (SELECT r.ctid FROM community_states AS r
             WHERE r.shard = $1 AND r.community = rows.community LIMIT 1) AS row
         WHERE c.shard = $1 AND c.ctid = row.ctid",
    );
    statement::execute(connection, update.rows(rows)).await?;
    Ok(())
}

#[derive(diesel::QueryableByName)]
#[diesel(table_name = crate::schema::communities)]
struct MadeRow {
    community_id: Uuid,
    shard: i16,
    community: i32,
}
