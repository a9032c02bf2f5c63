//! Tiers as members hold them: a community's policy, the thresholds of its rank tiers, and the changes of
//! members' tiers.
//!
//! A rank tier is held from the conviction of its last rank's member up, its threshold, so that equals share
//! it. A tie of more than a thousand members across that edge (a community in which hardly anyone has scored)
//! shares no rank tier: without that bound one event could move the tier of every member.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, SmallInt, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use muster_domain::{Limit, Shard, Tier, TierPolicy};
use time::OffsetDateTime;

use crate::community::MAX_TIERS;
use crate::error::Error;
use crate::schema::{board_entries, tier_changes, tiers};
use crate::sql::clock;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;
use crate::write::numbers::{self, Sequence};

/// The most equals that share a rank tier whose last rank is among them, unless the tier itself has more
/// ranks.
const MOST_EQUALS: i64 = 1000;

/// One change in this many triggers the removal of its member's old changes.
const FORGOTTEN_EVERY: u64 = 16;
/// The most old changes of a member that are forgotten at once.
const MOST_FORGOTTEN: usize = 1000;
/// The most changes of a member that are kept, however young: who leaves or is erased has all of them written at once.
const MOST_KEPT: i64 = 5000;

/// The tiers of a community's policy, with the rank tiers' thresholds as they are now.
pub(crate) struct Tiers(Vec<TierRow>);

impl Tiers {
    /// The tier that a visible member of this conviction holds.
    pub(crate) fn tier(&self, conviction: i64) -> Option<i16> {
        let by_rank = self.0.iter().filter(|tier| tier.lowest().is_some_and(|lowest| lowest <= conviction));
        let by_score =
            self.0.iter().filter(|tier| tier.from_conviction.is_some_and(|from| from <= conviction));
        by_rank
            .min_by_key(|tier| tier.last_rank)
            .or_else(|| by_score.max_by_key(|tier| tier.from_conviction))
            .map(|tier| tier.tier)
    }

    /// Whether a move is up. One out of a tier that this policy does not have is judged by the policy before, where that knows both.
    pub(crate) fn is_promotion(&self, from: Option<i16>, to: Option<i16>) -> bool {
        let Some(from) = from else { return to.is_some() };
        let of = |tier: i16| self.0.iter().find(|known| known.tier == tier);
        let Some(to) = to.and_then(of) else { return false };
        match of(from) {
            Some(TierRow { place: Some(from), .. }) => to.place < Some(*from),
            Some(TierRow { former_place: Some(from), .. }) => to.former_place.or(to.place) < Some(*from),
            _ => false,
        }
    }

    /// Whether a member of this conviction can matter to a rank tier's threshold: one who stands at a
    /// threshold or above it, or right below, where a tie too large to share the tier may be.
    pub(crate) fn is_at_an_edge(&self, conviction: i64) -> bool {
        let lowest = self.0.iter().filter_map(TierRow::lowest).min();
        lowest.is_some_and(|lowest| conviction >= lowest.saturating_sub(1))
    }
}

impl TierRow {
    /// Of a rank tier, the lowest conviction that holds it.
    fn lowest(&self) -> Option<i64> {
        self.last_rank.map(|_| lowest(self.threshold))
    }
}

/// The lowest conviction that holds a rank tier of this threshold: without one, everybody holds it.
fn lowest(threshold: Option<i64>) -> i64 {
    threshold.unwrap_or(i64::MIN)
}

/// The tiers of these communities as they are now.
pub(crate) async fn policies(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
) -> Result<HashMap<i32, Tiers>, Error> {
    if communities.is_empty() {
        return Ok(HashMap::new());
    }
    // Those of the policy, and of the one before.
    let most = communities.len().saturating_mul(4 * TierPolicy::MAX_TIERS);
    let find = Statement::in_shard(
        shard,
        "SELECT t.*
         FROM $rows
         CROSS JOIN LATERAL (
             SELECT t.community, t.tier, t.place, t.last_rank, t.from_conviction, t.threshold, t.former_place
             FROM tiers AS t
             WHERE t.shard = $1 AND t.community = rows.community AND (t.place IS NOT NULL OR t.former_place IS NOT NULL)
             OFFSET 0
         ) AS t",
    )
    .rows(each(communities));
    let rows: Vec<TierRow> = statement::by_keys(connection, find, most).await?;
    let mut policies: HashMap<i32, Tiers> = HashMap::with_capacity(communities.len());
    for row in rows {
        policies.entry(row.community).or_insert_with(|| Tiers(Vec::new())).0.push(row);
    }
    Ok(policies)
}

