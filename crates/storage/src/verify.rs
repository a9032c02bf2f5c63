//! Compares what is kept counted with what plain counting comes to, on a live community, and repairs what drifted.
//!
//! Each comparison is one statement and so sees kept counts and rows of one moment, without a lock. Members are compared
//! [`RANGE`] at a time; tails of nyms, which lie in no order of members, and counts of the whole community are aggregated
//! in PostgreSQL, within its `work_mem`. A repair holds the community's locks for a short transaction: a thousand members
//! are recomputed under them, a count is moved by its drift. Events move a count by what they change, so its drift stays the
//! same while they go on.
//!
//! The flags and counts of members are compared before the tiers that follow from them, and the counts of the whole community
//! last: they are compared with the rows as these then are, whatever a repair made of them.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::pg::Pg;
use diesel::sql_types::{Array, BigInt, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{CommunityId, Limit, PageLimit};
use serde::Serialize;
use uuid::Uuid;

use crate::community::Community;
use crate::fold::MemberChange;
use crate::statement::{self, Statement};
use crate::{Error, Store};
use crate::{counts, lock, member};

/// The most drifted values of one comparison: as many as a thousand members' nyms have tails.
type Batch = Limit<32_000>;
/// The most members whose tails are looked up after one counting.
type Members = Limit<100_000>;
/// The most drifted values that a report names; all are counted.
pub const MAX_NAMED: usize = 100;
/// How long counting a whole community once may take.
const COUNTING: Duration = Duration::from_secs(600);
/// How many members are compared by one statement.
const RANGE: i64 = 20_000;
/// How many members or tails are repaired with the community's lock taken once.
const REPAIRED_AT_ONCE: usize = 1000;

/// What a verification found in one community.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The community.
    pub community_id: CommunityId,
    /// Each kept value that was compared, in the order of comparing.
    pub compared: Vec<Compared>,
    /// The first [`MAX_NAMED`] values that drifted.
    pub drifted: Vec<Drift>,
}

/// One kind of kept value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The table and column.
    pub what: &'static str,
    /// How many rows were compared.
    pub rows: u64,
    /// How many of them differed from plain counting. Without a repair, at most 32,000 of each batch are counted.
    pub drifted: u64,
    /// How many of these were put right.
    pub repaired: u64,
}

/// One kept value that differed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The table and column.
    pub what: &'static str,
    /// Which row of the community.
    pub key: String,
    /// What was kept; none when the row was missing.
    pub kept: Option<String>,
    /// What plain counting came to.
    pub counted: Option<String>,
}

impl Verification {
    /// How many values drifted.
    #[must_use]
    pub fn drifted(&self) -> u64 {
        self.compared.iter().map(|compared| compared.drifted).sum()
    }

    /// Whether nothing differs any more.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.compared.iter().all(|compared| compared.repaired == compared.drifted)
    }
}

/// A value of each member. `$1` is the community. A comparison is of the members behind `$2` up to `$3`, named of each table,
/// so that of each only the range is read; a repair is of the members `$2`.
struct OfMember {
    what: &'static str,
    compare: &'static str,
    repair: &'static str,
}

const OF_MEMBERS: [OfMember; 3] = [
    OfMember {
        what: "scores.visible",
        compare: "SELECT p.profile_id, p.profile_id::text AS key, s.visible::text AS kept, p.visible::text AS counted
            FROM profiles AS p JOIN scores AS s USING (community_id, profile_id)
            WHERE community_id = $1 AND p.profile_id > $2 AND p.profile_id <= $3
                AND s.profile_id > $2 AND s.profile_id <= $3 AND s.visible <> p.visible LIMIT $limit",
        repair: "UPDATE scores AS s SET visible = p.visible FROM profiles AS p
            WHERE s.community_id = $1 AND s.profile_id = ANY($2) AND s.visible <> p.visible
                AND p.community_id = s.community_id AND p.profile_id = s.profile_id",
    },
    OfMember {
        what: "profiles.badge_count",
        compare: "SELECT p.profile_id, p.profile_id::text AS key, p.badge_count::text AS kept,
                coalesce(held.badges, 0)::text AS counted
            FROM profiles AS p LEFT JOIN (SELECT b.profile_id, count(*) AS badges FROM badges AS b
                WHERE b.community_id = $1 AND b.profile_id > $2 AND b.profile_id <= $3 AND b.revoked_at IS NULL
                GROUP BY 1) AS held USING (profile_id)
            WHERE p.community_id = $1 AND profile_id > $2 AND profile_id <= $3
                AND p.badge_count <> coalesce(held.badges, 0) LIMIT $limit",
        repair: "UPDATE profiles AS p SET badge_count = (SELECT count(*) FROM badges AS b
                WHERE b.community_id = $1 AND b.profile_id = p.profile_id AND b.revoked_at IS NULL)
            WHERE p.community_id = $1 AND p.profile_id = ANY($2)",
    },
    OfMember {
        what: "tier_changes.visible",
        compare: "SELECT c.profile_id, c.change_id::text AS key, c.visible::text AS kept, p.visible::text AS counted
            FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
            WHERE community_id = $1 AND p.profile_id > $2 AND p.profile_id <= $3
                AND c.profile_id > $2 AND c.profile_id <= $3 AND c.visible <> p.visible LIMIT $limit",
        repair: "UPDATE tier_changes AS c SET visible = p.visible FROM profiles AS p
            WHERE c.community_id = $1 AND c.profile_id = ANY($2) AND c.visible <> p.visible
                AND p.community_id = c.community_id AND p.profile_id = c.profile_id",
    },
];

