//! The names of the endpoints whose lists have cursors. A cursor is signed with the name of its list.

/// Members by conviction.
pub const PROFILES_RANKED: &str = "profiles.ranked";
/// Members by activity.
pub const PROFILES_ACTIVE: &str = "profiles.active";
/// The badges of one member.
pub const PROFILES_BADGES: &str = "profiles.badges";
/// Members by their number of badges.
pub const BADGES_LEADERBOARD: &str = "badges.leaderboard";
/// The kinds of badges.
pub const BADGES_KINDS: &str = "badges.kinds";
/// Members closest to their next tier.
pub const TIERS_PROGRESSION: &str = "tiers.progression";
/// Promotions and demotions.
pub const TIERS_CHANGES: &str = "tiers.changes";
/// The members, sorted and filtered.
pub const DIRECTORY_LIST: &str = "directory.list";
/// Everything that is held on a person.
pub const ADMIN_PROFILES_EXPORT: &str = "admin.profiles.export";
