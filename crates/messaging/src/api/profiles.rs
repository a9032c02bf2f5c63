//! `profiles.*`: members, one or many.

use muster_domain::lists::{PROFILES_ACTIVE, PROFILES_BADGES, PROFILES_RANKED};
use muster_domain::{
    Conviction, Cursor, Keys, Lookup, MAX_KEYS, Nym, ProfileId, Rank, SearchQuery, Tenure, Tier, UserId,
    Wallet,
};
use serde::{Deserialize, Serialize};

use super::endpoint::{Endpoint, endpoint};
use super::error::ServiceError;
use super::field::{Field, Fields, Form, Value, exactly_one};
use super::page::{Page, Rows, pages};
use super::row::{Badge, Profile};

endpoint! {
    PROFILES_RANKED -> Page<RankedProfile>, "page of profiles by conviction, highest first, then earliest joined, each with `rank`";

    /// Profiles by conviction, highest first.
    #[derive(Default)]
    pub struct Ranked {
        /// How many at most.
        pub limit: Rows<100>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

/// A profile and its rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankedProfile {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by conviction.
    pub rank: Rank,
}

impl From<muster_domain::RankedProfile> for RankedProfile {
    fn from(ranked: muster_domain::RankedProfile) -> Self {
        Self { profile: ranked.profile.into(), rank: ranked.rank }
    }
}

/// One profile and its standings, by exactly one of its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Get {
    /// By its id.
    ProfileId(ProfileId),
    /// By the person's id on the chat platform.
    UserId(UserId),
    /// By wallet.
    Wallet(Wallet),
    /// By display name.
    Nym(Nym),
}

impl Endpoint for Get {
    const NAME: &'static str = "profiles.get";
    const HELP: &'static str = "One profile and its standings, by exactly one of its names.";
    const FIELDS: &'static [Field] = &[
        Field::of::<Option<ProfileId>>("profile_id", "Its id."),
        Field::of::<Option<UserId>>("user_id", "The person's id on the chat platform."),
        Field::of::<Option<Wallet>>("wallet", "Their wallet."),
        Field::of::<Option<Nym>>(
            "nym",
            "The display name. Of several who share it, the one who joined first.",
        ),
    ];
    const ANSWER: &'static str = "the profile with `rank`, `badge_rank`, `tenure`";

    type Answer = ProfileDetail;

    fn read(fields: &mut Fields<'_>) -> Result<Self, ServiceError> {
        let given = [
            Option::<ProfileId>::read(fields, "profile_id")?.map(Self::ProfileId),
            Option::<UserId>::read(fields, "user_id")?.map(Self::UserId),
            Option::<Wallet>::read(fields, "wallet")?.map(Self::Wallet),
            Option::<Nym>::read(fields, "nym")?.map(Self::Nym),
        ];
        exactly_one(Self::FIELDS, given)
    }

    fn profile(&self) -> Option<ProfileId> {
        match self {
            Self::ProfileId(id) => Some(*id),
            _ => None,
        }
    }
}

impl From<Get> for Lookup {
    fn from(get: Get) -> Self {
        match get {
            Get::ProfileId(id) => Self::ProfileId(id),
            Get::UserId(id) => Self::UserId(id),
            Get::Wallet(wallet) => Self::Wallet(wallet),
            Get::Nym(nym) => Self::Nym(nym),
        }
    }
}

/// A profile and all its standings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileDetail {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by conviction.
    pub rank: Rank,
    /// Its competition rank by badges.
    pub badge_rank: Rank,
    /// How long they have been there.
    pub tenure: Tenure,
}

impl From<muster_domain::ProfileDetail> for ProfileDetail {
    fn from(detail: muster_domain::ProfileDetail) -> Self {
        Self {
            profile: detail.profile.into(),
            rank: detail.rank,
            badge_rank: detail.badge_rank,
            tenure: detail.tenure,
        }
    }
}

endpoint! {
    "profiles.position" -> MemberPosition, "`profile_id`, `rank`, `conviction`, `distance_above`, `distance_below`, \
        `next_tier`, `next_tier_at`, `distance_to_next_tier`, `distance_to_entry`, `at_risk`";

    /// Where one member stands.
    pub struct Position {
        /// Whose position.
        pub profile_id: ProfileId,
    }
}

