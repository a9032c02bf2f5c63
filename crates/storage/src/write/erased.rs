//! Who was erased, as events and operators ask for it: a person is known by a keyed hash, with the time of the
//! erasure, and nothing dated at or before that makes or changes a profile of theirs again.
//!
//! Who erases holds every stripe of the community, and who applies an event of a member holds at least one: each sees
//! the other's work whole.

use std::collections::{BTreeMap, HashMap};

use diesel::QueryResult;
use diesel::prelude::{ExpressionMethods, QueryDsl, QueryableByName};
use diesel::sql_types::{Binary, Integer, Text, Timestamptz};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use muster_domain::{Effect, ErasedPerson, ErasureKey, Event, GuildId, MemberEffect, Shard, UserId};
use time::OffsetDateTime;

use crate::error::Error;
use crate::schema::{communities, erasures};
use crate::sql::clock;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// Of the persons whom a batch of events names: who was erased, and when.
#[derive(Default)]
pub(crate) struct Erased(HashMap<(i32, String), OffsetDateTime>);

impl Erased {
    /// Looks up whom these events name, each with its community. The members' stripes are locked.
    pub(crate) async fn find(
        connection: &mut AsyncPgConnection,
        key: &ErasureKey,
        shard: Shard,
        events: &[(i32, Event)],
    ) -> Result<Self, Error> {
        let mut named: BTreeMap<(i32, &str), ErasedPerson> = BTreeMap::new();
        for (community, event) in events {
            let Effect::Member { user, effect } = &event.effect else { continue };
            for id in [Some(user.as_str()), awarder(effect)].into_iter().flatten() {
                named.entry((*community, id)).or_insert_with(|| key.person(&event.guild, id));
            }
        }
        let asked = named
            .iter()
            .map(|((community, _), person)| Asked { community: *community, person: person.bytes().to_vec() });
        let find = Statement::in_shard(
            shard,
            "SELECT rows.community, rows.person, e.erased_at FROM $rows
             CROSS JOIN LATERAL (SELECT e.erased_at FROM erasures AS e
                 WHERE e.shard = $1 AND e.community = rows.community AND e.person = rows.person LIMIT 1) AS e",
        );
        let rows: Vec<ErasedRow> = statement::of_each(connection, find, asked.collect()).await?;
        let found: HashMap<(i32, Vec<u8>), OffsetDateTime> =
            rows.into_iter().map(|row| ((row.community, row.person), row.erased_at)).collect();
        let erased = named.into_iter().filter_map(|((community, id), person)| {
            let erased_at = found.get(&(community, person.bytes().to_vec()))?;
            Some(((community, id.to_owned()), *erased_at))
        });
        Ok(Self(erased.collect()))
    }

    /// Whether this person was erased, ever.
    pub(crate) fn holds(&self, community: i32, id: &str) -> bool {
        self.at(community, id).is_some()
    }

    /// What is left of an event: nothing where it is of one who was erased at its time or later, and no awarder who
    /// was.
    pub(crate) fn admit(&self, community: i32, mut event: Event) -> Option<Event> {
        if self.0.is_empty() {
            return Some(event);
        }
        let date = event.at.date();
        let is_of_before = |id: &str| self.at(community, id).is_some_and(|erased_at| date <= erased_at);
        if let Effect::Member { user, effect } = &mut event.effect {
            if is_of_before(user.as_str()) {
                return None;
            }
            if let MemberEffect::BadgeAward { by, .. } | MemberEffect::BadgeRevoke { by, .. } = effect {
                by.take_if(|by| is_of_before(by.as_str()));
            }
        }
        Some(event)
    }

    fn at(&self, community: i32, id: &str) -> Option<OffsetDateTime> {
        // An empty map is the usual one, and needs no key made.
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&(community, id.to_owned())).copied()
    }
}

