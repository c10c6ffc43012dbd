//! What happened, for people, logs and watchers. Nothing decides by events: loops compare states.
//!
//! Must stay true: the enum grows at the end only (it is stored in the ledger).

use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::config::SyncState;
use crate::config::program::ProgramReport;
use crate::config::rollout::Pin;
use crate::lease::GrantEnd;
use crate::machine::Cordon;
use crate::name::{LeaseName, MachineName, ServerName, SetName, TokenName};
use crate::policy::Pause;
use crate::server::{Cause, FenceProof, Readiness, ServerStatus, Wanted};
use crate::session::{Owner, SessionEnd};
use crate::token::{FencingToken, Generation, Revision, SessionId, UnixMillis};

/// An event with its place in history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The entry that made it.
    pub revision: Revision,
    /// Its place among that entry's events, from 0.
    pub part: u32,
    /// When, by the proposer's clock.
    pub at: UnixMillis,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A session opened.
    SessionOpened {
        /// The session.
        session: SessionId,
        /// Whose.
        owner: Owner,
    },
    /// A session is over.
    SessionEnded {
        /// The session.
        session: SessionId,
        /// Whose.
        owner: Owner,
        /// Why.
        why: SessionEnd,
    },
    /// A lease has a new holder.
    LeaseGranted {
        /// The lease.
        lease: LeaseName,
        /// The fencing token.
        token: FencingToken,
        /// The holder's session.
        session: SessionId,
        /// Who.
        holder: String,
    },
    /// A grant is over.
    LeaseEnded {
        /// The lease.
        lease: LeaseName,
        /// The token that is over.
        token: FencingToken,
        /// Why.
        why: GrantEnd,
    },
    /// Somebody queued for a lease.
    LeaseQueued {
        /// The lease.
        lease: LeaseName,
        /// Who.
        holder: String,
    },
    /// A machine was cordoned or let go.
    MachineCordoned {
        /// The machine.
        machine: MachineName,
        /// Why and how long; `None` if let go.
        cordon: Option<Cordon>,
    },
    /// A machine was forgotten.
    MachineRemoved {
        /// The machine.
        machine: MachineName,
    },
    /// A server has a new specification.
    ServerDefined {
        /// The server.
        server: ServerName,
        /// Its version.
        version: u64,
    },
    /// A server was forgotten.
    ServerRemoved {
        /// The server.
        server: ServerName,
    },
    /// A server is wanted running or stopped.
    ServerWanted {
        /// The server.
        server: ServerName,
        /// What is wanted.
        wanted: Wanted,
    },
    /// A server was given to a machine.
    ServerAssigned {
        /// The server.
        server: ServerName,
        /// The machine.
        machine: MachineName,
        /// The fencing token.
        token: FencingToken,
        /// Why.
        cause: Cause,
        /// How the death of the copy before was proven, if there was one.
        fence: Option<FenceProof>,
    },
    /// A machine said something new of a server.
    ServerReported {
        /// The server.
        server: ServerName,
        /// The machine.
        machine: MachineName,
        /// The fencing token.
        token: FencingToken,
        /// What it said.
        status: ServerStatus,
    },
    /// The session of a server's machine is over.
    ServerExpired {
        /// The server.
        server: ServerName,
        /// The machine.
        machine: MachineName,
        /// The token that is over.
        token: FencingToken,
        /// The session was renewed at the latest this long before, in milliseconds.
        silent_ms: u64,
    },
    /// It is proven that a copy of a server is dead.
    ServerFenced {
        /// The server.
        server: ServerName,
        /// The token it ran under.
        token: FencingToken,
        /// How.
        proof: FenceProof,
    },
    /// A server ended on its machine and its lease is free.
    ServerStopped {
        /// The server.
        server: ServerName,
        /// The machine.
        machine: MachineName,
        /// The token that is over.
        token: FencingToken,
        /// What happened.
        why: String,
    },
    /// A server is being moved.
    ServerMoving {
        /// The server.
        server: ServerName,
        /// Where to.
        to: MachineName,
        /// Why.
        cause: Cause,
    },
    /// A server is given up.
    ServerFailed {
        /// The server.
        server: ServerName,
        /// Why.
        why: String,
    },
    /// A set has a new version.
    SetPublished {
        /// The set.
        set: SetName,
        /// The version.
        version: u64,
        /// Who.
        author: String,
        /// Why.
        message: String,
    },
    /// A set was forgotten.
    SetRemoved {
        /// The set.
        set: SetName,
    },
    /// A member said how far it is with a set.
    SyncReported {
        /// The member.
        machine: MachineName,
        /// The set.
        set: SetName,
        /// The version live on its disk.
        applied: u64,
        /// What it does.
        state: SyncState,
    },
    /// Commands of a newer release may be proposed from now on.
    FeatureLevelRaised {
        /// The level.
        level: u32,
    },
    /// A server was paused or goes on.
    ServerPaused {
        /// The server.
        server: ServerName,
        /// Why and how long; `None` if it goes on.
        pause: Option<Pause>,
    },
    /// An operator has seen that a lost machine is off.
    MachineConfirmedDead {
        /// The machine.
        machine: MachineName,
        /// Who says so.
        by: String,
    },
    /// The cluster has a new policy.
    PolicyChanged {
        /// Its version.
        version: u64,
    },
    /// Other nodes vote now.
    VotersChanged {
        /// Their names.
        voters: Vec<String>,
        /// Why they do.
        why: String,
    },
    /// A machine's agent was not heard for two renewals, or is heard again.
    MachineSuspected {
        /// The machine.
        machine: MachineName,
        /// Whether it is not heard.
        suspected: bool,
    },
    /// A machine makes ready to run a server whose machine is suspected, or says how far it is.
    ServerPrepared {
        /// The server.
        server: ServerName,
        /// The machine that makes ready.
        machine: MachineName,
        /// How far it is.
        readiness: Readiness,
    },
    /// A set is kept in another way on its members.
    SetDefined {
        /// The set.
        set: SetName,
        /// Counts its specifications.
        version: u64,
    },
    /// A member, or all of them, is kept at a version or goes on.
    SetPinned {
        /// The set.
        set: SetName,
        /// The member; `None`: all of them.
        machine: Option<MachineName>,
        /// Where it is kept; `None` if it goes on.
        pin: Option<Pin>,
    },
    /// A version is on its way to the members.
    RolloutChanged {
        /// The set.
        set: SetName,
        /// The version.
        version: u64,
        /// What became of it.
        change: RolloutChange,
    },
    /// The cluster began a new life with the state of a backup.
    Restored {
        /// The last revision in the backup.
        from: Revision,
        /// How often it was restored by now.
        generation: Generation,
    },
    /// A program said how far it is with a file.
    ProgramReported {
        /// Its session.
        session: SessionId,
        /// What it calls itself.
        name: String,
        /// What it said.
        report: ProgramReport,
    },
    /// Somebody may ask something from now on, or nothing any more.
    TokenChanged {
        /// The token.
        token: TokenName,
        /// What its bearer may ask; nothing: it is revoked.
        roles: Vec<Role>,
        /// Who says so.
        by: String,
    },
}

