//! How checks end, one by one and together.

use std::env;
use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use comfy_table::{Table, presets};

/// How a check ended. What it found has been printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Passed,
    /// It could not run here, which is not a pass.
    NotRun,
    Failed,
}

impl Verdict {
    pub(crate) const fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }

    /// Its exit code and its name.
    const fn shown(self) -> (u8, &'static str) {
        match self {
            Self::Passed => (0, "passed"),
            Self::Failed => (1, "FAILED"),
            Self::NotRun => (2, "NOT RUN"),
        }
    }

    /// The verdict as it counts on this machine: in a workflow on GitHub, what did not run has failed.
    pub(crate) fn enforced(self) -> Self {
        let decides = env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
        if self == Self::NotRun && decides { Self::Failed } else { self }
    }
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(verdict.shown().0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown().1)
    }
}

pub(crate) type Row = (&'static str, Verdict, String);

/// Runs one check of several; one that ends with an error has failed. Its time is said of it.
pub(crate) async fn step(name: &'static str, check: impl Future<Output = Result<Verdict>>) -> Row {
    println!("\n==> {name}");
    let started = Instant::now();
    let verdict = check.await.unwrap_or_else(|error| {
        println!("error: {error:#}");
        Verdict::Failed
    });
    (name, verdict.enforced(), format!("{:.1} s", started.elapsed().as_secs_f64()))
}

/// Prints a table of several checks, whose first and last columns are called so; answers the worst verdict.
pub(crate) fn together(rows: &[Row], [what, said]: [&str; 2]) -> Verdict {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header([what, "verdict", said]);
    for (name, verdict, said) in rows {
        table.add_row([*name, &verdict.to_string(), said.trim()]);
    }
    println!("\n{table}");
    for (name, ..) in rows.iter().filter(|(_, verdict, _)| *verdict == Verdict::NotRun) {
        println!("NOT RUN: {name}. It did not pass; run it where what it needs is available.");
    }
    rows.iter().map(|(_, verdict, _)| *verdict).max().unwrap_or(Verdict::NotRun)
}
