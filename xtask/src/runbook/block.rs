use anyhow::{Result, bail, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use regex::Regex;

/// How the mark of a block that cannot run here begins.
const MARK: &str = "not run here: ";
/// The mark of a block that runs where there is a cluster.
const ON_A_CLUSTER: &str = "on a cluster";
/// Stands for any text within a line, and alone on a line for any number of lines.
const ANY: &str = "…";

/// One block of commands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where it stands in its file, from 1.
    pub(super) line: usize,
    /// The heading above it.
    pub(super) section: String,
    pub(super) kind: Kind,
    pub(super) script: String,
    /// What it must print; `None` for nothing.
    pub(super) outcome: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Run,
    /// Against the cluster of `KUBECONFIG`.
    OnACluster,
    /// With the reason.
    NotRunHere(String),
}

/// Reads the blocks of a runbook.
pub(super) fn read(markdown: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut section, mut text, mut info) = (String::new(), String::new(), String::new());
    for (event, place) in Parser::new(markdown).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { .. }) => text.clear(),
            Event::Start(Tag::CodeBlock(kind)) => {
                text.clear();
                info = match kind {
                    CodeBlockKind::Fenced(info) => info.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
            }
            Event::Text(part) | Event::Code(part) => text.push_str(&part),
            Event::End(TagEnd::Heading(_)) => section = text.clone(),
            Event::End(TagEnd::CodeBlock) => {
                let before = markdown.get(..place.start).unwrap_or_default();
                take(&mut blocks, &info, before.matches('\n').count() + 1, &section, text.clone())?;
            }
            _ => {}
        }
    }
    Ok(blocks)
}

fn take(blocks: &mut Vec<Block>, info: &str, line: usize, section: &str, content: String) -> Result<()> {
    let (language, rest) = info.split_once(' ').unwrap_or((info, ""));
    match language {
        "sh" => {
            let kind = match rest.strip_prefix(MARK).map(str::trim) {
                Some(reason) if !reason.is_empty() => Kind::NotRunHere(reason.to_owned()),
                None if rest.is_empty() => Kind::Run,
                None if rest == ON_A_CLUSTER => Kind::OnACluster,
                _ => bail!("line {line}: after sh, write nothing, `{ON_A_CLUSTER}`, or `{MARK}<reason>`"),
            };
            let section = section.to_owned();
            blocks.push(Block { line, section, kind, script: content, outcome: None });
        }
        "text" => {
            let Some(block) = blocks.last_mut() else {
                bail!("line {line}: a block of text without a block of commands before it")
            };
            ensure!(block.outcome.is_none(), "line {line}: a second outcome for line {}", block.line);
            block.outcome = Some(content);
        }
        _ => bail!("line {line}: a block {language:?} is not run: write sh for commands, text for outcomes"),
    }
    Ok(())
}

/// Whether what was printed is what was stated.
pub(super) fn compare(stated: &str, printed: &str) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_outcomes_and_marks_are_read() {
        let text = "# A\n\n```sh\necho a\n```\n\n```text\na\n```\n\n## B `c`\n\nAs `d`:\n\n\
                    ```sh not run here: no cluster\nkubectl\n```\n\n```sh on a cluster\nkubectl\n```\n";
        let blocks = read(text).unwrap();
        let [first, second, third] = &blocks[..] else { panic!("three blocks") };
        assert_eq!((&third.kind, third.outcome.as_deref()), (&Kind::OnACluster, None));
        assert_eq!((first.line, first.outcome.as_deref(), &first.kind), (3, Some("a\n"), &Kind::Run));
        assert_eq!((first.script.as_str(), first.section.as_str()), ("echo a\n", "A"));
        assert_eq!(second.kind, Kind::NotRunHere("no cluster".to_owned()));
        assert_eq!(second.section, "B c");
    }

    #[test]
    fn a_block_that_would_not_be_run_is_an_error() {
        for text in [
            "```bash\ntrue\n```\n",
            "```\ntrue\n```\n",
            "    true\n",
            "```text\na\n```\n",
            "```sh not run here:\ntrue\n```\n",
            "```sh ignore\ntrue\n```\n",
            "```sh on a cluster: no\ntrue\n```\n",
            "```sh\ntrue\n```\n\n```text\na\n```\n\n```text\nb\n```\n",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_text_in_its_line_or_for_lines() {
        for (stated, printed, holds) in [
            ("a\nb\n", "a\nb", true),
            ("a\nb", "a\nc", false),
            ("a", "a\nb", false),
            ("", "", true),
            ("", "a", false),
            ("took … ms (1)", "took 12 ms (1)", true),
            ("took … ms", "took 12 s", false),
            ("a … b … c", "a 1 b 2 c", true),
            ("a … b … c", "a 1 c 2 b", false),
            ("a … b", "a\nb", false),
            ("…\nlast", "one\ntwo\nlast", true),
            ("…\nlast", "last\nmore", false),
            ("first\n…", "first", true),
            ("…a", "ab", false),
        ] {
            assert_eq!(compare(stated, printed).is_ok(), holds, "{stated:?} and {printed:?}");
        }
    }
}
