//! Erasure is for good: whoever was erased is remembered by a keyed hash with the time, and nothing dated at or before that
//! makes or changes a profile of theirs again.
//!
//! Who erases holds every stripe of the community, and who applies an event of a member holds at least one: each sees the
//! other's work whole.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::QueryableByName;
use diesel::sql_types::{Array, Binary, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{
    CommunityId, Effect, ErasedPerson, ErasureKey, Event, GuildId, MemberEffect, PageLimit, ProfileId,
    Stripe, UserId,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::fold::MemberChange;
use crate::profile::in_community;
use crate::statement::{self, Statement};
use crate::{Error, Store, badge, lock, member};

/// The most erasures that are taken at once.
pub const MAX_ERASURES: usize = 1000;

/// That a person of a chat server was erased, in the form in which one database tells it to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// The chat server.
    pub guild: GuildId,
    /// The person, under the deployment's [`ErasureKey`].
    pub person: ErasedPerson,
    /// When.
    pub erased_at: OffsetDateTime,
}

/// What had to be removed of persons who are known to be erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Enforced {
    /// Profiles that were erased.
    pub profiles: u64,
    /// Ids that were removed from others' badges, where they stood as those who awarded or revoked.
    pub awarders: u64,
}

/// Of the persons whom a batch of events names: who was erased, and when.
#[derive(Default)]
pub(crate) struct Erased(HashMap<(CommunityId, String), OffsetDateTime>);

impl Erased {
    /// Looks up whom these events name. The members' stripes are locked.
    pub(crate) async fn find(
        connection: &mut AsyncPgConnection,
        key: &ErasureKey,
        events: &[(CommunityId, Event)],
    ) -> Result<Self, Error> {
        let mut named: BTreeMap<(CommunityId, &str), ErasedPerson> = BTreeMap::new();
        for (community, event) in events {
            let Effect::Member { user, effect } = &event.effect else { continue };
            for id in [Some(user.as_str()), awarder(effect)].into_iter().flatten() {
                named.entry((*community, id)).or_insert_with(|| key.person(&event.guild, id));
            }
        }
        if named.is_empty() {
            return Ok(Self::default());
        }
        let find = Statement::new(
            "SELECT e.community_id, e.person, e.erased_at
             FROM unnest($1, $2) AS k (community_id, person)
             CROSS JOIN LATERAL (SELECT e.community_id, e.person, e.erased_at FROM erasures AS e
                 WHERE e.community_id = k.community_id AND e.person = k.person LIMIT 1) AS e",
        )
        .bind::<Array<SqlUuid>, _>(named.keys().map(|(community, _)| community.get()).collect::<Vec<_>>())
        .bind::<Array<Binary>, _>(named.values().map(|person| person.bytes().to_vec()).collect::<Vec<_>>());
        let rows: Vec<ErasedRow> = statement::by_keys(connection, find, named.len()).await?;
        if rows.is_empty() {
            return Ok(Self::default());
        }
        let found: HashMap<(Uuid, Vec<u8>), OffsetDateTime> =
            rows.into_iter().map(|row| ((row.community_id, row.person), row.erased_at)).collect();
        let erased = named.into_iter().filter_map(|((community, id), person)| {
            let erased_at = found.get(&(community.get(), person.bytes().to_vec()))?;
            Some(((community, id.to_owned()), *erased_at))
        });
        Ok(Self(erased.collect()))
    }

    /// Whether this person was erased, ever.
    pub(crate) fn holds(&self, community: CommunityId, id: &str) -> bool {
        self.at(community, id).is_some()
    }

