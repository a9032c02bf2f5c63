//! Boards: the visible members in the order of a score. Who is on them, where one stands, and who stands around.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, SmallInt, Timestamptz, Uuid as SqlUuid};
use muster_domain::{
    BadgeStanding, Conviction, Cursor, Page, PageLimit, Position, Profile, ProfileId, Rank, RankedProfile,
    lists,
};

use crate::board::Board;
use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::date::{date, micros};
use crate::read::profile::{ProfileRow, member_of_each_key, members_in_order};
use crate::read::ranks::{members_above, members_at, rank_below, ranks};

/// A member's score on a board.
fn score(board: Board, row: &ProfileRow) -> i64 {
    match board {
        Board::Conviction => row.conviction,
        Board::Activity => row.activity,
        Board::Badges => i64::from(row.badge_count),
    }
}

/// A place on a board: the negated score, the joining, the member. Boards are in ascending order of it.
type Place = (i64, i64, i64);

/// What stands before every member.
const TOP: Place = (i64::MIN, i64::MIN, i64::MIN);

/// Rows of a board, highest first, and what their ranks follow from.
#[derive(QueryableByName)]
struct BoardRow {
    #[diesel(embed)]
    profile: ProfileRow,
    /// How many stand above the first row's score, and how many at it; zero where a page tells that itself.
    #[diesel(sql_type = BigInt)]
    above_first: i64,
    #[diesel(sql_type = BigInt)]
    at_first: i64,
}

/// The keys of the board `$3` behind the place `$4`, `$5`, `$6`.
macro_rules! keys_behind {
    () => {
        "SELECT k.negated_score, k.joined_at, k.member FROM board_entries AS k
         WHERE k.shard = $1 AND k.community = $2 AND k.board = $3
             AND (k.negated_score, k.joined_at, k.member) > ($4, $5, $6)"
    };
}

/// A page of the board `$3` behind a place, with the columns that its ranks follow from.
macro_rules! page_behind {
    ($above:expr, $at:expr) => {
        concat!(
            "SELECT m.*, ",
            $above,
            " AS above_first, ",
            $at,
            " AS at_first FROM ",
            members_in_order!(keys_behind!(), "k.negated_score, k.joined_at, k.member"),
            "ORDER BY k.negated_score, k.joined_at, k.member"
        )
    };
}

/// A page without ranks, and the first page with them: above it there is nobody.
const PAGE: &str = page_behind!("0::bigint", "0::bigint");
/// A page with ranks behind another. Its first key is read on its own, so that the page needs not be kept and sorted again.
const RANKED: &str = concat!(
    "WITH first AS MATERIALIZED (SELECT -k.negated_score AS score FROM (",
    keys_behind!(),
    " ORDER BY k.negated_score, k.joined_at, k.member LIMIT 1) AS k) ",
    page_behind!(
        members_above!("$3", "(SELECT f.score FROM first AS f)"),
        members_at!("$3", "(SELECT f.score FROM first AS f)")
    )
);

fn board_ranks(board: Board, rows: &[BoardRow]) -> Result<Vec<Rank>, Error> {
    let (above, at) = rows.first().map_or((0, 0), |row| (row.above_first, row.at_first));
    let scores: Vec<i64> = rows.iter().map(|row| score(board, &row.profile)).collect();
    ranks(above, at, &scores)
}

impl Community {
    /// A page of a board, with what its ranks follow from if they are asked for.
    async fn board_page(
        &self,
        (query, endpoint): (&'static str, &'static str),
        (board, is_ranked): (Board, bool),
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<(Vec<BoardRow>, Option<Cursor>), Error> {
        let (negated_score, joined, member): Place = self.position(endpoint, "", cursor, TOP)?;
        let statement = self
            .statement(if is_ranked && cursor.is_some() { RANKED } else { PAGE })
            .bind::<SmallInt, _>(board.number())
            .bind::<BigInt, _>(negated_score)
            .bind::<Timestamptz, _>(date(joined))
            .bind::<BigInt, _>(member);
        let (rows, more) = self.store.page::<BoardRow, 1000>(query, statement, limit).await?;
        let last = rows.last().map(|BoardRow { profile: row, .. }| -> Place {
            (score(board, row).saturating_neg(), micros(row.joined_at), row.member)
        });
        Ok((rows, self.next(endpoint, "", more, last)?))
    }

    async fn ranked(&self, rows: Vec<BoardRow>) -> Result<Vec<RankedProfile>, Error> {
        let ranks = board_ranks(Board::Conviction, &rows)?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let ranked = rows.into_iter().zip(ranks);
        ranked.map(|(row, rank)| Ok(RankedProfile { profile: row.profile.profile(&policy)?, rank })).collect()
    }

    /// Visible members by conviction, highest first, then earliest joined, each with its rank.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_list_ranked(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<RankedProfile>, Error> {
        let names = ("profile_list_ranked", lists::PROFILES_RANKED);
        let (rows, next) = self.board_page(names, (Board::Conviction, true), limit, cursor).await?;
        Ok(Page { items: self.ranked(rows).await?, next, limit: limit.get() })
    }

