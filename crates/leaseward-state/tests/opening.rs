//! A session and a lease in one commit.

use leaseward_state::command::{Acquire, Reply};
use leaseward_state::{Command, Entry, LeaseName, Refusal, Revision, SessionId, State, Term, UnixMillis};

fn apply(state: &mut State, name: &str, ttl_ms: u64, wait: bool) -> Reply {
    let acquire = Acquire {
        lease: LeaseName::new("job").expect("a name"),
        session: SessionId(0),
        holder: name.into(),
        wait,
        priority: 0,
        lock_delay_ms: 0,
        meta: Default::default(),
    };
    let command = Command::AcquireOpening { name: name.into(), ttl_ms, acquire };
    let revision = state.revision().next();
    let entry = Entry { revision, term: Term(1), at: UnixMillis(0), request: command.into() };
    let reply = state.apply(&entry).reply;
    state.check_invariants().expect("whole");
    reply
}

#[test]
fn one_entry_opens_a_session_and_grants_the_lease() {
    let mut state = State::default();
    let Reply::Atomic(replies) = apply(&mut state, "a", 3_000, false) else { panic!("refused") };
    let [Reply::Session(session), Reply::Granted { grant, .. }] = replies.as_slice() else { panic!("{replies:?}") };
    assert_eq!((*session, grant.session, grant.token.revision()), (SessionId(1), SessionId(1), Revision(1)));
    let queued = Reply::Atomic(vec![Reply::Session(SessionId(2)), Reply::Queued { ahead: 0 }]);
    assert_eq!(apply(&mut state, "b", 3_000, true), queued);
}

#[test]
fn a_refusal_opens_no_session() {
    let mut state = State::default();
    apply(&mut state, "a", 3_000, false);
    assert!(matches!(apply(&mut state, "b", 3_000, false), Reply::Refused(Refusal::Held { .. })));
    assert!(matches!(apply(&mut state, "c", 10, true), Reply::Refused(Refusal::Ttl { .. })));
    assert_eq!(state.sessions().count(), 1);
    assert_eq!(state.revision(), Revision(3), "an entry is a revision, whatever it answers");
}
