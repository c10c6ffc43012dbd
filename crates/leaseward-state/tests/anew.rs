//! A restored cluster: what it knows of the old life, and what of it no longer counts.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;

use leaseward_state::command::{Acquire, Assign, OpenMachine, PublishSet};
use leaseward_state::config::Digest;
use leaseward_state::lease::LeaseState;
use leaseward_state::machine::MachineProfile;
use leaseward_state::server::{Cause, Placement, ServerSpec};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    ClusterMillis, Command, Entry, Generation, LeaseName, MachineName, Refusal, Reply, Request, RequestKey, ServerName,
    SessionId, SetName, State, Term, UnixMillis,
};

fn apply(state: &mut State, command: Command) -> Reply {
    let key = Some(RequestKey { client: 1, sequence: state.revision().0 });
    let request = Request { key, named: false, command };
    state
        .apply(&Entry {
            revision: state.revision().next(),
            term: Term(1),
            at: UnixMillis(5),
            elapsed: ClusterMillis(0),
            request,
        })
        .reply
}

fn acquire(session: SessionId) -> Command {
    Command::Acquire(Acquire {
        lease: LeaseName::new("job").unwrap(),
        session,
        holder: "h".into(),
        wait: true,
        priority: 0,
        lock_delay_ms: 0,
        meta: BTreeMap::new(),
    })
}

fn publish(content: u8) -> Command {
    let set = PublishSet {
        set: SetName::new("app").unwrap(),
        parent: None,
        manifest: Digest([content; 32]),
        files: 1,
        bytes: 1,
        delta: None,
    };
    Command::Publish { sets: vec![set], author: "ann".into(), message: "m".into() }
}

fn opened(state: &mut State, command: Command) -> SessionId {
    match apply(state, command) {
        Reply::Session(session) => session,
        other => panic!("{other:?}"),
    }
}

/// Two clients, one holding and one waiting; a server on a machine; two versions of a set.
fn old() -> State {
    let mut state = State::default();
    let one = opened(&mut state, Command::OpenSession { name: "one".into(), ttl_ms: 3_000 });
    let two = opened(&mut state, Command::OpenSession { name: "two".into(), ttl_ms: 3_000 });
    apply(&mut state, acquire(one));
    apply(&mut state, acquire(two));
    let open = OpenMachine {
        machine: MachineName::new("m1").unwrap(),
        incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
        profile: MachineProfile::default(),
        swept: true,
        ttl_ms: 2_000,
    };
    let session = opened(&mut state, Command::OpenMachine(open));
    let server = ServerName::new("web").unwrap();
    let spec = Box::new(ServerSpec::new(["serve"]));
    apply(&mut state, Command::PutServer { server: server.clone(), spec, if_version: None });
    let machine = MachineName::new("m1").unwrap();
    let (after, fence, cause, term) = (None, None, Cause::Started, Term(1));
    apply(&mut state, Command::Assign(Assign { server, machine, session, after, fence, cause, term }));
    apply(&mut state, publish(1));
    apply(&mut state, publish(2));
    state
}

#[test]
fn nobody_of_the_old_life_believes_and_every_number_goes_on_above_it() {
    let (old, job) = (old(), LeaseName::new("job").unwrap());
    let mut lived_on = old.clone();
    for content in 3..100 {
        apply(&mut lived_on, publish(content));
    }
    let before = old.token(&job).unwrap();
    let mut new = old.anew(UnixMillis(9)).expect("it was never restored");
    new.check_invariants().expect("it is whole");
    assert_eq!(new.generation(), Generation(1));
    assert!(new.revision() > lived_on.revision());
    assert_eq!(new.sessions().count(), 0);

    // The holder may still believe: for a whole time to live nobody gets it.
    let lease = new.lease(&job).expect("it is closed");
    assert_eq!(lease.state, LeaseState::Delayed { token: before, delay_ms: 3_000 });
    assert!(lease.waiters.is_empty());
    assert!(matches!(apply(&mut new, acquire(SessionId(1))), Reply::Refused(Refusal::NoSession { .. })));
    let release = Command::Release { lease: job.clone(), token: before };
    assert!(matches!(apply(&mut new, release), Reply::Refused(_)), "an old token opens nothing");

    // The server is lost, and its copy may live on for a whole time to live.
    let web = new.server(&ServerName::new("web").unwrap()).unwrap();
    let Placement::Expired(expired) = &web.placement else { panic!("{:?}", web.placement) };
    assert_eq!((expired.wait_ms, &expired.fence), (2_000, &None));

    // What a set's members had is a new version; what the old life published after the backup has a smaller number.
    let app = SetName::new("app").unwrap();
    let (set, gone) = (new.set(&app).unwrap(), lived_on.set(&app).unwrap());
    assert!(set.head > gone.head, "{} and {}", set.head, gone.head);
    assert_eq!(set.newest().unwrap().manifest, Digest([2; 32]));
    assert_eq!(set.versions.keys().copied().collect::<Vec<_>>(), [1, 2, set.head]);

    // A new session and its grant are above everything that the old life can have handed out.
    let term = Term(1);
    apply(&mut new, Command::EndDelay { lease: job.clone(), token: before, term });
    let session = opened(&mut new, Command::OpenSession { name: "three".into(), ttl_ms: 3_000 });
    assert!(session.0 > lived_on.revision().0);
    apply(&mut new, acquire(session));
    assert!(new.token(&job).unwrap() > before);
    assert_eq!(new.token(&job).unwrap().generation(), Generation(1));
    assert!(new.events_after(lived_on.revision()).is_none(), "whoever watched the old life lists again");
}

#[test]
fn a_write_of_the_old_life_that_is_sent_again_is_not_answered_with_an_old_grant() {
    let old = old();
    let mut new = old.anew(UnixMillis(9)).unwrap();
    let key = Some(RequestKey { client: 1, sequence: 0 });
    let again = Request { key, named: false, command: Command::OpenSession { name: "one".into(), ttl_ms: 3_000 } };
    let entry = Entry {
        revision: new.revision().next(),
        term: Term(1),
        at: UnixMillis(9),
        elapsed: ClusterMillis(0),
        request: again,
    };
    assert_eq!(new.apply(&entry).reply, Reply::Session(SessionId(entry.revision.0)));
}

#[test]
fn lives_follow_one_another() {
    let (mut state, job) = (old(), LeaseName::new("job").unwrap());
    let mut newest = state.token(&job).unwrap();
    for life in 1..=5 {
        state = state.anew(UnixMillis(life)).unwrap();
        state.check_invariants().expect("it is whole");
        apply(&mut state, Command::EndDelay { lease: job.clone(), token: newest, term: Term(1) });
        let session = opened(&mut state, Command::OpenSession { name: "x".into(), ttl_ms: 3_000 });
        apply(&mut state, acquire(session));
        let token = state.token(&job).unwrap();
        assert!(token > newest, "life {life}: {token} after {newest}");
        newest = token;
    }
}