/// What a move of thresholds came to.
#[derive(Default)]
pub(crate) struct MovedThresholds {
    /// The communities in which a threshold moved.
    pub(crate) communities: BTreeSet<i32>,
    /// Who stands between an old threshold and its new one, each once: at most as many as hold the tier, a thousand equals among
    /// them, and those whose scores this transaction changed.
    pub(crate) crossed: Vec<(i32, i64)>,
}

/// Moves the rank tiers' thresholds to where they now are. To be called with the communities' locks, when the boards and their counts
/// are written.
pub(crate) async fn move_thresholds(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
) -> Result<MovedThresholds, Error> {
    if communities.is_empty() {
        return Ok(MovedThresholds::default());
    }
    let moved = find_moved(connection, shard, communities).await?;
    if moved.is_empty() {
        return Ok(MovedThresholds::default());
    }
    write_moved(connection, shard, &moved).await?;
    let mut moves: BTreeMap<i32, i64> = BTreeMap::new();
    for threshold in &moved {
        let moves = moves.entry(threshold.community).or_default();
        *moves = moves.saturating_add(1);
    }
    let communities = moves.keys().copied().collect();
    count_moves(connection, shard, moves).await?;
    Ok(MovedThresholds { communities, crossed: crossed(connection, shard, &moved).await? })
}

/// Puts a community's thresholds right, whoever stands between. To be called with its lock.
pub(crate) async fn correct_thresholds(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
) -> Result<(), Error> {
    let moved = find_moved(connection, tenant.shard, &BTreeSet::from([tenant.community])).await?;
    if moved.is_empty() {
        return Ok(());
    }
    write_moved(connection, tenant.shard, &moved).await?;
    count_moves(connection, tenant.shard, BTreeMap::from([(tenant.community, 1)])).await
}

/// A rank tier whose threshold is to be another.
struct Moved {
    community: i32,
    tier: i16,
    from: Option<i64>,
    to: Option<i64>,
}

/// Where a rank tier's threshold is, given the score at its last rank and how many members stand at or above
/// that.
fn threshold(last_rank: i32, score: Option<i64>, at_or_above: i64) -> Option<i64> {
    let is_too_large = at_or_above > MOST_EQUALS.max(i64::from(last_rank));
    score.map(|score| score.saturating_add(i64::from(is_too_large)))
}

async fn find_moved(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
) -> Result<Vec<Moved>, Error> {
    let most = communities.len().saturating_mul(TierPolicy::MAX_TIERS);
    // At or above a score is above the one before it, whose siblings to the right are counted on each level
    // of the tree.
    let find = Statement::in_shard(
        shard,
        "SELECT t.community, t.tier, t.last_rank, t.threshold, last.score, counted.members AS at_or_above
         FROM $rows
         CROSS JOIN LATERAL (
             SELECT t.community, t.tier, t.last_rank, t.threshold FROM tiers AS t
             WHERE t.shard = $1 AND t.community = rows.community AND t.last_rank IS NOT NULL OFFSET 0
         ) AS t
         LEFT JOIN LATERAL (
             SELECT -e.negated_score AS score FROM board_entries AS e
             WHERE e.shard = $1 AND e.community = rows.community AND e.board = 1
             ORDER BY e.negated_score, e.joined_at, e.member OFFSET t.last_rank - 1 LIMIT 1
         ) AS last ON true
         CROSS JOIN LATERAL (
             SELECT coalesce(sum(c.members), 0)::bigint AS members
             FROM generate_series(0, 10) AS step (level)
             CROSS JOIN LATERAL (
                 SELECT c.members FROM board_counts AS c
                 WHERE c.shard = $1 AND c.community = rows.community AND c.board = 1 AND c.level = step.level
                     AND c.bucket > ((last.score - 1) >> (5 * step.level))
                     AND c.bucket <= CASE step.level WHEN 10 THEN 7
                         ELSE ((last.score - 1) >> (5 * step.level)) | 31 END
                 OFFSET 0
             ) AS c
         ) AS counted",
    )
    .rows(each(communities));
    let rows: Vec<LastRankRow> = statement::by_keys(connection, find, most).await?;
    let mut moved = Vec::new();
    for row in rows {
        let to = threshold(row.last_rank, row.score, row.at_or_above);
        if to != row.threshold {
            moved.push(Moved { community: row.community, tier: row.tier, from: row.threshold, to });
        }
    }
    moved.sort_unstable_by_key(|moved| (moved.community, moved.tier));
    Ok(moved)
}

