//! What a batch of events comes to for each community and member of a shard, before it is compared with what is stored.
//!
//! Every value is a register: the latest event, by time and then by id, wins. Folding a batch first makes its cost one
//! row a member, however many of its events are about them.

use std::collections::HashMap;

use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, Effect, Event, GuildEffect, MemberEffect, Nym,
    Reason, TraceParent, UserId,
};
use time::OffsetDateTime;
use uuid::Uuid;

/// When, and by which event, a value was set. The order of events.
pub(crate) type Watermark = (OffsetDateTime, Uuid);

/// A value with the event that set it.
pub(crate) type Register<T> = Option<(Watermark, T)>;

/// Sets a register unless what it holds is later.
fn set<T>(register: &mut Register<T>, watermark: Watermark, value: T) {
    if register.as_ref().is_none_or(|(held, _)| *held < watermark) {
        *register = Some((watermark, value));
    }
}

/// The register's value, if it is later than what is stored.
pub(crate) fn newer<T>(register: &Register<T>, stored: Option<Watermark>) -> Option<&(Watermark, T)> {
    register.as_ref().filter(|(watermark, _)| stored.is_none_or(|stored| stored < *watermark))
}

/// What a batch comes to.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) communities: HashMap<i32, CommunityChange>,
    pub(crate) members: HashMap<(i32, UserId), MemberChange>,
}

/// What a batch says of one community.
#[derive(Default)]
pub(crate) struct CommunityChange {
    pub(crate) name: Register<Option<CommunityName>>,
    pub(crate) active: Register<bool>,
}

/// What a transaction changes of one member: what a batch of events says, or what an operator asks.
#[derive(Default)]
pub(crate) struct MemberChange {
    pub(crate) username: Register<Option<Nym>>,
    pub(crate) nick: Register<Option<Nym>>,
    pub(crate) has_left: Register<bool>,
    /// The earliest join.
    pub(crate) joined: Option<OffsetDateTime>,
    /// The earliest event.
    pub(crate) seen: Option<OffsetDateTime>,
    pub(crate) conviction: Register<Conviction>,
    pub(crate) activity: Register<Activity>,
    pub(crate) adds: Vec<(Watermark, Activity)>,
    pub(crate) badges: Vec<BadgeChange>,
    /// Taken out of every list, or put back.
    pub(crate) hidden: Option<bool>,
    /// Whether the member is being erased, which is published however invisible it was.
    pub(crate) erased: bool,
    /// Whether the tier is to be looked at even where nothing else changes, for a new policy.
    pub(crate) recheck_tier: bool,
    /// Whether the person was erased before all of this: a profile that is made of it is not seen until they join.
    pub(crate) was_erased: bool,
    /// The trace of what causes the change.
    pub(crate) traceparent: Option<TraceParent>,
}

/// An award or a revocation.
pub(crate) struct BadgeChange {
    pub(crate) set: Watermark,
    pub(crate) kind: BadgeKind,
    pub(crate) award: bool,
    pub(crate) reason: Option<Reason>,
    pub(crate) by: Option<Awarder>,
}

impl Changes {
    /// Takes in one event, which must not have been applied before.
    pub(crate) fn take(&mut self, community: i32, event: Event) {
        let watermark = (event.at.date(), event.id.get());
        match event.effect {
            Effect::Guild(effect) => {
                let change = self.communities.entry(community).or_default();
                match effect {
                    GuildEffect::Join { name } => {
                        set(&mut change.name, watermark, name);
                        set(&mut change.active, watermark, true);
                    }
                    GuildEffect::Update { name } => set(&mut change.name, watermark, name),
                    GuildEffect::Leave => set(&mut change.active, watermark, false),
                }
            }
            Effect::Member { user, effect } => {
                let change = self.members.entry((community, user)).or_default();
                change.seen = Some(change.seen.map_or(watermark.0, |seen| seen.min(watermark.0)));
                change.traceparent = event.traceparent.or(change.traceparent.take());
                change.take(watermark, effect);
            }
        }
    }
}

impl MemberChange {
    fn take(&mut self, watermark: Watermark, effect: MemberEffect) {
        match effect {
            MemberEffect::Join { username } => {
                set(&mut self.username, watermark, username);
                set(&mut self.has_left, watermark, false);
                self.joined = Some(self.joined.map_or(watermark.0, |joined| joined.min(watermark.0)));
            }
            MemberEffect::Update { nick, .. } => set(&mut self.nick, watermark, nick),
            MemberEffect::Leave => set(&mut self.has_left, watermark, true),
            MemberEffect::ScoreSet { conviction, activity } => {
                if let Some(conviction) = conviction {
                    set(&mut self.conviction, watermark, conviction);
                }
                if let Some(activity) = activity {
                    set(&mut self.activity, watermark, activity);
                }
            }
            MemberEffect::ActivityAdd { amount } => self.adds.push((watermark, amount)),
            MemberEffect::BadgeAward { kind, reason, by } => {
                self.badges.push(BadgeChange { set: watermark, kind, award: true, reason, by });
            }
            MemberEffect::BadgeRevoke { kind, reason, by } => {
                self.badges.push(BadgeChange { set: watermark, kind, award: false, reason, by });
            }
        }
    }

    /// When the member was last active, as far as this batch tells.
    pub(crate) fn last_active(&self) -> Option<OffsetDateTime> {
        let added = self.adds.iter().map(|((at, _), _)| *at).max();
        added.max(self.activity.as_ref().map(|((at, _), _)| *at))
    }

    /// What this batch adds to activity set at `set`.
    pub(crate) fn added_since(&self, set: Option<Watermark>) -> Activity {
        let counted = self.adds.iter().filter(|(watermark, _)| set.is_none_or(|set| set < *watermark));
        counted.fold(Activity::default(), |sum, (_, amount)| sum.plus(*amount))
    }
}
