//! What can go wrong on one machine, as a caller can act on it.

use std::io;
use std::path::PathBuf;

use leaseward_state::server::HookStep;
use leaseward_state::token::FencingToken;

use crate::clock::BootInstant;
use crate::hook::HookOutcome;

/// Why an operation on this machine failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The order is older than one this machine has already seen. Never retry it.
    #[error("token {token} of `{server}` is stale: this machine has seen {seen}")]
    StaleToken {
        /// The server.
        server: String,
        /// The token of the order.
        token: FencingToken,
        /// The greatest token seen.
        seen: FencingToken,
    },
    /// This machine has said, or was about to say, that nothing under this token runs here any more. Nothing of it does. Never
    /// retry it.
    #[error("nothing of `{server}` is started here under token {token} any more: its end was told, or about to be")]
    Retired {
        /// The server.
        server: String,
        /// The token of the order.
        token: FencingToken,
    },
    /// A copy under another token is not proven dead here. Stop it first.
    #[error("`{server}` still lives here under token {token}")]
    OtherTokenLives {
        /// The server.
        server: String,
        /// The token it lives under.
        token: FencingToken,
    },
    /// No copy under this token is known here.
    #[error("`{server}` does not run here under this token")]
    NotHere {
        /// The server.
        server: String,
    },
    /// It is being stopped. Ask again when that is over.
    #[error("`{server}` is being stopped")]
    Stopping {
        /// The server.
        server: String,
    },
    /// The deadline has passed, so nothing was started.
    #[error("the deadline of `{server}`, {deadline}, has passed")]
    DeadlinePassed {
        /// The server.
        server: String,
        /// The deadline.
        deadline: BootInstant,
    },
    /// It could not be started. No process of it lives.
    #[error("`{server}` could not be started: {why}")]
    Launch {
        /// The server.
        server: String,
        /// What failed.
        why: String,
    },
    /// A step around its start failed, and what was begun is undone. No process of it lives.
    #[error("`{server}` could not be started: {}: {why}", step.name())]
    Hook {
        /// The server.
        server: String,
        /// The step, done by a hook or by us.
        step: HookStep,
        /// What its failure means for this machine and for others.
        outcome: HookOutcome,
        /// What failed, with the last lines of output.
        why: String,
    },
    /// The shim did not acknowledge in time. Count what was asked as possibly done where that is the dangerous side,
    /// and as not done where that is.
    #[error("the shim of `{server}` does not answer")]
    Unacked {
        /// The server.
        server: String,
    },
    /// The shim refused the request.
    #[error("the shim of `{server}` refused: {why}")]
    Refused {
        /// The server.
        server: String,
        /// Its words.
        why: String,
    },
    /// The order cannot be carried out as it is written. Never retry it unchanged.
    #[error("the order for `{server}` is wrong: {why}")]
    BadOrder {
        /// The server.
        server: String,
        /// What is wrong.
        why: String,
    },
    /// Another agent supervises this directory.
    #[error("{} is in use by another agent", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The machine failed us.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The supervisor's runtime is shutting down.
    #[error("the supervisor is gone")]
    Closed,
}

impl Error {
    /// Returns whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Hook { outcome, .. } => {
                matches!(outcome, HookOutcome::Transient | HookOutcome::TryLater | HookOutcome::Unknown)
            }
            Self::OtherTokenLives { .. }
            | Self::Stopping { .. }
            | Self::Launch { .. }
            | Self::Unacked { .. }
            | Self::Busy { .. }
            | Self::Io { .. } => true,
            Self::StaleToken { .. }
            | Self::Retired { .. }
            | Self::NotHere { .. }
            | Self::DeadlinePassed { .. }
            | Self::Refused { .. }
            | Self::BadOrder { .. }
            | Self::Closed => false,
        }
    }

    /// Returns the stable code that documentation and scripts refer to.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::StaleToken { .. } | Self::Retired { .. } => "LW0310",
            Self::OtherTokenLives { .. } => "LW0311",
            Self::NotHere { .. } => "LW0312",
            Self::Stopping { .. } => "LW0313",
            Self::DeadlinePassed { .. } => "LW0314",
            Self::Launch { .. } => "LW0315",
            Self::Unacked { .. } => "LW0316",
            Self::Refused { .. } => "LW0317",
            Self::BadOrder { .. } => "LW0318",
            Self::Busy { .. } => "LW0319",
            Self::Io { .. } => "LW0320",
            Self::Closed => "LW0321",
            Self::Hook { .. } => "LW0360",
        }
    }
}

/// Returns a function that gives an IO error its verb and its file.
pub(crate) fn io_error(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { doing, path, source }
}
