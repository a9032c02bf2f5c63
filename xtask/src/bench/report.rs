//! The result of a part of the benchmark, as a table and as a chart.

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Measured {
    pub(super) title: String,
    /// The names of the columns of figures. The chart shows the first one.
    pub(super) columns: Vec<&'static str>,
    pub(super) rows: Vec<(String, Vec<f64>)>,
    pub(super) charted: usize,
    pub(super) limits: Vec<Limit>,
}

#[derive(Clone, Serialize)]
pub(super) struct Limit {
    pub(super) name: String,
    pub(super) measured: f64,
    pub(super) at_most: f64,
}

impl Limit {
    pub(super) fn new(name: impl Into<String>, measured: f64, at_most: f64) -> Self {
        Self { name: name.into(), measured, at_most }
    }

    /// A missing figure (NaN) misses its limit.
    pub(super) fn is_kept(&self) -> bool {
        self.measured <= self.at_most
    }
}

pub(super) fn table(columns: &[&str], rows: &[(String, Vec<f64>)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([""].iter().chain(columns));
    for (name, figures) in rows {
        table.add_row([name.clone()].into_iter().chain(figures.iter().map(|figure| format!("{figure:.2}"))));
    }
    table
}

pub(super) fn float(count: impl TryInto<u32>) -> f64 {
    f64::from(count.try_into().unwrap_or(u32::MAX))
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The first column as horizontal bars, in SVG.
pub(super) fn chart(measured: &Measured) -> String {
    let rows = measured.rows.iter().take(measured.charted);
    let bars: Vec<_> = rows.filter_map(|(name, figures)| Some((name, *figures.first()?))).collect();
    let longest = bars.iter().map(|(_, figure)| *figure).fold(0.0, f64::max);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 920 {}' font-family='sans-serif' font-size='12'>
<rect width='100%' height='100%' fill='white'/><text x='10' y='24' font-size='16'>{}: {}</text>\n",
        60 + 20 * bars.len(),
        measured.title,
        measured.columns.first().unwrap_or(&"")
    );
    for (place, (name, figure)) in (0..).zip(bars) {
        let (y, width) = (56 + 20 * place, 500.0 * figure / longest);
        svg += &format!("<text x='10' y='{y}'>{name}</text><text x='840' y='{y}'>{figure:.1}</text>");
        svg += &format!("<rect x='330' y='{}' width='{width:.0}' height='12' fill='blue'/>\n", y - 10);
    }
    svg + "</svg>\n"
}
