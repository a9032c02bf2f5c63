//! The rows of `members`: found and written.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Nym, Shard, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use super::boards::Place;
use super::change::{MemberChange, Watermark, newer};
use super::counts::Standing;
use crate::board::Board;
use crate::error::Error;
use crate::schema::members;
use crate::sql::columns::{Row, columns, rows_in};
use crate::sql::statement::{self, Statement};

/// What a member is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) user: UserId,
    pub(crate) profile_id: Uuid,
    pub(crate) conviction: i64,
    conviction_set: Option<Watermark>,
    pub(crate) activity: i64,
    pub(crate) activity_set: Option<Watermark>,
    last_active_at: Option<OffsetDateTime>,
    pub(crate) username: Option<String>,
    username_set: Option<Watermark>,
    pub(crate) nick: Option<String>,
    nick_set: Option<Watermark>,
    pub(crate) nym_key: String,
    pub(crate) has_left: bool,
    presence_set: Option<Watermark>,
    hidden: bool,
    pub(crate) joined_at: OffsetDateTime,
    join_known: bool,
    pub(crate) badge_count: i32,
    pub(crate) tier: Option<i16>,
    pub(crate) tier_assigned: bool,
}

/// A member's row that is there.
pub(crate) struct Stored {
    pub(crate) community: i32,
    pub(crate) number: i64,
    pub(crate) state: State,
}

impl State {
    /// A member of whom nothing is stored, with all that `change` says but activity and badges.
    pub(crate) fn first(user: UserId, change: &MemberChange) -> Result<Self, Error> {
        let joined_at = change.joined.or(change.seen).unwrap_or_else(OffsetDateTime::now_utc);
        let nothing = Self {
            nym_key: Nym::of_user(&user).key().as_str().to_owned(),
            user,
            profile_id: Uuid::now_v7(),
            conviction: 0,
            conviction_set: None,
            activity: 0,
            activity_set: None,
            last_active_at: None,
            username: None,
            username_set: None,
            nick: None,
            nick_set: None,
            has_left: change.was_erased,
            presence_set: None,
            hidden: false,
            joined_at,
            join_known: change.joined.is_some(),
            badge_count: 0,
            tier: None,
            tier_assigned: false,
        };
        nothing.changed_by(change)
    }

    /// What this member becomes by a change, but for activity and badges.
    pub(crate) fn changed_by(&self, change: &MemberChange) -> Result<Self, Error> {
        let mut state = self.clone();
        if let Some((watermark, conviction)) = newer(&change.conviction, self.conviction_set) {
            (state.conviction, state.conviction_set) = (conviction.get(), Some(*watermark));
        }
        if let Some((watermark, has_left)) = newer(&change.has_left, self.presence_set) {
            (state.has_left, state.presence_set) = (*has_left, Some(*watermark));
        }
        let mut is_named = false;
        if let Some((watermark, username)) = newer(&change.username, self.username_set) {
            state.username = username.as_ref().map(|nym| nym.as_str().to_owned());
            state.username_set = Some(*watermark);
            is_named = true;
        }
        if let Some((watermark, nick)) = newer(&change.nick, self.nick_set) {
            state.nick = nick.as_ref().map(|nym| nym.as_str().to_owned());
            state.nick_set = Some(*watermark);
            is_named = true;
        }
        if is_named {
            state.nym_key = state.nym()?.key().as_str().to_owned();
        }
        state.last_active_at = self.last_active_at.max(change.last_active());
        state.hidden = change.hidden.unwrap_or(self.hidden);
        let earliest = |at: Option<OffsetDateTime>| at.map_or(self.joined_at, |at| self.joined_at.min(at));
        (state.joined_at, state.join_known) = match change.joined {
            None if self.join_known => (self.joined_at, true),
            None => (earliest(change.seen), false),
            Some(joined) if self.join_known => (self.joined_at.min(joined), true),
            Some(joined) => (joined, true),
        };
        Ok(state)
    }

    /// The display name.
    pub(crate) fn nym(&self) -> Result<Nym, Error> {
        match self.nick.as_ref().or(self.username.as_ref()) {
            Some(name) => Nym::parse(name).map_err(Error::defect),
            None => Ok(Nym::of_user(&self.user)),
        }
    }

    /// Whether lists show the member.
    pub(crate) const fn visible(&self) -> bool {
        !self.has_left && !self.hidden
    }

    /// What is counted for the member.
    pub(crate) fn standing(&self) -> Option<Standing> {
        self.visible().then_some(Standing {
            conviction: self.conviction,
            activity: self.activity,
            badge_count: self.badge_count,
            joined_at: self.joined_at,
            last_active_at: self.last_active_at,
        })
    }

