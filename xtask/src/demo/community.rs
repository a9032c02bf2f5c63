//! The community of the story: its members, and the events that a chat gateway publishes.

use anyhow::Result;
use muster_messaging::client::EventPublisher;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;
use xtask::worker;

/// The chat server that the community belongs to.
pub(crate) const GUILD: &str = "881207955029110855";
pub(crate) const NAME: &str = "Sietch Tabr";

const NAMES: [&str; 8] = ["Alia", "Chani", "Duncan", "Gurney", "Irulan", "Jessica", "Leto", "Stilgar"];
/// The highest scores, some of them equal.
const LEADERS: [i64; 6] = [40_000, 30_000, 30_000, 30_000, 25_000, 25_000];

/// A member as the events make them.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) user_id: String,
    pub(crate) nym: String,
    pub(crate) conviction: i64,
    pub(crate) activity: i64,
}

/// The same members every time. One has a name that a search could take for a pattern.
pub(crate) fn members(number: u32) -> Vec<Member> {
    let scores = LEADERS.into_iter().chain((6..).map(|n| n * 7919 % 3000 - 100));
    let members = (0..i64::from(number)).zip(scores).zip(NAMES.into_iter().cycle());
    members
        .map(|((n, conviction), name)| Member {
            user_id: (200_000_000_000_000_000 + n).to_string(),
            nym: if n == 0 { "100% Fremen".to_owned() } else { format!("{name} {n}") },
            conviction,
            activity: n % 50,
        })
        .collect()
}

/// The events that make the community and its members.
pub(crate) fn founding(members: &[Member]) -> Vec<Value> {
    let mut events = vec![event("guild.join", None, json!({"name": NAME}))];
    for Member { user_id, nym, conviction, activity } in members {
        events.push(event("member.join", Some(user_id), json!({"username": nym})));
        let scores = json!({"conviction": conviction, "activity": activity});
        events.push(event("score.set", Some(user_id), scores));
    }
    events
}

/// An event that happens now.
pub(crate) fn event(event_type: &str, user: Option<&str>, data: Value) -> Value {
    let timestamp = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    json!({
        "event_id": Uuid::new_v4(), "event_type": event_type, "shard_id": 0, "timestamp": timestamp,
        "guild_id": GUILD, "channel_id": null, "user_id": user, "data": data,
    })
}

/// The subject that an event is published on.
pub(crate) fn subject(event: &Value) -> String {
    format!("events.{}", event["event_type"].as_str().unwrap_or_default())
}

/// Publishes events, and waits until the broker has stored all of them.
pub(crate) async fn publish(publisher: &EventPublisher, events: Vec<Value>) -> Result<()> {
    worker::publish(publisher, events.into_iter().map(|event| (subject(&event), event.to_string()))).await
}
