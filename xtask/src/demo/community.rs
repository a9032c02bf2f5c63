use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result};
use muster_domain::{Conviction, Nym, Rank, Tier, TierPolicy};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The chat server that the community is tied to.
pub(super) const GUILD: &str = "881207955029110855";
pub(super) const NAME: &str = "Sietch Tabr";

const NAMES: [&str; 20] = [
    "alia",
    "chani",
    "duncan",
    "farok",
    "ghanima",
    "gurney",
    "harah",
    "irulan",
    "jamis",
    "jessica",
    "leto",
    "liet",
    "mohiam",
    "otheym",
    "paul",
    "ramallo",
    "shishakli",
    "stilgar",
    "thufir",
    "wellington",
];
/// Nicknames as people really set them: accents, other scripts, forms that fold alike, marks that SQL gives a meaning.
const NICKS: [&str; 12] = [
    "Ürün",
    "Zoe\u{301} of the Dunes",
    "Ярослав",
    "李小龍",
    "ＳＴＩＬＧＡＲ",
    "محمد",
    "ñandú",
    "Sand_Rider",
    "back\\slash",
    "🏜 Desert Mouse",
    "Old Father Eternity",
    "İstanbul",
];
/// The nickname of one member, to be found by searching for `%` alone.
const PERCENT_NICK: &str = "100% Fremen";
/// Badge kinds, and how many of a thousand members are awarded each.
const BADGES: [(&str, u64); 7] = [
    ("first_blood", 400),
    ("water_bearer", 200),
    ("sandrider", 100),
    ("crysknife", 50),
    ("spice_trader", 20),
    ("muad_dib", 5),
    ("kwisatz", 1),
];
/// The first members' scores, so that the best ranks are shared: 1, 2, 2, 2, 5, …
const LEADERS: [i64; 6] = [40_000_000, 30_000_000, 30_000_000, 30_000_000, 25_000_000, 25_000_000];

/// One gateway event, ready to be published.
pub(super) struct GatewayEvent {
    pub(super) event_type: &'static str,
    pub(super) envelope: Vec<u8>,
}

/// A member as they are after all events.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) user_id: String,
    pub(super) nym: Nym,
    pub(super) conviction: Conviction,
    pub(super) activity: i64,
    /// What they hold, and when it was awarded.
    pub(super) badges: BTreeMap<&'static str, OffsetDateTime>,
    pub(super) joined_at: OffsetDateTime,
    pub(super) last_active_at: Option<OffsetDateTime>,
    /// False once they left.
    pub(super) visible: bool,
}

/// The community as it is to be after all events: what every answer is held against. It is worked out here, in memory,
/// in the plainest way, without any of the worker's queries.
pub(super) struct Community {
    /// By user id.
    pub(super) members: BTreeMap<String, Member>,
    pub(super) policy: TierPolicy,
    /// The scores of visible members, highest first.
    scores: Vec<Conviction>,
    /// The numbers of badges of visible members, highest first.
    badge_counts: Vec<usize>,
}

/// A small generator of numbers that look random (splitmix64): the same community every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn score(&mut self, range: Range<i64>) -> i64 {
        let width = u64::try_from(range.end - range.start).unwrap_or(1);
        range.start + i64::try_from(self.below(width)).unwrap_or(0)
    }

    fn happens(&mut self, in_a_thousand: u64) -> bool {
        self.below(1000) < in_a_thousand
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        let index = usize::try_from(self.below(u64::try_from(from.len()).unwrap_or(1))).unwrap_or(0);
        from.get(index).copied().unwrap_or_default()
    }

    fn id(&mut self) -> Uuid {
        let bytes = (u128::from(self.next()) << 64) | u128::from(self.next());
        uuid::Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid()
    }

    /// As real scores lie: half of the members within a few points of zero, one in a hundred beyond 2,000.
    fn skewed(&mut self) -> i64 {
        if self.happens(10) {
            return -self.score(1..200);
        }
        20_000_000 / self.score(1..1_000_001) - 20
    }
}

/// Collects a community's events in the order in which they are published.
struct Gateway {
    numbers: Numbers,
    events: Vec<GatewayEvent>,
}

