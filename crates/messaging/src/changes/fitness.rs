//! Whether the stream of changes can store what is published, and keeps it for those who follow.
//!
//! The rule, in one place: what the stream does not take waits in the database, and events go on being applied. So a setting by which
//! it takes nothing is unfit, and is warned of: it never keeps the worker from starting.

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};

use super::CHANGES_SUBJECTS;
use crate::events::fitness::{
    ADVISED_AGE, ADVISED_WINDOW, Finding, Place, Report, covers, days, seconds, unfit, unwise, word,
};

/// No change is larger than this: a reason has at most 6000 bytes, a nym 384, a kind of badge 256.
const LARGEST: i32 = 16 << 10;

/// Judges the settings of the stream.
pub(super) fn judge(config: &Config) -> Vec<Finding> {
    let mut report = Report { place: Place::Changes, findings: Vec::new() };
    let takes = config.subjects.iter().any(|subject| covers(subject, CHANGES_SUBJECTS));
    let remedy = report.edit(&format!("--subjects='{CHANGES_SUBJECTS}'"));
    let missing =
        unfit("it does not store every change, and those behind one that is not stored wait", remedy);
    report.check("subjects", config.subjects.join(","), !takes, missing);
    let unstored = "changes are not stored as they are published, and wait or do not reach those who follow";
    let flags = [
        ("subject_transform", config.subject_transform.is_some(), report.edit("--no-transform")),
        ("no_ack", config.no_ack, report.edit("--ack")),
        ("sealed", config.sealed, report.recreate()),
        ("mirror", config.mirror.is_some(), report.recreate()),
        ("allow_msg_counter", config.allow_message_counter, report.recreate()),
    ];
    for (setting, is_set, remedy) in flags {
        report.add_if(is_set, setting, true, unfit(unstored, remedy));
    }
    let size = config.max_message_size;
    let narrow =
        unfit("a larger change is not stored, and those behind it wait", report.edit("--max-msg-size=-1"));
    report.add_if((1..LARGEST).contains(&size), "max_msg_size", size, narrow);
    let full = unwise(
        "full, it refuses changes, which wait until the oldest are too old",
        report.edit("--discard=old"),
    );
    report.check("discard", word(&config.discard), config.discard == DiscardPolicy::New, full);
    let short = unwise(
        "who is away for longer misses changes, and reads the lists anew",
        report.edit("--max-age=7d"),
    );
    let is_short = !config.max_age.is_zero() && config.max_age < ADVISED_AGE;
    report.check("max_age", days(config.max_age), is_short, short);
    let bound = config.max_messages_per_subject;
    let few = unwise(
        "the oldest of a type is dropped when the next comes, and followers see a gap",
        report.edit("--max-msgs-per-subject=-1"),
    );
    report.add_if(bound > 0, "max_msgs_per_subject", bound, few);
    let (why, remedy) = match config.retention {
        RetentionPolicy::WorkQueue => ("a change reaches one follower, and no other", report.recreate()),
        _ => ("a change is dropped while nobody follows it", report.edit("--retention=limits")),
    };
    let is_dropped = config.retention != RetentionPolicy::Limits;
    report.check("retention", word(&config.retention), is_dropped, unwise(why, remedy));
    let in_memory = unwise("followers miss what they have not read when the server stops", report.recreate());
    report.check("storage", word(&config.storage), config.storage == StorageType::Memory, in_memory);
    let is_async = config.persist_mode == Some(PersistenceMode::Async);
    let late =
        unwise("a change is lost to followers if the server fails before it is on disk", report.recreate());
    report.add_if(is_async, "persist_mode", "async", late);
    let single = unwise(
        "changes wait while that server is away; a cluster of three should store three copies",
        report.edit("--replicas=3"),
    );
    report.check("num_replicas", config.num_replicas, config.num_replicas < 2, single);
    let window = config.duplicate_window;
    let twice = unwise("a change that is published twice is stored twice", report.edit("--dupe-window=2m"));
    report.check("duplicate_window", seconds(window), window < ADVISED_WINDOW, twice);
    let slow = unwise("changes are published one by one, which is slower", report.edit("--allow-batch"));
    report.check("allow_atomic", config.allow_atomic_publish, !config.allow_atomic_publish, slow);
    report.findings
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_nats::jetstream::stream::{Source, SubjectTransform};

    use super::*;

    type Change = fn(&mut Config);

    fn judged(change: Change) -> (Vec<&'static str>, Vec<&'static str>) {
        let mut config = Config {
            subjects: vec![CHANGES_SUBJECTS.to_owned()],
            max_bytes: 1 << 30,
            max_age: ADVISED_AGE,
            discard: DiscardPolicy::Old,
            num_replicas: 3,
            duplicate_window: ADVISED_WINDOW,
            allow_atomic_publish: true,
            ..Config::default()
        };
        change(&mut config);
        let findings = judge(&config);
        for problem in findings.iter().filter_map(Finding::problem) {
            assert!(problem.remedy.contains("CHANGES"), "{problem:?}");
        }
        let of = |is_unfit: bool| {
            let wrong = findings.iter().filter(|it| it.problem().is_some() && it.is_unfit() == is_unfit);
            wrong.map(|finding| finding.setting).collect()
        };
        (of(true), of(false))
    }

    #[test]
    fn good_settings_have_no_problem() {
        assert_eq!(judged(|_| {}), (vec![], vec![]));
        assert_eq!(judged(|c| (c.max_age, c.max_bytes) = (Duration::ZERO, -1)), (vec![], vec![]));
        assert_eq!(judged(|c| c.subjects.push("others".to_owned())), (vec![], vec![]));
    }

    #[test]
    fn a_setting_by_which_changes_are_not_stored_is_unfit() {
        let table: [(Change, &str); 8] = [
            (|c| c.subjects = vec!["changes.v1.*.*".to_owned()], "subjects"),
            (|c| c.subjects.clear(), "subjects"),
            (
                |c| {
                    c.subject_transform =
                        Some(SubjectTransform { source: "changes.>".into(), destination: "old.>".into() });
                },
                "subject_transform",
            ),
            (|c| c.no_ack = true, "no_ack"),
            (|c| c.sealed = true, "sealed"),
            (|c| c.mirror = Some(Source::default()), "mirror"),
            (|c| c.allow_message_counter = true, "allow_msg_counter"),
            (|c| c.max_message_size = LARGEST - 1, "max_msg_size"),
        ];
        for (change, setting) in table {
            assert_eq!(judged(change), (vec![setting], vec![]));
        }
    }

    #[test]
    fn a_setting_by_which_changes_wait_or_are_kept_too_short_is_unwise() {
        let table: [(Change, &str); 10] = [
            (|c| c.discard = DiscardPolicy::New, "discard"),
            (|c| c.max_age = Duration::from_hours(7 * 24 - 1), "max_age"),
            (|c| c.max_messages_per_subject = 1, "max_msgs_per_subject"),
            (|c| c.retention = RetentionPolicy::Interest, "retention"),
            (|c| c.retention = RetentionPolicy::WorkQueue, "retention"),
            (|c| c.storage = StorageType::Memory, "storage"),
            (|c| c.persist_mode = Some(PersistenceMode::Async), "persist_mode"),
            (|c| c.num_replicas = 1, "num_replicas"),
            (|c| c.duplicate_window = Duration::from_secs(1), "duplicate_window"),
            (|c| c.allow_atomic_publish = false, "allow_atomic"),
        ];
        for (change, setting) in table {
            assert_eq!(judged(change), (vec![], vec![setting]));
        }
    }
}