async fn write_moved(connection: &mut AsyncPgConnection, shard: Shard, moved: &[Moved]) -> Result<(), Error> {
    let rows = moved.iter().map(|moved| ThresholdColumns {
        community: moved.community,
        tier: moved.tier,
        threshold: moved.to,
    });
    let update = Statement::in_shard(
        shard,
        "UPDATE tiers AS t SET threshold = rows.threshold FROM $rows
         WHERE t.shard = $1 AND t.community = rows.community AND t.tier = rows.tier",
    );
    statement::write(connection, update, rows.collect()).await?;
    Ok(())
}

/// Tells whoever read a member's tier before to read it again.
async fn count_moves(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    moves: BTreeMap<i32, i64>,
) -> Result<(), Error> {
    let rows =
        moves.into_iter().map(|(community, thresholds_moved)| MovesColumns { community, thresholds_moved });
    let update = concat!(
        "UPDATE community_states AS s SET thresholds_moved = s.thresholds_moved + rows.thresholds_moved FROM ",
        rows_in!("community_states"),
        " WHERE s.shard = $1 AND s.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, update), rows.collect()).await?;
    Ok(())
}

/// The members that stand between an old threshold and its new one, each once.
async fn crossed(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    moved: &[Moved],
) -> Result<Vec<(i32, i64)>, Error> {
    let ranges = moved.iter().map(|moved| {
        let (from, to) = (lowest(moved.from), lowest(moved.to));
        // The board has its scores negated.
        RangeColumns {
            community: moved.community,
            above: from.max(to).saturating_neg(),
            until: from.min(to).saturating_neg(),
        }
    });
    let find = Statement::in_shard(
        shard,
        "SELECT rows.community, crossed.members
         FROM $rows
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(e.member), '{}') AS members FROM board_entries AS e
             WHERE e.shard = $1 AND e.community = rows.community AND e.board = 1
                 AND e.negated_score > rows.above AND e.negated_score <= rows.until
         ) AS crossed",
    );
    let rows: Vec<CrossedRow> = statement::of_each(connection, find, ranges.collect()).await?;
    let crossed: BTreeSet<(i32, i64)> = rows
        .into_iter()
        .flat_map(|row| row.members.into_iter().map(move |member| (row.community, member)))
        .collect();
    Ok(crossed.into_iter().collect())
}

/// A change from one tier to another that is to be recorded.
pub(crate) struct TierMove {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) from: Option<i16>,
    pub(crate) to: Option<i16>,
    pub(crate) promotion: bool,
}

/// What recorded changes come to.
#[derive(Default)]
pub(crate) struct Recorded {
    /// The communities and times of promotions that count now.
    pub(crate) promoted: Vec<(i32, OffsetDateTime)>,
    /// Those of promotions that no longer count, since they are forgotten.
    pub(crate) forgotten: Vec<(i32, OffsetDateTime)>,
}

/// Records changes of visible members, and forgets old ones.
pub(crate) async fn record(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    moves: &[TierMove],
) -> Result<Recorded, Error> {
    if moves.is_empty() {
        return Ok(Recorded::default());
    }
    // The transaction's own time may lie before that of one whose lock it waited for.
    let at = clock::now(connection).await?;
    let changes = numbers::next(connection, Sequence::TierChanges, moves.len()).await?;
    if changes.len() != moves.len() {
        return Err(Error::defect("changes of tier got fewer numbers than there are changes"));
    }
    let mut rows: Vec<ChangeColumns> = moves
        .iter()
        .zip(changes)
        .map(|(moved, change)| ChangeColumns {
            community: moved.community,
            member: moved.member,
            change,
            from_tier: moved.from,
            to_tier: moved.to,
            promotion: moved.promotion,
        })
        .collect();
    rows.sort_unstable_by_key(|row| (row.community, row.member, row.change));
    let due = rows.iter().filter(|row| is_due(row.change));
    let due = due.map(|row| OldColumns { community: row.community, member: row.member }).collect();
    insert(connection, shard, at, rows).await?;
    let promoted = moves.iter().filter(|moved| moved.promotion).map(|moved| (moved.community, at)).collect();
    Ok(Recorded { promoted, forgotten: forget(connection, shard, due).await? })
}

