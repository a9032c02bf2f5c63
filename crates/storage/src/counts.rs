//! The kept counts: what a transaction changes is summed here and written once, whatever the number of rows it comes from.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Date as SqlDate, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::CommunityId;
use time::{Date, OffsetDateTime, UtcOffset};
use uuid::Uuid;

use crate::Error;
use crate::statement::{self, Statement};

/// The ladder of scores that a rank is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ladder {
    Conviction,
    Badges,
}

impl Ladder {
    const fn number(self) -> i16 {
        match self {
            Self::Conviction => 1,
            Self::Badges => 2,
        }
    }
}

/// The topmost level of a ladder's tree, and how many bits of the score each level shares less than the one below.
pub(crate) const TOP_LEVEL: i16 = 10;
const BITS: u32 = 5;

/// What a visible member counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) conviction: i64,
    pub(crate) badge_count: i32,
    pub(crate) joined_at: OffsetDateTime,
    pub(crate) last_active_at: Option<OffsetDateTime>,
}

#[derive(Default)]
struct Totals {
    members: i64,
    conviction: i128,
    badges: i64,
}

#[derive(Default, Clone, Copy)]
struct Day {
    active: i64,
    joined: i64,
    awarded: i64,
    promoted: i64,
}

struct Kind {
    holders: i64,
    first_awarded_at: OffsetDateTime,
}

/// The changes of one transaction to every kept count. In the order of keys, so that they are written in that order.
#[derive(Default)]
pub(crate) struct Changes {
    ranks: BTreeMap<(CommunityId, Ladder, i64), i64>,
    tiers: BTreeMap<(CommunityId, String), i64>,
    totals: BTreeMap<CommunityId, Totals>,
    days: BTreeMap<(CommunityId, Date), Day>,
    kinds: BTreeMap<(CommunityId, String), Kind>,
}

/// The day that an activity, a joining, an award or a promotion is counted on.
fn utc_day(at: OffsetDateTime) -> Date {
    at.to_offset(UtcOffset::UTC).date()
}

impl Changes {
    /// Counts what a visible member stands for in place of what it stood for; `None` is not visible.
    pub(crate) fn standing(
        &mut self,
        community: CommunityId,
        before: Option<Standing>,
        after: Option<Standing>,
    ) {
        if before == after {
            return;
        }
        for (standing, sign) in before.map(|b| (b, -1_i64)).into_iter().chain(after.map(|a| (a, 1))) {
            for (ladder, score) in
                [(Ladder::Conviction, standing.conviction), (Ladder::Badges, i64::from(standing.badge_count))]
            {
                add(self.ranks.entry((community, ladder, score)).or_default(), sign);
            }
            let totals = self.totals.entry(community).or_default();
            add(&mut totals.members, sign);
            totals.conviction = totals
                .conviction
                .saturating_add(i128::from(sign).saturating_mul(i128::from(standing.conviction)));
            add(&mut totals.badges, sign.saturating_mul(i64::from(standing.badge_count)));
            add(&mut self.day(community, standing.joined_at).joined, sign);
            if let Some(at) = standing.last_active_at {
                add(&mut self.day(community, at).active, sign);
            }
        }
    }

    /// Counts a visible member in a tier (sign 1), or no longer in it (sign -1).
    pub(crate) fn tier(&mut self, community: CommunityId, tier: Option<&str>, sign: i64) {
        add(self.tiers.entry((community, tier.unwrap_or_default().to_owned())).or_default(), sign);
    }

    /// Counts a held badge of a visible member (sign 1), or one that is no longer held (sign -1). Sign 0 only makes its kind
    /// known.
    pub(crate) fn badge(
        &mut self,
        community: CommunityId,
        kind: &str,
        awarded_at: OffsetDateTime,
        sign: i64,
    ) {
        let kind = self
            .kinds
            .entry((community, kind.to_owned()))
            .or_insert(Kind { holders: 0, first_awarded_at: awarded_at });
        add(&mut kind.holders, sign);
        kind.first_awarded_at = kind.first_awarded_at.min(awarded_at);
        add(&mut self.day(community, awarded_at).awarded, sign);
    }

