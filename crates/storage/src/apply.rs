//! The exactly-once application of events: their ids and their effects in one transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{Activity, CommunityId, Event, GuildId, ProfileId, TierPolicy, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::badge::{self, Operation};
use crate::fold::{Changes, Mark, MemberChange, newer};
use crate::statement::{self, Statement};
use crate::{Error, Store, tier};

/// The most events of one batch.
pub const MAX_BATCH: usize = 1000;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// Events that took effect now.
    pub fresh: usize,
    /// Events that had been applied before.
    pub duplicates: usize,
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
        self.communities_ensure(guilds).await?;
        self.write(move |connection| apply(connection, events).boxed()).await
    }

    /// Forgets up to 1000 ids of events that were applied longer ago than `age`, and answers how many. An event that comes
    /// again after that would be applied again: `age` is to be well above how long the stream keeps events.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn applied_events_prune(&self, age: Duration) -> Result<usize, Error> {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.write(move |connection| {
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

    /// Makes the communities that are not known yet, in a transaction of their own: it holds no lock that another could
    /// wait for while this waits for the other's.
    async fn communities_ensure(&self, guilds: BTreeSet<GuildId>) -> Result<(), Error> {
        let names: Vec<String> = guilds.into_iter().map(String::from).collect();
        let unknown = Statement::new(
            "SELECT count(*) AS unknown FROM unnest($1) AS g (guild_id)
             WHERE NOT EXISTS (SELECT FROM communities AS c WHERE c.guild_id = g.guild_id)",
        )
        .bind::<Array<Text>, _>(names.clone());
        if self.optional::<UnknownRow>(unknown).await?.is_none_or(|row| row.unknown == 0) {
            return Ok(());
        }
        self.write(move |connection| {
            async move {
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
                let counts = Statement::new("INSERT INTO community_counts (community_id) SELECT unnest($1)")
                    .bind::<Array<SqlUuid>, _>(made.iter().map(|id| id.get()).collect::<Vec<_>>());
                statement::execute(connection, counts).await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }
}

async fn apply(connection: &mut AsyncPgConnection, events: Vec<Event>) -> Result<Applied, Error> {
    let communities = lock(connection, &events).await?;
    let total = events.len();
    let events = fresh(connection, &communities, events).await?;
    let applied = Applied { fresh: events.len(), duplicates: total.saturating_sub(events.len()) };
    if applied.fresh == 0 {
        return Ok(applied);
    }
    let mut changes = Changes::default();
    for (community, event) in events {
        changes.take(community, event);
    }
    change_communities(connection, &communities, &changes).await?;
    if !changes.members.is_empty() {
        change_members(connection, changes.members.into_iter().collect()).await?;
    }
    Ok(applied)
}

/// Locks the communities, in the order of their ids.
async fn lock(
    connection: &mut AsyncPgConnection,
    events: &[Event],
) -> Result<HashMap<GuildId, CommunityRow>, Error> {
    let guilds: BTreeSet<&str> = events.iter().map(|event| event.guild.as_str()).collect();
    let keys = guilds.len();
    let lock = Statement::new(
        "SELECT community_id, guild_id, name_at, name_event, active_at, active_event
         FROM communities WHERE guild_id = ANY($1) ORDER BY community_id FOR NO KEY UPDATE",
    )
    .bind::<Array<Text>, _>(guilds.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let rows: Vec<LockedRow> = statement::by_keys(connection, lock, keys).await?;
    rows.into_iter()
        .map(|row| {
            let guild = GuildId::parse(row.guild_id).map_err(Error::defect)?;
            Ok((
                guild,
                CommunityRow {
                    community_id: row.community_id,
                    name: row.name_at.zip(row.name_event),
                    active: row.active_at.zip(row.active_event),
                },
            ))
        })
        .collect()
}

/// Records the events' ids, and answers those that were not recorded before.
async fn fresh(
    connection: &mut AsyncPgConnection,
    communities: &HashMap<GuildId, CommunityRow>,
    events: Vec<Event>,
) -> Result<Vec<(CommunityId, Event)>, Error> {
    let mut arrived = Vec::with_capacity(events.len());
    for event in events {
        let community =
            communities.get(&event.guild).ok_or_else(|| Error::defect("an ensured community is gone"))?;
        arrived.push((CommunityId::new(community.community_id), event));
    }
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
    stored: &HashMap<GuildId, CommunityRow>,
    changes: &Changes,
) -> Result<(), Error> {
    let (mut ids, mut names, mut name_dates, mut name_events) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut actives, mut active_dates, mut active_events) = (Vec::new(), Vec::new(), Vec::new());
    for community in stored.values() {
        let Some(change) = changes.communities.get(&CommunityId::new(community.community_id)) else {
            continue;
        };
        let name = newer(&change.name, community.name);
        let active = newer(&change.active, community.active);
        if name.is_none() && active.is_none() {
            continue;
        }
        ids.push(community.community_id);
        names.push(name.map(|(_, name)| name.as_str().to_owned()));
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
             name = coalesce(u.name, c.name), name_at = coalesce(u.name_at, c.name_at),
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

/// One member of the batch: what is stored, and what the batch says.
struct Member {
    community: CommunityId,
    user: UserId,
    change: MemberChange,
    stored: Option<MemberRow>,
    profile: ProfileId,
}

impl Member {
    fn mark(&self, of: impl Fn(&MemberRow) -> Option<Mark>) -> Option<Mark> {
        self.stored.as_ref().and_then(of)
    }

    fn activity_mark(&self) -> Option<Mark> {
        self.mark(|row| row.activity_at.zip(row.activity_event))
    }
}

async fn change_members(
    connection: &mut AsyncPgConnection,
    changes: Vec<((CommunityId, UserId), MemberChange)>,
) -> Result<(), Error> {
    let find = Statement::new(
        "SELECT m.community_id, m.user_id, p.profile_id, p.username_at, p.username_event, p.nick_at, p.nick_event,
             p.presence_at, p.presence_event, p.joined_at, p.join_known,
             s.conviction, s.conviction_at, s.conviction_event, s.activity, s.activity_at, s.activity_event,
             s.last_active_at
         FROM unnest($1, $2) AS m (community_id, user_id)
         CROSS JOIN LATERAL (SELECT * FROM profiles AS p
             WHERE p.community_id = m.community_id AND p.user_id = m.user_id LIMIT 1) AS p
         CROSS JOIN LATERAL (SELECT * FROM scores AS s
             WHERE s.community_id = m.community_id AND s.profile_id = p.profile_id LIMIT 1) AS s",
    )
    .bind::<Array<SqlUuid>, _>(changes.iter().map(|((community, _), _)| community.get()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(changes.iter().map(|((_, user), _)| user.as_str().to_owned()).collect::<Vec<_>>());
    let rows: Vec<MemberRow> = statement::by_keys(connection, find, changes.len()).await?;
    let mut stored: HashMap<(Uuid, String), MemberRow> =
        rows.into_iter().map(|row| ((row.community_id, row.user_id.clone()), row)).collect();
    let mut members: Vec<Member> = changes
        .into_iter()
        .map(|((community, user), change)| {
            let stored = stored.remove(&(community.get(), user.as_str().to_owned()));
            let profile = stored.as_ref().map_or_else(Uuid::now_v7, |row| row.profile_id);
            Member { community, user, change, stored, profile: profile.into() }
        })
        .collect();
    // Neighbours in the tables are written together.
    members.sort_unstable_by_key(|member| (member.community, member.profile));
    let mut moved = write_profiles(connection, &members).await?;
    moved.extend(write_scores(connection, &members).await?);
    let operations: Vec<Operation> = members
        .iter_mut()
        .flat_map(|member| {
            let (community, profile) = (member.community, member.profile);
            std::mem::take(&mut member.change.badges).into_iter().map(move |badge| Operation {
                community,
                profile,
                kind: badge.kind,
                at: badge.mark.0,
                id: badge.mark.1,
                award: badge.award,
                reason: badge.reason,
                by: badge.by,
            })
        })
        .collect();
    if !operations.is_empty() {
        badge::operate(connection, &operations).await?;
    }
    if !moved.is_empty() {
        tier::settle(connection, moved.into_iter().collect()).await?;
    }
    Ok(())
}

type Moved = BTreeSet<(CommunityId, ProfileId)>;

/// Writes new profiles and what is newer of known ones; answers those whose visibility may have changed.
async fn write_profiles(connection: &mut AsyncPgConnection, members: &[Member]) -> Result<Moved, Error> {
    let mut rows = ProfileColumns::default();
    let mut moved = Moved::new();
    for member in members {
        let change = &member.change;
        let username = newer(&change.username, member.mark(|row| row.username_at.zip(row.username_event)));
        let nick = newer(&change.nick, member.mark(|row| row.nick_at.zip(row.nick_event)));
        let presence = newer(&change.has_left, member.mark(|row| row.presence_at.zip(row.presence_event)));
        let (joined_at, join_known) = match (&member.stored, change.joined) {
            (None, None) => (change.seen, false),
            (None, Some(joined)) => (joined, true),
            (Some(row), None) if row.join_known => (row.joined_at, true),
            (Some(row), None) => (row.joined_at.min(change.seen), false),
            (Some(row), Some(joined)) if row.join_known => (row.joined_at.min(joined), true),
            (Some(_), Some(joined)) => (joined, true),
        };
        let joined_stays = member
            .stored
            .as_ref()
            .is_some_and(|row| row.joined_at == joined_at && row.join_known == join_known);
        if username.is_none() && nick.is_none() && presence.is_none() && joined_stays {
            continue;
        }
        if member.stored.is_none() || presence.is_some() {
            moved.insert((member.community, member.profile));
        }
        rows.communities.push(member.community.get());
        rows.profiles.push(member.profile.get());
        rows.users.push(member.user.as_str().to_owned());
        rows.usernames.push(username.map(|(_, nym)| nym.as_str().to_owned()));
        rows.username_keys.push(username.map(|(_, nym)| nym.key().as_str().to_owned()));
        rows.username_dates.push(username.map(|(mark, _)| mark.0));
        rows.username_events.push(username.map(|(mark, _)| mark.1));
        let nym = nick.and_then(|(_, (nym, _))| nym.as_ref());
        rows.nicks.push(nym.map(|nym| nym.as_str().to_owned()));
        rows.nick_keys.push(nym.map(|nym| nym.key().as_str().to_owned()));
        let roles =
            nick.map(|(_, (_, roles))| roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" "));
        rows.roles.push(roles.unwrap_or_default());
        rows.nick_dates.push(nick.map(|(mark, _)| mark.0));
        rows.nick_events.push(nick.map(|(mark, _)| mark.1));
        rows.have_left.push(presence.is_some_and(|(_, has_left)| *has_left));
        rows.presence_dates.push(presence.map(|(mark, _)| mark.0));
        rows.presence_events.push(presence.map(|(mark, _)| mark.1));
        rows.joined.push(joined_at);
        rows.joins_known.push(join_known);
    }
    if !rows.communities.is_empty() {
        statement::execute(connection, rows.upsert()).await?;
    }
    Ok(moved)
}

/// The columns of the profiles to write. A register that is not newer has no date, and stays as it is stored.
#[derive(Default)]
struct ProfileColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    users: Vec<String>,
    usernames: Vec<Option<String>>,
    username_keys: Vec<Option<String>>,
    username_dates: Vec<Option<OffsetDateTime>>,
    username_events: Vec<Option<Uuid>>,
    nicks: Vec<Option<String>>,
    nick_keys: Vec<Option<String>>,
    /// Role ids hold no blank, so a blank parts them.
    roles: Vec<String>,
    nick_dates: Vec<Option<OffsetDateTime>>,
    nick_events: Vec<Option<Uuid>>,
    have_left: Vec<bool>,
    presence_dates: Vec<Option<OffsetDateTime>>,
    presence_events: Vec<Option<Uuid>>,
    joined: Vec<OffsetDateTime>,
    joins_known: Vec<bool>,
}

impl ProfileColumns {
    fn upsert(self) -> Statement {
        Statement::new(
            "INSERT INTO profiles AS p (community_id, profile_id, user_id, username, username_key, username_at,
                 username_event, nick, nick_key, roles, nick_at, nick_event, has_left, presence_at, presence_event,
                 joined_at, join_known)
             SELECT n.c1, n.c2, n.c3, n.c4, n.c5, n.c6, n.c7, n.c8, n.c9, string_to_array(n.c10, ' '), n.c11, n.c12,
                 n.c13, n.c14, n.c15, n.c16, n.c17
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
                 AS n (c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c16, c17)
             ON CONFLICT (community_id, profile_id) DO UPDATE SET
                 username = CASE WHEN excluded.username_at IS NULL THEN p.username ELSE excluded.username END,
                 username_key =
                     CASE WHEN excluded.username_at IS NULL THEN p.username_key ELSE excluded.username_key END,
                 username_at = coalesce(excluded.username_at, p.username_at),
                 username_event = coalesce(excluded.username_event, p.username_event),
                 nick = CASE WHEN excluded.nick_at IS NULL THEN p.nick ELSE excluded.nick END,
                 nick_key = CASE WHEN excluded.nick_at IS NULL THEN p.nick_key ELSE excluded.nick_key END,
                 roles = CASE WHEN excluded.nick_at IS NULL THEN p.roles ELSE excluded.roles END,
                 nick_at = coalesce(excluded.nick_at, p.nick_at),
                 nick_event = coalesce(excluded.nick_event, p.nick_event),
                 has_left = CASE WHEN excluded.presence_at IS NULL THEN p.has_left ELSE excluded.has_left END,
                 presence_at = coalesce(excluded.presence_at, p.presence_at),
                 presence_event = coalesce(excluded.presence_event, p.presence_event),
                 joined_at = excluded.joined_at,
                 join_known = excluded.join_known",
        )
        .bind::<Array<SqlUuid>, _>(self.communities)
        .bind::<Array<SqlUuid>, _>(self.profiles)
        .bind::<Array<Text>, _>(self.users)
        .bind::<Array<Nullable<Text>>, _>(self.usernames)
        .bind::<Array<Nullable<Text>>, _>(self.username_keys)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.username_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.username_events)
        .bind::<Array<Nullable<Text>>, _>(self.nicks)
        .bind::<Array<Nullable<Text>>, _>(self.nick_keys)
        .bind::<Array<Text>, _>(self.roles)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.nick_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.nick_events)
        .bind::<Array<Bool>, _>(self.have_left)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.presence_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.presence_events)
        .bind::<Array<Timestamptz>, _>(self.joined)
        .bind::<Array<Bool>, _>(self.joins_known)
    }
}

