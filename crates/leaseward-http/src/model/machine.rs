//! Machines: where servers can run and config sets go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Fence, Time, Wide};

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
    /// The same with all its words.
    pub cordon: Option<CordonShown>,
    /// Since when its agent was not heard for two renewals. Its session lives on for the rest of its time.
    #[serde(default)]
    pub suspected: Option<Time>,
    /// When it was lost without a word, oldest first, since somebody trusted it last.
    #[serde(default)]
    pub losses: Vec<Time>,
    /// The weight of the servers that it can run; any, if not given.
    pub capacity: Option<u32>,
    /// Servers that it can start at the same time; 0: any.
    #[serde(default)]
    pub start_slots: u32,
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

/// How new servers are kept away from a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CordonShown {
    /// Why.
    pub reason: String,
    /// Whether its servers leave it too.
    pub drains: bool,
    /// Whether it is a quarantine, because the machine was lost too often.
    pub quarantine: bool,
    /// When it ends by itself.
    pub until: Option<Time>,
}

/// Keeps new servers away from a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Cordon {
    /// Why, for whoever looks at night.
    pub reason: String,
    /// It ends by itself after this.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasting: Option<Duration>,
    /// Whether it is shown as a quarantine.
    #[serde(default)]
    pub quarantine: bool,
}

/// Vouches for the death of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfirmDead {
    /// The machine's name once more, typed by whoever has seen that it is off.
    pub confirm: String,
    /// Who says so.
    pub by: String,
}
