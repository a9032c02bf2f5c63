//! Whether an existing stream or consumer can lose events: what each of its settings means, and which command corrects it.
//!
//! The rule, in one place: an event is *lost* when the stream stored it and drops it before it was applied. At a limit of its size
//! a stream may refuse new events (`discard=new`), but not drop stored ones. A limit of the age drops whatever was not read in
//! time, so it is at least [`LEAST_AGE`], which leaves operators a day after the alert for late events.

use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};
use muster_domain::EventType;

use super::envelope::DEFAULT_MAX_BYTES;
use super::subjects::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS, subject};

/// The shortest time for which a stream may keep events. A shorter one is refused.
pub const LEAST_AGE: Duration = Duration::from_hours(24);
/// The time for which a stream should keep events, as one that Muster creates does. A shorter one is warned of.
pub const ADVISED_AGE: Duration = Duration::from_hours(7 * 24);
/// The shortest time for which dead letters may be kept: an operator has to decide on each.
pub const LEAST_DEAD_AGE: Duration = Duration::from_hours(30 * 24);
/// The shortest window in which the broker should recognise a repeated message.
pub(crate) const ADVISED_WINDOW: Duration = Duration::from_mins(2);
/// The fewest bytes and messages that a stream of events should have room for.
const ADVISED_BYTES: i64 = 64 << 20;
const ADVISED_MESSAGES: i64 = 100_000;

/// What has the setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The stream `EVENTS`.
    Events,
    /// The stream `DEAD_LETTERS`.
    DeadLetters,
    /// The stream `CHANGES`.
    Changes,
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
            Self::Changes => "changes",
            Self::Consumer => "consumer",
        }
    }

    /// The name of its stream.
    pub(crate) const fn stream(self) -> &'static str {
        match self {
            Self::Events | Self::Consumer => EVENTS,
            Self::DeadLetters => DEAD_LETTERS,
            Self::Changes => "CHANGES",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events | Self::DeadLetters | Self::Changes => write!(f, "the stream {}", self.stream()),
            Self::Consumer => f.write_str("the consumer"),
        }
    }
}

/// The judgement of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// It loses no event by itself, but should be different.
    Unwise(Problem),
    /// It can lose events, or prevents them from being stored or read.
    Unfit(Problem),
}

/// What is wrong with a setting, and how to correct it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The consequence.
    pub why: String,
    /// The command, or the steps if no single command does it.
    pub remedy: String,
}

/// One setting, as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What has it.
    pub place: Place,
    /// Its name in the server's configuration.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// The judgement.
    pub verdict: Verdict,
}

impl Finding {
    /// Whether it can lose events, or prevents them from being stored or read.
    #[must_use]
    pub const fn is_unfit(&self) -> bool {
        matches!(self.verdict, Verdict::Unfit(_))
    }

    /// What is wrong, unless it is as it should be.
    #[must_use]
    pub const fn problem(&self) -> Option<&Problem> {
        match &self.verdict {
            Verdict::Fine => None,
            Verdict::Unwise(problem) | Verdict::Unfit(problem) => Some(problem),
        }
    }

    /// Logs what is wrong.
    pub(crate) fn warn(&self) {
        if let Some(Problem { why, remedy }) = self.problem() {
            tracing::warn!(
                place = self.place.as_str(),
                setting = self.setting,
                value = self.value,
                remedy,
                unfit = self.is_unfit(),
                "{}: {why}",
                self.place
            );
        }
    }
}

