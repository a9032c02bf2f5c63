//! Documents name what exists, and their tables are those that are made from what the worker says of itself.

mod names;
mod tables;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::description::{Description, text};
use crate::{cargo, observability};
use names::Names;

/// What `cargo xtask documentation` takes.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Write the tables anew.
    #[arg(long)]
    write: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    Ok(if check(arguments).await? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks every document and prints what is wrong; answers whether nothing is.
pub(crate) async fn check(arguments: &Arguments) -> Result<bool> {
    let root = cargo::root();
    let description = Description::of(&cargo::build_worker().await?)?;
    let mut problems = tables::renew(&root, &description, arguments.write)?;
    let alerts = observability::alerts(&root)?;
    for alert in &alerts {
        let runbook = text(alert, "/annotations/runbook");
        let missing = broken_link(&root, runbook, "");
        problems.extend(missing.map(|_| format!("{} has no runbook {runbook:?}", text(alert, "/alert"))));
    }
    let names = Names::new(&root, &description, &alerts)?;
    let documents =
        names::git(&root, &["ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"])?;
    let mut looked_up = 0;
    for document in documents.lines() {
        let path = root.join(document);
        let markdown = fs::read_to_string(&path).with_context(|| format!("cannot read {document}"))?;
        let (found, faults) = faults(&names, path.parent().unwrap_or(&root), &markdown);
        looked_up += found;
        problems.extend(faults.iter().map(|(line, fault)| format!("{document}:{line}: there is no {fault}")));
    }
    for problem in &problems {
        println!("{problem}");
    }
    let (documents, number) = (documents.lines().count(), problems.len());
    println!("{looked_up} names in {documents} documents are looked up; {number} problems");
    Ok(problems.is_empty())
}

/// How many names a document has, and those that do not exist, each with its line.
fn faults(names: &Names, directory: &Path, markdown: &str) -> (usize, Vec<(usize, String)>) {
    let (mut looked_up, mut faults) = (0, Vec::new());
    let (mut in_block, mut is_skipped) = (false, false);
    for (event, place) in Parser::new_ext(markdown, Options::ENABLE_TABLES).into_offset_iter() {
        let line = markdown.get(..place.start).unwrap_or_default().matches('\n').count() + 1;
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                in_block = true;
                // Rust is checked by its compiler; what programs print and what pictures say is not looked up.
                is_skipped = ["rust", "text", "mermaid"].iter().any(|language| info.starts_with(language));
            }
            Event::End(TagEnd::CodeBlock) => (in_block, is_skipped) = (false, false),
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                looked_up += 1;
                let fault = broken_link(directory, &dest_url, markdown);
                faults.extend(fault.map(|missing| (line, format!("{missing} {dest_url}"))));
            }
            Event::Text(ref content) | Event::Code(ref content) if !is_skipped => {
                let is_code = in_block || matches!(event, Event::Code(_));
                let lines = content.lines().zip(line..);
                for (kind, pattern) in names.kinds.iter().filter(|(kind, _)| is_code || *kind == names::ALERT)
                {
                    let found = lines.clone().flat_map(|(text, line)| {
                        pattern
                            .captures_iter(text)
                            .filter_map(move |found| Some((line, found.get(1)?.as_str())))
                    });
                    for (line, name) in found {
                        looked_up += 1;
                        if !names.has(kind, name) {
                            faults.push((line, format!("{kind} {name}")));
                        }
                    }
                }
            }
            _ => {}
        }
    }
    (looked_up, faults)
}

/// What a link within the repository misses, if anything. `markdown` is the document that it stands in.
fn broken_link(directory: &Path, to: &str, markdown: &str) -> Option<&'static str> {
    let (path, section) = to.split_once('#').unwrap_or((to, ""));
    let target = directory.join(path);
    if to.contains("://") || to.starts_with("mailto:") {
        None
    } else if !target.exists() {
        Some("path")
    } else if section.is_empty() {
        None
    } else if path.is_empty() {
        (!has_section(markdown, section)).then_some("section")
    } else {
        (!fs::read_to_string(target).is_ok_and(|other| has_section(&other, section))).then_some("section")
    }
}

/// Whether a document has the section that a link names as GitHub does.
fn has_section(markdown: &str, section: &str) -> bool {
    let events = Parser::new(markdown).into_offset_iter();
    let headings = events.filter(|(event, _)| matches!(event, Event::Start(Tag::Heading { .. })));
    headings.filter_map(|(_, place)| markdown.get(place)).any(|heading| {
        let title = heading.trim_matches(['#', ' ', '\n']).to_lowercase().replace(' ', "-");
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
        kept.eq(section.chars())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_planted_fault_is_found_and_nothing_else() {
        let root = cargo::root();
        let names =
            Names::new(&root, &Description::for_tests(), &observability::alerts(&root).unwrap()).unwrap();
        let planted = include_str!("documentation/planted.markdown");
        let expected = planted.lines().zip(1..).filter_map(|(line, number)| {
            let (_, comment) = line.rsplit_once("<!-- ")?;
            Some((number, comment.trim_end_matches(" -->").to_owned()))
        });
        let found: BTreeSet<(usize, String)> = faults(&names, &root, planted).1.into_iter().collect();
        assert_eq!(found, expected.collect());
    }
}
