//! What can be asked of the state, and what it answers.
//!
//! Must stay true: the enums grow at the end only, because they are stored by position; every committed command
//! has one reply. Commands that carry a `term` are the leader's own: they count only if the entry was appended in
//! that term (rule R5), and no member forwards them.

mod kind;
mod parts;

use serde::{Deserialize, Serialize};

use crate::access::AccessToken;
use crate::config::SyncState;
use crate::config::program::ProgramReport;
use crate::config::rollout::{Pin, RolloutStep, Steer};
use crate::config::spec::SetSpec;
use crate::lease::Grant;
use crate::machine::Cordon;
use crate::name::{LeaseName, MachineName, ServerName, SetName, TokenName};
use crate::policy::{Pause, Policy};
use crate::refusal::Refusal;
use crate::server::{Destination, FenceProof, ServerSpec, Wanted};
use crate::token::{ClusterMillis, FencingToken, RequestKey, Revision, SessionId, Term, UnixMillis};

pub use self::parts::{Acquire, Assign, Condition, OpenMachine, PublishSet, ServerReport};

/// One committed entry as the state sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position: the one after the last.
    pub revision: Revision,
    /// The Raft term in which it was appended.
    pub term: Term,
    /// The proposer's wall clock. For people, and for what people set to a time of day.
    pub at: UnixMillis,
    /// The proposer's cluster time. For how long answers are kept.
    pub elapsed: ClusterMillis,
    /// What is asked.
    pub request: Request,
}

