//! Compares what is kept counted with what plain counting comes to, on a live community, and repairs what drifted.
//!
//! Each comparison is one statement and so sees kept counts and rows of one moment, without a lock. What lies in the
//! order of members is compared a range of them at a time; boards and suffixes, which lie in other orders, and counts
//! of the whole community are aggregated in PostgreSQL, within its `work_mem`. A repair holds the community's locks
//! for a short transaction: a thousand rows are made anew under them, a count is moved by its drift. Events move a
//! count by what they change, so its drift stays the same while they go on.
//!
//! What others follow from is compared before them: badges, then the places on boards with their counts, then the
//! tiers, then what shows them, and the other counts of the whole community last. Each is compared with the rows as
//! these then are, whatever a repair made of them.

mod boards;
mod counting;
mod counts;
mod members;
pub(crate) mod report;
mod suffixes;
mod tiers;

use crate::community::Community;
use crate::error::Error;

use report::{MAX_NAMED, Verification};

impl Community {
    /// Compares every kept value of this community with what plain counting comes to; with `repair`, puts right what
    /// differs. Events and calls go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat.
    pub async fn verify(&self, repair: bool) -> Result<Verification, Error> {
        let nothing = || Verification { community_id: self.id, compared: Vec::new(), drifted: Vec::new() };
        let (mut found, mut of_suffixes) = (nothing(), nothing());
        // Nothing follows from suffixes, and comparing them takes as long as most others together.
        let others = self.verify_what_follows(repair, &mut found);
        tokio::try_join!(others, self.verify_suffixes(repair, &mut of_suffixes))?;
        found.compared.extend(of_suffixes.compared);
        found.drifted.extend(of_suffixes.drifted);
        found.drifted.truncate(MAX_NAMED);
        Ok(found)
    }

    async fn verify_what_follows(&self, repair: bool, found: &mut Verification) -> Result<(), Error> {
        self.verify_members(&members::OF_MEMBERS, repair, found).await?;
        self.verify_entries(repair, found).await?;
        self.verify_counts(&counts::BOARDS, repair, found).await?;
        self.verify_thresholds(repair, found).await?;
        self.verify_members(&[tiers::TIERS], repair, found).await?;
        self.verify_members(&[members::DIRECTORY], repair, found).await?;
        self.verify_tiers_of_entries(repair, found).await?;
        self.verify_counts(&counts::COUNTS, repair, found).await
    }
}
