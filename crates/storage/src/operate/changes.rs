//! Changes for siblings: which types are published, how many wait, and their way out of the outbox.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Integer, Nullable, SmallInt, Timestamptz};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use muster_domain::{
    BadgeKind, Change, ChangeData, ChangeId, ChangeType, Changed, ChangedBadge, CommunityId, Disappearance,
    GuildId, Limit, Nym, Reason, Shard, Tier, TraceParent, UserId,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::Error;
use crate::schema::{changes, communities};
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Statement};
use crate::store::Store;
use crate::tenant::Tenant;
use crate::write::lock;
use crate::write::outbox::{bit_of, number_of};

/// The most changes that are handed out to be published at once.
pub const MAX_PUBLISHED: u32 = 1000;
/// The most communities whose changes are handed out at once.
type Communities = Limit<100>;
/// The most communities of a shard in which it is counted what waits.
type Counted = Limit<1000>;

/// What came of an attempt to publish what waits in a shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publication {
    /// How many changes were published.
    pub published: usize,
    /// Whether more may wait, which can be published at once.
    pub more: bool,
    /// A change that waits and cannot be read.
    pub unreadable: Option<UnreadableChange>,
}

/// A change that cannot be read. It waits, with those of its community behind it, until its row is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableChange {
    /// Of which community.
    pub community: CommunityId,
    /// Its number.
    pub number: u64,
    /// What is wrong with it.
    pub error: String,
}

/// What waits to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitingChanges {
    /// How many changes.
    pub count: u64,
    /// When the oldest of them was made.
    pub oldest: Option<OffsetDateTime>,
}

impl WaitingChanges {
    fn and(self, other: Self) -> Self {
        let oldest = match (self.oldest, other.oldest) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self { count: self.count.saturating_add(other.count), oldest }
    }
}

/// The communities of a shard above number `$2` in which changes wait, each with its first change: a loose index scan, one step
/// per community.
macro_rules! waiting {
    () => {
        "WITH RECURSIVE waiting AS (
             (SELECT c.community, c.number, c.at FROM changes AS c WHERE c.shard = $1 AND c.community > $2
              ORDER BY c.community, c.number LIMIT 1)
             UNION ALL
             SELECT next.* FROM waiting AS w CROSS JOIN LATERAL (SELECT c.community, c.number, c.at FROM changes AS c
                 WHERE c.shard = $1 AND c.community > w.community ORDER BY c.community, c.number LIMIT 1) AS next
         ) "
    };
}

impl Store {
    /// Waits until this process has written to some shards, and returns them: changes may wait there. What another process left
    /// is found by looking at every shard from time to time.
    pub async fn changes_written(&self) -> Vec<Shard> {
        self.outbox_hints().written().await
    }

