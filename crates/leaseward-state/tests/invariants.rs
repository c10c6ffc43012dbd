//! A stored state that contradicts itself is not loaded: each invariant is broken by hand and must be noticed.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_state::command::{Acquire, Assign, OpenMachine, PublishSet};
use leaseward_state::config::Digest;
use leaseward_state::config::program::ProgramReport;
use leaseward_state::lease::{LeaseState, Waiter};
use leaseward_state::machine::MachineProfile;
use leaseward_state::record::{Record, RecordKey};
use leaseward_state::server::{Cause, Expired, FenceEarned, FenceLevel, Placement, ServerSpec};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    ClusterMillis, Command, Entry, FencingToken, LeaseName, MachineName, Reply, Revision, ServerName, SessionId,
    SetName, State, Term, UnixMillis,
};

type Records = BTreeMap<RecordKey, Record>;

fn lease(name: &str) -> LeaseName {
    LeaseName::new(name).expect("a name")
}

fn server(name: &str) -> ServerName {
    ServerName::new(name).expect("a name")
}

fn machine(name: &str) -> MachineName {
    MachineName::new(name).expect("a name")
}

fn set(name: &str) -> SetName {
    SetName::new(name).expect("a name")
}

fn acquire(session: u64, holder: &str) -> Command {
    Command::Acquire(Acquire {
        lease: lease("job"),
        session: SessionId(session),
        holder: holder.into(),
        wait: true,
        priority: 0,
        lock_delay_ms: 0,
        meta: BTreeMap::new(),
    })
}

fn spec() -> ServerSpec {
    ServerSpec::new(["serve"])
}

