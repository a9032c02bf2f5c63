//! Changes of communities for siblings, published after their commit to the stream `CHANGES`.
//!
//! [`publisher`] is the worker's side, [`follower`] a sibling's, [`wire`] the JSON between them. `fitness` judges the stream.

mod fitness;
pub mod follower;
pub mod publisher;
pub mod wire;

use muster_domain::{ChangeType, CommunityId};

use crate::events::fitness::Place;

/// The stream.
pub const CHANGES: &str = Place::Changes.stream();
/// Its subjects.
pub const CHANGES_SUBJECTS: &str = "changes.>";
/// What the subject of every change begins with.
const PREFIX: &str = "changes.v1";

/// The subject of a community's changes of one type.
#[must_use]
pub fn subject(community: CommunityId, change_type: ChangeType) -> String {
    format!("{PREFIX}.{community}.{}", change_type.as_str())
}

/// The subjects of every community's changes of one type.
#[must_use]
pub fn pattern(change_type: ChangeType) -> String {
    format!("{PREFIX}.*.{}", change_type.as_str())
}

/// The subjects of all of a community's changes.
#[must_use]
pub fn subjects(community: CommunityId) -> String {
    format!("{PREFIX}.{community}.>")
}
