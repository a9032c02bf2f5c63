//! The parts of files that are generated. Each stands between two comments, of which the first names it.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo;
use crate::description::list;
use crate::observability::RULES;

/// The tables: the part of the description, the file, and the columns, which are fields of the entries.
const TABLES: [(&str, &str, &[&str]); 5] = [
    ("endpoints", "docs/api.md", &["name", "help", "fields", "answer"]),
    ("keys", "docs/configuration.md", &["key", "variable", "form", "default"]),
    ("metrics", "docs/metrics.md", &["name", "kind", "unit", "labels", "help"]),
    ("errors", "docs/api.md", &["code", "number", "when"]),
    ("events", "docs/api.md", &["type", "data", "effect"]),
];
const OPERATOR: &str = "infra/k8s/monitoring/rules.yaml";
const BEGIN: &str = "made by cargo xtask documentation --write: ";

/// Answers which parts are stale, or writes them.
pub(super) fn renew(description: &Value, write: bool) -> Result<Vec<String>> {
    let entries = |part| list(description, &format!("/{part}"));
    let tables = TABLES.map(|(part, file, columns)| (part, file, table(entries(part), columns)));
    let groups = cargo::read(RULES)?;
    let groups = groups.lines().skip_while(|line| !line.starts_with("groups:"));
    let groups = groups.map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
    let mut stale = Vec::new();
    for (part, file, content) in tables.into_iter().chain([("alerts", OPERATOR, groups)]) {
        let text = cargo::read(file)?;
        let renewed =
            replaced(&text, part, &content).with_context(|| format!("{file} has no part {part}"))?;
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
    let end = ["<!-- end -->", "  # end"].into_iter().filter_map(|end| rest.find(end)).min()?;
    let after = rest.get(end..)?;
    Some(format!("{before}{BEGIN}{part}{comment}\n{content}\n{after}"))
}

/// A table of the entries, whose columns are their fields.
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
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Bool(switch)) => switch.to_string(),
        _ => "–".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::for_tests;

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
