//! Badges: awarded, revoked, listed.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{
    Award, Awarder, Badge, BadgeKind, CommunityId, Cursor, KindCount, Page, PageLimit, ProfileId, Reason,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Error;
use crate::community::Community;
use crate::error::Missing;
use crate::fold::{BadgeChange, MemberChange};
use crate::profile::{in_community, profile_held};
use crate::ranking::{date, micros};
use crate::statement::{self, Statement};
use crate::{lock, member};

#[derive(QueryableByName)]
struct BadgeRow {
    #[diesel(sql_type = SqlUuid)]
    badge_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    profile_id: Uuid,
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = Timestamptz)]
    awarded_at: OffsetDateTime,
    #[diesel(sql_type = Nullable<Text>)]
    awarded_by: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    reason: Option<String>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    revoked_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<Text>)]
    revoked_by: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    revoke_reason: Option<String>,
}

impl TryFrom<BadgeRow> for Badge {
    type Error = Error;

    fn try_from(row: BadgeRow) -> Result<Self, Error> {
        let awarder = |by: Option<String>| by.map(Awarder::parse).transpose().map_err(Error::defect);
        let reason = |why: Option<String>| why.map(Reason::parse).transpose().map_err(Error::defect);
        Ok(Self {
            badge_id: row.badge_id.into(),
            profile_id: row.profile_id.into(),
            kind: BadgeKind::parse(row.kind).map_err(Error::defect)?,
            awarded_at: row.awarded_at,
            awarded_by: awarder(row.awarded_by)?,
            reason: reason(row.reason)?,
            revoked_at: row.revoked_at,
            revoked_by: awarder(row.revoked_by)?,
            revoke_reason: reason(row.revoke_reason)?,
        })
    }
}

#[derive(QueryableByName)]
struct KindRow {
    #[diesel(sql_type = Text)]
    kind: String,
    #[diesel(sql_type = BigInt)]
    holders: i64,
    #[diesel(sql_type = Timestamptz)]
    first_awarded_at: OffsetDateTime,
}