/// A command, and what makes it the same command when it is sent again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Two requests with one key are one request: the second gets the first one's answer.
    pub key: Option<RequestKey>,
    /// Whether the answer is kept for a day, because a person or program chose the key.
    pub named: bool,
    /// What is asked.
    pub command: Command,
}

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self { key: None, named: false, command }
    }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Opens a session for a client program.
    OpenSession {
        /// What the client calls itself.
        name: String,
        /// Time to live, in milliseconds.
        ttl_ms: u64,
    },
    /// Opens a machine's session; ends an older incarnation's.
    OpenMachine(OpenMachine),
    /// Ends a session; its leases are released at once.
    EndSession {
        /// The session.
        session: SessionId,
    },
    /// Ends sessions that were not renewed in time, all in one entry.
    CloseSessions {
        /// The sessions.
        sessions: Vec<SessionId>,
        /// The term of the leader that judged them.
        term: Term,
    },
    /// Takes a lease, or queues for it.
    Acquire(Acquire),
    /// Leaves the queue of a lease.
    Withdraw {
        /// The lease.
        lease: LeaseName,
        /// The waiter's session.
        session: SessionId,
        /// Who in that session.
        holder: String,
    },
    /// Gives a lease back.
    Release {
        /// The lease.
        lease: LeaseName,
        /// The token under which it is held.
        token: FencingToken,
    },
    /// Takes a lease away from its holder. The holder may believe in it for a last moment; the next holder has to
    /// wait until the leader ends the delay.
    Revoke {
        /// The lease.
        lease: LeaseName,
        /// Only this grant, if given.
        token: Option<FencingToken>,
    },
    /// Ends the delay of a lease: its next waiter gets it.
    EndDelay {
        /// The lease.
        lease: LeaseName,
        /// The token whose delay is over.
        token: FencingToken,
        /// The term of the leader that measured it.
        term: Term,
    },
    /// Keeps new servers away from a machine, or lets them come again.
    Cordon {
        /// The machine.
        machine: MachineName,
        /// Why and how long; `None` lets servers come again and forgets the machine's losses.
        cordon: Option<Cordon>,
    },
    /// Forgets a machine that has no session.
    RemoveMachine {
        /// The machine.
        machine: MachineName,
    },
    /// Defines a server, or replaces its specification.
    PutServer {
        /// The server.
        server: ServerName,
        /// What is asked of it.
        spec: Box<ServerSpec>,
        /// The version it must have; 0: it must not exist.
        if_version: Option<u64>,
    },
    /// Forgets a server that runs nowhere.
    RemoveServer {
        /// The server.
        server: ServerName,
        /// The version it must have.
        if_version: Option<u64>,
    },
    /// Starts or stops a server. Starting a failed one forgets its failures.
    SetWanted {
        /// The server.
        server: ServerName,
        /// What is wanted.
        wanted: Wanted,
    },
    /// Moves a running server.
    Move {
        /// The server.
        server: ServerName,
        /// Where to.
        to: MachineName,
        /// Whether it goes back if it cannot be started there.
        rollback: bool,
    },
    /// Gives a server to a machine.
    Assign(Assign),
    /// Gives a server up until an operator starts it again.
    GiveUp {
        /// The server.
        server: ServerName,
        /// Why.
        why: String,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// Says what became of a server on its machine.
    ReportServer {
        /// The server.
        server: ServerName,
        /// The token it runs under.
        token: FencingToken,
        /// What became of it.
        report: ServerReport,
    },
    /// Publishes new versions of config sets, all or none.
    Publish {
        /// The sets.
        sets: Vec<PublishSet>,
        /// Who publishes.
        author: String,
        /// Why.
        message: String,
    },
    /// Forgets a config set. Members leave its files alone.
    RemoveSet {
        /// The set.
        set: SetName,
    },
    /// Says how far a member is with its sets.
    ReportSync {
        /// The member.
        machine: MachineName,
        /// By set: the version live on its disk, and what it does.
        sets: Vec<(SetName, u64, SyncState)>,
    },
    /// All of these commands, or none, if every condition holds.
    Atomic {
        /// What must be true.
        conditions: Vec<Condition>,
        /// What is done then, in this order, under one revision.
        commands: Vec<Self>,
    },
    /// Frees a server that expired and is not wanted any more: its last copy is dead.
    Settle {
        /// The server.
        server: ServerName,
        /// The token that expired.
        token: FencingToken,
        /// How the master knows that the copy is dead, if nobody else has proven it.
        fence: Option<FenceProof>,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// Opens a client's session and takes a lease with it, or queues for it, in one commit. Answers both; if the lease is
    /// refused, no session is opened.
    AcquireOpening {
        /// What the client calls itself.
        name: String,
        /// Time to live of the session, in milliseconds.
        ttl_ms: u64,
        /// What is taken; its session is the one that is opened.
        acquire: Acquire,
    },
    /// Lets commands be proposed that came with a newer release: every node can read them.
    RaiseFeatureLevel {
        /// The new level.
        to: u32,
        /// The term of the leader that asked the nodes.
        term: Term,
    },
    /// Stops a running server and starts it again on its machine, under a new token.
    Restart {
        /// The server.
        server: ServerName,
    },
    /// Keeps the master and the machine from restarting or moving a server, or ends that.
    Pause {
        /// The server.
        server: ServerName,
        /// Why and how long; `None` ends it.
        pause: Option<Pause>,
    },
    /// An operator has seen that a lost machine is off: every copy on it counts as dead.
    ConfirmDead {
        /// The machine.
        machine: MachineName,
        /// Who says so.
        by: String,
    },
    /// Replaces the policy of the cluster.
    PutPolicy {
        /// The policy; its version is ignored.
        policy: Box<Policy>,
        /// The version that it replaces; 0: none was set yet.
        if_version: Option<u64>,
    },
    /// The master moves a server.
    Relocate {
        /// The server.
        server: ServerName,
        /// The token under which the master saw it.
        token: FencingToken,
        /// Where to and why.
        to: Destination,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// The master keeps new servers away from a machine that is lost too often.
    Quarantine {
        /// The machine.
        machine: MachineName,
        /// Why and how long.
        cordon: Cordon,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// The leader has proof that a lost copy is dead.
    ProveDead {
        /// The server.
        server: ServerName,
        /// The token that it ran under.
        token: FencingToken,
        /// The proof.
        proof: FenceProof,
        /// The term of the leader that has it.
        term: Term,
    },
    /// Ends every cordon, pause and maintenance whose time is over by the leader's wall clock.
    EndPauses {
        /// The term of the leader that saw it.
        term: Term,
    },
    /// Other nodes vote now. Membership itself is the log's; this is for the ledger.
    NoteVoters {
        /// Their names.
        voters: Vec<String>,
        /// Why they do.
        why: String,
        /// The term of the leader that changed it.
        term: Term,
    },
    /// The leader has not heard a machine's agent for two renewals, or hears it again.
    Suspect {
        /// The machine.
        machine: MachineName,
        /// Its session.
        session: SessionId,
        /// Whether it is not heard.
        suspected: bool,
        /// The term of the leader that listens.
        term: Term,
    },
    /// A machine should make ready to run a server whose present machine is suspected.
    Prepare {
        /// The server.
        server: ServerName,
        /// The token of the copy that may be lost.
        token: FencingToken,
        /// The machine that makes ready.
        machine: MachineName,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// A machine says how far it is with what [`Command::Prepare`] asked of it.
    ReportPrepared {
        /// The machine.
        machine: MachineName,
        /// The server.
        server: ServerName,
        /// The token of the copy that may be lost.
        token: FencingToken,
        /// What is missing there, if anything is.
        lacking: Option<String>,
    },
    /// Says how a config set is kept on its members. A set that does not exist is made, without a version.
    PutSet {
        /// The set.
        set: SetName,
        /// What is asked of it.
        spec: Box<SetSpec>,
        /// The version that the specification must have; 0: none was given yet.
        if_version: Option<u64>,
    },
    /// Keeps a member of a set at a version, or lets it go on.
    PinSet {
        /// The set.
        set: SetName,
        /// The member; `None`: all of them.
        machine: Option<MachineName>,
        /// Where it is kept; `None` lets it go on.
        pin: Option<Pin>,
    },
    /// Asks members of a set to look at every file and to try again what they refused.
    Resync {
        /// The set.
        set: SetName,
        /// The members; empty: all of them.
        machines: Vec<MachineName>,
    },
    /// Halts a rollout, or lets it go on or end.
    SteerRollout {
        /// The set.
        set: SetName,
        /// The version that goes round.
        version: u64,
        /// What becomes of it.
        steer: Steer,
        /// Who says so.
        by: String,
    },
    /// The next step of a rollout.
    StepRollout {
        /// The set.
        set: SetName,
        /// The version that goes round.
        version: u64,
        /// The step.
        step: RolloutStep,
        /// The term of the leader that decided it.
        term: Term,
    },
    /// Says how far a program is with the file of a config set that it follows.
    ReportProgram {
        /// The program's session: what it said ends with it.
        session: SessionId,
        /// Counts what it says, from 1: what comes late counts no more.
        step: u64,
        /// What it says.
        report: ProgramReport,
    },
    /// Lets somebody ask something, or nothing any more.
    ChangeToken {
        /// The token.
        name: TokenName,
        /// What it is; `None` revokes it.
        token: Option<Box<AccessToken>>,
        /// Who says so.
        by: String,
    },
}

/// What an entry answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// A session is open.
    Session(SessionId),
    /// The lease is held.
    Granted {
        /// The lease.
        lease: LeaseName,
        /// The right to it.
        grant: Grant,
    },
    /// The lease is somebody else's; the caller is in the queue.
    Queued {
        /// How many stand before it.
        ahead: u32,
    },
    /// The server or set has this version now.
    Version(u64),
    /// The sets have these versions now.
    Versions(Vec<(SetName, u64)>),
    /// The replies of the commands of an atomic command.
    Atomic(Vec<Self>),
    /// Nothing was done.
    Refused(Refusal),
}