/// Writes new scores and those that changed; answers whose conviction did.
async fn write_scores(connection: &mut AsyncPgConnection, members: &[Member]) -> Result<Moved, Error> {
    let earlier_adds = earlier_adds(connection, members).await?;
    let mut rows = ScoreColumns::default();
    let mut adds = AddColumns::default();
    let mut moved = Moved::new();
    for member in members {
        let change = &member.change;
        let stored = member.stored.as_ref();
        let conviction =
            newer(&change.conviction, member.mark(|row| row.conviction_at.zip(row.conviction_event)));
        let set = newer(&change.activity, member.activity_mark());
        let set_mark = set.map(|(mark, _)| *mark).or_else(|| member.activity_mark());
        let added = change.added_since(set_mark);
        let activity = match set {
            // Set anew: what was added after it counts, from this batch and from before.
            Some((_, activity)) => {
                let earlier =
                    earlier_adds.get(&(member.community, member.profile)).copied().unwrap_or_default();
                activity.plus(earlier).plus(added)
            }
            None => Activity::clamp(stored.map_or(0, |row| row.activity)).plus(added),
        };
        for ((at, event), amount) in &change.adds {
            if set_mark.is_none_or(|set| set < (*at, *event)) {
                adds.communities.push(member.community.get());
                adds.profiles.push(member.profile.get());
                adds.dates.push(*at);
                adds.events.push(*event);
                adds.amounts.push(amount.get());
            }
        }
        let last_active = stored.and_then(|row| row.last_active_at).max(change.last_active());
        let unchanged = stored.is_some_and(|row| {
            conviction.is_none()
                && set.is_none()
                && row.activity == activity.get()
                && row.last_active_at == last_active
        });
        if unchanged {
            continue;
        }
        if conviction.is_some() {
            moved.insert((member.community, member.profile));
        }
        let conviction_mark = conviction
            .map(|(mark, _)| *mark)
            .or_else(|| member.mark(|row| row.conviction_at.zip(row.conviction_event)));
        rows.communities.push(member.community.get());
        rows.profiles.push(member.profile.get());
        rows.convictions
            .push(conviction.map_or_else(|| stored.map_or(0, |row| row.conviction), |(_, c)| c.get()));
        rows.conviction_dates.push(conviction_mark.map(|mark| mark.0));
        rows.conviction_events.push(conviction_mark.map(|mark| mark.1));
        rows.activities.push(activity.get());
        rows.activity_dates.push(set_mark.map(|mark| mark.0));
        rows.activity_events.push(set_mark.map(|mark| mark.1));
        rows.last_active.push(last_active);
    }
    if !rows.communities.is_empty() {
        statement::execute(connection, rows.upsert()).await?;
    }
    if !adds.communities.is_empty() {
        statement::execute(connection, adds.insert()).await?;
    }
    Ok(moved)
}