/// Whether this change triggers the removal of its member's old ones. The number is mixed first, by the golden ratio: two members who
/// swap places take every other number.
const fn is_due(change: i64) -> bool {
    change.unsigned_abs().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & (FORGOTTEN_EVERY - 1) == 0
}

async fn insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    at: OffsetDateTime,
    rows: Vec<ChangeColumns>,
) -> Result<(), Error> {
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO tier_changes (shard, at, visible, $names) SELECT here.shard, $2, true, rows.*
             FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .bind::<Timestamptz, _>(at);
    statement::write(connection, insert, rows).await?;
    Ok(())
}

/// For a probe, which is rolled back: inserts tier changes under a member number that nobody has, and removes the old ones.
pub(crate) async fn try_out(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    (community, member): (i32, i64),
) -> Result<(), Error> {
    let change =
        |change| ChangeColumns { community, member, change, from_tier: None, to_tier: None, promotion: true };
    insert(connection, shard, OffsetDateTime::UNIX_EPOCH, (-101..0).map(change).collect()).await?;
    forget(connection, shard, vec![OldColumns { community, member }]).await?;
    Ok(())
}

/// Forgets changes of these members, so that they do not grow with time alone: the newest hundred of each are kept, and of the last
/// thirty days the newest [`MOST_KEPT`]. Returns the communities and times of promotions that were counted among them.
async fn forget(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<OldColumns>,
) -> Result<Vec<(i32, OffsetDateTime)>, Error> {
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let most = members.len().saturating_mul(MOST_FORGOTTEN);
    let forget = Statement::in_shard(
        shard,
        "DELETE FROM tier_changes AS c
         USING $rows CROSS JOIN LATERAL (SELECT r.ctid AS place FROM tier_changes AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member
                 AND r.change < (SELECT n.change FROM tier_changes AS n
                     WHERE n.shard = $1 AND n.community = rows.community AND n.member = rows.member
                     ORDER BY n.change DESC OFFSET 99 LIMIT 1)
                 AND (r.at < now() - interval '30 days' OR r.change <= (SELECT n.change FROM tier_changes AS n
                     WHERE n.shard = $1 AND n.community = rows.community AND n.member = rows.member
                     ORDER BY n.change DESC OFFSET $3 LIMIT 1))
             ORDER BY r.change LIMIT $2) AS old
         WHERE c.shard = $1 AND c.ctid = old.place
         RETURNING c.community, c.at, c.promotion AND c.visible AS counted",
    )
    .bind::<BigInt, _>(i64::try_from(MOST_FORGOTTEN).map_err(Error::defect)?)
    .bind::<BigInt, _>(MOST_KEPT);
    let rows: Vec<ForgottenRow> = statement::by_keys(connection, forget.rows(members), most).await?;
    Ok(rows.into_iter().filter(|row| row.counted).map(|row| (row.community, row.at)).collect())
}

/// Gives new communities their tier policy. They have no members yet, so that every rank tier is anybody's.
pub(crate) async fn policy_insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &[i32],
    policy: &TierPolicy,
) -> Result<(), Error> {
    let mut rows = Vec::new();
    for community in communities {
        rows.extend(policy_rows(*community, policy, &mut |_, place| place.checked_add(1))?);
    }
    let insert = "INSERT INTO tiers (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    statement::write(connection, Statement::in_shard(shard, insert), rows).await?;
    Ok(())
}

