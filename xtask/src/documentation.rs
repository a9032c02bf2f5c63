//! What the documents name is there: metrics, alerts, configuration keys, subjects, commands with their options, paths,
//! sections, functions and tests. Looked at is what stands in code, in links and, for alerts, anywhere.

pub(crate) mod facts;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use regex::Regex;

use crate::cargo;
use facts::{Facts, knows_endpoint, knows_event};

/// Crates and roles of PostgreSQL, which are named as metrics are.
const NO_METRICS: [&str; 6] = [
    "muster_domain",
    "muster_messaging",
    "muster_migrate",
    "muster_owner",
    "muster_storage",
    "muster_worker",
];

/// Something that a document names and that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fault {
    line: usize,
    kind: FaultKind,
    named: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum FaultKind {
    Metric,
    Alert,
    Key,
    Subject,
    Command,
    Path,
    Section,
    Function,
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metric => "metric",
            Self::Alert => "alert",
            Self::Key => "configuration key",
            Self::Subject => "subject",
            Self::Command => "command or option",
            Self::Path => "path",
            Self::Section => "section",
            Self::Function => "function or test",
        })
    }
}

pub(crate) async fn run() -> Result<ExitCode> {
    Ok(if check().await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks every document and prints what is wrong; answers whether nothing is.
pub(crate) async fn check() -> Result<bool> {
    let root = cargo::root();
    let facts = Facts::read(&root, &cargo::build_worker().await?)?;
    let documents = documents(&root)?;
    let mut faults = 0_usize;
    let mut checked = 0_usize;
    for path in &documents {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let shown = path.strip_prefix(&root).unwrap_or(path).display();
        let found = Document {
            facts: &facts,
            directory: path.parent().unwrap_or(&root),
            checked: 0,
            faults: Vec::new(),
        }
        .check(&text);
        checked += found.1;
        for Fault { line, kind, named } in found.0 {
            println!("{shown}:{line}: there is no {kind} {named}");
            faults += 1;
        }
    }
    println!("{checked} names in {} documents are looked up, {faults} are not there", documents.len());
    Ok(faults == 0)
}

/// README, changelog, docs and the READMEs below infra.
fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    let mut directories = vec![root.join("docs"), root.join("infra")];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The sections of a document, as links name them.
pub(crate) fn headings(markdown: &str) -> Vec<String> {
    let (mut found, mut open): (Vec<String>, Option<String>) = (Vec::new(), None);
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Heading { .. }) => open = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(title) = &mut open {
                    title.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => found.extend(open.take().map(|title| anchor(&title))),
            _ => {}
        }
    }
    found
}

/// A heading as GitHub makes an anchor of it.
fn anchor(title: &str) -> String {
    let lower = title.to_lowercase();
    let kept = lower.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

// Fixed patterns; the tests use each.
macro_rules! pattern {
    ($name:ident, $text:literal) => {
        static $name: LazyLock<Regex> = LazyLock::new(|| Regex::new($text).unwrap());
    };
}

pattern!(METRIC, r"(?:^|[^A-Za-z0-9_$/.-])((?:muster|process)_[a-z0-9_]*[a-z0-9])");
pattern!(ALERT, r"\bMuster[A-Z][A-Za-z]+\b");
pattern!(VARIABLE, r"MUSTER__[A-Z0-9_]*[A-Z0-9]");
pattern!(KEY, r"^([a-z]+)\.([a-z_]+)(?: = .*)?$");
pattern!(SERVICE_SUBJECT, r"muster\.v1\.([^\s'`,;)]+)");
pattern!(EVENT_SUBJECT, r"(?:^|[\s'`])events\.([a-z]+\.[a-z_.]+)");
pattern!(DEAD_SUBJECT, r"(?:^|[\s'`])(dead\.[a-z]+)");
pattern!(ENDPOINT, r"^(?:profiles|badges|tiers|directory|community|communities|admin)\.[a-z.*>]+$");
pattern!(FUNCTION, r"^(?:[a-z_]+::)*([a-z0-9]+(?:_[a-z0-9]+){3,})$");
pattern!(COMMAND, r"(?:^|[\s(;&|`])(muster-worker|cargo xtask)((?:[ ]+[^\s;&|)`]+)*)");
pattern!(
    REPOSITORY_PATH,
    r"(?:^|[\s=`(])((?:crates|docs|infra|xtask|\.github)/[A-Za-z0-9_./-]*[A-Za-z0-9_-])"
);

struct Document<'a> {
    facts: &'a Facts,
    directory: &'a Path,
    checked: usize,
    faults: Vec<Fault>,
}

