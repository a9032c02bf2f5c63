//! Erasures that one database takes over from another, as one does that was restored from a backup of before them.

use std::collections::{BTreeMap, BTreeSet};

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Binary, Text, Timestamptz};
use futures_util::FutureExt;
use muster_domain::{ErasedPerson, ErasureKey, GuildId, PageLimit, Shard, Stripe};
use time::OffsetDateTime;

use crate::community::Community;
use crate::error::Error;
use crate::operate::erasure::{self, PersonRow};
use crate::schema::erasures;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::store::Store;
use crate::tenant::{Tenant, ids_of};
use crate::write::{badges, erased, lock, outbox};

/// The most erasures that are taken at once.
pub const MAX_ERASURES: usize = 1000;

/// That a person of a chat server was erased, in the form in which one database hands it to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The chat server.
    pub guild: GuildId,
    /// The person, under the deployment's [`ErasureKey`].
    pub person: ErasedPerson,
    /// When.
    pub erased_at: OffsetDateTime,
}

/// What was removed of persons who are known to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Enforced {
    /// Profiles that were erased.
    pub profiles: u64,
    /// Ids that were removed from others' badges, where they stood as those who awarded or revoked.
    pub awarders: u64,
}

impl Store {
    /// Takes over erasures that another database knows of, and returns how many were new. It can be repeated: a time
    /// only moves forward. From then on no event brings back what is older; what is there already goes by
    /// [`Community::erasures_enforce`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::OutOfBounds`] when there are more than [`MAX_ERASURES`].
    pub async fn erasures_remember(&self, erasures: Vec<Erasure>) -> Result<usize, Error> {
        if erasures.len() > MAX_ERASURES {
            return Err(Error::OutOfBounds(format!("at most {MAX_ERASURES} erasures are taken at once")));
        }
        if erasures.is_empty() {
            return Ok(0);
        }
        // A community of after the backup is made here, so that the stream finds its erasures.
        let guilds = erasures.iter().map(|erasure| erasure.guild.clone()).collect();
        let communities = self.communities_ensure(guilds).await?;
        let known = ids_of(communities.values());
        let mut shards: BTreeMap<Shard, Vec<(i32, ErasedPerson, OffsetDateTime)>> = BTreeMap::new();
        for erasure in erasures {
            let community = communities.get(&erasure.guild);
            let Tenant { shard, community } =
                community.ok_or_else(|| Error::defect("an ensured community is gone"))?.tenant;
            shards.entry(shard).or_default().push((community, erasure.person, erasure.erased_at));
        }
        let mut remembered = 0_usize;
        for (shard, erasures) in shards {
            let (known, store) = (known.clone(), self.in_shard(shard));
            let remembering = store.write("erasures_remember", move |connection| {
                async move {
                    let stripes: BTreeSet<(i32, Stripe)> = erasures
                        .iter()
                        .flat_map(|(community, ..)| Stripe::all().map(|stripe| (*community, stripe)))
                        .collect();
                    lock::stripes(connection, shard, &stripes).await?;
                    let touched = erasures.iter().map(|(community, ..)| *community).collect();
                    lock::check(&lock::communities(connection, shard, &touched).await?, &known)?;
                    erased::insert(connection, shard, erasures).await
                }
                .boxed()
            });
            match remembering.await {
                Ok(number) => remembered = remembered.saturating_add(number),
                Err(error) => {
                    self.forget_keys(&communities).await;
                    return Err(error);
                }
            }
        }
        Ok(remembered)
    }
}

