//! Whether a stream or a consumer that is there already loses events: what each of its settings means, and which command
//! mends it.
//!
//! The rule, in one place: an event is *lost* when the stream took it and drops it before it was applied. A bound of the
//! stream's size may refuse what comes (`discard=new`), it may not drop what is there. A bound of the age drops whatever
//! nobody read in time, so it is at least [`LEAST_AGE`], which leaves operators a day after the alert for late events.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};
use muster_domain::EventType;

use super::envelope::DEFAULT_MAX_BYTES;
use super::stream::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS};

/// The least age that a stream may keep events for. One that keeps them for less is refused.
pub const LEAST_AGE: Duration = Duration::from_hours(24);
/// The age that a stream should keep events for, as the one that Muster makes does. Less is warned of.
pub const ADVISED_AGE: Duration = Duration::from_hours(7 * 24);
/// The least age that dead letters may be kept for: somebody has to decide on each.
pub const LEAST_DEAD_AGE: Duration = Duration::from_hours(30 * 24);
/// The least window in which the broker should know a repeated message.
const ADVISED_WINDOW: Duration = Duration::from_mins(2);
/// The fewest bytes and messages that a stream of events should have room for.
const ADVISED_BYTES: i64 = 64 << 20;
const ADVISED_MESSAGES: i64 = 100_000;

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The stream `EVENTS`.
    Events,
    /// The stream `DEAD_LETTERS`.
    DeadLetters,
    /// The durable consumer of the stream `EVENTS`.
    Consumer,
}

impl Place {
    /// One or two words for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::DeadLetters => "dead letters",
            Self::Consumer => "consumer",
        }
    }

    const fn stream(self) -> &'static str {
        match self {
            Self::Events | Self::Consumer => EVENTS,
            Self::DeadLetters => DEAD_LETTERS,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events | Self::DeadLetters => write!(f, "the stream {}", self.stream()),
            Self::Consumer => f.write_str("the consumer"),
        }
    }
}

/// How a setting is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// In order.
    Fine,
    /// It loses no event by itself, but should be otherwise.
    Unwise(Fault),
    /// It can lose events, or keeps them from being taken or read.
    Unfit(Fault),
}

/// What is wrong with a setting, and how it is mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What comes of it.
    pub why: String,
    /// The command, or what to do where no single command does it.
    pub remedy: String,
}

/// One setting, as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whose it is.
    pub place: Place,
    /// Its name in the server's configuration.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// How it is.
    pub verdict: Verdict,
}

impl Finding {
    /// Whether it can lose events, or keeps them from being taken or read.
    #[must_use]
    pub const fn is_unfit(&self) -> bool {
        matches!(self.verdict, Verdict::Unfit(_))
    }

    /// What is wrong, unless it is in order.
    #[must_use]
    pub const fn fault(&self) -> Option<&Fault> {
        match &self.verdict {
            Verdict::Fine => None,
            Verdict::Unwise(fault) | Verdict::Unfit(fault) => Some(fault),
        }
    }
}

