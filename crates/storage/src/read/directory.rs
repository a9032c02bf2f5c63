//! The directory: all visible members, or those of one tier, in one of three orders, either way round.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Nullable, SmallInt, Text, Timestamptz};
use muster_domain::{
    Cursor, Direction, DirectoryPage, DirectorySort, PageLimit, TenuredProfile, Tier, lists,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::community::Community;
use crate::error::Error;
use crate::read::date::{date, micros};
use crate::read::profile::{ProfileRow, members_in_order};
use crate::read::search::behind_every_nym;

/// The last row's key, in the order of the list.
#[derive(Serialize, Deserialize)]
enum Key {
    Nym(String, i64, i64),
    Joined(i64, i64),
    Badges(i64, i64, i64),
}

/// One member of the list, and how many the whole list has.
#[derive(QueryableByName)]
struct DirectoryRow {
    #[diesel(embed)]
    profile: ProfileRow,
    /// Empty where the order is another.
    #[diesel(sql_type = Text)]
    nym_key: String,
    /// The database's time, by which tenure is the same from every worker.
    #[diesel(sql_type = Timestamptz)]
    asked_at: OffsetDateTime,
    #[diesel(sql_type = BigInt)]
    total: i64,
}

#[derive(QueryableByName)]
struct TotalRow {
    #[diesel(sql_type = BigInt)]
    total: i64,
}

/// The kept count of a list: `$3` is the tier.
macro_rules! total {
    (all) => {
        "coalesce((SELECT c.members FROM community_totals AS c WHERE c.shard = $1 AND c.community = $2), 0)"
    };
    (tier) => {
        "coalesce((SELECT c.members FROM tier_counts AS c
             WHERE c.shard = $1 AND c.community = $2 AND c.tier = $3), 0)"
    };
}

const TOTAL_OF_ALL: &str = concat!("SELECT ", total!(all), " AS total");
const TOTAL_OF_TIER: &str = concat!("SELECT ", total!(tier), " AS total");

/// One list: `$3` is the tier, `$4` rows are skipped, `$5` and on are the key of the row before.
macro_rules! list {
    ($total:ident, $keys:literal, $of_tier:literal, $columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        concat!(
            "SELECT m.*, k.nym_key, now() AS asked_at, ",
            total!($total),
            " AS total FROM ",
            members_in_order!(
                concat!($keys, $of_tier, " AND ", $columns, $beyond, $key),
                $order,
                // The last row that a page by number may reach, and a page behind it.
                "11001",
                " OFFSET $4"
            ),
            "ORDER BY ",
            $order
        )
    };
}

macro_rules! list_of_all {
    ($keys:literal, $columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        list!(all, $keys, "", $columns, $beyond, $key, $order)
    };
}

macro_rules! list_of_tier {
    ($keys:literal, $columns:literal, $beyond:literal, $key:literal, $order:literal) => {
        list!(tier, $keys, " AND k.tier = $3", $columns, $beyond, $key, $order)
    };
}

/// The four lists of one order: of all members and of one tier, forward and backward.
macro_rules! lists {
    ($keys:literal, $columns:literal, $key:literal, $forward:literal, $backward:literal) => {
        [
            [
                list_of_all!($keys, $columns, " > ", $key, $forward),
                list_of_all!($keys, $columns, " < ", $key, $backward),
            ],
            [
                list_of_tier!($keys, $columns, " > ", $key, $forward),
                list_of_tier!($keys, $columns, " < ", $key, $backward),
            ],
        ]
    };
}