impl Gateway {
    fn emit(&mut self, event_type: &'static str, user: Option<&str>, at: OffsetDateTime, data: Value) {
        let id = self.numbers.id();
        let envelope = json!({
            "event_id": id,
            "event_type": event_type,
            "shard_id": 0,
            "timestamp": millis(at),
            "guild_id": GUILD,
            "channel_id": null,
            "user_id": user,
            "data": data,
        });
        self.events.push(GatewayEvent { event_type, envelope: envelope.to_string().into_bytes() });
    }
}

/// A time as events carry it.
pub(super) fn millis(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// A whole millisecond, as events carry it.
fn whole(at: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis(at)) * 1_000_000).unwrap_or(at)
}

/// Makes the events of a community of that size, whose last happened just before `now`, and what they come to.
pub(super) fn generate(members: u64, now: OffsetDateTime) -> Result<(Vec<GatewayEvent>, Community)> {
    let mut gateway = Gateway { numbers: Numbers(7), events: Vec::new() };
    let now = whole(now);
    let guild_data = json!({
        "name": NAME, "member_count": members, "icon": null, "preferred_locale": "en-GB", "features": ["COMMUNITY"],
    });
    gateway.emit("guild.join", None, now - Duration::days(500), guild_data);
    let mut by_user = BTreeMap::new();
    for index in 0..members {
        let member = member(&mut gateway, index, now)?;
        by_user.insert(member.user_id.clone(), member);
    }
    let visible = || by_user.values().filter(|member: &&Member| member.visible);
    let mut scores: Vec<Conviction> = visible().map(|member| member.conviction).collect();
    scores.sort_unstable_by(|a, b| b.cmp(a));
    let mut badge_counts: Vec<usize> = visible().map(|member| member.badges.len()).collect();
    badge_counts.sort_unstable_by(|a, b| b.cmp(a));
    let community = Community { members: by_user, policy: TierPolicy::default(), scores, badge_counts };
    Ok((gateway.events, community))
}

/// One member's events, from joining on.
fn member(gateway: &mut Gateway, index: u64, now: OffsetDateTime) -> Result<Member> {
    let user_id = format!("{}", 200_000_000_000_000_000 + index * 7919);
    let user = Some(user_id.as_str());
    let numbers = &mut gateway.numbers;
    let name = format!("{}{index}", numbers.pick(&NAMES));
    // Spread over 400 days; everything else of theirs happens within the hour after, or in the last weeks.
    let joined_at = now - Duration::seconds(numbers.score(7_200..400 * 86_400));
    let after = |minutes: i64| joined_at + Duration::minutes(minutes);

    gateway.emit("member.join", user, joined_at, json!({"username": name, "discriminator": "0"}));

    let numbers = &mut gateway.numbers;
    let nick = match index {
        0 => Some(PERCENT_NICK.to_owned()),
        _ if numbers.happens(200) => Some(numbers.pick(&NICKS).to_owned()),
        _ if numbers.happens(100) => Some(format!("{} the {index}th", numbers.pick(&NAMES))),
        _ => None,
    };
    let roles: Vec<String> = (0..numbers.below(4)).map(|role| format!("{}", 3_000 + role)).collect();
    gateway.emit("member.update", user, after(1), json!({"roles": roles, "nick": nick}));

    let leader = usize::try_from(index).ok().and_then(|index| LEADERS.get(index)).copied();
    let numbers = &mut gateway.numbers;
    let mut conviction = leader.unwrap_or_else(|| numbers.skewed());
    gateway.emit("score.set", user, after(2), json!({"conviction": conviction}));
    if leader.is_none() && gateway.numbers.happens(50) {
        // A second score, which moves some up and some down a tier.
        conviction = gateway.numbers.skewed();
        gateway.emit("score.set", user, after(3), json!({"conviction": conviction}));
    }

    let mut activity = 0;
    let mut last_active_at = None;
    if gateway.numbers.happens(600) {
        activity = gateway.numbers.score(1..500);
        let ago = gateway.numbers.score(60..30 * 86_400);
        let at = (now - Duration::seconds(ago)).max(after(4));
        last_active_at = Some(at);
        gateway.emit("activity.add", user, at, json!({"amount": activity}));
    }

    let mut badges = BTreeMap::new();
    for (number, (kind, share)) in (5..).zip(BADGES) {
        if !gateway.numbers.happens(share) {
            continue;
        }
        let award = json!({"kind": kind, "reason": "earned in the desert", "by": "naib"});
        gateway.emit("badge.award", user, after(number), award.clone());
        badges.insert(kind, after(number));
        if gateway.numbers.happens(20) {
            let revoke = json!({"kind": kind, "reason": "water debt", "by": "naib"});
            gateway.emit("badge.revoke", user, after(number + 20), revoke);
            badges.remove(kind);
            if gateway.numbers.happens(300) {
                gateway.emit("badge.award", user, after(number + 30), award);
                badges.insert(kind, after(number + 30));
            }
        }
    }

    let visible = leader.is_some() || !gateway.numbers.happens(20);
    if !visible {
        let last = last_active_at.map_or(after(59), |at| at.max(after(59)));
        gateway.emit("member.leave", user, last + Duration::seconds(30), Value::Null);
    }
    let nym = Nym::parse(nick.as_deref().unwrap_or(&name)).context("a name that is no nym")?;
    let conviction = Conviction::clamp(conviction);
    Ok(Member { user_id, nym, conviction, activity, badges, joined_at, last_active_at, visible })
}