/// Tails of nyms that are missing, of the members `$2` in either statement.
const MISSING_TAILS: OfMember = OfMember {
    what: "nym_tails",
    compare: "SELECT p.profile_id, p.profile_id::text || ' ' || t.tail AS key, NULL AS kept, t.class::text AS counted
        FROM profiles AS p CROSS JOIN LATERAL nym_tails_of(p.nym_key) AS t
        WHERE p.community_id = $1 AND p.profile_id = ANY($2) AND p.visible AND NOT EXISTS (
            SELECT FROM nym_tails AS k WHERE k.community_id = $1 AND k.class = t.class
                AND k.tail = t.tail COLLATE \"C\" AND k.profile_id = p.profile_id) LIMIT $limit",
    repair: "INSERT INTO nym_tails SELECT p.community_id, t.class, t.tail, p.profile_id
        FROM profiles AS p CROSS JOIN LATERAL nym_tails_of(p.nym_key) AS t
        WHERE p.community_id = $1 AND p.profile_id = ANY($2) AND p.visible ON CONFLICT DO NOTHING",
};

/// Visible members that have another number of tails than their nyms, and how many members and tails there are. A nym has a
/// tail from each of its first 32 characters, no two alike.
const SHORT_OF_TAILS: &str = "WITH kept AS MATERIALIZED (
        SELECT profile_id, count(*) AS tails FROM nym_tails WHERE community_id = $1 GROUP BY 1
    )
    SELECT total.members, total.tails, d.profile_id FROM (
        SELECT (SELECT count(*) FROM profiles WHERE community_id = $1) AS members,
            (SELECT coalesce(sum(tails), 0)::bigint FROM kept) AS tails
    ) AS total
    LEFT JOIN (
        SELECT p.profile_id FROM profiles AS p LEFT JOIN kept USING (profile_id)
        WHERE p.community_id = $1 AND p.visible AND coalesce(kept.tails, 0) <> least(length(p.nym_key), 32)
        LIMIT $limit
    ) AS d ON true";

/// Tails that no visible member's nym has. A tail's length says where in the nym it begins, so that the nym is not taken
/// apart for each.
const STRAY_TAILS: &str = "SELECT k.class, k.tail, k.profile_id
    FROM nym_tails AS k LEFT JOIN profiles AS p ON p.community_id = $1 AND p.profile_id = k.profile_id
    CROSS JOIN LATERAL (SELECT length(p.nym_key) - length(k.tail) + 1 AS at) AS t
    WHERE k.community_id = $1 AND (
        p.visible AND k.tail <> '' AND t.at BETWEEN 1 AND 32 AND substr(p.nym_key, t.at) = k.tail
            AND k.class = CASE
                WHEN t.at = 1 THEN 0
                WHEN substr(p.nym_key, t.at - 1, 1) ~ '[[:space:][:punct:]]' COLLATE \"C\" THEN 1
                ELSE 2
            END
    ) IS NOT TRUE LIMIT $limit";

/// Counts of the whole community. `$1` is the community, `$2` the level of a ladder; a repair takes keys and what to add.
struct OfCommunity {
    what: &'static str,
    levels: std::ops::RangeInclusive<i16>,
    compare: &'static str,
    repair: &'static str,
    /// Removes what the repair brought to nothing.
    tidy: Option<&'static str>,
}

/// What was kept and counted by key, compared: how many keys, and those that differ.
macro_rules! compare {
    ($kept:literal, $counted:literal) => {
        concat!(
            "WITH compared AS MATERIALIZED (
                 SELECT key, k.n AS kept, c.n AS counted FROM (", $kept, ") AS k FULL JOIN (", $counted, ") AS c USING (key)
             )
             SELECT total.rows, d.* FROM (SELECT count(*) AS rows FROM compared) AS total
             LEFT JOIN (SELECT key, kept::text, counted::text,
                     (coalesce(counted, 0) - coalesce(kept, 0))::text AS missing
                 FROM compared WHERE coalesce(kept, 0) <> coalesce(counted, 0) ORDER BY key LIMIT $limit) AS d ON true"
        )
    };
}

