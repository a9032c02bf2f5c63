//! The directory: all visible members, or those of one tier, in one of three orders, either way round.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use muster_domain::{Cursor, Direction, DirectoryPage, DirectorySort, PageLimit, TenuredProfile, Tier};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Error;
use crate::community::Community;
use crate::profile::{ProfileRow, profile_columns, profile_of_each_key};
use crate::ranking::{date, micros};
use crate::search::behind_every_nym;

/// The last row that a page by number may reach; behind it only a cursor leads.
pub const DIRECTORY_ROWS_BY_NUMBER: u32 = 10_000;

/// Where a page of the directory begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryStart {
    /// Behind the last row of the page before, or at the first.
    Cursor(Option<Cursor>),
    /// At this many rows from the first, below [`DIRECTORY_ROWS_BY_NUMBER`].
    Offset(u32),
}

/// The last row's key, in the order of the list.
#[derive(Serialize, Deserialize)]
enum Key {
    Nym(String, i64, Uuid),
    Joined(i64, Uuid),
    Badges(i32, i64, Uuid),
}

/// How many members the whole list has, with one of them; with nobody where the page is empty.
#[derive(QueryableByName)]
struct DirectoryRow {
    #[diesel(sql_type = BigInt)]
    total: i64,
    #[diesel(embed)]
    listed: Option<ListedRow>,
}

#[derive(QueryableByName)]
struct ListedRow {
    #[diesel(embed)]
    profile: ProfileRow,
    #[diesel(sql_type = Text)]
    nym_key: String,
}