impl Community {
    /// The members that lists and ranks count.
    pub(super) fn visible(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.visible)
    }

    /// How many those are.
    pub(super) fn size(&self) -> u64 {
        count(self.scores.len())
    }

    /// The scores of visible members, highest first.
    pub(super) fn scores(&self) -> &[Conviction] {
        &self.scores
    }

    /// The numbers of badges of visible members, highest first.
    pub(super) fn badge_counts(&self) -> &[usize] {
        &self.badge_counts
    }

    /// The rank of whoever has this score.
    pub(super) fn rank(&self, conviction: Conviction) -> Rank {
        Rank::below(count(self.scores.partition_point(|score| *score > conviction)))
    }

    /// The rank by badges of whoever holds this many.
    pub(super) fn badge_rank(&self, badges: usize) -> Rank {
        Rank::below(count(self.badge_counts.partition_point(|held| *held > badges)))
    }

    /// The tier of whoever has this score.
    pub(super) fn tier(&self, conviction: Conviction) -> Option<&Tier> {
        self.policy.tier(conviction, self.rank(conviction))
    }

    /// How many visible members answer to `is`.
    pub(super) fn count(&self, is: impl Fn(&Member) -> bool) -> u64 {
        count(self.visible().filter(|member| is(member)).count())
    }
}

/// A length as the wire counts.
pub(super) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_community_is_the_same_every_time_and_has_what_the_demo_shows() {
        let now = datetime!(2026-11-01 12:00 UTC);
        let (events, community) = generate(10_000, now).unwrap();
        let (again, _) = generate(10_000, now).unwrap();
        assert!(events.iter().zip(&again).all(|(a, b)| a.envelope == b.envelope));

        let ids: BTreeSet<String> = events
            .iter()
            .map(|event| serde_json::from_slice::<Value>(&event.envelope).unwrap()["event_id"].to_string())
            .collect();
        assert_eq!(ids.len(), events.len(), "every event has an id of its own");
        let kinds: BTreeSet<&str> = events.iter().map(|event| event.event_type).collect();
        assert_eq!(kinds.len(), 8, "{kinds:?}");
        assert!(community.size() < 10_000, "some left");
        let tiers: BTreeSet<Option<&Tier>> =
            community.visible().map(|m| community.tier(m.conviction)).collect();
        assert_eq!(tiers.len(), 7, "every tier and none: {tiers:?}");
        let ranks: Vec<u64> =
            community.scores().iter().take(6).map(|score| community.rank(*score).get()).collect();
        assert_eq!(ranks, [1, 2, 2, 2, 5, 5]);
    }

    #[test]
    fn nothing_happens_in_the_future_or_before_joining() {
        let now = datetime!(2026-11-01 12:00 UTC);
        let (events, _) = generate(500, now).unwrap();
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for event in &events {
            let value: Value = serde_json::from_slice(&event.envelope).unwrap();
            let at = value["timestamp"].as_i64().unwrap();
            assert!(at <= millis(now));
            if let Some(user) = value["user_id"].as_str() {
                let joined = *last.entry(user.to_owned()).or_insert(at);
                assert!(joined <= at, "{user} did something before joining");
            }
        }
    }
}