/// An award or a revocation, as it is kept.
pub(crate) struct Operation {
    pub(crate) community: CommunityId,
    pub(crate) profile: ProfileId,
    pub(crate) kind: BadgeKind,
    pub(crate) at: OffsetDateTime,
    pub(crate) id: Uuid,
    pub(crate) award: bool,
    pub(crate) reason: Option<Reason>,
    pub(crate) by: Option<Awarder>,
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
        const ENDPOINT: &str = "profiles.badges";
        let ordering = profile.to_string();
        let (awarded, badge) = self.position(ENDPOINT, &ordering, cursor, (i64::MAX, Uuid::max()))?;
        // A member without a badge is one row without one; where there is no such member, there is no row.
        let statement = self
            .statement(
                "SELECT b.badge_id, b.profile_id, b.kind, b.awarded_at, b.awarded_by, b.reason, b.revoked_at, b.revoked_by,
                     b.revoke_reason
                 FROM (SELECT FROM profiles WHERE community_id = $1 AND profile_id = $2 AND visible LIMIT 1) AS p
                 LEFT JOIN LATERAL (
                     SELECT * FROM badges
                     WHERE community_id = $1 AND profile_id = $2 AND revoked_at IS NULL AND (awarded_at, badge_id) < ($3, $4)
                     ORDER BY awarded_at DESC, badge_id DESC LIMIT $limit
                 ) AS b ON true
                 ORDER BY b.awarded_at DESC, b.badge_id DESC",
            )
            .bind::<SqlUuid, _>(profile.get())
            .bind::<Timestamptz, _>(date(awarded))
            .bind::<SqlUuid, _>(badge);
        let (rows, more) =
            self.store.page::<Option<BadgeRow>, 1000>("badge_list_by_profile", statement, limit).await?;
        if rows.is_empty() {
            return Err(Error::NotFound(Missing::Profile));
        }
        let rows: Vec<BadgeRow> = rows.into_iter().flatten().collect();
        let last = rows.last().map(|row| (micros(row.awarded_at), row.badge_id));
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
        const ENDPOINT: &str = "badges.kinds";
        let after: String = self.position(ENDPOINT, "", cursor, String::new())?;
        let statement = self
            .statement(
                "SELECT kind, holders, first_awarded_at FROM badge_kinds
                 WHERE community_id = $1 AND kind > $2 ORDER BY kind LIMIT $limit",
            )
            .bind::<Text, _>(after);
        let (rows, more) = self.store.page::<KindRow, 1000>("badge_kind_list", statement, limit).await?;
        let next = self.next(ENDPOINT, "", more, rows.last().map(|row| row.kind.clone()))?;
        let items = rows
            .into_iter()
            .map(|row| {
                Ok(KindCount {
                    kind: BadgeKind::parse(row.kind).map_err(Error::defect)?,
                    holders: u64::try_from(row.holders).map_err(Error::defect)?,
                    first_awarded_at: row.first_awarded_at,
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Page { items, next, limit: limit.get() })
    }

    /// Awards a badge. Awarding what is held answers the held badge.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile in this community.
    pub async fn badge_award(
        &self,
        profile: ProfileId,
        kind: BadgeKind,
        reason: Option<Reason>,
        by: Option<Awarder>,
    ) -> Result<Award, Error> {
        let community = self.id;
        self.store
            .write("badge_award", move |connection| {
                async move {
                    let held = lock::member(connection, community, profile).await?;
                    profile_held(connection, community, profile).await?;
                    if let Some(badge) = badge_held(connection, community, profile, &kind).await? {
                        return Ok(Award { badge, created: false });
                    }
                    operate_now(connection, &held, (community, profile), &kind, true, reason, by).await?;
                    let badge = badge_held(connection, community, profile, &kind).await?;
                    let badge = badge.ok_or_else(|| Error::defect("an awarded badge is not held"))?;
                    Ok(Award { badge, created: true })
                }
                .boxed()
            })
            .await
    }

    /// Revokes a held badge, and answers it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile, or it does not hold the kind.
    pub async fn badge_revoke(
        &self,
        profile: ProfileId,
        kind: BadgeKind,
        reason: Option<Reason>,
        by: Option<Awarder>,
    ) -> Result<Badge, Error> {
        let community = self.id;
        self.store
            .write("badge_revoke", move |connection| {
                async move {
                    let locked = lock::member(connection, community, profile).await?;
                    profile_held(connection, community, profile).await?;
                    let held = badge_held(connection, community, profile, &kind).await?;
                    let held = held.ok_or(Error::NotFound(Missing::Badge))?;
                    operate_now(connection, &locked, (community, profile), &kind, false, reason, by).await?;
                    let revoked = in_community(
                        "SELECT badge_id, profile_id, kind, awarded_at, awarded_by, reason, revoked_at, revoked_by,
                             revoke_reason
                         FROM badges WHERE community_id = $1 AND badge_id = $2",
                        community,
                    )
                    .bind::<SqlUuid, _>(held.badge_id.get());
                    let row: Option<BadgeRow> = statement::optional(connection, revoked).await?;
                    row.ok_or_else(|| Error::defect("a revoked badge is gone"))?.try_into()
                }
                .boxed()
            })
            .await
    }

    /// A page of a profile's badges, revoked ones among them, and whether there are more.
    pub(crate) async fn badge_history(
        &self,
        profile: ProfileId,
        limit: PageLimit,
        (kind, awarded, badge): (String, i64, Uuid),
    ) -> Result<(Vec<Badge>, bool), Error> {
        let statement = self
            .statement(
                "SELECT badge_id, profile_id, kind, awarded_at, awarded_by, reason, revoked_at, revoked_by, revoke_reason
                 FROM badges
                 WHERE community_id = $1 AND profile_id = $2 AND (kind, awarded_at, badge_id) > ($3, $4, $5)
                 ORDER BY kind, awarded_at, badge_id LIMIT $limit",
            )
            .bind::<SqlUuid, _>(profile.get())
            .bind::<Text, _>(kind)
            .bind::<Timestamptz, _>(date(awarded))
            .bind::<SqlUuid, _>(badge);
        let (rows, more) = self.store.page::<BadgeRow, 1000>("badge_history", statement, limit).await?;
        Ok((rows.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?, more))
    }
}

async fn badge_held(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    profile: ProfileId,
    kind: &BadgeKind,
) -> Result<Option<Badge>, Error> {
    let held = in_community(
        "SELECT badge_id, profile_id, kind, awarded_at, awarded_by, reason, revoked_at, revoked_by, revoke_reason
         FROM badges WHERE community_id = $1 AND profile_id = $2 AND kind = $3 AND revoked_at IS NULL",
        community,
    )
    .bind::<SqlUuid, _>(profile.get())
    .bind::<Text, _>(kind.as_str().to_owned());
    let row: Option<BadgeRow> = statement::optional(connection, held).await?;
    row.map(TryInto::try_into).transpose()
}

/// Adds an operation that happens now, which is behind every one that is known, even one of a clock ahead of ours.
async fn operate_now(
    connection: &mut AsyncPgConnection,
    held: &lock::Members,
    (community, profile): (CommunityId, ProfileId),
    kind: &BadgeKind,
    award: bool,
    reason: Option<Reason>,
    by: Option<Awarder>,
) -> Result<(), Error> {
    let now = in_community(
        "SELECT greatest(date_trunc('milliseconds', clock_timestamp()), max(at) + interval '1 microsecond') AS at
         FROM badge_ops WHERE community_id = $1 AND profile_id = $2 AND kind = $3",
        community,
    )
    .bind::<SqlUuid, _>(profile.get())
    .bind::<Text, _>(kind.as_str().to_owned());
    let now: Option<NowRow> = statement::optional(connection, now).await?;
    let at = now.ok_or_else(|| Error::defect("the database does not tell the time"))?.at;
    let badge = BadgeChange { mark: (at, Uuid::now_v7()), kind: kind.clone(), award, reason, by };
    let change = MemberChange { badges: vec![badge], ..MemberChange::default() };
    member::change_known(connection, held, community, vec![(profile, change)]).await
}

/// Records operations and makes the badges agree with them; answers which badges are held now that were not, and which no
/// longer are. The members' stripes are locked.
pub(crate) async fn operate(
    connection: &mut AsyncPgConnection,
    operations: &[Operation],
) -> Result<Vec<HeldRow>, Error> {
    fn each<T>(operations: &[Operation], f: impl Fn(&Operation) -> T) -> Vec<T> {
        operations.iter().map(f).collect()
    }
    let communities = each(operations, |o| o.community.get());
    let profiles = each(operations, |o| o.profile.get());
    let kinds = each(operations, |o| o.kind.as_str().to_owned());
    let dates = each(operations, |o| o.at);
    let insert = Statement::new(
        "INSERT INTO badge_ops (community_id, profile_id, kind, at, op_id, award, reason, by)
         SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind::<Array<SqlUuid>, _>(communities.clone())
    .bind::<Array<SqlUuid>, _>(profiles.clone())
    .bind::<Array<Text>, _>(kinds.clone())
    .bind::<Array<Timestamptz>, _>(dates.clone())
    .bind::<Array<SqlUuid>, _>(each(operations, |o| o.id))
    .bind::<Array<Bool>, _>(each(operations, |o| o.award))
    .bind::<Array<Nullable<Text>>, _>(each(operations, |o| o.reason.clone().map(String::from)))
    .bind::<Array<Nullable<Text>>, _>(each(operations, |o| o.by.clone().map(String::from)));
    statement::execute(connection, insert).await?;
    let settle = Statement::new(
        "SELECT pairs.community_id, s.of_profile AS profile_id, s.of_kind AS kind, s.of_date AS awarded_at, s.sign
         FROM (
             SELECT o.community_id, array_agg(o.profile_id) AS profiles, array_agg(o.kind) AS kinds,
                 array_agg(o.since) AS since
             FROM (
                 SELECT community_id, profile_id, kind, min(at) AS since
                 FROM unnest($1, $2, $3, $4) AS o (community_id, profile_id, kind, at)
                 GROUP BY 1, 2, 3
             ) AS o
             GROUP BY 1
         ) AS pairs
         CROSS JOIN LATERAL badges_settle(pairs.community_id, pairs.profiles, pairs.kinds, pairs.since) AS s",
    )
    .bind::<Array<SqlUuid>, _>(communities)
    .bind::<Array<SqlUuid>, _>(profiles)
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Timestamptz>, _>(dates);
    Ok(statement::by_keys(connection, settle, operations.len().saturating_mul(3)).await?)
}

/// Counts, among what visible members hold, all that these hold (true) or no longer any of it (false): they came into sight or
/// went out of it.
pub(crate) async fn turn(
    connection: &mut AsyncPgConnection,
    turned: &[(CommunityId, ProfileId, bool)],
) -> Result<(), Error> {
    let count = Statement::new(
        "WITH held AS MATERIALIZED (
             SELECT b.community_id, b.kind, b.awarded_at, CASE WHEN t.visible THEN 1 ELSE -1 END AS sign
             FROM unnest($1, $2, $3) AS t (community_id, profile_id, visible)
             CROSS JOIN LATERAL (SELECT b.community_id, b.kind, b.awarded_at FROM badges AS b
                 WHERE b.community_id = t.community_id AND b.profile_id = t.profile_id AND b.revoked_at IS NULL
                 OFFSET 0) AS b
         ), kinds AS (
             INSERT INTO badge_kinds AS k (community_id, kind, holders, first_awarded_at)
             SELECT community_id, kind, sum(sign), min(awarded_at) FROM held GROUP BY 1, 2 ORDER BY 1, 2
             ON CONFLICT (community_id, kind) DO UPDATE SET holders = k.holders + excluded.holders
         )
         INSERT INTO community_days AS c (community_id, day, awarded)
         SELECT community_id, utc_day(awarded_at), sum(sign) FROM held GROUP BY 1, 2 ORDER BY 1, 2
         ON CONFLICT (community_id, day) DO UPDATE SET awarded = c.awarded + excluded.awarded",
    )
    .bind::<Array<SqlUuid>, _>(turned.iter().map(|turn| turn.0.get()).collect::<Vec<_>>())
    .bind::<Array<SqlUuid>, _>(turned.iter().map(|turn| turn.1.get()).collect::<Vec<_>>())
    .bind::<Array<Bool>, _>(turned.iter().map(|turn| turn.2).collect::<Vec<_>>());
    statement::execute(connection, count).await?;
    Ok(())
}

/// Removes a person's id as the awarder of others' badges: from all of them, or those awarded or revoked up to `until`.
/// Every stripe of the community is locked.
pub(crate) async fn forget_awarder(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    id: &str,
    until: Option<OffsetDateTime>,
) -> Result<(), Error> {
    const MENTIONS: [&str; 3] = [
        "UPDATE badges AS b SET awarded_by = NULL FROM badge_ops AS o
         WHERE o.community_id = $1 AND o.by = $2 AND o.award AND ($3 IS NULL OR o.at <= $3)
             AND b.community_id = $1 AND b.badge_id = o.op_id",
        "UPDATE badges AS b SET revoked_by = NULL FROM badge_ops AS o
         WHERE o.community_id = $1 AND o.by = $2 AND NOT o.award AND ($3 IS NULL OR o.at <= $3)
             AND b.community_id = $1 AND b.profile_id = o.profile_id AND b.kind = o.kind AND b.revoked_by = $2
             AND b.revoked_at = o.at",
        "UPDATE badge_ops SET by = NULL WHERE community_id = $1 AND by = $2 AND ($3 IS NULL OR at <= $3)",
    ];
    for sql in MENTIONS {
        let update = in_community(sql, community)
            .bind::<Text, _>(id.to_owned())
            .bind::<Nullable<Timestamptz>, _>(until);
        statement::execute(connection, update).await?;
    }
    Ok(())
}

/// A badge that is held now (sign 1), no longer held (-1), or was never held and makes its kind known (0).
#[derive(QueryableByName)]
pub(crate) struct HeldRow {
    #[diesel(sql_type = SqlUuid)]
    pub(crate) community_id: Uuid,
    #[diesel(sql_type = SqlUuid)]
    pub(crate) profile_id: Uuid,
    #[diesel(sql_type = Text)]
    pub(crate) kind: String,
    #[diesel(sql_type = Timestamptz)]
    pub(crate) awarded_at: OffsetDateTime,
    #[diesel(sql_type = Integer)]
    pub(crate) sign: i32,
}

#[derive(QueryableByName)]
struct NowRow {
    #[diesel(sql_type = Timestamptz)]
    at: OffsetDateTime,
}
