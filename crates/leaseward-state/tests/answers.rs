//! Which answers are kept for retries when there are more than are kept at all.

use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::limits::ANSWERS_KEPT_MAX;
use leaseward_state::{ClusterMillis, Command, Entry, Request, RequestKey, Revision, State, Term, UnixMillis};

/// Applies a request under a key, and returns the revision of its answer: its own, if it was not answered before.
fn ask(state: &mut State, key: u64, named: bool) -> (Revision, bool) {
    let revision = state.revision().next();
    let command = Command::OpenSession { name: "x".into(), ttl_ms: 1 };
    let request = Request { key: Some(RequestKey { client: 1, sequence: key }), named, command };
    let entry = Entry { revision, term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request };
    let answered = state.apply(&entry).revision;
    (answered, answered != revision)
}

#[test]
fn the_oldest_go_first_however_long_they_were_to_be_kept() {
    let mut state = State::default();
    let raise = Command::RaiseFeatureLevel { to: FEATURE_LEVEL, term: Term(1) }.into();
    let entry =
        Entry { revision: Revision(1), term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request: raise };
    state.apply(&entry);
    // A day's worth of keys that callers chose, and then what a client sends for a minute at most.
    let most = ANSWERS_KEPT_MAX as u64;
    for key in 0..most {
        ask(&mut state, key, true);
    }
    let (brief, _) = ask(&mut state, most, false);
    for key in 1..=1_000 {
        ask(&mut state, most + key, true);
    }
    assert_eq!(ask(&mut state, most, false), (brief, true), "it was applied twice");
    assert!(state.answers_kept() <= ANSWERS_KEPT_MAX);
    assert!(!ask(&mut state, 1_000, true).1, "it was among the oldest");
    assert!(ask(&mut state, 1_100, true).1, "more than the oldest went");

    // What is stored says the same.
    let mut again = State::restore(state.records()).expect("whole");
    let brief = (brief, true);
    assert_eq!((ask(&mut state, most, false), ask(&mut again, most, false)), (brief, brief));
    let next = (ask(&mut state, most + 2_000, true), ask(&mut again, most + 2_000, true));
    assert_eq!(next.0, next.1);
    assert_eq!(ask(&mut state, 1_003, true), ask(&mut again, 1_003, true), "another one went");
}
