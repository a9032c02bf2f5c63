//! Tiers: who comes next, who moved, what it takes, and the policy itself.

use std::collections::{BTreeSet, HashMap};

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
use crate::fold::MemberChange;
use crate::profile::{ProfileRow, in_community, profile_columns, profile_of_each_key, tier_named};
use crate::ranking::{date, micros};
use crate::statement::{self, Statement};
use crate::{lock, member};

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
        let (rows, more) =
            self.store.page::<ProgressRow, 1000>("tier_list_progression", statement, limit).await?;
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
        let (rows, more) = self.store.page::<ChangeRow, 1000>("tier_change_list", statement, limit).await?;
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
            .optional("tier_threshold", statement)
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
            .write("tier_policy_replace", move |connection| {
                async move {
                    lock::community(connection, community).await?;
                    for sql in [
                        "DELETE FROM tier_policies WHERE community_id = $1",
                        "UPDATE communities SET cuts_moved = cuts_moved + 1 WHERE community_id = $1",
                    ] {
                        statement::execute(connection, in_community(sql, community)).await?;
                    }
                    policy_insert(connection, &[community], &replacement, i64::MAX).await?;
                    // Who stands where now is settled below, with every other member.
                    cuts_settle(connection, &BTreeSet::from([community])).await?;
                    Ok(())
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
            let (batch, more) =
                self.store.page::<IdRow, 1000>("tier_policy_replace", statement, PageLimit::MAX).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.profile_id;
            self.store
                .write("tier_policy_replace", move |connection| {
                    async move {
                        let held = lock::all_members(connection, community).await?;
                        let recheck = || MemberChange { recheck_tier: true, ..MemberChange::default() };
                        let members = batch.iter().map(|row| (row.profile_id.into(), recheck())).collect();
                        member::change_known(connection, &held, community, members).await
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
        let (rows, more) = self.store.page::<ChangeRow, 1000>("tier_history", statement, limit).await?;
        let changes = rows.into_iter().map(|row| Ok((row.change_id, row.try_into()?)));
        Ok((changes.collect::<Result<_, Error>>()?, more))
    }
}

/// A community's tiers as they are settled: with the rank tiers' cuts, the lowest conviction that holds each now.
pub(crate) struct Settled(Vec<SettledTier>);

impl Settled {
    /// The tier that a visible member of this conviction holds.
    pub(crate) fn tier(&self, conviction: i64) -> Option<&str> {
        let by_rank = self.0.iter().filter(|tier| tier.cut.is_some_and(|cut| cut <= conviction));
        let by_score =
            self.0.iter().filter(|tier| tier.from_conviction.is_some_and(|from| from <= conviction));
        by_rank
            .min_by_key(|tier| tier.last_rank)
            .or_else(|| by_score.max_by_key(|tier| tier.from_conviction))
            .map(|tier| tier.tier.as_str())
    }

    /// How high a tier is, 0 the highest. No tier, and tiers of a policy since replaced, come last.
    pub(crate) fn place(&self, tier: Option<&str>) -> i16 {
        let found = self.0.iter().find(|known| Some(known.tier.as_str()) == tier);
        found.map_or(i16::MAX, |tier| tier.place)
    }

    /// Whether a member of this conviction can matter to a rank tier's cut: one who stands at a cut or above it, or right
    /// below, where a tie too large to share the tier may be.
    pub(crate) fn is_at_an_edge(&self, conviction: i64) -> bool {
        let lowest = self.0.iter().filter_map(|tier| tier.cut).min();
        lowest.is_some_and(|cut| conviction >= cut.saturating_sub(1))
    }
}

/// The tiers of these communities as they are settled now.
pub(crate) async fn policies(
    connection: &mut AsyncPgConnection,
    communities: &BTreeSet<CommunityId>,
) -> Result<HashMap<CommunityId, Settled>, Error> {
    let keys: Vec<Uuid> = communities.iter().map(|community| community.get()).collect();
    let most = keys.len().saturating_mul(2 * TierPolicy::MAX_TIERS);
    let find = Statement::new(
        "SELECT p.community_id, p.tier, p.place, p.from_conviction, p.last_rank, p.cut
         FROM unnest($1) AS c (community_id) JOIN tier_policies AS p USING (community_id)",
    )
    .bind::<Array<SqlUuid>, _>(keys);
    let rows: Vec<SettledTier> = statement::by_keys(connection, find, most).await?;
    let mut policies: HashMap<CommunityId, Settled> = HashMap::new();
    for row in rows {
        policies.entry(row.community_id.into()).or_insert_with(|| Settled(Vec::new())).0.push(row);
    }
    Ok(policies)
}

/// Moves the rank tiers' cuts to where they now are; answers who stands between an old cut and its new one: at most as many as
/// hold the tier, a thousand equals among them, and those whose scores this transaction changed.
pub(crate) async fn cuts_settle(
    connection: &mut AsyncPgConnection,
    communities: &BTreeSet<CommunityId>,
) -> Result<Vec<(CommunityId, ProfileId)>, Error> {
    let keys: Vec<Uuid> = communities.iter().map(|community| community.get()).collect();
    let most = keys.len();
    let settle = Statement::new(
        "SELECT c.community_id, tier_cuts_settle(c.community_id) AS crossed FROM unnest($1) AS c (community_id)",
    )
    .bind::<Array<SqlUuid>, _>(keys);
    let rows: Vec<CrossedRow> = statement::by_keys(connection, settle, most).await?;
    let crossed = rows.into_iter().flat_map(|row| {
        let community = row.community_id.into();
        row.crossed.into_iter().map(move |profile| (community, profile.into()))
    });
    Ok(crossed.collect())
}

/// A change from one tier to another that is to be recorded.
pub(crate) struct TierMove {
    pub(crate) community: CommunityId,
    pub(crate) profile: ProfileId,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) promotion: bool,
}

/// Records changes of visible members; answers when each promotion was recorded.
pub(crate) async fn record(
    connection: &mut AsyncPgConnection,
    moves: &[TierMove],
) -> Result<Vec<(CommunityId, OffsetDateTime)>, Error> {
    if moves.is_empty() {
        return Ok(Vec::new());
    }
    // The transaction's own time may lie before that of one whose lock it waited for.
    let insert = Statement::new(
        "WITH settled AS MATERIALIZED (SELECT clock_timestamp() AS at), recorded AS (
             INSERT INTO tier_changes (community_id, profile_id, from_tier, to_tier, promotion, at)
             SELECT m.community_id, m.profile_id, m.from_tier, m.to_tier, m.promotion, settled.at
             FROM unnest($1, $2, $3, $4, $5) AS m (community_id, profile_id, from_tier, to_tier, promotion), settled
             RETURNING community_id, promotion, at
         )
         SELECT community_id, at FROM recorded WHERE promotion",
    )
    .bind::<Array<SqlUuid>, _>(moves.iter().map(|m| m.community.get()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(moves.iter().map(|m| m.profile.get()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(moves.iter().map(|m| m.from.clone()).collect::<Vec<_>>())
    .bind::<Array<Nullable<Text>>, _>(moves.iter().map(|m| m.to.clone()).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(moves.iter().map(|m| m.promotion).collect::<Vec<_>>());
    let rows: Vec<PromotionRow> = statement::by_keys(connection, insert, moves.len()).await?;
    Ok(rows.into_iter().map(|row| (row.community_id.into(), row.at)).collect())
}

/// Shows the recorded changes of members that came into sight (true), and hides those of members that went out of it.
pub(crate) async fn turn(
    connection: &mut AsyncPgConnection,
    turned: &[(CommunityId, ProfileId, bool)],
) -> Result<(), Error> {
    let turn = Statement::new(
        "WITH turned AS (
             UPDATE tier_changes AS c SET visible = t.visible
             FROM unnest($1, $2, $3) AS t (community_id, profile_id, visible)
                 CROSS JOIN LATERAL (SELECT r.ctid FROM tier_changes AS r
                     WHERE r.community_id = t.community_id AND r.profile_id = t.profile_id OFFSET 0) AS row
             WHERE c.ctid = row.ctid
             RETURNING c.community_id, c.at, c.promotion, c.visible
         )
         INSERT INTO community_days AS d (community_id, day, promoted)
         SELECT community_id, utc_day(at), sum(CASE WHEN visible THEN 1 ELSE -1 END) FROM turned WHERE promotion
         GROUP BY 1, 2 ORDER BY 1, 2
         ON CONFLICT (community_id, day) DO UPDATE SET promoted = d.promoted + excluded.promoted",
    )
    .bind::<Array<SqlUuid>, _>(turned.iter().map(|turn| turn.0.get()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(turned.iter().map(|turn| turn.1.get()).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(turned.iter().map(|turn| turn.2).collect::<Vec<_>>());
    statement::execute(connection, turn).await?;
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
struct SettledTier {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Text)]
    tier: String,
    #[diesel(sql_type = SmallInt)]
    place: i16,
    #[diesel(sql_type = Nullable<BigInt>)]
    from_conviction: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    last_rank: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    cut: Option<i64>,
}

#[derive(QueryableByName)]
struct CrossedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Array<SqlUuid>)]
    crossed: Vec<Uuid>,
}

#[derive(QueryableByName)]
struct PromotionRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Timestamptz)]
    at: OffsetDateTime,
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