/// `max_msgs_per_subject=1: why; to correct it: command`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.setting, self.value)?;
        match self.problem() {
            Some(Problem { why, remedy }) => write!(f, ": {why}; to correct it: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Collects the findings of one place.
pub(crate) struct Report {
    pub(crate) place: Place,
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, setting: &'static str, value: impl fmt::Display, verdict: Verdict) {
        self.findings.push(Finding { place: self.place, setting, value: value.to_string(), verdict });
    }

    /// Adds a setting that is fine or `wrong`.
    pub(crate) fn check(
        &mut self,
        setting: &'static str,
        value: impl fmt::Display,
        is_wrong: bool,
        wrong: Verdict,
    ) {
        self.add(setting, value, if is_wrong { wrong } else { Verdict::Fine });
    }

    /// Adds a setting only if it is wrong.
    pub(crate) fn add_if(
        &mut self,
        is_wrong: bool,
        setting: &'static str,
        value: impl fmt::Display,
        wrong: Verdict,
    ) {
        if is_wrong {
            self.add(setting, value, wrong);
        }
    }

    /// The command that changes the stream with these options.
    pub(crate) fn edit(&self, options: &str) -> String {
        format!("nats stream edit {} {options}", self.place.stream())
    }

    /// What to do about a setting that the server does not allow to be changed.
    pub(crate) fn recreate(&self) -> String {
        let stream = self.place.stream();
        match self.place {
            Place::DeadLetters => format!(
                "it cannot be changed: replay or drop every dead letter, then `nats stream rm {stream}`; the worker creates \
                 it again"
            ),
            Place::Changes => format!(
                "it cannot be changed: `nats stream rm {stream}`, with which followers lose what they have not read; the worker creates \
                 it again"
            ),
            Place::Events | Place::Consumer => format!(
                "it cannot be changed: stop the gateway, let the worker apply all events, stop it, then `nats stream rm \
                 {stream}`; the worker creates it again"
            ),
        }
    }
}

pub(crate) fn unfit(why: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict::Unfit(Problem { why: why.into(), remedy: remedy.into() })
}

pub(crate) fn unwise(why: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Verdict::Unwise(Problem { why: why.into(), remedy: remedy.into() })
}

/// A stream of another name that takes `subjects`, those of `place`, whose own stream so cannot be created.
pub(super) fn foreign(place: Place, subjects: &str, name: &str) -> Finding {
    let why = format!("it takes {subjects}, or a part of it, so that {place} cannot be created");
    let remedy = format!(
        "`nats stream edit {name} --subjects=…` with subjects that do not overlap, or `nats stream rm {name}` if nobody needs it"
    );
    Finding { place, setting: "stream", value: name.to_owned(), verdict: unfit(why, remedy) }
}

/// Whether a stream that keeps events for `max_age`, where zero is for ever, has some whose ids are no longer remembered.
pub(super) fn outlives_ids(max_age: Duration, remember: Duration) -> bool {
    max_age.is_zero() || max_age > remember
}

/// Judges the settings of the stream of events. The ids of applied events are remembered for `remember`.
pub(super) fn judge_events(config: &Config, remember: Duration) -> Vec<Finding> {
    let mut report = Report { place: Place::Events, findings: Vec::new() };
    judge_subjects(&mut report, config);
    judge_size(&mut report, config);
    let extend = report.edit(&format!("--max-age={}", days(ADVISED_AGE)));
    let longer = || {
        unwise(
            format!(
                "events are kept for longer than their ids are remembered (events.remember_days, {}): if the stream is read from its \
                 beginning, the older ones are worked through and counted as applied once more, to no second effect; \
                 and each addition to activity is kept for good",
                days(remember)
            ),
            extend.clone(),
        )
    };
    let age = match config.max_age {
        age if outlives_ids(age, remember) => longer(),
        age if age < LEAST_AGE => unfit(
            format!("an event that is not applied in that time is lost; the minimum is {}", days(LEAST_AGE)),
            extend.clone(),
        ),
        age if age < ADVISED_AGE => unwise("an outage that lasts longer loses events", extend.clone()),
        _ => Verdict::Fine,
    };
    report.add("max_age", days(config.max_age), age);
    let retention = match config.retention {
        RetentionPolicy::Limits => Verdict::Fine,
        RetentionPolicy::Interest => unfit(
            "an event is dropped while there is no consumer, and nothing is left to read again after a restore",
            report.edit("--retention=limits"),
        ),
        RetentionPolicy::WorkQueue => unfit(
            "an applied event is dropped, and nothing is left to read again after a restore",
            report.recreate(),
        ),
    };
    report.add("retention", word(&config.retention), retention);
    judge_durability(&mut report, config);
    let size = config.max_message_size;
    let narrow = unwise("the stream refuses larger events of the gateway", report.edit("--max-msg-size=-1"));
    report.add_if(is_narrow(size), "max_msg_size", size, narrow);
    let short = unwise(
        "an event that the gateway publishes twice is stored twice, though it has no second effect",
        report.edit("--dupe-window=2m"),
    );
    let window = config.duplicate_window;
    report.check("duplicate_window", seconds(window), window < ADVISED_WINDOW, short);
    let threshold = config.consumer_limits.as_ref().map_or(Duration::ZERO, |it| it.inactive_threshold);
    let deleted = unwise(
        "the server deletes the worker's consumer when no worker reads for so long, and the whole stream is read again",
        report.recreate(),
    );
    let setting = "consumer_limits.inactive_threshold";
    report.add_if(!threshold.is_zero(), setting, seconds(threshold), deleted);
    report.findings
}

/// Judges the settings of the stream of dead letters.
pub(super) fn judge_dead_letters(config: &Config) -> Vec<Finding> {
    let mut report = Report { place: Place::DeadLetters, findings: Vec::new() };
    let takes = config.subjects.iter().any(|subject| covers(subject, DEAD_SUBJECT));
    let missing = unfit("no dead letter is stored", report.edit(&format!("--subjects={DEAD_SUBJECT}")));
    report.check("subjects", config.subjects.join(","), !takes, missing);
    judge_size(&mut report, config);
    let lost = "a dead letter that no operator decided on in that time is lost";
    let unlimited = report.edit("--max-age=0");
    let age = match config.max_age {
        Duration::ZERO => Verdict::Fine,
        age if age < LEAST_DEAD_AGE => {
            unfit(format!("{lost}; the minimum is {}", days(LEAST_DEAD_AGE)), unlimited)
        }
        _ => unwise(lost, unlimited),
    };
    report.add("max_age", days(config.max_age), age);
    let retention = match config.retention {
        RetentionPolicy::Limits => Verdict::Fine,
        RetentionPolicy::Interest => {
            unfit("a dead letter is dropped while there is no consumer", report.edit("--retention=limits"))
        }
        RetentionPolicy::WorkQueue => {
            unfit("a dead letter is dropped when any consumer acknowledges it", report.recreate())
        }
    };
    report.add("retention", word(&config.retention), retention);
    judge_durability(&mut report, config);
    let denied = unwise("a dead letter can be neither dropped nor replayed", report.recreate());
    report.add_if(config.deny_delete, "deny_delete", true, denied);
    let narrow = unwise(
        "a larger event cannot become a dead letter and is retried for ever",
        report.edit("--max-msg-size=-1"),
    );
    report.add_if(is_narrow(config.max_message_size), "max_msg_size", config.max_message_size, narrow);
    report.findings
}

/// Whether the stream stores every event of the gateway, on its own subject.
fn judge_subjects(report: &mut Report, config: &Config) {
    let takes = |subject: &str| config.subjects.iter().any(|taken| covers(taken, subject));
    let missing: Vec<String> =
        EventType::ALL.into_iter().map(subject).filter(|subject| !takes(subject)).collect();
    let is_foreign = |subject: &String| !covers(EVENTS_SUBJECTS, subject);
    let remedy = report.edit(&format!("--subjects='{EVENTS_SUBJECTS}'"));
    let subjects = if !missing.is_empty() {
        unfit(format!("it does not store {}", missing.join(", ")), remedy)
    } else if config.subjects.iter().any(is_foreign) {
        unwise(
            "it also stores messages that are no events: they take up room, and count as lost events when they are dropped",
            remedy,
        )
    } else if !takes(EVENTS_SUBJECTS) {
        unwise("it does not store types of events that a later version knows", remedy)
    } else {
        Verdict::Fine
    };
    report.add("subjects", config.subjects.join(","), subjects);
    if let Some(transform) = &config.subject_transform {
        let is_wrong = transform.source.is_empty() || overlap(&transform.source, EVENTS_SUBJECTS);
        let shown = format!("{} to {}", transform.source, transform.destination);
        let moved = unfit(
            "events are stored on another subject, where the worker does not find them",
            report.edit("--no-transform"),
        );
        report.add_if(is_wrong, "subject_transform", shown, moved);
    }
    let sources = config.sources.as_ref().map_or(0, Vec::len);
    let copied = unwise(
        "events that the other streams drop before they are copied are lost unnoticed",
        "have the gateway publish to this stream, and remove the sources",
    );
    report.add_if(sources > 0, "sources", sources, copied);
    let counters = unfit("it stores only counters, and refuses events", report.recreate());
    report.add_if(config.allow_message_counter, "allow_msg_counter", true, counters);
}

/// Judges the limits of the size.
fn judge_size(report: &mut Report, config: &Config) {
    let drops = config.discard == DiscardPolicy::Old;
    let bounded = |bound: i64| bound > 0;
    let dropping = unfit(
        "a full stream drops the oldest messages, read or not, instead of refusing new ones",
        report.edit("--discard=new"),
    );
    let is_bounded = bounded(config.max_bytes) || bounded(config.max_messages);
    report.check("discard", word(&config.discard), drops && is_bounded, dropping.clone());
    let of_events = report.place == Place::Events;
    for (setting, bound, least, option) in [
        ("max_bytes", config.max_bytes, ADVISED_BYTES, "--max-bytes=1GB"),
        ("max_msgs", config.max_messages, ADVISED_MESSAGES, "--max-msgs=-1"),
    ] {
        let verdict = if bounded(bound) && drops {
            dropping.clone()
        } else if bounded(bound) && of_events && bound < least {
            unwise("it is full after a few events, and refuses those of the gateway", report.edit(option))
        } else {
            Verdict::Fine
        };
        report.add(setting, bound, verdict);
    }
    let per_subject = config.max_messages_per_subject;
    let refuses = config.discard == DiscardPolicy::New && config.discard_new_per_subject;
    let unlimited = report.edit("--max-msgs-per-subject=-1");
    let limited = if refuses {
        unwise("it refuses events of a type when it has so many of it", unlimited)
    } else {
        unfit("the oldest of a subject is dropped, read or not, when the next arrives", unlimited)
    };
    report.check("max_msgs_per_subject", per_subject, bounded(per_subject), limited);
}

/// Judges whether stored messages are safe.
fn judge_durability(report: &mut Report, config: &Config) {
    let in_memory = unfit("its messages are lost when the server stops", report.recreate());
    report.check("storage", word(&config.storage), config.storage == StorageType::Memory, in_memory);
    let single = unwise(
        "its messages are lost with that server's disk; a cluster of three should store three copies",
        report.edit("--replicas=3"),
    );
    report.check("num_replicas", config.num_replicas, config.num_replicas < 2, single);
    let flags = [
        ("no_ack", config.no_ack, "publishers are not told what was refused", report.edit("--ack")),
        ("sealed", config.sealed, "it stores no new messages", report.recreate()),
        ("mirror", config.mirror.is_some(), "it only copies another stream", report.recreate()),
        (
            "allow_rollup_hdrs",
            config.allow_rollup,
            "a header of one message (Nats-Rollup) drops all before it, read or not",
            report.edit("--no-allow-rollup"),
        ),
        (
            "allow_msg_ttl",
            config.allow_message_ttl,
            "a header (Nats-TTL) drops unread messages",
            report.recreate(),
        ),
        (
            "subject_delete_marker_ttl",
            config.subject_delete_marker_ttl.is_some_and(|ttl| !ttl.is_zero()),
            "the server adds markers to the stream that are no events",
            report.edit("--subject-del-markers-ttl=0s"),
        ),
    ];
    for (setting, is_set, why, remedy) in flags {
        report.add_if(is_set, setting, true, unfit(why, remedy));
    }
    let late = "a message is acknowledged before it is stored, and lost if the server fails in between";
    let is_async = config.persist_mode == Some(PersistenceMode::Async);
    report.add_if(is_async, "persist_mode", "async", unfit(late, report.recreate()));
}

/// Judges the settings of the durable consumer `name`. When the worker starts it corrects those that the server allows to be
/// changed; the others prevent it from starting.
pub(super) fn judge_consumer(name: &str, config: &consumer::Config) -> Vec<Finding> {
    let mut report = Report { place: Place::Consumer, findings: Vec::new() };
    // The whole stream is read again, to no second effect.
    let remove = format!(
        "nats consumer rm {EVENTS} {name}; the worker creates it again and reads the whole stream again"
    );
    let fixed = [
        (
            "deliver_policy",
            word(&config.deliver_policy),
            config.deliver_policy == DeliverPolicy::All,
            "events stored before it was created are skipped",
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
            "events are delivered as slowly as they were published",
        ),
        (
            "deliver_subject",
            config.deliver_subject.clone().unwrap_or_else(|| "none".to_owned()),
            config.deliver_subject.is_none(),
            "events are pushed to a subject, but the worker pulls them",
        ),
    ];
    for (setting, value, right, why) in fixed {
        report.check(setting, value, !right, unfit(why, remove.clone()));
    }
    let whole = [EVENTS_SUBJECTS];
    let filters: Vec<&str> = config
        .filter_subjects
        .iter()
        .chain(Some(&config.filter_subject).filter(|filter| !filter.is_empty()))
        .map(String::as_str)
        .collect();
    let restart = "start the worker, which corrects it";
    let changed = [
        (
            "filter_subject",
            filters.join(","),
            filters == whole || filters.is_empty(),
            "events of other subjects are skipped; those that were are lost unless the consumer is also removed",
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
            "a few waiting events delay all others",
        ),
        (
            "headers_only",
            config.headers_only.to_string(),
            !config.headers_only,
            "events are delivered without their content",
        ),
        (
            "inactive_threshold",
            seconds(config.inactive_threshold),
            config.inactive_threshold.is_zero(),
            "it is deleted when no worker reads for so long, and the whole stream is read again",
        ),
    ];
    for (setting, value, right, why) in changed {
        report.check(setting, value, !right, unwise(why, restart));
    }
    let in_memory =
        unwise("its position is lost when the server stops, and the whole stream is read again", remove);
    report.add_if(config.memory_storage, "mem_storage", true, in_memory);
    if let Some(until) = config.pause_until.filter(|until| *until > time::OffsetDateTime::now_utc()) {
        let resume = format!("nats consumer resume {EVENTS} {name}");
        report.add("pause_until", until, unwise("nothing is delivered until then", resume));
    }
    report.findings
}

/// Whether every subject that `inner` matches is matched by `outer`; both may contain wildcards.
pub(crate) fn covers(outer: &str, inner: &str) -> bool {
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

/// Whether some subject is matched by both; both may contain wildcards.
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

/// Whether a limit of the message size refuses an event that may be published; 0 and below are no limit.
fn is_narrow(bound: i32) -> bool {
    usize::try_from(bound).is_ok_and(|bound| (1..DEFAULT_MAX_BYTES).contains(&bound))
}

/// A policy in the server's spelling.
pub(crate) fn word(policy: &impl fmt::Debug) -> String {
    format!("{policy:?}").to_lowercase()
}

pub(crate) fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// A duration as the `nats` command takes it: `7d`, `36h`, `90s`.
pub(crate) fn days(duration: Duration) -> String {
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

    fn events() -> Config {
        Config {
            name: EVENTS.to_owned(),
            subjects: vec![EVENTS_SUBJECTS.to_owned()],
            max_bytes: 1 << 30,
            max_age: ADVISED_AGE,
            discard: DiscardPolicy::New,
            num_replicas: 3,
            duplicate_window: ADVISED_WINDOW,
            ..Config::default()
        }
    }

    fn dead() -> Config {
        let subjects = vec![DEAD_SUBJECT.to_owned()];
        Config { name: DEAD_LETTERS.to_owned(), subjects, max_age: Duration::ZERO, ..events() }
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

    const REMEMBER: Duration = Duration::from_hours(30 * 24);

    #[test]
    fn good_settings_have_no_problem() {
        assert_eq!(wrong(&judge_events(&events(), REMEMBER)), (vec![], vec![]));
        assert_eq!(wrong(&judge_dead_letters(&dead())), (vec![], vec![]));
    }

    #[test]
    fn a_setting_that_can_lose_events_is_unfit_and_names_its_remedy() {
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
            let findings = judge_events(&config, REMEMBER);
            assert_eq!(wrong(&findings).0, unfit);
            for finding in findings.iter().filter(|finding| finding.is_unfit()) {
                assert!(finding.to_string().contains(remedy), "{finding}");
                assert!(finding.to_string().starts_with(finding.setting), "{finding}");
            }
        }
    }

    #[test]
    fn a_setting_that_only_refuses_events_or_is_unwise_is_not_unfit() {
        let table: [(Change, &[&str]); 16] = [
            (|c| c.max_bytes = 1 << 20, &["max_bytes"]),
            (|c| c.max_messages = 10, &["max_msgs"]),
            (
                |c| (c.max_messages_per_subject, c.discard_new_per_subject) = (9, true),
                &["max_msgs_per_subject"],
            ),
            (|c| c.max_age = LEAST_AGE, &["max_age"]),
            (|c| c.max_age = Duration::ZERO, &["max_age"]),
            (|c| c.max_age = REMEMBER, &[]),
            (|c| c.max_age = REMEMBER + Duration::from_secs(1), &["max_age"]),
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
            let found = judge_events(&config, REMEMBER);
            assert_eq!(wrong(&found), (vec![], unwise.to_vec()), "{found:?}");
        }
    }

    #[test]
    fn a_setting_that_can_lose_dead_letters_is_unfit() {
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
            let found = judge_dead_letters(&config);
            assert_eq!(wrong(&found).0, unfit);
            assert!(
                found
                    .iter()
                    .filter_map(Finding::problem)
                    .all(|problem| problem.remedy.contains("DEAD_LETTERS"))
            );
        }
    }

    #[test]
    fn a_consumer_setting_that_skips_events_is_unfit_unless_the_worker_corrects_it() {
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
            let found = judge_consumer("muster-worker", &config);
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
    fn subjects_with_wildcards_are_compared_as_the_server_does() {
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
    fn a_duration_is_written_as_the_nats_command_takes_it() {
        let shown = [7 * 86_400, 86_400, 5_400, 3_600, 0].map(|secs| days(Duration::from_secs(secs)));
        assert_eq!(shown, ["7d", "1d", "5400s", "1h", "0"]);
        assert_eq!(days(Duration::from_millis(20)), "20ms");
    }
}