/// Sessions 1 and 2, a lease that 1 holds and 2 waits for twice, machine m1 with server web, set app, which 2 follows, one
/// idle server.
fn whole() -> Records {
    let put = |name| Command::PutServer { server: server(name), spec: Box::new(spec()), if_version: None };
    let publish =
        PublishSet { set: set("app"), parent: None, manifest: Digest([0; 32]), files: 0, bytes: 0, delta: None };
    let commands = [
        Command::OpenSession { name: "one".into(), ttl_ms: 1_000 },
        Command::OpenSession { name: "two".into(), ttl_ms: 1_000 },
        acquire(1, ""),
        acquire(2, "x"),
        acquire(2, "y"),
        Command::OpenMachine(OpenMachine {
            machine: machine("m1"),
            incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
            profile: MachineProfile::default(),
            swept: false,
            ttl_ms: 1_000,
        }),
        put("web"),
        put("idle"),
        Command::Assign(Assign {
            server: server("web"),
            machine: machine("m1"),
            session: SessionId(6),
            after: None,
            fence: None,
            cause: Cause::Started,
            term: Term(1),
        }),
        Command::Publish { sets: vec![publish], author: String::new(), message: String::new() },
        Command::ReportProgram {
            session: SessionId(2),
            step: 1,
            report: ProgramReport { set: set("app"), file: "f".into(), applied: 1, rejected: None },
        },
    ];
    let mut state = State::default();
    for command in commands {
        let entry = Entry {
            revision: state.revision().next(),
            term: Term(1),
            at: UnixMillis(0),
            elapsed: ClusterMillis(0),
            request: command.into(),
        };
        let reply = state.apply(&entry).reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    state.records().collect()
}

#[track_caller]
fn noticed(expected: &str, tamper: impl FnOnce(&mut Records)) {
    let mut records = whole();
    State::restore(records.clone()).expect("it is whole before");
    tamper(&mut records);
    match State::restore(records) {
        Ok(_) => panic!("nobody noticed that {expected}"),
        Err(error) => assert!(error.0.contains(expected), "{error}"),
    }
}

macro_rules! record {
    ($records:expr, $key:expr, $kind:ident) => {
        match $records.get_mut(&$key) {
            Some(Record::$kind(record)) => record,
            other => panic!("{other:?}"),
        }
    };
}

/// As `record!`, for the kinds whose values are shared.
macro_rules! shared {
    ($records:expr, $key:expr, $kind:ident) => {
        Arc::make_mut(record!($records, $key, $kind))
    };
}

/// Which leases a session holds is read off the leases themselves, so they cannot disagree about it.
#[test]
fn whoever_holds_or_waits_is_open() {
    noticed("which is over", |records| drop(records.remove(&RecordKey::Session(SessionId(1)))));
    noticed("waits for lease/job and is over", |records| drop(records.remove(&RecordKey::Session(SessionId(2)))));
}

#[test]
fn tokens_are_of_the_past_and_waiters_in_order() {
    noticed("from the future", |records| match &mut shared!(records, RecordKey::Lease(lease("job")), Lease).state {
        LeaseState::Held(grant) => grant.token = FencingToken(1_000),
        LeaseState::Delayed { .. } => panic!("it is held"),
    });
    noticed("from the future", |records| {
        shared!(records, RecordKey::Lease(lease("job")), Lease).state =
            LeaseState::Delayed { token: FencingToken(1_000), delay_ms: 1 };
    });
    noticed("from the future", |records| record!(records, RecordKey::Meta, Meta).revision = Revision(2));
    let waiters = |tamper: fn(&mut Vec<Waiter>)| {
        noticed("out of order", |records| {
            tamper(&mut shared!(records, RecordKey::Lease(lease("job")), Lease).waiters);
        });
    };
    waiters(|waiters| waiters.reverse());
    waiters(|waiters| waiters[1].priority = 1);
}

#[test]
fn servers_and_their_leases_tell_one_story() {
    let broken = "server/web and its lease contradict each other";
    let web = || RecordKey::Server(server("web"));
    let web_lease = || RecordKey::Lease(lease("server/web"));
    let forget = |records: &mut Records| {
        records.remove(&web_lease());
    };
    noticed(broken, forget);
    noticed(broken, |records| shared!(records, web(), Server).placement = Placement::Unplaced { next: None });
    noticed(broken, |records| shared!(records, web(), Server).placement = Placement::Failed { why: String::new() });
    noticed(broken, |records| shared!(records, web(), Server).last_token = Some(FencingToken(1)));
    noticed(broken, |records| match &mut shared!(records, web(), Server).placement {
        Placement::Assigned(assignment) => assignment.token = FencingToken(1),
        other => panic!("{other:?}"),
    });
    noticed(broken, |records| match &mut shared!(records, web(), Server).placement {
        Placement::Assigned(assignment) => assignment.machine = machine("m2"),
        other => panic!("{other:?}"),
    });
    let expired = |token| {
        let since = Revision(9);
        let earned = FenceEarned { level: FenceLevel::F2, watchdog_ms: None };
        Placement::Expired(Expired {
            machine: machine("m1"),
            token,
            earned,
            wait_ms: 0,
            since,
            cause: Cause::MachineLost,
            fence: None,
        })
    };
    noticed(broken, |records| shared!(records, web(), Server).placement = expired(FencingToken(9)));
    noticed(broken, |records| {
        let lease = shared!(records, web_lease(), Lease);
        lease.state = LeaseState::Delayed { token: FencingToken(9), delay_ms: 0 };
        shared!(records, web(), Server).placement = expired(FencingToken(8));
    });
    noticed("belongs to no server", |records| drop(records.remove(&web())));
}

#[test]
fn machines_have_their_own_sessions() {
    let m1 = || RecordKey::Machine(machine("m1"));
    noticed("is not that machine's session", |records| {
        shared!(records, m1(), Machine).session = None;
        records.remove(&RecordKey::Lease(lease("server/web")));
        records.remove(&RecordKey::Server(server("web")));
    });
    noticed("which is not its own", |records| {
        let mut second = shared!(records, m1(), Machine).clone();
        second.session = Some(SessionId(1));
        records.insert(RecordKey::Machine(machine("m2")), Record::Machine(Arc::new(second)));
    });
}

#[test]
fn a_program_follows_a_set_under_an_open_session() {
    let rename = |records: &mut Records, to: u64| {
        let program = records.remove(&RecordKey::Program(SessionId(2))).expect("it is there");
        records.insert(RecordKey::Program(SessionId(to)), program);
    };
    noticed("one of them is not there", |records| rename(records, 3));
    // Session 6 is a machine's.
    noticed("one of them is not there", |records| rename(records, 6));
    noticed("one of them is not there", |records| {
        shared!(records, RecordKey::Program(SessionId(2)), Program).report.set = set("gone");
    });
}

#[test]
fn records_are_of_their_kind_and_complete() {
    noticed("lacks its newest version", |records| drop(records.remove(&RecordKey::Version(set("app"), 1))));
    noticed("lacks its newest version", |records| record!(records, RecordKey::Set(set("app")), Set).head = 2);
    noticed("has no set", |records| drop(records.remove(&RecordKey::Set(set("app")))));
    noticed("the numbers of the whole state are missing", |records| drop(records.remove(&RecordKey::Meta)));
    noticed("holds a record of another kind", |records| {
        let meta = records[&RecordKey::Meta].clone();
        records.insert(RecordKey::Session(SessionId(9)), meta);
    });
}
