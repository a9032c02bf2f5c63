//! The service's endpoints, as data.

use std::fmt;

use muster_domain::CommunityId;

/// What every subject of the service begins with.
pub const PREFIX: &str = "muster.v1";

macro_rules! endpoints {
    ($($(#[$meta:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// One thing that the service can be asked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Endpoint {
            $($(#[$meta])* $variant),+
        }

        impl Endpoint {
            /// Every endpoint.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name, such as `profiles.ranked`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}

endpoints! {
    /// Profiles by conviction, highest first.
    ProfilesRanked = "profiles.ranked",
    /// One profile and its standings.
    ProfilesGet = "profiles.get",
    /// Where one member stands.
    ProfilesPosition = "profiles.position",
    /// The members ranked around one.
    ProfilesAround = "profiles.around",
    /// Profiles by activity.
    ProfilesActive = "profiles.active",
    /// Profiles by a piece of their nym.
    ProfilesSearch = "profiles.search",
    /// One profile's badges.
    ProfilesBadges = "profiles.badges",
    /// Profiles by number of badges.
    BadgesLeaderboard = "badges.leaderboard",
    /// The community's badge kinds.
    BadgesKinds = "badges.kinds",
    /// Members closest below their next score tier.
    TiersProgression = "tiers.progression",
    /// Promotions and demotions.
    TiersChanges = "tiers.changes",
    /// What it takes to hold a rank tier.
    TiersThreshold = "tiers.threshold",
    /// The members, sorted and filtered.
    DirectoryList = "directory.list",
    /// The community in numbers.
    CommunityStats = "community.stats",
    /// Awards a badge.
    AdminBadgesAward = "admin.badges.award",
    /// Revokes a badge.
    AdminBadgesRevoke = "admin.badges.revoke",
    /// Takes a profile out of lists and ranks.
    AdminProfilesHide = "admin.profiles.hide",
    /// Puts it back.
    AdminProfilesShow = "admin.profiles.show",
    /// All that is held on a person.
    AdminProfilesExport = "admin.profiles.export",
    /// Erases a person.
    AdminProfilesErase = "admin.profiles.erase",
    /// Forgets rate limits' counters.
    AdminRatelimitClear = "admin.ratelimit.clear",
    /// A community's id by its chat server's.
    CommunitiesFind = "communities.find",
}

impl Endpoint {
    /// Whether it is for operators. Their subjects are `muster.v1.<community>.admin.>`.
    #[must_use]
    pub fn is_admin(self) -> bool {
        self.name().starts_with("admin.")
    }

    /// Whether it asks within one community, whose id then stands in the subject.
    #[must_use]
    pub const fn is_of_community(self) -> bool {
        !matches!(self, Self::CommunitiesFind)
    }

    /// Whether asking twice answers what asking once does, so that a lost answer may be asked for again.
    #[must_use]
    pub const fn is_repeatable(self) -> bool {
        !matches!(self, Self::AdminBadgesRevoke | Self::AdminProfilesErase | Self::AdminRatelimitClear)
    }

    /// The subject that the service listens on; the community is a wildcard.
    #[must_use]
    pub fn pattern(self) -> String {
        if self.is_of_community() {
            format!("{PREFIX}.*.{}", self.name())
        } else {
            format!("{PREFIX}.{}", self.name())
        }
    }

    /// The subject to ask on. The community is left out where the endpoint is not of one.
    #[must_use]
    pub fn subject(self, community: CommunityId) -> String {
        if self.is_of_community() { format!("{PREFIX}.{community}.{}", self.name()) } else { self.pattern() }
    }

    /// The name as the service protocol wants it, which allows no dots.
    #[must_use]
    pub fn service_name(self) -> String {
        self.name().replace('.', "-")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