macro_rules! day_repair {
    ($column:literal) => {
        concat!(
            "INSERT INTO community_days AS c (community_id, day, ",
            $column,
            ")
             SELECT $1, d.key::date, d.missing::bigint FROM unnest($2, $3) AS d (key, missing)
             ON CONFLICT (community_id, day) DO UPDATE SET ",
            $column,
            " = c.",
            $column,
            " + excluded.",
            $column
        )
    };
}

macro_rules! total_repair {
    ($column:literal) => {
        concat!(
            "INSERT INTO community_counts AS c (community_id, ",
            $column,
            ")
             SELECT $1, d.missing::numeric FROM unnest($2, $3) AS d (key, missing)
             ON CONFLICT (community_id) DO UPDATE SET ",
            $column,
            " = c.",
            $column,
            " + excluded.",
            $column
        )
    };
}

macro_rules! rank_repair {
    ($ladder:literal) => {
        concat!(
            "INSERT INTO rank_counts AS c (community_id, ladder, level, bucket, members)
             SELECT $1, ", $ladder, ", $4, d.key::bigint, d.missing::bigint FROM unnest($2, $3) AS d (key, missing)
             ON CONFLICT (community_id, ladder, level, bucket) DO UPDATE SET members = c.members + excluded.members"
        )
    };
}

macro_rules! rank_tidy {
    ($ladder:literal) => {
        concat!(
            "DELETE FROM rank_counts WHERE community_id = $1 AND ladder = ",
            $ladder,
            " AND level = $3
                 AND bucket = ANY($2::text[]::bigint[]) AND members = 0"
        )
    };
}

