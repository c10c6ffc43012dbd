//! How floor 1 asks for an entry without knowing Raft. A signature, so still pure.

use std::future::Future;

use crate::command::{Reply, Request};
use crate::token::{Revision, Term};

/// A committed and applied entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub revision: Revision,
    /// What it answered. A refusal is committed too.
    pub reply: Reply,
}

/// Why there is no answer. It never means that the entry was not applied, unless it says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCommitted {
    /// Nobody leads, or no quorum answers. The entry was certainly not appended.
    #[error("the cluster has no leader that answers")]
    NoLeader,
    /// The answer did not come in time: the entry may be applied now, later, or never.
    #[error("no answer in time; the outcome is unknown")]
    Unknown,
    /// This node takes no proposals: its queue is full, its disk is, or it is kept out. The entry was certainly not appended.
    #[error("not accepted: {0}")]
    Overloaded(String),
}

impl NotCommitted {
    /// Returns whether sending the same request again, with the same key, is the thing to do.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        true
    }
}

/// Asks for entries.
pub trait Propose: Clone + Send + Sync + 'static {
    /// Returns the answer to `request` once it is committed and applied here. Forwards to the leader (one hop).
    ///
    /// Dropping the future leaves the outcome unknown.
    fn propose(&self, request: Request) -> impl Future<Output = Result<Committed, NotCommitted>> + Send;

    /// Returns the answer to a leader's own command; never forwarded (rule R5).
    ///
    /// Dropping the future leaves the outcome unknown.
    fn propose_internal(&self, request: Request) -> impl Future<Output = Result<Committed, NotCommitted>> + Send;

    /// Returns the term in which this node leads and has applied its first entry, if it does.
    fn leading(&self) -> Option<Term>;
}
