//! Servers: what an operator asked for, where it runs, and what became of it.
//!
//! Must stay true: a server is assigned only while its lease `server/<name>` is held by the machine's session under
//! the assignment's token, and the lease of an expired assignment stays closed until its fence is proven or its
//! grace is over. Left out on purpose: how a machine runs a server (`leaseward-node`) and who decides where
//! (`leaseward-failover`).

mod spec;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::name::MachineName;
use crate::policy::Pause;
use crate::token::{FencingToken, Revision, SessionId, UnixMillis};

pub use spec::{
    Announce, Failback, FloatingAddress, HealthCheck, Hook, HookStep, ManagerKind, Mount, Probe, ResourceLimits,
    RestartPolicy, ServerSpec,
};

/// How surely a machine can stop a server whose lease is over, and how long the master waits without a certificate.
///
/// Source of the graces: the attack matrix that `doctor` runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FenceLevel {
    /// A guard in user space only.
    #[default]
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

impl FenceLevel {
    /// Every level, ascending.
    pub const ALL: [Self; 6] = [Self::F0, Self::F1, Self::F2, Self::F3, Self::F4, Self::F5];

    /// Returns how long the master waits after expiry before it may grant again without a certificate, in
    /// milliseconds; `None` where only the operator can say.
    #[must_use]
    pub fn grace_ms(self) -> Option<u64> {
        match self {
            Self::F0 | Self::F4 | Self::F5 => None,
            Self::F1 => Some(2_000),
            Self::F2 | Self::F3 => Some(100),
        }
    }
}

/// How much more than its time-out a watchdog may take, in milliseconds.
const WATCHDOG_LATE_MS: u64 = 1_000;

/// How surely a machine can stop a copy, as it was when the copy was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceEarned {
    /// The level.
    pub level: FenceLevel,
    /// The time-out of its watchdog, in milliseconds, if it has one.
    pub watchdog_ms: Option<u64>,
}

impl FenceEarned {
    /// Returns how long the master waits after expiry before it may grant again without a certificate, in
    /// milliseconds, for a server that requires `required`: the shortest grace of the levels from there on. `None`
    /// where only the operator can say.
    #[must_use]
    pub fn grace_ms(self, required: FenceLevel) -> Option<u64> {
        let graces = FenceLevel::ALL.into_iter().filter(|level| (required..=self.level).contains(level));
        let grace = |level| match level {
            FenceLevel::F4 => self.watchdog_ms.map(|timeout| timeout.saturating_add(WATCHDOG_LATE_MS)),
            level => level.grace_ms(),
        };
        graces.filter_map(grace).min()
    }
}

impl fmt::Display for FenceLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A TCP connection to a floating address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connection {
    /// The floating address and its port.
    pub local: SocketAddr,
    /// The client.
    pub peer: SocketAddr,
}

/// What the operator wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wanted {
    /// It should run on exactly one machine.
    Running,
    /// It should run nowhere.
    Stopped,
}

/// A server as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// What the operator asked for.
    pub spec: ServerSpec,
    /// Counts the specifications, from 1.
    pub version: u64,
    /// The entry that made it.
    pub created: Revision,
    /// The entry that changed it last.
    pub modified: Revision,
    /// Whether it should run.
    pub wanted: Wanted,
    /// While it is set, the server is neither restarted nor moved. Its lease is renewed, and still fences it.
    pub paused: Option<Pause>,
    /// Where it is in its life.
    pub placement: Placement,
    /// Newest last, at most [`crate::limits::FAILURES_KEPT_MAX`].
    pub failures: Vec<Failure>,
    /// Clients that were connected to its floating addresses a while ago: the next owner of these wakes them.
    pub clients: Vec<Connection>,
    /// Who makes ready to run it next, should its machine not be heard again.
    pub heir: Option<Heir>,
    /// The greatest token it ever ran under.
    pub last_token: Option<FencingToken>,
    /// The machine it last ran on.
    pub last_machine: Option<MachineName>,
}

impl Server {
    /// Returns its assignment, if a machine has it.
    #[must_use]
    pub fn assignment(&self) -> Option<&Assignment> {
        match &self.placement {
            Placement::Assigned(assignment) => Some(assignment),
            _ => None,
        }
    }

    /// Returns who makes ready for the loss of its present copy, if anybody does.
    #[must_use]
    pub fn heir(&self) -> Option<&Heir> {
        let token = match &self.placement {
            Placement::Assigned(assignment) => assignment.token,
            Placement::Expired(expired) => expired.token,
            Placement::Unplaced { .. } | Placement::Failed { .. } => return None,
        };
        self.heir.as_ref().filter(|heir| heir.token == token)
    }
}

/// A machine that makes ready to run a server, should the copy on another machine be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heir {
    /// The machine.
    pub machine: MachineName,
    /// The token of the copy that may be lost: with any other copy it is no heir.
    pub token: FencingToken,
    /// How far it is.
    pub readiness: Readiness,
}

/// How far a machine is with its preparation for a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// It looks and prepares.
    Preparing,
    /// It could start it.
    Ready,
    /// Something is missing there.
    Lacking(String),
}