const OF_COMMUNITIES: [OfCommunity; 12] = [
    OfCommunity {
        what: "rank_counts of conviction",
        levels: 0..=counts::TOP_LEVEL,
        compare: compare!(
            "SELECT bucket::text AS key, members AS n FROM rank_counts WHERE community_id = $1 AND ladder = 1 AND level = $2",
            "SELECT (s.conviction >> (5 * $2))::text AS key, count(*) AS n FROM scores AS s
             WHERE s.community_id = $1 AND s.visible GROUP BY 1"
        ),
        repair: rank_repair!("1"),
        tidy: Some(rank_tidy!("1")),
    },
    OfCommunity {
        what: "rank_counts of badges",
        levels: 0..=counts::TOP_LEVEL,
        compare: compare!(
            "SELECT bucket::text AS key, members AS n FROM rank_counts WHERE community_id = $1 AND ladder = 2 AND level = $2",
            "SELECT (p.badge_count::bigint >> (5 * $2))::text AS key, count(*) AS n FROM profiles AS p
             WHERE p.community_id = $1 AND p.visible GROUP BY 1"
        ),
        repair: rank_repair!("2"),
        tidy: Some(rank_tidy!("2")),
    },
    OfCommunity {
        what: "tier_counts",
        levels: 0..=0,
        compare: compare!(
            "SELECT tier AS key, members AS n FROM tier_counts WHERE community_id = $1",
            "SELECT coalesce(tier, '') AS key, count(*) AS n FROM profiles WHERE community_id = $1 AND visible GROUP BY 1"
        ),
        repair: "INSERT INTO tier_counts AS c (community_id, tier, members)
            SELECT $1, d.key, d.missing::bigint FROM unnest($2, $3) AS d (key, missing)
            ON CONFLICT (community_id, tier) DO UPDATE SET members = c.members + excluded.members",
        tidy: None,
    },
    OfCommunity {
        what: "community_counts.members",
        levels: 0..=0,
        compare: compare!(
            "SELECT '' AS key, members AS n FROM community_counts WHERE community_id = $1",
            "SELECT '' AS key, count(*) AS n FROM profiles WHERE community_id = $1 AND visible"
        ),
        repair: total_repair!("members"),
        tidy: None,
    },
    OfCommunity {
        what: "community_counts.conviction_total",
        levels: 0..=0,
        compare: compare!(
            "SELECT '' AS key, conviction_total AS n FROM community_counts WHERE community_id = $1",
            "SELECT '' AS key, sum(conviction) AS n FROM scores WHERE community_id = $1 AND visible"
        ),
        repair: total_repair!("conviction_total"),
        tidy: None,
    },
    OfCommunity {
        what: "community_counts.badges",
        levels: 0..=0,
        compare: compare!(
            "SELECT '' AS key, badges AS n FROM community_counts WHERE community_id = $1",
            "SELECT '' AS key, count(*) AS n FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
             WHERE community_id = $1 AND p.visible AND b.revoked_at IS NULL"
        ),
        repair: total_repair!("badges"),
        tidy: None,
    },
    OfCommunity {
        what: "community_days.active",
        levels: 0..=0,
        compare: compare!(
            "SELECT day::text AS key, active AS n FROM community_days WHERE community_id = $1",
            "SELECT utc_day(last_active_at)::text AS key, count(*) AS n FROM scores
             WHERE community_id = $1 AND visible AND last_active_at IS NOT NULL GROUP BY 1"
        ),
        repair: day_repair!("active"),
        tidy: None,
    },
    OfCommunity {
        what: "community_days.joined",
        levels: 0..=0,
        compare: compare!(
            "SELECT day::text AS key, joined AS n FROM community_days WHERE community_id = $1",
            "SELECT utc_day(joined_at)::text AS key, count(*) AS n FROM profiles
             WHERE community_id = $1 AND visible GROUP BY 1"
        ),
        repair: day_repair!("joined"),
        tidy: None,
    },
    OfCommunity {
        what: "community_days.awarded",
        levels: 0..=0,
        compare: compare!(
            "SELECT day::text AS key, awarded AS n FROM community_days WHERE community_id = $1",
            "SELECT utc_day(awarded_at)::text AS key, count(*) AS n
             FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
             WHERE community_id = $1 AND p.visible AND b.revoked_at IS NULL GROUP BY 1"
        ),
        repair: day_repair!("awarded"),
        tidy: None,
    },
    OfCommunity {
        what: "community_days.promoted",
        levels: 0..=0,
        compare: compare!(
            "SELECT day::text AS key, promoted AS n FROM community_days WHERE community_id = $1",
            "SELECT utc_day(at)::text AS key, count(*) AS n FROM tier_changes
             WHERE community_id = $1 AND visible AND promotion GROUP BY 1"
        ),
        repair: day_repair!("promoted"),
        tidy: None,
    },
    OfCommunity {
        what: "badge_kinds.holders",
        levels: 0..=0,
        compare: compare!(
            "SELECT kind AS key, holders AS n FROM badge_kinds WHERE community_id = $1",
            "SELECT kind AS key, count(*) AS n FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
             WHERE community_id = $1 AND p.visible AND b.revoked_at IS NULL GROUP BY 1"
        ),
        repair: "INSERT INTO badge_kinds AS k (community_id, kind, holders, first_awarded_at)
            SELECT $1, d.key, d.missing::bigint, coalesce(
                (SELECT o.first_awarded_at FROM badge_kinds AS o WHERE o.community_id = $1 AND o.kind = d.key),
                (SELECT min(b.awarded_at) FROM badges AS b WHERE b.community_id = $1 AND b.kind = d.key), now())
            FROM unnest($2, $3) AS d (key, missing)
            ON CONFLICT (community_id, kind) DO UPDATE SET holders = k.holders + excluded.holders",
        tidy: None,
    },
    // In seconds since 1970. A kind stays known from its first award although the person who had it was erased with it: once
    // somebody was erased, an earlier date than that of any badge is no drift. A date is counted anew under the lock, since
    // events set it.
    OfCommunity {
        what: "badge_kinds.first_awarded_at",
        levels: 0..=0,
        compare: compare!(
            "SELECT kind AS key, extract(epoch FROM first_awarded_at) AS n FROM badge_kinds WHERE community_id = $1",
            "SELECT k.kind AS key, extract(epoch FROM CASE WHEN b.first > k.first_awarded_at AND e.erased
                 THEN k.first_awarded_at ELSE coalesce(b.first, k.first_awarded_at) END) AS n
             FROM badge_kinds AS k
             LEFT JOIN (SELECT kind, min(awarded_at) AS first FROM badges WHERE community_id = $1 GROUP BY 1) AS b
                 USING (kind)
             CROSS JOIN (SELECT EXISTS (SELECT FROM profiles WHERE community_id = $1 AND erased_at IS NOT NULL) AS erased)
                 AS e
             WHERE k.community_id = $1"
        ),
        repair: "UPDATE badge_kinds AS k SET first_awarded_at = b.first
            FROM (SELECT kind, min(awarded_at) AS first FROM badges WHERE community_id = $1 AND kind = ANY($2) GROUP BY 1)
                AS b
            WHERE k.community_id = $1 AND k.kind = b.kind",
        tidy: None,
    },
];

