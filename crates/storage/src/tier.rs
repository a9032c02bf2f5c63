//! Tiers: who comes next, who moved, what it takes, and the policy itself.

use diesel::QueryableByName;
use diesel::sql_types::{
    Array, BigInt, Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid,
};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{
    CommunityId, Conviction, Cursor, Movement, Nym, Page, PageLimit, ProfileId, Progress, Tier, TierChange,
    TierPolicy, TierThreshold,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Error;
use crate::community::Community;
use crate::profile::{ProfileRow, in_community, lock, profile_columns, profile_of_each_key, tier_named};
use crate::ranking::{date, micros};
use crate::statement::{self, Statement};

/// The cut of a rank tier while there are fewer members than ranks that hold it.
pub(crate) const NO_CUT: i64 = i64::MIN;

#[derive(QueryableByName)]
struct ProgressRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = BigInt)]
    distance: i64,
    #[diesel(sql_type = SmallInt)]
    step: i16,
}

#[derive(QueryableByName)]
struct ChangeRow {
    #[diesel(sql_type = BigInt)]
    change_id: i64,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Text)]
    nym: String,
    #[diesel(sql_type = Nullable<Text>)]
    from_tier: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    to_tier: Option<String>,
    #[diesel(sql_type = Bool)]
    promotion: bool,
    #[diesel(sql_type = Timestamptz)]
    at: OffsetDateTime,
}

impl TryFrom<ChangeRow> for TierChange {
    type Error = Error;

    fn try_from(row: ChangeRow) -> Result<Self, Error> {
        Ok(Self {
            profile_id: row.profile_id.into(),
            nym: Nym::parse(&row.nym).map_err(Error::defect)?,
            from: tier_named(row.from_tier)?,
            to: tier_named(row.to_tier)?,
            movement: if row.promotion { Movement::Promotion } else { Movement::Demotion },
            at: row.at,
        })
    }
}

#[derive(QueryableByName)]
struct ThresholdRow {
    #[diesel(sql_type = BigInt)]
    cut: i64,
    #[diesel(sql_type = BigInt)]
    members: i64,
    #[diesel(sql_type = BigInt)]
    above: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    best_waiting: Option<i64>,
}

