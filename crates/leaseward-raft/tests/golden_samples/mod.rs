//! One value of every stored and sent form. What stands here is in golden files: add, never change.

mod access;
mod log;
mod records;
mod servers;
mod sets;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use access::*;
use leaseward_raft::store::AppliedTo;
use leaseward_raft::stored::{Entry, LogPosition, Membership, Payload, StoredMembership, Vote};
use leaseward_raft::{NodeInfo, Standing};
use leaseward_state::access::Access;
use leaseward_state::command::{Acquire, Assign, Condition, OpenMachine, PublishSet, ServerReport};
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::rollout::{Rollout, RolloutStep, Steer};
use leaseward_state::config::{
    Chunk, Digest, DriftedPath, Manifest, ManifestEntry, ManifestNode, MemberSync, SetStep, SyncState, Version,
};
use leaseward_state::event::{Event, Recorded, RolloutChange};
use leaseward_state::lease::{Grant, GrantEnd, Lease, LeaseState, Waiter};
use leaseward_state::machine::{Cordon, Machine, MachineProfile};
use leaseward_state::policy::{Pause, Policy};
use leaseward_state::record::{Answer, Meta, Record, RecordKey, SessionRecord, SetRecord};
use leaseward_state::server::{
    Announce, Assignment, Cause, Certificate, Connection, Destination, Exit, Expired, Failback, Failure, FenceEarned,
    FenceLevel, FenceProof, FloatingAddress, HealthCheck, Heir, Hook, HookStep, ManagerKind, Mount, Placement, Probe,
    Readiness, ResourceLimits, RestartPolicy, Server, ServerSpec, ServerStatus, Wanted,
};
use leaseward_state::session::{Incarnation, Owner, SessionEnd};
use leaseward_state::{
    ClusterMillis, Command, FencingToken, Generation, LeaseName, MachineName, Refusal, Reply, Request, RequestKey,
    Revision, ServerName, SessionId, SetName, Term, UnixMillis,
};
pub(crate) use log::*;
pub(crate) use records::*;
pub(crate) use servers::*;
pub(crate) use sets::*;
pub(crate) use wire::*;

pub(crate) fn lease() -> LeaseName {
    LeaseName::new("a/b").expect("a name")
}

pub(crate) fn machine() -> MachineName {
    MachineName::new("m1").expect("a name")
}

pub(crate) fn server() -> ServerName {
    ServerName::new("web").expect("a name")
}

pub(crate) fn set() -> SetName {
    SetName::new("app").expect("a name")
}

pub(crate) const TOKEN: FencingToken = FencingToken(0x0001_0000_0000_0005);

pub(crate) fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

pub(crate) fn acquire() -> Acquire {
    Acquire {
        lease: lease(),
        session: SessionId(3),
        holder: "h".into(),
        wait: true,
        priority: -2,
        lock_delay_ms: 9,
        meta: one("pid", "1"),
    }
}

pub(crate) fn profile() -> MachineProfile {
    MachineProfile {
        labels: one("zone", "a"),
        fence: FenceLevel::F2,
        address: "10.0.0.2".into(),
        version: "0.1.0".into(),
        capacity: Some(8),
        start_slots: 2,
        watchdog_ms: Some(3),
    }
}

pub(crate) fn incarnation() -> Incarnation {
    Incarnation { boot_id: "boot".into(), instance: 1 << 100 }
}

pub(crate) fn cordon() -> Cordon {
    Cordon { why: "disk".into(), drains: true, quarantine: false, until: Some(UnixMillis(5)) }
}

pub(crate) fn pause() -> Pause {
    Pause { why: "work".into(), until: Some(UnixMillis(6)) }
}

pub(crate) fn policy() -> Policy {
    Policy {
        version: 1,
        candidates: vec![machine()],
        concurrent_starts: 2,
        brake_percent: 3,
        brake_ms: 4,
        quarantine_losses: 5,
        quarantine_window_ms: 6,
        quarantine_ms: 7,
        poison_after: 8,
        poison_within_ms: 9,
        voters_max: 5,
        voters_min: 3,
        voter_silence_ms: 10,
        config_bytes_max: 11,
        maintenance: Some(pause()),
    }
}