/// Each rank tier's cut by plain counting, as `w.cut` beside `t`.
macro_rules! cuts_counted {
    () => {
        "(
            SELECT t.tier, coalesce((
                SELECT CASE WHEN (SELECT count(*) FROM (SELECT FROM scores AS o
                        WHERE o.community_id = $1 AND o.visible AND o.conviction >= edge.conviction
                        LIMIT greatest(1000, t.last_rank) + 1) AS sharing) > greatest(1000, t.last_rank)
                    THEN edge.conviction + 1 ELSE edge.conviction END
                FROM (SELECT s.conviction FROM scores AS s WHERE s.community_id = $1 AND s.visible
                    ORDER BY s.conviction DESC, s.profile_id DESC OFFSET t.last_rank - 1 LIMIT 1) AS edge
            ), -9223372036854775808) AS cut
            FROM tier_policies AS t WHERE t.community_id = $1 AND t.last_rank IS NOT NULL
        ) AS w"
    };
}

const CUTS: OfMember = OfMember {
    what: "tier_policies.cut",
    compare: concat!(
        "SELECT $1 AS profile_id, k.tier AS key, k.cut::text AS kept, w.cut::text AS counted FROM tier_policies AS k JOIN ",
        cuts_counted!(),
        " USING (tier) WHERE k.community_id = $1 AND k.cut <> w.cut LIMIT $limit"
    ),
    // Who stands between the two cuts is found with the tiers.
    repair: concat!(
        "UPDATE tier_policies AS k SET cut = w.cut FROM ",
        cuts_counted!(),
        " WHERE k.community_id = $1 AND k.tier = w.tier AND k.cut <> w.cut"
    ),
};

const TIERS: OfMember = OfMember {
    what: "profiles.tier",
    compare: "SELECT p.profile_id, p.profile_id::text AS key, p.tier AS kept, w.tier AS counted
        FROM profiles AS p JOIN scores AS s USING (community_id, profile_id)
        CROSS JOIN LATERAL (SELECT coalesce((
            SELECT t.tier FROM tier_policies AS t WHERE t.community_id = $1 AND t.cut <= s.conviction
            ORDER BY t.last_rank LIMIT 1
        ), (
            SELECT t.tier FROM tier_policies AS t WHERE t.community_id = $1 AND t.from_conviction <= s.conviction
            ORDER BY t.from_conviction DESC LIMIT 1
        )) AS tier) AS w
        WHERE community_id = $1 AND p.profile_id > $2 AND p.profile_id <= $3
            AND s.profile_id > $2 AND s.profile_id <= $3 AND p.visible AND p.tier IS DISTINCT FROM w.tier LIMIT $limit",
    // Back to the tier last recorded, from which settling goes on: a move that was recorded is not recorded again, and
    // one that was not is recorded now.
    repair: "UPDATE profiles AS p SET tier = CASE WHEN last.found THEN last.to_tier ELSE p.tier END,
            tier_given = coalesce(last.found, false)
        FROM unnest($2) AS m (profile_id) LEFT JOIN LATERAL (SELECT c.to_tier, true AS found FROM tier_changes AS c
            WHERE c.community_id = $1 AND c.profile_id = m.profile_id ORDER BY c.change_id DESC LIMIT 1) AS last ON true
        WHERE p.community_id = $1 AND p.profile_id = m.profile_id",
};

impl Store {
    /// A page of the ids of all communities, in their order, behind `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn community_ids(
        &self,
        limit: PageLimit,
        after: Option<CommunityId>,
    ) -> Result<Vec<CommunityId>, Error> {
        let statement = Statement::new(
            "SELECT community_id AS id FROM communities WHERE community_id > $1 ORDER BY 1 LIMIT $limit",
        )
        .bind::<SqlUuid, _>(after.map_or(Uuid::nil(), CommunityId::get));
        let rows: Vec<IdRow> = self.rows("verify", statement, limit).await?;
        Ok(rows.into_iter().map(|row| row.id.into()).collect())
    }
}

impl Community {
    /// Compares every kept value of this community with what plain counting comes to; with `repair`, puts right what
    /// differs. Events and calls go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat.
    pub async fn verify(&self, repair: bool) -> Result<Verification, Error> {
        let mut found = Verification { community_id: self.id, compared: Vec::new(), drifted: Vec::new() };
        self.verify_members(&OF_MEMBERS, repair, &mut found).await?;
        self.verify_tails(repair, &mut found).await?;
        self.verify_cuts(repair, &mut found).await?;
        self.verify_members(&[TIERS], repair, &mut found).await?;
        for check in &OF_COMMUNITIES {
            self.verify_counts(check, repair, &mut found).await?;
        }
        Ok(found)
    }

