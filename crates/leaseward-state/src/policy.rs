//! What the operator decided for the whole cluster: how carefully the master acts, and when it does not act at all.
//!
//! Must stay true: a policy only brakes the master and bounds what is kept; none of it makes a lease or a fence weaker.

use serde::{Deserialize, Serialize};

use crate::name::MachineName;
use crate::token::UnixMillis;

/// A time in which nobody is to be moved or restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Why.
    pub why: String,
    /// When it ends by itself, by wall clock; `None`: when somebody ends it.
    pub until: Option<UnixMillis>,
}

/// What the operator decided for the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Counts the policies, from 1; 0 while nobody has set one.
    pub version: u64,
    /// For servers that name no candidates: machines that may run them, best first. Empty: every machine, by load.
    pub candidates: Vec<MachineName>,
    /// Servers that may be on their way up at the same time in the whole cluster.
    pub concurrent_starts: u32,
    /// So many percent of the machines lost at once, and more than two of them, are taken for a fault of the network:
    /// the master waits before it moves anything.
    pub brake_percent: u32,
    /// How long it waits then, in milliseconds.
    pub brake_ms: u64,
    /// So many unplanned losses of a machine within `quarantine_window_ms` keep new servers away from it; 0: never.
    pub quarantine_losses: u32,
    /// The window of `quarantine_losses`, in milliseconds.
    pub quarantine_window_ms: u64,
    /// How long they are kept away, in milliseconds.
    pub quarantine_ms: u64,
    /// So many machines in a row that were lost soon after they started a server make it poison; 0: never.
    pub poison_after: u32,
    /// What is soon, in milliseconds.
    pub poison_within_ms: u64,
    /// Nodes that vote, at most; odd.
    pub voters_max: u32,
    /// So many voters stay, lost ones included, when nobody can take a lost one's place; odd. With 1 the cluster goes on
    /// until one node is left, and what is acknowledged may be on that one's disk alone; with 3 it stops before that.
    pub voters_min: u32,
    /// A voter that nobody hears for so many milliseconds is lost.
    pub voter_silence_ms: u64,
    /// Bytes that all kept versions of all config sets may have together, each version counted whole, whatever it shares
    /// with others; 0: as many as the disks hold.
    pub config_bytes_max: u64,
    /// Nothing is moved or restarted, and no voter is replaced.
    pub maintenance: Option<Pause>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            version: 0,
            candidates: Vec::new(),
            concurrent_starts: 8,
            brake_percent: 30,
            brake_ms: 3_000,
            quarantine_losses: 3,
            quarantine_window_ms: 60 * 60_000,
            quarantine_ms: 2 * 60 * 60_000,
            poison_after: 3,
            poison_within_ms: 60_000,
            voters_max: 5,
            voters_min: 1,
            voter_silence_ms: 30_000,
            config_bytes_max: 0,
            maintenance: None,
        }
    }
}
