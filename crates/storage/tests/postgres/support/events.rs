//! Events as tests write them.

use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect,
    GuildId, MaxClockSkew, MemberEffect, Nym, Rank, RankTier, Reason, ScoreTier, Tier, TierPolicy,
    TimeBounds, UserId,
};
use muster_storage::{Community, Store};
use proptest::prelude::*;
use time::macros::datetime;
use uuid::Uuid;

/// Milliseconds since 1970 of the first event of a test: 2026-11-01.
pub(crate) const START: i64 = 1_793_491_200_000;

/// The time of an event, by a clock that is ahead of all of them.
pub(crate) fn event_time(millis: i64) -> EventTime {
    let times = TimeBounds::at(datetime!(2030-01-01 0:00 UTC), MaxClockSkew::default());
    EventTime::parse(millis, times).unwrap()
}

pub(crate) fn guild(name: &str) -> GuildId {
    GuildId::parse(name).unwrap()
}

pub(crate) fn user(number: impl std::fmt::Display) -> UserId {
    UserId::parse(format!("u{number}")).unwrap()
}

pub(crate) fn kind(name: &str) -> BadgeKind {
    BadgeKind::parse(name).unwrap()
}

pub(crate) fn nym(name: &str) -> Nym {
    Nym::parse(name).unwrap()
}

/// Score tiers s0, s1 … from these scores, and rank tiers r0, r1 … up to these ranks.
pub(crate) fn policy(froms: &[i64], lasts: &[u64]) -> TierPolicy {
    let scores = froms.iter().enumerate().map(|(number, from)| ScoreTier {
        tier: Tier::parse(format!("s{number}")).unwrap(),
        from: Conviction::clamp(*from),
    });
    let ranks = lasts.iter().enumerate().map(|(number, last)| RankTier {
        tier: Tier::parse(format!("r{number}")).unwrap(),
        last: Rank::below(last - 1),
    });
    TierPolicy::new(scores.collect(), ranks.collect()).unwrap()
}

/// An event of a member, with an id of its own.
pub(crate) fn member(guild: &GuildId, user: &UserId, at: i64, effect: MemberEffect) -> Event {
    Event {
        id: EventId::new(Uuid::new_v4()),
        at: event_time(at),
        guild: guild.clone(),
        effect: Effect::Member { user: user.clone(), effect },
        traceparent: None,
    }
}

pub(crate) fn joined(guild: &GuildId, user: &UserId, at: i64, name: &str) -> Event {
    member(guild, user, at, MemberEffect::Join { username: Some(nym(name)) })
}

pub(crate) fn scored(guild: &GuildId, user: &UserId, at: i64, conviction: i64) -> Event {
    let conviction = Some(Conviction::clamp(conviction));
    member(guild, user, at, MemberEffect::ScoreSet { conviction, activity: None })
}

pub(crate) fn awarded(guild: &GuildId, user: &UserId, at: i64, name: &str) -> Event {
    member(guild, user, at, MemberEffect::BadgeAward { kind: kind(name), reason: None, by: None })
}

pub(crate) fn revoked(guild: &GuildId, user: &UserId, at: i64, name: &str) -> Event {
    member(guild, user, at, MemberEffect::BadgeRevoke { kind: kind(name), reason: None, by: None })
}

pub(crate) fn added(guild: &GuildId, user: &UserId, at: i64, amount: i64) -> Event {
    member(guild, user, at, MemberEffect::ActivityAdd { amount: Activity::clamp(amount) })
}

/// Applies events in batches of the largest size; answers the community's view.
pub(crate) async fn apply(store: &Store, guild: &GuildId, events: Vec<Event>) -> Community {
    for batch in events.chunks(Event::MAX_BATCH.into()) {
        store.events_apply(batch.to_vec()).await.unwrap();
    }
    view(store, guild).await
}

pub(crate) async fn view(store: &Store, guild: &GuildId) -> Community {
    let found = store.community_find(guild).await.unwrap();
    store.community(found.community_id).await.unwrap()
}

pub(crate) const GUILDS: usize = 2;
pub(crate) const USERS: u8 = 30;

/// An event of one of few communities and users, at one of few times, so that many are of the same and tie.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    pub(crate) guild: usize,
    id: u128,
    at: i64,
    effect: Effect,
}

impl Drawn {
    /// The event in the community that stands for its number.
    pub(crate) fn event(&self, guilds: &[GuildId]) -> Event {
        Event {
            id: EventId::new(Uuid::from_u128(self.id)),
            at: event_time(START + self.at),
            guild: guilds[self.guild].clone(),
            effect: self.effect.clone(),
            traceparent: None,
        }
    }
}

pub(crate) fn drawn() -> impl Strategy<Value = Drawn> {
    (0..GUILDS, any::<u128>(), 0..40_i64, effect()).prop_map(|(guild, id, at, effect)| Drawn {
        guild,
        id,
        // Two days, so that the counts by day have several.
        at: at * 4_000_000,
        effect,
    })
}

fn effect() -> impl Strategy<Value = Effect> {
    let name = "[a-c]{0,3}".prop_map(|name| CommunityName::parse(name).ok());
    let guild = prop_oneof![
        name.clone().prop_map(|name| GuildEffect::Join { name }),
        name.prop_map(|name| GuildEffect::Update { name }),
        Just(GuildEffect::Leave),
    ];
    let member = (0..USERS, member_effect())
        .prop_map(|(number, effect)| Effect::Member { user: user(number), effect });
    prop_oneof![1 => guild.prop_map(Effect::Guild), 24 => member]
}

fn member_effect() -> impl Strategy<Value = MemberEffect> {
    // Few names, so that they are shared; some hold what SQL patterns would take for special.
    let name = || {
        prop_oneof!["[a-bA-B]{1,2}( [a-b])?", "[%_\\\\]{1,3}", "[\u{e9}\u{c9}\u{df}\u{ff26}]{1,2}"]
            .prop_map(|n| nym(&n))
    };
    let score = || {
        prop_oneof![
            8 => (-3..12_i64).prop_map(|score| score * 100),
            2 => -1200..1200_i64,
            1 => proptest::sample::select(vec![i64::MIN, i64::MAX, 0, 31, 32, 1023, 1024, -32, -33]),
        ]
    };
    let kinds = || "[k-m]".prop_map(|name| kind(&name));
    let reason = || proptest::option::of("[r-t]".prop_map(|text| Reason::parse(text).unwrap()));
    // Some are awarded by members.
    let by = || proptest::option::of((0..USERS).prop_map(|n| Awarder::parse(format!("u{n}")).unwrap()));
    prop_oneof![
        4 => proptest::option::of(name()).prop_map(|username| MemberEffect::Join { username }),
        3 => proptest::option::of(name()).prop_map(|nick| MemberEffect::Update { nick }),
        2 => Just(MemberEffect::Leave),
        8 => (proptest::option::of(score()), proptest::option::of(score())).prop_map(|(conviction, activity)| {
            MemberEffect::ScoreSet {
                conviction: conviction.map(Conviction::clamp),
                activity: activity.map(Activity::clamp),
            }
        }),
        4 => score().prop_map(|amount| MemberEffect::ActivityAdd { amount: Activity::clamp(amount) }),
        5 => (kinds(), reason(), by()).prop_map(|(kind, reason, by)| MemberEffect::BadgeAward { kind, reason, by }),
        3 => (kinds(), reason(), by()).prop_map(|(kind, reason, by)| MemberEffect::BadgeRevoke { kind, reason, by }),
    ]
}
