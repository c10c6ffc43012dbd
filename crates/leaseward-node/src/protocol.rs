//! What an agent and a shim say to each other: JSON, one value a line.
//!
//! Must stay true: requests of one connection are answered in their order; [`Reply::Over`] may come at any time and
//! answers nothing. The first line on a shim's standard input is its [`Order`]; that connection then speaks like any
//! other.

use std::path::PathBuf;

use leaseward_state::server::{Exit, ServerSpec};
use leaseward_state::token::FencingToken;
use serde::{Deserialize, Serialize};

use crate::clock::BootInstant;
use crate::process::ProcessId;

/// Everything a shim needs to know, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) server: String,
    pub(crate) machine: String,
    pub(crate) lease: String,
    pub(crate) token: FencingToken,
    /// The boot in which the deadline means something.
    pub(crate) boot_id: String,
    pub(crate) deadline: BootInstant,
    /// Which start under this token, from 0.
    pub(crate) attempt: u32,
    /// Whether to ask for real-time scheduling and locked memory.
    pub(crate) real_time: bool,
    pub(crate) work: Work,
}

impl Order {
    /// Returns whether both are for the same start under the same token.
    pub(crate) fn is_same_run(&self, other: &Self) -> bool {
        (&self.server, self.token, self.attempt) == (&other.server, other.token, other.attempt)
    }
}

/// What runs under a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Work {
    /// A server, which outlives the agent.
    Server {
        run_dir: PathBuf,
        log: PathBuf,
        spec: Box<ServerSpec>,
        /// The cgroup that its limits are in force in.
        #[serde(default)]
        cgroup: Option<PathBuf>,
    },
    /// The command on the shim's own command line, with the caller's terminal and environment. It is stopped when
    /// the caller goes.
    Command,
}

/// What a shim is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Move the deadline forward.
    Extend { token: FencingToken, deadline: BootInstant, boot_id: String },
    /// Ask the server to stop; kill it after the grace.
    Stop { token: FencingToken, grace_ms: u64 },
    /// Kill it now.
    Kill { token: FencingToken },
    /// Say how things are.
    Status,
}

/// What a shim says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// To the order: the server executes.
    Started(Status),
    /// To the order: it does not, and never will.
    Failed { why: String },
    /// The deadline that is armed now: at least the one asked for.
    Extended { deadline: BootInstant },
    /// The request is being carried out.
    Done,
    /// How things are.
    Status(Status),
    /// The request is not for this shim.
    Refused { why: String },
    /// Unasked: every process of the server is gone.
    Over { exit: Exit },
}

/// How things are under a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) server: String,
    pub(crate) token: FencingToken,
    pub(crate) boot_id: String,
    pub(crate) attempt: u32,
    pub(crate) deadline: BootInstant,
    pub(crate) shim: ProcessId,
    pub(crate) init: ProcessId,
    /// The server's main process, in the shim's PID namespace; 0 before it executes.
    pub(crate) server_pid: u32,
    /// Whether the kernel granted the real-time class.
    pub(crate) real_time: bool,
}
