//! The parts of files that are generated. Each stands between two comments, of which the first names it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::description::Description;
use crate::observability::{RULES, read};

/// The tables: the part of the description, the file, and the columns, which are fields of the entries.
const TABLES: [(&str, &str, &[&str]); 4] = [
    ("keys", "docs/configuration.md", &["key", "variable", "form", "default"]),
    ("metrics", "docs/metrics.md", &["name", "kind", "unit", "labels", "help"]),
    ("errors", "docs/api.md", &["code", "number", "when"]),
    ("events", "docs/api.md", &["type", "data", "effect"]),
];
/// The alerts for the Prometheus operator.
const OPERATOR: &str = "infra/k8s/monitoring/rules.yaml";
const BEGIN: &str = "made by cargo xtask documentation --write: ";

/// Answers which parts are stale, or writes them.
pub(super) fn renew(root: &Path, description: &Description, write: bool) -> Result<Vec<String>> {
    let tables = TABLES.map(|(part, file, columns)| (part, file, table(description.entries(part), columns)));
    let groups = read(root, RULES)?;
    let groups = groups.lines().skip_while(|line| !line.starts_with("groups:"));
    let groups = groups.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
    let mut stale = Vec::new();
    for (part, file, content) in tables.into_iter().chain([("alerts", OPERATOR, groups)]) {
        let text = read(root, file)?;
        let renewed =
            replaced(&text, part, &content).with_context(|| format!("{file} has no part {part}"))?;
        if renewed != text && write {
            fs::write(root.join(file), renewed).with_context(|| format!("cannot write {file}"))?;
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
    let end = ["<!-- end -->", "  # end"].into_iter().filter_map(|end| rest.find(end)).min()?;
    let after = rest.get(end..)?;
    Some(format!("{before}{BEGIN}{part}{comment}\n{content}\n{after}"))
}

fn table<'a>(entries: impl Iterator<Item = &'a Value>, columns: &[&str]) -> String {
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let head = [
        row(columns.iter().map(|&column| column.to_owned()).collect()),
        "| --- ".repeat(columns.len()) + "|",
    ];
    let rows = entries.map(|entry| {
        let cells = columns.iter().enumerate();
        row(cells
            .map(|(number, column)| cell(entry.get(column).unwrap_or(&Value::Null), number == 0))
            .collect())
    });
    head.into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// A value in a table. The first one of a row is its name, and lists are of names or of a request's fields.
fn cell(value: &Value, is_name: bool) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if is_name || text.starts_with("MUSTER__") => format!("`{text}`"),
        Value::String(text) => text.replace('|', "\\|"),
        Value::Array(entries) if entries.is_empty() => "–".to_owned(),
        Value::Array(entries) => entries.iter().map(|entry| cell(entry, true)).collect::<Vec<_>>().join(", "),
        Value::Object(field) => {
            let bounds = ["default", "cap"].map(|bound| field.get(bound).filter(|value| !value.is_null()));
            let bounds = bounds.into_iter().flatten().map(Value::to_string).collect::<Vec<_>>().join("; ");
            let name = cell(field.get("name").unwrap_or(&Value::Null), true);
            if bounds.is_empty() { name } else { format!("{name} ({bounds})") }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_replaced_and_the_text_around_it_stays() {
        let text = format!("a\n<!-- {BEGIN}errors -->\nold\n<!-- end -->\nb\n");
        assert_eq!(replaced(&text, "errors", "new").unwrap(), text.replace("old", "new"));
        assert_eq!(replaced(&text, "events", "new"), None);
        assert_eq!(replaced(&text.replace("end", "and"), "errors", "new"), None);
    }

    #[test]
    fn a_table_shows_defaults_and_caps() {
        let made = table(Description::for_tests().entries("endpoints"), &["name", "fields", "answer"]);
        let rows = "| name | fields | answer |\n| --- | --- | --- |\n\
                    | `profiles.ranked` | `limit` (100; 1000), `cursor` | page of profiles |\n";
        assert!(made.starts_with(rows), "{made}");
    }
}
