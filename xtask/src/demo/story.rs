//! What the reader sees: chapters, requests, answers, and a check mark for each thing that was checked.

use std::fmt::{Debug, Display};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use serde_json::Value;

/// Headings, each with its text.
const TEXT: &str = include_str!("story.md");

/// Counts the chapters and the checks.
#[derive(Default)]
pub(super) struct Story {
    chapters: u32,
    pub(super) checks: u32,
}

impl Story {
    /// Prints the heading and the text of the next chapter.
    pub(super) fn chapter(&mut self, title: &str) -> Result<()> {
        self.chapters += 1;
        print!("\n{}. ", self.chapters);
        self.section(title)
    }

    /// Prints a heading of `story.md` and its text.
    pub(super) fn section(&self, title: &str) -> Result<()> {
        let mut sections = TEXT.split("\n## ").filter_map(|section| section.split_once("\n\n"));
        let (_, text) =
            sections.find(|(heading, _)| *heading == title).context("a chapter without a text")?;
        println!("{title}");
        show(text.trim_end());
        println!();
        Ok(())
    }

    /// Prints a check mark, or ends the story with what was expected and what came instead.
    pub(super) fn check<T: PartialEq + Debug>(&mut self, what: impl Display, came: T, due: T) -> Result<()> {
        ensure!(came == due, "✗ {what}\n  expected: {due:?}\n  came:     {came:?}");
        self.checks += 1;
        show(format!("✓ {what}"));
        Ok(())
    }
}

/// Prints text, indented.
pub(super) fn show(text: impl Display) {
    text.to_string().lines().for_each(|line| println!("   {line}"));
}

/// Prints some fields of an answer's items as a table.
pub(super) fn show_items(answer: &Value, fields: &[&str]) {
    let rows = items(answer).iter().map(|item| fields.iter().map(|field| plain(&item[*field])));
    show(Table::new().load_style(presets::UTF8_FULL_CONDENSED).set_header(fields).add_rows(rows));
}

/// Prints some fields of an answer as JSON, and dots for the others.
pub(super) fn show_fields(answer: &Value, fields: &[&str]) {
    let shown: Vec<String> = fields.iter().map(|field| format!("\"{field}\":{}", answer[*field])).collect();
    show(format!("{{{},…}}", shown.join(",")));
}

/// The items of a page.
pub(super) fn items(page: &Value) -> &[Value] {
    page["items"].as_array().map_or(&[], Vec::as_slice)
}

/// One field of each item of a page, separated by spaces.
pub(super) fn column(page: &Value, field: &str) -> String {
    items(page).iter().map(|item| plain(&item[field])).collect::<Vec<_>>().join(" ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
