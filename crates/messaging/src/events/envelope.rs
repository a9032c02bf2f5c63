//! Decodes events from the stream's JSON, and encodes them. Unknown fields are ignored.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use muster_domain::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, Effect, Event, EventId, EventTime, EventType,
    GuildEffect, GuildId, MemberEffect, Nym, Reason, TimeBounds, UserId,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::subjects::{PREFIX, subject};
use crate::integer::read_integer;

/// The largest event in bytes, unless it is configured: 256 KiB.
pub const DEFAULT_MAX_BYTES: usize = 256 * 1024;
/// The limits of the largest event in bytes, if it is configured: 1 KiB and 4 MiB.
pub const MAX_BYTES: RangeInclusive<usize> = 1024..=4 * 1024 * 1024;
/// The most characters of an event's type.
const MAX_TYPE: usize = 64;

/// An event's type for those who publish it: `muster-worker describe` prints it, and the documentation has it from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventHelp {
    /// The fields of `data` that are read.
    pub data: &'static [&'static str],
    /// What the event changes, as Markdown.
    pub effect: &'static str,
}

/// What events of a type carry and change.
#[must_use]
pub const fn help(event_type: EventType) -> EventHelp {
    let (data, effect): (&[&str], _) = match event_type {
        EventType::GuildJoin => (&["name"], "the community exists and is active; a blank `name` is none"),
        EventType::GuildUpdate => (&["name"], "the community is renamed; a blank `name` is none"),
        EventType::GuildLeave => (
            &["unavailable"],
            "`unavailable` true: an outage, nothing changes; otherwise the community is inactive",
        ),
        EventType::MemberJoin => (
            &["username"],
            "the profile exists and is present; a return keeps its history; a blank `username` is none",
        ),
        EventType::MemberUpdate => (
            &["nick"],
            "the nym follows `nick`, else the user name, else the first 32 characters of the person's id; a blank or \
             absent `nick` is none",
        ),
        EventType::MemberLeave => (&[], "the profile is no longer visible; nothing is deleted"),
        EventType::ScoreSet => (&["conviction", "activity"], "the scores are replaced; an absent one stays"),
        EventType::ActivityAdd => (&["amount"], "`amount`, which is 0 or more, is added to the activity"),
        EventType::BadgeAward | EventType::BadgeRevoke => (&["kind", "reason", "by"], "as the endpoint does"),
    };
    EventHelp { data, effect }
}

/// A decoded event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// It changes something.
    Event(Event),
    /// It changes nothing: the chat server is unavailable for the moment, not gone.
    Outage,
    /// Its type is unknown.
    Unknown {
        /// The type.
        event_type: String,
    },
}

/// The bounds of an event, by the configuration and the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBounds {
    /// The most bytes of its payload.
    pub max_bytes: usize,
    /// The times at which it can have happened.
    pub times: TimeBounds,
}

