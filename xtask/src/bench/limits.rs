//! What the figures must show, as ratios within one run.

use serde::Serialize;

use super::events::Events;
use super::questions::Kind;
use super::read::{Figure, Way};

/// One limit and how it was kept.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Limit {
    pub(super) name: String,
    pub(super) measured: f64,
    /// At most this, or at least it.
    pub(super) bound: f64,
    pub(super) at_least: bool,
}

impl Limit {
    pub(super) fn at_most(name: impl Into<String>, measured: f64, bound: f64) -> Self {
        Self { name: name.into(), measured, bound, at_least: false }
    }

    pub(super) fn at_least(name: impl Into<String>, measured: f64, bound: f64) -> Self {
        Self { name: name.into(), measured, bound, at_least: true }
    }

    /// A figure that could not be had is no pass.
    pub(super) fn is_kept(&self) -> bool {
        if self.at_least { self.measured >= self.bound } else { self.measured <= self.bound }
    }
}

/// Those of questions; the largest community is compared with the smallest.
pub(super) fn of_reads(figures: &[Figure]) -> Vec<Limit> {
    let mut limits = Vec::new();
    let (Some(largest), Some(smallest)) =
        (figures.iter().map(|f| f.members).max(), figures.iter().map(|f| f.members).min())
    else {
        return limits;
    };
    let find = |question: &str, members: u64, deep: bool, way: Way, callers: usize| {
        figures.iter().find(|f| {
            f.question == question
                && f.members == members
                && (f.depth > 0) == deep
                && f.way == way
                && f.callers == callers
        })
    };
    let mut names: Vec<(&'static str, Kind)> = Vec::new();
    for figure in figures {
        if !names.iter().any(|(name, _)| *name == figure.question) {
            names.push((figure.question, figure.kind));
        }
    }
    for (name, kind) in names {
        let median = |members, deep, way| find(name, members, deep, way, 1).map_or(f64::NAN, |f| f.median_us);
        let rate = |way| find(name, largest, false, way, 16).map_or(f64::NAN, |f| f.a_second);
        let storage = median(largest, false, Way::Storage);
        let look_up = median(largest, false, Way::LookUp);
        limits.push(Limit::at_most(
            format!("{name}: storage / bare"),
            storage / median(largest, false, Way::Bare),
            1.3,
        ));
        limits.push(Limit::at_most(
            format!("{name}: whole way / (storage + echo)"),
            median(largest, false, Way::Whole) / (storage + median(largest, false, Way::Echo)),
            1.3,
        ));
        limits.push(Limit::at_least(
            format!("{name}: whole way / lower of echo and database, 16 callers"),
            rate(Way::Whole) / rate(Way::Echo).min(rate(Way::Storage)),
            0.7,
        ));
        if smallest < largest {
            limits.push(Limit::at_most(
                format!("{name}: {largest} / {smallest} members"),
                storage / median(smallest, false, Way::Storage),
                if kind == Kind::Search { 2.0 } else { 1.5 },
            ));
        }
        let deep = median(largest, true, Way::Storage);
        if !deep.is_nan() {
            limits.push(Limit::at_most(
                format!("{name}: nine tenths deep / first page"),
                deep / storage,
                1.3,
            ));
        }
        match kind {
            Kind::LookUp | Kind::Counts => {
                limits.push(Limit::at_most(
                    format!("{name}: storage / look-up by primary key"),
                    storage / look_up,
                    2.0,
                ));
            }
            Kind::Search => {
                limits.push(Limit::at_most(
                    format!("{name}: storage / look-up by primary key"),
                    storage / look_up,
                    3.0,
                ));
            }
            Kind::List => {}
        }
    }
    limits
}

/// Those of events.
pub(super) fn of_events(events: &Events) -> Vec<Limit> {
    let rate = |what: &str| {
        events.rates.iter().find(|rate| rate.what.starts_with(what)).map_or(f64::NAN, |rate| rate.a_second)
    };
    let count = |number: i64| f64::from(i32::try_from(number).unwrap_or(i32::MAX));
    let differing = events.differences.iter().filter(|(_, rows)| *rows > 0).count();
    vec![
        Limit::at_least("events a second, one worker, skewed draw", rate("1 worker, skewed"), 15_000.0),
        Limit::at_least("events a second, one worker, uniform draw", rate("1 worker, uniform"), 15_000.0),
        Limit::at_least(
            "events: one worker / bare batched upserts",
            rate("1 worker, skewed") / rate("bare"),
            0.5,
        ),
        Limit::at_least(
            "events: two workers / one",
            2.0 * rate("2 workers") / (rate("1 worker, skewed") + rate("again, 1 worker, skewed")),
            1.0,
        ),
        Limit::at_most("events: deadlocks", count(events.deadlocks), 0.0),
        Limit::at_most(
            "events: longest delay beside a flood, ms",
            events.flood_ms.last().copied().unwrap_or(f64::NAN),
            2000.0,
        ),
        Limit::at_most(
            "events: kept numbers that differ from plain counting",
            count(i64::try_from(differing).unwrap_or(i64::MAX)),
            0.0,
        ),
    ]
}