    /// Counts a visible member's promotion.
    pub(crate) fn promotion(&mut self, community: CommunityId, at: OffsetDateTime) {
        add(&mut self.day(community, at).promoted, 1);
    }

    fn day(&mut self, community: CommunityId, at: OffsetDateTime) -> &mut Day {
        self.days.entry((community, utc_day(at))).or_default()
    }

    /// Writes what ranks are read from. Tiers are settled on it, so it comes before them.
    pub(crate) async fn write_ranks(&mut self, connection: &mut AsyncPgConnection) -> Result<(), Error> {
        let mut buckets: BTreeMap<(CommunityId, i16, i16, i64), i64> = BTreeMap::new();
        for ((community, ladder, score), delta) in std::mem::take(&mut self.ranks) {
            for level in (0..=TOP_LEVEL).filter(|_| delta != 0) {
                let bucket = score >> (BITS * u32::from(level.unsigned_abs()));
                add(buckets.entry((community, ladder.number(), level, bucket)).or_default(), delta);
            }
        }
        buckets.retain(|_, delta| *delta != 0);
        if buckets.is_empty() {
            return Ok(());
        }
        let keys = buckets.len();
        // A bucket without members is removed: scores that nobody has any more leave nothing behind.
        let count = Statement::new(
            "WITH counted AS (
                 INSERT INTO rank_counts AS c (community_id, ladder, level, bucket, members)
                 SELECT * FROM unnest($1, $2, $3, $4, $5)
                 ON CONFLICT (community_id, ladder, level, bucket) DO UPDATE SET members = c.members + excluded.members
                 RETURNING c.community_id, c.ladder, c.level, c.bucket, c.members
             )
             SELECT community_id, ladder, level, bucket FROM counted WHERE members = 0",
        )
        .bind::<Array<SqlUuid>, _>(buckets.keys().map(|key| key.0.get()).collect::<Vec<_>>())
        .bind::<Array<SmallInt>, _>(buckets.keys().map(|key| key.1).collect::<Vec<_>>())
        .bind::<Array<SmallInt>, _>(buckets.keys().map(|key| key.2).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(buckets.keys().map(|key| key.3).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(buckets.values().copied().collect::<Vec<_>>());
        let emptied: Vec<BucketRow> = statement::by_keys(connection, count, keys).await?;
        if emptied.is_empty() {
            return Ok(());
        }
        let remove = Statement::new(
            "DELETE FROM rank_counts AS c
             USING unnest($1, $2, $3, $4) AS e (community_id, ladder, level, bucket)
             CROSS JOIN LATERAL (SELECT r.ctid FROM rank_counts AS r
                 WHERE r.community_id = e.community_id AND r.ladder = e.ladder AND r.level = e.level
                     AND r.bucket = e.bucket LIMIT 1) AS row
             WHERE c.ctid = row.ctid",
        )
        .bind::<Array<SqlUuid>, _>(emptied.iter().map(|row| row.community_id).collect::<Vec<_>>())
        .bind::<Array<SmallInt>, _>(emptied.iter().map(|row| row.ladder).collect::<Vec<_>>())
        .bind::<Array<SmallInt>, _>(emptied.iter().map(|row| row.level).collect::<Vec<_>>())
        .bind::<Array<BigInt>, _>(emptied.iter().map(|row| row.bucket).collect::<Vec<_>>());
        statement::execute(connection, remove).await?;
        Ok(())
    }

    /// Writes every count that [`Self::write_ranks`] has not written.
    pub(crate) async fn write(mut self, connection: &mut AsyncPgConnection) -> Result<(), Error> {
        self.write_ranks(connection).await?;
        let mut tiers = self.tiers;
        tiers.retain(|_, delta| *delta != 0);
        if !tiers.is_empty() {
            let count = Statement::new(
                "INSERT INTO tier_counts AS c (community_id, tier, members)
                 SELECT * FROM unnest($1, $2, $3)
                 ON CONFLICT (community_id, tier) DO UPDATE SET members = c.members + excluded.members",
            )
            .bind::<Array<SqlUuid>, _>(tiers.keys().map(|key| key.0.get()).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(tiers.keys().map(|key| key.1.clone()).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(tiers.values().copied().collect::<Vec<_>>());
            statement::execute(connection, count).await?;
        }
        let mut totals = self.totals;
        totals.retain(|_, total| total.members != 0 || total.conviction != 0 || total.badges != 0);
        if !totals.is_empty() {
            // A thousand members' convictions can pass 64 bits: they travel as text.
            let count = Statement::new(
                "INSERT INTO community_counts AS c (community_id, members, conviction_total, badges)
                 SELECT u.community_id, u.members, u.conviction_total::numeric, u.badges
                 FROM unnest($1, $2, $3, $4) AS u (community_id, members, conviction_total, badges)
                 ON CONFLICT (community_id) DO UPDATE SET members = c.members + excluded.members,
                     conviction_total = c.conviction_total + excluded.conviction_total,
                     badges = c.badges + excluded.badges",
            )
            .bind::<Array<SqlUuid>, _>(totals.keys().map(|key| key.get()).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(totals.values().map(|total| total.members).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(
                totals.values().map(|total| total.conviction.to_string()).collect::<Vec<_>>(),
            )
            .bind::<Array<BigInt>, _>(totals.values().map(|total| total.badges).collect::<Vec<_>>());
            statement::execute(connection, count).await?;
        }
        let mut days = self.days;
        days.retain(|_, day| {
            [day.active, day.joined, day.awarded, day.promoted].iter().any(|delta| *delta != 0)
        });
        if !days.is_empty() {
            let each = |of: fn(&Day) -> i64| days.values().map(of).collect::<Vec<_>>();
            let count = Statement::new(
                "INSERT INTO community_days AS c (community_id, day, active, joined, awarded, promoted)
                 SELECT * FROM unnest($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (community_id, day) DO UPDATE SET active = c.active + excluded.active,
                     joined = c.joined + excluded.joined, awarded = c.awarded + excluded.awarded,
                     promoted = c.promoted + excluded.promoted",
            )
            .bind::<Array<SqlUuid>, _>(days.keys().map(|key| key.0.get()).collect::<Vec<_>>())
            .bind::<Array<SqlDate>, _>(days.keys().map(|key| key.1).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(each(|day| day.active))
            .bind::<Array<BigInt>, _>(each(|day| day.joined))
            .bind::<Array<BigInt>, _>(each(|day| day.awarded))
            .bind::<Array<BigInt>, _>(each(|day| day.promoted));
            statement::execute(connection, count).await?;
        }
        if !self.kinds.is_empty() {
            let kinds = self.kinds;
            let count = Statement::new(
                "INSERT INTO badge_kinds AS k (community_id, kind, holders, first_awarded_at)
                 SELECT * FROM unnest($1, $2, $3, $4)
                 ON CONFLICT (community_id, kind) DO UPDATE SET holders = k.holders + excluded.holders,
                     first_awarded_at = least(k.first_awarded_at, excluded.first_awarded_at)",
            )
            .bind::<Array<SqlUuid>, _>(kinds.keys().map(|key| key.0.get()).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(kinds.keys().map(|key| key.1.clone()).collect::<Vec<_>>())
            .bind::<Array<BigInt>, _>(kinds.values().map(|kind| kind.holders).collect::<Vec<_>>())
            .bind::<Array<Timestamptz>, _>(
                kinds.values().map(|kind| kind.first_awarded_at).collect::<Vec<_>>(),
            );
            statement::execute(connection, count).await?;
        }
        Ok(())
    }
}

fn add(count: &mut i64, delta: i64) {
    *count = count.saturating_add(delta);
}

#[derive(QueryableByName)]
struct BucketRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = SmallInt)]
    ladder: i16,
    #[diesel(sql_type = SmallInt)]
    level: i16,
    #[diesel(sql_type = BigInt)]
    bucket: i64,
}