fn awarder(effect: &MemberEffect) -> Option<&str> {
    match effect {
        MemberEffect::BadgeAward { by, .. } | MemberEffect::BadgeRevoke { by, .. } => {
            by.as_ref().map(|by| by.as_str())
        }
        _ => None,
    }
}

/// Remembers that a person is erased now, and answers when that is: the time, or that of the person's latest event where it is
/// dated ahead, as far as clocks may differ. So no event that was applied before, delivered again, is of after the erasure. Every
/// stripe of the community is locked, so that nothing of the person is applied meanwhile.
pub(crate) async fn remember(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    tenant: Tenant,
    user: &UserId,
) -> Result<OffsetDateTime, Error> {
    let guild = GuildId::parse(guild_id(connection, tenant).await?).map_err(Error::defect)?;
    let person = key.person(&guild, user.as_str());
    let erased_at = clock::now(connection).await?.max(latest(connection, tenant, user).await?);
    insert(connection, tenant.shard, vec![(tenant.community, person, erased_at)]).await?;
    Ok(erased_at)
}

/// The date of the latest event that is known of a person, as a member or as one who awarded.
async fn latest(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    user: &UserId,
) -> Result<OffsetDateTime, Error> {
    let find = Statement::in_community(
        tenant,
        "SELECT greatest(m.joined_at, m.last_active_at, m.conviction_set_at, m.activity_set_at, m.username_set_at,
             m.nick_set_at, m.presence_set_at,
             (SELECT max(o.at) FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = $2 AND o.member = m.member),
             (SELECT max(o.at) FROM badge_ops AS o WHERE o.shard = $1 AND o.community = $2 AND o.by = $3),
             (SELECT max(a.at) FROM activity_adds AS a
                 WHERE a.shard = $1 AND a.community = $2 AND a.member = m.member)) AS latest
         FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND m.user_id = $3",
    )
    .bind::<Text, _>(user.as_str().to_owned());
    let row: Option<LatestRow> = statement::optional(connection, find).await?;
    Ok(row.map_or(OffsetDateTime::UNIX_EPOCH, |row| row.latest))
}

/// The chat server of a community.
pub(crate) async fn guild_id(connection: &mut AsyncPgConnection, tenant: Tenant) -> QueryResult<String> {
    let find = communities::table.filter(communities::community.eq(tenant.community));
    find.select(communities::guild_id).get_result(connection).await
}

/// Remembers erasures of communities of a shard; answers how many were not known, or only of an earlier time.
pub(crate) async fn insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    erasures: Vec<(i32, ErasedPerson, OffsetDateTime)>,
) -> Result<usize, Error> {
    let mut latest: BTreeMap<(i32, ErasedPerson), OffsetDateTime> = BTreeMap::new();
    for (community, person, erased_at) in erasures {
        let known = latest.entry((community, person)).or_insert(erased_at);
        *known = erased_at.max(*known);
    }
    let rows = latest.into_iter().map(|((community, person), erased_at)| Remembered {
        community,
        person: person.bytes().to_vec(),
        erased_at,
    });
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO erasures AS e (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
         ON CONFLICT (shard, community, person) DO UPDATE SET erased_at = excluded.erased_at
             WHERE e.erased_at < excluded.erased_at",
    );
    Ok(statement::write(connection, insert, rows.collect()).await?)
}

columns! {
    struct Asked {
        community: i32 => Integer,
        person: Vec<u8> => Binary,
    }
}

columns! {
    struct Remembered {
        community: i32 => Integer,
        person: Vec<u8> => Binary,
        erased_at: OffsetDateTime => Timestamptz,
    }
}

#[derive(QueryableByName)]
struct LatestRow {
    #[diesel(sql_type = Timestamptz)]
    latest: OffsetDateTime,
}

#[derive(QueryableByName)]
#[diesel(table_name = erasures)]
struct ErasedRow {
    community: i32,
    person: Vec<u8>,
    erased_at: OffsetDateTime,
}
