//! The figures as tables.

use comfy_table::{ContentArrangement, Row, Table, presets};

use super::events::Events;
use super::limits::Limit;
use super::read::{Figure, Way};

fn table(header: impl Into<Row>, rows: impl IntoIterator<Item = impl Into<Row>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows);
    table
}

/// Medians in microseconds of one caller, with the ratios between the ways.
pub(super) fn reads(figures: &[Figure]) -> Table {
    let alone = figures.iter().filter(|f| f.callers == 1 && f.way == Way::Bare);
    let rows = alone.map(|bare| {
        let of = |way: Way| {
            figures.iter().find(|f| {
                f.callers == 1
                    && f.way == way
                    && f.question == bare.question
                    && f.members == bare.members
                    && f.depth == bare.depth
            })
        };
        let median = |way| of(way).map_or(f64::NAN, |f| f.median_us);
        let p99 = |way| of(way).map_or(f64::NAN, |f| f.p99_us);
        let tenth = |way| of(way).map_or(f64::NAN, |f| f.tenth_us);
        let (storage, whole, echo) = (median(Way::Storage), median(Way::Whole), median(Way::Echo));
        [
            bare.question.to_owned(),
            bare.members.to_string(),
            bare.depth.to_string(),
            format!("{:.0}", median(Way::LookUp)),
            format!("{:.0}", bare.median_us),
            format!("{storage:.0}"),
            format!("{whole:.0}"),
            format!("{echo:.0}"),
            format!("{:.2}", storage / bare.median_us),
            format!("{:.2}", whole / (storage + echo)),
            format!("{:.0} / {:.0} / {:.0}", bare.tenth_us, tenth(Way::Storage), tenth(Way::Whole)),
            format!("{:.2}", tenth(Way::Storage) / bare.tenth_us),
            format!("{:.2}", tenth(Way::Whole) / (tenth(Way::Storage) + tenth(Way::Echo))),
            format!("{:.0} / {:.0} / {:.0}", bare.p99_us, p99(Way::Storage), p99(Way::Whole)),
            bare.calls.to_string(),
        ]
    });
    table(
        [
            "one caller, median µs",
            "members",
            "depth",
            "look-up",
            "bare",
            "storage",
            "whole",
            "echo",
            "storage/bare",
            "whole/(st.+echo)",
            "least disturbed tenth: bare / storage / whole",
            "storage/bare",
            "whole/(st.+echo)",
            "p99 bare / storage / whole",
            "calls",
        ],
        rows,
    )
}

/// Calls a second of many callers.
pub(super) fn rates(figures: &[Figure]) -> Table {
    let many = figures.iter().filter(|f| f.callers > 1 && f.way == Way::Bare);
    let rows = many.map(|bare| {
        let rate = |way: Way| {
            let found = figures.iter().find(|f| f.callers > 1 && f.way == way && f.question == bare.question);
            found.map_or(f64::NAN, |f| f.a_second)
        };
        let (storage, whole, echo) = (rate(Way::Storage), rate(Way::Whole), rate(Way::Echo));
        [
            bare.question.to_owned(),
            bare.members.to_string(),
            format!("{:.0}", bare.a_second),
            format!("{storage:.0}"),
            format!("{whole:.0}"),
            format!("{echo:.0}"),
            format!("{:.2}", whole / storage.min(echo)),
        ]
    });
    table(["16 callers, calls a second", "members", "bare", "storage", "whole", "echo", "whole/lower"], rows)
}

/// Events a second.
pub(super) fn events(events: &Events) -> Table {
    let rows = events.rates.iter().map(|rate| {
        [
            rate.what.clone(),
            rate.events.to_string(),
            format!("{:.1}", rate.seconds),
            format!("{:.0}", rate.a_second),
            format!("{:.0}", rate.worker_us),
            format!("{:.0}", rate.postgres_us),
        ]
    });
    table(["events", "number", "seconds", "a second", "worker CPU µs each", "PostgreSQL CPU µs each"], rows)
}

/// The limits and how they were kept.
pub(super) fn limits(limits: &[Limit]) -> Table {
    let rows = limits.iter().map(|limit| {
        let sign = if limit.at_least { "≥" } else { "≤" };
        [
            limit.name.clone(),
            format!("{:.2}", limit.measured),
            format!("{sign} {}", limit.bound),
            if limit.is_kept() { "kept" } else { "MISSED" }.to_owned(),
        ]
    });
    table(["limit", "measured", "bound", "verdict"], rows)
}