    /// What is left of an event: nothing where it is of one who was erased at its time or later, and no awarder who was.
    pub(crate) fn admit(&self, community: CommunityId, mut event: Event) -> Option<Event> {
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

    fn at(&self, community: CommunityId, id: &str) -> Option<OffsetDateTime> {
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

/// Remembers that a person is erased now, and answers when that is. Every stripe of the community is locked: the time is taken
/// under the lock, so that what was applied before it is of before.
pub(crate) async fn remember(
    connection: &mut AsyncPgConnection,
    key: &ErasureKey,
    community: CommunityId,
    user: &UserId,
) -> Result<OffsetDateTime, Error> {
    let find = in_community(
        "SELECT guild_id, clock_timestamp() AS now FROM communities WHERE community_id = $1",
        community,
    );
    let found: Option<GuildRow> = statement::optional(connection, find).await?;
    let found = found.ok_or_else(|| Error::defect("an erased person's community is gone"))?;
    let guild = GuildId::parse(found.guild_id).map_err(Error::defect)?;
    let person = key.person(&guild, user.as_str());
    insert(connection, &[(community, person, found.now)]).await?;
    Ok(found.now)
}

/// Answers how many were not known, or only of an earlier time.
async fn insert(
    connection: &mut AsyncPgConnection,
    erasures: &[(CommunityId, ErasedPerson, OffsetDateTime)],
) -> Result<usize, Error> {
    let insert = Statement::new(
        "INSERT INTO erasures AS e (community_id, person, erased_at)
         SELECT community_id, person, max(erased_at) FROM unnest($1, $2, $3) AS n (community_id, person, erased_at)
         GROUP BY 1, 2 ORDER BY 1, 2
         ON CONFLICT (community_id, person) DO UPDATE SET erased_at = excluded.erased_at
             WHERE e.erased_at < excluded.erased_at",
    )
    .bind::<Array<SqlUuid>, _>(erasures.iter().map(|erasure| erasure.0.get()).collect::<Vec<_>>())
    .bind::<Array<Binary>, _>(erasures.iter().map(|erasure| erasure.1.bytes().to_vec()).collect::<Vec<_>>())
    .bind::<Array<Timestamptz>, _>(erasures.iter().map(|erasure| erasure.2).collect::<Vec<_>>());
    Ok(statement::execute(connection, insert).await?)
}

/// Erases a profile and every mention of the person: of any date, or up to `until`. Every stripe of the community is locked.
pub(crate) async fn erase(
    connection: &mut AsyncPgConnection,
    held: &lock::Members,
    community: CommunityId,
    id: ProfileId,
    user: &UserId,
    (erased_at, until): (OffsetDateTime, Option<OffsetDateTime>),
) -> Result<(), Error> {
    // Out of sight first: everything that counts the person follows.
    let change = MemberChange { hidden: Some(true), ..MemberChange::default() };
    member::change_known(connection, held, community, vec![(id, change)]).await?;
    const ERASURES: [&str; 5] = [
        "DELETE FROM badges WHERE community_id = $1 AND profile_id = $2",
        "DELETE FROM badge_ops WHERE community_id = $1 AND profile_id = $2",
        "DELETE FROM tier_changes WHERE community_id = $1 AND profile_id = $2",
        "DELETE FROM activity_adds WHERE community_id = $1 AND profile_id = $2",
        "UPDATE scores SET conviction = 0, conviction_at = NULL, conviction_event = NULL, activity = 0,
             activity_at = NULL, activity_event = NULL, last_active_at = NULL
         WHERE community_id = $1 AND profile_id = $2",
    ];
    for sql in ERASURES {
        let erasure = in_community(sql, community).bind::<SqlUuid, _>(id.get());
        statement::execute(connection, erasure).await?;
    }
    let empty = in_community(
        "UPDATE profiles SET user_id = NULL, wallet = NULL, username = NULL, username_key = NULL,
             username_at = NULL, username_event = NULL, nick = NULL, nick_key = NULL, nick_at = NULL,
             nick_event = NULL, roles = '{}', presence_at = NULL, presence_event = NULL, tier = NULL,
             joined_at = 'epoch', badge_count = 0, erased_at = $3
         WHERE community_id = $1 AND profile_id = $2",
        community,
    )
    .bind::<SqlUuid, _>(id.get())
    .bind::<Timestamptz, _>(erased_at);
    statement::execute(connection, empty).await?;
    badge::forget_awarder(connection, community, user.as_str(), until).await
}

impl Store {
    /// Takes over erasures that another database knows of, and answers how many were news. It can be repeated: a time only
    /// moves forward. From then on no event brings back what is older; what is there already goes by
    /// [`Community::erasures_enforce`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::Defect`] when there are more than [`MAX_ERASURES`].
    pub async fn erasures_remember(&self, erasures: Vec<Erasure>) -> Result<usize, Error> {
        if erasures.len() > MAX_ERASURES {
            return Err(Error::defect(format!("at most {MAX_ERASURES} erasures are taken at once")));
        }
        if erasures.is_empty() {
            return Ok(0);
        }
        // A community of after the backup is made here, so that the stream finds its erasures.
        let guilds = erasures.iter().map(|erasure| erasure.guild.clone()).collect();
        let communities = self.communities_ensure(guilds).await?;
        self.write("erasures_remember", move |connection| {
            async move {
                let mut news = Vec::with_capacity(erasures.len());
                for erasure in &erasures {
                    let community = communities.get(&erasure.guild).copied();
                    let community = community.ok_or_else(|| Error::defect("an ensured community is gone"))?;
                    news.push((community, erasure.person, erasure.erased_at));
                }
                let stripes: BTreeSet<(CommunityId, Stripe)> = communities
                    .values()
                    .flat_map(|community| Stripe::all().map(|stripe| (*community, stripe)))
                    .collect();
                lock::stripes(connection, &stripes).await?;
                insert(connection, &news).await
            }
            .boxed()
        })
        .await
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
                "SELECT c.guild_id, e.person, e.erased_at
                 FROM (SELECT * FROM erasures AS e WHERE e.community_id = $1 AND e.person > $2
                     ORDER BY e.community_id, e.person LIMIT $limit) AS e
                 CROSS JOIN LATERAL (SELECT c.guild_id FROM communities AS c WHERE c.community_id = $1 LIMIT 1) AS c
                 ORDER BY e.person",
            )
            .bind::<Binary, _>(after);
        let rows: Vec<ErasureRow> = self.store.rows("erasure_list", list, limit).await?;
        let erasure = |row: ErasureRow| {
            let person: [u8; 32] =
                row.person.try_into().map_err(|_| Error::defect("a hash is not 32 bytes"))?;
            let guild = GuildId::parse(row.guild_id).map_err(Error::defect)?;
            Ok(Erasure { guild, person: person.into(), erased_at: row.erased_at })
        };
        rows.into_iter().map(erasure).collect()
    }

    /// Erases whoever is known to be erased and has a profile with anything dated before that, as a database has that was
    /// restored from an older backup: all of the profile, and the person's id where it stands in others' badges. It can be
    /// repeated.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat.
    pub async fn erasures_enforce(&self) -> Result<Enforced, Error> {
        let mut enforced = Enforced::default();
        if self.erasure_list(PageLimit::clamp(1), None).await?.is_empty() {
            return Ok(enforced);
        }
        let guild = self.guild().await?;
        let mut after = Uuid::nil();
        loop {
            let page = self
                .statement(
                    "SELECT profile_id, user_id FROM profiles
                     WHERE community_id = $1 AND profile_id > $2 AND user_id IS NOT NULL
                     ORDER BY community_id, profile_id LIMIT $limit",
                )
                .bind::<SqlUuid, _>(after);
            let people: Vec<PersonRow> = self.store.rows("erasures_enforce", page, PageLimit::MAX).await?;
            let Some(last) = people.last() else { break };
            after = last.profile_id;
            let stale = stale(self.id, self.store.erasure_key(), &guild, &people);
            let rows: Vec<StaleRow> = self.store.by_keys("erasures_enforce", stale, people.len()).await?;
            for row in rows {
                let erased = self.erase_again(&guild, row.profile_id.into()).await?;
                enforced.profiles = enforced.profiles.saturating_add(u64::from(erased));
            }
        }
        enforced.awarders = self.enforce_of_awarders(&guild).await?;
        Ok(enforced)
    }

    /// Erases a profile, if under the locks it still holds anything dated before its person was erased.
    async fn erase_again(&self, guild: &GuildId, id: ProfileId) -> Result<bool, Error> {
        let (community, guild, key) = (self.id, guild.clone(), self.store.erasure_key().clone());
        self.store
            .write("profile_erase", move |connection| {
                async move {
                    let held = lock::all_members(connection, community).await?;
                    let find = in_community(
                        "SELECT profile_id, user_id FROM profiles
                         WHERE community_id = $1 AND profile_id = $2 AND user_id IS NOT NULL",
                        community,
                    )
                    .bind::<SqlUuid, _>(id.get());
                    let Some(person) = statement::optional::<PersonRow>(connection, find).await? else {
                        return Ok(false);
                    };
                    let user = UserId::parse(person.user_id.clone()).map_err(Error::defect)?;
                    let stale = stale(community, &key, &guild, &[person]);
                    let stale: Vec<StaleRow> = statement::by_keys(connection, stale, 1).await?;
                    let Some(stale) = stale.first() else { return Ok(false) };
                    let dates = (stale.erased_at, Some(stale.erased_at));
                    erase(connection, &held, community, id, &user, dates).await?;
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
                          WHERE o.community_id = $1 AND o.by > $2 ORDER BY o.community_id, o.by LIMIT 1)
                         UNION ALL
                         SELECT next.by FROM awarders AS a CROSS JOIN LATERAL (SELECT o.by FROM badge_ops AS o
                             WHERE o.community_id = $1 AND o.by > a.by ORDER BY o.community_id, o.by LIMIT 1) AS next
                     )
                     SELECT by AS id FROM awarders LIMIT $limit",
                )
                .bind::<Text, _>(after.clone());
            let page: Vec<AwarderRow> = self.store.rows("erasures_enforce", page, PageLimit::MAX).await?;
            let Some(last) = page.last() else { return Ok(removed) };
            after.clone_from(&last.id);
            let hashes =
                page.iter().map(|row| self.store.erasure_key().person(guild, &row.id).bytes().to_vec());
            let find = self
                .statement(
                    "SELECT k.id, e.erased_at FROM unnest($2, $3) AS k (id, person)
                     CROSS JOIN LATERAL (SELECT e.erased_at FROM erasures AS e
                         WHERE e.community_id = $1 AND e.person = k.person LIMIT 1) AS e
                     WHERE EXISTS (SELECT FROM badge_ops AS o
                         WHERE o.community_id = $1 AND o.by = k.id AND o.at <= e.erased_at)",
                )
                .bind::<Array<Text>, _>(page.iter().map(|row| row.id.clone()).collect::<Vec<_>>())
                .bind::<Array<Binary>, _>(hashes.collect::<Vec<_>>());
            let found: Vec<ErasedAwarderRow> =
                self.store.by_keys("erasures_enforce", find, page.len()).await?;
            for ErasedAwarderRow { id, erased_at } in found {
                let community = self.id;
                self.store
                    .write("erasures_enforce", move |connection| {
                        async move {
                            lock::all_members(connection, community).await?;
                            badge::forget_awarder(connection, community, &id, Some(erased_at)).await
                        }
                        .boxed()
                    })
                    .await?;
                removed = removed.saturating_add(1);
            }
        }
    }

    async fn guild(&self) -> Result<GuildId, Error> {
        let find = self.statement("SELECT guild_id, now() AS now FROM communities WHERE community_id = $1");
        let row: Option<GuildRow> = self.store.optional("erasures_enforce", find).await?;
        let row = row.ok_or_else(|| Error::defect("a community is gone"))?;
        GuildId::parse(row.guild_id).map_err(Error::defect)
    }
}

/// Which of these people's profiles hold anything dated at or before the person's erasure. `least` passes over what is null.
fn stale(community: CommunityId, key: &ErasureKey, guild: &GuildId, people: &[PersonRow]) -> Statement {
    let hashes = people.iter().map(|row| key.person(guild, &row.user_id).bytes().to_vec());
    in_community(
        "SELECT k.profile_id, e.erased_at FROM unnest($2, $3) AS k (profile_id, person)
         CROSS JOIN LATERAL (SELECT e.erased_at FROM erasures AS e
             WHERE e.community_id = $1 AND e.person = k.person LIMIT 1) AS e
         CROSS JOIN LATERAL (SELECT * FROM profiles AS p
             WHERE p.community_id = $1 AND p.profile_id = k.profile_id LIMIT 1) AS p
         CROSS JOIN LATERAL (SELECT * FROM scores AS s
             WHERE s.community_id = $1 AND s.profile_id = k.profile_id LIMIT 1) AS s
         WHERE e.erased_at >= least(p.joined_at, p.username_at, p.nick_at, p.presence_at, s.conviction_at,
             s.activity_at, s.last_active_at,
             (SELECT min(o.at) FROM badge_ops AS o WHERE o.community_id = $1 AND o.profile_id = k.profile_id),
             (SELECT min(a.at) FROM activity_adds AS a WHERE a.community_id = $1 AND a.profile_id = k.profile_id))",
        community,
    )
    .bind::<Array<SqlUuid>, _>(people.iter().map(|row| row.profile_id).collect::<Vec<_>>())
    .bind::<Array<Binary>, _>(hashes.collect::<Vec<_>>())
}

#[derive(QueryableByName)]
struct ErasedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Binary)]
    person: Vec<u8>,
    #[diesel(sql_type = Timestamptz)]
    erased_at: OffsetDateTime,
}

#[derive(QueryableByName)]
struct ErasureRow {
    #[diesel(sql_type = Text)]
    guild_id: String,
    #[diesel(sql_type = Binary)]
    person: Vec<u8>,
    #[diesel(sql_type = Timestamptz)]
    erased_at: OffsetDateTime,
}

#[derive(QueryableByName)]
struct GuildRow {
    #[diesel(sql_type = Text)]
    guild_id: String,
    #[diesel(sql_type = Timestamptz)]
    now: OffsetDateTime,
}

#[derive(QueryableByName)]
struct PersonRow {
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Text)]
    user_id: String,
}

#[derive(QueryableByName)]
struct StaleRow {
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
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