impl Community {
    /// A page of this community's erasures, in the order of their hashes, behind `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn erasure_list(
        &self,
        limit: PageLimit,
        after: Option<ErasedPerson>,
    ) -> Result<Vec<Erasure>, Error> {
        let after = after.map_or(Vec::new(), |person| person.bytes().to_vec());
        let list = self
            .statement(
                "SELECT person, erased_at FROM erasures
                 WHERE shard = $1 AND community = $2 AND person > $3 ORDER BY person LIMIT $limit",
            )
            .bind::<Binary, _>(after);
        let rows: Vec<ErasureRow> = self.store.rows("erasure_list", list, limit).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let guild = self.guild("erasure_list").await?;
        let erasure = |row: ErasureRow| {
            let person: [u8; 32] =
                row.person.try_into().map_err(|_| Error::defect("a hash is not 32 bytes"))?;
            Ok(Erasure { guild: guild.clone(), person: person.into(), erased_at: row.erased_at })
        };
        rows.into_iter().map(erasure).collect()
    }

    /// Erases whoever is known to be erased and has a profile with anything dated before that, as a database has that
    /// was restored from an older backup: all of the profile, and the person's id where it stands in others' badges.
    /// It can be repeated.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat.
    pub async fn erasures_enforce(&self) -> Result<Enforced, Error> {
        let mut enforced = Enforced::default();
        if self.erasure_list(PageLimit::clamp(1), None).await?.is_empty() {
            return Ok(enforced);
        }
        let guild = self.guild("erasures_enforce").await?;
        let mut after = 0;
        loop {
            let page = self
                .statement(
                    "SELECT member, user_id FROM members
                     WHERE shard = $1 AND community = $2 AND member > $3 AND user_id IS NOT NULL
                     ORDER BY member LIMIT $limit",
                )
                .bind::<BigInt, _>(after);
            let people: Vec<PersonRow> = self.store.rows("erasures_enforce", page, PageLimit::MAX).await?;
            let Some(last) = people.last() else { break };
            after = last.member;
            let stale = stale(self.tenant, self.store.erasure_key(), &guild, &people)?;
            let rows: Vec<StaleRow> = self.store.by_keys("erasures_enforce", stale, people.len()).await?;
            for row in rows {
                let erased = self.erase_again(&guild, row.member).await?;
                enforced.profiles = enforced.profiles.saturating_add(u64::from(erased));
            }
        }
        enforced.awarders = self.enforce_of_awarders(&guild).await?;
        Ok(enforced)
    }

    /// Erases a member, if under the locks it still holds anything dated before its person was erased.
    async fn erase_again(&self, guild: &GuildId, member: i64) -> Result<bool, Error> {
        let (tenant, guild, key) = (self.tenant, guild.clone(), self.store.erasure_key().clone());
        let change = self.change();
        self.write("profile_erase", move |connection| {
            async move {
                outbox::claim(connection, tenant).await?;
                let held = lock::all_members(connection, tenant).await?;
                let find = Statement::in_community(
                    tenant,
                    "SELECT member, user_id FROM members
                         WHERE shard = $1 AND community = $2 AND member = $3 AND user_id IS NOT NULL",
                )
                .bind::<BigInt, _>(member);
                let Some(person) = statement::optional::<PersonRow>(connection, find).await? else {
                    return Ok(false);
                };
                let user = person.user()?;
                let stale = stale(tenant, &key, &guild, &[person])?;
                let Some(stale) = statement::optional::<StaleRow>(connection, stale).await? else {
                    return Ok(false);
                };
                let dates = (stale.erased_at, Some(stale.erased_at));
                erasure::erase(connection, &held, tenant, member, &user, change, dates).await?;
                Ok(true)
            }
            .boxed()
        })
        .await
    }

    /// Removes the ids of erased persons where they stand as awarders, whether or not they have a profile.
    async fn enforce_of_awarders(&self, guild: &GuildId) -> Result<u64, Error> {
        let (mut removed, mut after) = (0_u64, String::new());
        loop {
            // From one id to the next by the index, however many badges each awarded.
            let page = self
                .statement(
                    "WITH RECURSIVE awarders AS (
                         (SELECT o.by FROM badge_ops AS o
                          WHERE o.shard = $1 AND o.community = $2 AND o.by > $3 ORDER BY o.by LIMIT 1)
                         UNION ALL
                         SELECT next.by FROM awarders AS a CROSS JOIN LATERAL (SELECT o.by FROM badge_ops AS o
                             WHERE o.shard = $1 AND o.community = $2 AND o.by > a.by ORDER BY o.by LIMIT 1) AS next
                     )
                     SELECT by AS id FROM awarders LIMIT $limit",
                )
                .bind::<Text, _>(after.clone());
            let page: Vec<AwarderRow> = self.store.rows("erasures_enforce", page, PageLimit::MAX).await?;
            let Some(last) = page.last() else { return Ok(removed) };
            after.clone_from(&last.id);
            let named = page.iter().map(|row| NamedAwarder {
                id: row.id.clone(),
                person: self.store.erasure_key().person(guild, &row.id).bytes().to_vec(),
            });
            let find = self
                .statement(
                    "SELECT rows.id, e.erased_at FROM $rows
                     CROSS JOIN LATERAL (SELECT e.erased_at FROM erasures AS e
                         WHERE e.shard = $1 AND e.community = $2 AND e.person = rows.person LIMIT 1) AS e
                     CROSS JOIN LATERAL (SELECT FROM badge_ops AS o
                         WHERE o.shard = $1 AND o.community = $2 AND o.by = rows.id AND o.at <= e.erased_at
                         LIMIT 1) AS awarded",
                )
                .rows(named.collect());
            let found: Vec<ErasedAwarderRow> =
                self.store.by_keys("erasures_enforce", find, page.len()).await?;
            for ErasedAwarderRow { id, erased_at } in found {
                let tenant = self.tenant;
                self.write("erasures_enforce", move |connection| {
                    async move {
                        lock::all_members(connection, tenant).await?;
                        badges::forget_awarder(connection, tenant, &id, Some(erased_at)).await
                    }
                    .boxed()
                })
                .await?;
                removed = removed.saturating_add(1);
            }
        }
    }

    async fn guild(&self, query: &'static str) -> Result<GuildId, Error> {
        let tenant = self.tenant;
        let find = self.store.read(query, move |connection| erased::guild_id(connection, tenant).boxed());
        GuildId::parse(find.await?).map_err(Error::defect)
    }
}

