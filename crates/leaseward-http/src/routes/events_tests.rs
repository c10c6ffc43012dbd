//! Streams over a state without a cluster.

use std::collections::BTreeMap;

use leaseward_state::command::{Acquire, Entry};
use leaseward_state::{ClusterMillis, Command, state::State as Clustered};
use leaseward_state::{SessionId, Term};

use super::*;

fn entry(revision: u64, command: Command) -> Entry {
    Entry {
        revision: Revision(revision),
        term: Term(1),
        at: UnixMillis(revision),
        elapsed: ClusterMillis(0),
        request: command.into(),
    }
}

fn state(entries: u64) -> Clustered {
    let mut state = Clustered::default();
    for i in 1..=entries {
        let command = Command::OpenSession { name: format!("c{i}"), ttl_ms: 3_000 };
        state.apply(&entry(i, command));
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
    let leases = Filter { kinds: vec!["lease".into()], ..Filter::default() };
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

#[test]
fn what_happened_is_read_backwards_to_its_beginning_within_a_window() {
    let state = state(10);
    let filter = Filter { since: Some(UnixMillis(3)), until: Some(UnixMillis(9)), ..Filter::default() };
    let (mut before, mut read) = (None, Vec::new());
    loop {
        let items: Vec<u64> = newest(&state, &filter, before, 4).iter().map(|recorded| recorded.revision.0).collect();
        let Some(oldest) = items.first() else { break };
        before = Some(Revision(*oldest));
        read.push(items);
    }
    assert_eq!(read, [vec![5, 6, 7, 8], vec![3, 4]]);
}

#[test]
fn events_of_one_entry_are_never_apart() {
    let mut state = state(1);
    let acquire = Acquire {
        lease: "a".parse().unwrap(),
        session: SessionId(0),
        holder: "h".into(),
        wait: false,
        priority: 0,
        lock_delay_ms: 0,
        meta: BTreeMap::new(),
    };
    let both = Command::AcquireOpening { name: "c".into(), ttl_ms: 3_000, acquire };
    for (revision, command) in [(2, Command::RaiseFeatureLevel { to: 1, term: Term(1) }), (3, both)] {
        state.apply(&entry(revision, command));
    }
    let found = newest(&state, &Filter::default(), None, 1);
    let parts: Vec<_> = found.iter().map(|found| (found.revision.0, found.part)).collect();
    assert_eq!(parts, [(3, 0), (3, 1)]);
}
