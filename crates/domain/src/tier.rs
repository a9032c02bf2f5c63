use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::text::{TextError, spelled, text_type};
use crate::{Conviction, Nym, ProfileId, Rank};

fn name(given: String, max: usize) -> Result<String, TextError> {
    spelled(given, max, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
}

text_type!(
    /// A tier's name: 1 to 32 lower-case letters, digits, `_` and `-`.
    Tier, 32, name
);

/// A tier reached by a score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreTier {
    /// Its name.
    pub tier: Tier,
    /// The lowest conviction that holds it.
    pub from: Conviction,
}

/// A tier reached by a rank, from the one below the better tier's last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankTier {
    /// Its name.
    pub tier: Tier,
    /// The last rank that holds it.
    pub last: Rank,
}

/// A community's tiers. A rank tier stands above every score tier.
///
/// ```
/// use muster_domain::{Conviction, Rank, TierPolicy};
///
/// let policy = TierPolicy::default();
/// assert_eq!(policy.tier(Conviction::clamp(640), Rank::below(200)).unwrap().as_str(), "sietch");
/// assert_eq!(policy.tier(Conviction::clamp(640), Rank::FIRST).unwrap().as_str(), "naib");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierPolicy {
    score_tiers: Vec<ScoreTier>,
    rank_tiers: Vec<RankTier>,
}

impl TierPolicy {
    /// The most score tiers, and the most rank tiers, of a policy.
    pub const MAX_TIERS: usize = 16;
    /// The last rank that a rank tier may reach.
    pub const MAX_RANK: u64 = 1000;

    /// Takes score tiers from the lowest and rank tiers from the best.
    ///
    /// # Errors
    /// [`PolicyError`] names the rule that was broken.
    pub fn new(score_tiers: Vec<ScoreTier>, rank_tiers: Vec<RankTier>) -> Result<Self, PolicyError> {
        if score_tiers.len() > Self::MAX_TIERS || rank_tiers.len() > Self::MAX_TIERS {
            return Err(PolicyError::TooMany);
        }
        if !score_tiers.is_sorted_by(|a, b| a.from < b.from)
            || !rank_tiers.is_sorted_by(|a, b| a.last < b.last)
        {
            return Err(PolicyError::Order);
        }
        if rank_tiers.iter().any(|tier| !(1..=Self::MAX_RANK).contains(&tier.last.get())) {
            return Err(PolicyError::Rank);
        }
        let mut names: Vec<&Tier> =
            score_tiers.iter().map(|t| &t.tier).chain(rank_tiers.iter().map(|t| &t.tier)).collect();
        names.sort_unstable();
        if names.is_empty() {
            return Err(PolicyError::Empty);
        }
        if !names.is_sorted_by(|a, b| a < b) {
            return Err(PolicyError::Name);
        }
        Ok(Self { score_tiers, rank_tiers })
    }

    /// The score tiers, lowest first.
    #[must_use]
    pub fn score_tiers(&self) -> &[ScoreTier] {
        &self.score_tiers
    }

    /// The rank tiers, best first.
    #[must_use]
    pub fn rank_tiers(&self) -> &[RankTier] {
        &self.rank_tiers
    }

    /// The tier that a score holds by itself.
    #[must_use]
    pub fn score_tier(&self, conviction: Conviction) -> Option<&Tier> {
        self.score_tiers.iter().rev().find(|tier| tier.from <= conviction).map(|tier| &tier.tier)
    }

    /// The tier that a member of this score and rank holds.
    #[must_use]
    pub fn tier(&self, conviction: Conviction, rank: Rank) -> Option<&Tier> {
        match self.rank_tiers.iter().find(|tier| rank <= tier.last) {
            Some(tier) => Some(&tier.tier),
            None => self.score_tier(conviction),
        }
    }

    /// The next score tier above a score.
    #[must_use]
    pub fn next_score_tier(&self, conviction: Conviction) -> Option<&ScoreTier> {
        self.score_tiers.iter().find(|tier| tier.from > conviction)
    }

    /// The last rank that holds a rank tier.
    #[must_use]
    pub fn entry_rank(&self) -> Option<Rank> {
        self.rank_tiers.last().map(|tier| tier.last)
    }

    /// Every tier, highest first.
    pub fn highest_first(&self) -> impl Iterator<Item = &Tier> {
        self.rank_tiers.iter().map(|t| &t.tier).chain(self.score_tiers.iter().rev().map(|t| &t.tier))
    }

    /// Whether `rank` is among the last tenth of the entry ranks, which a rising member takes first.
    #[must_use]
    pub fn is_at_risk(&self, rank: Rank) -> bool {
        self.entry_rank()
            .is_some_and(|entry| rank <= entry && rank.get() > entry.get() - entry.get() / 10 - 1)
    }
}

impl Default for TierPolicy {
    fn default() -> Self {
        let score =
            |name: &str, from: i64| ScoreTier { tier: Tier(name.to_owned()), from: Conviction::clamp(from) };
        let rank =
            |name: &str, last: u64| RankTier { tier: Tier(name.to_owned()), last: Rank::below(last - 1) };
        Self {
            score_tiers: vec![
                score("fremen", 0),
                score("stillsuit", 100),
                score("sietch", 500),
                score("sayyadina", 1000),
            ],
            rank_tiers: vec![rank("naib", 7), rank("fedaykin", 69)],
        }
    }
}

