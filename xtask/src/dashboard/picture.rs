//! The dashboard's panels drawn from what a real Prometheus answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, ensure};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::{Panel, ROWS, Unit, query};

/// The size of one panel, in pixels.
const PANEL: (i32, i32) = (430, 215);
const ROW_TITLE: i32 = 26;
const TOP: i32 = 54;
/// How many lines of a panel are named below it.
const NAMED: usize = 6;
/// Colours that can be told apart with any sight, after Okabe and Ito.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
    RGBColor(150, 120, 40),
];

/// A line: its name and its points, each a time and a value.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The lines of one panel between two times, in seconds since 1970.
fn lines(prometheus: SocketAddr, panel: &Panel, times: &Range<f64>, interval: &str) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (text, legend) in panel.queries {
        let series = range(prometheus, &query(text, interval), times)
            .with_context(|| format!("the panel {:?}", panel.title))?;
        lines.extend(series.into_iter().map(|(labels, points)| Line { name: name(legend, &labels), points }));
    }
    // The highest first, so that they are the ones that are named.
    lines.sort_by(|one: &Line, other| other.most().total_cmp(&one.most()));
    Ok(lines)
}

impl Line {
    fn most(&self) -> f64 {
        self.points.iter().map(|(_, value)| *value).fold(0.0, f64::max)
    }

    /// The points without the times at which there were none, parted there.
    fn pieces(&self) -> impl Iterator<Item = &[(f64, f64)]> {
        self.points.chunk_by(|(before, _), (after, _)| after - before < 1.5)
    }
}

/// A legend with its labels filled in; one that the series does not have is `none`.
fn name(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let filled = labels
        .iter()
        .fold(legend.to_owned(), |text, (label, value)| text.replace(&format!("{{{{{label}}}}}"), value));
    match (filled.split_once("{{"), filled.split_once("}}")) {
        (Some((before, _)), Some((_, after))) => format!("{before}none{after}"),
        _ => filled,
    }
}

type Series = (BTreeMap<String, String>, Vec<(f64, f64)>);

/// What Prometheus answers to a query over a range, one point a second.
fn range(prometheus: SocketAddr, query: &str, times: &Range<f64>) -> Result<Vec<Series>> {
    let path = format!(
        "/api/v1/query_range?query={}&start={}&end={}&step=1",
        encoded(query),
        times.start,
        times.end
    );
    answer(prometheus, &path)?
        .iter()
        .map(|series| {
            let labels = series.get("metric").cloned().unwrap_or_default();
            let values = series.get("values").and_then(Value::as_array).context("a series without values")?;
            let points = values.iter().filter_map(|pair| {
                let value = pair.get(1)?.as_str()?.parse::<f64>().ok()?;
                Some((pair.get(0)?.as_f64()?, value)).filter(|_| value.is_finite())
            });
            Ok((serde_json::from_value(labels)?, points.collect()))
        })
        .collect()
}

/// How many series Prometheus has for a query now.
pub(crate) fn series(prometheus: SocketAddr, query: &str) -> Result<usize> {
    Ok(answer(prometheus, &format!("/api/v1/query?query={}", encoded(query)))?.len())
}

fn answer(prometheus: SocketAddr, path: &str) -> Result<Vec<Value>> {
    let (status, body) = xtask::worker::get(prometheus, path)?;
    // Long answers come in chunks, whose sizes stand between them; JSON has none of its own line breaks here.
    let text: String = if body.starts_with('{') { body } else { unchunked(&body) };
    let answer: Value =
        serde_json::from_str(&text).map_err(|error| anyhow!("Prometheus answers {status}: {error}"))?;
    ensure!(status == 200, "Prometheus answers {status}: {answer}");
    Ok(answer.pointer("/data/result").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn unchunked(body: &str) -> String {
    body.split("\r\n").skip(1).step_by(2).collect()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(
            |byte| {
                if byte.is_ascii_alphanumeric() {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02X}")
                }
            },
        )
        .collect()
}

/// Draws every panel between two times as one SVG.
pub(crate) fn draw(
    prometheus: SocketAddr,
    times: &Range<f64>,
    interval: &str,
    caption: &str,
) -> Result<String> {
    let columns = ROWS.iter().map(|row| row.panels.len()).max().unwrap_or(1);
    let size = (PANEL.0 * i32::try_from(columns)?, TOP + i32::try_from(ROWS.len())? * (PANEL.1 + ROW_TITLE));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (u32::try_from(size.0)?, u32::try_from(size.1)?))
            .into_drawing_area();
        area.fill(&WHITE)?;
        let words = |size: i32, colour: RGBColor| ("sans-serif", size).into_font().color(&colour);
        area.draw_text("Muster worker", &words(22, BLACK), (12, 8))?;
        area.draw_text(caption, &words(13, RGBColor(90, 90, 90)), (12, 34))?;
        let mut y = TOP;
        for row in ROWS {
            area.draw_text(row.title, &words(16, BLACK), (12, y + 6))?;
            y += ROW_TITLE;
            let width = size.0 / i32::try_from(row.panels.len())?;
            for (column, panel) in row.panels.iter().enumerate() {
                let x = width * i32::try_from(column)?;
                let lines = lines(prometheus, panel, times, interval)?;
                let place = area.clone().shrink((x, y), (width, PANEL.1));
                one(&place, panel, &lines, times)?;
            }
            y += PANEL.1;
        }
        area.present()?;
    }
    Ok(svg)
}

