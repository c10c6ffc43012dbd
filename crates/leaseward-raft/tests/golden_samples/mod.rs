//! One value of every stored and sent form. What stands here is in golden files: add, never change.

mod log;
mod sets;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use leaseward_raft::store::AppliedTo;
use leaseward_raft::stored::{Entry, LogPosition, Membership, Payload, StoredMembership, Vote};
use leaseward_raft::{NodeInfo, Standing};
use leaseward_state::command::{Acquire, Assign, Condition, OpenMachine, PublishSet, ServerReport};
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::rollout::{Rollout, RolloutStep, Steer};
use leaseward_state::config::{
    Chunk, Digest, DriftedPath, Manifest, ManifestEntry, ManifestNode, MemberSync, SyncState, Version,
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

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

pub(crate) fn certificate() -> Certificate {
    Certificate { token: TOKEN, boot_id: "boot".into(), proven_at_boottime_ns: 12, exit: Exit::Signal(9) }
}

pub(crate) fn spec() -> ServerSpec {
    ServerSpec {
        command: vec!["/bin/web".into(), "-v".into()],
        stop_command: vec!["stop".into()],
        environment: one("K", "V"),
        directory: Some("/srv".into()),
        user: Some("www".into()),
        candidates: vec![machine()],
        requires_fence: FenceLevel::F1,
        grace_ms: Some(7),
        check: Some(HealthCheck { probe: Probe::Tcp("h:1".into()), interval_ms: 1, timeout_ms: 2, misses: 3 }),
        start_timeout_ms: 4,
        stop_grace_ms: 5,
        restart: RestartPolicy { in_place: 1, per_ms: 2, backoff_ms: vec![3], cluster: 4, cluster_per_ms: 5 },
        priority: -1,
        addresses: vec![FloatingAddress {
            ip: "10.0.0.1".into(),
            interface: Some("eth0".into()),
            announce: Announce::AfterReady,
            tickle: true,
            network_fence: true,
        }],
        mounts: vec![Mount {
            device: "/dev/x".into(),
            at: "/mnt".into(),
            fs_type: "ext4".into(),
            options: vec!["ro".into()],
        }],
        hooks: BTreeMap::from([(HookStep::PreStart, Hook { command: vec!["/bin/true".into()], timeout_ms: 6 })]),
        limits: ResourceLimits { memory_bytes: Some(7), cpu_percent: Some(8), processes: Some(9) },
        state_file: Some("/run/web.state".into()),
        labels: one("disk", "ssd"),
        apart_from: vec![server()],
        weight: 10,
        migrates: true,
        failback: Failback::AutoAfter(11),
        manager: ManagerKind::Agent,
        needs_sets: vec!["app".into()],
    }
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

fn profile() -> MachineProfile {
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

fn incarnation() -> Incarnation {
    Incarnation { boot_id: "boot".into(), instance: 1 << 100 }
}

pub(crate) fn connection() -> Connection {
    let at = |text: &str| text.parse().expect("an address");
    Connection { local: at("10.0.0.1:80"), peer: at("[fe80::1]:4000") }
}

fn cordon() -> Cordon {
    Cordon { why: "disk".into(), drains: true, quarantine: false, until: Some(UnixMillis(5)) }
}

fn pause() -> Pause {
    Pause { why: "work".into(), until: Some(UnixMillis(6)) }
}

fn policy() -> Policy {
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

fn destination() -> Destination {
    Destination { machine: machine(), cause: Cause::Drained, back_to: Some(machine()) }
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
    ]
}

pub(crate) fn readinesses() -> Vec<Readiness> {
    vec![Readiness::Preparing, Readiness::Ready, Readiness::Lacking("w".into())]
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

pub(crate) fn server_reports() -> Vec<ServerReport> {
    vec![
        ServerReport::Status { status: ServerStatus::Running { pid: 7 }, restarts: 1 },
        ServerReport::Crashed { restarts: 2, why: "w".into() },
        ServerReport::Dead { certificate: certificate(), failure: Some("f".into()) },
        ServerReport::NotStarted { why: "w".into() },
        ServerReport::Absent,
        ServerReport::Clients(vec![connection()]),
    ]
}

pub(crate) fn server_statuses() -> Vec<ServerStatus> {
    vec![
        ServerStatus::Ordered,
        ServerStatus::Starting { pid: 1 },
        ServerStatus::Running { pid: 2 },
        ServerStatus::Unhealthy { pid: 3, why: "u".into() },
        ServerStatus::Restarting { why: "r".into() },
        ServerStatus::Stopping,
        ServerStatus::Preparing { step: "mount".into() },
        ServerStatus::Stuck { step: "unmount".into(), why: "w".into() },
    ]
}

pub(crate) fn fence_proofs() -> Vec<FenceProof> {
    vec![
        FenceProof::Certificate(certificate()),
        FenceProof::Rebooted,
        FenceProof::Swept,
        FenceProof::Grace(100),
        FenceProof::Operator("ann".into()),
        FenceProof::Hook("n1".into()),
    ]
}

pub(crate) fn probes() -> Vec<Probe> {
    vec![Probe::Process, Probe::Tcp("t".into()), Probe::Http("h".into()), Probe::Command(vec!["c".into()])]
}

pub(crate) fn sync_states() -> Vec<SyncState> {
    vec![
        SyncState::Behind,
        SyncState::Fetching { version: 1, done: 2, total: 3, elapsed_ms: 4 },
        SyncState::OnDisk { version: 2 },
        SyncState::Applied,
        SyncState::Rejected { version: 3, why: "w".into() },
        SyncState::Drifted {
            paths: vec![DriftedPath {
                path: "p".into(),
                what: "content".into(),
                owner: Some(1),
                at: Some(UnixMillis(2)),
            }],
            all: 3,
        },
        SyncState::Draining,
        SyncState::Disabled,
    ]
}

pub(crate) fn manifest_nodes() -> Vec<ManifestNode> {
    vec![
        ManifestNode::Directory { mode: 0o755 },
        ManifestNode::File {
            mode: 0o644,
            size: 3,
            digest: Digest([1; 32]),
            chunks: vec![Chunk { digest: Digest([2; 32]), size: 3 }],
        },
        ManifestNode::Symlink { target: "t".into() },
    ]
}

pub(crate) fn manifest() -> Manifest {
    let entries = manifest_nodes().into_iter().zip(["a", "a/b", "c"]);
    let xattrs = BTreeMap::from([("a/b".into(), BTreeMap::from([("user.a".into(), vec![1, 2])]))]);
    Manifest {
        entries: entries.map(|(node, path)| ManifestEntry { path: path.into(), node }).collect(),
        xattrs: Some(xattrs),
    }
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

pub(crate) fn record_keys() -> Vec<RecordKey> {
    vec![
        RecordKey::Meta,
        RecordKey::Machine(machine()),
        RecordKey::Session(SessionId(3)),
        RecordKey::Lease(lease()),
        RecordKey::Server(server()),
        RecordKey::Set(set()),
        RecordKey::Version(set(), 1),
        RecordKey::Sync(set(), machine()),
        RecordKey::Answer(RequestKey { client: 1, sequence: 2 }),
        RecordKey::Ledger(Revision(1), 2),
        RecordKey::Policy,
        RecordKey::Program(SessionId(3)),
    ]
}

pub(crate) fn placements() -> Vec<Placement> {
    vec![
        Placement::Unplaced { next: Some(destination()) },
        Placement::Assigned(Assignment {
            machine: machine(),
            session: SessionId(3),
            token: TOKEN,
            fence: FenceEarned { level: FenceLevel::F2, watchdog_ms: Some(3) },
            at: UnixMillis(4),
            cause: Cause::Started,
            status: ServerStatus::Ordered,
            restarts: 1,
            ready: true,
            moving: Some(destination()),
            back_to: Some(machine()),
        }),
        Placement::Expired(Expired {
            machine: machine(),
            token: TOKEN,
            earned: FenceEarned { level: FenceLevel::F2, watchdog_ms: None },
            wait_ms: 5,
            since: Revision(4),
            cause: Cause::MachineLost,
            fence: Some(FenceProof::Swept),
        }),
        Placement::Failed { why: "w".into() },
    ]
}

pub(crate) fn lease_states() -> Vec<LeaseState> {
    vec![LeaseState::Held(grant()), LeaseState::Delayed { token: TOKEN, delay_ms: 6 }]
}

pub(crate) fn owners() -> Vec<Owner> {
    vec![Owner::Machine(machine()), Owner::Client("c".into())]
}

pub(crate) fn records() -> Vec<Record> {
    let waiter = Waiter {
        session: SessionId(3),
        holder: "h".into(),
        priority: 1,
        queued: Revision(2),
        meta: one("k", "v"),
        lock_delay_ms: 4,
    };
    let failure = Failure {
        token: TOKEN,
        attempt: 1,
        machine: machine(),
        at: UnixMillis(2),
        why: "w".into(),
        machine_lost: true,
    };
    vec![
        Record::Meta(Meta {
            revision: Revision(1),
            now: UnixMillis(2),
            generation: Generation(3),
            feature_level: 4,
            compacted: Revision(5),
            elapsed: ClusterMillis(6),
        }),
        Record::Machine(Arc::new(Machine {
            created: Revision(1),
            modified: Revision(2),
            profile: profile(),
            incarnation: incarnation(),
            session: Some(SessionId(3)),
            since: UnixMillis(4),
            cordoned: Some(cordon()),
            losses: vec![UnixMillis(7)],
            suspected: Some(UnixMillis(8)),
            confirmed_dead: true,
            orders_revision: Revision(5),
        })),
        Record::Session(SessionRecord {
            owner: Owner::Machine(machine()),
            ttl_ms: 1,
            opened_at: UnixMillis(2),
            leases_revision: Revision(3),
        }),
        Record::Lease(Arc::new(Lease {
            created: Revision(1),
            modified: Revision(2),
            state: lease_states().remove(0),
            waiters: vec![waiter],
        })),
        Record::Server(Arc::new(Server {
            spec: spec(),
            version: 1,
            created: Revision(2),
            modified: Revision(3),
            wanted: Wanted::Running,
            paused: Some(pause()),
            placement: Placement::Unplaced { next: None },
            failures: vec![failure],
            clients: vec![connection()],
            heir: Some(Heir { machine: machine(), token: TOKEN, readiness: readinesses().remove(2) }),
            last_token: Some(TOKEN),
            last_machine: Some(machine()),
        })),
        Record::Set(SetRecord {
            created: Revision(1),
            modified: Revision(2),
            head: 3,
            spec: Arc::new(set_spec()),
            spec_version: 4,
            rollout: Some(Arc::new(Rollout {
                version: 3,
                base: 1,
                kept: BTreeMap::from([(machine(), 2)]),
                released: BTreeSet::from([machine()]),
                forgiven: BTreeSet::new(),
                halted: Some("w".into()),
                stepped_at: UnixMillis(5),
                stepped: Revision(6),
            })),
            pins: BTreeMap::from([(None, pin())]),
            resync: BTreeMap::from([(machine(), 7)]),
            bad: BTreeMap::from([(2, "w".into())]),
        }),
        Record::Version(Arc::new(Version {
            number: 1,
            parent: 0,
            manifest: Digest([9; 32]),
            files: 2,
            bytes: 3,
            author: "a".into(),
            message: "m".into(),
            at: UnixMillis(4),
            revision: Revision(5),
            delta: Some(InlineDelta { base: 1, bytes: vec![1, 2, 3].into() }),
        })),
        Record::Sync(Arc::new(MemberSync {
            applied: 1,
            state: SyncState::Applied,
            reported: Revision(2),
            at: UnixMillis(3),
        })),
        Record::Answer(Arc::new(Answer { reply: Reply::Done, revision: Revision(1), until: ClusterMillis(2) })),
        Record::Ledger(Arc::new(Recorded {
            revision: Revision(1),
            part: 2,
            at: UnixMillis(3),
            event: events().remove(0),
        })),
        Record::Policy(Arc::new(policy())),
        Record::Program(Arc::new(program_sync())),
    ]
}

pub(crate) fn events() -> Vec<Event> {
    vec![
        Event::SessionOpened { session: SessionId(3), owner: Owner::Client("c".into()) },
        Event::SessionEnded { session: SessionId(3), owner: Owner::Client("c".into()), why: SessionEnd::Expired },
        Event::LeaseGranted { lease: lease(), token: TOKEN, session: SessionId(3), holder: "h".into() },
        Event::LeaseEnded { lease: lease(), token: TOKEN, why: GrantEnd::Released },
        Event::LeaseQueued { lease: lease(), holder: "h".into() },
        Event::MachineCordoned { machine: machine(), cordon: None },
        Event::MachineRemoved { machine: machine() },
        Event::ServerDefined { server: server(), version: 1 },
        Event::ServerRemoved { server: server() },
        Event::ServerWanted { server: server(), wanted: Wanted::Running },
        Event::ServerAssigned {
            server: server(),
            machine: machine(),
            token: TOKEN,
            cause: Cause::Moved,
            fence: Some(FenceProof::Rebooted),
        },
        Event::ServerReported { server: server(), machine: machine(), token: TOKEN, status: ServerStatus::Stopping },
        Event::ServerExpired { server: server(), machine: machine(), token: TOKEN, silent_ms: 5 },
        Event::ServerFenced { server: server(), token: TOKEN, proof: FenceProof::Swept },
        Event::ServerStopped { server: server(), machine: machine(), token: TOKEN, why: "w".into() },
        Event::ServerMoving { server: server(), to: machine(), cause: Cause::Moved },
        Event::ServerFailed { server: server(), why: "w".into() },
        Event::SetPublished { set: set(), version: 1, author: "a".into(), message: "m".into() },
        Event::SetRemoved { set: set() },
        Event::SyncReported { machine: machine(), set: set(), applied: 1, state: SyncState::Applied },
        Event::FeatureLevelRaised { level: 5 },
        Event::ServerPaused { server: server(), pause: None },
        Event::MachineConfirmedDead { machine: machine(), by: "ann".into() },
        Event::PolicyChanged { version: 1 },
        Event::VotersChanged { voters: vec!["n1".into()], why: "w".into() },
        Event::MachineSuspected { machine: machine(), suspected: true },
        Event::ServerPrepared { server: server(), machine: machine(), readiness: Readiness::Ready },
        Event::SetDefined { set: set(), version: 1 },
        Event::SetPinned { set: set(), machine: None, pin: Some(pin()) },
        Event::RolloutChanged { set: set(), version: 2, change: RolloutChange::Halted("w".into()) },
        Event::Restored { from: Revision(5), generation: Generation(1) },
        Event::ProgramReported { session: SessionId(3), name: "c".into(), report: program_report() },
    ]
}