    /// Hands the waiting changes of a shard to `publish`, each community's in order. `publish` returns how many it published, counted
    /// from the first, and a value that is passed through. Those changes are removed. No other process publishes changes of these
    /// communities meanwhile. Communities take turns from call to call.
    ///
    /// `publish` is to end within `deadline`, after which it may be cut short; what it published then is handed out again.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn changes_publish<T, P>(
        &self,
        shard: Shard,
        deadline: Duration,
        publish: P,
    ) -> Result<(Publication, Option<T>), Error>
    where
        T: Send + 'static,
        P: FnOnce(Vec<Change>) -> BoxFuture<'static, (usize, T)> + Send + 'static,
    {
        let after = self.outbox_hints().handed_out(shard);
        let (published, last) = self
            .in_shard(shard)
            .write_within("changes_publish", deadline, move |connection| {
                async move {
                    // While it publishes, the session is idle: it is not to be ended, and its claims with it.
                    let bound = deadline.saturating_mul(2).as_millis();
                    let idle = format!("SET LOCAL idle_in_transaction_session_timeout = {bound}");
                    statement::set(connection, &idle).await?;
                    let mut communities = waiting_communities(connection, shard, after).await?;
                    if communities.is_empty() && after > 0 {
                        communities = waiting_communities(connection, shard, 0).await?;
                    }
                    let last = communities.last().copied().unwrap_or_default();
                    let published = publish_of(connection, shard, communities, publish).await?;
                    Ok((published, last))
                }
                .boxed()
            })
            .await?;
        self.outbox_hints().note_handed_out(shard, last);
        Ok(published)
    }

    /// The id of a community's change that waits under this number.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn change_waiting(
        &self,
        community: CommunityId,
        number: u64,
    ) -> Result<Option<ChangeId>, Error> {
        let Some(tenant) = self.tenant(community).await? else { return Ok(None) };
        let find = Statement::in_community(
            tenant,
            "SELECT change_id FROM changes WHERE shard = $1 AND community = $2 AND number = $3",
        )
        .bind::<BigInt, _>(i64::try_from(number).map_err(Error::defect)?);
        let found: Option<IdRow> = self.in_shard(tenant.shard).optional("change_waiting", find).await?;
        Ok(found.map(|row| row.change_id.into()))
    }

    /// Gives a community's changes numbers above `published`, which the stream has already, as when the database was restored from
    /// an older backup. One number is left out, so that followers see a gap.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn changes_skip(&self, community: CommunityId, published: u64) -> Result<(), Error> {
        let Some(tenant) = self.tenant(community).await? else { return Ok(()) };
        let published = i64::try_from(published).map_err(Error::defect)?;
        self.in_shard(tenant.shard)
            .write("changes_skip", move |connection| {
                async move { skip(connection, tenant, published).await }.boxed()
            })
            .await
    }

    /// What waits to be published, over all communities; of those in which something waits, the first thousand of each shard are
    /// counted.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn changes_waiting(&self) -> Result<WaitingChanges, Error> {
        let mut waiting = WaitingChanges::default();
        for shard in Shard::all() {
            let count = Statement::in_shard(
                shard,
                concat!(
                    waiting!(),
                    "SELECT coalesce(sum(last.number - w.number + 1), 0)::bigint AS count, min(w.at) AS oldest
                     FROM (SELECT * FROM waiting LIMIT $3) AS w
                     CROSS JOIN LATERAL (SELECT c.number FROM changes AS c
                         WHERE c.shard = $1 AND c.community = w.community ORDER BY c.number DESC LIMIT 1) AS last"
                ),
            )
            .bind::<Integer, _>(0)
            .bind::<BigInt, _>(i64::from(Counted::MAX));
            let row: Option<WaitingRow> = self.in_shard(shard).optional("changes_waiting", count).await?;
            let Some(row) = row else { continue };
            let count = u64::try_from(row.count).unwrap_or_default();
            waiting = waiting.and(WaitingChanges { count, oldest: row.oldest });
        }
        Ok(waiting)
    }
}

impl Community {
    /// Sets which types of changes are published of this community from now on; all are the default. `changes.lost` is always
    /// published.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn change_types_replace(&self, types: &BTreeSet<ChangeType>) -> Result<(), Error> {
        let bits = types.iter().fold(0_i16, |bits, change_type| bits | bit_of(*change_type));
        let tenant = self.tenant;
        self.write("change_types_replace", move |connection| {
            async move {
                lock::community(connection, tenant).await?;
                let update = Statement::in_community(
                    tenant,
                    "UPDATE community_states SET change_types = $3 WHERE shard = $1 AND community = $2",
                )
                .bind::<SmallInt, _>(bits);
                statement::execute(connection, update).await?;
                Ok(())
            }
            .boxed()
        })
        .await
    }
}

async fn waiting_communities(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    after: i32,
) -> Result<Vec<i32>, Error> {
    let find = Statement::in_shard(shard, concat!(waiting!(), "SELECT community FROM waiting LIMIT $limit"))
        .bind::<Integer, _>(after);
    let rows: Vec<CommunityRow> = statement::rows(connection, find, Communities::MAX).await?;
    Ok(rows.into_iter().map(|row| row.community).collect())
}

