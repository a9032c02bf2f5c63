//! The runbooks, run: every command of theirs in order against real servers, its stated outcome checked. A block `sh` is
//! run; the block `text` after it is what it must print, in which `…` within a line stands for any text and `…` alone on a
//! line for any number of lines. A block without one must print nothing. Every block must succeed. `sh on a cluster` marks
//! one that runs where there is a cluster, `sh not run here: <reason>` one that cannot run beside private servers.

mod setting;

use std::collections::BTreeMap;
use std::env;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_domain::GuildId;
use muster_messaging::api::{Caller, ErrorCode, profiles};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::{Connection, NatsConfig};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use regex::Regex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;
use xtask::tool::{output, packaged, postgres_server};

use crate::demo::{self, GUILD, Member};
use crate::verdict::Verdict;
use crate::{cargo, observability};
pub(crate) use setting::Setting;
use setting::Shell;

const NOT_RUN_HERE: &str = "not run here: ";
/// The mark of a block that runs where there is a cluster.
const ON_A_CLUSTER: &str = "on a cluster";
const WANTED: &str =
    "is neither sh, alone or with `on a cluster` or `not run here: <reason>`, nor text for what that prints";
/// Stands for any text within a line, and alone on a line for any number of lines.
const ANY: &str = "…";
/// The runbooks, in the order in which they are run.
const RUNBOOKS: [&str; 3] = ["docs/runbooks/operations.md", "docs/runbooks/credential-rotation.md", ALONE];
/// The one for a stranger: it starts a demonstration, and knows nothing of what the others set.
const ALONE: &str = "docs/runbooks/findings.md";
/// During this one no request may fail.
const WITHOUT_DOWNTIME: &str = "docs/runbooks/credential-rotation.md";
/// What the commands use besides GNU's tools and what is started here.
const TOOLS: [&str; 7] = ["bash", "curl", "kubectl", "openssl", "pg_dump", "pg_restore", "psql"];
const PATIENCE: Duration = Duration::from_secs(150);
const MEMBERS: u32 = 300;
/// Between two questions: well below what a community may ask, since the runbooks ask as well.
const PAUSE: Duration = Duration::from_millis(40);
const RETRY: Duration = Duration::from_millis(200);
/// Over how long the dashboard's rates are taken: the whole run.
const RATE_INTERVAL: &str = "600s";

/// Runs every block of every runbook, with `cluster` also those that need one.
pub(crate) async fn check(cluster: bool) -> Result<Verdict> {
    if let Some(missing) = missing(cluster)? {
        println!("NOT RUN: the runbooks' commands need {missing}, not on this machine");
        return Ok(Verdict::NotRun);
    }
    let prometheus = packaged("prometheus", "prometheus").inspect_err(|error| println!("NOT RUN: {error:#}"));
    let Ok(prometheus) = prometheus else { return Ok(Verdict::NotRun) };
    let setting = Setting::new(&cargo::build_worker().await?, 1, Some(&prometheus))?;
    let mut shell = setting.shell()?;
    let mut stranger = Shell::start(&BTreeMap::new(), &setting.services.directory.path().join("blocks"))?;
    let load = Load::start(&setting)?;
    let (mut ran, mut left_out) = (0, 0);
    for path in RUNBOOKS {
        let shell = if path == ALONE { &mut stranger } else { &mut shell };
        for block in read(&cargo::read(path)?).context(path)? {
            let place = format!("{path}:{} {}", block.line, block.section);
            if !(block.mark.is_empty() || cluster && block.mark == ON_A_CLUSTER) {
                println!("not run: {place}: {}", block.mark);
                left_out += 1;
                continue;
            }
            let ended = shell.run(&block.script, PATIENCE).await;
            let ended = ended.and_then(|printed| compare(&block.outcome, &printed));
            ended.with_context(|| format!("{place}:\n{}", block.script))?;
            ran += 1;
        }
        let answered = load.answered_without_failure();
        if path == WITHOUT_DOWNTIME {
            let answered = answered.with_context(|| format!("during {path}"))?;
            println!("{answered} requests were made and answered during {path}");
        }
    }
    let queries = every_panel_shows_something(&setting)?;
    println!("{ran} blocks ran, {left_out} did not; {queries} queries of the dashboard have an answer");
    Ok(Verdict::Passed)
}