pub(crate) fn commands() -> Vec<Command> {
    let fence = Some(FenceProof::Grace(100));
    vec![
        Command::OpenSession { name: "c".into(), ttl_ms: 3000 },
        Command::OpenMachine(OpenMachine {
            machine: machine(),
            incarnation: incarnation(),
            profile: profile(),
            swept: true,
            ttl_ms: 3000,
        }),
        Command::EndSession { session: SessionId(3) },
        Command::CloseSessions { sessions: vec![SessionId(3), SessionId(4)], term: Term(2) },
        Command::Acquire(acquire()),
        Command::Withdraw { lease: lease(), session: SessionId(3), holder: "h".into() },
        Command::Release { lease: lease(), token: TOKEN },
        Command::Revoke { lease: lease(), token: Some(TOKEN) },
        Command::EndDelay { lease: lease(), token: TOKEN, term: Term(2) },
        Command::Cordon { machine: machine(), cordon: Some(cordon()) },
        Command::RemoveMachine { machine: machine() },
        Command::PutServer { server: server(), spec: Box::new(spec()), if_version: Some(0) },
        Command::RemoveServer { server: server(), if_version: None },
        Command::SetWanted { server: server(), wanted: Wanted::Stopped },
        Command::Move { server: server(), to: machine(), rollback: true },
        Command::Assign(Assign {
            server: server(),
            machine: machine(),
            session: SessionId(3),
            after: Some(TOKEN),
            fence: fence.clone(),
            cause: Cause::Crashed,
            term: Term(2),
        }),
        Command::GiveUp { server: server(), why: "w".into(), term: Term(2) },
        Command::ReportServer { server: server(), token: TOKEN, report: server_reports().remove(0) },
        Command::Publish {
            sets: vec![PublishSet {
                set: set(),
                parent: Some(1),
                manifest: Digest([8; 32]),
                files: 2,
                bytes: 3,
                delta: Some(InlineDelta { base: 1, bytes: vec![1, 2, 3].into() }),
            }],
            author: "a".into(),
            message: "m".into(),
        },
        Command::RemoveSet { set: set() },
        Command::ReportSync { machine: machine(), sets: vec![(set(), 4, SyncState::Applied)] },
        Command::Atomic {
            conditions: vec![Condition::LeaseFree(lease())],
            commands: vec![Command::Acquire(acquire())],
        },
        Command::Settle { server: server(), token: TOKEN, fence, term: Term(2) },
        Command::AcquireOpening { name: "c".into(), ttl_ms: 3000, acquire: acquire() },
        Command::RaiseFeatureLevel { to: 5, term: Term(2) },
        Command::Restart { server: server() },
        Command::Pause { server: server(), pause: Some(pause()) },
        Command::ConfirmDead { machine: machine(), by: "ann".into() },
        Command::PutPolicy { policy: Box::new(policy()), if_version: Some(0) },
        Command::Relocate { server: server(), token: TOKEN, to: destination(), term: Term(2) },
        Command::Quarantine { machine: machine(), cordon: cordon(), term: Term(2) },
        Command::ProveDead { server: server(), token: TOKEN, proof: FenceProof::Swept, term: Term(2) },
        Command::EndPauses { term: Term(2) },
        Command::NoteVoters { voters: vec!["n1".into()], why: "w".into(), term: Term(2) },
        Command::Suspect { machine: machine(), session: SessionId(3), suspected: true, term: Term(2) },
        Command::Prepare { server: server(), token: TOKEN, machine: machine(), term: Term(2) },
        Command::ReportPrepared { machine: machine(), server: server(), token: TOKEN, lacking: Some("w".into()) },
        Command::PutSet { set: set(), spec: Box::new(set_spec()), if_version: Some(1) },
        Command::PinSet { set: set(), machine: Some(machine()), pin: Some(pin()) },
        Command::Resync { set: set(), machines: vec![machine()] },
        Command::SteerRollout { set: set(), version: 2, steer: Steer::Resume, by: "w".into() },
        Command::StepRollout { set: set(), version: 2, step: RolloutStep::Release(vec![machine()]), term: Term(2) },
        Command::ReportProgram { session: SessionId(3), step: 4, report: program_report() },
        Command::ChangeToken { name: token_name(), token: Some(Box::new(access_token())), by: "b".into() },
    ]
}

pub(crate) fn requests() -> Vec<Request> {
    let command = Command::EndSession { session: SessionId(3) };
    vec![
        Request { key: None, named: false, command: command.clone() },
        Request { key: Some(RequestKey { client: 1 << 90, sequence: 2 }), named: true, command },
    ]
}

pub(crate) fn conditions() -> Vec<Condition> {
    vec![
        Condition::Fence { lease: lease(), token: TOKEN },
        Condition::LeaseFree(lease()),
        Condition::Server(server(), 1),
        Condition::Set(set(), 2),
        Condition::Machine(machine(), Revision(3)),
    ]
}

pub(crate) fn grant() -> Grant {
    Grant {
        session: SessionId(3),
        holder: "h".into(),
        token: TOKEN,
        at: UnixMillis(4),
        meta: one("pid", "1"),
        lock_delay_ms: 5,
    }
}

pub(crate) fn replies() -> Vec<Reply> {
    vec![
        Reply::Done,
        Reply::Session(SessionId(3)),
        Reply::Granted { lease: lease(), grant: grant() },
        Reply::Queued { ahead: 1 },
        Reply::Version(2),
        Reply::Versions(vec![(set(), 3)]),
        Reply::Atomic(vec![Reply::Done]),
        Reply::Refused(Refusal::Invalid("i".into())),
    ]
}

pub(crate) fn refusals() -> Vec<Refusal> {
    let (kind, name, text) = (|| "kind".to_owned(), || "name".to_owned(), || "a/b".to_owned());
    vec![
        Refusal::Invalid("i".into()),
        Refusal::Ttl { ttl_ms: 1, min_ms: 2, max_ms: 3 },
        Refusal::TooMany { what: "w".into(), max: 4 },
        Refusal::NotFound { kind: kind(), name: name() },
        Refusal::Exists { kind: kind(), name: name() },
        Refusal::Held { lease: text(), holder: "h".into(), token: TOKEN },
        Refusal::Delayed { lease: text(), token: TOKEN },
        Refusal::StaleToken { lease: text(), given: TOKEN, current: None },
        Refusal::NoSession { session: SessionId(3) },
        Refusal::Version { kind: kind(), name: name(), expected: 1, current: 2 },
        Refusal::Outdated("o".into()),
        Refusal::InUse { kind: kind(), name: name(), why: "w".into() },
        Refusal::Part { part: 1, refusal: Box::new(Refusal::Invalid("i".into())) },
        Refusal::FeatureLevel { needs: 2, level: 1 },
        Refusal::ConfigFull { has: 1, would: 3, max: 2 },
    ]
}
