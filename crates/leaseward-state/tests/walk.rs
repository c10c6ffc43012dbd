//! Thousands of random entries in a small universe, and what must hold after each of them.

mod walk_commands;

use std::collections::BTreeMap;

use leaseward_state::record::{Record, RecordKey};
use leaseward_state::{
    Applied, ClusterMillis, Entry, Event, FencingToken, LeaseName, Reply, Request, RequestKey, ServerName, State, Term,
    UnixMillis,
};
use walk_commands::{Dice, command};

const SEEDS: u64 = 24;
const STEPS: u64 = 1_500;

/// What an observer of the events alone believes.
#[derive(Default)]
struct Observer {
    newest: BTreeMap<LeaseName, FencingToken>,
    held: BTreeMap<LeaseName, FencingToken>,
    unfenced: BTreeMap<ServerName, FencingToken>,
}

impl Observer {
    fn see(&mut self, event: &Event) {
        match event {
            Event::LeaseGranted { lease, token, .. } => {
                assert_eq!(self.held.insert(lease.clone(), *token), None, "{lease} has two holders");
                let before = self.newest.insert(lease.clone(), *token);
                assert!(before.is_none_or(|before| before < *token), "rule R7: {lease}: {before:?} then {token}");
            }
            Event::LeaseEnded { lease, token, .. } => {
                assert_eq!(self.held.remove(lease), Some(*token), "{lease} ended under another token");
            }
            Event::ServerExpired { server, token, .. } => {
                self.unfenced.insert(server.clone(), *token);
            }
            Event::ServerFenced { server, .. } => {
                self.unfenced.remove(server);
            }
            Event::ServerAssigned { server, fence, .. } => {
                let open = self.unfenced.remove(server);
                assert!(open.is_none() || fence.is_some(), "{server} was placed and its last copy may live");
            }
            _ => {}
        }
    }
}

fn check_refusal(state_before: &State, state: &State, applied: &Applied, touched: &[RecordKey]) {
    if !matches!(applied.reply, Reply::Refused(_)) {
        return;
    }
    assert!(applied.events.is_empty(), "a refusal with effects: {applied:?}");
    for key in touched {
        let harmless = matches!(key, RecordKey::Meta | RecordKey::Answer(_));
        assert!(harmless || state_before.record(key) == state.record(key), "a refusal changed {key:?}");
    }
}

fn walk(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut state = State::default();
    let mut twin = State::default();
    let mut copy: BTreeMap<RecordKey, Record> = BTreeMap::new();
    let mut observer = Observer::default();
    let mut term = Term(1);
    let mut clock = 0;
    for step in 0..STEPS {
        if dice.below(40) == 0 {
            term.0 += 1;
        }
        clock += dice.below(3_000);
        let key = (dice.below(3) == 0).then(|| RequestKey { client: 1, sequence: dice.below(step / 2 + 1) });
        let request = Request { key, named: dice.below(4) == 0, command: command(&mut dice, &state, term) };
        let entry = Entry {
            revision: state.revision().next(),
            term,
            at: UnixMillis(clock),
            elapsed: ClusterMillis(clock),
            request,
        };
        let before = state.clone();

        let applied = state.apply(&entry);
        assert_eq!(twin.apply(&entry), applied, "two members differ");
        state.check_invariants().unwrap_or_else(|why| panic!("{why} after {entry:?}"));
        applied.events.iter().for_each(|event| observer.see(event));
        let touched: Vec<_> = state.take_touched().into_iter().collect();
        check_refusal(&before, &state, &applied, &touched);
        for key in touched {
            match state.record(&key) {
                Some(record) => copy.insert(key, record),
                None => copy.remove(&key),
            };
        }
        if step % 29 == 0 || step + 1 == STEPS {
            let records: BTreeMap<_, _> = state.records().collect();
            assert!(copy == records, "a store that writes what was touched has fallen behind");
            // The twin is a member that starts again now and then.
            twin = State::restore(twin.records().collect::<Vec<_>>()).expect("its records are whole");
            assert!(twin.records().eq(state.records()), "restored records differ");
            let anew = state.anew(UnixMillis(clock)).expect("it was never restored");
            anew.check_invariants().unwrap_or_else(|why| panic!("{why} after a restore at step {step}"));
            assert!(State::restore(anew.records().collect::<Vec<_>>()).expect("whole").records().eq(anew.records()));
        }
    }
    let granted = observer.newest.len();
    assert!(granted > 3, "seed {seed} did next to nothing: {granted}");
}

#[test]
fn whatever_is_asked_every_promise_of_the_state_holds() {
    for seed in 0..SEEDS {
        if std::panic::catch_unwind(|| walk(seed)).is_err() {
            panic!("seed {seed}");
        }
    }
}