async fn publish_of<T, P>(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: Vec<i32>,
    publish: P,
) -> Result<(Publication, Option<T>), Error>
where
    P: FnOnce(Vec<Change>) -> BoxFuture<'static, (usize, T)>,
{
    if communities.is_empty() {
        return Ok((Publication::default(), None));
    }
    let full = communities.len() >= usize::try_from(Communities::MAX.get()).map_err(Error::defect)?;
    let rows = communities.iter().map(|community| OfCommunity { community: *community }).collect();
    let make = "INSERT INTO changes_published (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
             AND NOT EXISTS (SELECT FROM changes_published AS p WHERE p.shard = $1 AND p.community = rows.community)
         ON CONFLICT (shard, community) DO NOTHING";
    statement::write(connection, Statement::in_shard(shard, make), rows).await?;
    let claim = Statement::in_shard(
        shard,
        "SELECT community, number FROM changes_published WHERE shard = $1 AND community = ANY($2)
         ORDER BY community FOR UPDATE SKIP LOCKED",
    )
    .bind::<Array<Integer>, _>(communities.clone());
    let claimed: Vec<PublishedRow> = statement::by_keys(connection, claim, communities.len()).await?;
    if claimed.is_empty() {
        return Ok((Publication::default(), None));
    }
    // Each community may have as many as the others.
    let most = Limit::<MAX_PUBLISHED>::MAX;
    let communities = i64::try_from(claimed.len()).map_err(Error::defect)?;
    let each = i64::from(most).checked_div(communities).unwrap_or(1);
    let find = Statement::in_shard(
        shard,
        "SELECT c.* FROM $rows CROSS JOIN LATERAL (SELECT c.community, c.change_type, c.number, c.lost, c.at, c.change_id, c.profile_id,
                 c.badge_id, c.user_id, c.value_from, c.value_to, c.reason, c.traceparent
             FROM changes AS c
             WHERE c.shard = $1 AND c.community = rows.community AND c.number > rows.number
             ORDER BY c.number LIMIT $2) AS c
         ORDER BY c.community, c.number LIMIT $limit",
    )
    .bind::<BigInt, _>(each)
    .rows(claimed.iter().map(|row| UpTo { community: row.community, number: row.number }).collect());
    let rows: Vec<ChangeRow> = statement::rows(connection, find, most).await?;
    let mut handed: Vec<(i32, i64)> = Vec::with_capacity(rows.len());
    let mut changes = Vec::with_capacity(rows.len());
    let named = named(connection, rows.iter().map(|row| row.community).collect()).await?;
    let (mut stuck, mut unreadable) = (None, None);
    let mut before: HashMap<i32, i64> = claimed.iter().map(|row| (row.community, row.number)).collect();
    for mut row in rows {
        let Some((community, guild)) = named.get(&row.community) else { continue };
        let key = (row.community, row.number);
        let gap = before.insert(key.0, key.1).map(|before| key.1.saturating_sub(1).saturating_sub(before));
        // Of those that were dropped, some may have been on their way.
        row.lost = row.lost.map(|lost| gap.unwrap_or(lost));
        // Others are published all the same.
        if stuck == Some(key.0) {
            continue;
        }
        match row.change(*community, guild) {
            Ok(change) => {
                handed.push(key);
                changes.push(change);
            }
            Err(error) => {
                let (community, number) = (*community, u64::try_from(key.1).unwrap_or_default());
                let error = error.to_string();
                (stuck, unreadable) = (Some(key.0), Some(UnreadableChange { community, number, error }));
            }
        }
    }
    let all = changes.len();
    let (published, of_caller) = publish(changes).await;
    let published = published.min(all);
    let mut last: Vec<UpTo> = Vec::new();
    for (community, number) in handed.into_iter().take(published) {
        match last.last_mut().filter(|last| last.community == community) {
            Some(last) => last.number = number,
            None => last.push(UpTo { community, number }),
        }
    }
    let forget = "DELETE FROM changes AS c USING $rows
         WHERE c.shard = $1 AND c.community = rows.community AND c.number <= rows.number";
    statement::write(connection, Statement::in_shard(shard, forget), last.clone()).await?;
    let note = concat!(
        "UPDATE changes_published AS p SET number = rows.number FROM ",
        rows_in!("changes_published"),
        " WHERE p.shard = $1 AND p.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, note), last).await?;
    let each = usize::try_from(each).map_err(Error::defect)?;
    let more = published > 0 && (published < all || full || all >= each);
    Ok((Publication { published, more, unreadable }, Some(of_caller)))
}