/// Decodes an event.
///
/// # Errors
/// [`DecodeError`] names the field and the bound that it violates.
pub fn decode(subject: &str, payload: &[u8], bounds: EventBounds) -> Result<Decoded, DecodeError> {
    if payload.len() > bounds.max_bytes {
        return Err(DecodeError::TooLarge { bytes: payload.len(), max: bounds.max_bytes });
    }
    // An array would do as well for what is derived: its items would be taken for the fields in their order.
    if !payload.trim_ascii_start().starts_with(b"{") {
        return Err(DecodeError::Malformed { line: 1, column: 1 });
    }
    let envelope: Envelope<'_> = serde_json::from_slice(payload)
        .map_err(|cause| DecodeError::Malformed { line: cause.line(), column: cause.column() })?;
    let event_type = required("event_type", envelope.event_type, kind_of_event)?;
    if subject.strip_prefix(PREFIX) != Some(event_type.as_str()) {
        return Err(field("event_type", "must be what the subject says"));
    }
    let Some(known) = EventType::of(&event_type) else { return Ok(Decoded::Unknown { event_type }) };
    let id = required("event_id", envelope.event_id, |text| {
        EventId::from_str(&text).map_err(|_| "must be a UUID")
    })?;
    let at = integer("timestamp", envelope.timestamp)?.ok_or_else(|| field("timestamp", "is missing"))?;
    let at = EventTime::parse(at, bounds.times).map_err(|cause| field("timestamp", cause))?;
    let guild = required("guild_id", envelope.guild_id, GuildId::parse)?;
    let data: Data<'_> = match envelope.data {
        None => Data::default(),
        Some(data) if !data.get().starts_with('{') => return Err(field("data", "must be an object or null")),
        // The values are not parsed yet, so nothing else can be wrong with an object.
        Some(data) => {
            serde_json::from_str(data.get()).map_err(|_| field("data", "must have each field once"))?
        }
    };
    let member =
        |effect| Ok(Effect::Member { user: required("user_id", envelope.user_id, UserId::parse)?, effect });
    let effect = match known {
        EventType::GuildJoin => Effect::Guild(GuildEffect::Join { name: name(&data)? }),
        EventType::GuildUpdate => Effect::Guild(GuildEffect::Update { name: name(&data)? }),
        EventType::GuildLeave => match data.unavailable.map(RawValue::get) {
            None | Some("false") => Effect::Guild(GuildEffect::Leave),
            Some("true") => return Ok(Decoded::Outage),
            Some(_) => return Err(field("data.unavailable", "must be true, false or absent")),
        },
        EventType::MemberJoin => {
            let username = required("data.username", data.username, Nym::parse_optional)?;
            member(MemberEffect::Join { username })?
        }
        EventType::MemberUpdate => {
            let nick = optional("data.nick", data.nick, Nym::parse_optional)?;
            member(MemberEffect::Update { nick })?
        }
        EventType::MemberLeave => member(MemberEffect::Leave)?,
        EventType::ScoreSet => {
            let conviction = integer("data.conviction", data.conviction)?.map(Conviction::clamp);
            let activity = integer("data.activity", data.activity)?
                .map(|amount| activity("data.activity", amount))
                .transpose()?;
            member(MemberEffect::ScoreSet { conviction, activity })?
        }
        EventType::ActivityAdd => {
            let amount =
                integer("data.amount", data.amount)?.ok_or_else(|| field("data.amount", "is missing"))?;
            member(MemberEffect::ActivityAdd { amount: activity("data.amount", amount)? })?
        }
        EventType::BadgeAward => {
            let (kind, reason, by) = badge(&data)?;
            member(MemberEffect::BadgeAward { kind, reason, by })?
        }
        EventType::BadgeRevoke => {
            let (kind, reason, by) = badge(&data)?;
            member(MemberEffect::BadgeRevoke { kind, reason, by })?
        }
    };
    Ok(Decoded::Event(Event { id, at, guild, effect, traceparent: None }))
}

/// The community that an event names; the rest is not decoded.
pub(super) fn guild_of(payload: &[u8], max_bytes: usize) -> Option<GuildId> {
    #[derive(Deserialize)]
    struct Owned<'a> {
        #[serde(borrow)]
        guild_id: Option<&'a RawValue>,
    }
    if payload.len() > max_bytes {
        return None;
    }
    let owned: Owned<'_> = serde_json::from_slice(payload).ok()?;
    required("guild_id", owned.guild_id, GuildId::parse).ok()
}

/// The fields that are read. Each is left as text at first, so that an error names its field, and depth costs nothing.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    event_id: Option<&'a RawValue>,
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    guild_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user_id: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    unavailable: Option<&'a RawValue>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    nick: Option<&'a RawValue>,
    #[serde(borrow)]
    conviction: Option<&'a RawValue>,
    #[serde(borrow)]
    activity: Option<&'a RawValue>,
    #[serde(borrow)]
    amount: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    reason: Option<&'a RawValue>,
    #[serde(borrow)]
    by: Option<&'a RawValue>,
}

fn name(data: &Data<'_>) -> Result<Option<CommunityName>, DecodeError> {
    required("data.name", data.name, CommunityName::parse_optional)
}

fn badge(data: &Data<'_>) -> Result<(BadgeKind, Option<Reason>, Option<Awarder>), DecodeError> {
    Ok((
        required("data.kind", data.kind, BadgeKind::parse)?,
        optional("data.reason", data.reason, Reason::parse_optional)?,
        optional("data.by", data.by, Awarder::parse_optional)?,
    ))
}

/// Any text that a subject can hold: the type of an event that is not known is its sender's affair.
fn kind_of_event(text: String) -> Result<String, String> {
    if (1..=MAX_TYPE).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        Ok(text)
    } else {
        Err(format!("must have 1 to {MAX_TYPE} bytes, and neither white space nor control characters"))
    }
}

