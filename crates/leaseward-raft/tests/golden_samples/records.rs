//! What is stored: records with their names, and what happened.

use super::*;

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
        RecordKey::Access,
    ]
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
        Record::Access(Arc::new(Access { tokens: BTreeMap::from([(token_name(), access_token())]) })),
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
        Event::TokenChanged { token: token_name(), roles: roles(), by: "b".into() },
    ]
}

pub(crate) fn lease_states() -> Vec<LeaseState> {
    vec![LeaseState::Held(grant()), LeaseState::Delayed { token: TOKEN, delay_ms: 6 }]
}

pub(crate) fn owners() -> Vec<Owner> {
    vec![Owner::Machine(machine()), Owner::Client("c".into())]
}
