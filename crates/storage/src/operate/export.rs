//! All that is held on one person.

use diesel::sql_types::Uuid as SqlUuid;
use muster_domain::{Cursor, Export, PageLimit, ProfileId, lists};
use uuid::Uuid;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::date::micros;
use crate::read::profile::{ProfileRow, profile_columns};

impl Community {
    /// Everything that is held on a person, a page of it: at most `limit` badges and as many changes of tier.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, [`Error::Cursor`] for a foreign cursor.
    pub async fn profile_export(
        &self,
        id: ProfileId,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Export, Error> {
        const ENDPOINT: &str = lists::ADMIN_PROFILES_EXPORT;
        let ordering = id.to_string();
        let start = ((0_i32, i64::MIN, Uuid::nil()), 0_i64);
        let (badge_after, change_after) = self.position(ENDPOINT, &ordering, cursor, start)?;
        let statement = self
            .statement(concat!(
                "SELECT ",
                profile_columns!(),
                " FROM members AS m
                 WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.erased_at IS NULL LIMIT 1"
            ))
            .bind::<SqlUuid, _>(id.get());
        let profile: ProfileRow = self
            .store
            .optional("profile_export", statement)
            .await?
            .ok_or(Error::NotFound(Missing::Profile))?;
        let (badges, more_badges) = self.badge_history(profile.member, limit, badge_after).await?;
        let (changes, more_changes) = self.tier_history(profile.member, limit, change_after).await?;
        let position = (
            badges
                .last()
                .map_or(badge_after, |(kind, badge)| (*kind, micros(badge.awarded_at), badge.badge_id.get())),
            changes.last().map_or(change_after, |(change, _)| *change),
        );
        let policy = self.policy_of([profile.tier]).await?;
        Ok(Export {
            profile: profile.profile(&policy)?,
            next: self.next(ENDPOINT, &ordering, more_badges || more_changes, Some(position))?,
            badges: badges.into_iter().map(|(_, badge)| badge).collect(),
            tier_changes: changes.into_iter().map(|(_, change)| change).collect(),
        })
    }
}
