//! Profiles as they are read: one by a key, many by their keys, and the row that every list shows of a member.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{
    Activity, Conviction, Keys, Limit, Lookup, MAX_KEYS, Nym, Page, Profile, ProfileDetail, ProfileId, Tier,
    UserId, Wallet,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::policy::Policy;
use crate::read::ranks::{members_above, rank_below};
use crate::schema::members;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// The columns of a [`ProfileRow`], of `members AS m`.
macro_rules! profile_columns {
    () => {
        "m.member, m.profile_id, m.user_id, m.wallet, coalesce(m.nick, m.username, left(m.user_id, 32), '') AS nym,
         m.conviction, m.activity, m.tier, m.badge_count, m.joined_at, m.last_active_at, m.visible"
    };
}

/// The rows `m` of the members of a list, behind the keys `k` that put them in order: narrow rows with a `member`, read in the
/// order of an index.
///
/// The limit of 1001, one more than a page may have, tells the planner how few rows there are: of `$limit` it knows nothing, and
/// would take a tenth of the table for granted. The sum hides whose column it is from the planner, which would else keep rows to
/// use again that never come again.
macro_rules! members_in_order {
    ($keys:expr, $order:literal) => {
        $crate::read::profile::members_in_order!($keys, $order, "1001", "")
    };
    ($keys:expr, $order:literal, $most:literal, $skip:literal) => {
        concat!(
            "(SELECT k.*, k.member + 0 AS found FROM (",
            $keys,
            " ORDER BY ",
            $order,
            " LIMIT ",
            $most,
            ") AS k ORDER BY ",
            $order,
            " LIMIT $limit",
            $skip,
            ") AS k",
            $crate::read::profile::member_of_each_key!("k.found")
        )
    };
}

/// The row `m` of each member, in the order of the keys. The inner limit keeps the planner from reading a whole table instead of as many rows
/// as there are keys.
macro_rules! member_of_each_key {
    ($member:literal) => {
        concat!(
            " CROSS JOIN LATERAL (SELECT ",
            $crate::read::profile::profile_columns!(),
            " FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND m.member = ",
            $member,
            " LIMIT 1) AS m "
        )
    };
}
pub(crate) use {member_of_each_key, members_in_order, profile_columns};

/// What is shown of a member.
#[derive(QueryableByName)]
#[diesel(table_name = members)]
pub(crate) struct ProfileRow {
    pub(crate) member: i64,
    profile_id: Uuid,
    user_id: Option<String>,
    wallet: Option<String>,
    #[diesel(sql_type = Text)]
    nym: String,
    pub(crate) conviction: i64,
    pub(crate) activity: i64,
    pub(crate) tier: Option<i16>,
    pub(crate) badge_count: i32,
    pub(crate) joined_at: OffsetDateTime,
    last_active_at: Option<OffsetDateTime>,
    visible: bool,
}

impl ProfileRow {
    /// The profile, its tier named by the policy.
    pub(crate) fn profile(self, policy: &Policy) -> Result<Profile, Error> {
        let tier = policy.name(self.tier);
        self.of_tier(tier)
    }

    fn of_tier(self, tier: Option<Tier>) -> Result<Profile, Error> {
        Ok(Profile {
            profile_id: self.profile_id.into(),
            user_id: UserId::parse(self.user_id.unwrap_or_default()).map_err(Error::defect)?,
            wallet: self.wallet.map(Wallet::parse).transpose().map_err(Error::defect)?,
            nym: Nym::parse(&self.nym).map_err(Error::defect)?,
            conviction: Conviction::clamp(self.conviction),
            activity: Activity::clamp(self.activity),
            tier,
            badge_count: u32::try_from(self.badge_count).map_err(Error::defect)?,
            joined_at: self.joined_at,
            last_active_at: self.last_active_at,
            visible: self.visible,
        })
    }
}

#[derive(QueryableByName)]
struct DetailRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = BigInt)]
    above: i64,
    #[diesel(sql_type = BigInt)]
    above_by_badges: i64,
    #[diesel(sql_type = Timestamptz)]
    asked_at: OffsetDateTime,
}

/// The columns of a [`DetailRow`]: a profile with both ranks, and the database's time, by which tenure is the same from every worker.
macro_rules! detail_columns {
    () => {
        concat!(
            profile_columns!(),
            ", ",
            members_above!("1", "m.conviction"),
            " AS above, ",
            members_above!("3", "m.badge_count::bigint"),
            " AS above_by_badges, now() AS asked_at"
        )
    };
}

/// A look-up by one key.
macro_rules! detail_by {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            detail_columns!(),
            " FROM (SELECT * FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND ",
            $condition,
            " LIMIT 1) AS m WHERE m.visible"
        )
    };
}

/// A look-up by many keys, in their order.
macro_rules! details_by {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            detail_columns!(),
            " FROM (SELECT m.*, rows.place FROM $rows
                 CROSS JOIN LATERAL (SELECT * FROM members AS m WHERE m.shard = $1 AND m.community = $2 AND ",
            $condition,
            " LIMIT 1) AS m WHERE m.visible) AS m
             ORDER BY m.place"
        )
    };
}

/// The most members whose nyms are compared where their keys are the same.
type Alike = Limit<100>;

columns! {
    struct IdKey { place: i32 => Integer, key: Uuid => SqlUuid }
}

columns! {
    struct UserKey { place: i32 => Integer, key: String => Text }
}