    /// The member's place on a board.
    pub(crate) fn place(&self, board: Board) -> Option<Place> {
        let score = self.standing()?.score(board)?;
        let tier = self.tier.filter(|_| board == Board::Badges);
        Some(Place { score, joined_at: self.joined_at, tier })
    }

    /// The row of it.
    pub(crate) fn row(&self, community: i32, member: i64) -> MemberRow {
        MemberRow {
            community,
            member,
            tier: self.tier,
            conviction: self.conviction,
            activity: self.activity,
            joined_at: self.joined_at,
            last_active_at: self.last_active_at,
            conviction_set_at: self.conviction_set.map(|set| set.0),
            activity_set_at: self.activity_set.map(|set| set.0),
            username_set_at: self.username_set.map(|set| set.0),
            nick_set_at: self.nick_set.map(|set| set.0),
            presence_set_at: self.presence_set.map(|set| set.0),
            badge_count: self.badge_count,
            join_known: self.join_known,
            has_left: self.has_left,
            hidden: self.hidden,
            tier_assigned: self.tier_assigned,
            profile_id: self.profile_id,
            conviction_set_by: self.conviction_set.map(|set| set.1),
            activity_set_by: self.activity_set.map(|set| set.1),
            username_set_by: self.username_set.map(|set| set.1),
            nick_set_by: self.nick_set.map(|set| set.1),
            presence_set_by: self.presence_set.map(|set| set.1),
            user_id: self.user.as_str().to_owned(),
            username: self.username.clone(),
            nick: self.nick.clone(),
            nym_key: self.nym_key.clone(),
        }
    }
}

columns! {
    /// A person in a community.
    pub(crate) struct UserKey {
        community: i32 => Integer,
        key: String => Text,
    }
}

columns! {
    /// A member in a community.
    pub(crate) struct NumberKey {
        community: i32 => Integer,
        key: i64 => BigInt,
    }
}

columns! {
    /// A row as it is written.
    pub(crate) struct MemberRow {
        community: i32 => Integer,
        member: i64 => BigInt,
        tier: Option<i16> => Nullable<SmallInt>,
        conviction: i64 => BigInt,
        activity: i64 => BigInt,
        joined_at: OffsetDateTime => Timestamptz,
        last_active_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        conviction_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        activity_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        username_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        nick_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        presence_set_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        badge_count: i32 => Integer,
        join_known: bool => Bool,
        has_left: bool => Bool,
        hidden: bool => Bool,
        tier_assigned: bool => Bool,
        profile_id: Uuid => SqlUuid,
        conviction_set_by: Option<Uuid> => Nullable<SqlUuid>,
        activity_set_by: Option<Uuid> => Nullable<SqlUuid>,
        username_set_by: Option<Uuid> => Nullable<SqlUuid>,
        nick_set_by: Option<Uuid> => Nullable<SqlUuid>,
        presence_set_by: Option<Uuid> => Nullable<SqlUuid>,
        user_id: String => Text,
        username: Option<String> => Nullable<Text>,
        nick: Option<String> => Nullable<Text>,
        nym_key: String => Text,
    }
}

/// What is stored of each key: a community and, of the member, this column.
macro_rules! find_by {
    ($column:literal) => {
        concat!(
            "SELECT m.* FROM $rows CROSS JOIN LATERAL (
                 SELECT r.community, r.member, r.tier, r.conviction, r.activity, r.joined_at, r.last_active_at,
                     r.conviction_set_at, r.activity_set_at, r.username_set_at, r.nick_set_at, r.presence_set_at,
                     r.badge_count, r.join_known, r.has_left, r.hidden, r.tier_assigned, r.profile_id,
                     r.conviction_set_by, r.activity_set_by, r.username_set_by, r.nick_set_by, r.presence_set_by,
                     r.user_id, r.username, r.nick, r.nym_key
                 FROM members AS r
                 WHERE r.shard = $1 AND r.community = rows.community AND r.",
            $column,
            " = rows.key AND r.user_id IS NOT NULL LIMIT 1) AS m"
        )
    };
}

/// The rows of these people, but of who was erased.
pub(crate) async fn find_by_user(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    keys: Vec<UserKey>,
) -> Result<Vec<Stored>, Error> {
    find(connection, Statement::in_shard(shard, find_by!("user_id")), keys).await
}

/// The rows of these members, but of who was erased.
pub(crate) async fn find_by_number(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    keys: Vec<NumberKey>,
) -> Result<Vec<Stored>, Error> {
    find(connection, Statement::in_shard(shard, find_by!("member")), keys).await
}

