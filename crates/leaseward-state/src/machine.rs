//! Machines: where servers can run and config sets go.
//!
//! Must stay true: a machine has at most one open session; while it has none, nothing may be assigned to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::server::FenceLevel;
use crate::session::Incarnation;
use crate::token::{Revision, SessionId, UnixMillis};

/// The label of machines that are reached by ssh, and its value there.
pub const MANAGER_LABEL: (&str, &str) = ("manager", "ssh");

/// A machine known to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The entry that made it.
    pub created: Revision,
    /// The entry that changed it last.
    pub modified: Revision,
    /// What its agent said when it opened its session.
    pub profile: MachineProfile,
    /// The run of the agent that was heard last.
    pub incarnation: Incarnation,
    /// Its open session, while it has one.
    pub session: Option<SessionId>,
    /// When its session opened or ended, by the proposer's clock.
    pub since: UnixMillis,
    /// Why nothing new is placed on it, if so.
    pub cordoned: Option<Cordon>,
    /// When its session ran out of time, newest last, at most [`crate::limits::LOSSES_KEPT_MAX`].
    pub losses: Vec<UnixMillis>,
    /// Since when its agent was not heard for two renewals, while its session lives on.
    pub suspected: Option<UnixMillis>,
    /// Somebody, or a fence hook, has proven that it is off; until it is heard again.
    pub confirmed_dead: bool,
    /// The entry that changed what its agent should do. An agent that knows it knows its orders.
    pub orders_revision: Revision,
}

/// Nothing new is placed on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cordon {
    /// Why.
    pub why: String,
    /// Whether its servers leave it too.
    pub drains: bool,
    /// Whether the master did it, because the machine was lost too often.
    pub quarantine: bool,
    /// When it ends by itself, by wall clock; `None`: when somebody ends it.
    pub until: Option<UnixMillis>,
}

/// What an agent says of its machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineProfile {
    /// Free words for placement.
    pub labels: BTreeMap<String, String>,
    /// The fence that its privileges earn.
    pub fence: FenceLevel,
    /// Where people and other members reach it.
    pub address: String,
    /// The version of its binary.
    pub version: String,
    /// The weight of the servers that it can run; `None`: any.
    pub capacity: Option<u32>,
    /// Servers that it can start at the same time; 0: any.
    pub start_slots: u32,
    /// After so many milliseconds without a sign of life its watchdog resets it (fence level F4).
    pub watchdog_ms: Option<u64>,
}