fn activity(name: &'static str, amount: i128) -> Result<Activity, DecodeError> {
    if amount < 0 { Err(field(name, "must not be negative")) } else { Ok(Activity::clamp(amount)) }
}

fn text(name: &'static str, raw: Option<&RawValue>) -> Result<Option<String>, DecodeError> {
    raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| field(name, "must be a text"))).transpose()
}

fn required<T, E: fmt::Display>(
    name: &'static str,
    raw: Option<&RawValue>,
    parse: impl FnOnce(String) -> Result<T, E>,
) -> Result<T, DecodeError> {
    let text = text(name, raw)?.ok_or_else(|| field(name, "is missing"))?;
    parse(text).map_err(|cause| field(name, cause))
}

/// A text that may be absent, null, or one that `parse` takes as none.
fn optional<T, E: fmt::Display>(
    name: &'static str,
    raw: Option<&RawValue>,
    parse: impl FnOnce(String) -> Result<Option<T>, E>,
) -> Result<Option<T>, DecodeError> {
    text(name, raw)?.map_or(Ok(None), |text| parse(text).map_err(|cause| field(name, cause)))
}

fn integer(name: &'static str, raw: Option<&RawValue>) -> Result<Option<i128>, DecodeError> {
    raw.map(|raw| {
        read_integer(raw.get()).ok_or_else(|| field(name, "must be an integer without fraction or exponent"))
    })
    .transpose()
}

fn field(name: &'static str, problem: impl fmt::Display) -> DecodeError {
    DecodeError::Field { name, problem: problem.to_string() }
}