async fn find<R: Row>(
    connection: &mut AsyncPgConnection,
    statement: Statement,
    keys: Vec<R>,
) -> Result<Vec<Stored>, Error> {
    let rows: Vec<StoredRow> = statement::of_each(connection, statement, keys).await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// The tiers that these members hold, and whether they were assigned one.
pub(crate) async fn tiers(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    keys: Vec<NumberKey>,
) -> Result<Vec<TierRow>, Error> {
    let find = Statement::in_shard(
        shard,
        "SELECT m.* FROM $rows CROSS JOIN LATERAL (SELECT r.community, r.member, r.tier, r.tier_assigned
             FROM members AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.key LIMIT 1) AS m",
    );
    Ok(statement::of_each(connection, find, keys).await?)
}

/// Writes new members.
pub(crate) async fn insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    rows: Vec<MemberRow>,
) -> Result<(), Error> {
    let insert = "INSERT INTO members (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    statement::write(connection, Statement::in_shard(shard, insert), rows).await?;
    Ok(())
}

/// Writes known members. Their communities are locked.
pub(crate) async fn update(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    rows: Vec<MemberRow>,
) -> Result<(), Error> {
    let update = concat!(
        "UPDATE members AS m SET tier = rows.tier, conviction = rows.conviction, activity = rows.activity,
             joined_at = rows.joined_at, last_active_at = rows.last_active_at,
             conviction_set_at = rows.conviction_set_at, activity_set_at = rows.activity_set_at,
             username_set_at = rows.username_set_at, nick_set_at = rows.nick_set_at,
             presence_set_at = rows.presence_set_at, badge_count = rows.badge_count,
             join_known = rows.join_known, has_left = rows.has_left, hidden = rows.hidden,
             tier_assigned = rows.tier_assigned, conviction_set_by = rows.conviction_set_by,
             activity_set_by = rows.activity_set_by, username_set_by = rows.username_set_by,
             nick_set_by = rows.nick_set_by, presence_set_by = rows.presence_set_by,
             username = rows.username, nick = rows.nick, nym_key = rows.nym_key
         FROM ",
        rows_in!("members", "member"),
        " WHERE m.shard = $1 AND m.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, update), rows).await?;
    Ok(())
}

#[derive(QueryableByName)]
#[diesel(table_name = members)]
pub(crate) struct TierRow {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) tier: Option<i16>,
    pub(crate) tier_assigned: bool,
}

#[derive(QueryableByName)]
#[diesel(table_name = members)]
struct StoredRow {
    community: i32,
    member: i64,
    tier: Option<i16>,
    conviction: i64,
    activity: i64,
    joined_at: OffsetDateTime,
    last_active_at: Option<OffsetDateTime>,
    conviction_set_at: Option<OffsetDateTime>,
    activity_set_at: Option<OffsetDateTime>,
    username_set_at: Option<OffsetDateTime>,
    nick_set_at: Option<OffsetDateTime>,
    presence_set_at: Option<OffsetDateTime>,
    badge_count: i32,
    join_known: bool,
    has_left: bool,
    hidden: bool,
    tier_assigned: bool,
    profile_id: Uuid,
    conviction_set_by: Option<Uuid>,
    activity_set_by: Option<Uuid>,
    username_set_by: Option<Uuid>,
    nick_set_by: Option<Uuid>,
    presence_set_by: Option<Uuid>,
    user_id: Option<String>,
    username: Option<String>,
    nick: Option<String>,
    nym_key: String,
}

impl TryFrom<StoredRow> for Stored {
    type Error = Error;

    fn try_from(row: StoredRow) -> Result<Self, Error> {
        let state = State {
            user: UserId::parse(row.user_id.unwrap_or_default()).map_err(Error::defect)?,
            profile_id: row.profile_id,
            conviction: row.conviction,
            conviction_set: row.conviction_set_at.zip(row.conviction_set_by),
            activity: row.activity,
            activity_set: row.activity_set_at.zip(row.activity_set_by),
            last_active_at: row.last_active_at,
            username: row.username,
            username_set: row.username_set_at.zip(row.username_set_by),
            nick: row.nick,
            nick_set: row.nick_set_at.zip(row.nick_set_by),
            nym_key: row.nym_key,
            has_left: row.has_left,
            presence_set: row.presence_set_at.zip(row.presence_set_by),
            hidden: row.hidden,
            joined_at: row.joined_at,
            join_known: row.join_known,
            badge_count: row.badge_count,
            tier: row.tier,
            tier_assigned: row.tier_assigned,
        };
        Ok(Self { community: row.community, number: row.member, state })
    }
}