    /// Compares values of all members, range by range.
    async fn verify_members(
        &self,
        checks: &'static [OfMember],
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let nothing = |check: &OfMember| Compared { what: check.what, rows: 0, drifted: 0, repaired: 0 };
        let mut compared: Vec<Compared> = checks.iter().map(nothing).collect();
        let mut after = Uuid::nil();
        loop {
            let range = self
                .statement(
                    "SELECT profile_id AS id, number AS members FROM (
                         SELECT profile_id, row_number() OVER (ORDER BY profile_id) AS number FROM profiles
                         WHERE community_id = $1 AND profile_id > $2 ORDER BY profile_id LIMIT $3
                     ) AS range ORDER BY number DESC LIMIT 1",
                )
                .bind::<SqlUuid, _>(after)
                .bind::<BigInt, _>(RANGE);
            let Some(range) = self.store.optional::<RangeRow>("verify", range).await? else { break };
            let members = u64::try_from(range.members).map_err(Error::defect)?;
            for (check, compared) in checks.iter().zip(&mut compared) {
                compared.rows = compared.rows.saturating_add(members);
                // A range may hold more drifted rows than one answer: their members are repaired, then the rest.
                loop {
                    let statement =
                        self.statement(check.compare).bind::<SqlUuid, _>(after).bind::<SqlUuid, _>(range.id);
                    let rows: Vec<MemberDrift> = self.counted(statement, Batch::MAX, false).await?;
                    let full = is_full(&rows, Batch::MAX)?;
                    let differing = self.drifted_members(check, repair, rows, compared, found).await?;
                    if !repair || !full || differing == 0 {
                        break;
                    }
                }
            }
            after = range.id;
        }
        found.compared.extend(compared);
        Ok(())
    }

    /// Names members that drifted, and repairs them; answers how many values.
    async fn drifted_members(
        &self,
        check: &'static OfMember,
        repair: bool,
        rows: Vec<MemberDrift>,
        compared: &mut Compared,
        found: &mut Verification,
    ) -> Result<u64, Error> {
        let differing = count(rows.len())?;
        compared.drifted = compared.drifted.saturating_add(differing);
        let members: BTreeSet<Uuid> = rows.iter().map(|row| row.profile_id).collect();
        let members: Vec<Uuid> = members.into_iter().collect();
        for row in rows {
            found.name(check.what, row.key, row.kept, row.counted);
        }
        if !repair {
            return Ok(differing);
        }
        for drifted in members.chunks(REPAIRED_AT_ONCE) {
            let (community, drifted) = (self.id, drifted.to_vec());
            let repair = self.statement(check.repair).bind::<Array<SqlUuid>, _>(drifted.clone());
            let is_of_tiers = check.what == TIERS.what;
            self.store
                .write("verify", move |connection| {
                    async move {
                        let held = lock::all_members(connection, community).await?;
                        lock::community(connection, community).await?;
                        statement::execute(connection, repair).await?;
                        if is_of_tiers {
                            let recheck = || MemberChange { recheck_tier: true, ..MemberChange::default() };
                            let members = drifted.into_iter().map(|id| (id.into(), recheck())).collect();
                            member::change_known(connection, &held, community, members).await?;
                        }
                        Ok(())
                    }
                    .boxed()
                })
                .await?;
        }
        compared.repaired = compared.repaired.saturating_add(differing);
        Ok(differing)
    }

    async fn verify_counts(
        &self,
        check: &'static OfCommunity,
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let mut compared = Compared { what: check.what, rows: 0, drifted: 0, repaired: 0 };
        for level in check.levels.clone() {
            let mut first = true;
            loop {
                let community = self.id;
                let rows = self
                    .store
                    .write_within("verify", COUNTING, move |connection| {
                        counts_compare(connection, community, check, level, repair).boxed()
                    })
                    .await?;
                if first {
                    let total = rows.first().map_or(0, |row| row.rows);
                    compared.rows =
                        compared.rows.saturating_add(u64::try_from(total).map_err(Error::defect)?);
                    first = false;
                }
                let full = is_full(&rows, Batch::MAX)?;
                let mut differing = 0_u64;
                for row in rows {
                    let Some(key) = row.key else { continue };
                    differing = differing.saturating_add(1);
                    let key =
                        if check.levels.end() > &0 { format!("level {level}, bucket {key}") } else { key };
                    found.name(check.what, key, row.kept, row.counted);
                }
                compared.drifted = compared.drifted.saturating_add(differing);
                if repair {
                    compared.repaired = compared.repaired.saturating_add(differing);
                }
                if !repair || !full {
                    break;
                }
            }
        }
        found.compared.push(compared);
        Ok(())
    }

    async fn verify_cuts(&self, repair: bool, found: &mut Verification) -> Result<(), Error> {
        let rows: Vec<MemberDrift> =
            self.store.rows("verify", self.statement(CUTS.compare), Limit::<32>::MAX).await?;
        let drifted = count(rows.len())?;
        for row in rows {
            found.name(CUTS.what, row.key, row.kept, row.counted);
        }
        if repair && drifted > 0 {
            self.write_locked(self.statement(CUTS.repair)).await?;
        }
        let rows = count(self.policy.tiers.rank_tiers().len())?;
        let repaired = if repair { drifted } else { 0 };
        found.compared.push(Compared { what: CUTS.what, rows, drifted, repaired });
        Ok(())
    }

    /// Tails of nyms. Those that should not be there come first: without them, a member that has as many tails as its nym
    /// has them all. Only of those that have not is each tail looked up.
    async fn verify_tails(&self, repair: bool, found: &mut Verification) -> Result<(), Error> {
        let mut stray = Compared { what: "nym_tails without a nym", rows: 0, drifted: 0, repaired: 0 };
        let mut missing = Compared { what: MISSING_TAILS.what, rows: 0, drifted: 0, repaired: 0 };
        let mut suspects: BTreeSet<Uuid> = BTreeSet::new();
        loop {
            let rows: Vec<TailRow> = self.counted(self.statement(STRAY_TAILS), Batch::MAX, true).await?;
            let (full, differing) = (is_full(&rows, Batch::MAX)?, count(rows.len())?);
            stray.drifted = stray.drifted.saturating_add(differing);
            for tail in &rows {
                let key = format!("{} {}", tail.profile_id, tail.tail);
                found.name(stray.what, key, Some(tail.class.to_string()), None);
            }
            suspects.extend(rows.iter().map(|tail| tail.profile_id));
            if !repair {
                break;
            }
            for tails in rows.chunks(REPAIRED_AT_ONCE) {
                self.remove_stray(tails).await?;
            }
            stray.repaired = stray.repaired.saturating_add(differing);
            if !full {
                break;
            }
        }
        loop {
            let rows: Vec<ShortRow> =
                self.counted(self.statement(SHORT_OF_TAILS), Members::MAX, true).await?;
            let full = is_full(&rows, Members::MAX)?;
            if let Some(total) = rows.first() {
                missing.rows = u64::try_from(total.members).map_err(Error::defect)?;
                stray.rows = u64::try_from(total.tails).map_err(Error::defect)?;
            }
            suspects.extend(rows.iter().filter_map(|row| row.profile_id));
            let before = missing.drifted;
            for members in Vec::from_iter(std::mem::take(&mut suspects)).chunks(REPAIRED_AT_ONCE) {
                let compare =
                    self.statement(MISSING_TAILS.compare).bind::<Array<SqlUuid>, _>(members.to_vec());
                let rows: Vec<MemberDrift> = self.store.rows("verify", compare, Batch::MAX).await?;
                self.drifted_members(&MISSING_TAILS, repair, rows, &mut missing, found).await?;
            }
            if !repair || !full || missing.drifted == before {
                break;
            }
        }
        found.compared.extend([missing, stray]);
        Ok(())
    }

    async fn remove_stray(&self, tails: &[TailRow]) -> Result<(), Error> {
        let remove = self
            .statement(
                "DELETE FROM nym_tails AS k USING unnest($2, $3, $4) AS d (class, tail, profile_id)
                 WHERE k.community_id = $1 AND k.class = d.class AND k.tail = d.tail COLLATE \"C\"
                     AND k.profile_id = d.profile_id AND NOT EXISTS (
                         SELECT FROM profiles AS p CROSS JOIN LATERAL nym_tails_of(p.nym_key) AS t
                         WHERE p.community_id = $1 AND p.profile_id = k.profile_id AND p.visible
                             AND t.class = k.class AND t.tail = k.tail COLLATE \"C\")",
            )
            .bind::<Array<SmallInt>, _>(tails.iter().map(|tail| tail.class).collect::<Vec<_>>())
            .bind::<Array<Text>, _>(tails.iter().map(|tail| tail.tail.clone()).collect::<Vec<_>>())
            .bind::<Array<SqlUuid>, _>(tails.iter().map(|tail| tail.profile_id).collect::<Vec<_>>());
        self.write_locked(remove).await
    }

    /// The rows of a statement that counts, planned as counting needs it. Where it is `whole`, of the whole community, and not
    /// a look-up a row, which a planner that expects many differences would choose.
    async fn counted<T, const MAX: u32>(
        &self,
        statement: Statement,
        limit: Limit<MAX>,
        whole: bool,
    ) -> Result<Vec<T>, Error>
    where
        T: QueryableByName<Pg> + Send + 'static,
    {
        self.store
            .write_within("verify", COUNTING, move |connection| {
                async move {
                    plan_for_counting(connection).await?;
                    if whole {
                        let set = Statement::new("SELECT set_config('enable_nestloop', 'off', true)");
                        statement::execute(connection, set).await?;
                    }
                    Ok(statement::rows(connection, statement, limit).await?)
                }
                .boxed()
            })
            .await
    }

    /// Runs a statement with every lock of the community.
    async fn write_locked(&self, statement: Statement) -> Result<(), Error> {
        let community = self.id;
        self.store
            .write("verify", move |connection| {
                async move {
                    lock::all_members(connection, community).await?;
                    lock::community(connection, community).await?;
                    statement::execute(connection, statement).await?;
                    Ok(())
                }
                .boxed()
            })
            .await
    }
}