/// Of the members whose activity is set anew: what had been added after that, before this batch. Additions before it will
/// never count again, and are removed.
async fn earlier_adds(
    connection: &mut AsyncPgConnection,
    members: &[Member],
) -> Result<HashMap<(CommunityId, ProfileId), Activity>, Error> {
    let (mut communities, mut profiles, mut dates, mut events) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for member in members.iter().filter(|member| member.stored.is_some()) {
        if let Some(((at, event), _)) = newer(&member.change.activity, member.activity_mark()) {
            communities.push(member.community.get());
            profiles.push(member.profile.get());
            dates.push(*at);
            events.push(*event);
        }
    }
    if communities.is_empty() {
        return Ok(HashMap::new());
    }
    let keys = communities.len();
    let sum = Statement::new(
        "SELECT k.community_id, k.profile_id, least(sum(a.amount), 9007199254740991)::bigint AS amount
         FROM unnest($1, $2, $3, $4) AS k (community_id, profile_id, at, event_id)
         CROSS JOIN LATERAL (SELECT a.amount FROM activity_adds AS a
             WHERE a.community_id = k.community_id AND a.profile_id = k.profile_id
                 AND (a.at, a.event_id) > (k.at, k.event_id) OFFSET 0) AS a
         GROUP BY 1, 2",
    );
    let prune = Statement::new(
        "DELETE FROM activity_adds AS a
         USING unnest($1, $2, $3, $4) AS k (community_id, profile_id, at, event_id)
         CROSS JOIN LATERAL (SELECT r.ctid FROM activity_adds AS r
             WHERE r.community_id = k.community_id AND r.profile_id = k.profile_id
                 AND (r.at, r.event_id) < (k.at, k.event_id) OFFSET 0) AS row
         WHERE a.ctid = row.ctid",
    );
    let keyed = |statement: Statement| {
        statement
            .bind::<Array<SqlUuid>, _>(communities.clone())
            .bind::<Array<SqlUuid>, _>(profiles.clone())
            .bind::<Array<Timestamptz>, _>(dates.clone())
            .bind::<Array<SqlUuid>, _>(events.clone())
    };
    let sums: Vec<SumRow> = statement::by_keys(connection, keyed(sum), keys).await?;
    statement::execute(connection, keyed(prune)).await?;
    Ok(sums
        .into_iter()
        .map(|row| ((row.community_id.into(), row.profile_id.into()), Activity::clamp(row.amount)))
        .collect())
}