/// Which of these people's profiles hold anything dated at or before the person's erasure. `least` passes over what
/// is null.
fn stale(
    tenant: Tenant,
    key: &ErasureKey,
    guild: &GuildId,
    people: &[PersonRow],
) -> Result<Statement, Error> {
    let named = people.iter().map(|row| {
        let person = key.person(guild, row.user()?.as_str()).bytes().to_vec();
        Ok(NamedMember { member: row.member, person })
    });
    let find = Statement::in_community(
        tenant,
        "SELECT rows.member, e.erased_at FROM $rows
         CROSS JOIN LATERAL (SELECT e.erased_at FROM erasures AS e
             WHERE e.shard = $1 AND e.community = $2 AND e.person = rows.person LIMIT 1) AS e
         CROSS JOIN LATERAL (SELECT least(m.joined_at, m.username_set_at, m.nick_set_at, m.presence_set_at,
                 m.conviction_set_at, m.activity_set_at, m.last_active_at) AS at FROM members AS m
             WHERE m.shard = $1 AND m.community = $2 AND m.member = rows.member LIMIT 1) AS m
         CROSS JOIN LATERAL (SELECT min(o.at) AS at FROM badge_ops AS o
             WHERE o.shard = $1 AND o.community = $2 AND o.member = rows.member OFFSET 0) AS o
         CROSS JOIN LATERAL (SELECT min(a.at) AS at FROM activity_adds AS a
             WHERE a.shard = $1 AND a.community = $2 AND a.member = rows.member OFFSET 0) AS a
         WHERE e.erased_at >= least(m.at, o.at, a.at)",
    );
    Ok(find.rows(named.collect::<Result<Vec<_>, Error>>()?))
}

columns! {
    struct NamedMember {
        member: i64 => BigInt,
        person: Vec<u8> => Binary,
    }
}

columns! {
    struct NamedAwarder {
        id: String => Text,
        person: Vec<u8> => Binary,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = erasures)]
struct ErasureRow {
    person: Vec<u8>,
    erased_at: OffsetDateTime,
}

#[derive(QueryableByName)]
struct StaleRow {
    #[diesel(sql_type = BigInt)]
    member: i64,
    #[diesel(sql_type = Timestamptz)]
    erased_at: OffsetDateTime,
}

#[derive(QueryableByName)]
struct AwarderRow {
    #[diesel(sql_type = Text)]
    id: String,
}

#[derive(QueryableByName)]
struct ErasedAwarderRow {
    #[diesel(sql_type = Text)]
    id: String,
    #[diesel(sql_type = Timestamptz)]
    erased_at: OffsetDateTime,
}