/// Replaces a community's tier policy; what its members hold is to be looked at after that. Its lock is held.
///
/// A name keeps its number. One that is not of this policy keeps no more than that, for the members' history.
pub(crate) async fn policy_replace(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    policy: &TierPolicy,
) -> Result<(), Error> {
    let find = Statement::in_community(
        tenant,
        "SELECT tier, place, last_rank, from_conviction, name FROM tiers
         WHERE shard = $1 AND community = $2 ORDER BY tier LIMIT $limit",
    );
    let stored: Vec<NameRow> = statement::rows(connection, find, Limit::<MAX_TIERS>::MAX).await?;
    let mut last = stored.iter().map(|row| row.tier).max().unwrap_or_default();
    let known: HashMap<&str, i16> = stored.iter().map(|row| (row.name.as_str(), row.tier)).collect();
    let mut names = known.len();
    let rows = policy_rows(tenant.community, policy, &mut |tier, _| {
        known.get(tier.as_str()).copied().or_else(|| {
            names = names.saturating_add(1);
            last = last.checked_add(1)?;
            Some(last)
        })
    })?;
    if u32::try_from(names).map_err(Error::defect)? > MAX_TIERS {
        return Err(Error::OutOfBounds(format!(
            "over all of its policies, a community has at most {MAX_TIERS} names of tiers: reuse earlier ones"
        )));
    }
    let in_force = stored.iter().filter_map(|row| row.in_policy(tenant.community));
    if in_force.eq(rows.iter().cloned()) {
        // It was replaced before: who has not been looked at yet still holds a tier of the one before that.
        return Ok(());
    }
    let withdraw = Statement::in_community(
        tenant,
        "UPDATE tiers SET former_place = place, place = NULL, last_rank = NULL, from_conviction = NULL, threshold = NULL
         WHERE shard = $1 AND community = $2 AND (place IS NOT NULL OR former_place IS NOT NULL)",
    );
    statement::execute(connection, withdraw).await?;
    let insert = Statement::in_shard(
        tenant.shard,
        "INSERT INTO tiers (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
         ON CONFLICT (shard, community, tier) DO UPDATE SET
             place = excluded.place, last_rank = excluded.last_rank, from_conviction = excluded.from_conviction",
    );
    statement::write(connection, insert, rows).await?;
    let moved = find_moved(connection, tenant.shard, &BTreeSet::from([tenant.community])).await?;
    if !moved.is_empty() {
        write_moved(connection, tenant.shard, &moved).await?;
    }
    count_moves(connection, tenant.shard, BTreeMap::from([(tenant.community, 1)])).await
}

/// The tiers of a policy, highest first, in the order of their numbers. `number` is told the place of each.
fn policy_rows(
    community: i32,
    policy: &TierPolicy,
    number: &mut dyn FnMut(&Tier, i16) -> Option<i16>,
) -> Result<Vec<PolicyColumns>, Error> {
    let ranks = policy.rank_tiers().iter().map(|tier| (&tier.tier, Some(tier.last), None));
    let scores = policy.score_tiers().iter().rev().map(|tier| (&tier.tier, None, Some(tier.from)));
    let mut rows = Vec::with_capacity(2 * TierPolicy::MAX_TIERS);
    for (place, (tier, last, from)) in ranks.chain(scores).enumerate() {
        let place = i16::try_from(place).map_err(Error::defect)?;
        rows.push(PolicyColumns {
            community,
            tier: number(tier, place).ok_or_else(|| Error::defect("a community has too many tiers"))?,
            place,
            last_rank: last.map(|last| i32::try_from(last.get())).transpose().map_err(Error::defect)?,
            from_conviction: from.map(|from| from.get()),
            name: tier.as_str().to_owned(),
        });
    }
    rows.sort_unstable_by_key(|row| row.tier);
    Ok(rows)
}

fn each(communities: &BTreeSet<i32>) -> Vec<CommunityColumns> {
    communities.iter().map(|community| CommunityColumns { community: *community }).collect()
}

columns! {
    struct CommunityColumns { community: i32 => Integer }
}

columns! {
    struct ThresholdColumns {
        community: i32 => Integer,
        tier: i16 => SmallInt,
        threshold: Option<i64> => Nullable<BigInt>,
    }
}

columns! {
    struct MovesColumns { community: i32 => Integer, thresholds_moved: i64 => BigInt }
}

columns! {
    struct RangeColumns { community: i32 => Integer, above: i64 => BigInt, until: i64 => BigInt }
}

columns! {
    struct ChangeColumns {
        community: i32 => Integer,
        member: i64 => BigInt,
        change: i64 => BigInt,
        from_tier: Option<i16> => Nullable<SmallInt>,
        to_tier: Option<i16> => Nullable<SmallInt>,
        promotion: bool => Bool,
    }
}

columns! {
    struct OldColumns { community: i32 => Integer, member: i64 => BigInt }
}

columns! {
    #[derive(Clone, PartialEq)]
    struct PolicyColumns {
        community: i32 => Integer,
        tier: i16 => SmallInt,
        place: i16 => SmallInt,
        last_rank: Option<i32> => Nullable<Integer>,
        from_conviction: Option<i64> => Nullable<BigInt>,
        name: String => Text,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = tiers)]