/// One list with its kept count, in one statement: `$2` rows are skipped, `$3` is the tier, `$4` and on are the key of the
/// row before.
macro_rules! list {
    ($count:literal, $tier:literal, $columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        concat!(
            "WITH k AS MATERIALIZED (
                 SELECT p.profile_id, p.badge_count, p.joined_at, p.nym_key FROM profiles AS p
                 WHERE p.community_id = $1 AND p.visible",
            $tier,
            " AND ",
            $columns,
            $beyond,
            $key,
            " ORDER BY ",
            $order,
            " LIMIT $limit OFFSET $2
             )
             SELECT c.total, p.* FROM (SELECT coalesce((",
            $count,
            "), 0) AS total) AS c
             LEFT JOIN (SELECT ",
            profile_columns!(),
            ", k.nym_key FROM k",
            profile_of_each_key!(),
            ") AS p ON true ORDER BY ",
            $order
        )
    };
}

macro_rules! list_of_all {
    ($columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        list!(
            "SELECT c.members FROM community_counts AS c WHERE c.community_id = $1",
            "",
            $columns,
            $beyond,
            $key,
            $order
        )
    };
}

macro_rules! list_of_tier {
    ($columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        list!(
            "SELECT c.members FROM tier_counts AS c WHERE c.community_id = $1 AND c.tier = $3",
            " AND p.tier = $3",
            $columns,
            $beyond,
            $key,
            $order
        )
    };
}

/// The four lists of one order: of all members and of one tier, forward and backward.
macro_rules! lists {
    ($columns:literal, $key:literal, $forward:literal, $backward:literal) => {
        [
            [list_of_all!($columns, " > ", $key, $forward), list_of_all!($columns, " < ", $key, $backward)],
            [list_of_tier!($columns, " > ", $key, $forward), list_of_tier!($columns, " < ", $key, $backward)],
        ]
    };
}

type Lists = [[&'static str; 2]; 2];

const BY_NYM: Lists = lists!(
    "(p.nym_key, p.joined_at, p.profile_id)",
    "($4, $5, $6)",
    "p.nym_key, p.joined_at, p.profile_id",
    "p.nym_key DESC, p.joined_at DESC, p.profile_id DESC"
);
const BY_JOINED: Lists = lists!(
    "(p.joined_at, p.profile_id)",
    "($4, $5)",
    "p.joined_at, p.profile_id",
    "p.joined_at DESC, p.profile_id DESC"
);
const BY_BADGES: Lists = lists!(
    "((-p.badge_count), p.joined_at, p.profile_id)",
    "($4, $5, $6)",
    "(-p.badge_count), p.joined_at, p.profile_id",
    "(-p.badge_count) DESC, p.joined_at DESC, p.profile_id DESC"
);

impl Community {
    /// A page of the directory: by nym and then joining, by tenure, or by badges and then joining. By tenure and by badges,
    /// descending is from the longest and the most.
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn directory_list(
        &self,
        tier: Option<&Tier>,
        sort: DirectorySort,
        direction: Direction,
        limit: PageLimit,
        start: &DirectoryStart,
    ) -> Result<DirectoryPage, Error> {
        const ENDPOINT: &str = "directory.list";
        let ordering = format!("{sort}:{direction}:{}", tier.map(Tier::as_str).unwrap_or_default());
        // The longest tenure is the earliest joining, and badges are kept negated: there, descending is forward.
        let forward = (sort == DirectorySort::Nym) == (direction == Direction::Asc);
        let (cursor, offset) = match start {
            DirectoryStart::Cursor(cursor) => (cursor.as_ref(), 0),
            DirectoryStart::Offset(rows) => (None, (*rows).min(DIRECTORY_ROWS_BY_NUMBER)),
        };
        let first = match (sort, forward) {
            (DirectorySort::Nym, true) => Key::Nym(String::new(), i64::MIN, Uuid::nil()),
            (DirectorySort::Nym, false) => Key::Nym(behind_every_nym(""), i64::MAX, Uuid::max()),
            (DirectorySort::Tenure, true) => Key::Joined(i64::MIN, Uuid::nil()),
            (DirectorySort::Tenure, false) => Key::Joined(i64::MAX, Uuid::max()),
            (DirectorySort::Badges, true) => Key::Badges(i32::MIN, i64::MIN, Uuid::nil()),
            (DirectorySort::Badges, false) => Key::Badges(i32::MAX, i64::MAX, Uuid::max()),
        };
        let key = self.position(ENDPOINT, &ordering, cursor, first)?;
        let lists = match sort {
            DirectorySort::Nym => &BY_NYM,
            DirectorySort::Tenure => &BY_JOINED,
            DirectorySort::Badges => &BY_BADGES,
        };
        let [all, of_tier] = lists;
        let [ahead, back] = if tier.is_some() { of_tier } else { all };
        let statement = self
            .statement(if forward { ahead } else { back })
            .bind::<BigInt, _>(i64::from(offset))
            .bind::<Nullable<Text>, _>(tier.map(|tier| tier.as_str().to_owned()));
        let statement = match key {
            Key::Nym(nym, joined, id) => {
                statement.bind::<Text, _>(nym).bind::<Timestamptz, _>(date(joined)).bind::<SqlUuid, _>(id)
            }
            Key::Joined(joined, id) => statement.bind::<Timestamptz, _>(date(joined)).bind::<SqlUuid, _>(id),
            Key::Badges(badges, joined, id) => statement
                .bind::<Integer, _>(badges)
                .bind::<Timestamptz, _>(date(joined))
                .bind::<SqlUuid, _>(id),
        };
        let (rows, more) = self.store.page::<DirectoryRow, 1000>("directory_list", statement, limit).await?;
        let total = rows.first().ok_or_else(|| Error::defect("a list has no count"))?.total;
        let rows: Vec<ListedRow> = rows.into_iter().filter_map(|row| row.listed).collect();
        let last = rows.last().map(|ListedRow { profile, nym_key }| match sort {
            DirectorySort::Nym => Key::Nym(nym_key.clone(), micros(profile.joined_at), profile.profile_id),
            DirectorySort::Tenure => Key::Joined(micros(profile.joined_at), profile.profile_id),
            DirectorySort::Badges => Key::Badges(
                profile.badge_count.saturating_neg(),
                micros(profile.joined_at),
                profile.profile_id,
            ),
        });
        let next = self.next(ENDPOINT, &ordering, more, last)?;
        let now = OffsetDateTime::now_utc();
        let items = rows
            .into_iter()
            .map(|row| {
                let tenure = self.policy.tenure.tenure(row.profile.joined_at, now);
                Ok(TenuredProfile { profile: row.profile.try_into()?, tenure })
            })
            .collect::<Result<_, Error>>()?;
        let total = u64::try_from(total).map_err(Error::defect)?;
        Ok(DirectoryPage { items, next, limit: limit.get(), total })
    }
}