/// What the commands need and this machine lacks.
fn missing(cluster: bool) -> Result<Option<String>> {
    // A server that came as a wheel has not all of PostgreSQL's programs beside it.
    let server = postgres_server()?;
    let is_missing = |tool: &&str| which::which(tool).is_err() && !server.bin().join(tool).is_file();
    let mut missing: Vec<&str> = TOOLS.into_iter().filter(is_missing).collect();
    if cluster && env::var_os("KUBECONFIG").is_none_or(|file| file.is_empty()) {
        missing.push("a cluster that KUBECONFIG names");
    }
    Ok((!missing.is_empty()).then(|| missing.join(", ")))
}

struct Block {
    line: usize,
    /// The heading above it.
    section: String,
    /// Where it runs; empty for everywhere.
    mark: String,
    script: String,
    /// What it must print.
    outcome: String,
}

fn read(markdown: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut section, mut text, mut info) = (String::new(), String::new(), String::new());
    for (event, place) in Parser::new(markdown).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { .. }) => text.clear(),
            Event::Start(Tag::CodeBlock(kind)) => {
                text.clear();
                info = if let CodeBlockKind::Fenced(info) = kind { info.to_string() } else { String::new() };
            }
            Event::Text(part) | Event::Code(part) => text.push_str(&part),
            Event::End(TagEnd::Heading(_)) => section.clone_from(&text),
            Event::End(TagEnd::CodeBlock) => {
                let line = markdown.get(..place.start).unwrap_or_default().matches('\n').count() + 1;
                if info == "text" {
                    let block = blocks.last_mut().filter(|block| block.outcome.is_empty());
                    let block = block.with_context(|| format!("line {line}: this follows no commands"))?;
                    block.outcome.clone_from(&text);
                } else {
                    let mark = info.strip_prefix("sh").map(str::trim).filter(|mark| {
                        mark.is_empty() || *mark == ON_A_CLUSTER || mark.starts_with(NOT_RUN_HERE)
                    });
                    let mark = mark.with_context(|| format!("line {line}: {info:?} {WANTED}"))?.to_owned();
                    let (section, script) = (section.clone(), text.clone());
                    blocks.push(Block { line, section, mark, script, outcome: String::new() });
                }
            }
            _ => {}
        }
    }
    Ok(blocks)
}

fn compare(stated: &str, printed: &str) -> Result<()> {
    let line = |line: &str| match line.trim() {
        ANY => "(?:.*\n)*".to_owned(),
        _ => regex::escape(line.trim_end()).replace(ANY, ".*") + "\n",
    };
    let pattern: String = stated.trim_end().lines().map(line).collect();
    let lines: String = printed.trim_end().lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let holds = Regex::new(&format!("^{pattern}$"))?.is_match(&lines);
    ensure!(holds, "stated:\n{}\nprinted:\n{}", stated.trim_end(), printed.trim_end());
    Ok(())
}

/// The commands of one section of a runbook that are run here.
pub(crate) fn section(runbook: &str, title: &str) -> Result<Vec<String>> {
    let of_it = read(runbook)?.into_iter().filter(|block| block.section == title && block.mark.is_empty());
    let scripts: Vec<String> = of_it.map(|block| block.script).collect();
    ensure!(!scripts.is_empty(), "the runbook has no commands in a section {title:?}");
    Ok(scripts)
}

/// A sibling service at work while the runbooks are run: it asks, and events come in. Ended when dropped.
struct Load {
    /// Whether each request was answered, else why not. Those that met a rate limit are left out.
    outcomes: Receiver<Result<(), String>>,
    _task: JoinSet<()>,
}

