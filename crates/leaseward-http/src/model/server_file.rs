//! What an operator asks of a server: the form that is written in TOML and JSON.
//!
//! Must stay true: what is read from a file and written again means the same; unknown keys are errors with a
//! suggestion. Left out on purpose: what surrounds a server on its machine (`surroundings.rs`), and what the state keeps of all
//! that (`server_spec.rs`).

use std::collections::BTreeMap;

use leaseward_state::server::FenceLevel;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Duration;
use super::surroundings::{HookFile, LimitsFile, MountFile, VipFile};

/// What an operator asks of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerFile {
    /// Its name. In a request the URL has it, and this must be the same if it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "pay-1")]
    pub name: Option<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Run instead of SIGTERM to ask the server to stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Added to a clean environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The working directory; `/` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user it runs as; the agent's own if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Machines that may run it, best first. Empty: every machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<String>,
    /// Labels that a machine must have, such as `disk = "ssd"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Servers that must not be on the same machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anti_affinity: Vec<String>,
    /// How much of a machine's capacity it takes. 1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether it is placed elsewhere when its machine is lost. If not, it waits for its machine. True if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_migrate: Option<bool>,
    /// `manual`, or `auto-after 10m`: it returns to the first of its candidates once that one could have taken it for so
    /// long. `manual` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "auto-after 10m")]
    pub failback: Option<String>,
    /// Machines whose fence is below this level are not used. F1 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires_fence: Option<Fence>,
    /// Replaces the grace of the machine's fence level. Required where the level has none: F0, F4, F5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
    /// How to see that it works. Without one, a live process is a working one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckFile>,
    /// Until its first good check it may take this long. 60 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<Duration>,
    /// After the stop signal it may take this long; then it is killed. 30 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace: Option<Duration>,
    /// What follows a crash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartFile>,
    /// Higher is placed first.
    #[serde(default)]
    pub priority: i32,
    /// Config sets that must be on the machine's disk before it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<String>,
    /// Addresses that follow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<VipFile>,
    /// File systems that follow it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountFile>,
    /// Programs around its life, by step: `prepare`, `mount`, `address_add`, `pre_start`, `post_start`, `pre_stop`,
    /// `post_stop`, `address_del`, `unmount`, `fence`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, HookFile>,
    /// What it may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsFile>,
    /// A file that says how it stands, as WebLogic's node manager writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_file: Option<String>,
    /// Who may carry out orders: `agent`, on the machine or through ssh; or with `ssh` also a control script through
    /// ssh, which ends nothing in time. `agent` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ManagerFile>,
}

/// How surely a machine can stop a server whose lease is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum Fence {
    /// A guard in user space only.
    F0,
    /// An unprivileged user and PID namespace with a kernel timer.
    F1,
    /// A PID namespace as root, real-time priority, locked memory.
    F2,
    /// F2 and a network fence.
    F3,
    /// F3 and a hardware watchdog.
    F4,
    /// F4 and a storage reservation or a power hook.
    F5,
}

/// A repeated look at a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "a check as { type = \"tcp\", address = \"127.0.0.1:80\" }")]
pub struct CheckFile {
    /// What is looked at.
    #[serde(rename = "type")]
    pub kind: CheckKind,
    /// `host:port`, for `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Answers 2xx or 3xx to a GET, for `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Ends with 0, for `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// From one look to the next. 2 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// One look takes at most this long. 1 s if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// So many bad looks in a row make it hung. 3 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misses: Option<u32>,
}

/// What a health check looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// The process lives.
    Process,
    /// A TCP connection opens.
    Tcp,
    /// An HTTP GET answers well.
    Http,
    /// A command ends with 0.
    Command,
}

/// What follows a crash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartFile {
    /// Restarts on the same machine within `per`; after them it moves. 3 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_place: Option<u32>,
    /// The window of `in_place`. 10 min if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Duration>,
    /// Failures in the whole cluster within `cluster_per`; after them it is failed. 6 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<u32>,
    /// The window of `cluster`. 1 h if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_per: Option<Duration>,
    /// Waits before the restarts; the last one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Vec<Duration>>,
}

/// Who carries out orders on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManagerFile {
    /// Leaseward's agent.
    #[default]
    Agent,
    /// Also a control script, through the system's ssh.
    Ssh,
}

macro_rules! levels {
    ($($level:ident),*) => {
        impl From<FenceLevel> for Fence {
            fn from(level: FenceLevel) -> Self {
                match level { $(FenceLevel::$level => Self::$level,)* }
            }
        }

        impl From<Fence> for FenceLevel {
            fn from(level: Fence) -> Self {
                match level { $(Fence::$level => Self::$level,)* }
            }
        }
    };
}

levels!(F0, F1, F2, F3, F4, F5);
