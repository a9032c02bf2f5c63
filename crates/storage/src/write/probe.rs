//! The events of a probe: of every kind, and with every effect on a member's standing.

use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect,
    GuildId, MaxClockSkew, MemberEffect, Nym, Reason, Role, TimeBounds, UserId,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;

/// One more than the highest rank tier of the default policy has room for.
const MEMBERS: i64 = 8;

/// Batches to be applied one after the other. Members come, rise, fall and go; what a member has is set and set anew.
pub(crate) fn events(guild: &GuildId) -> Result<Vec<Vec<Event>>, Error> {
    let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
    let mut at = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let mut event = |effect| {
        at += 1;
        let at = EventTime::parse(at, times).map_err(Error::defect)?;
        Ok::<_, Error>(Event { id: EventId::new(Uuid::now_v7()), at, guild: guild.clone(), effect })
    };
    let name = CommunityName::parse_optional("probe").map_err(Error::defect)?;
    let (username, nick) = (
        Nym::parse_optional("probe").map_err(Error::defect)?,
        Nym::parse_optional("probed").map_err(Error::defect)?,
    );
    let kind = BadgeKind::parse("probe").map_err(Error::defect)?;
    let (reason, by) = (
        Reason::parse_optional("probe").map_err(Error::defect)?,
        Awarder::parse_optional("probe").map_err(Error::defect)?,
    );
    let roles = vec![Role::parse("probe").map_err(Error::defect)?];
    let score = |conviction: i64| MemberEffect::ScoreSet {
        conviction: Some(Conviction::clamp(conviction)),
        activity: Some(Activity::clamp(1_i64)),
    };
    let award = MemberEffect::BadgeAward { kind: kind.clone(), reason: reason.clone(), by: by.clone() };
    // The first member rises above the others and falls behind them, so that tiers change, and goes and comes back.
    let rounds = [
        vec![award.clone()],
        vec![
            MemberEffect::Update { nick, roles },
            score(0),
            MemberEffect::ActivityAdd { amount: Activity::clamp(1_i64) },
            MemberEffect::BadgeRevoke { kind, reason, by },
        ],
        vec![score(-MEMBERS - 1), award],
        vec![MemberEffect::Leave],
        vec![MemberEffect::Join { username: username.clone() }],
    ];
    let mut users = Vec::new();
    for _ in 0..MEMBERS {
        users.push(UserId::parse(format!("probe-{}", Uuid::now_v7())).map_err(Error::defect)?);
    }
    let mut first = vec![event(Effect::Guild(GuildEffect::Join { name }))?];
    for (user, conviction) in users.iter().zip(-MEMBERS..) {
        for effect in [MemberEffect::Join { username: username.clone() }, score(conviction)] {
            first.push(event(Effect::Member { user: user.clone(), effect })?);
        }
    }
    let mut batches = vec![first];
    // A batch for each, since a batch is brought down to what it comes to.
    for round in rounds {
        let mut batch = Vec::new();
        for effect in round {
            let Some(user) = users.first().cloned() else { continue };
            batch.push(event(Effect::Member { user, effect })?);
        }
        batches.push(batch);
    }
    Ok(batches)
}
