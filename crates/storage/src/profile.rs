//! One profile: found, hidden, shown, linked, exported, erased.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{
    Activity, CommunityId, Conviction, Cursor, Export, Keys, Lookup, MAX_KEYS, Nym, Page, PageLimit, Profile,
    ProfileDetail, ProfileId, Rank, Tier, UserId, Wallet,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::Missing;
use crate::fold::MemberChange;
use crate::ranking::micros;
use crate::statement::{self, Statement};
use crate::{Error, erasure, lock, member};

/// The columns of a [`ProfileRow`], of `profiles AS p` and `scores AS s`.
macro_rules! profile_columns {
    () => {
        "p.profile_id, p.user_id, p.wallet, p.nym, s.conviction, s.activity, p.tier, p.badge_count, p.joined_at,
         s.last_active_at, p.visible"
    };
}

/// The profile of each key in `k`, in its turn. The inner limit keeps the planner from reading whole tables instead of
/// as many rows as there are keys.
macro_rules! profile_of_each_key {
    () => {
        " CROSS JOIN LATERAL (SELECT * FROM profiles AS p
              WHERE p.community_id = $1 AND p.profile_id = k.profile_id LIMIT 1) AS p
          CROSS JOIN LATERAL (SELECT * FROM scores AS s
              WHERE s.community_id = $1 AND s.profile_id = k.profile_id LIMIT 1) AS s "
    };
}

/// The profile of each score in `s`, in its turn: a list in the order of a score has read that row already.
macro_rules! profile_of_each_score {
    () => {
        " CROSS JOIN LATERAL (SELECT * FROM profiles AS p
              WHERE p.community_id = $1 AND p.profile_id = s.profile_id LIMIT 1) AS p "
    };
}
pub(crate) use {profile_columns, profile_of_each_key, profile_of_each_score};

#[derive(QueryableByName)]
pub(crate) struct ProfileRow {
    #[diesel(sql_type = SqlUuid)]
    pub(crate) profile_id: Uuid,
    #[diesel(sql_type = Nullable<Text>)]
    user_id: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    wallet: Option<String>,
    #[diesel(sql_type = Text)]
    nym: String,
    #[diesel(sql_type = BigInt)]
    pub(crate) conviction: i64,
    #[diesel(sql_type = BigInt)]
    pub(crate) activity: i64,
    #[diesel(sql_type = Nullable<Text>)]
    tier: Option<String>,
    #[diesel(sql_type = Integer)]
    pub(crate) badge_count: i32,
    #[diesel(sql_type = Timestamptz)]
    pub(crate) joined_at: OffsetDateTime,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    last_active_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Bool)]
    visible: bool,
}

impl TryFrom<ProfileRow> for Profile {
    type Error = Error;

    fn try_from(row: ProfileRow) -> Result<Self, Error> {
        Ok(Self {
            profile_id: row.profile_id.into(),
            user_id: UserId::parse(row.user_id.unwrap_or_default()).map_err(Error::defect)?,
            wallet: row.wallet.map(Wallet::parse).transpose().map_err(Error::defect)?,
            nym: Nym::parse(&row.nym).map_err(Error::defect)?,
            conviction: Conviction::clamp(row.conviction),
            activity: Activity::clamp(row.activity),
            tier: tier_named(row.tier)?,
            badge_count: u32::try_from(row.badge_count).map_err(Error::defect)?,
            joined_at: row.joined_at,
            last_active_at: row.last_active_at,
            visible: row.visible,
        })
    }
}

pub(crate) fn tier_named(name: Option<String>) -> Result<Option<Tier>, Error> {
    name.map(Tier::parse).transpose().map_err(Error::defect)
}

pub(crate) fn rank_below(above: i64) -> Result<Rank, Error> {
    Ok(Rank::below(u64::try_from(above).map_err(Error::defect)?))
}

#[derive(QueryableByName)]
struct DetailRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = BigInt)]
    above: i64,
    #[diesel(sql_type = BigInt)]
    above_by_badges: i64,
}

/// A look-up by one key, with both ranks.
macro_rules! detail_by {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            profile_columns!(),
            ", members_above($1, 1, s.conviction) AS above, members_above($1, 2, p.badge_count) AS above_by_badges
             FROM (SELECT * FROM profiles AS p WHERE p.community_id = $1 AND ",
            $condition,
            " LIMIT 1) AS p
             CROSS JOIN LATERAL (SELECT * FROM scores AS s
                 WHERE s.community_id = $1 AND s.profile_id = p.profile_id LIMIT 1) AS s
             WHERE p.visible"
        )
    };
}