impl Community {
    /// A visible member, with both ranks and tenure.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_get(&self, by: &Lookup) -> Result<ProfileDetail, Error> {
        let long = match by {
            Lookup::Nym(nym) if nym.key().is_full() => Some(Lookup::ProfileId(self.of_long_nym(nym).await?)),
            _ => None,
        };
        let statement = match long.as_ref().unwrap_or(by) {
            Lookup::ProfileId(id) => {
                self.statement(detail_by!("m.profile_id = $3")).bind::<SqlUuid, _>(id.get())
            }
            Lookup::UserId(id) => {
                self.statement(detail_by!("m.user_id = $3")).bind::<Text, _>(id.as_str().to_owned())
            }
            Lookup::Wallet(wallet) => {
                self.statement(detail_by!("m.wallet = $3")).bind::<Text, _>(wallet.as_str().to_owned())
            }
            Lookup::Nym(nym) => self
                .statement(detail_by!(
                    "m.member = (SELECT d.member FROM directory AS d
                         WHERE d.shard = $1 AND d.community = $2 AND d.nym_key = $3
                         ORDER BY d.shard, d.community, d.nym_key, d.joined_at, d.member LIMIT 1)"
                ))
                .bind::<Text, _>(nym.key().as_str().to_owned()),
        };
        let row: DetailRow =
            self.store.optional("profile_get", statement).await?.ok_or(Error::NotFound(Missing::Profile))?;
        let policy = self.policy_of([row.profile.tier]).await?;
        self.detail(row, &policy)
    }

    /// The first of the visible members of this nym, whose key may be that of others.
    async fn of_long_nym(&self, nym: &Nym) -> Result<ProfileId, Error> {
        let statement = self
            .statement(concat!(
                "SELECT m.* FROM (SELECT d.joined_at, d.member FROM directory AS d
                     WHERE d.shard = $1 AND d.community = $2 AND d.nym_key = $3
                     ORDER BY d.shard, d.community, d.nym_key, d.joined_at, d.member LIMIT $limit) AS k",
                member_of_each_key!("k.member"),
                "ORDER BY k.joined_at, k.member"
            ))
            .bind::<Text, _>(nym.key().as_str().to_owned());
        let alike: Vec<ProfileRow> = self.store.rows("profile_get", statement, Alike::MAX).await?;
        let is_same = |row: &&ProfileRow| Nym::parse(&row.nym).is_ok_and(|of_row| of_row.is_same(nym));
        let found = alike.iter().find(is_same).ok_or(Error::NotFound(Missing::Profile))?;
        Ok(found.profile_id.into())
    }

    /// The visible members among these, each as [`Self::profile_get`] answers it, in the order of the ids.
    ///
    /// # Errors
    /// [`Error`] when the database does not answer.
    pub async fn profile_list_by_ids(&self, ids: &Keys<ProfileId>) -> Result<Page<ProfileDetail>, Error> {
        let keys = (0..).zip(ids.as_slice()).map(|(place, id)| IdKey { place, key: id.get() });
        let statement = self.statement(details_by!("m.profile_id = rows.key")).rows(keys.collect());
        self.details("profile_list_by_ids", statement, ids.as_slice().len()).await
    }

    /// The visible members among these people, each as [`Self::profile_get`] answers it, in the order of the ids.
    ///
    /// # Errors
    /// [`Error`] when the database does not answer.
    pub async fn profile_list_by_users(&self, ids: &Keys<UserId>) -> Result<Page<ProfileDetail>, Error> {
        let keys =
            (0..).zip(ids.as_slice()).map(|(place, id)| UserKey { place, key: id.as_str().to_owned() });
        let statement = self.statement(details_by!("m.user_id = rows.key")).rows(keys.collect());
        self.details("profile_list_by_users", statement, ids.as_slice().len()).await
    }

    async fn details(
        &self,
        query: &'static str,
        statement: Statement,
        keys: usize,
    ) -> Result<Page<ProfileDetail>, Error> {
        let rows: Vec<DetailRow> = self.store.by_keys(query, statement, keys).await?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let items = rows.into_iter().map(|row| self.detail(row, &policy)).collect::<Result<_, Error>>()?;
        Ok(Page { items, next: None, limit: MAX_KEYS })
    }

    fn detail(&self, row: DetailRow, policy: &Policy) -> Result<ProfileDetail, Error> {
        let tenure = self.policy.tenure.tenure(row.profile.joined_at, row.asked_at);
        Ok(ProfileDetail {
            rank: rank_below(row.above)?,
            badge_rank: rank_below(row.above_by_badges)?,
            tenure,
            profile: row.profile.profile(policy)?,
        })
    }
}

#[derive(QueryableByName)]
struct HeldRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = Nullable<Text>)]
    tier_name: Option<String>,
}

/// A profile that has not been erased, whether visible or not, as this transaction sees it.
pub(crate) async fn profile_held(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    id: ProfileId,
) -> Result<Profile, Error> {
    let statement = Statement::in_community(
        tenant,
        concat!(
            "SELECT ",
            profile_columns!(),
            ", (SELECT t.name FROM tiers AS t
                WHERE t.shard = $1 AND t.community = $2 AND t.tier = m.tier LIMIT 1) AS tier_name
             FROM members AS m
             WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.erased_at IS NULL LIMIT 1"
        ),
    )
    .bind::<SqlUuid, _>(id.get());
    let row: Option<HeldRow> = statement::optional(connection, statement).await?;
    let row = row.ok_or(Error::NotFound(Missing::Profile))?;
    let tier = row.tier_name.map(Tier::parse).transpose().map_err(Error::defect)?;
    row.profile.of_tier(tier)
}
