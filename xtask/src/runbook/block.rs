use anyhow::{Context, Result, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use regex::Regex;

/// How the mark of a block that cannot run here begins.
const NOT_RUN_HERE: &str = "not run here: ";
/// The mark of a block that runs where there is a cluster.
pub(super) const ON_A_CLUSTER: &str = "on a cluster";
const WANTED: &str =
    "is neither sh, alone or with `on a cluster` or `not run here: <reason>`, nor text for what that prints";
/// Stands for any text within a line, and alone on a line for any number of lines.
const ANY: &str = "…";

pub(super) struct Block {
    /// Where it stands in its file, from 1.
    pub(super) line: usize,
    /// The heading above it.
    pub(super) section: String,
    /// Where it runs; empty for everywhere.
    pub(super) mark: String,
    pub(super) script: String,
    /// What it must print.
    pub(super) outcome: String,
}

pub(super) fn read(markdown: &str) -> Result<Vec<Block>> {
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
                    let mark = info.strip_prefix("sh").map(str::trim).filter(|mark| is_mark(mark));
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

fn is_mark(mark: &str) -> bool {
    mark.is_empty() || mark == ON_A_CLUSTER || mark.starts_with(NOT_RUN_HERE)
}

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
        assert_eq!((third.mark.as_str(), third.outcome.as_str()), (ON_A_CLUSTER, ""));
        assert_eq!((first.line, first.outcome.as_str(), first.mark.as_str()), (3, "a\n", ""));
        assert_eq!((first.script.as_str(), first.section.as_str()), ("echo a\n", "A"));
        assert_eq!((second.mark.as_str(), second.section.as_str()), ("not run here: no cluster", "B c"));
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
            ("a", "a\nb", false),
            ("", "a", false),
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
