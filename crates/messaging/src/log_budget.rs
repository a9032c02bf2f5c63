//! Limits how often lines of one kind are logged: what fails may fail a thousand times a second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_mins(1);

/// So many lines a minute may be written; the next minute's first line tells how many were left out.
#[derive(Debug)]
pub struct LogBudget {
    lines: u32,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

/// A line that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// How many lines of its kind were left out since the last.
    pub left_out: u64,
}

impl LogBudget {
    /// At most so many lines a minute.
    #[must_use]
    pub const fn new(lines: u32) -> Self {
        Self { lines, window: Mutex::new(Window { began: None, written: 0, left_out: 0 }) }
    }

    /// Asks for a line; `None` when it is to be left out.
    pub fn line(&self) -> Option<Line> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<Line> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (window.began, window.written) = (Some(now), 0);
        }
        if window.written >= self.lines {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.written = window.written.saturating_add(1);
        Some(Line { left_out: std::mem::take(&mut window.left_out) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_lines_and_the_next_tells_what_was_left_out() {
        let budget = LogBudget::new(3);
        let begin = Instant::now();
        let lines: Vec<_> = (0..1000).filter_map(|_| budget.line_at(begin)).collect();
        assert_eq!(lines, [Line { left_out: 0 }; 3]);
        assert_eq!(budget.line_at(begin + WINDOW / 2), None);
        assert_eq!(budget.line_at(begin + WINDOW), Some(Line { left_out: 998 }));
        assert_eq!(budget.line_at(begin + WINDOW), Some(Line { left_out: 0 }));
    }
}
