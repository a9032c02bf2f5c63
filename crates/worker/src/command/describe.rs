//! The worker's description of itself. The checks of documents, alerts and manifests read it, and the documentation's tables
//! are made from it.

use clap::Command;
use muster_domain::{ChangeType, EventType};
use muster_messaging::api::{ENDPOINTS, ErrorCode};
use muster_messaging::changes::{self, wire};
use muster_messaging::events::{envelope, subjects};
use serde_json::{Value, json};

use crate::metrics::{METRICS, Metric};
use crate::settings::SettingsError;
use crate::settings::keys;

/// All of it. `command` is the command line.
pub(crate) fn worker(mut command: Command) -> Result<Value, SettingsError> {
    // Adds what clap adds itself, such as `--help`, and hands global options down.
    command.build();
    let metrics = METRICS.iter().map(|Metric { name, kind, unit, labels, help }| {
        json!({"name": name, "kind": kind.as_str(), "unit": unit, "labels": labels, "help": help})
    });
    let errors = ErrorCode::ALL
        .iter()
        .map(|code| json!({"code": code.as_str(), "number": code.number(), "when": code.help()}));
    let events = EventType::ALL.iter().map(|&event_type| {
        let envelope::EventHelp { data, effect } = envelope::help(event_type);
        let name = event_type.as_str();
        json!({"type": name, "subject": subjects::subject(event_type), "data": data, "effect": effect})
    });
    let changes = ChangeType::ALL.iter().map(|&change_type| {
        let (name, subject) = (change_type.as_str(), changes::pattern(change_type));
        json!({"type": name, "subject": subject, "data": wire::fields(change_type), "help": change_type.help()})
    });
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "keys": keys::described()?,
        "metrics": metrics.collect::<Vec<_>>(),
        "endpoints": ENDPOINTS,
        "errors": errors.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "changes": changes.collect::<Vec<_>>(),
        "subjects": {
            "events": subjects::EVENTS_SUBJECTS,
            "dead_letters": subjects::DEAD_SUBJECT,
            "changes": changes::CHANGES_SUBJECTS,
        },
        "commands": commands(&command, command.get_name()),
    }))
}

/// A command with its options, and those below it.
fn commands(command: &Command, name: &str) -> Vec<Value> {
    let options = command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?)));
    let own = json!({"name": name, "options": options.collect::<Vec<_>>()});
    let below = command.get_subcommands();
    let below = below.flat_map(|below| commands(below, &format!("{name} {}", below.get_name())));
    std::iter::once(own).chain(below).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_description_names_keys_metrics_endpoints_events_and_commands() {
        let described = worker(crate::Arguments::command()).unwrap();
        let has = |part: &str, entry: Value| {
            let entries = described[part].as_array().unwrap();
            let holds =
                |found: &Value| entry.as_object().unwrap().iter().all(|(name, value)| found[name] == *value);
            assert!(entries.iter().any(holds), "{part} has no {entry}: {entries:#?}");
        };
        let batch = json!({"key": "events.batch", "variable": "MUSTER__EVENTS__BATCH", "form": "number", "default": 1000});
        has("keys", batch);
        has("keys", json!({"key": "nats.urls", "form": "list", "default": []}));
        has("keys", json!({"key": "nats.ca_file", "form": "text", "default": null}));
        has("keys", json!({"key": "environment", "variable": "MUSTER__ENVIRONMENT"}));
        has("metrics", json!({"name": "muster_ready", "kind": "gauge", "labels": ["part"]}));
        has(
            "endpoints",
            json!({"name": "profiles.ranked", "pattern": "muster.v1.*.profiles.ranked", "admin": false}),
        );
        has("errors", json!({"code": "not_found", "number": 404}));
        has(
            "events",
            json!({"type": "score.set", "subject": "events.score.set", "data": ["conviction", "activity"]}),
        );
        let renamed = json!({"subject": "changes.v1.*.member.renamed", "data": ["from", "to"]});
        has("changes", renamed);
        has("commands", json!({"name": "muster-worker check", "options": ["--wait", "--config", "--help"]}));
        has("commands", json!({"name": "muster-worker deadletters replay"}));
    }
}
