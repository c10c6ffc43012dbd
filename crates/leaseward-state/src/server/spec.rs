//! What an operator asks of a server.
//!
//! Must stay true: enums grow at the end only (they are stored by position); what a field means here is what a machine
//! does with it. Left out on purpose: the form that people write, with its defaults and checks (`leaseward-http`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FenceLevel;
use crate::limits::{START_TIMEOUT_MS, STOP_GRACE_MS};
use crate::name::{MachineName, ServerName};

/// What an operator asked for. A new version replaces the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Run instead of SIGTERM to ask the server to stop, if not empty.
    pub stop_command: Vec<String>,
    /// Added to a clean environment.
    pub environment: BTreeMap<String, String>,
    /// The working directory; `/` if none.
    pub directory: Option<String>,
    /// The user it runs as; the agent's own if none.
    pub user: Option<String>,
    /// Machines that may run it, best first. Empty: every machine, by name.
    pub candidates: Vec<MachineName>,
    /// Labels that a machine must have, each with this value.
    pub labels: BTreeMap<String, String>,
    /// Servers that must not be on the same machine.
    pub apart_from: Vec<ServerName>,
    /// How much of a machine's capacity it takes.
    pub weight: u32,
    /// Whether it is placed elsewhere when its machine is lost. If not, it waits for its machine.
    pub migrates: bool,
    /// Whether and when it returns to the first of its candidates by itself.
    pub failback: Failback,
    /// Machines below this level are not used.
    pub requires_fence: FenceLevel,
    /// Replaces the grace of the machine's fence level, in milliseconds. Required where the level has none.
    pub grace_ms: Option<u64>,
    /// How to see that it works. Without one, a live process is a working one.
    pub check: Option<HealthCheck>,
    /// Until its first good check it is starting, at most this long, in milliseconds.
    pub start_timeout_ms: u64,
    /// After the stop signal it may take this long, in milliseconds; then it is killed.
    pub stop_grace_ms: u64,
    /// What follows a crash.
    pub restart: RestartPolicy,
    /// Higher is placed first.
    pub priority: i32,
    /// Addresses that follow it.
    pub addresses: Vec<FloatingAddress>,
    /// File systems that follow it.
    pub mounts: Vec<Mount>,
    /// Programs around its life, by step.
    pub hooks: BTreeMap<HookStep, Hook>,
    /// What it may use at most.
    pub limits: ResourceLimits,
    /// A file that says how it stands, as WebLogic's node manager writes it.
    pub state_file: Option<String>,
    /// Who carries out orders on the machine.
    pub manager: ManagerKind,
    /// Config sets that must be on the machine's disk before it starts.
    pub needs_sets: Vec<String>,
}

impl ServerSpec {
    /// Returns a server that runs `command` somewhere, and of which nothing else is asked.
    #[must_use]
    pub fn new<T: Into<String>>(command: impl IntoIterator<Item = T>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            stop_command: Vec::new(),
            environment: BTreeMap::new(),
            directory: None,
            user: None,
            candidates: Vec::new(),
            labels: BTreeMap::new(),
            apart_from: Vec::new(),
            weight: 1,
            migrates: true,
            failback: Failback::Manual,
            requires_fence: FenceLevel::F0,
            grace_ms: None,
            check: None,
            start_timeout_ms: START_TIMEOUT_MS,
            stop_grace_ms: STOP_GRACE_MS,
            restart: RestartPolicy::default(),
            priority: 0,
            addresses: Vec::new(),
            mounts: Vec::new(),
            hooks: BTreeMap::new(),
            limits: ResourceLimits::default(),
            state_file: None,
            manager: ManagerKind::Agent,
            needs_sets: Vec::new(),
        }
    }

    /// Returns whether a process started for `self` is also the right one for `other`.
    #[must_use]
    pub fn runs_alike(&self, other: &Self) -> bool {
        self.command == other.command
            && self.stop_command == other.stop_command
            && self.environment == other.environment
            && self.directory == other.directory
            && self.user == other.user
            && self.addresses == other.addresses
            && self.mounts == other.mounts
            && self.limits == other.limits
    }
}

/// Who carries out orders on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManagerKind {
    /// Our agent.
    #[default]
    Agent,
    /// The system's ssh and a control script.
    Ssh,
}

/// An address that exists only where the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatingAddress {
    /// IPv4 or IPv6, as text, without a prefix.
    pub ip: String,
    /// The interface; by subnet if none.
    pub interface: Option<String>,
    /// When the neighbours are told.
    pub announce: Announce,
    /// Whether connections of the former owner are woken, so that their clients notice at once.
    pub tickle: bool,
    /// Whether the kernel also stops its packets when the server's time is over (fence level F3).
    pub network_fence: bool,
}

