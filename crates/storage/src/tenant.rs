//! The keys of a community within the database.

use std::collections::BTreeMap;

use muster_domain::{CommunityId, Shard};

/// Where a community's rows are. Every key of every table of theirs begins with both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tenant {
    pub(crate) shard: Shard,
    /// The community's number.
    pub(crate) community: i32,
}

/// A community as a row of `communities` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: CommunityId,
    pub(crate) tenant: Tenant,
}

/// The ids of these communities by their numbers.
pub(crate) fn ids_of<'a>(communities: impl Iterator<Item = &'a Named>) -> BTreeMap<i32, CommunityId> {
    communities.map(|named| (named.tenant.community, named.id)).collect()
}