/// What the outside knows these communities by. It is shared, and so apart from what lies in a shard.
async fn named(
    connection: &mut AsyncPgConnection,
    communities: BTreeSet<i32>,
) -> Result<HashMap<i32, (CommunityId, GuildId)>, Error> {
    let keys = communities.len();
    let find = Statement::shared(
        "SELECT c.community, c.community_id, c.guild_id FROM unnest($1) AS k (community)
         CROSS JOIN LATERAL (SELECT * FROM communities AS c WHERE c.community = k.community LIMIT 1) AS c",
    )
    .bind::<Array<Integer>, _>(communities.into_iter().collect::<Vec<_>>());
    let rows: Vec<NamedRow> =
        if keys == 0 { Vec::new() } else { statement::by_keys(connection, find, keys).await? };
    rows.into_iter()
        .map(|row| {
            let guild = GuildId::parse(row.guild_id).map_err(Error::defect)?;
            Ok((row.community, (row.community_id.into(), guild)))
        })
        .collect()
}

/// Moves a community's numbers above `published`.
async fn skip(connection: &mut AsyncPgConnection, tenant: Tenant, published: i64) -> Result<(), Error> {
    // A publisher of them ends first, before anything is locked that it may wait for.
    let claim = Statement::in_community(
        tenant,
        "SELECT community, number FROM changes_published WHERE shard = $1 AND community = $2 FOR UPDATE",
    );
    let Some(noted) = statement::optional::<PublishedRow>(connection, claim).await? else {
        return Ok(());
    };
    lock::community(connection, tenant).await?;
    // One more than that is left out.
    let step = published.saturating_add(1).saturating_sub(noted.number);
    if step <= 0 {
        return Ok(());
    }
    const MOVES: [&str; 3] = [
        // All are taken out before the first is put back, so that no two have one number meanwhile.
        "WITH taken AS (DELETE FROM changes AS c WHERE c.shard = $1 AND c.community = $2 RETURNING c.*)
         INSERT INTO changes (shard, community, number, change_type, lost, at, change_id, profile_id, badge_id, user_id,
             value_from, value_to, reason, traceparent)
         SELECT taken.shard, community, number + $3, change_type, lost, at, change_id, profile_id, badge_id, user_id,
             value_from, value_to, reason, traceparent
         FROM taken ORDER BY number DESC",
        "UPDATE community_states SET changes = changes + $3,
             changes_lost = CASE WHEN changes_lost = 0 THEN 0 ELSE changes_lost + $3 END
         WHERE shard = $1 AND community = $2",
        "UPDATE changes_published SET number = number + $3 WHERE shard = $1 AND community = $2",
    ];
    for sql in MOVES {
        let moves = Statement::in_community(tenant, sql).bind::<BigInt, _>(step);
        statement::execute(connection, moves).await?;
    }
    Ok(())
}

columns! {
    struct OfCommunity {
        community: i32 => Integer,
    }
}

columns! {
    #[derive(Clone)]
    struct UpTo {
        community: i32 => Integer,
        number: i64 => BigInt,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = changes)]
struct CommunityRow {
    community: i32,
}

#[derive(QueryableByName)]
#[diesel(table_name = changes)]
struct PublishedRow {
    community: i32,
    number: i64,
}

