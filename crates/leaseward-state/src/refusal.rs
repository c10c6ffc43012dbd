//! Why the state did nothing: each refusal has a stable code that people can look up.
//!
//! Must stay true: a code never changes its meaning; every code has a page (`docs/errors/`), and a test looks.

use serde::{Deserialize, Serialize};

use crate::token::{FencingToken, SessionId};

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// A name, path, text or number is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The time to live is outside the allowed range.
    #[error("a time to live of {ttl_ms} ms is outside {min_ms} to {max_ms} ms")]
    Ttl {
        /// What was asked, in milliseconds.
        ttl_ms: u64,
        /// The floor, in milliseconds.
        min_ms: u64,
        /// The ceiling, in milliseconds.
        max_ms: u64,
    },
    /// A bound of the state is reached.
    #[error("the cluster already has {max} {what}")]
    TooMany {
        /// Of what.
        what: String,
        /// The bound.
        max: u64,
    },
    /// The object does not exist.
    #[error("{kind}/{name} does not exist")]
    NotFound {
        /// The kind of object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The object exists already.
    #[error("{kind}/{name} exists already")]
    Exists {
        /// The kind of object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Somebody else holds the lease.
    #[error("lease/{lease} is held by {holder} under token {token}")]
    Held {
        /// The lease.
        lease: String,
        /// Who holds it.
        holder: String,
        /// Under which token.
        token: FencingToken,
    },
    /// The last holder of the lease expired and its delay is not over.
    #[error("lease/{lease} expired under token {token} and its delay is not over")]
    Delayed {
        /// The lease.
        lease: String,
        /// The token that is over.
        token: FencingToken,
    },
    /// The token is not the present one.
    #[error("token {given} of lease/{lease} is stale: {}", present(.current))]
    StaleToken {
        /// The lease.
        lease: String,
        /// The token that was given.
        given: FencingToken,
        /// The token under which it is held now, if it is.
        current: Option<FencingToken>,
    },
    /// The session is over or was never open.
    #[error("session {session} is over")]
    NoSession {
        /// The session.
        session: SessionId,
    },
    /// The object has another version than the writer thought.
    #[error("{kind}/{name} is at version {current}, not {expected}")]
    Version {
        /// The kind of object.
        kind: String,
        /// Its name.
        name: String,
        /// The version the writer thought it has.
        expected: u64,
        /// The version it has.
        current: u64,
    },
    /// The command came from a leader that was deposed meanwhile, or from an outdated view.
    #[error("decided on an outdated view: {0}")]
    Outdated(String),
    /// The object is in use.
    #[error("{kind}/{name} is in use: {why}")]
    InUse {
        /// The kind of object.
        kind: String,
        /// Its name.
        name: String,
        /// By what.
        why: String,
    },
    /// A command inside an atomic command was refused, so all were.
    #[error("part {part} of the transaction was refused: {refusal}")]
    Part {
        /// Which, from 0.
        part: u32,
        /// Why.
        refusal: Box<Self>,
    },
    /// The command came with a newer release, and some node may not be able to read it.
    #[error("the cluster is at feature level {level}, and this needs {needs}: some node may run an older release")]
    FeatureLevel {
        /// The level it came with.
        needs: u32,
        /// The cluster's level.
        level: u32,
    },
    /// The config sets would have more bytes together than the cluster's policy allows.
    #[error(
        "all kept versions of all config sets would have {would} bytes; they have {has}, and `config_bytes_max` is {max}"
    )]
    ConfigFull {
        /// Bytes that they have.
        has: u64,
        /// Bytes that they would have.
        would: u64,
        /// Bytes that the policy allows.
        max: u64,
    },
}

fn present(current: &Option<FencingToken>) -> String {
    current.map_or_else(|| "nobody holds it now".to_owned(), |token| format!("it is held under token {token} now"))
}

impl Refusal {
    /// Returns the stable code of its page.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "LW0101",
            Self::Ttl { .. } => "LW0102",
            Self::TooMany { .. } => "LW0105",
            Self::Held { .. } => "LW0202",
            Self::StaleToken { .. } => "LW0203",
            Self::NoSession { .. } => "LW0204",
            Self::Delayed { .. } => "LW0205",
            Self::Outdated(_) => "LW0206",
            Self::NotFound { .. } => "LW0404",
            Self::Exists { .. } => "LW0409",
            Self::Version { .. } => "LW0412",
            Self::InUse { .. } => "LW0413",
            Self::Part { refusal, .. } => refusal.code(),
            Self::FeatureLevel { .. } => "LW0612",
            Self::ConfigFull { .. } => "LW0112",
        }
    }
}
