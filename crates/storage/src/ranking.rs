//! Who stands where: by conviction, by activity, by badges, and around one member.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Timestamptz, Uuid as SqlUuid};
use muster_domain::{
    BadgeStanding, Conviction, Cursor, Page, PageLimit, Position, Profile, ProfileId, Rank, RankedProfile,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Error;
use crate::community::Community;
use crate::error::Missing;
use crate::profile::{ProfileRow, profile_columns, profile_of_each_key, profile_of_each_score, rank_below};

/// A row of a ranked page. Ranks within the page follow from the members above and at the first row's score: whoever
/// comes next stands below both.
#[derive(QueryableByName)]
struct RankedRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = BigInt)]
    above_first: i64,
    #[diesel(sql_type = BigInt)]
    at_first: i64,
}

/// The competition rank of each row of a page in the order of its score.
fn ranks(rows: &[RankedRow], score: impl Fn(&ProfileRow) -> i64) -> Result<Vec<Rank>, Error> {
    let mut ranks: Vec<Rank> = Vec::with_capacity(rows.len());
    let Some(first) = rows.first() else { return Ok(ranks) };
    let top = score(&first.profile);
    // Rows of the page below the first's score, so far.
    let mut below = 0_i64;
    let mut previous = top;
    let mut rank = rank_below(first.above_first)?;
    for row in rows {
        let here = score(&row.profile);
        if here != previous {
            rank = rank_below(first.above_first.saturating_add(first.at_first).saturating_add(below))?;
            previous = here;
        }
        if here != top {
            below = below.saturating_add(1);
        }
        ranks.push(rank);
    }
    Ok(ranks)
}

fn ranked(rows: Vec<RankedRow>) -> Result<Vec<RankedProfile>, Error> {
    let ranks = ranks(&rows, |row| row.conviction)?;
    rows.into_iter()
        .zip(ranks)
        .map(|(row, rank)| Ok(RankedProfile { profile: row.profile.try_into()?, rank }))
        .collect()
}

