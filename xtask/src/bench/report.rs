//! What a part of the benchmark comes to: limits, figures and a chart; and tables for the terminal.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// What one part comes to.
pub(super) struct Measured {
    pub(super) limits: Vec<Limit>,
    /// All of it, for `latest.json`.
    pub(super) figures: Value,
    /// A chart of groups of horizontal bars: in each the first is blue, the second red.
    pub(super) title: String,
    pub(super) bars: Vec<(String, Vec<f64>)>,
}

/// A ratio or a size that may be so much at most.
#[derive(Debug, Serialize)]
pub(super) struct Limit {
    pub(super) name: String,
    measured: f64,
    at_most: f64,
}

impl Limit {
    pub(super) fn new(name: impl Into<String>, measured: f64, at_most: f64) -> Self {
        Self { name: name.into(), measured, at_most }
    }

    /// A figure that is missing (NaN) is no pass.
    pub(super) fn is_kept(&self) -> bool {
        self.measured <= self.at_most
    }
}

/// The limits and how each was kept, those that were missed at the end.
pub(super) fn limits(limits: &mut [Limit]) -> Table {
    limits.sort_by_key(|limit| !limit.is_kept());
    let rows = limits.iter().map(|limit| {
        let verdict = if limit.is_kept() { "kept" } else { "MISSED" };
        vec![
            limit.name.clone(),
            number(limit.measured, 2),
            format!("≤ {}", limit.at_most),
            verdict.to_owned(),
        ]
    });
    table("limit|measured|bound|verdict", rows)
}

/// A table with a header whose cells are separated by `|`.
pub(super) fn table(header: &str, rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.split('|')).add_rows(rows);
    table
}

/// A number with so many digits behind the point, or a dash where there is none.
pub(super) fn number(number: f64, digits: usize) -> String {
    if number.is_nan() { "–".to_owned() } else { format!("{number:.digits$}") }
}

/// A count as a number to divide by.
pub(super) fn float(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

/// Draws the chart as SVG, with the value at each bar.
pub(super) fn chart(measured: &Measured) -> String {
    const COLOURS: [&str; 2] = ["blue", "red"];
    let most = measured.bars.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
    let (mut bars, mut y) = (String::new(), 40);
    for (name, values) in &measured.bars {
        bars += &format!("<text x='10' y='{}'>{name}</text>\n", y + 18);
        y += 8;
        for (colour, value) in COLOURS.iter().zip(values).filter(|(_, value)| !value.is_nan()) {
            let width = 550.0 * value / most;
            bars += &format!("<rect x='300' y='{y}' width='{width:.0}' height='12' fill='{colour}'/>");
            bars += &format!("<text x='{:.0}' y='{}'>{value:.1}</text>\n", 306.0 + width, y + 10);
            y += 15;
        }
    }
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='920' height='{}' font-family='sans-serif' font-size='12'>
<rect width='100%' height='100%' fill='white'/><text x='10' y='24' font-size='16'>{}</text>\n{bars}</svg>\n",
        y + 20,
        measured.title
    )
}
