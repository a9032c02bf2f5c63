//! Requests as the service reads them: bytes into domain types, or an error that names the field.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use muster_domain::{
    Awarder, BadgeKind, CommunityId, Cursor, Direction, DirectorySort, GuildId, Lookup, Nym, PageLimit,
    ProfileId, Reason, SearchQuery, SuggestLimit, Tier, UserId, Wallet,
};

use super::error::ServiceError;
use super::field::Fields;
use crate::endpoint::Endpoint;

/// How many rows of a directory can be reached by page number; past them only a cursor does.
pub const MAX_PAGED_ROWS: u32 = 10_000;

/// The person on whose behalf a client asks: 1 to 128 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(String);

impl Caller {
    /// The largest number of characters.
    pub const MAX: usize = 128;

    /// Checks a caller's name.
    ///
    /// # Errors
    /// [`InvalidCaller`] says what it must be.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidCaller> {
        let text = text.into();
        let length = text.chars().take(Self::MAX.saturating_add(1)).count();
        if (1..=Self::MAX).contains(&length) && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(InvalidCaller)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that no caller can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {max} characters, none of them a control character", max = Caller::MAX)]
pub struct InvalidCaller;

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageQuery {
    /// How many rows at most.
    pub limit: PageLimit,
    /// Where to begin; `None` at the beginning.
    pub cursor: Option<Cursor>,
}

/// Where a page of the directory begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectoryPlace {
    /// Where a cursor says; `None` at the beginning.
    Cursor(Option<Cursor>),
    /// By page number.
    Page {
        /// The number, from 1.
        number: NonZeroU32,
        /// How many rows come before it; with its own, at most [`MAX_PAGED_ROWS`].
        skip: u32,
    },
}

/// Which page of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryQuery {
    /// Only the members of this tier.
    pub tier: Option<Tier>,
    /// Sorted by this.
    pub sort: DirectorySort,
    /// In this direction.
    pub direction: Direction,
    /// How many rows at most.
    pub limit: PageLimit,
    /// Where it begins.
    pub place: DirectoryPlace,
}

/// What is asked within one community.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query {
    /// Profiles by conviction.
    ProfilesRanked(PageQuery),
    /// One profile.
    ProfilesGet(Lookup),
    /// Where one member stands.
    ProfilesPosition(ProfileId),
    /// The members ranked around one.
    ProfilesAround {
        /// Whom.
        profile: ProfileId,
        /// How many at most.
        limit: PageLimit,
    },
    /// Profiles by activity.
    ProfilesActive(PageQuery),
    /// Profiles by a piece of their nym.
    ProfilesSearch {
        /// What to look for.
        query: SearchQuery,
        /// How many at most.
        limit: SuggestLimit,
    },
    /// One profile's badges.
    ProfilesBadges {
        /// Whose.
        profile: ProfileId,
        /// Which page.
        page: PageQuery,
    },
    /// Profiles by number of badges.
    BadgesLeaderboard(PageQuery),
    /// The community's badge kinds.
    BadgesKinds(PageQuery),
    /// Members closest below their next score tier.
    TiersProgression(PageQuery),
    /// Promotions and demotions.
    TiersChanges(PageQuery),
    /// What it takes to hold a rank tier.
    TiersThreshold,
    /// The members, sorted and filtered.
    DirectoryList(DirectoryQuery),
    /// The community in numbers.
    CommunityStats,
    /// Awards a badge.
    AdminBadgesAward {
        /// To whom.
        profile: ProfileId,
        /// What for.
        kind: BadgeKind,
        /// Why.
        reason: Option<Reason>,
        /// By whom.
        by: Option<Awarder>,
    },
    /// Revokes a badge.
    AdminBadgesRevoke {
        /// Whose.
        profile: ProfileId,
        /// Which.
        kind: BadgeKind,
        /// Why.
        reason: Option<Reason>,
        /// By whom.
        by: Option<Awarder>,
    },
    /// Takes a profile out of lists and ranks.
    AdminProfilesHide(ProfileId),
    /// Puts it back.
    AdminProfilesShow(ProfileId),
    /// All that is held on a person.
    AdminProfilesExport {
        /// On whom.
        profile: ProfileId,
        /// Where to go on.
        cursor: Option<Cursor>,
        /// How many rows at most; the whole page unless an answer was too large to send.
        limit: PageLimit,
    },
    /// Erases a person.
    AdminProfilesErase(ProfileId),
    /// Forgets rate limits' counters.
    AdminRatelimitClear {
        /// Whose; the whole community's where none is given.
        caller: Option<Caller>,
    },
}

