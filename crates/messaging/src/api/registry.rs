//! Every endpoint, in one list.

use muster_domain::{CommunityId, ProfileId};

use super::endpoint::{Description, Endpoint};
use super::error::ServiceError;
use super::field::Fields;
use super::{admin, badges, community, directory, profiles, tiers};

macro_rules! registry {
    ($($query:ident: $request:ty,)+) => {
        /// Every endpoint.
        pub const ENDPOINTS: &[&Description] = &[
            $(<$request>::DESCRIPTION,)+
            community::Find::DESCRIPTION,
        ];

        /// What is asked within one community.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Query {
            $(
                #[doc = concat!("To [`", stringify!($request), "`].")]
                $query($request),
            )+
        }

        impl Query {
            fn halve(&mut self) -> bool {
                match self {
                    $(Self::$query(request) => request.halve(),)+
                }
            }

            fn is_clamped(&self) -> bool {
                match self {
                    $(Self::$query(request) => request.is_clamped(),)+
                }
            }

            /// The profile that it names by its id, if it does.
            #[must_use]
            pub fn profile(&self) -> Option<ProfileId> {
                match self {
                    $(Self::$query(request) => request.profile(),)+
                }
            }
        }

        $(impl Listed for $request {
            fn question(community: Option<CommunityId>, body: &[u8]) -> Result<Question, ServiceError> {
                let community = community.ok_or_else(|| ServiceError::not_found("community"))?;
                let request = <$request>::read(&mut Fields::read(body, <$request>::FIELDS)?)?;
                Ok(Question::Within(community, Query::$query(request)))
            }
        })+
    };
}

/// A request that is in this list. It is the only way to a [`Question`], so that no endpoint is left out.
pub trait Listed: Sized {
    /// Reads the body of a request as the question that it asks. `community` is that of the subject.
    ///
    /// # Errors
    /// [`ServiceError`] of code `not_found`, `invalid_request` or `invalid_cursor`, naming the field.
    fn question(community: Option<CommunityId>, body: &[u8]) -> Result<Question, ServiceError>;
}

impl Listed for community::Find {
    fn question(_: Option<CommunityId>, body: &[u8]) -> Result<Question, ServiceError> {
        Self::read(&mut Fields::read(body, Self::FIELDS)?).map(Question::Find)
    }
}

registry! {
    ProfilesRanked: profiles::Ranked,
    ProfilesGet: profiles::Get,
    ProfilesPosition: profiles::Position,
    ProfilesAround: profiles::Around,
    ProfilesMany: profiles::Many,
    ProfilesActive: profiles::Active,
    ProfilesSearch: profiles::Search,
    ProfilesBadges: profiles::Badges,
    BadgesLeaderboard: badges::Leaderboard,
    BadgesKinds: badges::Kinds,
    TiersProgression: tiers::Progression,
    TiersChanges: tiers::Changes,
    TiersThreshold: tiers::Threshold,
    DirectoryList: directory::List,
    CommunityStats: community::Stats,
    AdminBadgesAward: admin::AwardBadge,
    AdminBadgesRevoke: admin::RevokeBadge,
    AdminProfilesHide: admin::HideProfile,
    AdminProfilesShow: admin::ShowProfile,
    AdminProfilesExport: admin::ExportProfile,
    AdminProfilesErase: admin::EraseProfile,
    AdminRatelimitClear: admin::ClearRateLimit,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Which community is this chat server's?
    Find(community::Find),
    /// Something within one community.
    Within(CommunityId, Query),
}

impl Question {
    /// Reads the body of a request to `endpoint`. `community` is that of the subject; `None` where it stands in none, or is
    /// no UUID.
    ///
    /// # Errors
    /// [`ServiceError`] of code `not_found`, `invalid_request` or `invalid_cursor`, naming the field.
    pub fn parse(
        endpoint: &Description,
        community: Option<CommunityId>,
        body: &[u8],
    ) -> Result<Self, ServiceError> {
        (endpoint.question)(community, body)
    }

    /// Asks for about half as many rows; false when it already asks for one, or for no number of them.
    pub fn halve(&mut self) -> bool {
        match self {
            Self::Find(_) => false,
            Self::Within(_, query) => query.halve(),
        }
    }

    /// Whether it asks for a number of rows that is not answered.
    #[must_use]
    pub fn is_clamped(&self) -> bool {
        match self {
            Self::Find(_) => false,
            Self::Within(_, query) => query.is_clamped(),
        }
    }
}
