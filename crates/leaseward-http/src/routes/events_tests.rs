//! Streams over a state without a cluster.

use leaseward_state::command::Entry;
use leaseward_state::{ClusterMillis, Command, state::State as Clustered};
use leaseward_state::{Term, UnixMillis};

use super::*;

fn state(entries: u64) -> Clustered {
    let mut state = Clustered::default();
    for i in 1..=entries {
        let command = Command::OpenSession { name: format!("c{i}"), ttl_ms: 3_000 };
        state.apply(&Entry {
            revision: Revision(i),
            term: Term(1),
            at: UnixMillis(i),
            elapsed: ClusterMillis(0),
            request: command.into(),
        });
    }
    state
}

#[test]
fn a_list_goes_on_where_it_stopped() {
    let state = state(10);
    let filter = Filter::default();
    let (items, next) = after_revision(&state, &filter, Revision(2), 3).unwrap();
    assert_eq!((items.len(), next), (3, Revision(5)));
    let (items, next) = after_revision(&state, &filter, next, 100).unwrap();
    assert_eq!((items.len(), next), (5, Revision(10)));
    let leases = Filter { kinds: vec!["lease".into()], prefix: String::new() };
    let (items, next) = after_revision(&state, &leases, Revision(0), 100).unwrap();
    assert_eq!((items.len(), next), (0, Revision(10)), "what was looked at need not be looked at again");
}

#[test]
fn who_is_too_far_behind_is_told_so() {
    let state = state(leaseward_state::limits::LEDGER_MAX as u64 + 5);
    assert_eq!(state.compacted(), Revision(5));
    let compacted = after_revision(&state, &Filter::default(), Revision(4), 1);
    assert!(matches!(compacted, Err(Fault::Problem(problem)) if problem.code == "LW0207"));
    assert!(after_revision(&state, &Filter::default(), Revision(5), 1).is_ok());
}