/// `max_msgs_per_subject=1: why; mend it by command`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.setting, self.value)?;
        match self.fault() {
            Some(Fault { why, remedy }) => write!(f, ": {why}; mend it: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Collects the findings of one place.
struct Look {
    place: Place,
    findings: Vec<Finding>,
}

impl Look {
    fn add(&mut self, setting: &'static str, value: impl fmt::Display, verdict: Verdict) {
        self.findings.push(Finding { place: self.place, setting, value: value.to_string(), verdict });
    }

    /// A setting that need not be shown while it is in order.
    fn only_if_wrong(&mut self, setting: &'static str, value: impl fmt::Display, verdict: Verdict) {
        if verdict != Verdict::Fine {
            self.add(setting, value, verdict);
        }
    }

    /// The command that changes the stream by these options.
    fn edit(&self, options: &str) -> String {
        format!("nats stream edit {} {options}", self.place.stream())
    }

    /// What to do about a setting that the server does not let anybody change.
    fn make_anew(&self) -> String {
        let stream = self.place.stream();
        match self.place {
            Place::DeadLetters => format!(
                "it cannot be changed: replay or drop every dead letter, then `nats stream rm {stream}`, and the worker \
                 makes it anew"
            ),
            Place::Events | Place::Consumer => format!(
                "it cannot be changed: stop the gateway, let the worker apply what is there, stop it, then `nats stream rm \
                 {stream}`, and the worker makes it anew"
            ),
        }
    }
}

fn unfit(why: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict::Unfit(Fault { why: why.into(), remedy: remedy.into() })
}

fn unwise(why: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict::Unwise(Fault { why: why.into(), remedy: remedy.into() })
}

/// What the settings of the stream of events come to.
pub(crate) fn of_events(config: &Config) -> Vec<Finding> {
    let mut look = Look { place: Place::Events, findings: Vec::new() };
    takes_events(&mut look, config);
    sizes(&mut look, config);
    let age = match config.max_age {
        Duration::ZERO => Verdict::Fine,
        age if age < LEAST_AGE => unfit(
            format!("an event that is not applied within it is lost; {} is the least", days(LEAST_AGE)),
            look.edit(&format!("--max-age={}", days(ADVISED_AGE))),
        ),
        age if age < ADVISED_AGE => unwise(
            "an outage that lasts longer loses events",
            look.edit(&format!("--max-age={}", days(ADVISED_AGE))),
        ),
        _ => Verdict::Fine,
    };
    look.add("max_age", days(config.max_age), age);
    let retention = match config.retention {
        RetentionPolicy::Limits => Verdict::Fine,
        RetentionPolicy::Interest => unfit(
            "an event is dropped while no consumer is there, and nothing is left to read again after a restore",
            look.edit("--retention=limits"),
        ),
        RetentionPolicy::WorkQueue => unfit(
            "what was applied is dropped, and nothing is left to read again after a restore",
            look.make_anew(),
        ),
    };
    look.add("retention", word(&config.retention), retention);
    kept(&mut look, config);
    let size = match config.max_message_size {
        size if is_narrow(size) => {
            unwise("the stream refuses a larger event of the gateway", look.edit("--max-msg-size=-1"))
        }
        _ => Verdict::Fine,
    };
    look.only_if_wrong("max_msg_size", config.max_message_size, size);
    let window = if config.duplicate_window < ADVISED_WINDOW {
        unwise(
            "what the gateway publishes again is stored again, though it has no second effect",
            look.edit("--dupe-window=2m"),
        )
    } else {
        Verdict::Fine
    };
    look.add("duplicate_window", seconds(config.duplicate_window), window);
    if let Some(limits) =
        config.consumer_limits.as_ref().filter(|limits| !limits.inactive_threshold.is_zero())
    {
        let verdict = unwise(
            "the server deletes the worker's consumer while no worker reads for so long, and the whole stream is read again",
            look.make_anew(),
        );
        look.add("consumer_limits.inactive_threshold", seconds(limits.inactive_threshold), verdict);
    }
    look.findings
}

/// What the settings of the stream of dead letters come to.
pub(crate) fn of_dead_letters(config: &Config) -> Vec<Finding> {
    let mut look = Look { place: Place::DeadLetters, findings: Vec::new() };
    let takes = config.subjects.iter().any(|subject| covers(subject, DEAD_SUBJECT));
    let subjects = if takes {
        Verdict::Fine
    } else {
        unfit("no dead letter is kept", look.edit(&format!("--subjects={DEAD_SUBJECT}")))
    };
    look.add("subjects", config.subjects.join(","), subjects);
    sizes(&mut look, config);
    let age = match config.max_age {
        Duration::ZERO => Verdict::Fine,
        age if age < LEAST_DEAD_AGE => unfit(
            format!(
                "a dead letter that nobody decided on within it is lost; {} is the least",
                days(LEAST_DEAD_AGE)
            ),
            look.edit("--max-age=0"),
        ),
        _ => unwise("a dead letter that nobody decided on within it is lost", look.edit("--max-age=0")),
    };
    look.add("max_age", days(config.max_age), age);
    let retention = match config.retention {
        RetentionPolicy::Limits => Verdict::Fine,
        RetentionPolicy::Interest => {
            unfit("a dead letter is dropped while no consumer is there", look.edit("--retention=limits"))
        }
        RetentionPolicy::WorkQueue => {
            unfit("a dead letter is dropped when any consumer acknowledges it", look.make_anew())
        }
    };
    look.add("retention", word(&config.retention), retention);
    kept(&mut look, config);
    let delete = if config.deny_delete {
        unwise("a dead letter can be neither dropped nor replayed", look.make_anew())
    } else {
        Verdict::Fine
    };
    look.only_if_wrong("deny_delete", config.deny_delete, delete);
    let size = match config.max_message_size {
        size if is_narrow(size) => unwise(
            "a larger event cannot become a dead letter and is tried for ever",
            look.edit("--max-msg-size=-1"),
        ),
        _ => Verdict::Fine,
    };
    look.only_if_wrong("max_msg_size", config.max_message_size, size);
    look.findings
}

/// Whether every event of the gateway comes into the stream, and is found there.
fn takes_events(look: &mut Look, config: &Config) {
    let takes = |subject: &str| config.subjects.iter().any(|taken| covers(taken, subject));
    let missing: Vec<String> = EventType::ALL
        .into_iter()
        .map(|event_type| format!("events.{}", event_type.as_str()))
        .filter(|subject| !takes(subject))
        .collect();
    let is_alien = |subject: &String| !covers(EVENTS_SUBJECTS, subject);
    let remedy = look.edit(&format!("--subjects='{EVENTS_SUBJECTS}'"));
    let subjects = if !missing.is_empty() {
        unfit(format!("it does not take {}", missing.join(", ")), remedy)
    } else if config.subjects.iter().any(is_alien) {
        unwise(
            "it takes what is no event, too, whose room it uses and which is counted as an event when it is dropped",
            remedy,
        )
    } else if !takes(EVENTS_SUBJECTS) {
        unwise("it does not take a type of event that a later version knows", remedy)
    } else {
        Verdict::Fine
    };
    look.add("subjects", config.subjects.join(","), subjects);
    let transform = match &config.subject_transform {
        Some(transform) if transform.source.is_empty() || overlap(&transform.source, EVENTS_SUBJECTS) => {
            unfit(
                "events are stored on another subject, where the worker does not find them",
                look.edit("--no-transform"),
            )
        }
        _ => Verdict::Fine,
    };
    let shown = config.subject_transform.as_ref().map(|it| format!("{} to {}", it.source, it.destination));
    look.only_if_wrong("subject_transform", shown.unwrap_or_default(), transform);
    let sources = config.sources.as_ref().map_or(0, Vec::len);
    let sourced = if sources > 0 {
        unwise(
            "what the other streams drop before it is here is seen by nobody",
            "have the gateway publish to this stream, and take the sources away",
        )
    } else {
        Verdict::Fine
    };
    look.only_if_wrong("sources", sources, sourced);
    let counter = if config.allow_message_counter {
        unfit("it takes counters only, and refuses events", look.make_anew())
    } else {
        Verdict::Fine
    };
    look.only_if_wrong("allow_msg_counter", config.allow_message_counter, counter);
}

/// Bounds of the size.
fn sizes(look: &mut Look, config: &Config) {
    let drops = config.discard == DiscardPolicy::Old;
    let bounded = |bound: i64| bound > 0;
    let dropping = |look: &Look| {
        unfit(
            "full, it drops the oldest, read or not, in place of refusing the newest",
            look.edit("--discard=new"),
        )
    };
    let is_bounded = bounded(config.max_bytes) || bounded(config.max_messages);
    let discard = if drops && is_bounded { dropping(look) } else { Verdict::Fine };
    look.add("discard", word(&config.discard), discard);
    let of_events = look.place == Place::Events;
    for (setting, bound, least, option) in [
        ("max_bytes", config.max_bytes, ADVISED_BYTES, "--max-bytes=1GB"),
        ("max_msgs", config.max_messages, ADVISED_MESSAGES, "--max-msgs=-1"),
    ] {
        let verdict = if bounded(bound) && drops {
            dropping(look)
        } else if bounded(bound) && of_events && bound < least {
            unwise("it is full, and refuses the gateway, after few events", look.edit(option))
        } else {
            Verdict::Fine
        };
        look.add(setting, bound, verdict);
    }
    let refuses = config.discard == DiscardPolicy::New && config.discard_new_per_subject;
    let per_subject = if !bounded(config.max_messages_per_subject) {
        Verdict::Fine
    } else if refuses {
        unwise(
            "it refuses events of a type of which it holds so many",
            look.edit("--max-msgs-per-subject=-1"),
        )
    } else {
        unfit(
            "the oldest of a subject is dropped, read or not, when the next comes",
            look.edit("--max-msgs-per-subject=-1"),
        )
    };
    look.add("max_msgs_per_subject", config.max_messages_per_subject, per_subject);
}

/// Whether what was taken is really kept.
fn kept(look: &mut Look, config: &Config) {
    let storage = match config.storage {
        StorageType::File => Verdict::Fine,
        StorageType::Memory => unfit("what it holds is lost when the server stops", look.make_anew()),
    };
    look.add("storage", word(&config.storage), storage);
    let replicas = if config.num_replicas < 2 {
        unwise(
            "what it holds is lost with that server's disk; on a cluster of three it wants three",
            look.edit("--replicas=3"),
        )
    } else {
        Verdict::Fine
    };
    look.add("num_replicas", config.num_replicas, replicas);
    let flags = [
        (
            "no_ack",
            config.no_ack,
            "whoever publishes is not told whether it was taken, and takes what was refused for kept",
            look.edit("--ack"),
        ),
        ("sealed", config.sealed, "it takes nothing any more", look.make_anew()),
        (
            "mirror",
            config.mirror.is_some(),
            "it holds what another stream holds, and takes nothing that is published",
            look.make_anew(),
        ),
        (
            "allow_rollup_hdrs",
            config.allow_rollup,
            "a header of one message (Nats-Rollup) drops all before it, read or not",
            look.edit("--no-allow-rollup"),
        ),
        (
            "allow_msg_ttl",
            config.allow_message_ttl,
            "a header of a message (Nats-TTL) drops it after that time, read or not",
            look.make_anew(),
        ),
        (
            "subject_delete_marker_ttl",
            config.subject_delete_marker_ttl.is_some_and(|ttl| !ttl.is_zero()),
            "the server puts markers among the messages, which are none",
            look.edit("--subject-del-markers-ttl=0s"),
        ),
        (
            "persist_mode",
            config.persist_mode == Some(PersistenceMode::Async),
            "a message is acknowledged before it is stored, and lost when the server fails in between",
            look.make_anew(),
        ),
    ];
    for (setting, is_set, why, remedy) in flags {
        let value = match setting {
            "persist_mode" => "async",
            _ => "true",
        };
        look.only_if_wrong(setting, value, if is_set { unfit(why, remedy) } else { Verdict::Fine });
    }
}

/// What the settings of the durable consumer `name` come to, where it is there already. Those that only differ are set anew
/// when the worker starts; those that the server does not let anybody change keep it from starting.
pub(crate) fn of_consumer(name: &str, config: &consumer::Config) -> Vec<Finding> {
    let mut look = Look { place: Place::Consumer, findings: Vec::new() };
    // The whole stream is read again, to no second effect.
    let remove = format!(
        "nats consumer rm {EVENTS} {name}, and the worker makes it anew and reads the whole stream again"
    );
    let fixed = [
        (
            "deliver_policy",
            word(&config.deliver_policy),
            config.deliver_policy == DeliverPolicy::All,
            "events that were there before it are passed over",
        ),
        (
            "ack_policy",
            word(&config.ack_policy),
            config.ack_policy == AckPolicy::Explicit,
            "an event counts as applied when another one is, or when it is delivered",
        ),
        (
            "replay_policy",
            word(&config.replay_policy),
            config.replay_policy == ReplayPolicy::Instant,
            "events are delivered as slowly as they came in",
        ),
        (
            "deliver_subject",
            config.deliver_subject.clone().unwrap_or_else(|| "none".to_owned()),
            config.deliver_subject.is_none(),
            "events are pushed to a subject, and the worker asks for them",
        ),
    ];
    for (setting, value, right, why) in fixed {
        look.add(setting, value, if right { Verdict::Fine } else { unfit(why, remove.clone()) });
    }
    let whole = [EVENTS_SUBJECTS];
    let filters: Vec<&str> = config
        .filter_subjects
        .iter()
        .chain(Some(&config.filter_subject).filter(|filter| !filter.is_empty()))
        .map(String::as_str)
        .collect();
    let anew = "start the worker, which sets it anew";
    let changed = [
        (
            "filter_subject",
            filters.join(","),
            filters == whole || filters.is_empty(),
            "events of other subjects are passed over; those that were are lost unless the consumer is removed, too",
        ),
        (
            "max_deliver",
            config.max_deliver.to_string(),
            config.max_deliver <= 0,
            "an event is given up unapplied after so many deliveries",
        ),
        (
            "max_ack_pending",
            config.max_ack_pending.to_string(),
            config.max_ack_pending < 0 || config.max_ack_pending >= 10_000,
            "a few events that wait hold up all others",
        ),
        (
            "headers_only",
            config.headers_only.to_string(),
            !config.headers_only,
            "events come without their content",
        ),
        (
            "inactive_threshold",
            seconds(config.inactive_threshold),
            config.inactive_threshold.is_zero(),
            "it is deleted while no worker reads for so long, and the whole stream is read again",
        ),
    ];
    for (setting, value, right, why) in changed {
        look.add(setting, value, if right { Verdict::Fine } else { unwise(why, anew) });
    }
    let memory = if config.memory_storage {
        unwise(
            "how far it has read is lost when the server stops, and the whole stream is read again",
            remove,
        )
    } else {
        Verdict::Fine
    };
    look.only_if_wrong("mem_storage", config.memory_storage, memory);
    if let Some(until) = config.pause_until.filter(|until| *until > time::OffsetDateTime::now_utc()) {
        look.add(
            "pause_until",
            until,
            unwise("nothing is delivered until then", format!("nats consumer resume {EVENTS} {name}")),
        );
    }
    look.findings
}

/// Whether every subject of `inner` is one of `outer`; both may hold wildcards.
fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(token), Some(same)) if token == same => {}
            _ => return false,
        }
    }
}

