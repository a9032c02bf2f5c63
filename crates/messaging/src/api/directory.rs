//! `directory.list`: the members, sorted and filtered.

use std::num::NonZeroU32;

use muster_domain::lists::DIRECTORY_LIST;
use muster_domain::{Cursor, Direction, DirectorySort, PageLimit, Tenure, Tier};
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use super::error::ServiceError;
use super::field::{Field, Fields, Form, Value};
use super::page::Rows;
use super::row::Profile;

const MAX_PAGED_ROWS: u32 = muster_domain::DirectoryPage::MAX_PAGED_ROWS;

/// The members, sorted and filtered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct List {
    /// Only the members of this tier.
    #[serde(skip_serializing_if = "Value::is_absent")]
    pub tier: Option<Tier>,
    /// What they are sorted by.
    #[serde(skip_serializing_if = "Value::is_absent")]
    pub sort: Option<DirectorySort>,
    /// In which direction.
    #[serde(skip_serializing_if = "Value::is_absent")]
    pub direction: Option<Direction>,
    /// How many at most.
    #[serde(skip_serializing_if = "Value::is_absent")]
    pub limit: Rows<10>,
    /// Where to begin; at the beginning where nothing is given.
    #[serde(flatten)]
    pub start: Option<Start>,
}

/// Where a page of the directory begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Where a cursor says.
    Cursor(Cursor),
    /// By page number, from 1, within the first [`MAX_PAGED_ROWS`](muster_domain::DirectoryPage::MAX_PAGED_ROWS) members.
    Page(NonZeroU32),
}

impl List {
    /// In which direction they are listed.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction.unwrap_or_else(|| self.sort.unwrap_or_default().default_direction())
    }

    /// The page's number, when it is asked for by number.
    #[must_use]
    pub fn page(&self) -> Option<NonZeroU32> {
        match self.start {
            Some(Start::Page(number)) => Some(number),
            _ => None,
        }
    }

    /// The cursor, when there is one.
    #[must_use]
    pub fn cursor(&self) -> Option<&Cursor> {
        match &self.start {
            Some(Start::Cursor(cursor)) => Some(cursor),
            _ => None,
        }
    }

    /// How many rows come before the page that is asked for by number; none where it is not. A page that does not fit into
    /// one message begins where it would.
    #[must_use]
    pub fn rows_before(&self) -> u32 {
        let pages_before = self.page().map_or(0, |page| page.get().saturating_sub(1));
        pages_before.saturating_mul(self.limit.page_size().get())
    }

    /// The answer with this page.
    #[must_use]
    pub fn answer(&self, page: muster_domain::DirectoryPage) -> DirectoryPage {
        DirectoryPage {
            total_pages: page.total.div_ceil(u64::from(self.limit.page_size().get())),
            items: page.items.into_iter().map(TenuredProfile::from).collect(),
            next: page.next,
            limit: page.limit,
            total: page.total,
            page: self.page(),
        }
    }
}

impl Endpoint for List {
    const NAME: &'static str = DIRECTORY_LIST;
    const HELP: &'static str = "The members, sorted and filtered, from `cursor` or `page`, not both.";
    const FIELDS: &'static [Field] = &[
        Field::of::<Option<Tier>>("tier", "Only the members of this tier."),
        Field::of::<Option<DirectorySort>>("sort", "What they are sorted by."),
        Field::of::<Option<Direction>>(
            "direction",
            "In which direction: names from A, the others from the largest.",
        ),
        Field::of::<Rows<10>>("limit", "How many at most."),
        Field::of::<Option<Cursor>>("cursor", "Where to begin. Not together with `page`."),
        Field {
            name: "page",
            form: Form::Page(MAX_PAGED_ROWS),
            required: false,
            default: None,
            cap: None,
            help: "Which page. Not together with `cursor`.",
        },
    ];
    const ANSWER: &'static str =
        "page of profiles with `tenure`; `total` and `total_pages`; `page` where it was asked for by number";

    const MAY_LAG: bool = true;

    type Answer = DirectoryPage;

    fn read(fields: &mut Fields<'_>) -> Result<Self, ServiceError> {
        let tier = Value::read(fields, "tier")?;
        let sort = Value::read(fields, "sort")?;
        let direction = Value::read(fields, "direction")?;
        let limit = Rows::read(fields, "limit")?;
        let cursor: Option<Cursor> = Value::read(fields, "cursor")?;
        let start = match (cursor, fields.integer("page")?) {
            (Some(_), Some(_)) => {
                return Err(ServiceError::invalid_request(
                    "page",
                    "page and cursor must not be given together",
                ));
            }
            (cursor, None) => cursor.map(Start::Cursor),
            (None, Some(number)) => Some(Start::Page(page_number(number, limit.applied())?)),
        };
        Ok(Self { tier, sort, direction, limit, start })
    }

    fn halve(&mut self) -> bool {
        self.limit.halve()
    }

    fn is_clamped(&self) -> bool {
        self.limit.is_clamped()
    }
}

fn page_number(number: i128, limit: PageLimit) -> Result<NonZeroU32, ServiceError> {
    let last = MAX_PAGED_ROWS / limit.get();
    let number = u32::try_from(number).ok().filter(|number| *number <= last).and_then(NonZeroU32::new);
    number.ok_or_else(|| {
        ServiceError::invalid_request(
            "page",
            format!(
                "page must be 1 to {last} with a limit of {limit}: pages reach the first {MAX_PAGED_ROWS} members, past \
                 them use cursor"
            ),
        )
    })
}

/// A profile and its tenure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenuredProfile {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// How long they have been there.
    pub tenure: Tenure,
}

impl From<muster_domain::TenuredProfile> for TenuredProfile {
    fn from(tenured: muster_domain::TenuredProfile) -> Self {
        Self { profile: tenured.profile.into(), tenure: tenured.tenure }
    }
}

/// One page of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryPage {
    /// The members.
    pub items: Vec<TenuredProfile>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<Cursor>,
    /// The page size that was applied.
    pub limit: u32,
    /// How many members the whole list has.
    pub total: u64,
    /// How many pages of the size that was asked for the whole list has, as `page` counts them.
    pub total_pages: u64,
    /// The page's number, when it was asked for by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<NonZeroU32>,
}
