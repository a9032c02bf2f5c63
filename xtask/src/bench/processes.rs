//! What processes cost, by the system's own account.

use std::fs;
use std::time::Duration;

/// Clock ticks a second, which Linux has fixed for what it tells in `/proc`.
const TICKS: u64 = 100;

/// The processor time of a process and of what it has waited for.
fn of(id: u32) -> Option<(u32, Duration)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The second field is a name in brackets, which may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some((parent, Duration::from_millis(ticks.saturating_mul(1000 / TICKS))))
}

/// The processor time of one process.
pub(super) fn time(id: u32) -> Duration {
    of(id).map_or(Duration::ZERO, |(_, time)| time)
}

/// The processor time of a process and all that it started, whether they still run or not.
pub(super) fn time_with_children(id: u32) -> Duration {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter_map(of).filter(|(parent, _)| *parent == id).map(|(_, time)| time).sum::<Duration>() + time(id)
}