#[derive(QueryableByName)]
#[diesel(table_name = changes)]
struct IdRow {
    change_id: Uuid,
}

#[derive(QueryableByName)]
struct WaitingRow {
    #[diesel(sql_type = BigInt)]
    count: i64,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    oldest: Option<OffsetDateTime>,
}

#[derive(QueryableByName)]
#[diesel(table_name = communities)]
struct NamedRow {
    community: i32,
    community_id: Uuid,
    guild_id: String,
}

#[derive(QueryableByName)]
#[diesel(table_name = changes)]
struct ChangeRow {
    community: i32,
    change_type: i16,
    number: i64,
    lost: Option<i64>,
    at: OffsetDateTime,
    change_id: Uuid,
    profile_id: Option<Uuid>,
    badge_id: Option<Uuid>,
    user_id: Option<String>,
    value_from: Option<String>,
    value_to: Option<String>,
    reason: Option<String>,
    traceparent: Option<String>,
}

impl ChangeRow {
    fn change(self, community: CommunityId, guild: &GuildId) -> Result<Change, Error> {
        let change_type = ChangeType::ALL.into_iter().find(|known| number_of(*known) == self.change_type);
        let change_type = change_type.ok_or_else(|| Error::defect("there is no such type of change"))?;
        let (id, number, at, traceparent) = (self.change_id, self.number, self.at, self.traceparent.clone());
        Ok(Change {
            id: id.into(),
            number: u64::try_from(number).map_err(Error::defect)?,
            at,
            community,
            guild: Some(guild.clone()),
            what: self.what(change_type)?,
            traceparent: traceparent.and_then(|trace| TraceParent::parse(trace).ok()),
        })
    }

    fn what(self, change_type: ChangeType) -> Result<Changed, Error> {
        let missing = || Error::defect("a change that waits is not whole");
        let tier = |name: Option<String>| name.map(Tier::parse).transpose().map_err(Error::defect);
        let nym = |name: Option<String>| Nym::parse(name.ok_or_else(missing)?).map_err(Error::defect);
        let badge = |badge: Option<Uuid>, kind: Option<String>, reason: Option<String>| {
            Ok::<_, Error>(ChangedBadge {
                badge_id: badge.ok_or_else(missing)?.into(),
                kind: BadgeKind::parse(kind.ok_or_else(missing)?).map_err(Error::defect)?,
                reason: reason.map(Reason::parse).transpose().map_err(Error::defect)?,
            })
        };
        let data = match change_type {
            ChangeType::Lost => {
                let count = u64::try_from(self.lost.ok_or_else(missing)?).map_err(Error::defect)?;
                return Ok(Changed::Lost { count });
            }
            ChangeType::MemberDisappeared => ChangeData::Disappeared(
                self.value_to.as_deref().and_then(Disappearance::of).ok_or_else(missing)?,
            ),
            ChangeType::MemberAppeared => ChangeData::Appeared { tier: tier(self.value_to)? },
            ChangeType::MemberRenamed => {
                ChangeData::Renamed { from: nym(self.value_from)?, to: nym(self.value_to)? }
            }
            ChangeType::TierPromoted => {
                ChangeData::TierPromoted { from: tier(self.value_from)?, to: tier(self.value_to)? }
            }
            ChangeType::TierDemoted => {
                ChangeData::TierDemoted { from: tier(self.value_from)?, to: tier(self.value_to)? }
            }
            ChangeType::BadgeRevoked => {
                ChangeData::BadgeRevoked(badge(self.badge_id, self.value_to, self.reason)?)
            }
            ChangeType::BadgeAwarded => {
                ChangeData::BadgeAwarded(badge(self.badge_id, self.value_to, self.reason)?)
            }
        };
        let user = UserId::parse(self.user_id.ok_or_else(missing)?).map_err(Error::defect)?;
        Ok(Changed::Member { profile: self.profile_id.ok_or_else(missing)?.into(), user, data })
    }
}
