//! Badges as they are read: a member's, the kinds, and what an operator's award or revocation finds.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{
    Awarder, Badge, BadgeKind, BadgeOperation, Cursor, KindCount, Page, PageLimit, ProfileId, Reason, lists,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::date::{date, micros};
use crate::schema::{badge_kinds, badge_ops, members};
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// The columns of a [`BadgeRow`] of `badge_ops AS b`: all but the name of its kind and its holder.
macro_rules! badge_columns {
    () => {
        "b.op_id, b.kind, b.at, b.by, b.reason, b.revoked_at, b.revoked_by, b.revoke_reason"
    };
}

/// The kind `n` of the badge `b`.
macro_rules! kind_of_each_badge {
    () => {
        " CROSS JOIN LATERAL (SELECT n.name FROM badge_kinds AS n
              WHERE n.shard = $1 AND n.community = $2 AND n.kind = b.kind LIMIT 1) AS n "
    };
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_ops)]
struct BadgeRow {
    op_id: Uuid,
    kind: i32,
    at: OffsetDateTime,
    by: Option<String>,
    reason: Option<String>,
    revoked_at: Option<OffsetDateTime>,
    revoked_by: Option<String>,
    revoke_reason: Option<String>,
    #[diesel(embed)]
    name: NameRow,
    #[diesel(embed)]
    holder: HolderRow,
}

/// An award or a revocation, of which those that are badges are awards with effect.
#[derive(QueryableByName)]
#[diesel(table_name = badge_ops)]
struct OperationRow {
    award: bool,
    is_badge: bool,
    #[diesel(embed)]
    badge: BadgeRow,
}

/// One of all operations that are kept of a member.
pub(crate) enum Operation {
    Badge(Badge),
    Other(BadgeOperation),
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_kinds)]
struct NameRow {
    name: String,
}

#[derive(QueryableByName)]
#[diesel(table_name = members)]
struct HolderRow {
    profile_id: Uuid,
}

impl TryFrom<BadgeRow> for Badge {
    type Error = Error;

    fn try_from(row: BadgeRow) -> Result<Self, Error> {
        let awarder = |by: Option<String>| by.map(Awarder::parse).transpose().map_err(Error::defect);
        let reason = |why: Option<String>| why.map(Reason::parse).transpose().map_err(Error::defect);
        Ok(Self {
            badge_id: row.op_id.into(),
            profile_id: row.holder.profile_id.into(),
            kind: BadgeKind::parse(row.name.name).map_err(Error::defect)?,
            awarded_at: row.at,
            awarded_by: awarder(row.by)?,
            reason: reason(row.reason)?,
            revoked_at: row.revoked_at,
            revoked_by: awarder(row.revoked_by)?,
            revoke_reason: reason(row.revoke_reason)?,
        })
    }
}

impl TryFrom<OperationRow> for Operation {
    type Error = Error;

    fn try_from(row: OperationRow) -> Result<Self, Error> {
        let badge = Badge::try_from(row.badge)?;
        if row.is_badge {
            return Ok(Self::Badge(badge));
        }
        let Badge { kind, awarded_at: at, awarded_by: by, reason, .. } = badge;
        Ok(Self::Other(BadgeOperation { kind, award: row.award, at, by, reason }))
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_kinds)]
struct KindRow {
    name: String,
    holders: i64,
    #[diesel(sql_type = Timestamptz)]
    first_awarded_at: OffsetDateTime,
}