struct TierRow {
    community: i32,
    tier: i16,
    place: Option<i16>,
    last_rank: Option<i32>,
    from_conviction: Option<i64>,
    threshold: Option<i64>,
    former_place: Option<i16>,
}

#[derive(QueryableByName)]
#[diesel(table_name = tiers)]
struct NameRow {
    tier: i16,
    place: Option<i16>,
    last_rank: Option<i32>,
    from_conviction: Option<i64>,
    name: String,
}

impl NameRow {
    /// As a tier of the policy, if it is one.
    fn in_policy(&self, community: i32) -> Option<PolicyColumns> {
        let NameRow { tier, place, last_rank, from_conviction, ref name } = *self;
        Some(PolicyColumns { community, tier, place: place?, last_rank, from_conviction, name: name.clone() })
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = tiers)]
struct LastRankRow {
    community: i32,
    tier: i16,
    #[diesel(sql_type = Integer)]
    last_rank: i32,
    threshold: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    score: Option<i64>,
    #[diesel(sql_type = BigInt)]
    at_or_above: i64,
}

#[derive(QueryableByName)]
#[diesel(table_name = tier_changes)]
struct ForgottenRow {
    community: i32,
    at: OffsetDateTime,
    #[diesel(sql_type = Bool)]
    counted: bool,
}

#[derive(QueryableByName)]
#[diesel(table_name = board_entries)]
struct CrossedRow {
    community: i32,
    #[diesel(sql_type = Array<BigInt>)]
    members: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(
        tier: i16,
        last_rank: Option<i32>,
        from_conviction: Option<i64>,
        threshold: Option<i64>,
    ) -> TierRow {
        TierRow {
            community: 1,
            tier,
            place: Some(tier - 1),
            last_rank,
            from_conviction,
            threshold,
            former_place: None,
        }
    }

    #[test]
    fn a_rank_tier_stands_above_every_score_tier_and_without_a_threshold_is_anybodys() {
        let tiers = Tiers(vec![
            tier(1, Some(7), None, Some(900)),
            tier(2, Some(69), None, Some(300)),
            tier(3, None, Some(500), None),
            tier(4, None, Some(0), None),
        ]);
        let held = [900, 899, 300, 299, -1].map(|conviction| tiers.tier(conviction));
        assert_eq!(held, [Some(1), Some(2), Some(2), Some(4), None]);
        assert_eq!([300, 299, 298].map(|conviction| tiers.is_at_an_edge(conviction)), [true, true, false]);
        let up = |from, to| tiers.is_promotion(from, to);
        assert!(up(Some(2), Some(1)) && up(None, Some(4)));
        assert!(!up(Some(1), Some(2)) && !up(Some(4), None) && !up(Some(9), Some(1)));
        let few = Tiers(vec![tier(1, Some(7), None, Some(900)), tier(2, Some(69), None, None)]);
        assert_eq!([900, -5].map(|conviction| few.tier(conviction)), [Some(1), Some(2)]);
        assert!(few.is_at_an_edge(-5));
        let scores = Tiers(vec![tier(1, None, Some(0), None)]);
        assert!(!scores.is_at_an_edge(7));
    }

    #[test]
    fn equals_share_a_rank_tier_unless_they_are_too_many() {
        assert_eq!(threshold(7, None, 0), None);
        assert_eq!(threshold(7, Some(40), 7), Some(40));
        assert_eq!(threshold(7, Some(40), 1000), Some(40));
        assert_eq!(threshold(7, Some(40), 1001), Some(41));
        assert_eq!(threshold(1000, Some(0), 1000), Some(0));
    }

    #[test]
    fn tiers_are_numbered_and_placed_from_the_highest() {
        let rows = policy_rows(3, &TierPolicy::default(), &mut |_, place| place.checked_add(1)).unwrap();
        let read: Vec<_> = rows.iter().map(|row| (row.tier, row.place, row.name.as_str())).collect();
        let names = ["naib", "fedaykin", "sayyadina", "sietch", "stillsuit", "fremen"];
        let expected: Vec<_> =
            names.into_iter().zip(0..).map(|(name, place)| (place + 1, place, name)).collect();
        assert_eq!(read, expected);
        let reached: Vec<_> = rows.iter().map(|row| (row.last_rank, row.from_conviction)).collect();
        assert_eq!(reached[0], (Some(7), None));
        assert_eq!(reached[5], (None, Some(0)));
    }
}