/// Where a server is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// It runs nowhere, and that is proven.
    Unplaced {
        /// Where it should go next, if somebody said so.
        next: Option<Destination>,
    },
    /// A machine holds its lease.
    Assigned(Assignment),
    /// The machine's session ended; the copy there may live on until its fence is proven or its grace is over.
    Expired(Expired),
    /// It failed too often; an operator must start it again.
    Failed {
        /// What happened last.
        why: String,
    },
}

/// A machine's right to run a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The machine.
    pub machine: MachineName,
    /// The machine's session, which is what is renewed.
    pub session: SessionId,
    /// The fencing token of this right.
    pub token: FencingToken,
    /// How surely the machine could stop it when it was given: an agent that returns with more privileges says nothing
    /// of the copy that was started before.
    pub fence: FenceEarned,
    /// When it was given.
    pub at: UnixMillis,
    /// Why it was given.
    pub cause: Cause,
    /// What the machine said last.
    pub status: ServerStatus,
    /// Restarts in place under this token.
    pub restarts: u32,
    /// Whether it passed its check under this token.
    pub ready: bool,
    /// Set while it is being moved: where to.
    pub moving: Option<Destination>,
    /// Where it came from, if it should go back there when it cannot be started here.
    pub back_to: Option<MachineName>,
}

/// Where a server should go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The machine.
    pub machine: MachineName,
    /// Why.
    pub cause: Cause,
    /// Where it should go back to, if it cannot be started there.
    pub back_to: Option<MachineName>,
}

/// Why a server was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It was started for the first time, or by an operator.
    Started,
    /// Its machine's session expired.
    MachineLost,
    /// Its machine started again under a new incarnation.
    MachineRestarted,
    /// It crashed too often where it was.
    Crashed,
    /// An operator moved it.
    Moved,
    /// An operator restarted it.
    Restarted,
    /// Its machine is being drained.
    Drained,
    /// The first of its candidates is back.
    FailedBack,
    /// It could not be started where it was moved to.
    RolledBack,
}

/// What a machine says of a server that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerStatus {
    /// The assignment is committed; nothing was heard yet.
    Ordered,
    /// The process runs; it has not passed its first check.
    Starting {
        /// Its process id on the machine.
        pid: u32,
    },
    /// It passed its check.
    Running {
        /// Its process id on the machine.
        pid: u32,
    },
    /// Its checks fail.
    Unhealthy {
        /// Its process id on the machine.
        pid: u32,
        /// What the check saw.
        why: String,
    },
    /// It ended and waits for its restart in place.
    Restarting {
        /// How it ended.
        why: String,
    },
    /// It is being stopped.
    Stopping,
    /// Its surroundings are being made ready: mounts, addresses, hooks.
    Preparing {
        /// Which of them.
        step: String,
    },
    /// It is dead, and something around it is in the way of giving it up: a mount that is busy, a hook that failed.
    Stuck {
        /// At which step.
        step: String,
        /// What is in the way.
        why: String,
    },
}

/// An assignment whose session is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The machine that held it.
    pub machine: MachineName,
    /// The token that is over.
    pub token: FencingToken,
    /// How surely the machine can stop this copy.
    pub earned: FenceEarned,
    /// How long the copy's own deadline may still lie ahead, in milliseconds: zero if the session ran out of time, its
    /// whole time to live if something else ended it. The grace comes on top.
    pub wait_ms: u64,
    /// The entry that ended it.
    pub since: Revision,
    /// Why it ended.
    pub cause: Cause,
    /// How the death of the copy is proven, once it is.
    pub fence: Option<FenceProof>,
}

/// How it is known that no copy of a server executes any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FenceProof {
    /// The kernel said so: the init of the server's PID namespace is gone, and with it every process.
    Certificate(Certificate),
    /// The machine booted again.
    Rebooted,
    /// The machine's agent found no process of an earlier run in this boot.
    Swept,
    /// The machine's deadline passed, and this much time on the master's clock, in milliseconds.
    Grace(u64),
    /// An operator said so.
    Operator(String),
    /// The server's fence hook said so, on the node of this name: it has switched the machine off, or cut it off.
    Hook(String),
}

/// The kernel's statement that every process of a server is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The token that the server ran under.
    pub token: FencingToken,
    /// The boot of the machine in which it ran.
    pub boot_id: String,
    /// When the proof was read, on that machine's boot clock, in nanoseconds.
    pub proven_at_boottime_ns: u64,
    /// How the main process ended.
    pub exit: Exit,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody was left to see how.
    Unseen,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unseen => f.write_str("killed with its shim"),
        }
    }
}

/// One failure of a server, counted once per token and restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The token it ran under.
    pub token: FencingToken,
    /// Which restart under that token, from 0.
    pub attempt: u32,
    /// Where.
    pub machine: MachineName,
    /// When, by the proposer's clock.
    pub at: UnixMillis,
    /// What happened.
    pub why: String,
    /// Whether the whole machine was lost, soon after the server was placed on it.
    pub machine_lost: bool,
}