impl Community {
    /// A visible member's unrevoked badges, newest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such member, [`Error::Cursor`] for a foreign cursor.
    pub async fn badge_list_by_profile(
        &self,
        profile: ProfileId,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<Badge>, Error> {
        const ENDPOINT: &str = lists::PROFILES_BADGES;
        let ordering = profile.to_string();
        let (awarded, badge) = self.position(ENDPOINT, &ordering, cursor, (i64::MAX, Uuid::max()))?;
        // A member without a badge is one row without one; where there is no such member, there is no row.
        let statement = self
            .statement(concat!(
                "SELECT ",
                badge_columns!(),
                ", b.name, m.profile_id
                 FROM (SELECT m.member, m.profile_id FROM members AS m
                     WHERE m.shard = $1 AND m.community = $2 AND m.profile_id = $3 AND m.visible LIMIT 1) AS m
                 LEFT JOIN LATERAL (
                     SELECT b.*, n.name FROM (
                         SELECT ",
                badge_columns!(),
                " FROM badge_ops AS b
                         WHERE b.shard = $1 AND b.community = $2 AND b.member = m.member AND b.is_badge
                             AND b.revoked_at IS NULL AND (b.at, b.op_id) < ($4, $5)
                         ORDER BY b.at DESC, b.op_id DESC LIMIT $limit
                     ) AS b",
                kind_of_each_badge!(),
                "    ORDER BY b.at DESC, b.op_id DESC
                 ) AS b ON true
                 ORDER BY b.at DESC, b.op_id DESC"
            ))
            .bind::<SqlUuid, _>(profile.get())
            .bind::<Timestamptz, _>(date(awarded))
            .bind::<SqlUuid, _>(badge);
        let (rows, more) =
            self.store.page::<Option<BadgeRow>, 1000>("badge_list_by_profile", statement, limit).await?;
        if rows.is_empty() {
            return Err(Error::NotFound(Missing::Profile));
        }
        let rows: Vec<BadgeRow> = rows.into_iter().flatten().collect();
        let last = rows.last().map(|row| (micros(row.at), row.op_id));
        let next = self.next(ENDPOINT, &ordering, more, last)?;
        let items = rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// The community's badge kinds, by name.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn badge_kind_list(
        &self,
        limit: PageLimit,
        cursor: Option<&Cursor>,
    ) -> Result<Page<KindCount>, Error> {
        const ENDPOINT: &str = lists::BADGES_KINDS;
        let after: String = self.position(ENDPOINT, "", cursor, String::new())?;
        let statement = self
            .statement(
                "SELECT k.name, k.holders, k.first_awarded_at FROM badge_kinds AS k
                 WHERE k.shard = $1 AND k.community = $2 AND isfinite(k.first_awarded_at) AND k.name > $3
                 ORDER BY k.name LIMIT $limit",
            )
            .bind::<Text, _>(after);
        let (rows, more) = self.store.page::<KindRow, 1000>("badge_kind_list", statement, limit).await?;
        let next = self.next(ENDPOINT, "", more, rows.last().map(|row| row.name.clone()))?;
        let items = rows
            .into_iter()
            .map(|row| {
                Ok(KindCount {
                    kind: BadgeKind::parse(row.name).map_err(Error::defect)?,
                    holders: u64::try_from(row.holders).map_err(Error::defect)?,
                    first_awarded_at: row.first_awarded_at,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// A page of all awards and revocations of a member, each with its place: kind by kind in the order in which the kinds became
    /// known; and whether there are more.
    pub(crate) async fn badge_history(
        &self,
        member: i64,
        limit: PageLimit,
        (kind, awarded, badge): (i32, i64, Uuid),
    ) -> Result<(Vec<((i32, i64, Uuid), Operation)>, bool), Error> {
        let statement = self
            .statement(concat!(
                "SELECT b.*, n.name, m.profile_id
                 FROM (SELECT ",
                badge_columns!(),
                ", b.award, b.is_badge FROM badge_ops AS b
                     WHERE b.shard = $1 AND b.community = $2 AND b.member = $3
                         AND (b.kind, b.at, b.op_id) > ($4, $5, $6)
                     ORDER BY b.kind, b.at, b.op_id LIMIT $limit) AS b",
                kind_of_each_badge!(),
                "CROSS JOIN LATERAL (SELECT m.profile_id FROM members AS m
                     WHERE m.shard = $1 AND m.community = $2 AND m.member = $3 LIMIT 1) AS m
                 ORDER BY b.kind, b.at, b.op_id"
            ))
            .bind::<BigInt, _>(member)
            .bind::<Integer, _>(kind)
            .bind::<Timestamptz, _>(date(awarded))
            .bind::<SqlUuid, _>(badge);
        let (rows, more) = self.store.page::<OperationRow, 1000>("badge_history", statement, limit).await?;
        let operations = rows
            .into_iter()
            .map(|row| Ok(((row.badge.kind, micros(row.badge.at), row.badge.op_id), row.try_into()?)));
        Ok((operations.collect::<Result<_, Error>>()?, more))
    }
}

/// A statement that finds one badge of the member `$3`.
macro_rules! badge_where {
    ($condition:literal) => {
        concat!(
            "SELECT ",
            badge_columns!(),
            ", n.name, m.profile_id
             FROM (SELECT ",
            badge_columns!(),
            " FROM badge_ops AS b WHERE b.shard = $1 AND b.community = $2 AND b.member = $3 AND b.is_badge AND ",
            $condition,
            " LIMIT 1) AS b",
            kind_of_each_badge!(),
            "CROSS JOIN LATERAL (SELECT m.profile_id FROM members AS m
                 WHERE m.shard = $1 AND m.community = $2 AND m.member = $3 LIMIT 1) AS m"
        )
    };
}

/// The badge of a kind that a member holds, as this transaction sees it.
pub(crate) async fn badge_held(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    member: i64,
    kind: &BadgeKind,
) -> Result<Option<Badge>, Error> {
    let held = Statement::in_community(
        tenant,
        badge_where!(
            "b.revoked_at IS NULL AND b.kind = (SELECT k.kind FROM badge_kinds AS k
                 WHERE k.shard = $1 AND k.community = $2 AND k.name = $4 LIMIT 1)"
        ),
    )
    .bind::<BigInt, _>(member)
    .bind::<Text, _>(kind.as_str().to_owned());
    let row: Option<BadgeRow> = statement::optional(connection, held).await?;
    row.map(TryInto::try_into).transpose()
}

/// A badge that a member held a moment ago, as this transaction sees it now.
pub(crate) async fn badge_again(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    member: i64,
    badge: &Badge,
) -> Result<Badge, Error> {
    let again = Statement::in_community(
        tenant,
        badge_where!(
            "b.kind = (SELECT k.kind FROM badge_kinds AS k
                 WHERE k.shard = $1 AND k.community = $2 AND k.name = $4 LIMIT 1) AND b.at = $5 AND b.op_id = $6"
        ),
    )
    .bind::<BigInt, _>(member)
    .bind::<Text, _>(badge.kind.as_str().to_owned())
    .bind::<Timestamptz, _>(badge.awarded_at)
    .bind::<SqlUuid, _>(badge.badge_id.get());
    let row: Option<BadgeRow> = statement::optional(connection, again).await?;
    row.ok_or_else(|| Error::defect("a revoked badge is gone"))?.try_into()
}