/// A look-up by many keys, with both ranks, in the order of the keys. `$2` are the keys, `k.key` is one of them.
macro_rules! details_by {
    ($keys:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            profile_columns!(),
            ", members_above($1, 1, s.conviction) AS above, members_above($1, 2, p.badge_count) AS above_by_badges
             FROM unnest(",
            $keys,
            ") WITH ORDINALITY AS k (key, number)
             CROSS JOIN LATERAL (SELECT * FROM profiles AS p WHERE p.community_id = $1 AND ",
            $condition,
            " LIMIT 1) AS p
             CROSS JOIN LATERAL (SELECT * FROM scores AS s
                 WHERE s.community_id = $1 AND s.profile_id = p.profile_id LIMIT 1) AS s
             WHERE p.visible
             ORDER BY k.number"
        )
    };
}

impl Community {
    /// A visible member, with both ranks and tenure.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_get(&self, by: &Lookup) -> Result<ProfileDetail, Error> {
        let statement = match by {
            Lookup::ProfileId(id) => {
                self.statement(detail_by!("p.profile_id = $2")).bind::<SqlUuid, _>(id.get())
            }
            Lookup::UserId(id) => {
                self.statement(detail_by!("p.user_id = $2")).bind::<Text, _>(id.as_str().to_owned())
            }
            Lookup::Wallet(wallet) => {
                self.statement(detail_by!("p.wallet = $2")).bind::<Text, _>(wallet.as_str().to_owned())
            }
            Lookup::Nym(nym) => self
                .statement(detail_by!(
                    "p.visible AND p.nym_key = $2
                     ORDER BY p.community_id, p.nym_key, p.joined_at, p.profile_id"
                ))
                .bind::<Text, _>(nym.key().as_str().to_owned()),
        };
        let row: DetailRow =
            self.store.optional("profile_get", statement).await?.ok_or(Error::NotFound(Missing::Profile))?;
        self.detail(row)
    }

    /// The visible members among these, each as [`Self::profile_get`] answers it, in the order of the ids.
    ///
    /// # Errors
    /// [`Error`] when the database does not answer.
    pub async fn profile_list_by_ids(&self, ids: &Keys<ProfileId>) -> Result<Page<ProfileDetail>, Error> {
        let keys: Vec<Uuid> = ids.as_slice().iter().map(|id| id.get()).collect();
        let count = keys.len();
        let statement =
            self.statement(details_by!("$2::uuid[]", "p.profile_id = k.key")).bind::<Array<SqlUuid>, _>(keys);
        self.details("profile_list_by_ids", statement, count).await
    }

    /// The visible members among these people, each as [`Self::profile_get`] answers it, in the order of the ids.
    ///
    /// # Errors
    /// [`Error`] when the database does not answer.
    pub async fn profile_list_by_users(&self, ids: &Keys<UserId>) -> Result<Page<ProfileDetail>, Error> {
        let keys: Vec<String> = ids.as_slice().iter().map(|id| id.as_str().to_owned()).collect();
        let count = keys.len();
        let statement =
            self.statement(details_by!("$2::text[]", "p.user_id = k.key")).bind::<Array<Text>, _>(keys);
        self.details("profile_list_by_users", statement, count).await
    }

    async fn details(
        &self,
        query: &'static str,
        statement: Statement,
        keys: usize,
    ) -> Result<Page<ProfileDetail>, Error> {
        let rows: Vec<DetailRow> = self.store.by_keys(query, statement, keys).await?;
        let items = rows.into_iter().map(|row| self.detail(row)).collect::<Result<_, Error>>()?;
        Ok(Page { items, next: None, limit: MAX_KEYS })
    }

    fn detail(&self, row: DetailRow) -> Result<ProfileDetail, Error> {
        let tenure = self.policy.tenure.tenure(row.profile.joined_at, OffsetDateTime::now_utc());
        Ok(ProfileDetail {
            rank: rank_below(row.above)?,
            badge_rank: rank_below(row.above_by_badges)?,
            tenure,
            profile: row.profile.try_into()?,
        })
    }

    /// Takes a profile out of every list and rank, and answers it. Hiding a hidden profile changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_hide(&self, id: ProfileId) -> Result<Profile, Error> {
        self.profile_set_hidden(id, true).await
    }

    /// Puts a hidden profile back, and answers it. One that has left stays out of the lists until it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_show(&self, id: ProfileId) -> Result<Profile, Error> {
        self.profile_set_hidden(id, false).await
    }

    async fn profile_set_hidden(&self, id: ProfileId, hidden: bool) -> Result<Profile, Error> {
        let community = self.id;
        self.store
            .write("profile_set_hidden", move |connection| {
                async move {
                    let held = lock::member(connection, community, id).await?;
                    let change = MemberChange { hidden: Some(hidden), ..MemberChange::default() };
                    member::change_known(connection, &held, community, vec![(id, change)]).await?;
                    profile_held(connection, community, id).await
                }
                .boxed()
            })
            .await
    }

    /// Links a wallet to a profile, or with `None` unlinks what is linked.
    ///
    /// # Errors
    /// [`Error::WalletTaken`] when another profile of this community has it, [`Error::NotFound`] without a profile.
    pub async fn profile_link_wallet(&self, id: ProfileId, wallet: Option<Wallet>) -> Result<Profile, Error> {
        let community = self.id;
        self.store
            .write("profile_link_wallet", move |connection| {
                async move {
                    lock::community(connection, community).await?;
                    let update = in_community(
                        "UPDATE profiles SET wallet = $3
                         WHERE community_id = $1 AND profile_id = $2 AND erased_at IS NULL
                             AND NOT EXISTS (SELECT FROM profiles AS other
                                 WHERE other.community_id = $1 AND other.wallet = $3 AND other.profile_id <> $2)",
                        community,
                    )
                    .bind::<SqlUuid, _>(id.get())
                    .bind::<Nullable<Text>, _>(wallet.map(String::from));
                    let linked = statement::execute(connection, update).await? > 0;
                    let profile = profile_held(connection, community, id).await?;
                    if linked { Ok(profile) } else { Err(Error::WalletTaken) }
                }
                .boxed()
            })
            .await
    }

    /// Erases a person: names, ids, wallet, roles, badges, history and scores are removed, and every count follows. What
    /// stays is a row without content, so that ids given out before are known to be gone, and a keyed hash of the person
    /// with the time, so that no event dated until now has an effect on them any more. An event dated later makes a new
    /// profile, which is seen once the person joins.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile, or it was erased before.
    pub async fn profile_erase(&self, id: ProfileId) -> Result<(), Error> {
        let (community, key) = (self.id, self.store.erasure_key().clone());
        self.store
            .write("profile_erase", move |connection| {
                async move {
                    // Whom the person awarded may be anybody.
                    let held = lock::all_members(connection, community).await?;
                    let person = profile_held(connection, community, id).await?;
                    let now = erasure::remember(connection, &key, community, &person.user_id).await?;
                    erasure::erase(connection, &held, community, id, &person.user_id, (now, None)).await
                }
                .boxed()
            })
            .await
    }

    /// Everything that is held on a person, a page of it: at most `limit` badges and as many changes of tier.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_export(
        &self,
        id: ProfileId,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Export, Error> {
        const ENDPOINT: &str = "admin.profiles.export";
        let ordering = id.to_string();
        let start = ((String::new(), i64::MIN, Uuid::nil()), 0_i64);
        let (badge_after, change_after) = self.position(ENDPOINT, &ordering, cursor, start)?;
        let statement = self
            .statement(concat!(
                "SELECT ",
                profile_columns!(),
                " FROM (SELECT $2::uuid AS profile_id) AS k",
                profile_of_each_key!(),
                " WHERE p.erased_at IS NULL"
            ))
            .bind::<SqlUuid, _>(id.get());
        let profile: ProfileRow = self
            .store
            .optional("profile_export", statement)
            .await?
            .ok_or(Error::NotFound(Missing::Profile))?;
        let (badges, more_badges) = self.badge_history(id, limit, badge_after.clone()).await?;
        let (changes, more_changes) = self.tier_history(id, limit, change_after).await?;
        let position = (
            badges.last().map_or(badge_after, |badge| {
                (badge.kind.as_str().to_owned(), micros(badge.awarded_at), badge.badge_id.get())
            }),
            changes.last().map_or(change_after, |(change_id, _)| *change_id),
        );
        Ok(Export {
            profile: profile.try_into()?,
            next: self.next(ENDPOINT, &ordering, more_badges || more_changes, Some(position))?,
            badges,
            tier_changes: changes.into_iter().map(|(_, change)| change).collect(),
        })
    }
}

/// A statement whose `$1` is the community.
pub(crate) fn in_community(sql: &'static str, community: CommunityId) -> Statement {
    Statement::new(sql).bind::<SqlUuid, _>(community.get())
}

/// A profile that has not been erased, whether visible or not.
pub(crate) async fn profile_held(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    id: ProfileId,
) -> Result<Profile, Error> {
    let statement = in_community(
        concat!(
            "SELECT ",
            profile_columns!(),
            " FROM (SELECT $2::uuid AS profile_id) AS k",
            profile_of_each_key!(),
            " WHERE p.erased_at IS NULL"
        ),
        community,
    )
    .bind::<SqlUuid, _>(id.get());
    let row: Option<ProfileRow> = statement::optional(connection, statement).await?;
    row.ok_or(Error::NotFound(Missing::Profile))?.try_into()
}
