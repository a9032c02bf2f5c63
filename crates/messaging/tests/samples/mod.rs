//! What answers are made of, for the tests that look at their text.

use muster_domain::{
    Activity, Addition, Awarder, Badge, BadgeId, BadgeKind, BadgeOperation, Conviction, Cursor, Export,
    Movement, Nym, Page, Profile, ProfileId, Reason, Tier, TierChange, UserId, Wallet,
};
use time::macros::datetime;
use uuid::Uuid;

pub(crate) fn profile_id() -> ProfileId {
    ProfileId::new(Uuid::from_u128(0x1))
}

pub(crate) fn tier(name: &str) -> Tier {
    Tier::parse(name).unwrap()
}

pub(crate) fn profile() -> Profile {
    Profile {
        profile_id: profile_id(),
        user_id: UserId::parse("1001").unwrap(),
        wallet: Some(Wallet::parse("0xAB").unwrap()),
        nym: Nym::parse("Chani \"Sihaya\"").unwrap(),
        conviction: Conviction::clamp(640),
        activity: Activity::clamp(12),
        tier: Some(tier("sietch")),
        badge_count: 2,
        joined_at: datetime!(2026-01-02 03:04:05.678 +02:00),
        last_active_at: None,
        visible: true,
    }
}

pub(crate) fn badge() -> Badge {
    Badge {
        badge_id: BadgeId::new(Uuid::from_u128(0xB)),
        profile_id: profile_id(),
        kind: BadgeKind::parse("first_blood").unwrap(),
        awarded_at: datetime!(2026-02-03 04:05:06 UTC),
        awarded_by: Some(Awarder::parse("stilgar").unwrap()),
        reason: None,
        revoked_at: Some(datetime!(2026-03-04 05:06:07 UTC)),
        revoked_by: None,
        revoke_reason: Some(Reason::parse("by mistake").unwrap()),
    }
}

pub(crate) fn change() -> TierChange {
    TierChange {
        profile_id: profile_id(),
        nym: profile().nym,
        from: None,
        to: Some(tier("sietch")),
        movement: Movement::Promotion,
        at: datetime!(2026-04-05 06:07:08 UTC),
    }
}

pub(crate) fn export() -> Export {
    let Badge { kind, awarded_at: at, awarded_by: by, reason, .. } = badge();
    Export {
        profile: profile(),
        username: Some(profile().nym),
        badges: vec![badge()],
        operations: vec![BadgeOperation { kind, award: false, at, by, reason }],
        additions: vec![Addition { at, amount: Activity::clamp(3) }],
        tier_changes: vec![change()],
        next: None,
    }
}

pub(crate) fn page<T>(item: T) -> Page<T> {
    Page { items: vec![item], next: Some(Cursor::parse("AQI").unwrap()), limit: 100 }
}
