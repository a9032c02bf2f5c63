//! What a verification finds, as it is reported.

use std::collections::BTreeSet;

use muster_domain::{CommunityId, Limit};
use serde::Serialize;

use crate::error::Error;

/// The most drifted values of one comparison: as many as a thousand members' nyms have suffixes.
pub(super) type Batch = Limit<32_000>;
/// The most drifted values that a report names; all are counted.
pub const MAX_NAMED: usize = 100;

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

    pub(super) fn name(
        &mut self,
        what: &'static str,
        key: String,
        kept: Option<String>,
        counted: Option<String>,
    ) {
        if self.drifted.len() < MAX_NAMED {
            self.drifted.push(Drift { what, key, kept, counted });
        }
    }
}

impl Compared {
    /// Of nothing yet.
    pub(super) const fn nothing(what: &'static str) -> Self {
        Self { what, rows: 0, drifted: 0, repaired: 0 }
    }

    /// Counts values that differ.
    pub(super) const fn add_drifted(&mut self, values: u64) {
        self.drifted = self.drifted.saturating_add(values);
    }

    /// Counts values that were put right.
    pub(super) const fn add_repaired(&mut self, values: u64) {
        self.repaired = self.repaired.saturating_add(values);
    }

    /// Takes values that were counted as repaired, and are found again, out of the count.
    pub(super) const fn uncount_repaired(&mut self, values: u64) {
        self.repaired = self.repaired.saturating_sub(values);
    }
}

/// Tells whether a repair gets on, when its comparison is made again because there may be more than one answer holds.
#[derive(Default)]
pub(super) struct Progress {
    members: BTreeSet<i64>,
}

impl Progress {
    /// Whether this answer is of the same members as the one before: the repair of that changed nothing, and one more would
    /// not either.
    pub(super) fn is_stuck(&mut self, members: impl Iterator<Item = i64>) -> bool {
        let members: BTreeSet<i64> = members.collect();
        let stuck = !members.is_empty() && members == self.members;
        self.members = members;
        stuck
    }
}

/// Whether there may be more rows than were answered.
pub(super) fn is_full<T, const MAX: u32>(rows: &[T], limit: Limit<MAX>) -> Result<bool, Error> {
    Ok(rows.len() >= usize::try_from(limit.get()).map_err(Error::defect)?)
}

/// How many there are.
pub(super) fn count(length: usize) -> Result<u64, Error> {
    u64::try_from(length).map_err(Error::defect)
}