impl Verification {
    fn name(&mut self, what: &'static str, key: String, kept: Option<String>, counted: Option<String>) {
        if self.drifted.len() < MAX_NAMED {
            self.drifted.push(Drift { what, key, kept, counted });
        }
    }
}

/// One comparison, and with `repair` its repair. The community's lock is taken only after the counting; the advisory lock
/// keeps a second verification from adding the same drift again.
async fn counts_compare(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    check: &'static OfCommunity,
    level: i16,
    repair: bool,
) -> Result<Vec<CountDrift>, Error> {
    plan_for_counting(connection).await?;
    if repair {
        let alone =
            Statement::new("SELECT pg_advisory_xact_lock(hashtextextended('verify ' || $1::text, 0))")
                .bind::<SqlUuid, _>(community.get());
        statement::execute(connection, alone).await?;
    }
    let compare =
        Statement::new(check.compare).bind::<SqlUuid, _>(community.get()).bind::<SmallInt, _>(level);
    let rows: Vec<CountDrift> = statement::rows(connection, compare, Batch::MAX).await?;
    let (keys, missing): (Vec<String>, Vec<String>) =
        rows.iter().filter_map(|row| row.key.clone().zip(row.missing.clone())).unzip();
    if repair && !keys.is_empty() {
        lock::community(connection, community).await?;
        let repair = Statement::new(check.repair)
            .bind::<SqlUuid, _>(community.get())
            .bind::<Array<Text>, _>(keys.clone())
            .bind::<Array<Text>, _>(missing)
            .bind::<SmallInt, _>(level);
        statement::execute(connection, repair).await?;
        if let Some(tidy) = check.tidy {
            let tidy = Statement::new(tidy)
                .bind::<SqlUuid, _>(community.get())
                .bind::<Array<Text>, _>(keys)
                .bind::<SmallInt, _>(level);
            statement::execute(connection, tidy).await?;
        }
    }
    Ok(rows)
}