impl Document<'_> {
    /// Answers what is wrong, and how many names were looked up.
    fn check(mut self, markdown: &str) -> (Vec<Fault>, usize) {
        let line_of = |offset: usize| markdown.get(..offset).unwrap_or_default().matches('\n').count() + 1;
        let own: BTreeSet<String> = headings(markdown).into_iter().collect();
        let mut block: Option<bool> = None;
        for (event, place) in Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter() {
            let line = line_of(place.start);
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    // Rust is checked by its compiler; what programs print and what pictures say is not looked up.
                    let skipped = ["rust", "text", "mermaid"].iter().any(|it| info.starts_with(it));
                    block = Some(!skipped);
                }
                Event::End(TagEnd::CodeBlock) => block = None,
                Event::Text(text) => match block {
                    Some(true) => {
                        for (number, content) in text.lines().enumerate() {
                            self.code(line + number, content);
                        }
                    }
                    Some(false) => {}
                    None => self.alerts(line, &text),
                },
                Event::Code(code) => {
                    self.whole(line, &code);
                    self.code(line, &code);
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    self.link(line, &dest_url, &own);
                }
                _ => {}
            }
        }
        (self.faults, self.checked)
    }

    fn see(&mut self, there: bool, line: usize, kind: FaultKind, named: &str) {
        self.checked += 1;
        if !there {
            self.faults.push(Fault { line, kind, named: named.to_owned() });
        }
    }

    /// What only an inline piece of code as a whole can be.
    fn whole(&mut self, line: usize, code: &str) {
        for name in captured(&FUNCTION, code).filter(|name| !METRIC.is_match(name)) {
            self.see(self.facts.functions.contains(&name), line, FaultKind::Function, &name);
        }
        if ENDPOINT.is_match(code) {
            self.see(knows_endpoint(code), line, FaultKind::Subject, code);
        } else if let Some(found) = KEY.captures(code)
            && let (Some(section), Some(key)) = (found.get(1), found.get(2))
            && self.facts.knows_section(section.as_str())
        {
            let named = format!("{}.{}", section.as_str(), key.as_str());
            let there = self.facts.knows_key(&named) || self.is_file(&named);
            self.see(there, line, FaultKind::Key, &named);
        }
    }

    fn is_file(&self, name: &str) -> bool {
        self.directory.join(name).exists() || self.facts.root.join(name).exists()
    }

    fn alerts(&mut self, line: usize, text: &str) {
        for found in ALERT.find_iter(text) {
            let there = self.facts.alerts.contains(found.as_str());
            self.see(there, line, FaultKind::Alert, found.as_str());
        }
    }

    fn code(&mut self, line: usize, code: &str) {
        self.alerts(line, code);
        for name in captured(&METRIC, code)
            .filter(|name| !NO_METRICS.contains(&name.as_str()) && !name.contains("__"))
        {
            self.see(self.facts.knows_metric(&name), line, FaultKind::Metric, &name);
        }
        for found in VARIABLE.find_iter(code) {
            let there = self.facts.variables.contains(found.as_str());
            self.see(there, line, FaultKind::Key, found.as_str());
        }
        for rest in captured(&SERVICE_SUBJECT, code) {
            let rest = rest.trim_end_matches(['"', '.', '\\', '|']);
            // The community, by a placeholder, a wildcard, a variable or its id; or an endpoint of none.
            let known = |endpoint: &str| knows_endpoint(endpoint) || endpoint.starts_with('$');
            let within = rest.split_once('.').is_some_and(|(_, endpoint)| known(endpoint));
            let there = rest == ">" || rest.ends_with(".<endpoint>") || knows_endpoint(rest) || within;
            self.see(there, line, FaultKind::Subject, &format!("muster.v1.{rest}"));
        }
        for event_type in captured(&EVENT_SUBJECT, code) {
            self.see(knows_event(&event_type), line, FaultKind::Subject, &format!("events.{event_type}"));
        }
        for subject in captured(&DEAD_SUBJECT, code) {
            let there = subject == muster_messaging::events::stream::DEAD_SUBJECT;
            self.see(there, line, FaultKind::Subject, &subject);
        }
        for found in COMMAND.captures_iter(code) {
            let part = |number| found.get(number).map_or("", |part: regex::Match<'_>| part.as_str());
            self.command(line, part(1), part(2));
        }
        for path in captured(&REPOSITORY_PATH, code) {
            let there = self.facts.root.join(&path).exists();
            self.see(there, line, FaultKind::Path, &path);
        }
    }

    /// Goes down from the program through its commands, and then looks for the options.
    fn command(&mut self, line: usize, program: &str, words: &str) {
        let mut name = program.to_owned();
        let mut is_deepest = false;
        for word in words.split_whitespace() {
            let word = word.trim_matches(['"', '\'', ',', '.', ':']);
            if word == "--" || word.starts_with('>') || word.starts_with('#') || word == "\\" {
                break;
            }
            if let Some(option) = word.starts_with("--").then(|| word.split('=').next().unwrap_or(word)) {
                let there = self.facts.commands.get(&name).is_some_and(|options| options.contains(option));
                self.see(there, line, FaultKind::Command, &format!("{name} {option}"));
                continue;
            }
            if is_deepest {
                continue;
            }
            let deeper = format!("{name} {word}");
            let start = format!("{name} ");
            let has_commands = self.facts.commands.keys().any(|command| command.starts_with(&start));
            let is_word = word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
            if !has_commands || !is_word {
                is_deepest = true;
            } else {
                self.see(self.facts.commands.contains_key(&deeper), line, FaultKind::Command, &deeper);
                name = deeper;
            }
        }
    }

    fn link(&mut self, line: usize, to: &str, own: &BTreeSet<String>) {
        if to.contains("://") || to.starts_with("mailto:") {
            return;
        }
        let (path, section) = to.split_once('#').map_or((to, None), |(path, section)| (path, Some(section)));
        let target = self.directory.join(path);
        if !path.is_empty() {
            self.see(target.exists(), line, FaultKind::Path, path);
        }
        let Some(section) = section else { return };
        let there = if path.is_empty() {
            own.contains(section)
        } else {
            fs::read_to_string(target).is_ok_and(|text| headings(&text).iter().any(|it| it == section))
        };
        self.see(there, line, FaultKind::Section, to);
    }
}