impl Query {
    /// The profile that it names by its id, if it does.
    #[must_use]
    pub const fn profile(&self) -> Option<ProfileId> {
        match self {
            Self::ProfilesGet(Lookup::ProfileId(profile))
            | Self::ProfilesPosition(profile)
            | Self::ProfilesAround { profile, .. }
            | Self::ProfilesBadges { profile, .. }
            | Self::AdminBadgesAward { profile, .. }
            | Self::AdminBadgesRevoke { profile, .. }
            | Self::AdminProfilesHide(profile)
            | Self::AdminProfilesShow(profile)
            | Self::AdminProfilesExport { profile, .. }
            | Self::AdminProfilesErase(profile) => Some(*profile),
            _ => None,
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Which community is this chat server's?
    Find(GuildId),
    /// Something within one community.
    Within(CommunityId, Query),
}

impl Question {
    /// Reads the body of a request to `endpoint`, and whether the limit that it asks for had to be changed. `community`
    /// is that of the subject; `None` where it stands in none, or is no UUID.
    ///
    /// # Errors
    /// [`ServiceError`] of code `not_found`, `invalid_request` or `invalid_cursor`, naming the field.
    pub fn parse(
        endpoint: Endpoint,
        community: Option<CommunityId>,
        body: &[u8],
    ) -> Result<(Self, bool), ServiceError> {
        let no_community = || ServiceError::not_found("community");
        if endpoint.is_of_community() && community.is_none() {
            return Err(no_community());
        }
        let mut fields = Fields::read(body, known(endpoint))?;
        let question = match read(endpoint, &mut fields)? {
            Read::Find(guild) => Self::Find(guild),
            Read::Query(query) => Self::Within(community.ok_or_else(no_community)?, query),
        };
        Ok((question, fields.clamped()))
    }

    /// The same question for about half as many rows; `None` when it is for one row, or for no number of them.
    #[must_use]
    pub fn halved(&self) -> Option<Self> {
        match self {
            Self::Find(_) => None,
            Self::Within(community, query) => Some(Self::Within(*community, query.halved()?)),
        }
    }
}

impl Query {
    fn halved(&self) -> Option<Self> {
        let mut halved = self.clone();
        match &mut halved {
            Self::ProfilesRanked(page)
            | Self::ProfilesActive(page)
            | Self::ProfilesBadges { page, .. }
            | Self::BadgesLeaderboard(page)
            | Self::BadgesKinds(page)
            | Self::TiersProgression(page)
            | Self::TiersChanges(page) => page.limit = half(page.limit)?,
            Self::ProfilesAround { limit, .. } | Self::AdminProfilesExport { limit, .. } => {
                *limit = half(*limit)?
            }
            Self::ProfilesSearch { limit, .. } => {
                *limit = (limit.get() > 1).then(|| SuggestLimit::clamp(limit.get() / 2))?;
            }
            Self::DirectoryList(directory) => directory.limit = half(directory.limit)?,
            _ => return None,
        }
        Some(halved)
    }
}

fn half(limit: PageLimit) -> Option<PageLimit> {
    (limit.get() > 1).then(|| PageLimit::clamp(limit.get() / 2))
}

enum Read {
    Find(GuildId),
    Query(Query),
}

/// The fields that a request to `endpoint` may have.
const fn known(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::ProfilesRanked
        | Endpoint::ProfilesActive
        | Endpoint::BadgesLeaderboard
        | Endpoint::BadgesKinds
        | Endpoint::TiersProgression
        | Endpoint::TiersChanges => &["limit", "cursor"],
        Endpoint::ProfilesGet => LOOKUPS,
        Endpoint::ProfilesPosition
        | Endpoint::AdminProfilesHide
        | Endpoint::AdminProfilesShow
        | Endpoint::AdminProfilesErase => &["profile_id"],
        Endpoint::ProfilesAround => &["profile_id", "limit"],
        Endpoint::ProfilesSearch => &["query", "limit"],
        Endpoint::ProfilesBadges => &["profile_id", "limit", "cursor"],
        Endpoint::TiersThreshold | Endpoint::CommunityStats => &[],
        Endpoint::DirectoryList => &["tier", "sort", "direction", "limit", "cursor", "page"],
        Endpoint::AdminBadgesAward => &["profile_id", "kind", "reason", "awarded_by"],
        Endpoint::AdminBadgesRevoke => &["profile_id", "kind", "reason", "revoked_by"],
        Endpoint::AdminProfilesExport => &["profile_id", "cursor"],
        Endpoint::AdminRatelimitClear => &["caller"],
        Endpoint::CommunitiesFind => &["guild_id"],
    }
}

fn read(endpoint: Endpoint, fields: &mut Fields<'_>) -> Result<Read, ServiceError> {
    Ok(Read::Query(match endpoint {
        Endpoint::CommunitiesFind => {
            return Ok(Read::Find(fields.required("guild_id", GuildId::parse)?));
        }
        Endpoint::ProfilesRanked => Query::ProfilesRanked(page(fields, 100)?),
        Endpoint::ProfilesGet => Query::ProfilesGet(lookup(fields)?),
        Endpoint::ProfilesPosition => Query::ProfilesPosition(profile(fields)?),
        Endpoint::ProfilesAround => {
            Query::ProfilesAround { profile: profile(fields)?, limit: fields.limit(10)? }
        }
        Endpoint::ProfilesActive => Query::ProfilesActive(page(fields, 5)?),
        Endpoint::ProfilesSearch => Query::ProfilesSearch {
            query: fields.required("query", SearchQuery::parse)?,
            limit: fields.limit(25)?,
        },
        Endpoint::ProfilesBadges => {
            Query::ProfilesBadges { profile: profile(fields)?, page: page(fields, 100)? }
        }
        Endpoint::BadgesLeaderboard => Query::BadgesLeaderboard(page(fields, 10)?),
        Endpoint::BadgesKinds => Query::BadgesKinds(page(fields, 100)?),
        Endpoint::TiersProgression => Query::TiersProgression(page(fields, 10)?),
        Endpoint::TiersChanges => Query::TiersChanges(page(fields, 5)?),
        Endpoint::TiersThreshold => Query::TiersThreshold,
        Endpoint::DirectoryList => Query::DirectoryList(directory(fields)?),
        Endpoint::CommunityStats => Query::CommunityStats,
        Endpoint::AdminBadgesAward => Query::AdminBadgesAward {
            profile: profile(fields)?,
            kind: fields.required("kind", BadgeKind::parse)?,
            reason: fields.optional("reason", Reason::parse_optional)?.flatten(),
            by: fields.optional("awarded_by", Awarder::parse_optional)?.flatten(),
        },
        Endpoint::AdminBadgesRevoke => Query::AdminBadgesRevoke {
            profile: profile(fields)?,
            kind: fields.required("kind", BadgeKind::parse)?,
            reason: fields.optional("reason", Reason::parse_optional)?.flatten(),
            by: fields.optional("revoked_by", Awarder::parse_optional)?.flatten(),
        },
        Endpoint::AdminProfilesHide => Query::AdminProfilesHide(profile(fields)?),
        Endpoint::AdminProfilesShow => Query::AdminProfilesShow(profile(fields)?),
        Endpoint::AdminProfilesExport => Query::AdminProfilesExport {
            profile: profile(fields)?,
            cursor: fields.cursor()?,
            limit: PageLimit::MAX,
        },
        Endpoint::AdminProfilesErase => Query::AdminProfilesErase(profile(fields)?),
        Endpoint::AdminRatelimitClear => {
            Query::AdminRatelimitClear { caller: fields.optional("caller", Caller::parse)? }
        }
    }))
}

fn page(fields: &mut Fields<'_>, default: u32) -> Result<PageQuery, ServiceError> {
    Ok(PageQuery { limit: fields.limit(default)?, cursor: fields.cursor()? })
}

fn profile(fields: &mut Fields<'_>) -> Result<ProfileId, ServiceError> {
    fields.required("profile_id", profile_id)
}

fn profile_id(text: String) -> Result<ProfileId, &'static str> {
    ProfileId::from_str(&text).map_err(|_| "must be a UUID")
}

