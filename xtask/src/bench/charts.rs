//! Two charts: what a call costs by the size of the community, and by the depth of the page.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::read::{Figure, Way};

/// A line: its name, and its points.
type Line = (String, Vec<(f64, f64)>);

/// Draws both into a directory.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn draw(figures: &[Figure], directory: &Path) -> Result<()> {
    let storage = || figures.iter().filter(|f| f.callers == 1 && f.way == Way::Storage);
    let number = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    let mut by_size: Vec<Line> = Vec::new();
    let mut by_depth: Vec<Line> = Vec::new();
    let largest = storage().map(|f| f.members).max().unwrap_or(0);
    for figure in storage() {
        let point = |lines: &mut Vec<Line>, at: f64| {
            let name = figure.question.to_owned();
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((at, figure.median_us)),
                None => lines.push((name, vec![(at, figure.median_us)])),
            }
        };
        if figure.depth == 0 {
            point(&mut by_size, number(figure.members).log10());
        }
        if figure.members == largest {
            point(&mut by_depth, 100.0 * number(figure.depth) / number(largest).max(1.0));
        }
    }
    by_depth.retain(|(_, points)| points.len() > 1);
    chart(
        &directory.join("size.svg"),
        "Cost against the community's size",
        "members, as a power of ten",
        by_size,
    )?;
    chart(&directory.join("depth.svg"), "Cost against the page's depth", "depth, % of the members", by_depth)
}

fn chart(path: &Path, title: &str, across: &str, lines: Vec<Line>) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("{} cannot be drawn: {error}", path.display());
    let points = || lines.iter().flat_map(|(_, points)| points);
    let left = points().map(|(x, _)| *x).fold(f64::INFINITY, f64::min);
    let right = points().map(|(x, _)| *x).fold(f64::NEG_INFINITY, f64::max);
    let top = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.3;
    let bottom = points().map(|(_, y)| *y).fold(f64::INFINITY, f64::min).max(1.0) * 0.7;
    if left >= right {
        return Ok(());
    }
    let area = SVGBackend::new(path, (1000, 620)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(left..right + (right - left) * 0.45, (bottom..top).log_scale())
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc(across)
        .y_desc("median of one caller, storage call, µs (logarithmic)")
        .draw()
        .map_err(|error| failed(&error))?;
    for (index, (name, points)) in lines.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .map_err(|error| failed(&error))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 11))
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}