fn captured<'a>(pattern: &'a Regex, text: &'a str) -> impl Iterator<Item = String> + 'a {
    pattern.captures_iter(text).filter_map(|found| Some(found.get(1)?.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(markdown: &str) -> Vec<(FaultKind, String)> {
        let root = cargo::root();
        let facts = Facts::of_this_test(&root);
        let document = Document { facts: &facts, directory: &root, checked: 0, faults: Vec::new() };
        document.check(markdown).0.into_iter().map(|fault| (fault.kind, fault.named)).collect()
    }

    #[test]
    fn a_planted_fault_of_each_kind_is_found() {
        for (markdown, kind, named) in [
            ("see `muster_redy`", FaultKind::Metric, "muster_redy"),
            ("```sh\ncurl | grep ^muster_requests_totals\n```", FaultKind::Metric, "muster_requests_totals"),
            (
                "`muster_request_duration_seconds_sum`, `muster_requests_total_bucket`",
                FaultKind::Metric,
                "muster_requests_total_bucket",
            ),
            ("When MusterNoWorkers fires", FaultKind::Alert, "MusterNoWorkers"),
            ("`MUSTER__NATS__URL`", FaultKind::Key, "MUSTER__NATS__URL"),
            ("set `nats.url`", FaultKind::Key, "nats.url"),
            ("set `events.bach = 5`", FaultKind::Key, "events.bach"),
            (
                "`muster.v1.<community>.profiles.rank`",
                FaultKind::Subject,
                "muster.v1.<community>.profiles.rank",
            ),
            ("`muster.v1.*.admins.>`", FaultKind::Subject, "muster.v1.*.admins.>"),
            ("`admin.ratelimit.clean`", FaultKind::Subject, "admin.ratelimit.clean"),
            ("publish `events.member.joined`", FaultKind::Subject, "events.member.joined"),
            ("`dead.letters`", FaultKind::Subject, "dead.letters"),
            ("run `muster-worker migrat`", FaultKind::Command, "muster-worker migrat"),
            ("```sh\nmuster-worker check --al | grep x\n```", FaultKind::Command, "muster-worker check --al"),
            ("`cargo xtask demos`", FaultKind::Command, "cargo xtask demos"),
            ("`cargo xtask demo --keeps`", FaultKind::Command, "cargo xtask demo --keeps"),
            ("`infra/nats/nat.conf`", FaultKind::Path, "infra/nats/nat.conf"),
            ("[a](docs/apis.md)", FaultKind::Path, "docs/apis.md"),
            ("[a](docs/architecture.md#invariant)", FaultKind::Section, "docs/architecture.md#invariant"),
            ("# A\n\n[a](#b)", FaultKind::Section, "#b"),
            (
                "seen by `no_call_reads_more_than_it_asks`",
                FaultKind::Function,
                "no_call_reads_more_than_it_asks",
            ),
        ] {
            assert_eq!(faults(markdown), [(kind, named.to_owned())], "{markdown}");
        }
    }

    #[test]
    fn what_is_there_is_no_fault() {
        for markdown in [
            "`muster_ready`, `muster_request_duration_seconds_bucket`, `muster_domain::Limit`, MusterNoWorker",
            "`MUSTER__NATS__URLS`, `nats.urls`, `events.batch = 7`",
            "`muster.v1.>`, `muster.v1.*.admin.>`, `muster.v1.communities.find`, `muster.v1.$community.admin.ratelimit.clear`",
            "`profiles.ranked`, `events.>`, `events.member.join`, `dead.events`",
            "`muster-worker`, `muster-worker check`, `muster-worker --config a.toml check`, `muster-worker check; true`",
            "`cargo xtask demo --keep`, `cargo xtask test -- -p x --test y`",
            "`infra/nats/nats.conf`, [a](docs/architecture.md#invariants), # A\n\n[b](#a)\n\n## A",
            "`a_planted_fault_of_each_kind_is_found`, `retry_after_ms`",
            "```text\nmuster_nonsense\n```\n\n```rust\nmuster_nonsense::x();\n```",
        ] {
            assert_eq!(faults(markdown), [], "{markdown}");
        }
    }

    #[test]
    fn anchors_are_as_github_makes_them() {
        assert_eq!(headings("## 7.4 Slow or `failing` answers\n"), ["74-slow-or-failing-answers"]);
    }
}