fn one(
    place: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    panel: &Panel,
    lines: &[Line],
    times: &Range<f64>,
) -> Result<()> {
    let most = lines.iter().map(Line::most).fold(0.0, f64::max);
    let top = if most > 0.0 { most * 1.1 } else { 1.0 };
    let (width, _) = place.dim_in_pixel();
    let legend = i32::try_from(lines.len().min(NAMED).div_ceil(3)).unwrap_or(0) * 15 + 8;
    let mut chart = ChartBuilder::on(place)
        .margin(8)
        .margin_bottom(legend)
        .caption(panel.title, ("sans-serif", 14))
        .x_label_area_size(18)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..(times.end - times.start), 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(160, 160, 160))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|seconds| format!("{seconds:.0} s"))
        .y_label_formatter(&|value| written(*value, panel.unit))
        .label_style(("sans-serif", 11))
        .draw()?;
    let column = i32::try_from(width).unwrap_or(i32::MAX) / 3;
    let height = i32::try_from(place.dim_in_pixel().1).unwrap_or(i32::MAX);
    for (line, colour, number) in
        lines.iter().zip(COLOURS.iter().cycle()).zip(0_i32..).map(|((line, colour), n)| (line, colour, n))
    {
        for piece in line.pieces() {
            let points = piece.iter().map(|(at, value)| (at - times.start, *value));
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        }
        let (x, y) = (12 + column * (number % 3), height - legend + 4 + 15 * (number / 3));
        if usize::try_from(number).is_ok_and(|number| number < NAMED) {
            place.draw(&Rectangle::new([(x, y + 2), (x + 10, y + 10)], colour.filled()))?;
            let more = lines.len().saturating_sub(NAMED) + 1;
            let last = usize::try_from(number).is_ok_and(|number| number + 1 == NAMED) && more > 1;
            let named = if last { format!("and {more} more") } else { line.name.clone() };
            let style =
                ("sans-serif", 11, &BLACK).into_text_style(place).pos(Pos::new(HPos::Left, VPos::Top));
            place.draw_text(&named, &style, (x + 14, y))?;
        }
    }
    Ok(())
}

/// A value with its unit, short.
fn written(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => format!("{:.0} MiB", value / 1_048_576.0),
        Unit::Ratio => format!("{:.0} %", value * 100.0),
        Unit::Seconds if value > 0.0 && value < 1.0 => format!("{:.1} ms", value * 1000.0),
        Unit::Seconds => format!("{value:.0} s"),
        Unit::Days => format!("{value:.0} d"),
        Unit::Number | Unit::PerSecond if value >= 10_000.0 => format!("{:.0} k", value / 1000.0),
        Unit::Number | Unit::PerSecond if value >= 10.0 || value.fract() == 0.0 => format!("{value:.0}"),
        Unit::Number | Unit::PerSecond => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_legend_is_filled_in() {
        let labels = BTreeMap::from([("place".to_owned(), "nats".to_owned())]);
        assert_eq!(name("{{place}} refused", &labels), "nats refused");
        assert_eq!(name("by {{failure}}", &labels), "by none");
    }

    #[test]
    fn a_chunked_answer_is_put_together() {
        assert_eq!(unchunked("3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n"), "{\"a\":1}");
        assert_eq!(encoded("up{a=\"b\"}"), "up%7Ba%3D%22b%22%7D");
    }
}
