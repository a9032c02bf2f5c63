//! Events by a seed (`seed.toml`), the same each time: those that make a community, and the mix that is measured on it.

use anyhow::Result;
use fastrand::Rng;
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

pub(super) const GUILD: i64 = 810_000_000_000_000_000;
/// How far back the history of a community goes, in milliseconds.
const HISTORY: i64 = 27 * 24 * 60 * 60 * 1000;

/// How the mix draws members: by a uniform number, which is the worst for every cache; or by its cube, so that a fifth of the
/// members get three fifths of the events, as in a real community.
pub(super) const UNIFORM: u32 = 1;
pub(super) const SKEWED: u32 = 3;

/// One event, ready to be published.
pub(super) struct Event {
    pub(super) id: Uuid,
    /// The number of the member, from 1.
    pub(super) member: i64,
    /// A score for the ideal to set, whether the event carries one or not.
    pub(super) score: i64,
    pub(super) subject: String,
    pub(super) payload: String,
}

#[derive(Deserialize)]
struct Templates {
    nicks: Vec<String>,
    syllables: Vec<String>,
    community: Vec<Template>,
    mix: Vec<Template>,
}

#[derive(Deserialize)]
struct Template {
    event_type: String,
    share: i64,
    data: String,
}

fn event(random: &mut Rng, templates: &Templates, template: &Template, of: (i64, i64), at: i64) -> Event {
    let (guild, member) = of;
    let id = Uuid::from_u128(random.u128(..));
    // Most scores are small, a few very large.
    let score = 40_000_000 / random.i64(1..=1_000_000) - 40;
    let mut pick = |choices: &[String]| random.choice(choices).cloned().unwrap_or_default();
    let values = [
        ("$nick", pick(&templates.nicks)),
        ("$first", pick(&templates.syllables)),
        ("$second", pick(&templates.syllables)),
        ("$number", random.u16(..1000).to_string()),
        ("$score", score.to_string()),
        ("$amount", random.u16(1..=20).to_string()),
        ("$kind", random.u16(..64).to_string()),
    ];
    let filled_in = |text: String, (name, value): (&str, String)| text.replace(name, &value);
    let data = values.into_iter().fold(template.data.clone(), filled_in);
    let (event_type, user) = (&template.event_type, 100_000_000_000_000_000 + member * 7919);
    let payload = format!(
        r#"{{"event_id":"{id}","event_type":"{event_type}","shard_id":0,"timestamp":{at},"guild_id":"{}","#,
        GUILD + guild
    ) + &format!(r#""channel_id":null,"user_id":"{user}","data":{data}}}"#);
    Event { id, member, score, subject: format!("events.{event_type}"), payload }
}

fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The events that make a community of so many members: about four a member.
pub(super) fn community(members: i64) -> Result<impl Iterator<Item = Event>> {
    let templates: Templates = toml::from_str(include_str!("seed.toml"))?;
    let (mut random, start) = (Rng::with_seed(1), now() - HISTORY);
    Ok((1..=members).flat_map(move |member| {
        let joined = start + random.i64(0..HISTORY - 60_000);
        let mut events = Vec::new();
        for (second, template) in (0..).zip(&templates.community) {
            if random.i64(0..100) < template.share {
                events.push(event(&mut random, &templates, template, (0, member), joined + 1000 * second));
            }
        }
        events
    }))
}

/// The measured mix in so many communities, without end, from a minute ago on: ten events a millisecond.
pub(super) fn mix(seed: u16, draw: (u32, i64), members: i64) -> Result<impl Iterator<Item = Event>> {
    let (power, guilds) = draw;
    let templates: Templates = toml::from_str(include_str!("seed.toml"))?;
    let (mut random, since) = (Rng::with_seed(seed.into()), now() - 60_000);
    Ok((0..).filter_map(move |number: i64| {
        let share = i128::from(random.u32(..1 << 24)).pow(power);
        let mut member = 1 + i64::try_from((i128::from(members) * share) >> (24 * power)).unwrap_or(0);
        let mut drawn = random.i64(0..100);
        let template = templates.mix.iter().find(|template| {
            drawn -= template.share;
            drawn < 0
        })?;
        // Every second who joins is new; the others come back.
        if template.event_type == "member.join" && number % 2 == 0 {
            member = members + 10_000_000 * i64::from(seed) + number;
        }
        Some(event(&mut random, &templates, template, (member % guilds, member), since + number / 10))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_the_same_events_which_are_json_with_every_value_filled_in() {
        let draw = || mix(7, (SKEWED, 1), 1000).unwrap().take(20_000);
        let events: Vec<Event> = draw().collect();
        assert!(events.iter().zip(draw()).all(|(event, again)| event.id == again.id));
        let first_fifth = events.iter().filter(|event| event.member <= 200).count();
        assert!((11_000..13_000).contains(&first_fifth), "{first_fifth}");
        for event in events.into_iter().chain(community(100).unwrap()) {
            let payload: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
            assert!(payload["data"] != "" && !event.payload.contains('$'), "{payload}");
        }
    }
}