#[derive(Default)]
struct ScoreColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    convictions: Vec<i64>,
    conviction_dates: Vec<Option<OffsetDateTime>>,
    conviction_events: Vec<Option<Uuid>>,
    activities: Vec<i64>,
    activity_dates: Vec<Option<OffsetDateTime>>,
    activity_events: Vec<Option<Uuid>>,
    last_active: Vec<Option<OffsetDateTime>>,
}

impl ScoreColumns {
    fn upsert(self) -> Statement {
        // A new profile's visibility is read from it; that of a known one is kept by a trigger.
        Statement::new(
            "INSERT INTO scores AS s (community_id, profile_id, conviction, conviction_at, conviction_event, activity,
                 activity_at, activity_event, last_active_at, visible)
             SELECT n.c1, n.c2, n.c3, n.c4, n.c5, n.c6, n.c7, n.c8, n.c9,
                 (SELECT p.visible FROM profiles AS p WHERE p.community_id = n.c1 AND p.profile_id = n.c2)
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9) AS n (c1, c2, c3, c4, c5, c6, c7, c8, c9)
             ON CONFLICT (community_id, profile_id) DO UPDATE SET
                 conviction = excluded.conviction, conviction_at = excluded.conviction_at,
                 conviction_event = excluded.conviction_event, activity = excluded.activity,
                 activity_at = excluded.activity_at, activity_event = excluded.activity_event,
                 last_active_at = excluded.last_active_at",
        )
        .bind::<Array<SqlUuid>, _>(self.communities)
        .bind::<Array<SqlUuid>, _>(self.profiles)
        .bind::<Array<BigInt>, _>(self.convictions)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.conviction_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.conviction_events)
        .bind::<Array<BigInt>, _>(self.activities)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.activity_dates)
        .bind::<Array<Nullable<SqlUuid>>, _>(self.activity_events)
        .bind::<Array<Nullable<Timestamptz>>, _>(self.last_active)
    }
}

