//! The names of the streams and their subjects.

use muster_domain::EventType;

/// The stream that the gateway publishes to.
pub const EVENTS: &str = "EVENTS";
/// Its subjects.
pub const EVENTS_SUBJECTS: &str = "events.>";
/// The stream of dead letters.
pub const DEAD_LETTERS: &str = "DEAD_LETTERS";
/// Its subject.
pub const DEAD_SUBJECT: &str = "dead.events";
/// What the subject of every event begins with.
pub(super) const PREFIX: &str = "events.";

/// The subject of events of this type.
#[must_use]
pub fn subject(event_type: EventType) -> String {
    format!("{PREFIX}{}", event_type.as_str())
}

/// The type that a subject names, if it is a known one.
pub(super) fn event_type(subject: &str) -> Option<EventType> {
    EventType::of(subject.strip_prefix(PREFIX)?)
}
