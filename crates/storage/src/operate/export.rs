//! All that is held on one person.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use muster_domain::{Activity, Addition, Cursor, Export, Nym, PageLimit, ProfileId, lists};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::badges::Operation;
use crate::read::date::{date, micros};
use crate::read::profile::{ProfileRow, profile_columns};
use crate::schema::activity_adds;

#[derive(QueryableByName)]
struct PersonRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = Nullable<Text>)]
    username: Option<String>,
}

#[derive(QueryableByName)]
#[diesel(table_name = activity_adds)]
struct AdditionRow {
    at: OffsetDateTime,
    event_id: Uuid,
    amount: i64,
}

impl Community {
    /// Everything that is held on a person, a page of it: the profile, and at most `limit` rows; awards and revocations come first, then
    /// additions to the activity, then changes of tier. Where others' badges name the person as the awarder, that is held on those others.
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
        // The second shape of its position: version 0.1.0 would read the first three of it as its own.
        let ordering = format!("{id} 2");
        let start = ((0_i32, i64::MIN, Uuid::nil()), (i64::MIN, Uuid::nil()), 0_i64);
        let (operation_after, addition_after, change_after) =
            self.position(ENDPOINT, &ordering, cursor, start)?;
        let statement = self
            .statement(concat!(
                "SELECT ",
                profile_columns!(),
                ", m.username FROM members AS m
                 WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.erased_at IS NULL LIMIT 1"
            ))
            .bind::<SqlUuid, _>(id.get());
        let PersonRow { profile, username } = self
            .store
            .optional("profile_export", statement)
            .await?
            .ok_or(Error::NotFound(Missing::Profile))?;
        let member = profile.member;
        let (mut operations, more_operations) = self.badge_history(member, limit, operation_after).await?;
        let (mut additions, more_additions) = self.activity_additions(member, limit, addition_after).await?;
        let (mut changes, more_changes) = self.tier_history(member, limit, change_after).await?;
        let mut room = usize::try_from(limit.get()).map_err(Error::defect)?;
        let cut =
            [cut(&mut operations, &mut room), cut(&mut additions, &mut room), cut(&mut changes, &mut room)];
        let more = more_operations || more_additions || more_changes || cut.contains(&true);
        let position = (
            operations.last().map_or(operation_after, |(place, _)| *place),
            additions.last().map_or(addition_after, |row| (micros(row.at), row.event_id)),
            changes.last().map_or(change_after, |(change, _)| *change),
        );
        let policy = self.policy_of([profile.tier]).await?;
        let (mut badges, mut others) = (Vec::new(), Vec::new());
        for (_, operation) in operations {
            match operation {
                Operation::Badge(badge) => badges.push(badge),
                Operation::Other(other) => others.push(other),
            }
        }
        let addition = |row: AdditionRow| Addition { at: row.at, amount: Activity::clamp(row.amount) };
        Ok(Export {
            profile: profile.profile(&policy)?,
            username: username.map(Nym::parse).transpose().map_err(Error::defect)?,
            next: self.next(ENDPOINT, &ordering, more, Some(position))?,
            badges,
            operations: others,
            additions: additions.into_iter().map(addition).collect(),
            tier_changes: changes.into_iter().map(|(_, change)| change).collect(),
        })
    }

    /// A page of what was added to a member's activity since it was last set, and whether there is more.
    async fn activity_additions(
        &self,
        member: i64,
        limit: PageLimit,
        (at, event): (i64, Uuid),
    ) -> Result<(Vec<AdditionRow>, bool), Error> {
        let statement = self
            .statement(
                "SELECT a.at, a.event_id, a.amount FROM activity_adds AS a
                 WHERE a.shard = $1 AND a.community = $2 AND a.member = $3 AND (a.at, a.event_id) > ($4, $5)
                 ORDER BY a.at, a.event_id LIMIT $limit",
            )
            .bind::<BigInt, _>(member)
            .bind::<Timestamptz, _>(date(at))
            .bind::<SqlUuid, _>(event);
        self.store.page::<AdditionRow, 1000>("activity_additions", statement, limit).await
    }
}

/// Takes rows off that there is no room for; answers whether there were any.
fn cut<T>(rows: &mut Vec<T>, room: &mut usize) -> bool {
    let are_too_many = rows.len() > *room;
    rows.truncate(*room);
    *room = room.saturating_sub(rows.len());
    are_too_many
}