/// Where a member stands among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPosition {
    /// Whose.
    pub profile_id: ProfileId,
    /// Their rank.
    pub rank: Rank,
    /// Their score.
    pub conviction: Conviction,
    /// How far the nearest higher score lies above.
    pub distance_above: Option<i64>,
    /// How far the nearest lower score lies below.
    pub distance_below: Option<i64>,
    /// The next score tier.
    pub next_tier: Option<Tier>,
    /// The conviction at which it is reached.
    pub next_tier_at: Option<Conviction>,
    /// How much conviction is missing to it.
    pub distance_to_next_tier: Option<i64>,
    /// How much conviction is missing to the entry rank; 0 for those who hold it.
    pub distance_to_entry: Option<i64>,
    /// Whether they hold one of the last entry ranks.
    pub at_risk: bool,
}

impl From<muster_domain::Position> for MemberPosition {
    fn from(position: muster_domain::Position) -> Self {
        let (next_tier, next_tier_at) = position.next_tier.map(|next| (next.tier, next.from)).unzip();
        Self {
            profile_id: position.profile_id,
            rank: position.rank,
            conviction: position.conviction,
            distance_above: position.distance_above,
            distance_below: position.distance_below,
            next_tier,
            next_tier_at,
            distance_to_next_tier: position.distance_to_next_tier,
            distance_to_entry: position.distance_to_entry,
            at_risk: position.at_risk,
        }
    }
}

endpoint! {
    "profiles.around" -> Page<RankedProfile>,
    "page of the profiles ranked around that one, itself among them, then earliest joined, each with `rank`";

    /// The members ranked around one.
    pub struct Around {
        /// Around whom.
        pub profile_id: ProfileId,
        /// How many at most, that one among them.
        pub limit: Rows<10>,
    }
}

/// Several profiles and their standings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Many {
    /// By their ids.
    ProfileIds(Keys<ProfileId>),
    /// By the persons' ids on the chat platform.
    UserIds(Keys<UserId>),
}

impl Endpoint for Many {
    const NAME: &'static str = "profiles.many";
    const HELP: &'static str = "Several profiles and their standings, by exactly one kind of id.";
    const FIELDS: &'static [Field] = &[
        Field {
            name: "profile_ids",
            form: Form::List(MAX_KEYS, "UUIDs"),
            required: false,
            default: None,
            cap: Some(MAX_KEYS),
            help: "Their ids.",
        },
        Field {
            name: "user_ids",
            form: Form::List(MAX_KEYS, "ids"),
            required: false,
            default: None,
            cap: Some(MAX_KEYS),
            help: "The persons' ids on the chat platform.",
        },
    ];
    const ANSWER: &'static str = "page of the visible profiles among them in the order in which they were asked for, \
                                  each once, with `rank`, `badge_rank`, `tenure`; who is not found is left out (`next` \
                                  is null; `payload_too_large` where they do not fit into one message)";

    type Answer = Page<ProfileDetail>;

    fn read(fields: &mut Fields<'_>) -> Result<Self, ServiceError> {
        let given =
            [fields.keys("profile_ids")?.map(Self::ProfileIds), fields.keys("user_ids")?.map(Self::UserIds)];
        exactly_one(Self::FIELDS, given)
    }
}

endpoint! {
    PROFILES_ACTIVE -> Page<Profile>, "page of profiles by activity, above zero only, then earliest joined";

    /// Profiles by activity.
    #[derive(Default)]
    pub struct Active {
        /// How many at most.
        pub limit: Rows<5>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

endpoint! {
    "profiles.search" -> Page<Profile>, "page of profiles whose nym matches: exact, then prefix, then word start, then \
        inside; case does not matter, as [Texts](#texts) says (`%`, `_` and `\\` are ordinary characters)";

    /// Profiles by a piece of their nym.
    pub struct Search {
        /// What to look for, each character standing for itself.
        pub query: SearchQuery,
        /// How many at most.
        pub limit: Rows<25, 100>,
    }

    const MAY_LAG: bool = true;
}

endpoint! {
    PROFILES_BADGES -> Page<Badge>, "page of the profile's unrevoked badges, newest first";

    /// One profile's badges.
    pub struct Badges {
        /// Whose badges.
        pub profile_id: ProfileId,
        /// How many at most.
        pub limit: Rows<100>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

pages! { Ranked, Active }