/// Whether some subject is one of both; both may hold wildcards.
fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(token), Some(same)) if token == same => {}
            _ => return false,
        }
    }
}

/// Whether a bound of the size of a message keeps out an event that may come; 0 and below are none.
fn is_narrow(bound: i32) -> bool {
    usize::try_from(bound).is_ok_and(|bound| (1..DEFAULT_MAX_BYTES).contains(&bound))
}

/// A policy in the server's own words.
fn word(policy: &impl fmt::Debug) -> String {
    format!("{policy:?}").to_lowercase()
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// A duration as `nats` takes it: `7d`, `36h`, `90s`.
fn days(duration: Duration) -> String {
    match duration.as_secs() {
        0 if !duration.is_zero() => format!("{}ms", duration.as_millis()),
        0 => "0".to_owned(),
        seconds if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        seconds if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::stream::{Source, SubjectTransform};

    use super::*;
    use crate::events::stream::{StreamBounds, dead_letters_config, events_config};

    fn events() -> Config {
        events_config(&StreamBounds { replicas: 3, ..StreamBounds::default() })
    }

    fn dead() -> Config {
        dead_letters_config(&StreamBounds { replicas: 3, ..StreamBounds::default() })
    }

    /// What is unfit and what is unwise.
    fn wrong(findings: &[Finding]) -> (Vec<&'static str>, Vec<&'static str>) {
        let of = |verdict: fn(&Verdict) -> bool| {
            findings
                .iter()
                .filter(|finding| verdict(&finding.verdict))
                .map(|finding| finding.setting)
                .collect()
        };
        (
            of(|verdict| matches!(verdict, Verdict::Unfit(_))),
            of(|verdict| matches!(verdict, Verdict::Unwise(_))),
        )
    }

    type Change = fn(&mut Config);

    #[test]
    fn the_streams_that_are_made_here_are_in_order() {
        assert_eq!(wrong(&of_events(&events())), (vec![], vec![]));
        assert_eq!(wrong(&of_dead_letters(&dead())), (vec![], vec![]));
        let alone = events_config(&StreamBounds::default());
        assert_eq!(wrong(&of_events(&alone)), (vec![], vec!["num_replicas"]));
    }

    #[test]
    fn every_setting_that_can_lose_an_event_is_unfit_and_names_its_remedy() {
        let table: [(Change, &[&str], &str); 21] = [
            (
                |c| c.max_messages_per_subject = 1,
                &["max_msgs_per_subject"],
                "nats stream edit EVENTS --max-msgs-per-subject=-1",
            ),
            (
                |c| c.discard = DiscardPolicy::Old,
                &["discard", "max_bytes"],
                "nats stream edit EVENTS --discard=new",
            ),
            (
                |c| (c.discard, c.max_bytes, c.max_messages) = (DiscardPolicy::Old, -1, 20_000),
                &["discard", "max_msgs"],
                "nats stream edit EVENTS --discard=new",
            ),
            (|c| c.max_age = Duration::from_mins(1), &["max_age"], "nats stream edit EVENTS --max-age=7d"),
            (|c| c.max_age = LEAST_AGE - Duration::from_millis(1), &["max_age"], "--max-age=7d"),
            (|c| c.storage = StorageType::Memory, &["storage"], "nats stream rm EVENTS"),
            (
                |c| c.retention = RetentionPolicy::Interest,
                &["retention"],
                "nats stream edit EVENTS --retention=limits",
            ),
            (|c| c.retention = RetentionPolicy::WorkQueue, &["retention"], "nats stream rm EVENTS"),
            (|c| c.no_ack = true, &["no_ack"], "nats stream edit EVENTS --ack"),
            (|c| c.sealed = true, &["sealed"], "nats stream rm EVENTS"),
            (|c| c.mirror = Some(Source::default()), &["mirror"], "nats stream rm EVENTS"),
            (|c| c.subjects = vec![], &["subjects"], "nats stream edit EVENTS --subjects='events.>'"),
            (|c| c.subjects = vec!["events.member.>".to_owned()], &["subjects"], "--subjects='events.>'"),
            (|c| c.subjects = vec!["events.*".to_owned()], &["subjects"], "--subjects='events.>'"),
            (
                |c| {
                    c.subject_transform =
                        Some(SubjectTransform { source: "events.>".into(), destination: "old.>".into() })
                },
                &["subject_transform"],
                "nats stream edit EVENTS --no-transform",
            ),
            (
                |c| {
                    c.subject_transform =
                        Some(SubjectTransform { source: String::new(), destination: "old.>".into() })
                },
                &["subject_transform"],
                "--no-transform",
            ),
            (|c| c.allow_rollup = true, &["allow_rollup_hdrs"], "nats stream edit EVENTS --no-allow-rollup"),
            (|c| c.allow_message_ttl = true, &["allow_msg_ttl"], "nats stream rm EVENTS"),
            (
                |c| c.subject_delete_marker_ttl = Some(Duration::from_secs(60)),
                &["subject_delete_marker_ttl"],
                "--subject-del-markers-ttl=0s",
            ),
            (|c| c.persist_mode = Some(PersistenceMode::Async), &["persist_mode"], "nats stream rm EVENTS"),
            (|c| c.allow_message_counter = true, &["allow_msg_counter"], "nats stream rm EVENTS"),
        ];
        for (change, unfit, remedy) in table {
            let mut config = events();
            change(&mut config);
            let findings = of_events(&config);
            assert_eq!(wrong(&findings).0, unfit);
            for finding in findings.iter().filter(|finding| finding.is_unfit()) {
                assert!(finding.to_string().contains(remedy), "{finding}");
                assert!(finding.to_string().starts_with(finding.setting), "{finding}");
            }
        }
    }

    #[test]
    fn what_only_refuses_or_is_unwise_is_let_pass() {
        let table: [(Change, &[&str]); 14] = [
            (|c| c.max_bytes = 1 << 20, &["max_bytes"]),
            (|c| c.max_messages = 10, &["max_msgs"]),
            (
                |c| (c.max_messages_per_subject, c.discard_new_per_subject) = (9, true),
                &["max_msgs_per_subject"],
            ),
            (|c| c.max_age = LEAST_AGE, &["max_age"]),
            (|c| c.max_age = Duration::ZERO, &[]),
            (|c| (c.discard, c.max_bytes) = (DiscardPolicy::Old, -1), &[]),
            (|c| c.num_replicas = 1, &["num_replicas"]),
            (|c| c.duplicate_window = Duration::from_secs(1), &["duplicate_window"]),
            (|c| c.max_message_size = 1024, &["max_msg_size"]),
            (|c| c.subjects = vec![">".to_owned()], &["subjects"]),
            (|c| c.subjects = vec!["events.>".to_owned(), "other".to_owned()], &["subjects"]),
            (|c| c.subjects = vec!["events.*.*".to_owned()], &["subjects"]),
            (|c| c.sources = Some(vec![Source::default()]), &["sources"]),
            (|c| (c.deny_delete, c.deny_purge, c.allow_direct) = (true, true, true), &[]),
        ];
        for (change, unwise) in table {
            let mut config = events();
            change(&mut config);
            let found = of_events(&config);
            assert_eq!(wrong(&found), (vec![], unwise.to_vec()), "{found:?}");
        }
    }

    #[test]
    fn a_stream_that_can_lose_a_dead_letter_is_unfit() {
        let table: [(Change, &[&str]); 9] = [
            (|c| c.max_messages_per_subject = 5, &["max_msgs_per_subject"]),
            (|c| c.discard = DiscardPolicy::Old, &["discard", "max_bytes"]),
            (|c| c.max_age = Duration::from_hours(24), &["max_age"]),
            (|c| c.subjects = vec!["dead.letters".to_owned()], &["subjects"]),
            (|c| c.retention = RetentionPolicy::Interest, &["retention"]),
            (|c| c.retention = RetentionPolicy::WorkQueue, &["retention"]),
            (|c| c.storage = StorageType::Memory, &["storage"]),
            (|c| c.no_ack = true, &["no_ack"]),
            (|c| c.deny_delete = true, &[]),
        ];
        for (change, unfit) in table {
            let mut config = dead();
            change(&mut config);
            let found = of_dead_letters(&config);
            assert_eq!(wrong(&found).0, unfit);
            assert!(
                found.iter().filter_map(Finding::fault).all(|fault| fault.remedy.contains("DEAD_LETTERS"))
            );
        }
    }

    #[test]
    fn a_consumer_that_passes_events_over_is_unfit_and_one_that_is_set_anew_is_not() {
        type Change = fn(&mut consumer::Config);
        let table: [(Change, &[&str], &[&str]); 10] = [
            (|_| {}, &[], &[]),
            (|c| c.deliver_policy = DeliverPolicy::New, &["deliver_policy"], &[]),
            (
                |c| c.deliver_policy = DeliverPolicy::ByStartSequence { start_sequence: 9 },
                &["deliver_policy"],
                &[],
            ),
            (|c| c.ack_policy = AckPolicy::None, &["ack_policy"], &[]),
            (|c| c.ack_policy = AckPolicy::All, &["ack_policy"], &[]),
            (|c| c.replay_policy = ReplayPolicy::Original, &["replay_policy"], &[]),
            (|c| c.deliver_subject = Some("inbox".to_owned()), &["deliver_subject"], &[]),
            (|c| c.filter_subject = "events.member.join".to_owned(), &[], &["filter_subject"]),
            (|c| (c.max_deliver, c.max_ack_pending) = (5, 1), &[], &["max_deliver", "max_ack_pending"]),
            (|c| c.memory_storage = true, &[], &["mem_storage"]),
        ];
        for (change, unfit, unwise) in table {
            let mut config = consumer::Config {
                filter_subject: EVENTS_SUBJECTS.to_owned(),
                max_ack_pending: 500_000,
                max_deliver: -1,
                ..consumer::Config::default()
            };
            change(&mut config);
            let found = of_consumer("muster-worker", &config);
            assert_eq!(wrong(&found), (unfit.to_vec(), unwise.to_vec()));
            assert!(
                found
                    .iter()
                    .filter(|f| f.is_unfit())
                    .all(|f| f.to_string().contains("nats consumer rm EVENTS muster-worker"))
            );
        }
    }

    #[test]
    fn subjects_are_compared_as_the_server_does() {
        for (outer, inner, covered, overlapping) in [
            ("events.>", "events.>", true, true),
            (">", "events.>", true, true),
            ("*.>", "events.>", true, true),
            ("events.*", "events.>", false, true),
            ("events.*.*", "events.member.join", true, true),
            ("events.*", "events.member.join", false, false),
            ("events.>", "events", false, false),
            ("events", "events.>", false, false),
            ("other.>", "events.>", false, false),
            ("*.member.join", "events.>", false, true),
        ] {
            assert_eq!(covers(outer, inner), covered, "{outer} covers {inner}");
            assert_eq!(overlap(outer, inner), overlapping, "{outer} and {inner}");
        }
    }

    #[test]
    fn a_duration_is_shown_as_the_command_takes_it() {
        let shown = [7 * 86_400, 86_400, 5_400, 3_600, 0].map(|secs| days(Duration::from_secs(secs)));
        assert_eq!(shown, ["7d", "1d", "5400s", "1h", "0"]);
        assert_eq!(days(Duration::from_millis(20)), "20ms");
    }
}
