//! Sessions: what is renewed. One per agent, or one per client program; a session holds any number of leases.
//!
//! Must stay true: a session ends by an entry only. When that entry may be proposed is the leader's business
//! (rules R3 to R6, `leaseward-raft`); the state has no deadlines.

use imbl::OrdSet;
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::name::{LeaseName, MachineName};
use crate::token::{Revision, SessionId, UnixMillis};

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The revision that opened it.
    pub id: SessionId,
    /// Whose it is.
    pub owner: Owner,
    /// Time to live after a renewal was sent, in milliseconds.
    pub ttl_ms: u64,
    /// When it was opened, by the proposer's clock.
    pub opened_at: UnixMillis,
    /// The leases it holds, servers' leases included.
    pub leases: OrdSet<LeaseName>,
    /// The entry that changed `leases` last. A holder that knows it knows its leases.
    pub leases_revision: Revision,
}

/// Whose session it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// A machine's agent.
    Machine(MachineName),
    /// A client program, by the name it gives itself: shown to people, never compared.
    Client(String),
}

impl Command {
    /// Returns whether a session may be opened by it: whoever asked believes in it from then on, as by a renewal
    /// (rule R4).
    #[must_use]
    pub fn opens_session(&self) -> bool {
        match self {
            Self::OpenSession { .. } | Self::OpenMachine(_) | Self::AcquireOpening { .. } => true,
            Self::Atomic { commands, .. } => commands.iter().any(Self::opens_session),
            _ => false,
        }
    }
}

impl Owner {
    /// Returns the owner's name as people know it.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Machine(machine) => machine.as_str(),
            Self::Client(name) => name,
        }
    }
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEnd {
    /// Its owner ended it.
    Ended,
    /// It was not renewed in time.
    Expired,
    /// A new incarnation of its machine opened another one.
    Superseded,
}

/// Which run of which boot of a machine speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// The kernel's random id of this boot.
    pub boot_id: String,
    /// The upper half is a random number that is drawn by an agent that remembers no earlier run; the lower half counts the
    /// sessions that were asked for since, by it and by those that remember it.
    pub instance: u128,
}

impl Incarnation {
    /// Returns whether this run comes after another one in the same boot and remembers it: it knows where to look for what that
    /// one left. Two agents that have the same machine's name by mistake remember nothing of each other.
    #[must_use]
    pub fn follows(&self, earlier: &Self) -> bool {
        let agent = |incarnation: &Self| incarnation.instance >> 64;
        self.boot_id == earlier.boot_id && agent(self) == agent(earlier) && self.instance > earlier.instance
    }
}