const LOOKUPS: &[&str] = &["profile_id", "user_id", "wallet", "nym"];

fn lookup(fields: &mut Fields<'_>) -> Result<Lookup, ServiceError> {
    let mut found = [
        fields.optional("profile_id", profile_id)?.map(Lookup::ProfileId),
        fields.optional("user_id", UserId::parse)?.map(Lookup::UserId),
        fields.optional("wallet", Wallet::parse)?.map(Lookup::Wallet),
        fields.optional("nym", Nym::parse)?.map(Lookup::Nym),
    ]
    .into_iter()
    .flatten();
    match (found.next(), found.next()) {
        (Some(lookup), None) => Ok(lookup),
        _ => Err(ServiceError::invalid_request(
            LOOKUPS.join(", "),
            format!("exactly one of {} must be given", LOOKUPS.join(", ")),
        )),
    }
}

fn directory(fields: &mut Fields<'_>) -> Result<DirectoryQuery, ServiceError> {
    let tier = fields.optional("tier", Tier::parse)?;
    let sort = fields.optional("sort", |text| match text.as_str() {
        "nym" => Ok(DirectorySort::Nym),
        "tenure" => Ok(DirectorySort::Tenure),
        "badges" => Ok(DirectorySort::Badges),
        _ => Err("must be nym, tenure or badges"),
    })?;
    let direction = fields.optional("direction", |text| match text.as_str() {
        "asc" => Ok(Direction::Asc),
        "desc" => Ok(Direction::Desc),
        _ => Err("must be asc or desc"),
    })?;
    let limit: PageLimit = fields.limit(10)?;
    let place = match (fields.cursor()?, fields.integer("page")?) {
        (Some(_), Some(_)) => {
            return Err(ServiceError::invalid_request("page", "page and cursor must not be given together"));
        }
        (cursor, None) => DirectoryPlace::Cursor(cursor),
        (None, Some(number)) => numbered(number, limit)?,
    };
    let sort = sort.unwrap_or_default();
    let direction = direction.unwrap_or_else(|| sort.default_direction());
    Ok(DirectoryQuery { tier, sort, direction, limit, place })
}

fn numbered(number: i128, limit: PageLimit) -> Result<DirectoryPlace, ServiceError> {
    let refused = || {
        let last = MAX_PAGED_ROWS / limit.get();
        ServiceError::invalid_request(
            "page",
            format!(
                "page must be 1 to {last} with a limit of {limit}: pages reach the first {MAX_PAGED_ROWS} members, past \
                 them use cursor"
            ),
        )
    };
    let number = u32::try_from(number).ok().and_then(NonZeroU32::new).ok_or_else(refused)?;
    match number.get().checked_mul(limit.get()) {
        Some(rows) if rows <= MAX_PAGED_ROWS => {
            Ok(DirectoryPlace::Page { number, skip: rows.saturating_sub(limit.get()) })
        }
        _ => Err(refused()),
    }
}