/// Until the transaction ends. Counting everything is what the session's plans, made for look-ups and for communities of
/// every size, are not for.
async fn plan_for_counting(connection: &mut AsyncPgConnection) -> Result<(), Error> {
    let counting = Statement::new(
        "SELECT set_config(name, value, true) FROM (VALUES ('statement_timeout', '10min'), ('enable_seqscan', 'on'),
             ('enable_hashjoin', 'on'), ('enable_mergejoin', 'on'), ('plan_cache_mode', 'force_custom_plan'),
             ('work_mem', '64MB')) AS s (name, value)",
    );
    statement::execute(connection, counting).await?;
    Ok(())
}

/// Whether there may be more rows than were answered.
fn is_full<T, const MAX: u32>(rows: &[T], limit: Limit<MAX>) -> Result<bool, Error> {
    Ok(rows.len() >= usize::try_from(limit.get()).map_err(Error::defect)?)
}

fn count(length: usize) -> Result<u64, Error> {
    u64::try_from(length).map_err(Error::defect)
}

#[derive(QueryableByName)]
struct IdRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
}

#[derive(QueryableByName)]
struct MemberDrift {
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = Nullable<Text>)]
    kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    counted: Option<String>,
}

#[derive(QueryableByName)]
struct CountDrift {
    #[diesel(sql_type = BigInt)]
    rows: i64,
    #[diesel(sql_type = Nullable<Text>)]
    key: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    counted: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    missing: Option<String>,
}

#[derive(QueryableByName)]
struct RangeRow {
    #[diesel(sql_type = SqlUuid)]
    id: Uuid,
    #[diesel(sql_type = BigInt)]
    members: i64,
}

#[derive(QueryableByName)]
struct ShortRow {
    #[diesel(sql_type = BigInt)]
    members: i64,
    #[diesel(sql_type = BigInt)]
    tails: i64,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    profile_id: Option<Uuid>,
}

#[derive(QueryableByName)]
struct TailRow {
    #[diesel(sql_type = SmallInt)]
    class: i16,
    #[diesel(sql_type = Text)]
    tail: String,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
}
