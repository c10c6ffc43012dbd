//! The cluster as a whole: what `leaseward status` shows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Wide};

/// How the cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// All is well.
    Ok,
    /// It works, and somebody should look.
    Degraded,
    /// Nothing can be committed.
    Down,
}

/// The cluster at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStatus {
    /// The cluster's id, in hexadecimal.
    pub cluster: String,
    /// How it is.
    pub health: Health,
    /// The same in one sentence.
    pub sentence: String,
    /// The leader's name.
    pub leader: Option<String>,
    /// The term of the node that answers.
    pub term: u64,
    /// The revision of what is counted here.
    pub revision: Wide,
    /// Everybody who votes, by id.
    pub voters: Vec<Node>,
    /// Nodes that do not vote now, by id: standbys and learners.
    pub learners: Vec<Node>,
    /// Machines: `connected`, `lost`, `cordoned`.
    pub machines: BTreeMap<String, u64>,
    /// Leases by state.
    pub leases: BTreeMap<String, u64>,
    /// Open sessions.
    pub sessions: u64,
    /// Servers by phase.
    pub servers: BTreeMap<String, u64>,
    /// Config sets.
    pub sets: u64,
    /// Members of config sets that have the newest version, out of all that ever reported.
    pub in_sync: Count,
    /// What somebody should look at, with where to look.
    pub warnings: Vec<String>,
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// So many.
    pub of: u64,
    /// Out of these.
    pub all: u64,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// It leads.
    Leader,
    /// It votes.
    Voter,
    /// It may vote, and others do: it takes the place of one that is lost.
    Standby,
    /// It never votes.
    Learner,
}

/// A node that stores the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its id, fresh for each data directory.
    pub id: u64,
    /// What people call it.
    pub name: String,
    /// What it does.
    pub role: NodeRole,
    /// It votes only where others are too few, and runs no servers.
    #[serde(default)]
    pub witness: bool,
    /// Whether it answered just now.
    pub up: bool,
    /// Entries of the leader's log that it lacks; unknown if either did not answer.
    pub lag: Option<u64>,
    /// The index of the last entry it applied.
    pub applied: Option<u64>,
    /// Its version.
    pub version: Option<String>,
    /// The feature level that it can read.
    pub feature_level: Option<u32>,
    /// Why it takes no part, if so.
    pub quarantined: Option<String>,
    /// Where peers reach it.
    pub peer_address: String,
    /// Where its API is.
    pub api_address: String,
    /// How long its answer took.
    pub answered_in: Option<Duration>,
}

/// Nodes by ascending ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The revision of the node that answers.
    pub revision: Wide,
    /// The nodes.
    pub items: Vec<Node>,
    /// Ask for this page next, if there is one.
    #[serde(default)]
    pub next_page: Option<String>,
}

/// Hands leadership over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// To which voter; the best one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}
