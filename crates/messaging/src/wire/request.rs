//! Requests as a client writes them. The service reads them by [`query`](super::query).

use muster_domain::{
    Awarder, BadgeKind, Direction, DirectorySort, GuildId, Lookup, Nym, ProfileId, Reason, Tier, UserId,
    Wallet,
};
use serde::Serialize;

/// Asks for a page of a list. Empty, it asks for the first page of the endpoint's own size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PageRequest {
    /// How many at most. Any number may be asked for; the answer says what was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Where to begin: the `next` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl PageRequest {
    /// The first page of at most `limit`.
    #[must_use]
    pub fn first(limit: impl Into<i64>) -> Self {
        Self { limit: Some(limit.into()), cursor: None }
    }

    /// The page that begins where `cursor` says.
    #[must_use]
    pub fn after(self, cursor: impl Into<String>) -> Self {
        Self { cursor: Some(cursor.into()), ..self }
    }
}

/// Asks about, or acts on, one profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProfileRequest {
    /// Which.
    pub profile_id: ProfileId,
}

/// Asks for one profile by one of its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GetRequest {
    /// By its id.
    ProfileId(ProfileId),
    /// By the person's id on the chat platform.
    UserId(UserId),
    /// By wallet.
    Wallet(Wallet),
    /// By display name.
    Nym(Nym),
}

impl From<Lookup> for GetRequest {
    fn from(lookup: Lookup) -> Self {
        match lookup {
            Lookup::ProfileId(id) => Self::ProfileId(id),
            Lookup::UserId(id) => Self::UserId(id),
            Lookup::Wallet(wallet) => Self::Wallet(wallet),
            Lookup::Nym(nym) => Self::Nym(nym),
        }
    }
}

/// Asks for the members ranked around one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AroundRequest {
    /// Whom.
    pub profile_id: ProfileId,
    /// How many at most, that one among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// Searches nyms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SearchRequest {
    /// What to look for: 1 to 100 characters, each standing for itself.
    pub query: String,
    /// How many at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// Asks for a page of one profile's badges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadgesRequest {
    /// Whose.
    pub profile_id: ProfileId,
    /// Which page.
    #[serde(flatten)]
    pub page: PageRequest,
}

/// Asks for a page of the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DirectoryRequest {
    /// Only the members of this tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Sorted by this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Option<DirectorySort>,
    /// In this direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// How many at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Where to begin: the `next` of the page before. Not together with `page`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Which page, from 1, within the first 10,000 members. Not together with `cursor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page: Option<u32>,
}

/// Awards a badge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AwardRequest {
    /// To whom.
    pub profile_id: ProfileId,
    /// What for.
    pub kind: BadgeKind,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awarded_by: Option<Awarder>,
}

/// Revokes a badge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevokeRequest {
    /// Whose.
    pub profile_id: ProfileId,
    /// Which.
    pub kind: BadgeKind,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<Awarder>,
}

/// Asks for all that is held on a person, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportRequest {
    /// On whom.
    pub profile_id: ProfileId,
    /// Where to go on: the `next` of the answer before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Forgets rate limits' counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ClearRequest {
    /// Whose; the whole community's where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

/// Asks for a community's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindRequest {
    /// The id of its chat server.
    pub guild_id: GuildId,
}

/// Asks for something that takes no field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EmptyRequest {}
