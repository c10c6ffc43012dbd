//! What the operator decided for the whole cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Time};

/// A time in which nothing is moved or restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Why.
    pub reason: String,
    /// When it ends by itself; when somebody ends it, if not given.
    #[serde(default)]
    pub until: Option<Time>,
}

/// Begins a time in which nothing is moved or restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginPause {
    /// Why, for whoever looks at night.
    pub reason: String,
    /// It ends by itself after this.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasting: Option<Duration>,
}

/// How carefully the master acts, who votes, and how much is kept. What a request leaves out is as usual.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Counts the policies; 0 while nobody has set one. Ignored in a request: that is what `If-Match` is for.
    pub version: u64,
    /// For servers that name no candidates: machines that may run them, best first. Empty: every machine, by load.
    pub candidates: Vec<String>,
    /// Servers that may be on their way up at the same time in the whole cluster; 0: any.
    pub concurrent_starts: u32,
    /// More than so many percent of the machines, and more than two, lost at once: the master waits before it moves
    /// anything.
    pub brake_percent: u32,
    /// How long it waits then.
    pub brake: Duration,
    /// So many unplanned losses of a machine within `quarantine_window` keep new servers away from it; 0: never.
    pub quarantine_losses: u32,
    /// The window of `quarantine_losses`.
    pub quarantine_window: Duration,
    /// How long they are kept away.
    pub quarantine: Duration,
    /// So many machines in a row that were lost soon after they got a server make it poison; 0: never.
    pub poison_after: u32,
    /// What is soon.
    pub poison_within: Duration,
    /// Nodes that vote, at most; odd.
    pub voters_max: u32,
    /// So many voters stay, lost ones included, when nobody can take a lost one's place; odd. With 1 the cluster goes on
    /// until one node is left, and what is acknowledged may be on that one's disk alone; with 3 it stops before that.
    pub voters_min: u32,
    /// A voter that nobody hears for so long is lost.
    pub voter_silence: Duration,
    /// Bytes that all kept versions of all config sets may have together, each version counted whole, before what they
    /// share is kept once; 0: as many as the disks hold.
    pub config_bytes_max: u64,
    /// Nothing is moved or restarted.
    pub maintenance: Option<Pause>,
}

impl Default for Policy {
    fn default() -> Self {
        crate::view::policy(&leaseward_state::policy::Policy::default())
    }
}