impl Community {
    /// Visible members by conviction, highest first, each with its rank.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_list_ranked(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<RankedProfile>, Error> {
        const ENDPOINT: &str = "profiles.ranked";
        let (conviction, profile) = self.position(ENDPOINT, "", cursor, (i64::MAX, Uuid::max()))?;
        let statement = self
            .statement(concat!(
                "WITH s AS MATERIALIZED (
                     SELECT s.profile_id, s.conviction, s.activity, s.last_active_at FROM scores AS s
                     WHERE s.community_id = $1 AND s.visible AND (s.conviction, s.profile_id) < ($2, $3)
                     ORDER BY s.conviction DESC, s.profile_id DESC LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                ", (SELECT members_above($1, 1, max(conviction)) FROM s) AS above_first,
                 (SELECT members_at($1, 1, max(conviction)) FROM s) AS at_first
                 FROM s",
                profile_of_each_score!(),
                "ORDER BY s.conviction DESC, s.profile_id DESC"
            ))
            .bind::<BigInt, _>(conviction)
            .bind::<SqlUuid, _>(profile);
        let (rows, more) =
            self.store.page::<RankedRow, 1000>("profile_list_ranked", statement, limit).await?;
        let last = rows.last().map(|row| (row.profile.conviction, row.profile.profile_id));
        Ok(Page { next: self.next(ENDPOINT, "", more, last)?, items: ranked(rows)?, limit: limit.get() })
    }

    /// The members ranked around one, itself among them: as many above as below where there are as many.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such visible member.
    pub async fn profile_list_around(
        &self,
        id: ProfileId,
        limit: PageLimit,
    ) -> Result<Page<RankedProfile>, Error> {
        let statement = self
            .statement(concat!(
                "WITH t AS MATERIALIZED (
                     SELECT s.profile_id, s.conviction FROM scores AS s
                     WHERE s.community_id = $1 AND s.profile_id = $2 AND s.visible
                 ), k AS MATERIALIZED (
                     SELECT * FROM (
                         SELECT *, row_number() OVER (ORDER BY conviction, profile_id) AS distance, 1 AS side FROM (
                             SELECT s.profile_id, s.conviction FROM scores AS s
                             WHERE s.community_id = $1 AND s.visible
                                 AND (s.conviction, s.profile_id)
                                     > ((SELECT conviction FROM t), (SELECT profile_id FROM t))
                             ORDER BY s.conviction, s.profile_id LIMIT $limit
                         ) AS above
                         UNION ALL
                         SELECT *, row_number() OVER (ORDER BY conviction DESC, profile_id DESC), 2 FROM (
                             SELECT s.profile_id, s.conviction FROM scores AS s
                             WHERE s.community_id = $1 AND s.visible
                                 AND (s.conviction, s.profile_id)
                                     < ((SELECT conviction FROM t), (SELECT profile_id FROM t))
                             ORDER BY s.conviction DESC, s.profile_id DESC LIMIT $limit
                         ) AS below
                         UNION ALL
                         SELECT *, 0, 0 FROM t
                     ) AS nearest
                     ORDER BY distance, side LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                ", (SELECT members_above($1, 1, max(conviction)) FROM k) AS above_first,
                 (SELECT members_at($1, 1, max(conviction)) FROM k) AS at_first
                 FROM k",
                profile_of_each_key!(),
                "ORDER BY k.conviction DESC, k.profile_id DESC"
            ))
            .bind::<SqlUuid, _>(id.get());
        let rows: Vec<RankedRow> = self.store.rows("profile_list_around", statement, limit).await?;
        if rows.is_empty() {
            return Err(Error::NotFound(Missing::Profile));
        }
        Ok(Page { items: ranked(rows)?, next: None, limit: limit.get() })
    }

    /// Visible members by activity, highest first, above zero only.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_list_active(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<Profile>, Error> {
        const ENDPOINT: &str = "profiles.active";
        let (activity, profile) = self.position(ENDPOINT, "", cursor, (i64::MAX, Uuid::max()))?;
        let statement = self
            .statement(concat!(
                "WITH s AS MATERIALIZED (
                     SELECT s.profile_id, s.conviction, s.activity, s.last_active_at FROM scores AS s
                     WHERE s.community_id = $1 AND s.visible AND s.activity > 0
                         AND (s.activity, s.profile_id) < ($2, $3)
                     ORDER BY s.activity DESC, s.profile_id DESC LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                " FROM s",
                profile_of_each_score!(),
                "ORDER BY s.activity DESC, s.profile_id DESC"
            ))
            .bind::<BigInt, _>(activity)
            .bind::<SqlUuid, _>(profile);
        let (rows, more) =
            self.store.page::<ProfileRow, 1000>("profile_list_active", statement, limit).await?;
        let last = rows.last().map(|row| (row.activity, row.profile_id));
        let next = self.next(ENDPOINT, "", more, last)?;
        let items = rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// Visible members by number of unrevoked badges, then earliest joined, each with its rank by badges.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn badge_leaderboard(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<BadgeStanding>, Error> {
        const ENDPOINT: &str = "badges.leaderboard";
        let start = (i32::MIN, i64::MIN, Uuid::nil());
        let (badges, joined, profile) = self.position(ENDPOINT, "", cursor, start)?;
        let statement = self
            .statement(concat!(
                "WITH k AS MATERIALIZED (
                     SELECT p.profile_id, p.badge_count, p.joined_at FROM profiles AS p
                     WHERE p.community_id = $1 AND p.visible
                         AND ((-p.badge_count), p.joined_at, p.profile_id) > ($2, $3, $4)
                     ORDER BY (-p.badge_count), p.joined_at, p.profile_id LIMIT $limit
                 )
                 SELECT ",
                profile_columns!(),
                ", (SELECT members_above($1, 2, max(badge_count)) FROM k) AS above_first,
                 (SELECT members_at($1, 2, max(badge_count)) FROM k) AS at_first
                 FROM k",
                profile_of_each_key!(),
                "ORDER BY (-k.badge_count), k.joined_at, k.profile_id"
            ))
            .bind::<diesel::sql_types::Integer, _>(badges)
            .bind::<Timestamptz, _>(date(joined))
            .bind::<SqlUuid, _>(profile);
        let (rows, more) = self.store.page::<RankedRow, 1000>("badge_leaderboard", statement, limit).await?;
        let last = rows.last().map(|row| &row.profile);
        let last = last.map(|row| (row.badge_count.saturating_neg(), micros(row.joined_at), row.profile_id));
        let next = self.next(ENDPOINT, "", more, last)?;
        let ranks = ranks(&rows, |row| i64::from(row.badge_count))?;
        let items = rows
            .into_iter()
            .zip(ranks)
            .map(|(row, badge_rank)| Ok(BadgeStanding { profile: row.profile.try_into()?, badge_rank }))
            .collect::<Result<_, Error>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// Where a visible member stands.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_position(&self, id: ProfileId) -> Result<Position, Error> {
        let statement = self
            .statement(
                "SELECT s.conviction, members_above($1, 1, s.conviction) AS above,
                     (SELECT n.conviction FROM scores AS n
                      WHERE n.community_id = $1 AND n.visible AND n.conviction > s.conviction
                      ORDER BY n.conviction LIMIT 1) AS next_above,
                     (SELECT n.conviction FROM scores AS n
                      WHERE n.community_id = $1 AND n.visible AND n.conviction < s.conviction
                      ORDER BY n.conviction DESC LIMIT 1) AS next_below,
                     (SELECT t.cut FROM tier_policies AS t
                      WHERE t.community_id = $1 AND t.last_rank IS NOT NULL
                      ORDER BY t.last_rank DESC LIMIT 1) AS entry
                 FROM scores AS s
                 WHERE s.community_id = $1 AND s.profile_id = $2 AND s.visible",
            )
            .bind::<SqlUuid, _>(id.get());
        let row: PositionRow = self
            .store
            .optional("profile_position", statement)
            .await?
            .ok_or(Error::NotFound(Missing::Profile))?;
        let conviction = Conviction::clamp(row.conviction);
        let rank = rank_below(row.above)?;
        let next_tier = self.policy.tiers.next_score_tier(conviction);
        Ok(Position {
            profile_id: id,
            rank,
            conviction,
            distance_above: row.next_above.map(|above| above.saturating_sub(row.conviction)),
            distance_below: row.next_below.map(|below| row.conviction.saturating_sub(below)),
            distance_to_next_tier: next_tier.map(|tier| tier.from.above(conviction)),
            next_tier: next_tier.cloned(),
            distance_to_entry: row.entry.map(|cut| cut.saturating_sub(row.conviction).max(0)),
            at_risk: self.policy.tiers.is_at_risk(rank),
        })
    }
}

#[derive(QueryableByName)]
struct PositionRow {
    #[diesel(sql_type = BigInt)]
    conviction: i64,
    #[diesel(sql_type = BigInt)]
    above: i64,
    #[diesel(sql_type = Nullable<BigInt>)]
    next_above: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    next_below: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    entry: Option<i64>,
}

/// A date as a cursor holds it: microseconds since 1970, which is PostgreSQL's own precision.
pub(crate) fn micros(date: OffsetDateTime) -> i64 {
    i64::try_from(date.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}

/// The date back again; what lies outside the calendar becomes its nearest end.
pub(crate) fn date(micros: i64) -> OffsetDateTime {
    let end = if micros < 0 { EARLIEST } else { LATEST };
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros).saturating_mul(1000))
        .unwrap_or(end)
        .clamp(EARLIEST, LATEST)
}

const EARLIEST: OffsetDateTime = time::macros::datetime!(-4000-01-01 00:00 UTC);
const LATEST: OffsetDateTime = time::macros::datetime!(9999-12-31 23:59:59.999999 UTC);
