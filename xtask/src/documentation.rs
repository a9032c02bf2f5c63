//! Documents name what exists, and their tables are those that are made from what the worker says of itself. Each made part
//! stands between two comments, of which the first names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::CommandFactory;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use regex::Regex;
use serde_json::Value;
use xtask::tool::output;

use crate::description::{describe, list, series, text};
use crate::verdict::Verdict;
use crate::{cargo, commands, observability};

/// The tables: the part of the description, the file, and the columns, which are fields of the entries.
const TABLES: [(&str, &str, &[&str]); 6] = [
    ("endpoints", "docs/api.md", &["name", "help", "fields", "answer"]),
    ("keys", "docs/configuration.md", &["key", "variable", "form", "default"]),
    ("metrics", "docs/metrics.md", &["name", "kind", "unit", "labels", "help"]),
    ("errors", "docs/api.md", &["code", "number", "when"]),
    ("events", "docs/api.md", &["type", "data", "effect"]),
    ("changes", "docs/api.md", &["type", "data", "help"]),
];
const OPERATOR: &str = "infra/k8s/monitoring/rules.yaml";
const BEGIN: &str = "made by cargo xtask documentation --write: ";

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

const FILES: [&str; 4] = ["ls-files", "--cached", "--others", "--exclude-standard"];

/// Checks every document and prints what is wrong. With `write`, the tables are written anew first.
pub(crate) async fn check(write: bool) -> Result<Verdict> {
    let description = describe(&cargo::build_worker().await?)?;
    let mut problems = renew(&description, write)?;
    let alerts = observability::alerts()?;
    let readme = cargo::root().join("README.md");
    for alert in alerts.iter().filter(|alert| !exists(&readme, text(alert, "/annotations/runbook"))) {
        problems.push(format!("{} names no section of a runbook", text(alert, "/alert")));
    }
    let files = git(&FILES)?;
    let names = Names::new(&description, &alerts, &files)?;
    let documents: Vec<&str> = files.lines().filter(|file| file.ends_with(".md")).collect();
    for document in &documents {
        let faults = faults(&names, document)?;
        problems.extend(faults.iter().map(|(line, fault)| format!("{document}:{line}: there is no {fault}")));
    }
    problems.iter().for_each(|problem| println!("{problem}"));
    println!("{} documents: {} problems", documents.len(), problems.len());
    Ok(Verdict::of(problems.is_empty()))
}

/// The names in a document that do not exist, each behind its line.
fn faults(names: &Names, document: &str) -> Result<Vec<(usize, String)>> {
    let (markdown, path) = (cargo::read(document)?, cargo::root().join(document));
    let mut faults = Vec::new();
    let (mut in_block, mut is_skipped) = (false, false);
    for (event, place) in Parser::new_ext(&markdown, Options::ENABLE_TABLES).into_offset_iter() {
        let line = markdown.get(..place.start).unwrap_or_default().matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                in_block = true;
                // Rust is checked by its compiler; what programs print and what pictures say is not looked up.
                is_skipped = ["rust", "text", "mermaid"].iter().any(|language| info.starts_with(language));
            }
            Event::End(TagEnd::CodeBlock) => (in_block, is_skipped) = (false, false),
            Event::Start(Tag::Link { dest_url: to, .. } | Tag::Image { dest_url: to, .. })
                if !exists(&path, &to) =>
            {
                faults.push((line, format!("path or section {to}")));
            }
            Event::Text(ref content) | Event::Code(ref content) if !is_skipped => {
                let is_code = in_block || matches!(event, Event::Code(_));
                for (content, line) in content.lines().zip(line..) {
                    let unknown = names.unknown(content, is_code).into_iter();
                    faults.extend(unknown.map(|(kind, name)| (line, format!("{kind} {name}"))));
                }
            }
            _ => {}
        }
    }
    Ok(faults)
}

/// Whether there is what a document links to, unless that lies elsewhere.
fn exists(document: &Path, link: &str) -> bool {
    let (path, section) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { document.to_owned() } else { document.with_file_name(path) };
    let has_section = || fs::read_to_string(&target).is_ok_and(|markdown| has_section(&markdown, section));
    let is_elsewhere = link.contains("://") || link.starts_with("mailto:");
    is_elsewhere || (target.exists() && !link.is_empty() && (section.is_empty() || has_section()))
}

/// Whether a document has the section that a link names as GitHub does.
fn has_section(markdown: &str, section: &str) -> bool {
    let events = Parser::new(markdown).into_offset_iter();
    let headings = events.filter(|(event, _)| matches!(event, Event::Start(Tag::Heading { .. })));
    headings.filter_map(|(_, place)| markdown.get(place)).any(|heading| {
        let title = heading.trim_matches(['#', ' ', '\n']).to_lowercase().replace(' ', "-");
        title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).eq(section.chars())
    })
}

/// Answers which parts are stale, or writes them.
fn renew(description: &Value, write: bool) -> Result<Vec<String>> {
    let entries = |part| list(description, &format!("/{part}"));
    let tables = TABLES.map(|(part, file, columns)| (part, file, table(entries(part), columns)));
    let groups = cargo::read(observability::RULES)?;
    let groups = groups.lines().skip_while(|line| !line.starts_with("groups:"));
    let groups = groups.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
    let mut stale = Vec::new();
    for (part, file, content) in tables.into_iter().chain([("alerts", OPERATOR, groups)]) {
        let text = cargo::read(file)?;
        let renewed = replaced(&text, part, &content).with_context(|| format!("{file} has no {part}"))?;
        if renewed != text && write {
            fs::write(cargo::root().join(file), renewed).with_context(|| format!("cannot write {file}"))?;
            println!("wrote {part} in {file}");
        } else if renewed != text {
            stale.push(format!("{file}: {part} is stale: run `cargo xtask documentation --write`"));
        }
    }
    Ok(stale)
}

