//! The exactly-once application of events: their ids and their effects in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{CommunityId, Effect, ErasureKey, Event, EventType, GuildId, Stripe, TierPolicy};
use uuid::Uuid;

use crate::erasure::Erased;
use crate::fold::{Changes, CommunityChange, newer};
use crate::lock::{self, Locked};
use crate::statement::{self, Statement};
use crate::{Error, Store, member, probe, tier};

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

impl Store {
    /// Applies events, each once, whatever their order and however often they come: all of them or, on an error, none.
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
        if events.is_empty() {
            return Ok(Applied::default());
        }
        let guilds: BTreeSet<GuildId> = events.iter().map(|event| event.guild.clone()).collect();
        let communities = self.communities_ensure(guilds).await?;
        let key = self.erasure_key().clone();
        self.write("events_apply", move |connection| {
            async move { apply(connection, &key, communities, events).await }.boxed()
        })
        .await
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

    /// Forgets up to 1000 ids of events that were applied longer ago than `age`, and answers how many. An event that comes
    /// again after that would be applied again: `age` is to be well above how long the stream keeps events.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn applied_events_prune(&self, age: Duration) -> Result<usize, Error> {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.write("applied_events_prune", move |connection| {
            async move {
                let prune = Statement::new(
                    "DELETE FROM applied_events WHERE ctid = ANY(ARRAY(
                         SELECT ctid FROM applied_events
                         WHERE applied_at < now() - $1 * interval '1 second' LIMIT 1000
                     ))",
                )
                .bind::<BigInt, _>(seconds);
                Ok(statement::execute(connection, prune).await?)
            }
            .boxed()
        })
        .await
    }

    /// Finds the communities of these chat servers. Those that are not known yet are made, in a transaction of its own: it
    /// holds no lock that another could wait for while this waits for the other's.
    pub(crate) async fn communities_ensure(
        &self,
        guilds: BTreeSet<GuildId>,
    ) -> Result<HashMap<GuildId, CommunityId>, Error> {
        let mut communities = self.communities_known(&guilds).await?;
        let unknown: BTreeSet<GuildId> =
            guilds.into_iter().filter(|guild| !communities.contains_key(guild)).collect();
        if unknown.is_empty() {
            return Ok(communities);
        }
        let names: Vec<String> = unknown.iter().map(|guild| guild.as_str().to_owned()).collect();
        self.write("communities_ensure", move |connection| {
            async move {
                communities_make(connection, names).await?;
                Ok(())
            }
            .boxed()
        })
        .await?;
        communities.extend(self.communities_known(&unknown).await?);
        Ok(communities)
    }

    async fn communities_known(
        &self,
        guilds: &BTreeSet<GuildId>,
    ) -> Result<HashMap<GuildId, CommunityId>, Error> {
        let find = Statement::new(
            "SELECT c.guild_id, c.community_id FROM unnest($1) AS g (guild_id) JOIN communities AS c USING (guild_id)",
        )
        .bind::<Array<Text>, _>(guilds.iter().map(|guild| guild.as_str().to_owned()).collect::<Vec<_>>());
        let rows: Vec<KnownRow> = self.by_keys("communities_ensure", find, guilds.len()).await?;
        rows.into_iter()
            .map(|row| Ok((GuildId::parse(row.guild_id).map_err(Error::defect)?, row.community_id.into())))
            .collect()
    }
}

/// Makes the communities of these chat servers that are not there yet, and answers those that it has made.
async fn communities_make(
    connection: &mut AsyncPgConnection,
    names: Vec<String>,
) -> Result<Vec<CommunityId>, Error> {
    let ids: Vec<Uuid> = names.iter().map(|_| Uuid::now_v7()).collect();
    let keys = ids.len();
    let insert = Statement::new(
        "INSERT INTO communities (community_id, guild_id)
         SELECT n.community_id, n.guild_id FROM unnest($1, $2) AS n (community_id, guild_id)
         ORDER BY n.guild_id
         ON CONFLICT (guild_id) DO NOTHING
         RETURNING community_id",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Text>, _>(names);
    let made: Vec<MadeRow> = statement::by_keys(connection, insert, keys).await?;
    let made: Vec<CommunityId> = made.iter().map(|row| row.community_id.into()).collect();
    tier::policy_insert(connection, &made, &TierPolicy::default(), tier::NO_CUT).await?;
    lock::stripes_insert(connection, &made).await?;
    let counts = Statement::new("INSERT INTO community_counts (community_id) SELECT unnest($1)")
        .bind::<Array<SqlUuid>, _>(made.iter().map(|id| id.get()).collect::<Vec<_>>());
    statement::execute(connection, counts).await?;
    Ok(made)
}

/// Applies the events of a probe, in a community that is made where it is not there, and checks what a commit would.
async fn try_out(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    guild: GuildId,
    community: Option<CommunityId>,
    batches: Vec<Vec<Event>>,
) -> Result<(), Error> {
    let community = match community {
        Some(community) => community,
        None => {
            let made = communities_make(connection, vec![guild.as_str().to_owned()]).await?;
            // Made by another meanwhile, so it can be made.
            let Some(community) = made.first() else { return Ok(()) };
            *community
        }
    };
    for events in batches {
        apply(connection, key, HashMap::from([(guild.clone(), community)]), events).await?;
    }
    statement::execute(connection, Statement::new("SET CONSTRAINTS ALL IMMEDIATE")).await?;
    Ok(())
}

async fn apply(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    communities: HashMap<GuildId, CommunityId>,
    events: Vec<Event>,
) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    let mut arrived = Vec::with_capacity(events.len());
    let mut stripes = BTreeSet::new();
    for event in events {
        *applied.duplicates.entry(event.effect.event_type()).or_default() += 1;
        let community = communities.get(&event.guild).copied();
        let community = community.ok_or_else(|| Error::defect("an ensured community is gone"))?;
        if let Effect::Member { user, .. } = &event.effect {
            stripes.insert((community, Stripe::of(user)));
        }
        arrived.push((community, event));
    }
    let held = lock::stripes(connection, &stripes).await?;
    let events = fresh(connection, arrived).await?;
    if events.is_empty() {
        return Ok(applied);
    }
    let erased = Erased::find(connection, key, &events).await?;
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
    let members = member::change(connection, changes.members.into_iter().collect()).await?;
    let locked = lock::communities(connection, &touched).await?;
    change_communities(connection, &locked, &changes.communities).await?;
    members.write_shared(connection, &held, &locked).await?;
    Ok(applied)
}