/// What became of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutChange {
    /// It began.
    Begun,
    /// It is these members' turn.
    Released(Vec<MachineName>),
    /// It stands still, and why.
    Halted(String),
    /// It goes on, and who said so.
    Resumed(String),
    /// Everybody goes back, and why.
    RolledBack(String),
    /// Everybody had his turn.
    Finished,
}

impl Event {
    /// Returns the kind of the object it happened to: `session`, `lease`, `machine`, `server`, `config`, `token`,
    /// `cluster`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SessionOpened { .. } | Self::SessionEnded { .. } => "session",
            Self::LeaseGranted { .. } | Self::LeaseEnded { .. } | Self::LeaseQueued { .. } => "lease",
            Self::MachineCordoned { .. }
            | Self::MachineRemoved { .. }
            | Self::MachineConfirmedDead { .. }
            | Self::MachineSuspected { .. } => "machine",
            Self::ServerDefined { .. }
            | Self::ServerRemoved { .. }
            | Self::ServerWanted { .. }
            | Self::ServerAssigned { .. }
            | Self::ServerReported { .. }
            | Self::ServerExpired { .. }
            | Self::ServerFenced { .. }
            | Self::ServerStopped { .. }
            | Self::ServerMoving { .. }
            | Self::ServerPaused { .. }
            | Self::ServerPrepared { .. }
            | Self::ServerFailed { .. } => "server",
            Self::SetPublished { .. }
            | Self::SetRemoved { .. }
            | Self::SyncReported { .. }
            | Self::SetDefined { .. }
            | Self::SetPinned { .. }
            | Self::RolloutChanged { .. }
            | Self::ProgramReported { .. } => "config",
            Self::TokenChanged { .. } => "token",
            Self::FeatureLevelRaised { .. }
            | Self::PolicyChanged { .. }
            | Self::VotersChanged { .. }
            | Self::Restored { .. } => "cluster",
        }
    }

    /// Returns the name of the object it happened to.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::SessionOpened { session, .. } | Self::SessionEnded { session, .. } => session.to_string(),
            Self::LeaseGranted { lease, .. } | Self::LeaseEnded { lease, .. } | Self::LeaseQueued { lease, .. } => {
                lease.to_string()
            }
            Self::MachineCordoned { machine, .. }
            | Self::MachineRemoved { machine }
            | Self::MachineConfirmedDead { machine, .. }
            | Self::MachineSuspected { machine, .. } => machine.to_string(),
            Self::ServerDefined { server, .. }
            | Self::ServerRemoved { server }
            | Self::ServerWanted { server, .. }
            | Self::ServerAssigned { server, .. }
            | Self::ServerReported { server, .. }
            | Self::ServerExpired { server, .. }
            | Self::ServerFenced { server, .. }
            | Self::ServerStopped { server, .. }
            | Self::ServerMoving { server, .. }
            | Self::ServerPaused { server, .. }
            | Self::ServerPrepared { server, .. }
            | Self::ServerFailed { server, .. } => server.to_string(),
            Self::SetPublished { set, .. }
            | Self::SetRemoved { set }
            | Self::SyncReported { set, .. }
            | Self::SetDefined { set, .. }
            | Self::SetPinned { set, .. }
            | Self::RolloutChanged { set, .. } => set.to_string(),
            Self::ProgramReported { report, .. } => report.set.to_string(),
            Self::TokenChanged { token, .. } => token.to_string(),
            Self::FeatureLevelRaised { .. }
            | Self::PolicyChanged { .. }
            | Self::VotersChanged { .. }
            | Self::Restored { .. } => "cluster".to_owned(),
        }
    }
}
