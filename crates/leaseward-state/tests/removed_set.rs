//! A set that is removed: its members hear of it, or they would go on putting its files right.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use leaseward_state::command::{OpenMachine, PublishSet};
use leaseward_state::config::Digest;
use leaseward_state::machine::MachineProfile;
use leaseward_state::session::Incarnation;
use leaseward_state::{ClusterMillis, Command, Entry, MachineName, Reply, Revision, SetName, State, Term, UnixMillis};

fn apply(state: &mut State, command: Command) -> Revision {
    let (revision, request) = (state.revision().next(), command.into());
    let entry = Entry { revision, term: Term(1), at: UnixMillis(0), elapsed: ClusterMillis(0), request };
    let reply = state.apply(&entry).reply;
    assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    state.check_invariants().unwrap();
    revision
}

#[test]
fn its_members_hear_of_it_from_the_level_on_at_which_all_nodes_say_it() {
    for level in [2, 3] {
        let mut state = State::default();
        apply(&mut state, Command::RaiseFeatureLevel { to: level, term: Term(1) });
        let (machine, set) = (MachineName::new("m1").unwrap(), SetName::new("app").unwrap());
        let incarnation = Incarnation { boot_id: "b".into(), instance: 1 };
        let profile = MachineProfile::default();
        let open = OpenMachine { machine: machine.clone(), incarnation, profile, swept: true, ttl_ms: 2_000 };
        apply(&mut state, Command::OpenMachine(open));
        let part =
            PublishSet { set: set.clone(), parent: None, manifest: Digest([1; 32]), files: 1, bytes: 1, delta: None };
        apply(&mut state, Command::Publish { sets: vec![part], author: "ann".into(), message: String::new() });
        let removed = apply(&mut state, Command::RemoveSet { set });
        let heard = state.machine(&machine).unwrap().orders_revision;
        // Below it nodes of the last release would have another state.
        assert_eq!(heard == removed, level >= 3, "level {level}: {heard:?} of {removed:?}");
    }
}
