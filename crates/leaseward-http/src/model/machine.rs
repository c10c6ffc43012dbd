//! Machines: where servers can run and config sets go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Fence, Time, Wide};

/// A machine known to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its name.
    #[schema(example = "m1")]
    pub name: String,
    /// Whether its agent's session is open.
    pub connected: bool,
    /// Its agent's session, while it has one.
    pub session: Option<Wide>,
    /// When its session opened or ended.
    pub since: Time,
    /// Why nothing new is placed on it, if so.
    pub cordoned: Option<String>,
    /// Words for placement.
    pub labels: BTreeMap<String, String>,
    /// The fence that its privileges earn.
    pub fence: Fence,
    /// Where others reach it.
    pub address: String,
    /// The version of its binary.
    pub agent_version: String,
    /// The servers assigned to it, ascending.
    pub servers: Vec<String>,
    /// Its version, as in its `ETag`: the entry that changed it last.
    #[serde(default)]
    pub version: u64,
    /// The entry that made it.
    pub created: Wide,
    /// The entry that changed it last.
    pub modified: Wide,
}

/// Machines by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The machines.
    pub items: Vec<Machine>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Keeps new servers away from a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cordon {
    /// Why, for whoever looks at night.
    pub reason: String,
}
