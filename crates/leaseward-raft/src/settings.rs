//! How a replica runs. `Default` runs; every field says its consequence.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::apply::feature::FEATURE_LEVEL;

use crate::limits::{FREE_BYTES_MIN, LOG_BYTES_KEPT, SEGMENT_BYTES, SNAPSHOT_AFTER_BYTES};
use crate::net::transport::Transport;
use crate::types::Standing;

/// How patient nodes are with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The leader says at least this often that it is there.
    pub heartbeat: Duration,
    /// After this long without a word from the leader, a node may think of an election. Shorter: faster failover of
    /// a silent leader, more elections on a busy machine.
    pub election_min: Duration,
    /// Each node waits a random time between `election_min` and this, so that they do not all campaign at once.
    pub election_max: Duration,
}

impl Default for Timing {
    /// For a local network.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
        }
    }
}

impl Timing {
    /// For machines next to each other, with quick disks.
    #[must_use]
    pub fn fast() -> Self {
        Self {
            heartbeat: Duration::from_millis(50),
            election_min: Duration::from_millis(200),
            election_max: Duration::from_millis(400),
        }
    }

    /// For machines far apart.
    #[must_use]
    pub fn wan() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            election_min: Duration::from_millis(2500),
            election_max: Duration::from_millis(5000),
        }
    }
}

/// Called once if this node can no longer be trusted with its data or its core is gone.
pub type Fatal = Arc<dyn Fn(&str) + Send + Sync>;

/// How a replica runs.
#[derive(Clone)]
pub struct Settings {
    /// What people call this node.
    pub name: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Where it listens for peers and clients.
    pub listen: SocketAddr,
    /// Where others reach it, as `host:port`.
    pub advertise: String,
    /// Where its HTTP API is, for others to know.
    pub api_address: String,
    /// Whether it may vote, as it says when it joins.
    pub standing: Standing,
    /// How patient nodes are with each other.
    pub timing: Timing,
    /// Whether connections may leave the machine.
    pub transport: Transport,
    /// A proposal without an answer is given up after this.
    pub propose_within: Duration,
    /// Size of a log segment, in bytes.
    pub segment_bytes: u64,
    /// Log bytes after which a snapshot is made.
    pub snapshot_after_bytes: u64,
    /// Log bytes kept behind a snapshot, for followers that were away briefly. Less: they need the whole snapshot.
    pub log_bytes_kept: u64,
    /// Free space below which no proposals are taken, in bytes.
    pub free_bytes_min: u64,
    /// The feature level that this node says it can read. Lower than the build's own: the cluster keeps to it, so that
    /// an older release can still be put back.
    pub feature_level: u32,
    /// What to do when this node must not go on. The default ends the process with 70.
    pub fatal: Fatal,
}

impl Settings {
    /// Returns the settings of a node with everything at its default.
    #[must_use]
    pub fn new(name: impl Into<String>, data: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            name: name.into(),
            data: data.into(),
            listen,
            advertise: listen.to_string(),
            api_address: String::new(),
            standing: Standing::default(),
            timing: Timing::default(),
            transport: Transport::default(),
            propose_within: Duration::from_secs(5),
            segment_bytes: SEGMENT_BYTES,
            snapshot_after_bytes: SNAPSHOT_AFTER_BYTES,
            log_bytes_kept: LOG_BYTES_KEPT,
            free_bytes_min: FREE_BYTES_MIN,
            feature_level: FEATURE_LEVEL,
            fatal: Arc::new(|why| {
                tracing::error!(why, "this node cannot go on");
                std::process::exit(70);
            }),
        }
    }
}
