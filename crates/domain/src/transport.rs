use std::fmt;
use std::str::FromStr;

/// Where a process runs. Production unless something else is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Environment {
    /// Everything is required that can be.
    #[default]
    Production,
    /// A developer's machine.
    Development,
    /// An automated test.
    Test,
}

impl FromStr for Environment {
    type Err = UnknownEnvironment;

    fn from_str(text: &str) -> Result<Self, UnknownEnvironment> {
        match text {
            "production" => Ok(Self::Production),
            "development" => Ok(Self::Development),
            "test" => Ok(Self::Test),
            _ => Err(UnknownEnvironment),
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Production => "production",
            Self::Development => "development",
            Self::Test => "test",
        })
    }
}

/// A name that is no environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an environment: write production, development or test")]
pub struct UnknownEnvironment;

/// Whether a connection must be TLS, and why. There is no value that switches TLS off in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsPolicy {
    /// Nothing is sent but over TLS with a verified peer.
    Required(TlsReason),
    /// Plaintext is allowed; it is warned of once.
    Optional(Leniency),
}

/// An environment in which plaintext may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Leniency {
    /// A developer's machine.
    Development,
    /// An automated test.
    Test,
}

/// Why TLS is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsReason {
    /// The environment is production.
    Production,
    /// The configuration asks for it.
    Configured,
}

impl TlsPolicy {
    /// The policy of an environment, which a configuration can tighten but not loosen.
    ///
    /// ```
    /// use muster_domain::{Environment, TlsPolicy};
    ///
    /// assert_eq!(TlsPolicy::new(Environment::Production, false).to_string(), "required: production");
    /// assert_eq!(TlsPolicy::new(Environment::Development, false).to_string(), "optional: development");
    /// ```
    #[must_use]
    pub const fn new(environment: Environment, require_tls: bool) -> Self {
        match environment {
            Environment::Production => Self::Required(TlsReason::Production),
            Environment::Development | Environment::Test if require_tls => {
                Self::Required(TlsReason::Configured)
            }
            Environment::Development => Self::Optional(Leniency::Development),
            Environment::Test => Self::Optional(Leniency::Test),
        }
    }

    /// Whether plaintext is refused.
    #[must_use]
    pub const fn is_required(self) -> bool {
        matches!(self, Self::Required(_))
    }
}

impl fmt::Display for TlsPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Required(TlsReason::Production) => f.write_str("required: production"),
            Self::Required(TlsReason::Configured) => f.write_str("required: configured"),
            Self::Optional(Leniency::Development) => f.write_str("optional: development"),
            Self::Optional(Leniency::Test) => f.write_str("optional: test"),
        }
    }
}