/// Records the events' ids, and answers those that were not recorded before.
async fn fresh(
    connection: &mut AsyncPgConnection,
    mut arrived: Vec<(CommunityId, Event)>,
) -> Result<Vec<(CommunityId, Event)>, Error> {
    let record = Statement::new(
        "INSERT INTO applied_events (community_id, event_id)
         SELECT DISTINCT * FROM unnest($1, $2) AS e (community_id, event_id) ORDER BY 1, 2
         ON CONFLICT DO NOTHING
         RETURNING community_id, event_id",
    )
    .bind::<Array<SqlUuid>, _>(arrived.iter().map(|(community, _)| community.get()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(arrived.iter().map(|(_, event)| event.id.get()).collect::<Vec<_>>());
    let recorded: Vec<RecordedRow> = statement::by_keys(connection, record, arrived.len()).await?;
    let mut recorded: HashSet<(Uuid, Uuid)> =
        recorded.into_iter().map(|row| (row.community_id, row.event_id)).collect();
    // Removing what was taken leaves out a second copy within the batch.
    arrived.retain(|(community, event)| recorded.remove(&(community.get(), event.id.get())));
    Ok(arrived)
}

async fn change_communities(
    connection: &mut AsyncPgConnection,
    locked: &BTreeMap<CommunityId, Locked>,
    changes: &HashMap<CommunityId, CommunityChange>,
) -> Result<(), Error> {
    let (mut ids, mut names, mut name_dates, mut name_events) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut actives, mut active_dates, mut active_events) = (Vec::new(), Vec::new(), Vec::new());
    for (community, stored) in locked {
        let Some(change) = changes.get(community) else { continue };
        let name = newer(&change.name, stored.name);
        let active = newer(&change.active, stored.active);
        if name.is_none() && active.is_none() {
            continue;
        }
        ids.push(community.get());
        names.push(name.and_then(|(_, name)| name.as_ref()).map(|name| name.as_str().to_owned()));
        name_dates.push(name.map(|(mark, _)| mark.0));
        name_events.push(name.map(|(mark, _)| mark.1));
        actives.push(active.map(|(_, active)| *active));
        active_dates.push(active.map(|(mark, _)| mark.0));
        active_events.push(active.map(|(mark, _)| mark.1));
    }
    if ids.is_empty() {
        return Ok(());
    }
    let update = Statement::new(
        "UPDATE communities AS c SET
             name = CASE WHEN u.name_at IS NULL THEN c.name ELSE u.name END, name_at = coalesce(u.name_at, c.name_at),
             name_event = coalesce(u.name_event, c.name_event), active = coalesce(u.active, c.active),
             active_at = coalesce(u.active_at, c.active_at), active_event = coalesce(u.active_event, c.active_event)
         FROM unnest($1, $2, $3, $4, $5, $6, $7)
             AS u (community_id, name, name_at, name_event, active, active_at, active_event)
         WHERE c.community_id = u.community_id",
    )
    .bind::<Array<SqlUuid>, _>(ids)
    .bind::<Array<Nullable<Text>>, _>(names)
    .bind::<Array<Nullable<Timestamptz>>, _>(name_dates)
    .bind::<Array<Nullable<SqlUuid>>, _>(name_events)
    .bind::<Array<Nullable<Bool>>, _>(actives)
    .bind::<Array<Nullable<Timestamptz>>, _>(active_dates)
    .bind::<Array<Nullable<SqlUuid>>, _>(active_events);
    statement::execute(connection, update).await?;
    Ok(())
}

#[derive(QueryableByName)]
struct MadeRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
}

#[derive(QueryableByName)]
struct KnownRow {
    #[diesel(sql_type = Text)]
    guild_id: String,
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
}

#[derive(QueryableByName)]
struct RecordedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    event_id: Uuid,
}
