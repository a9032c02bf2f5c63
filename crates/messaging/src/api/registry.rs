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
            fn read(endpoint: &Description, fields: &mut Fields<'_>) -> Result<Self, ServiceError> {
                match endpoint.name {
                    $(<$request>::NAME => <$request>::read(fields).map(Self::$query),)+
                    name => Err(ServiceError::internal(format!("{name} is in no list of endpoints"))),
                }
            }

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
    };
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
        if !endpoint.is_of_community {
            return community::Find::read(&mut Fields::read(body, endpoint.fields)?).map(Self::Find);
        }
        let community = community.ok_or_else(|| ServiceError::not_found("community"))?;
        let query = Query::read(endpoint, &mut Fields::read(body, endpoint.fields)?)?;
        Ok(Self::Within(community, query))
    }

    /// Halves the number of rows to answer. False when it is one already, or the request takes no limit.
    pub fn halve(&mut self) -> bool {
        match self {
            Self::Find(_) => false,
            Self::Within(_, query) => query.halve(),
        }
    }

    /// Whether the requested limit is out of range, so that another is applied.
    #[must_use]
    pub fn is_clamped(&self) -> bool {
        match self {
            Self::Find(_) => false,
            Self::Within(_, query) => query.is_clamped(),
        }
    }
}
