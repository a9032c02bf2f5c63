//! Tiers as they are read: who comes next, who moved, and what it takes.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Nullable, SmallInt, Text, Timestamptz};
use muster_domain::{
    Conviction, Cursor, Movement, Nym, Page, PageLimit, Progress, TierChange, TierThreshold, lists,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::Error;
use crate::policy::Policy;
use crate::read::date::{date, micros};
use crate::read::profile::{ProfileRow, members_in_order};
use crate::read::ranks::members_above;
use crate::schema::{members, tier_changes};
use crate::sql::columns::columns;

#[derive(QueryableByName)]
struct ProgressRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = BigInt)]
    distance: i64,
    #[diesel(sql_type = SmallInt)]
    step: i16,
}

columns! {
    /// A stretch of the board below a score tier: negated scores up to `last`, from behind the place on.
    struct Stretch {
        step: i16 => SmallInt,
        until: i64 => BigInt,
        negated_score: i64 => BigInt,
        joined_at: OffsetDateTime => Timestamptz,
        member: i64 => BigInt,
        last: i64 => BigInt,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = tier_changes)]
struct ChangeRow {
    change: i64,
    from_tier: Option<i16>,
    to_tier: Option<i16>,
    promotion: bool,
    at: OffsetDateTime,
    #[diesel(embed)]
    who: WhoRow,
}

#[derive(QueryableByName)]
#[diesel(table_name = members)]
struct WhoRow {
    profile_id: Uuid,
    #[diesel(sql_type = Text)]
    nym: String,
}

impl ChangeRow {
    fn change(self, policy: &Policy) -> Result<TierChange, Error> {
        Ok(TierChange {
            profile_id: self.who.profile_id.into(),
            nym: Nym::parse(&self.who.nym).map_err(Error::defect)?,
            from: policy.name(self.from_tier),
            to: policy.name(self.to_tier),
            movement: if self.promotion { Movement::Promotion } else { Movement::Demotion },
            at: self.at,
        })
    }
}