/// The text with new content in the part, if it has that part.
fn replaced(text: &str, part: &str, content: &str) -> Option<String> {
    let (before, rest) = text.split_once(&format!("{BEGIN}{part}"))?;
    let (comment, rest) = rest.split_once('\n')?;
    let after =
        rest.get(["<!-- end -->", "  # end"].into_iter().filter_map(|end| rest.find(end)).min()?..)?;
    Some(format!("{before}{BEGIN}{part}{comment}\n{content}\n{after}"))
}

fn table(entries: &[Value], columns: &[&str]) -> String {
    let mut lines = vec![columns.join(" | "), vec!["---"; columns.len()].join(" | ")];
    lines.extend(entries.iter().map(|entry| {
        let cells = columns.iter().zip(0..).map(|(column, number)| cell(entry.get(column), number == 0));
        cells.collect::<Vec<_>>().join(" | ")
    }));
    lines.iter().map(|line| format!("| {line} |")).collect::<Vec<_>>().join("\n")
}

/// A field of an entry. A list is one of names, or of a request's fields with their default and cap, or else their form.
fn cell(value: Option<&Value>, is_name: bool) -> String {
    match value {
        Some(Value::String(text)) if is_name || text.starts_with("MUSTER__") => format!("`{text}`"),
        Some(Value::String(text)) => text.replace('|', "\\|"),
        Some(Value::Array(entries)) if !entries.is_empty() => {
            entries.iter().map(|entry| cell(Some(entry), true)).collect::<Vec<_>>().join(", ")
        }
        Some(Value::Object(field)) => {
            let given = |name: &str| field.get(name).filter(|value| !value.is_null());
            let form = given("form").and_then(Value::as_str).unwrap_or_default();
            let form = match (given("default"), given("cap")) {
                (Some(default), Some(cap)) => format!("{default}; {cap}"),
                (Some(default), None) => format!("{form}; {}", default.as_str().unwrap_or_default()),
                (None, _) => form.to_owned(),
            };
            let mark = if field.get("required") == Some(&Value::Bool(true)) { "**" } else { "" };
            format!("{mark}{}{mark} ({form})", cell(field.get("name"), true))
        }
        Some(value @ (Value::Number(_) | Value::Bool(_))) => value.to_string(),
        _ => "–".to_owned(),
    }
}

struct Names {
    kinds: Vec<(&'static str, Regex)>,
    known: BTreeSet<String>,
}

impl Names {
    /// What the worker says, alerts, commands of `cargo xtask`, files, and what Rust sources define.
    fn new(description: &Value, alerts: &[Value], files: &str) -> Result<Self> {
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
    fn unknown<'a>(&self, line: &'a str, is_code: bool) -> Vec<(&'static str, &'a str)> {
        let kinds = self.kinds.iter().filter(|(kind, _)| is_code || *kind == ALERT);
        let names = kinds.flat_map(|(kind, pattern)| {
            pattern.captures_iter(line).map(|found| found.extract()).map(|(_, [name])| (*kind, name))
        });
        let exists = |kind, name: &str| match kind {
            COMMAND => self.has_command(name),
            DOTTED => self.has_subject(name),
            _ => false,
        };
        names.filter(|(kind, name)| !self.known.contains(*name) && !exists(kind, name)).collect()
    }

    /// Wildcards and placeholders stand for anything. What begins neither as keys nor as subjects do is something else.
    fn has_subject(&self, name: &str) -> bool {
        let first = name.split_inclusive('.').next().unwrap_or(name);
        if !self.known.iter().any(|known| known.starts_with(first) && !known.contains(' ')) {
            return true;
        }
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

fn git(arguments: &[&str]) -> Result<String> {
    output(Command::new("git").args(arguments).current_dir(cargo::root()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::for_tests;

    #[test]
    fn every_planted_fault_is_found_and_nothing_else() {
        let (alerts, files) = (observability::alerts().unwrap(), git(&FILES).unwrap());
        let names = Names::new(&for_tests(), &alerts, &files).unwrap();
        let planted = "xtask/src/documentation/planted.markdown";
        let (found, text) = (faults(&names, planted).unwrap(), cargo::read(planted).unwrap());
        let expected = text.lines().zip(1..).filter_map(|(line, number)| {
            let (_, comment) = line.rsplit_once("<!-- ")?;
            Some((number, comment.trim_end_matches(" -->").to_owned()))
        });
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected.collect());
    }

    #[test]
    fn a_part_is_replaced_and_the_text_around_it_stays() {
        let new = table(list(&for_tests(), "/endpoints"), &["name", "fields", "answer"]);
        let rows = "| name | fields | answer |\n| --- | --- | --- |\n\
                    | `profiles.ranked` | **`query`** (text), `limit` (100; 1000), `sort` (a or b; a) | page of profiles |\n";
        assert!(new.starts_with(rows), "{new}");
        let text = format!("a\n<!-- {BEGIN}endpoints -->\nold\n<!-- end -->\nb\n");
        assert_eq!(replaced(&text, "endpoints", &new), Some(text.replace("old", &new)));
        assert_eq!(replaced(&text, "events", &new), None);
    }
}