impl Load {
    fn start(setting: &Setting) -> Result<Self> {
        let services = &setting.services;
        let sibling = services.nats_config(&services.clients.operator, "sibling")?;
        let gateway = services.nats_config(&services.clients.gateway, "gateway")?;
        let (sender, outcomes) = channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = work(sibling, gateway, &sender).await {
                sender.send(Err(format!("{error:#}"))).ok();
            }
        });
        Ok(Self { outcomes, _task: task })
    }

    /// How many requests were answered since this was asked last; none may have failed.
    fn answered_without_failure(&self) -> Result<usize> {
        let (answered, failures): (Vec<_>, Vec<_>) = self.outcomes.try_iter().partition(Result::is_ok);
        ensure!(failures.is_empty(), "{} requests failed, and none should: {failures:?}", failures.len());
        ensure!(!answered.is_empty(), "no request was made, which proves nothing");
        Ok(answered.len())
    }
}

async fn work(sibling: NatsConfig, gateway: NatsConfig, said: &Sender<Result<(), String>>) -> Result<()> {
    let client = Client::new(Connection::open(sibling).await?);
    let publisher = EventPublisher::new(&Connection::open(gateway).await?);
    let members = demo::members(MEMBERS);
    let mut events = demo::founding(&members);
    let badge = |of: &Member| demo::event("badge.award", Some(&of.user_id), json!({"kind": "water-bearer"}));
    events.extend(members.iter().map(badge));
    // The worker makes the stream when it is started for the first time.
    while demo::publish(&publisher, events.clone()).await.is_err() {
        sleep(RETRY).await;
    }
    let community = loop {
        match client.find_community(GuildId::parse(GUILD)?).await {
            Ok(found) => break found.community_id,
            Err(_) => sleep(RETRY).await,
        }
    };
    let asking = client.on_behalf_of(Caller::parse("stilgar")?).community(community);
    for (round, member) in members.iter().cycle().enumerate() {
        match asking.ask(&profiles::Ranked::first(100)).await {
            Ok(_) => said.send(Ok(()))?,
            Err(error) if error.code() == Some(ErrorCode::RateLimited) => {}
            Err(error) => said.send(Err(error.to_string()))?,
        }
        if round % 5 == 0 {
            let active = demo::event("activity.add", Some(&member.user_id), json!({"amount": 1}));
            demo::publish(&publisher, vec![active]).await.ok();
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Every query of the dashboard has an answer, after a run that made use of everything.
fn every_panel_shows_something(setting: &Setting) -> Result<usize> {
    let promtool = packaged("prometheus", "promtool")?;
    let queries = observability::panel_queries(RATE_INTERVAL)?;
    for (panel, query) in &queries {
        let mut command = Command::new(&promtool);
        command.args(["query", "instant", &setting.prometheus, query]);
        let answer = output(&mut command).context(panel.clone())?;
        ensure!(!answer.trim().is_empty(), "{panel}: {query} has no answer");
    }
    ensure!(!queries.is_empty(), "the dashboard has no queries");
    Ok(queries.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_outcomes_and_marks_are_read() {
        let text = "# A\n\n```sh\necho a\n```\n\n```text\na\n```\n\n## B `c`\n\nAs `d`:\n\n\
                    ```sh not run here: no cluster\nkubectl\n```\n\n```sh on a cluster\nkubectl\n```\n";
        let blocks = read(text).unwrap();
        let [first, second, third] = &blocks[..] else { panic!("three blocks") };
        assert_eq!((third.mark.as_str(), third.outcome.as_str()), (ON_A_CLUSTER, ""));
        assert_eq!((first.line, first.outcome.as_str(), first.mark.as_str()), (3, "a\n", ""));
        assert_eq!((first.script.as_str(), first.section.as_str()), ("echo a\n", "A"));
        assert_eq!((second.mark.as_str(), second.section.as_str()), ("not run here: no cluster", "B c"));
    }

    #[test]
    fn a_block_that_would_not_be_run_is_an_error() {
        for text in include_str!("runbook/refused.markdown").split("\n====\n") {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_text_in_its_line_or_for_lines() {
        let cases: Vec<(String, String, bool)> =
            serde_json::from_str(include_str!("runbook/compared.json")).unwrap();
        for (stated, printed, holds) in cases {
            assert_eq!(compare(&stated, &printed).is_ok(), holds, "{stated:?} and {printed:?}");
        }
    }
}