#[derive(QueryableByName)]
struct ThresholdRow {
    #[diesel(sql_type = BigInt)]
    members: i64,
    /// Whether there is a rank tier; without a threshold every member holds it.
    #[diesel(sql_type = Bool)]
    is_ranked: bool,
    #[diesel(sql_type = Nullable<BigInt>)]
    threshold: Option<i64>,
    #[diesel(sql_type = BigInt)]
    at_least: i64,
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
        const ENDPOINT: &str = lists::TIERS_PROGRESSION;
        let tiers = self.policy.tiers.score_tiers();
        // The list is ordered by distance, then by tier, then by the earliest joined.
        let start = (0_i64, i16::MAX, (i64::MAX, i64::MAX));
        let (distance, step, place) = self.position(ENDPOINT, "", cursor, start)?;
        let mut stretches = Vec::with_capacity(tiers.len());
        let mut last = i64::MAX;
        for (index, tier) in tiers.iter().enumerate() {
            let index = i16::try_from(index).map_err(Error::defect)?;
            let until = tier.from.get();
            // At the cursor's distance, an earlier tier is done and a later one has everything before it.
            let (joined, member) = match index.cmp(&step) {
                std::cmp::Ordering::Less => (i64::MAX, i64::MAX),
                std::cmp::Ordering::Equal => place,
                std::cmp::Ordering::Greater => (i64::MIN, i64::MIN),
            };
            let negated_score = distance.saturating_sub(until);
            stretches.push(Stretch {
                step: index,
                until,
                negated_score,
                joined_at: date(joined),
                member,
                last,
            });
            last = until.saturating_neg();
        }
        let statement = self
            .statement(concat!(
                "SELECT m.*, k.distance, k.step FROM ",
                members_in_order!(
                    "SELECT k.until + e.negated_score AS distance, k.step, e.joined_at, e.member
                     FROM (SELECT rows.* FROM $rows) AS k
                     CROSS JOIN LATERAL (
                         SELECT e.negated_score, e.joined_at, e.member FROM board_entries AS e
                         WHERE e.shard = $1 AND e.community = $2 AND e.board = 1 AND e.negated_score <= k.last
                             AND (e.negated_score, e.joined_at, e.member) > (k.negated_score, k.joined_at, k.member)
                         ORDER BY e.negated_score, e.joined_at, e.member LIMIT $limit
                     ) AS e",
                    "distance, step, joined_at, member"
                ),
                "ORDER BY k.distance, k.step, k.joined_at, k.member"
            ))
            .rows(stretches);
        let (rows, more) =
            self.store.page::<ProgressRow, 1000>("tier_list_progression", statement, limit).await?;
        let last = rows.last().map(|ProgressRow { profile, distance, step }| {
            (*distance, *step, (micros(profile.joined_at), profile.member))
        });
        let next = self.next(ENDPOINT, "", more, last)?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let items = rows
            .into_iter()
            .map(|row| {
                let tier = usize::try_from(row.step).ok().and_then(|step| tiers.get(step));
                let tier = tier.ok_or_else(|| Error::defect("a tier of progression is not in the policy"))?;
                let profile = row.profile.profile(&policy)?;
                Ok(Progress {
                    profile,
                    next_tier: tier.tier.clone(),
                    distance: Conviction::clamp(row.distance).get(),
                })
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
        const ENDPOINT: &str = lists::TIERS_CHANGES;
        let (at, change) = self.position(ENDPOINT, "", cursor, (i64::MAX, i64::MAX))?;
        let statement = self
            .statement(concat!(
                "SELECT k.change, k.from_tier, k.to_tier, k.promotion, k.at, m.profile_id, m.nym FROM ",
                members_in_order!(
                    "SELECT k.change, k.member, k.from_tier, k.to_tier, k.promotion, k.at FROM tier_changes AS k
                     WHERE k.shard = $1 AND k.community = $2 AND k.visible AND (k.at, k.change) < ($3, $4)",
                    "k.at DESC, k.change DESC"
                ),
                "ORDER BY k.at DESC, k.change DESC"
            ))
            .bind::<Timestamptz, _>(date(at))
            .bind::<BigInt, _>(change);
        let (rows, more) = self.store.page::<ChangeRow, 1000>("tier_change_list", statement, limit).await?;
        let next = self.next(ENDPOINT, "", more, rows.last().map(|row| (micros(row.at), row.change)))?;
        let policy = self.policy_of(rows.iter().flat_map(|row| [row.from_tier, row.to_tier])).await?;
        let items = rows.into_iter().map(|row| row.change(&policy)).collect::<Result<_, _>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// What it takes to hold a rank tier.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn tier_threshold(&self) -> Result<TierThreshold, Error> {
        let statement = self.statement(concat!(
            "SELECT coalesce(c.members, 0) AS members, entry.last_rank IS NOT NULL AS is_ranked, entry.threshold, ",
            members_above!("1", "entry.threshold - 1"),
            " AS at_least,
                 (SELECT -e.negated_score FROM board_entries AS e
                  WHERE e.shard = $1 AND e.community = $2 AND e.board = 1 AND e.negated_score > -entry.threshold
                  ORDER BY e.negated_score LIMIT 1) AS best_waiting
             FROM (VALUES (true)) AS always
             LEFT JOIN LATERAL (SELECT c.members FROM community_totals AS c
                 WHERE c.shard = $1 AND c.community = $2 LIMIT 1) AS c ON true
             LEFT JOIN LATERAL (SELECT t.last_rank, t.threshold FROM tiers AS t
                 WHERE t.shard = $1 AND t.community = $2 AND t.last_rank IS NOT NULL
                 ORDER BY t.last_rank DESC LIMIT 1) AS entry ON true"
        ));
        let row: ThresholdRow = self
            .store
            .optional("tier_threshold", statement)
            .await?
            .ok_or_else(|| Error::defect("one row was asked for, and none came"))?;
        let entry_rank = self.policy.tiers.entry_rank();
        let threshold = row.threshold.filter(|_| entry_rank.is_some());
        let eligible = if row.is_ranked && row.threshold.is_none() { row.members } else { row.at_least };
        Ok(TierThreshold {
            entry_rank,
            score: threshold.map(Conviction::clamp),
            eligible: u64::try_from(eligible).map_err(Error::defect)?,
            waiting: u64::try_from(row.members.saturating_sub(eligible)).map_err(Error::defect)?,
            gap: threshold.zip(row.best_waiting).map(|(threshold, best)| threshold.saturating_sub(best)),
        })
    }

    /// A page of a member's changes of tier with their numbers, oldest first, and whether there are more.
    pub(crate) async fn tier_history(
        &self,
        member: i64,
        limit: PageLimit,
        after: i64,
    ) -> Result<(Vec<(i64, TierChange)>, bool), Error> {
        let statement = self
            .statement(
                "SELECT c.change, c.from_tier, c.to_tier, c.promotion, c.at, m.profile_id,
                     coalesce(m.nick, m.username, left(m.user_id, 32), '') AS nym
                 FROM (SELECT m.profile_id, m.nick, m.username, m.user_id FROM members AS m
                     WHERE m.shard = $1 AND m.community = $2 AND m.member = $3 LIMIT 1) AS m
                 CROSS JOIN LATERAL (SELECT c.change, c.from_tier, c.to_tier, c.promotion, c.at FROM tier_changes AS c
                     WHERE c.shard = $1 AND c.community = $2 AND c.member = $3 AND c.change > $4
                     ORDER BY c.change LIMIT $limit) AS c
                 ORDER BY c.change",
            )
            .bind::<BigInt, _>(member)
            .bind::<BigInt, _>(after);
        let (rows, more) = self.store.page::<ChangeRow, 1000>("tier_history", statement, limit).await?;
        let policy = self.policy_of(rows.iter().flat_map(|row| [row.from_tier, row.to_tier])).await?;
        let changes = rows.into_iter().map(|row| Ok((row.change, row.change(&policy)?)));
        Ok((changes.collect::<Result<_, Error>>()?, more))
    }
}
