//! What events come to, worked out without a database: each is applied once, one after the other, in the order of time
//! and id. Beside it, the same as the database holds it.

use std::collections::{BTreeMap, BTreeSet};

use muster_domain::{
    Activity, CommunityName, Conviction, Effect, Event, GuildEffect, GuildId, MemberEffect, UserId,
};
use time::OffsetDateTime;
use tokio_postgres::Client;
use uuid::Uuid;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuildState {
    pub(crate) name: Option<String>,
    pub(crate) active: bool,
    pub(crate) members: BTreeMap<String, MemberState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub(crate) nym: String,
    pub(crate) joined_at: OffsetDateTime,
    pub(crate) has_left: bool,
    pub(crate) conviction: i64,
    pub(crate) activity: i64,
    pub(crate) last_active_at: Option<OffsetDateTime>,
    pub(crate) badges: Vec<BadgeState>,
}

/// By date, then by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BadgeState {
    pub(crate) awarded_at: OffsetDateTime,
    pub(crate) badge_id: Uuid,
    pub(crate) kind: String,
    pub(crate) awarded_by: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) revoked_at: Option<OffsetDateTime>,
    pub(crate) revoked_by: Option<String>,
    pub(crate) revoke_reason: Option<String>,
}

#[derive(Default)]
struct Guild {
    name: Option<CommunityName>,
    has_left: bool,
    members: BTreeMap<UserId, Member>,
}

struct Member {
    username: Option<String>,
    nick: Option<String>,
    seen: OffsetDateTime,
    joined: Option<OffsetDateTime>,
    has_left: bool,
    conviction: Conviction,
    activity: Activity,
    last_active: Option<OffsetDateTime>,
    badges: Vec<BadgeState>,
}

/// When whom of which chat server was erased, at last.
pub(crate) type Erasures = BTreeMap<(GuildId, String), OffsetDateTime>;

/// The end state of `events`, which may come in any order and several times, and of erasures.
pub(crate) fn end_state(events: &[Event], erasures: &Erasures) -> BTreeMap<GuildId, GuildState> {
    let mut ordered: Vec<&Event> = events.iter().collect();
    ordered.sort_by_key(|event| (event.at, event.id));
    let mut seen = BTreeSet::new();
    let mut guilds: BTreeMap<GuildId, Guild> = BTreeMap::new();
    for (guild, _) in erasures.keys() {
        guilds.entry(guild.clone()).or_default();
    }
    for event in ordered {
        if seen.insert((event.guild.clone(), event.id)) {
            guilds.entry(event.guild.clone()).or_default().apply(event, erasures);
        }
    }
    guilds.into_iter().map(|(id, guild)| (id, guild.state())).collect()
}

impl Guild {
    fn apply(&mut self, event: &Event, erasures: &Erasures) {
        let erased = |id: &str| erasures.get(&(event.guild.clone(), id.to_owned()));
        match &event.effect {
            Effect::Guild(GuildEffect::Join { name }) => {
                self.name.clone_from(name);
                self.has_left = false;
            }
            Effect::Guild(GuildEffect::Update { name }) => self.name.clone_from(name),
            Effect::Guild(GuildEffect::Leave) => self.has_left = true,
            Effect::Member { user, effect } => {
                let at = event.at.date();
                let is_of_before = |id: &str| erased(id).is_some_and(|erased_at| at <= *erased_at);
                if is_of_before(user.as_str()) {
                    return;
                }
                let mut effect = effect.clone();
                if let MemberEffect::BadgeAward { by, .. } | MemberEffect::BadgeRevoke { by, .. } =
                    &mut effect
                {
                    by.take_if(|by| is_of_before(by.as_str()));
                }
                let returned = erased(user.as_str()).is_some();
                let member = self.members.entry(user.clone()).or_insert_with(|| Member::seen(at, returned));
                member.apply(event.id.get(), at, &effect);
            }
        }
    }

    fn state(self) -> GuildState {
        let members = self.members.into_iter().map(|(user, member)| {
            let nym =
                member.nick.or(member.username).unwrap_or_else(|| user.as_str().chars().take(32).collect());
            let mut badges = member.badges;
            badges.sort();
            let state = MemberState {
                nym,
                joined_at: member.joined.unwrap_or(member.seen),
                has_left: member.has_left,
                conviction: member.conviction.get(),
                activity: member.activity.get(),
                last_active_at: member.last_active,
                badges,
            };
            (user.as_str().to_owned(), state)
        });
        GuildState { name: self.name.map(String::from), active: !self.has_left, members: members.collect() }
    }
}