    /// Visible members by activity, highest first, then earliest joined; above zero only.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_list_active(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<Profile>, Error> {
        let names = ("profile_list_active", lists::PROFILES_ACTIVE);
        let (rows, next) = self.board_page(names, (Board::Activity, false), limit, cursor).await?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let items = rows.into_iter().map(|row| row.profile.profile(&policy)).collect::<Result<_, _>>()?;
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
        let names = ("badge_leaderboard", lists::BADGES_LEADERBOARD);
        let (rows, next) = self.board_page(names, (Board::Badges, true), limit, cursor).await?;
        let ranks = board_ranks(Board::Badges, &rows)?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let items = rows
            .into_iter()
            .zip(ranks)
            .map(|(row, badge_rank)| Ok(BadgeStanding { profile: row.profile.profile(&policy)?, badge_rank }))
            .collect::<Result<_, Error>>()?;
        Ok(Page { items, next, limit: limit.get() })
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
                     SELECT -m.conviction AS negated_score, m.joined_at, m.member FROM members AS m
                     WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.visible LIMIT 1
                 ), k AS MATERIALIZED (
                     SELECT * FROM (
                         SELECT *, row_number() OVER (ORDER BY negated_score DESC, joined_at DESC, member DESC) AS distance,
                             1 AS side
                         FROM (
                             SELECT e.negated_score, e.joined_at, e.member FROM board_entries AS e
                             WHERE e.shard = $1 AND e.community = $2 AND e.board = 1
                                 AND (e.negated_score, e.joined_at, e.member)
                                     < ((SELECT negated_score FROM t), (SELECT joined_at FROM t), (SELECT member FROM t))
                             ORDER BY e.negated_score DESC, e.joined_at DESC, e.member DESC LIMIT $limit
                         ) AS above
                         UNION ALL
                         SELECT *, row_number() OVER (ORDER BY negated_score, joined_at, member), 2
                         FROM (
                             SELECT e.negated_score, e.joined_at, e.member FROM board_entries AS e
                             WHERE e.shard = $1 AND e.community = $2 AND e.board = 1
                                 AND (e.negated_score, e.joined_at, e.member)
                                     > ((SELECT negated_score FROM t), (SELECT joined_at FROM t), (SELECT member FROM t))
                             ORDER BY e.negated_score, e.joined_at, e.member LIMIT $limit
                         ) AS below
                         UNION ALL
                         SELECT *, 0, 0 FROM t
                     ) AS nearest
                     ORDER BY distance, side LIMIT $limit
                 )
                 SELECT m.*, ",
                members_above!("1", "(SELECT -min(k.negated_score) FROM k)"),
                " AS above_first, ",
                members_at!("1", "(SELECT -min(k.negated_score) FROM k)"),
                " AS at_first FROM (SELECT * FROM k LIMIT 1000) AS k",
                member_of_each_key!("k.member"),
                "ORDER BY k.negated_score, k.joined_at, k.member"
            ))
            .bind::<SqlUuid, _>(id.get());
        let rows: Vec<BoardRow> = self.store.rows("profile_list_around", statement, limit).await?;
        if rows.is_empty() {
            return Err(Error::NotFound(Missing::Profile));
        }
        Ok(Page { items: self.ranked(rows).await?, next: None, limit: limit.get() })
    }

    /// Where a visible member stands.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn profile_position(&self, id: ProfileId) -> Result<Position, Error> {
        let statement = self
            .statement(concat!(
                "SELECT m.conviction, ",
                members_above!("1", "m.conviction"),
                " AS above,
                     (SELECT -e.negated_score FROM board_entries AS e
                      WHERE e.shard = $1 AND e.community = $2 AND e.board = 1 AND e.negated_score < -m.conviction
                      ORDER BY e.negated_score DESC LIMIT 1) AS next_above,
                     (SELECT -e.negated_score FROM board_entries AS e
                      WHERE e.shard = $1 AND e.community = $2 AND e.board = 1 AND e.negated_score > -m.conviction
                      ORDER BY e.negated_score LIMIT 1) AS next_below,
                     (SELECT coalesce(t.threshold, -9223372036854775808) FROM tiers AS t
                      WHERE t.shard = $1 AND t.community = $2 AND t.last_rank IS NOT NULL
                      ORDER BY t.last_rank DESC LIMIT 1) AS entry
                 FROM members AS m
                 WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.visible LIMIT 1"
            ))
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
            distance_above: row.next_above.map(|above| Conviction::clamp(above).above(conviction)),
            distance_below: row.next_below.map(|below| conviction.above(Conviction::clamp(below))),
            distance_to_next_tier: next_tier.map(|tier| tier.from.above(conviction)),
            next_tier: next_tier.cloned(),
            // An entry behind the largest score is one that nobody reaches.
            distance_to_entry: row.entry.map(|entry| entry.saturating_sub(row.conviction).max(0)),
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
