//! What can go wrong for a program that uses the library.

use leaseward_raft::net::connection::CallError;
use leaseward_state::propose::NotCommitted;
use leaseward_state::{BadName, FencingToken, LeaseName, Refusal};

/// What can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No node answers, or nobody leads.
    #[error("the cluster does not answer: {0}")]
    Unavailable(String),
    /// The answer did not come in time; the outcome is unknown.
    #[error("no answer in time; the outcome is unknown")]
    Unknown,
    /// The cluster says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A node says no before it asks the cluster.
    #[error("{code}: {why}")]
    Failed {
        /// The stable code.
        code: String,
        /// The reason.
        why: String,
    },
    /// The lease was not to be had in time.
    #[error("not granted in time")]
    NotGranted,
    /// The lease is lost.
    #[error(transparent)]
    Lost(#[from] LeaseLost),
    /// What the cluster has of a config file cannot be used by this program.
    #[error("{code}: {why}")]
    Config {
        /// The stable code.
        code: &'static str,
        /// The reason.
        why: String,
    },
    /// A name is not allowed.
    #[error(transparent)]
    Name(#[from] BadName),
    /// This node cannot start.
    #[error("{code}: {why}")]
    Start {
        /// The stable code.
        code: String,
        /// The reason.
        why: String,
    },
}

/// A result of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns the stable code of the error's page.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Unavailable(_) => "LW0501",
            Self::Unknown => "LW0502",
            Self::Refused(refusal) => refusal.code(),
            Self::Failed { code, .. } | Self::Start { code, .. } => code,
            Self::Config { code, .. } => code,
            Self::NotGranted => "LW0202",
            Self::Lost(_) => "LW0201",
            Self::Name(_) => "LW0101",
        }
    }

    /// Returns whether trying again is the thing to do.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Unknown | Self::NotGranted)
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Broken(why) => Self::Unavailable(why),
            CallError::Timeout | CallError::Silent => Self::Unknown,
            CallError::Refused { code, why } => Self::Failed { code, why },
        }
    }
}

impl From<NotCommitted> for Error {
    fn from(error: NotCommitted) -> Self {
        match error {
            NotCommitted::NoLeader => Self::Unavailable("nobody leads".into()),
            NotCommitted::Unknown => Self::Unknown,
            NotCommitted::Overloaded(why) => match why.split_once(": ") {
                Some((code, why)) if code.starts_with("LW") => Self::Failed { code: code.into(), why: why.into() },
                _ => Self::Failed { code: "LW0503".into(), why },
            },
        }
    }
}

/// Why a lease is lost. Each is told before another holder can exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostReason {
    /// It could not be renewed in time, by the holder's own clock.
    Expired,
    /// The cluster says that somebody took it away or that its session is over.
    Revoked,
    /// The program gave it back or dropped it.
    Released,
}

/// A lease is lost.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lease {lease} (token {token}) is lost: {reason:?}")]
pub struct LeaseLost {
    /// The lease.
    pub lease: LeaseName,
    /// The token that is over.
    pub token: FencingToken,
    /// Why.
    pub reason: LostReason,
}