impl Community {
    /// The visible members closest below their next score tier, over the whole community: one short scan below each
    /// tier's score, merged.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn tier_list_progression(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<Progress>, Error> {
        const ENDPOINT: &str = "tiers.progression";
        let tiers = self.policy.tiers.score_tiers();
        // The list is ordered by distance, then by tier, then by id from the largest.
        let (distance, step, profile) =
            self.position(ENDPOINT, "", cursor, (0_i64, i16::MAX, Uuid::nil()))?;
        let mut lows = Vec::with_capacity(tiers.len());
        let mut steps = Vec::with_capacity(tiers.len());
        let mut untils = Vec::with_capacity(tiers.len());
        let mut after_profiles = Vec::with_capacity(tiers.len());
        let mut low = i64::MIN;
        for (index, tier) in tiers.iter().enumerate() {
            let index = i16::try_from(index).map_err(Error::defect)?;
            lows.push(low);
            untils.push(tier.from.get());
            steps.push(index);
            // At the cursor's distance, an earlier tier is done and a later one has everything before it.
            after_profiles.push(match index.cmp(&step) {
                std::cmp::Ordering::Less => Uuid::nil(),
                std::cmp::Ordering::Equal => profile,
                std::cmp::Ordering::Greater => Uuid::max(),
            });
            low = tier.from.get();
        }
        let statement = self
            .statement(concat!(
                "WITH k AS MATERIALIZED (
                     SELECT t.step, t.until - s.conviction AS distance, s.profile_id
                     FROM unnest($2, $3, $4, $5) AS t (low, until, step, after)
                     CROSS JOIN LATERAL (
                         SELECT s.profile_id, s.conviction FROM scores AS s
                         WHERE s.community_id = $1 AND s.visible AND s.conviction >= t.low
                             AND (s.conviction, s.profile_id) < (t.until - $6, t.after)
                         ORDER BY s.conviction DESC, s.profile_id DESC LIMIT $limit
                     ) AS s
                     ORDER BY distance, t.step, s.profile_id DESC LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                ", k.distance, k.step FROM k",
                profile_of_each_key!(),
                "ORDER BY k.distance, k.step, k.profile_id DESC"
            ))
            .bind::<Array<BigInt>, _>(lows)
            .bind::<Array<BigInt>, _>(untils)
            .bind::<Array<SmallInt>, _>(steps)
            .bind::<Array<SqlUuid>, _>(after_profiles)
            .bind::<BigInt, _>(distance);
        let (rows, more) = self.store.page::<ProgressRow, 1000>(statement, limit).await?;
        let last = rows.last().map(|row| (row.distance, row.step, row.profile.profile_id));
        let next = self.next(ENDPOINT, "", more, last)?;
        let items = rows
            .into_iter()
            .map(|row| {
                let tier = usize::try_from(row.step).ok().and_then(|step| tiers.get(step));
                let tier = tier.ok_or_else(|| Error::defect("a tier of progression is not in the policy"))?;
                let profile = row.profile.try_into()?;
                Ok(Progress { profile, next_tier: tier.tier.clone(), distance: row.distance })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// Promotions and demotions of visible members, newest first.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn tier_change_list(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<TierChange>, Error> {
        const ENDPOINT: &str = "tiers.changes";
        let (at, change) = self.position(ENDPOINT, "", cursor, (i64::MAX, i64::MAX))?;
        let statement = self
            .statement(
                "SELECT k.*, p.nym FROM (
                     SELECT c.change_id, c.profile_id, c.from_tier, c.to_tier, c.promotion, c.at FROM tier_changes AS c
                     WHERE c.community_id = $1 AND c.visible AND (c.at, c.change_id) < ($2, $3)
                     ORDER BY c.at DESC, c.change_id DESC LIMIT $limit
                 ) AS k
                 CROSS JOIN LATERAL (SELECT p.nym FROM profiles AS p
                     WHERE p.community_id = $1 AND p.profile_id = k.profile_id LIMIT 1) AS p
                 ORDER BY k.at DESC, k.change_id DESC",
            )
            .bind::<Timestamptz, _>(date(at))
            .bind::<BigInt, _>(change);
        let (rows, more) = self.store.page::<ChangeRow, 1000>(statement, limit).await?;
        let next = self.next(ENDPOINT, "", more, rows.last().map(|row| (micros(row.at), row.change_id)))?;
        let items = rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// What it takes to hold a rank tier.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn tier_threshold(&self) -> Result<TierThreshold, Error> {
        let statement = self.statement(
            "SELECT coalesce(entry.cut, 9223372036854775807) AS cut, coalesce(c.members, 0) AS members,
                 CASE WHEN entry.cut IS NULL THEN 0
                      WHEN entry.cut = -9223372036854775808 THEN coalesce(c.members, 0)
                      ELSE members_above($1, 1, entry.cut - 1) END AS above,
                 (SELECT s.conviction FROM scores AS s
                  WHERE s.community_id = $1 AND s.visible AND s.conviction < entry.cut
                  ORDER BY s.conviction DESC LIMIT 1) AS best_waiting
             FROM communities AS u
             LEFT JOIN community_counts AS c USING (community_id)
             LEFT JOIN LATERAL (SELECT t.cut FROM tier_policies AS t
                 WHERE t.community_id = $1 AND t.last_rank IS NOT NULL ORDER BY t.last_rank DESC LIMIT 1) AS entry ON true
             WHERE u.community_id = $1",
        );
        let row: ThresholdRow = self
            .store
            .optional(statement)
            .await?
            .ok_or_else(|| Error::defect("a known community is gone"))?;
        let entry_rank = self.policy.tiers.entry_rank();
        let score = (entry_rank.is_some() && row.cut != NO_CUT).then(|| Conviction::clamp(row.cut));
        Ok(TierThreshold {
            entry_rank,
            score,
            eligible: u64::try_from(row.above).map_err(Error::defect)?,
            waiting: u64::try_from(row.members.saturating_sub(row.above)).map_err(Error::defect)?,
            gap: score.and(row.best_waiting).map(|best| row.cut.saturating_sub(best)),
        })
    }

