//! Leases: exclusive ownership of a name under a session.
//!
//! Must stay true: at most one grant at a time; its token is the revision of the granting entry; waiters are served
//! by priority, then first come, first served. A lease that nobody holds, waits for or delays does not exist.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::token::{FencingToken, Revision, SessionId, UnixMillis};

/// A lease that is held, delayed or waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The entry that made it.
    pub created: Revision,
    /// The entry that changed it last.
    pub modified: Revision,
    /// Whether somebody holds it.
    pub state: LeaseState,
    /// Who waits, next one first.
    pub waiters: Vec<Waiter>,
}

/// Whether somebody holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseState {
    /// Somebody holds it.
    Held(Grant),
    /// Its holder expired and nobody may have it yet: the lock-delay runs, or a server's fence is not proven.
    Delayed {
        /// The token that is over.
        token: FencingToken,
        /// How long the leader waits before it ends the delay, in milliseconds; 0 for a server's lease, which the
        /// master ends.
        delay_ms: u64,
    },
}

/// Somebody's right to a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The session it lives and dies with.
    pub session: SessionId,
    /// Who in that session; two holders of one session exclude each other too.
    pub holder: String,
    /// The fencing token.
    pub token: FencingToken,
    /// When it was granted, by the proposer's clock.
    pub at: UnixMillis,
    /// The holder's own notes.
    pub meta: BTreeMap<String, String>,
    /// After an expiry nobody gets it for so long, in milliseconds.
    pub lock_delay_ms: u64,
}

/// Somebody who waits for a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    /// The session it would live and die with.
    pub session: SessionId,
    /// Who in that session.
    pub holder: String,
    /// Higher goes first.
    pub priority: i32,
    /// The entry that queued it.
    pub queued: Revision,
    /// The holder's own notes.
    pub meta: BTreeMap<String, String>,
    /// The lock-delay of the grant it will get, in milliseconds.
    pub lock_delay_ms: u64,
}

/// Why a grant is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrantEnd {
    /// Its holder gave it back.
    Released,
    /// Its session was not renewed in time.
    Expired,
    /// An operator took it away.
    Revoked,
    /// A new incarnation of its machine appeared.
    Superseded,
}

impl Lease {
    /// Returns the present grant, if somebody holds it.
    #[must_use]
    pub fn grant(&self) -> Option<&Grant> {
        match &self.state {
            LeaseState::Held(grant) => Some(grant),
            LeaseState::Delayed { .. } => None,
        }
    }
}