#[derive(Default)]
struct AddColumns {
    communities: Vec<Uuid>,
    profiles: Vec<Uuid>,
    dates: Vec<OffsetDateTime>,
    events: Vec<Uuid>,
    amounts: Vec<i64>,
}

impl AddColumns {
    fn insert(self) -> Statement {
        Statement::new(
            "INSERT INTO activity_adds (community_id, profile_id, at, event_id, amount)
             SELECT * FROM unnest($1, $2, $3, $4, $5)",
        )
        .bind::<Array<SqlUuid>, _>(self.communities)
        .bind::<Array<SqlUuid>, _>(self.profiles)
        .bind::<Array<Timestamptz>, _>(self.dates)
        .bind::<Array<SqlUuid>, _>(self.events)
        .bind::<Array<BigInt>, _>(self.amounts)
    }
}

struct CommunityRow {
    community_id: Uuid,
    name: Option<Mark>,
    active: Option<Mark>,
}

#[derive(QueryableByName)]
struct MadeRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
}

#[derive(QueryableByName)]
struct UnknownRow {
    #[diesel(sql_type = BigInt)]
    unknown: i64,
}

#[derive(QueryableByName)]
struct LockedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Text)]
    guild_id: String,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    name_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    name_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    active_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    active_event: Option<Uuid>,
}

#[derive(QueryableByName)]
struct RecordedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    event_id: Uuid,
}

#[derive(QueryableByName)]
struct SumRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = BigInt)]
    amount: i64,
}

#[derive(QueryableByName)]
struct MemberRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Text)]
    user_id: String,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    username_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    username_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    nick_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    nick_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    presence_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    presence_event: Option<Uuid>,
    #[diesel(sql_type = Timestamptz)]
    joined_at: OffsetDateTime,
    #[diesel(sql_type = Bool)]
    join_known: bool,
    #[diesel(sql_type = BigInt)]
    conviction: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    conviction_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    conviction_event: Option<Uuid>,
    #[diesel(sql_type = BigInt)]
    activity: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    activity_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    activity_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_active_at: Option<OffsetDateTime>,
}
