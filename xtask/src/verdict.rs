use std::env;
use std::fmt;
use std::process::ExitCode;

/// How a check ended. What it found has been printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything is as it must be.
    Passed,
    /// Something is not.
    Failed,
    /// It could not run here, which is not a pass.
    NotRun,
}

impl Verdict {
    /// The verdict of a check that ran.
    #[must_use]
    pub const fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }

    /// The verdict as it counts on this machine: in a workflow on GitHub, what did not run has failed.
    #[must_use]
    pub fn enforced(self) -> Self {
        let decides = env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true");
        if self == Self::NotRun && decides { Self::Failed } else { self }
    }
}

impl From<Verdict> for ExitCode {
    /// 0, 1 and 2.
    fn from(verdict: Verdict) -> Self {
        Self::from(match verdict {
            Verdict::Passed => 0,
            Verdict::Failed => 1,
            Verdict::NotRun => 2,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotRun => "NOT RUN",
        })
    }
}
