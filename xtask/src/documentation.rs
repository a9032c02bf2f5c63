//! Documents name what exists, and their tables are those that are made from what the worker says of itself.

mod names;
mod tables;

use std::fs;
use std::path::Path;

use crate::verdict::Verdict;
use anyhow::Result;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::description::{describe, text};
use crate::{cargo, observability};
use names::Names;

const FILES: [&str; 4] = ["ls-files", "--cached", "--others", "--exclude-standard"];

/// Checks every document and prints what is wrong. With `write`, the tables are written anew first.
pub(crate) async fn check(write: bool) -> Result<Verdict> {
    let description = describe(&cargo::build_worker().await?)?;
    let mut problems = tables::renew(&description, write)?;
    let alerts = observability::alerts()?;
    let readme = cargo::root().join("README.md");
    for alert in alerts.iter().filter(|alert| !exists(&readme, text(alert, "/annotations/runbook"))) {
        problems.push(format!("{} names no section of a runbook", text(alert, "/alert")));
    }
    let files = names::git(&FILES)?;
    let names = Names::new(&description, &alerts, &files)?;
    let documents: Vec<&str> = files.lines().filter(|file| file.ends_with(".md")).collect();
    for document in &documents {
        let faults = faults(&names, document)?;
        problems.extend(faults.iter().map(|(line, fault)| format!("{document}:{line}: there is no {fault}")));
    }
    for problem in &problems {
        println!("{problem}");
    }
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
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. })
                if !exists(&path, &dest_url) =>
            {
                faults.push((line, format!("path or section {dest_url}")));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::description::for_tests;

    const PLANTED: &str = "xtask/src/documentation/planted.markdown";

    #[test]
    fn every_planted_fault_is_found_and_nothing_else() {
        let (alerts, files) = (observability::alerts().unwrap(), names::git(&FILES).unwrap());
        let names = Names::new(&for_tests(), &alerts, &files).unwrap();
        let found = faults(&names, PLANTED).unwrap();
        let text = cargo::read(PLANTED).unwrap();
        let expected = text.lines().zip(1..).filter_map(|(line, number)| {
            let (_, comment) = line.rsplit_once("<!-- ")?;
            Some((number, comment.trim_end_matches(" -->").to_owned()))
        });
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected.collect());
    }
}
