//! A session and a lease in one commit.

use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::command::{Acquire, Reply};
use leaseward_state::{
    ClusterMillis, Command, Entry, LeaseName, Refusal, Revision, SessionId, State, Term, UnixMillis,
};

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
    let entry =
        Entry { revision, term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request: command.into() };
    let reply = state.apply(&entry).reply;
    state.check_invariants().expect("whole");
    reply
}

/// A state at the feature level that this command came with.
fn raised() -> State {
    let mut state = State::default();
    let request = Command::RaiseFeatureLevel { to: FEATURE_LEVEL, term: Term(1) }.into();
    state.apply(&Entry { revision: Revision(1), term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request });
    state
}

#[test]
fn below_its_feature_level_it_is_refused_and_nothing_is_opened() {
    let mut state = State::default();
    let refused = Reply::Refused(Refusal::FeatureLevel { needs: 1, level: 0 });
    assert_eq!(apply(&mut state, "a", 3_000, false), refused);
    assert_eq!((state.sessions().count(), state.leases().count()), (0, 0));

    let mut state = raised();
    assert_eq!(state.feature_level(), FEATURE_LEVEL);
    assert!(matches!(apply(&mut state, "a", 3_000, false), Reply::Atomic(_)));
}

#[test]
fn the_feature_level_only_rises_and_only_by_the_leader_of_that_term() {
    let mut state = raised();
    let mut raise = |to, term| {
        let entry = Entry {
            revision: state.revision().next(),
            term: Term(2),
            at: UnixMillis(0),
            elapsed: ClusterMillis(0),
            request: Command::RaiseFeatureLevel { to, term: Term(term) }.into(),
        };
        let reply = state.apply(&entry).reply;
        (reply, state.feature_level())
    };
    assert!(matches!(raise(FEATURE_LEVEL + 1, 1), (Reply::Refused(Refusal::Outdated(_)), FEATURE_LEVEL)));
    assert!(matches!(raise(FEATURE_LEVEL - 1, 2), (Reply::Refused(Refusal::Outdated(_)), FEATURE_LEVEL)));
    assert_eq!(raise(FEATURE_LEVEL + 1, 2), (Reply::Done, FEATURE_LEVEL + 1));
}

#[test]
fn one_entry_opens_a_session_and_grants_the_lease() {
    let mut state = raised();
    let Reply::Atomic(replies) = apply(&mut state, "a", 3_000, false) else { panic!("refused") };
    let [Reply::Session(session), Reply::Granted { grant, .. }] = replies.as_slice() else { panic!("{replies:?}") };
    assert_eq!((*session, grant.session, grant.token.revision()), (SessionId(2), SessionId(2), Revision(2)));
    let queued = Reply::Atomic(vec![Reply::Session(SessionId(3)), Reply::Queued { ahead: 0 }]);
    assert_eq!(apply(&mut state, "b", 3_000, true), queued);
}

#[test]
fn a_refusal_opens_no_session() {
    let mut state = raised();
    apply(&mut state, "a", 3_000, false);
    assert!(matches!(apply(&mut state, "b", 3_000, false), Reply::Refused(Refusal::Held { .. })));
    assert!(matches!(apply(&mut state, "c", 10, true), Reply::Refused(Refusal::Ttl { .. })));
    assert_eq!(state.sessions().count(), 1);
    assert_eq!(state.revision(), Revision(4), "an entry is a revision, whatever it answers");
}
