//! The names that exist, and how a name of each kind is found in a document.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use clap::CommandFactory;
use regex::Regex;
use serde_json::Value;
use xtask::tool::output;

use crate::cargo;
use crate::commands;
use crate::description::{list, series, text};

/// Roles of PostgreSQL, which are named as metrics are, and cargo, the one command that is nobody's here.
const OTHERS: [&str; 3] = ["muster_migrate", "muster_owner", "cargo"];

/// The one kind that is looked for outside code, too.
const ALERT: &str = "alert";
const DOTTED: &str = "key or subject";
const COMMAND: &str = "command or option";

/// The kinds of names, each with a pattern that finds it in code.
const KINDS: [(&str, &str); 7] = [
    ("metric", r"(?:^|[^A-Za-z0-9_$/.-])((?:muster|process)(?:_[a-z0-9]+)+)"),
    (ALERT, r"\b(Muster[A-Z][A-Za-z]+)\b"),
    ("variable", r"(MUSTER__[A-Z0-9_]*[A-Z0-9])"),
    (DOTTED, r#"(?:^|[\s'"`])([a-z]+(?:\.[\w*<>$-]+)+)"#),
    (COMMAND, r"(?:^|[\s(;&|`])((?:muster-worker|cargo xtask)(?: +[^\s;&|)`]+)*)"),
    ("path", r"(?:^|[\s=`(])((?:crates|docs|infra|xtask|\.github)/[\w./-]*\w)"),
    ("function or test", r"^(?:[a-z_]+::)*([a-z0-9]+(?:_[a-z0-9]+){3,})$"),
];

pub(super) struct Names {
    kinds: Vec<(&'static str, Regex)>,
    known: BTreeSet<String>,
}

impl Names {
    /// What the worker says, alerts, commands of `cargo xtask`, files, and what Rust sources define.
    pub(super) fn new(description: &Value, alerts: &[Value], files: &str) -> Result<Self> {
        let alerts = alerts.iter().map(|alert| text(alert, "/alert"));
        let mut known: BTreeSet<String> = alerts.chain(OTHERS).map(str::to_owned).collect();
        let strings = Regex::new(r#""((?:[^"\\]|\\.)*)""#)?;
        let json = description.to_string();
        known.extend(strings.captures_iter(&json).map(|found| found.extract::<1>().1.concat()));
        known.extend(series(description).into_keys());
        for command in list(description, "/commands") {
            let options = list(command, "/options").iter().filter_map(Value::as_str);
            known.extend(options.map(|option| format!("{} {option}", text(command, "/name"))));
        }
        let mut xtask = commands::Command::command();
        xtask.build();
        add_commands(&xtask, "cargo xtask", &mut known);
        for file in files.lines() {
            known.extend(Path::new(file).ancestors().map(|path| path.display().to_string()));
            known.extend(file.rsplit('/').next().map(str::to_owned));
        }
        // Functions, fields and modules.
        let defined = r"\bfn [a-z0-9_]+|\b[a-z0-9_]+:";
        let defined = git(&["grep", "--untracked", "-hoE", defined, "--", "*.rs"])?;
        known.extend(defined.lines().map(|it| it.trim_start_matches("fn ").trim_end_matches(':').to_owned()));
        let kinds = KINDS.into_iter().map(|(kind, pattern)| Ok((kind, Regex::new(pattern)?)));
        Ok(Self { kinds: kinds.collect::<Result<_>>()?, known })
    }

    /// The names in a line of a document that do not exist, each behind its kind.
    pub(super) fn unknown<'a>(&self, line: &'a str, is_code: bool) -> Vec<(&'static str, &'a str)> {
        let kinds = self.kinds.iter().filter(|(kind, _)| is_code || *kind == ALERT);
        let names = kinds.flat_map(|(kind, pattern)| {
            pattern.captures_iter(line).map(|found| found.extract()).map(|(_, [name])| (*kind, name))
        });
        names.filter(|(kind, name)| !self.has(kind, name)).collect()
    }

    /// Whether a name of this kind exists.
    fn has(&self, kind: &str, name: &str) -> bool {
        match kind {
            _ if self.known.contains(name) => true,
            COMMAND => self.has_command(name),
            DOTTED => self.is_other(name) || self.has_subject(name),
            _ => false,
        }
    }

    /// Whether it begins neither as keys nor as subjects do.
    fn is_other(&self, name: &str) -> bool {
        let first = name.split_inclusive('.').next().unwrap_or(name);
        !self.known.iter().any(|known| known.starts_with(first) && !known.contains(' '))
    }

    /// Wildcards and placeholders stand for anything.
    fn has_subject(&self, name: &str) -> bool {
        let stands_for_any = |part: &str| part.starts_with(['*', '>', '<', '$']);
        let parts = name.split('.').map(|part| if stands_for_any(part) { ".+" } else { part });
        let pattern = Regex::new(&format!("^{}$", parts.collect::<Vec<_>>().join(r"\.")));
        pattern.is_ok_and(|pattern| self.known.iter().any(|known| pattern.is_match(known)))
    }

    /// Goes down from the program through its commands, and looks for each option where it stands.
    fn has_command(&self, line: &str) -> bool {
        let words = line.split_whitespace().map(|word| word.trim_matches(['"', '\'', ',', '.', ':']));
        let mut words = words.take_while(|word| *word != "--" && !word.starts_with(['>', '<', '#', '\\']));
        let mut command = String::new();
        words.all(|word| {
            let name = word.split('=').next().unwrap_or(word);
            let below = format!("{command} {name}").trim_start().to_owned();
            let (exists, is_option) = (self.known.contains(&below), word.starts_with("--"));
            if exists && !is_option {
                command = below;
            }
            // A word behind a command that has no commands of its own is an argument.
            let is_word = word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-'));
            exists || !(is_option || is_word && self.known.contains(&format!("{command} help")))
        })
    }
}

/// A command, its options and the commands below it, each as it is written.
fn add_commands(command: &clap::Command, name: &str, known: &mut BTreeSet<String>) {
    known.insert(name.to_owned());
    let options = command.get_arguments().filter_map(clap::Arg::get_long);
    known.extend(options.map(|option| format!("{name} --{option}")));
    for below in command.get_subcommands() {
        add_commands(below, &format!("{name} {}", below.get_name()), known);
    }
}

pub(super) fn git(arguments: &[&str]) -> Result<String> {
    output(Command::new("git").args(arguments).current_dir(cargo::root()))
}
