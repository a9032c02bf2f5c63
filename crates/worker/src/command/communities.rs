//! Every community, for commands that go through all of them.

use muster_domain::{CommunityId, PageLimit};
use muster_storage::Store;

use crate::failure::Failure;

/// Every community, one after the other.
#[derive(Default)]
pub(super) struct Communities {
    page: std::vec::IntoIter<CommunityId>,
    after: Option<CommunityId>,
}

impl Communities {
    /// The next one, or none when all were there.
    pub(super) async fn next(&mut self, store: &Store) -> Result<Option<CommunityId>, Failure> {
        if self.page.len() == 0 {
            self.page = store.community_ids(PageLimit::MAX, self.after).await?.into_iter();
        }
        let next = self.page.next();
        self.after = next.or(self.after);
        Ok(next)
    }
}