impl Member {
    /// One who was erased before is not there until they join.
    fn seen(at: OffsetDateTime, has_left: bool) -> Self {
        Self {
            username: None,
            nick: None,
            seen: at,
            joined: None,
            has_left,
            conviction: Conviction::default(),
            activity: Activity::default(),
            last_active: None,
            badges: Vec::new(),
        }
    }

    fn apply(&mut self, event: Uuid, at: OffsetDateTime, effect: &MemberEffect) {
        match effect {
            MemberEffect::Join { username } => {
                self.username = username.as_ref().map(|username| username.as_str().to_owned());
                self.has_left = false;
                self.joined.get_or_insert(at);
            }
            MemberEffect::Update { nick } => {
                self.nick = nick.as_ref().map(|nick| nick.as_str().to_owned());
            }
            MemberEffect::Leave => self.has_left = true,
            MemberEffect::ScoreSet { conviction, activity } => {
                self.conviction = conviction.unwrap_or(self.conviction);
                if let Some(activity) = activity {
                    self.activity = *activity;
                    self.last_active = Some(at);
                }
            }
            MemberEffect::ActivityAdd { amount } => {
                self.activity = self.activity.plus(*amount);
                self.last_active = Some(at);
            }
            MemberEffect::BadgeAward { kind, reason, by } => {
                if self.held(kind.as_str()).is_none() {
                    self.badges.push(BadgeState {
                        awarded_at: at,
                        badge_id: event,
                        kind: kind.as_str().to_owned(),
                        awarded_by: by.clone().map(String::from),
                        reason: reason.clone().map(String::from),
                        revoked_at: None,
                        revoked_by: None,
                        revoke_reason: None,
                    });
                }
            }
            MemberEffect::BadgeRevoke { kind, reason, by } => {
                if let Some(badge) = self.held(kind.as_str()) {
                    badge.revoked_at = Some(at);
                    badge.revoked_by = by.clone().map(String::from);
                    badge.revoke_reason = reason.clone().map(String::from);
                }
            }
        }
    }

    fn held(&mut self, kind: &str) -> Option<&mut BadgeState> {
        self.badges.iter_mut().find(|badge| badge.kind == kind && badge.revoked_at.is_none())
    }
}

/// The state of a community as it is stored; `None` when there is no such community.
pub(crate) async fn stored_state(client: &Client, guild: &GuildId) -> Option<GuildState> {
    let community = client
        .query_opt(
            "SELECT c.community_id, s.name, s.active FROM communities AS c JOIN community_states AS s USING (shard, community)
             WHERE guild_id = $1",
            &[&guild.as_str()],
        )
        .await
        .unwrap()?;
    let id: Uuid = community.get(0);
    let rows = client
        .query(
            "SELECT user_id, coalesce(nick, username, left(user_id, 32)), joined_at, has_left, conviction, activity,
                 last_active_at, member
             FROM members JOIN communities USING (shard, community)
             WHERE community_id = $1 AND erased_at IS NULL",
            &[&id],
        )
        .await
        .unwrap();
    let mut users: BTreeMap<i64, String> = BTreeMap::new();
    let mut members: BTreeMap<String, MemberState> = BTreeMap::new();
    for row in rows {
        users.insert(row.get(7), row.get(0));
        let state = MemberState {
            nym: row.get(1),
            joined_at: row.get(2),
            has_left: row.get(3),
            conviction: row.get(4),
            activity: row.get(5),
            last_active_at: row.get(6),
            badges: Vec::new(),
        };
        members.insert(row.get(0), state);
    }
    let rows = client
        .query(
            "SELECT member, at, op_id, k.name, by, reason, revoked_at, revoked_by, revoke_reason
             FROM badge_ops JOIN badge_kinds AS k USING (shard, community, kind)
             JOIN communities USING (shard, community)
             WHERE community_id = $1 AND is_badge ORDER BY at, op_id",
            &[&id],
        )
        .await
        .unwrap();
    for row in rows {
        let user = &users[&row.get::<_, i64>(0)];
        members.get_mut(user).unwrap().badges.push(BadgeState {
            awarded_at: row.get(1),
            badge_id: row.get(2),
            kind: row.get(3),
            awarded_by: row.get(4),
            reason: row.get(5),
            revoked_at: row.get(6),
            revoked_by: row.get(7),
            revoke_reason: row.get(8),
        });
    }
    Some(GuildState { name: community.get(1), active: community.get(2), members })
}
