//! Servers as the cluster knows them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Duration, Pause, ServerFile, Time, Wide};

/// What the operator wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// It should run on exactly one machine.
    Running,
    /// It should run nowhere.
    Stopped,
}

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServerPhase {
    /// It runs nowhere, as it should.
    Stopped,
    /// It should run and has no machine yet.
    Unplaced,
    /// What surrounds it is being made ready: mounts, addresses, hooks.
    Preparing,
    /// It is dead, and something is in the way of giving up what surrounds it.
    Stuck,
    /// A machine has its lease; nothing was heard yet.
    Ordered,
    /// Its process lives and has not passed its first check.
    Starting,
    /// It works.
    Running,
    /// Its checks fail.
    Unhealthy,
    /// It crashed and is restarted in place.
    Restarting,
    /// It is being stopped.
    Stopping,
    /// It leaves its machine for another one.
    Moving,
    /// Its machine is lost, and the death of its copy there is not proven yet.
    Fencing,
    /// Its machine is lost and its copy there is dead; it waits for a place.
    Fenced,
    /// It failed too often; somebody must start it again.
    Failed,
}

impl ServerPhase {
    /// Returns it as JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Unplaced => "unplaced",
            Self::Preparing => "preparing",
            Self::Stuck => "stuck",
            Self::Ordered => "ordered",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Unhealthy => "unhealthy",
            Self::Restarting => "restarting",
            Self::Stopping => "stopping",
            Self::Moving => "moving",
            Self::Fencing => "fencing",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Server {
    /// Its name.
    #[schema(example = "pay-1")]
    pub name: String,
    /// Counts its specifications.
    pub version: u64,
    /// What the operator wants.
    pub wanted: Wanted,
    /// Where it is in its life.
    pub phase: ServerPhase,
    /// Set while it is neither restarted nor moved.
    pub paused: Option<Pause>,
    /// The machine that has its lease, or had it if that one is lost.
    pub machine: Option<String>,
    /// Its fencing token there.
    pub token: Option<Wide>,
    /// Where it goes, while it is being moved.
    pub moving_to: Option<String>,
    /// More words about its phase.
    pub status: String,
    /// Its process there.
    pub pid: Option<u32>,
    /// When it was placed there.
    pub since: Option<Time>,
    /// Restarts in place since.
    pub restarts: u32,
    /// The machine that makes ready for it while its own is not heard.
    pub heir: Option<Heir>,
    /// Its failures that are remembered, oldest first.
    pub failures: Vec<ServerFailure>,
    /// The machine it last ran on.
    pub last_machine: Option<String>,
    /// From the last sign of life of its machine until another one may start it, at most. Unknown while it has no
    /// machine, or where only the operator can say how long to wait and did not.
    pub worst_case: Option<Duration>,
    /// What the operator asked for.
    pub spec: ServerFile,
    /// The entry that made it.
    pub created: Wide,
    /// The entry that changed it last.
    pub modified: Wide,
}

/// A machine that makes ready for a server whose own machine is not heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Heir {
    /// The machine.
    pub machine: String,
    /// `preparing`, `ready` or `lacking`.
    pub readiness: String,
    /// What is missing there, if anything is.
    pub lacking: Option<String>,
}

/// A failure of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerFailure {
    /// When.
    pub at: Time,
    /// Where.
    pub machine: String,
    /// The token it ran under.
    pub token: Wide,
    /// Which restart under that token, from 0.
    pub attempt: u32,
    /// What happened.
    pub why: String,
    /// Whether the whole machine was lost, soon after the server was placed on it.
    #[serde(default)]
    pub machine_lost: bool,
}

/// Servers by ascending names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerList {
    /// The revision to watch from.
    pub revision: Wide,
    /// The servers.
    pub items: Vec<Server>,
    /// Ask for this page next, if there is one.
    pub next_page: Option<String>,
}

/// Whether a server works, for load balancers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerHealth {
    /// The server.
    pub server: String,
    /// Where it is in its life.
    pub phase: ServerPhase,
    /// Where it runs.
    pub machine: Option<String>,
    /// Its fencing token.
    pub token: Option<Wide>,
}

/// What a server printed on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerOutput {
    /// The server.
    pub server: String,
    /// The machine.
    pub machine: String,
    /// Its last lines, oldest first.
    pub lines: Vec<String>,
}