/// Why an event can never be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Larger than [`EventBounds::max_bytes`].
    #[error("the event has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not JSON, not an object, or a field twice.
    #[error("the event is not one JSON object with each field once (line {line}, column {column})")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// A field is missing or violates a bound.
    #[error("{name} {problem}")]
    Field {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Encodes an event as the gateway does: its subject and its payload.
#[must_use]
pub fn encode(event: &Event) -> (String, Vec<u8>) {
    let event_type = event.effect.event_type();
    let (user_id, data) = match &event.effect {
        Effect::Guild(GuildEffect::Join { name } | GuildEffect::Update { name }) => {
            (None, json!({"name": name.as_ref().map_or("", CommunityName::as_str)}))
        }
        Effect::Guild(GuildEffect::Leave) => (None, json!({"unavailable": false})),
        Effect::Member { user, effect } => (Some(user.as_str()), member_data(effect)),
    };
    let envelope = json!({
        "event_id": event.id,
        "event_type": event_type.as_str(),
        "shard_id": 0,
        "timestamp": event.at.millis(),
        "guild_id": event.guild.as_str(),
        "channel_id": null,
        "user_id": user_id,
        "data": data,
    });
    (subject(event_type), envelope.to_string().into_bytes())
}

fn member_data(effect: &MemberEffect) -> Value {
    let mut data = match effect {
        MemberEffect::Join { username } => {
            json!({"username": username.as_ref().map_or("", Nym::as_str), "discriminator": "0"})
        }
        MemberEffect::Update { nick } => {
            json!({"nick": nick.as_ref().map(Nym::as_str)})
        }
        MemberEffect::Leave => Value::Null,
        MemberEffect::ScoreSet { conviction, activity } => {
            json!({"conviction": conviction.map(Conviction::get), "activity": activity.map(Activity::get)})
        }
        MemberEffect::ActivityAdd { amount } => json!({"amount": amount.get()}),
        MemberEffect::BadgeAward { kind, reason, by } | MemberEffect::BadgeRevoke { kind, reason, by } => {
            let (reason, by) = (reason.as_ref().map(Reason::as_str), by.as_ref().map(Awarder::as_str));
            json!({"kind": kind.as_str(), "reason": reason, "by": by})
        }
    };
    if let Some(fields) = data.as_object_mut() {
        // The gateway leaves out what is absent.
        fields.retain(|_, value| !value.is_null());
    }
    data
}

#[cfg(test)]
mod tests {
    use muster_domain::MaxClockSkew;
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn bounds() -> EventBounds {
        let times = TimeBounds::at(datetime!(2026-11-25 12:00 UTC), MaxClockSkew::default());
        EventBounds { max_bytes: DEFAULT_MAX_BYTES, times }
    }

    fn decode(subject: &str, payload: &[u8]) -> Result<Decoded, DecodeError> {
        super::decode(subject, payload, bounds())
    }

    fn event(event_type: &str, data: &str) -> String {
        format!(
            r#"{{"event_id":"00000000-0000-0000-0000-000000000001","event_type":"{event_type}","shard_id":0,
                "timestamp":1700000000000,"guild_id":"42","channel_id":null,"user_id":"7","more":{{"a":[1]}},
                "data":{data}}}"#
        )
    }

    fn effect(event_type: &str, data: &str) -> Result<Decoded, DecodeError> {
        decode(&format!("events.{event_type}"), event(event_type, data).as_bytes())
    }

    fn member(event_type: &str, data: &str) -> MemberEffect {
        match effect(event_type, data).unwrap() {
            Decoded::Event(Event { effect: Effect::Member { user, effect }, guild, at, .. }) => {
                assert_eq!((user.as_str(), guild.as_str(), at.millis()), ("7", "42", 1_700_000_000_000));
                effect
            }
            other => panic!("{other:?}"),
        }
    }

    fn nym(text: &str) -> Nym {
        Nym::parse(text).unwrap()
    }

    #[test]
    fn the_fields_that_help_names_are_those_that_are_read() {
        let valid = serde_json::json!({
            "name": "a", "unavailable": false, "username": "a", "nick": "a", "conviction": 1, "activity": 1,
            "amount": 1, "kind": "k", "reason": "r", "by": "b",
        });
        for event_type in EventType::ALL {
            for field in valid.as_object().unwrap().keys() {
                let mut data = valid.clone();
                data[field] = serde_json::json!({});
                let error =
                    effect(event_type.as_str(), &data.to_string()).err().map(|error| error.to_string());
                let is_read = error.is_some_and(|error| error.starts_with(&format!("data.{field} ")));
                assert_eq!(
                    is_read,
                    help(event_type).data.contains(&field.as_str()),
                    "{event_type:?}: {field}"
                );
            }
        }
    }

    #[test]
    fn each_member_event_decodes_to_its_effect() {
        assert_eq!(
            member("member.join", r#"{"username":"Chani","discriminator":"0","avatar":null}"#),
            MemberEffect::Join { username: Some(nym("Chani")) }
        );
        assert_eq!(
            member("member.update", r#"{"roles":["1","2"],"nick":" Sihaya "}"#),
            MemberEffect::Update { nick: Some(nym("Sihaya")) }
        );
        for none in
            ["null", "{}", r#"{"nick":null,"roles":null}"#, r#"{"nick":"  "}"#, r#"{"nick":"\u200b\u3164"}"#]
        {
            assert_eq!(member("member.update", none), MemberEffect::Update { nick: None });
        }
        assert_eq!(member("member.leave", "null"), MemberEffect::Leave);
        assert_eq!(
            member(
                "score.set",
                r#"{"conviction":-99999999999999999999999999999999999999999999,"activity":3}"#
            ),
            MemberEffect::ScoreSet {
                conviction: Some(Conviction::MIN),
                activity: Some(Activity::clamp(3_i64))
            }
        );
        assert_eq!(member("score.set", "null"), MemberEffect::ScoreSet { conviction: None, activity: None });
        assert_eq!(
            member("activity.add", r#"{"amount":0}"#),
            MemberEffect::ActivityAdd { amount: Activity::clamp(0_i64) }
        );
        assert_eq!(
            member("badge.award", r#"{"kind":"first_blood","reason":"","by":null}"#),
            MemberEffect::BadgeAward {
                kind: BadgeKind::parse("first_blood").unwrap(),
                reason: None,
                by: None
            }
        );
    }

    #[test]
    fn roles_of_any_shape_are_not_read() {
        let (many, deep) =
            (vec!["\"1\""; 1000].join(","), format!("{}{}", "[".repeat(9000), "]".repeat(9000)));
        for roles in [r#""1""#, "7", "{}", r#"["a b",null]"#, &format!("[{many}]"), &deep] {
            let read = member("member.update", &format!(r#"{{"roles":{roles},"nick":"Sihaya"}}"#));
            assert_eq!(read, MemberEffect::Update { nick: Some(nym("Sihaya")) });
        }
    }

    #[test]
    fn each_guild_event_decodes_to_its_effect() {
        let guild = |event_type: &str, data: &str| match effect(event_type, data).unwrap() {
            Decoded::Event(Event { effect: Effect::Guild(effect), .. }) => Some(effect),
            Decoded::Outage => None,
            other => panic!("{other:?}"),
        };
        let name = CommunityName::parse("Arrakis").ok();
        assert_eq!(
            guild("guild.join", r#"{"name":"Arrakis","member_count":5}"#),
            Some(GuildEffect::Join { name: name.clone() })
        );
        assert_eq!(guild("guild.update", r#"{"name":"Arrakis"}"#), Some(GuildEffect::Update { name }));
        for gone in ["null", "{}", r#"{"unavailable":false}"#, r#"{"unavailable":null}"#] {
            assert_eq!(guild("guild.leave", gone), Some(GuildEffect::Leave));
        }
        assert_eq!(guild("guild.leave", r#"{"unavailable":true}"#), None);
    }

    #[test]
    fn an_unknown_type_is_not_an_error_but_a_wrong_subject_is() {
        let unknown = decode("events.message.create", br#"{"event_type":"message.create"}"#);
        assert_eq!(unknown, Ok(Decoded::Unknown { event_type: "message.create".to_owned() }));
        let unknown = decode("events.MESSAGE_CREATE", br#"{"event_type":"MESSAGE_CREATE"}"#);
        assert_eq!(unknown, Ok(Decoded::Unknown { event_type: "MESSAGE_CREATE".to_owned() }));
        assert!(decode("events.message.create", br#"{"event_type":"member.join"}"#).is_err());
    }

    #[test]
    fn a_decode_error_names_the_field() {
        for (event_type, data, name, says) in [
            ("guild.join", "null", "data.name", "missing"),
            ("guild.join", r#"{"name":null}"#, "data.name", "missing"),
            ("guild.leave", r#"{"unavailable":"yes"}"#, "data.unavailable", "true"),
            ("member.join", r#"{"username":null}"#, "data.username", "missing"),
            ("member.join", r#"{"username":5}"#, "data.username", "text"),
            ("member.join", r#"{"username":"\ud800"}"#, "data.username", "text"),
            ("score.set", r#"{"conviction":1.5}"#, "data.conviction", "integer"),
            ("score.set", r#"{"conviction":"1"}"#, "data.conviction", "integer"),
            ("score.set", r#"{"activity":-1}"#, "data.activity", "negative"),
            ("activity.add", "null", "data.amount", "missing"),
            ("activity.add", r#"{"amount":-1}"#, "data.amount", "negative"),
            ("badge.award", r#"{"reason":"x"}"#, "data.kind", "missing"),
            ("badge.revoke", r#"{"kind":""}"#, "data.kind", "1 to 64"),
            ("badge.award", r#"{"kind":" \u200b"}"#, "data.kind", "1 to 64"),
            ("member.join", "[]", "data", "object"),
            ("member.leave", "[null,null,null,null,null,null,null,null,null,null]", "data", "object"),
            ("member.join", "7", "data", "object or null"),
            ("member.join", r#"{"username":"a","username":"b"}"#, "data", "each field once"),
        ] {
            match effect(event_type, data) {
                Err(DecodeError::Field { name: refused, problem }) => {
                    assert_eq!(refused, name, "{event_type} {data}");
                    assert!(problem.contains(says), "{event_type} {data}: {problem}");
                }
                other => panic!("{event_type} {data}: {other:?}"),
            }
        }
        for (from, to, name) in [
            ("1700000000000", "-1", "timestamp"),
            ("1700000000000", "1700000000", "timestamp"),
            ("1700000000000", "1795608600001", "timestamp"),
            ("1700000000000", "1e12", "timestamp"),
            ("1700000000000", "253402300800000", "timestamp"),
            ("1700000000000", "99999999999999999999999", "timestamp"),
            (r#""42""#, "null", "guild_id"),
            (r#""7""#, "null", "user_id"),
            ("00000000-0000", "0-0", "event_id"),
            (r#""member.leave""#, r#""member leave""#, "event_type"),
            (r#""member.leave""#, r#""Member.Leave""#, "event_type"),
            (r#""member.leave""#, "null", "event_type"),
        ] {
            let text = event("member.leave", "null").replace(from, to);
            let refused = decode("events.member.leave", text.as_bytes()).unwrap_err();
            assert!(refused.to_string().starts_with(name), "{to}: {refused}");
        }
    }

    #[test]
    fn an_event_larger_than_configured_is_refused() {
        let text = event("member.leave", "null");
        let decode = |max_bytes| {
            super::decode("events.member.leave", text.as_bytes(), EventBounds { max_bytes, ..bounds() })
        };
        assert!(decode(text.len()).is_ok());
        let refused = decode(text.len() - 1).unwrap_err().to_string();
        let (bytes, max) = (text.len(), text.len() - 1);
        assert_eq!(refused, format!("the event has {bytes} bytes, at most {max} are allowed"));
    }

    #[test]
    fn large_and_malformed_events_are_refused_and_depth_is_unlimited() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(
            member("member.join", &format!(r#"{{"username":"a","x":{}}}"#, deep(60_000)))
                != MemberEffect::Leave
        );
        assert!(effect("member.join", &deep(60_000)).is_err());
        let huge =
            event("member.join", &format!(r#"{{"username":"a","x":"{}"}}"#, "x".repeat(DEFAULT_MAX_BYTES)));
        assert!(matches!(decode("events.member.join", huge.as_bytes()), Err(DecodeError::TooLarge { .. })));
        assert!(matches!(decode("events.member.join", b"{"), Err(DecodeError::Malformed { .. })));
        assert!(matches!(decode("events.member.join", b"\xff"), Err(DecodeError::Malformed { .. })));
        let fields = r#"["018f0000-0000-7000-8000-000000000000","member.leave",1700000000000,"42","7",null]"#;
        assert!(matches!(
            decode("events.member.leave", fields.as_bytes()),
            Err(DecodeError::Malformed { .. })
        ));
    }

    fn text(max: usize) -> impl Strategy<Value = String> {
        proptest::string::string_regex(&format!("[a-zA-Z\u{e9}\u{4e2d}\"\\\\]{{1,{max}}}")).unwrap()
    }

    fn member_effects() -> impl Strategy<Value = MemberEffect> {
        let badge = || {
            (text(64), proptest::option::of(text(500)), proptest::option::of(text(64))).prop_map(
                |(kind, reason, by)| {
                    let reason = reason.map(|reason| Reason::parse(reason).unwrap());
                    (BadgeKind::parse(kind).unwrap(), reason, by.map(|by| Awarder::parse(by).unwrap()))
                },
            )
        };
        let nick = proptest::option::of(text(32).prop_map(|text| nym(&text)));
        prop_oneof![
            proptest::option::of(text(32))
                .prop_map(|text| MemberEffect::Join { username: text.as_deref().map(nym) }),
            nick.prop_map(|nick| MemberEffect::Update { nick }),
            Just(MemberEffect::Leave),
            any::<(Option<i64>, Option<i64>)>().prop_map(|(conviction, activity)| MemberEffect::ScoreSet {
                conviction: conviction.map(Conviction::clamp),
                activity: activity.map(Activity::clamp),
            }),
            any::<i64>().prop_map(|amount| MemberEffect::ActivityAdd { amount: Activity::clamp(amount) }),
            badge().prop_map(|(kind, reason, by)| MemberEffect::BadgeAward { kind, reason, by }),
            badge().prop_map(|(kind, reason, by)| MemberEffect::BadgeRevoke { kind, reason, by }),
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_event_decodes_to_itself(id: u128, millis in TimeBounds::EARLIEST..1_795_608_600_000, effect in member_effects()) {
            let event = Event {
                id: EventId::new(Uuid::from_u128(id)),
                at: EventTime::parse(millis, bounds().times).unwrap(),
                guild: GuildId::parse("42").unwrap(),
                effect: Effect::Member { user: UserId::parse("7").unwrap(), effect },
                traceparent: None,
            };
            let (subject, payload) = encode(&event);
            prop_assert_eq!(decode(&subject, &payload), Ok(Decoded::Event(event)));
        }

        #[test]
        fn decoding_any_bytes_does_not_panic(payload: Vec<u8>, subject: String) {
            let _ = decode(&subject, &payload);
        }

        #[test]
        fn decoding_any_data_does_not_panic(
            data in "(null|\\{(\"(nick|roles|username|amount|conviction)\":(null|-?[0-9]{1,60}|\"x\"|\\[\\]|\\{\\}))?\\})",
            at in 0..4_usize,
        ) {
            let _ = effect(["member.join", "member.update", "score.set", "activity.add"][at], &data);
        }
    }
}