    /// Replaces the tiers, and gives every member the one it now holds; each that moved is recorded. The members are
    /// settled in batches of 1000, so that others' writes go on between them; until it returns some still hold a tier of
    /// the policy before.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat.
    pub async fn tier_policy_replace(&self, policy: &TierPolicy) -> Result<(), Error> {
        let community = self.id;
        let replacement = policy.clone();
        self.store
            .write(move |connection| {
                async move {
                    lock(connection, community).await?;
                    let clear = in_community("DELETE FROM tier_policies WHERE community_id = $1", community);
                    statement::execute(connection, clear).await?;
                    // Above every score: only those who hold a rank tier are to move when it is settled.
                    policy_insert(connection, &[community], &replacement, i64::MAX).await?;
                    settle(connection, vec![(community, ProfileId::new(Uuid::nil()))]).await
                }
                .boxed()
            })
            .await?;
        self.store.forget_policy(self.id).await;
        let mut after = Uuid::nil();
        loop {
            let statement = self
                .statement(
                    "SELECT profile_id FROM profiles
                     WHERE community_id = $1 AND profile_id > $2 ORDER BY profile_id LIMIT $limit",
                )
                .bind::<SqlUuid, _>(after);
            let (batch, more) = self.store.page::<IdRow, 1000>(statement, PageLimit::MAX).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.profile_id;
            self.store
                .write(move |connection| {
                    async move {
                        lock(connection, community).await?;
                        let members = batch.iter().map(|row| (community, row.profile_id.into())).collect();
                        settle(connection, members).await
                    }
                    .boxed()
                })
                .await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// A page of a profile's changes of tier with their ids, oldest first, and whether there are more.
    pub(crate) async fn tier_history(
        &self,
        profile: ProfileId,
        limit: PageLimit,
        after: i64,
    ) -> Result<(Vec<(i64, TierChange)>, bool), Error> {
        let statement = self
            .statement(
                "SELECT c.change_id, c.profile_id, c.from_tier, c.to_tier, c.promotion, c.at, p.nym
                 FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
                 WHERE c.community_id = $1 AND c.profile_id = $2 AND c.change_id > $3
                 ORDER BY c.change_id LIMIT $limit",
            )
            .bind::<SqlUuid, _>(profile.get())
            .bind::<BigInt, _>(after);
        let (rows, more) = self.store.page::<ChangeRow, 1000>(statement, limit).await?;
        let changes = rows.into_iter().map(|row| Ok((row.change_id, row.try_into()?)));
        Ok((changes.collect::<Result<_, Error>>()?, more))
    }
}

/// Gives the profiles, and those whose ranks moved with theirs, the tier they now hold. Called at the end of a
/// transaction that holds each community's lock.
pub(crate) async fn settle(
    connection: &mut AsyncPgConnection,
    changed: Vec<(CommunityId, ProfileId)>,
) -> Result<(), Error> {
    let (communities, profiles): (Vec<Uuid>, Vec<Uuid>) =
        changed.into_iter().map(|(community, profile)| (community.get(), profile.get())).unzip();
    let settle = Statement::new(
        "SELECT tiers_settle(community_id, array_agg(profile_id))
         FROM unnest($1, $2) AS changed (community_id, profile_id) GROUP BY community_id",
    )
    .bind::<Array<SqlUuid>, _>(communities)
    .bind::<Array<SqlUuid>, _>(profiles);
    statement::execute(connection, settle).await?;
    Ok(())
}

/// Gives communities that have none their tier policy; `cut` is that of its rank tiers until they are settled.
pub(crate) async fn policy_insert(
    connection: &mut AsyncPgConnection,
    communities: &[CommunityId],
    policy: &TierPolicy,
    cut: i64,
) -> Result<(), Error> {
    let mut names = Vec::new();
    let mut places = Vec::new();
    for (place, tier) in policy.highest_first().enumerate() {
        names.push(tier.as_str().to_owned());
        places.push(i16::try_from(place).map_err(Error::defect)?);
    }
    let score = |name: &String| {
        policy
            .score_tiers()
            .iter()
            .find(|tier| tier.tier.as_str() == name.as_str())
            .map(|tier| tier.from.get())
    };
    let rank = |name: &String| -> Result<Option<i32>, Error> {
        let tier = policy.rank_tiers().iter().find(|tier| tier.tier.as_str() == name.as_str());
        tier.map(|tier| i32::try_from(tier.last.get()).map_err(Error::defect)).transpose()
    };
    let scores: Vec<Option<i64>> = names.iter().map(score).collect();
    let ranks = names.iter().map(rank).collect::<Result<Vec<_>, _>>()?;
    let insert = Statement::new(
        "INSERT INTO tier_policies (community_id, tier, place, from_conviction, last_rank, cut)
         SELECT c.community_id, t.tier, t.place, t.from_conviction, t.last_rank,
             CASE WHEN t.last_rank IS NOT NULL THEN $6 END
         FROM unnest($1) AS c (community_id)
         CROSS JOIN unnest($2, $3, $4, $5) AS t (tier, place, from_conviction, last_rank)",
    )
    .bind::<Array<SqlUuid>, _>(communities.iter().map(|community| community.get()).collect::<Vec<_>>())
    .bind::<Array<Text>, _>(names)
    .bind::<Array<SmallInt>, _>(places)
    .bind::<Array<Nullable<BigInt>>, _>(scores)
    .bind::<Array<Nullable<Integer>>, _>(ranks)
    .bind::<BigInt, _>(cut);
    statement::execute(connection, insert).await?;
    Ok(())
}

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
}

/// The name of a tier as its count is kept: that of no tier is empty.
pub(crate) fn counted_tier(name: &str) -> Result<Option<Tier>, Error> {
    tier_named((!name.is_empty()).then(|| name.to_owned()))
}
