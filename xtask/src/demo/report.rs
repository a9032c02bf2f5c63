use std::fmt::Debug;

use comfy_table::{ContentArrangement, Row, Table, presets};

/// What was verified, and what of it does not hold.
#[derive(Default)]
pub(super) struct Report {
    checks: Vec<Check>,
}

struct Check {
    what: String,
    /// What is wrong; `None` when it holds.
    wrong: Option<String>,
}

impl Report {
    /// Notes whether `got` is what it should be.
    pub(super) fn equal<T: PartialEq + Debug>(&mut self, what: impl Into<String>, got: T, expected: T) {
        let wrong = (got != expected).then(|| format!("is {got:?}, should be {expected:?}"));
        self.note(what, wrong);
    }

    /// Notes whether something holds, and if it does not, what was seen instead.
    pub(super) fn holds(&mut self, what: impl Into<String>, holds: bool, seen: impl Debug) {
        self.note(what, (!holds).then(|| format!("{seen:?}")));
    }

    /// Notes what is wrong, `None` when nothing is.
    pub(super) fn note(&mut self, what: impl Into<String>, wrong: Option<String>) {
        self.checks.push(Check { what: what.into(), wrong: wrong.map(shortened) });
    }

    /// How many of the checks do not hold.
    pub(super) fn failures(&self) -> usize {
        self.checks.iter().filter(|check| check.wrong.is_some()).count()
    }

    /// How many checks there are.
    pub(super) fn len(&self) -> usize {
        self.checks.len()
    }

    /// All of it as a table.
    pub(super) fn table(&self) -> Table {
        table(
            ["verified", "verdict"],
            self.checks.iter().map(|check| {
                let verdict = match &check.wrong {
                    None => "ok".to_owned(),
                    Some(wrong) => format!("WRONG: {wrong}"),
                };
                [check.what.clone(), verdict]
            }),
        )
    }
}

fn shortened(text: String) -> String {
    const MOST: usize = 300;
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain(['…']).collect() }
}

/// A table in the form that all tables here have.
pub(super) fn table(header: impl Into<Row>, rows: impl IntoIterator<Item = impl Into<Row>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header)
        .add_rows(rows);
    table
}

/// A value of which there may be none.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}