/// Why a tier policy was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No tier at all.
    #[error("a tier policy needs at least one tier")]
    Empty,
    /// More tiers than the bound.
    #[error("a tier policy has at most {max} score tiers and {max} rank tiers", max = TierPolicy::MAX_TIERS)]
    TooMany,
    /// Score tiers do not ascend, or rank tiers do not widen.
    #[error("score tiers must ascend by score and rank tiers by last rank, without equals")]
    Order,
    /// A rank tier's last rank is out of range.
    #[error("a rank tier's last rank must be 1 to {max}", max = TierPolicy::MAX_RANK)]
    Rank,
    /// Two tiers of one name.
    #[error("each tier of a policy needs a name of its own")]
    Name,
}

/// Whether a change of tier was up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Movement {
    /// To a higher tier.
    Promotion,
    /// To a lower tier, or to none.
    Demotion,
}

/// One change of one member's tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierChange {
    /// Whose.
    pub profile_id: ProfileId,
    /// Their display name now.
    pub nym: Nym,
    /// The tier before; `None` below every tier.
    pub from: Option<Tier>,
    /// The tier after; `None` below every tier.
    pub to: Option<Tier>,
    /// Up or down.
    pub movement: Movement,
    /// When it was recorded.
    pub at: OffsetDateTime,
}

/// What it takes to hold a rank tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierThreshold {
    /// The last rank that holds one; `None` when the policy has no rank tiers.
    pub entry_rank: Option<Rank>,
    /// The lowest conviction that has that rank; `None` while there are fewer members than entry ranks.
    pub score: Option<Conviction>,
    /// How many visible members hold an entry rank.
    pub eligible: u64,
    /// How many do not.
    pub waiting: u64,
    /// How far the best of those who wait lies below the score; `None` when nobody waits.
    pub gap: Option<i64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(froms: &[i64], lasts: &[u64]) -> Result<TierPolicy, PolicyError> {
        TierPolicy::new(
            froms
                .iter()
                .enumerate()
                .map(|(i, from)| ScoreTier {
                    tier: Tier::parse(format!("s{i}")).unwrap(),
                    from: Conviction::clamp(*from),
                })
                .collect(),
            lasts
                .iter()
                .enumerate()
                .map(|(i, last)| RankTier {
                    tier: Tier::parse(format!("r{i}")).unwrap(),
                    last: Rank::below(last.saturating_sub(1)),
                })
                .collect(),
        )
    }

    proptest! {
        #[test]
        fn a_higher_score_never_holds_a_lower_tier(
            froms in prop::collection::btree_set(-5000_i64..5000, 1..=16),
            (low, high) in (-6000_i64..6000, -6000_i64..6000),
            rank in 1_u64..2000,
        ) {
            let froms: Vec<i64> = froms.into_iter().collect();
            let policy = policy(&froms, &[7, 69]).unwrap();
            let order: Vec<&Tier> = policy.highest_first().collect();
            let place = |score: i64| {
                let tier = policy.tier(Conviction::clamp(score), Rank::below(rank - 1));
                tier.map_or(order.len(), |tier| order.iter().position(|t| *t == tier).unwrap())
            };
            prop_assert!(place(low.max(high)) <= place(low.min(high)));
        }

        #[test]
        fn the_next_tier_is_the_nearest_above(
            froms in prop::collection::btree_set(-5000_i64..5000, 1..=16),
            score in -6000_i64..6000,
        ) {
            let froms: Vec<i64> = froms.into_iter().collect();
            let policy = policy(&froms, &[]).unwrap();
            let next = policy.next_score_tier(Conviction::clamp(score)).map(|tier| tier.from.get());
            prop_assert_eq!(next, froms.iter().copied().filter(|from| *from > score).min());
            let held = policy.score_tiers().iter().map(|t| t.from.get()).filter(|from| *from <= score).max();
            prop_assert_eq!(policy.score_tier(Conviction::clamp(score)).is_some(), held.is_some());
        }

        #[test]
        fn only_a_sound_policy_is_made(froms: Vec<i64>, lasts: Vec<u64>) {
            if let Ok(policy) = policy(&froms, &lasts) {
                prop_assert!(policy.score_tiers().is_sorted_by(|a, b| a.from < b.from));
                prop_assert!(policy.entry_rank().is_none_or(|rank| rank.get() <= TierPolicy::MAX_RANK));
            }
        }
    }

    #[test]
    fn the_default_policy_is_sound_and_as_documented() {
        let default = TierPolicy::default();
        assert_eq!(
            TierPolicy::new(default.score_tiers.clone(), default.rank_tiers.clone()).unwrap(),
            default
        );
        let tier = |score: i64, rank: u64| {
            default.tier(Conviction::clamp(score), Rank::below(rank - 1)).map(Tier::as_str).map(str::to_owned)
        };
        for (score, rank, expected) in [
            (5000, 1, "naib"),
            (5000, 7, "naib"),
            (5000, 8, "fedaykin"),
            (0, 69, "fedaykin"),
            (5000, 70, "sayyadina"),
            (1000, 70, "sayyadina"),
            (999, 70, "sietch"),
            (499, 70, "stillsuit"),
            (99, 70, "fremen"),
        ] {
            assert_eq!(tier(score, rank).as_deref(), Some(expected), "{score} at rank {rank}");
        }
        assert_eq!(tier(-1, 70), None);
    }

    #[test]
    fn the_last_tenth_of_the_entry_ranks_is_at_risk() {
        let default = TierPolicy::default();
        let at_risk: Vec<u64> = (1..=100).filter(|rank| default.is_at_risk(Rank::below(rank - 1))).collect();
        assert_eq!(at_risk, (63..=69).collect::<Vec<_>>());
    }
}