type Lists = [[&'static str; 2]; 2];

const BY_NYM: Lists = lists!(
    "SELECT k.nym_key, k.joined_at, k.member FROM directory AS k WHERE k.shard = $1 AND k.community = $2",
    "(k.nym_key, k.joined_at, k.member)",
    "($5, $6, $7)",
    "k.nym_key, k.joined_at, k.member",
    "k.nym_key DESC, k.joined_at DESC, k.member DESC"
);
const BY_JOINED: Lists = lists!(
    "SELECT ''::text AS nym_key, k.joined_at, k.member FROM directory AS k WHERE k.shard = $1 AND k.community = $2",
    "(k.joined_at, k.member)",
    "($5, $6)",
    "k.joined_at, k.member",
    "k.joined_at DESC, k.member DESC"
);
const BY_BADGES: Lists = lists!(
    "SELECT ''::text AS nym_key, k.negated_score, k.joined_at, k.member FROM board_entries AS k
     WHERE k.shard = $1 AND k.community = $2 AND k.board = 3",
    "(k.negated_score, k.joined_at, k.member)",
    "($5, $6, $7)",
    "k.negated_score, k.joined_at, k.member",
    "k.negated_score DESC, k.joined_at DESC, k.member DESC"
);

impl Community {
    /// A page of the directory: by nym and then joining, by tenure, or by badges and then joining. By tenure and by badges,
    /// descending is from the longest and the most. It begins behind the page of the cursor, or at the first member, less
    /// so many that are skipped: at most [`DirectoryPage::MAX_PAGED_ROWS`].
    ///
    /// # Errors
    /// [`Error::Cursor`] for a foreign cursor.
    pub async fn directory_list(
        &self,
        tier: Option<&Tier>,
        sort: DirectorySort,
        direction: Direction,
        limit: PageLimit,
        cursor: Option<&Cursor>,
        skipped: u32,
    ) -> Result<DirectoryPage, Error> {
        const ENDPOINT: &str = lists::DIRECTORY_LIST;
        let ordering = format!("{sort}:{direction}:{}", tier.map(Tier::as_str).unwrap_or_default());
        // The longest tenure is the earliest joining, and badges are kept negated: there, descending is forward.
        let forward = (sort == DirectorySort::Nym) == (direction == Direction::Asc);
        let first = match (sort, forward) {
            (DirectorySort::Nym, true) => Key::Nym(String::new(), i64::MIN, i64::MIN),
            (DirectorySort::Nym, false) => Key::Nym(behind_every_nym(""), i64::MAX, i64::MAX),
            (DirectorySort::Tenure, true) => Key::Joined(i64::MIN, i64::MIN),
            (DirectorySort::Tenure, false) => Key::Joined(i64::MAX, i64::MAX),
            (DirectorySort::Badges, true) => Key::Badges(i64::MIN, i64::MIN, i64::MIN),
            (DirectorySort::Badges, false) => Key::Badges(i64::MAX, i64::MAX, i64::MAX),
        };
        let key = self.position(ENDPOINT, &ordering, cursor, first)?;
        let lists = match sort {
            DirectorySort::Nym => &BY_NYM,
            DirectorySort::Tenure => &BY_JOINED,
            DirectorySort::Badges => &BY_BADGES,
        };
        let [all, of_tier] = lists;
        let [ahead, back] = if tier.is_some() { of_tier } else { all };
        // A tier that the community never had has no number, and none of its lists has a row.
        let number = match tier {
            Some(tier) => self.tier_number(tier).await?,
            None => None,
        };
        let statement = self
            .statement(if forward { ahead } else { back })
            .bind::<Nullable<SmallInt>, _>(number)
            .bind::<BigInt, _>(i64::from(skipped.min(DirectoryPage::MAX_PAGED_ROWS)));
        let statement = match key {
            Key::Nym(nym, joined, member) => {
                statement.bind::<Text, _>(nym).bind::<Timestamptz, _>(date(joined)).bind::<BigInt, _>(member)
            }
            Key::Joined(joined, member) => {
                statement.bind::<Timestamptz, _>(date(joined)).bind::<BigInt, _>(member)
            }
            Key::Badges(badges, joined, member) => statement
                .bind::<BigInt, _>(badges)
                .bind::<Timestamptz, _>(date(joined))
                .bind::<BigInt, _>(member),
        };
        let (rows, more) = self.store.page::<DirectoryRow, 1000>("directory_list", statement, limit).await?;
        let total = match rows.first() {
            Some(row) => row.total,
            None => self.directory_total(tier.is_some(), number).await?,
        };
        let last = rows.last().map(|DirectoryRow { profile, nym_key, .. }| match sort {
            DirectorySort::Nym => Key::Nym(nym_key.clone(), micros(profile.joined_at), profile.member),
            DirectorySort::Tenure => Key::Joined(micros(profile.joined_at), profile.member),
            DirectorySort::Badges => Key::Badges(
                i64::from(profile.badge_count).saturating_neg(),
                micros(profile.joined_at),
                profile.member,
            ),
        });
        let next = self.next(ENDPOINT, &ordering, more, last)?;
        let policy = self.policy_of(rows.iter().map(|row| row.profile.tier)).await?;
        let items = rows
            .into_iter()
            .map(|row| {
                let tenure = self.policy.tenure.tenure(row.profile.joined_at, row.asked_at);
                Ok(TenuredProfile { profile: row.profile.profile(&policy)?, tenure })
            })
            .collect::<Result<_, Error>>()?;
        let total = u64::try_from(total).map_err(Error::defect)?;
        Ok(DirectoryPage { items, next, limit: limit.get(), total })
    }

    /// The kept count of a list whose page is empty, and has no row that could tell it.
    async fn directory_total(&self, of_tier: bool, number: Option<i16>) -> Result<i64, Error> {
        let total = match of_tier {
            true => self.statement(TOTAL_OF_TIER).bind::<Nullable<SmallInt>, _>(number),
            false => self.statement(TOTAL_OF_ALL),
        };
        let row: Option<TotalRow> = self.store.optional("directory_list", total).await?;
        Ok(row.ok_or_else(|| Error::defect("one row was asked for, and none came"))?.total)
    }
}
