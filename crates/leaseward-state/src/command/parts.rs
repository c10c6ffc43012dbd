//! What commands are made of, where that has a name of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Digest;
use crate::config::delta::InlineDelta;
use crate::machine::MachineProfile;
use crate::name::{LeaseName, MachineName, ServerName, SetName};
use crate::server::{Cause, Certificate, Connection, FenceProof, ServerStatus};
use crate::session::Incarnation;
use crate::token::{FencingToken, Revision, SessionId, Term};

/// Opens a machine's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenMachine {
    /// The machine.
    pub machine: MachineName,
    /// The run of the agent that opens it.
    pub incarnation: Incarnation,
    /// What the agent says of its machine.
    pub profile: MachineProfile,
    /// Whether the agent has proven that no server of an earlier run lives in this boot.
    pub swept: bool,
    /// Time to live, in milliseconds.
    pub ttl_ms: u64,
}

/// Takes a lease, or queues for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquire {
    /// The lease.
    pub lease: LeaseName,
    /// The session it will live and die with.
    pub session: SessionId,
    /// Who in that session.
    pub holder: String,
    /// Whether to queue if somebody else holds it.
    pub wait: bool,
    /// Higher goes first in the queue.
    pub priority: i32,
    /// After an expiry nobody gets it for so long, in milliseconds.
    pub lock_delay_ms: u64,
    /// The holder's own notes.
    pub meta: BTreeMap<String, String>,
}

/// Gives a server to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// The server.
    pub server: ServerName,
    /// The machine.
    pub machine: MachineName,
    /// The machine's session, as the master saw it.
    pub session: SessionId,
    /// The last token of the server, as the master saw it.
    pub after: Option<FencingToken>,
    /// How the master knows that the former copy is dead, if there was one.
    pub fence: Option<FenceProof>,
    /// Why.
    pub cause: Cause,
    /// The term of the leader that decided it.
    pub term: Term,
}

/// What became of a server on its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerReport {
    /// It lives.
    Status {
        /// How.
        status: ServerStatus,
        /// Restarts in place so far.
        restarts: u32,
    },
    /// It crashed and is restarted in place.
    Crashed {
        /// Which restart follows, from 1.
        restarts: u32,
        /// How it ended.
        why: String,
    },
    /// It is dead, with the kernel's word for it.
    Dead {
        /// The proof.
        certificate: Certificate,
        /// Set if this is a failure: it crashed too often here, could not be started, or hung.
        failure: Option<String>,
    },
    /// The machine cannot start it and no process of it lives.
    NotStarted {
        /// Why.
        why: String,
    },
    /// No process of it lives on the machine, and nothing failed.
    Absent,
    /// It lives, and these clients are connected to its floating addresses.
    Clients(Vec<Connection>),
}

/// A new version of one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishSet {
    /// The set; made if it does not exist.
    pub set: SetName,
    /// The version it must have now; 0: it must not exist; `None`: whatever it has.
    pub parent: Option<u64>,
    /// The blob with the encoded manifest.
    pub manifest: Digest,
    /// Regular files in it.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// What makes it out of the newest version, if that is small. Without it, a quorum of voters holds every blob.
    pub delta: Option<InlineDelta>,
}

/// A condition of an atomic command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The lease is held under exactly this token: the writer is not a stale one.
    Fence {
        /// The lease.
        lease: LeaseName,
        /// The writer's token.
        token: FencingToken,
    },
    /// The lease does not exist: nobody holds, delays or waits for it.
    LeaseFree(LeaseName),
    /// The server has this version; 0: it does not exist.
    Server(ServerName, u64),
    /// The set has this version; 0: it does not exist.
    Set(SetName, u64),
    /// The machine was last changed by this entry; 0: it does not exist.
    Machine(MachineName, Revision),
}
