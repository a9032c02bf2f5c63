//! Muster's words as types.
//!
//! ```
//! use muster_domain::{Conviction, Nym, PageLimit, Rank, Tier, TierPolicy};
//!
//! // What enters is cleaned and held to its bounds, or refused.
//! assert_eq!(Nym::parse(" Stilgar ")?.as_str(), "Stilgar");
//! assert!(Nym::parse("").is_err());
//! assert_eq!(PageLimit::clamp(5_000_000).get(), 1000);
//!
//! // Who ranks high holds a rank tier, everybody else the tier of their score.
//! let policy = TierPolicy::default();
//! let tier = |score: i64, above: u64| policy.tier(Conviction::clamp(score), Rank::below(above)).map(Tier::as_str);
//! assert_eq!(tier(250, 0), Some("naib"));
//! assert_eq!(tier(250, 5000), Some("stillsuit"));
//! # Ok::<(), muster_domain::TextError>(())
//! ```
//!
//! A community has profiles; a profile has scores, a tier, a rank and badges. Everything that enters Muster is parsed
//! into these types at its edge and handed inward as them. A page size is a [`Limit`], and there is no way to make an
//! unlimited one.
//!
//! Nothing here does I/O, keeps time or waits.

mod badge;
mod change;
mod community;
mod cursor;
mod erasure;
mod event;
mod hash;
mod id;
mod keys;
mod limit;
pub mod lists;
mod mac;
mod nym;
mod page;
mod profile;
mod pseudonym;
mod score;
mod shard;
mod stripe;
mod tenure;
mod text;
mod tier;
mod transport;
mod version;

pub use badge::{Award, Awarder, Badge, BadgeKind, BadgeOperation, KindCount, Reason};
pub use change::{Change, ChangeData, ChangeType, Changed, ChangedBadge, Disappearance, TraceParent};
pub use community::{CommunityName, Stats, TierCount};
pub use cursor::{Cursor, CursorError, CursorKey, CursorScope};
pub use erasure::{ErasedPerson, ErasedPersonError, ErasureKey, KeyFingerprint};
pub use event::{
    Effect, Event, EventTime, EventTimeError, EventType, GuildEffect, MaxClockSkew, MemberEffect, TimeBounds,
};
pub use id::{BadgeId, ChangeId, CommunityId, EventId, GuildId, ProfileId, UserId, Wallet};
pub use keys::{Keys, KeysError, MAX_KEYS};
pub use limit::{Limit, LimitError, PageLimit, SearchLimit};
pub use nym::{Nym, NymKey, SearchQuery};
pub use page::Page;
pub use profile::{
    Addition, BadgeStanding, Direction, DirectoryPage, DirectorySort, Export, Lookup, Position, Profile,
    ProfileDetail, Progress, RankedProfile, TenuredProfile,
};
pub use pseudonym::{Pseudonym, PseudonymKey};
pub use score::{Activity, Conviction, Rank};
pub use shard::Shard;
pub use stripe::Stripe;
pub use tenure::{Tenure, TenurePolicy};
pub use text::TextError;
pub use tier::{Movement, PolicyError, RankTier, ScoreTier, Tier, TierChange, TierPolicy, TierThreshold};
pub use transport::{Environment, Leniency, TlsPolicy, TlsReason, UnknownEnvironment};
pub use version::{Version, VersionFloor, VersionVerdict};