/// When an address is announced to its neighbours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Announce {
    /// Before the program is executed.
    #[default]
    BeforeStart,
    /// After its first good check.
    AfterReady,
}

/// A file system that is mounted only where the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The device or remote path.
    pub device: String,
    /// Where it is mounted.
    pub at: String,
    /// Its type, as `mount -t` takes it.
    pub fs_type: String,
    /// Its options, as `mount -o` takes them.
    pub options: Vec<String>,
}

/// A step in the life of a server at which a program of the operator is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HookStep {
    /// On the machine that will have it, before it has any right: probes only.
    Prepare,
    /// Instead of `mount`.
    Mount,
    /// Instead of adding its addresses.
    AddressAdd,
    /// Before the program is executed.
    PreStart,
    /// After its first good check.
    PostStart,
    /// Before it is asked to stop.
    PreStop,
    /// After every process of it is gone.
    PostStop,
    /// Instead of removing its addresses.
    AddressDel,
    /// Instead of `umount`.
    Unmount,
    /// Proves that a copy elsewhere is dead, such as by switching a machine's power off.
    Fence,
}

impl HookStep {
    /// Every step, in the order of a life.
    pub const ALL: [Self; 10] = [
        Self::Prepare,
        Self::Mount,
        Self::AddressAdd,
        Self::PreStart,
        Self::PostStart,
        Self::PreStop,
        Self::PostStop,
        Self::AddressDel,
        Self::Unmount,
        Self::Fence,
    ];

    /// Returns its name, as operators write it and as hooks get it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Mount => "mount",
            Self::AddressAdd => "address_add",
            Self::PreStart => "pre_start",
            Self::PostStart => "post_start",
            Self::PreStop => "pre_stop",
            Self::PostStop => "post_stop",
            Self::AddressDel => "address_del",
            Self::Unmount => "unmount",
            Self::Fence => "fence",
        }
    }

    /// Returns how long it may take if nobody says otherwise, in milliseconds.
    #[must_use]
    pub fn timeout_ms(self) -> u64 {
        match self {
            Self::AddressAdd | Self::AddressDel => 5_000,
            Self::Fence => 60_000,
            _ => 30_000,
        }
    }

    /// Returns whether it belongs to the end of a life: its failure must never lead to a start elsewhere without a
    /// proof that the copy here is dead.
    #[must_use]
    pub fn is_stop_side(self) -> bool {
        matches!(self, Self::PreStop | Self::PostStop | Self::AddressDel | Self::Unmount)
    }
}

/// A program of the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It may take this long, in milliseconds; then its process tree is killed.
    pub timeout_ms: u64,
}

/// What a server may use at most, enforced by its own cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Processor time, in hundredths of one processor.
    pub cpu_percent: Option<u32>,
    /// Processes and threads.
    pub processes: Option<u32>,
}

/// Whether and when a server returns to the first of its candidates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failback {
    /// When an operator says so.
    #[default]
    Manual,
    /// When that machine could have taken it for this long without a break, in milliseconds.
    AutoAfter(u64),
}

/// A repeated look at a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What is looked at.
    pub probe: Probe,
    /// From one look to the next, in milliseconds.
    pub interval_ms: u64,
    /// One look takes at most this long, in milliseconds.
    pub timeout_ms: u64,
    /// So many bad looks in a row make it hung.
    pub misses: u32,
}

/// What a health check looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// The process lives.
    Process,
    /// A TCP connection to `host:port` opens.
    Tcp(String),
    /// An HTTP GET of this URL answers 2xx or 3xx.
    Http(String),
    /// This command ends with 0.
    Command(Vec<String>),
}

/// What follows a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// Restarts on the same machine within `per_ms`; after them it moves.
    pub in_place: u32,
    /// The window of `in_place`, in milliseconds.
    pub per_ms: u64,
    /// Waits before the restarts, in milliseconds; the last one repeats.
    pub backoff_ms: Vec<u64>,
    /// Failures in the whole cluster within `cluster_per_ms`; after them it is failed.
    pub cluster: u32,
    /// The window of `cluster`, in milliseconds.
    pub cluster_per_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            in_place: 3,
            per_ms: 10 * 60_000,
            backoff_ms: vec![0, 1_000, 2_000, 5_000, 10_000, 30_000],
            cluster: 6,
            cluster_per_ms: 60 * 60_000,
        }
    }
}
