//! Rollouts as a leader sees them: every step it takes is applied, and members do as they are told.

use std::collections::{BTreeMap, BTreeSet};

use leaseward_state::command::{OpenMachine, PublishSet, Reply};
use leaseward_state::config::Digest;
use leaseward_state::config::spec::SetSpec;
use leaseward_state::machine::MachineProfile;
use leaseward_state::session::Incarnation;
use leaseward_state::{ClusterMillis, Command, Entry, Request, SessionId, Term, UnixMillis};

use super::*;

/// A cluster with one set that goes in steps.
struct Cluster {
    state: State,
    sessions: BTreeMap<String, SessionId>,
}

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

fn app() -> SetName {
    SetName::new("app").unwrap()
}

impl Cluster {
    /// The machines have version 1; version 2 is published under this rule.
    fn new(machines: &[&str], rule: RolloutRule) -> Self {
        let mut this = Self { state: State::default(), sessions: BTreeMap::new() };
        for machine in machines {
            this.open(machine);
        }
        let spec = SetSpec { rollout: rule, ..SetSpec::default() };
        this.done(Command::PutSet { set: app(), spec: Box::new(spec), if_version: None });
        this.publish();
        for machine in machines {
            this.report(machine, 1, SyncState::Applied);
        }
        this.publish();
        this
    }

    fn done(&mut self, command: Command) -> Reply {
        let revision = self.state.revision().next();
        let entry = Entry {
            revision,
            term: Term(1),
            at: UnixMillis(0),
            elapsed: ClusterMillis(0),
            request: Request::from(command),
        };
        let reply = self.state.apply(&entry).reply;
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        reply
    }

    fn open(&mut self, machine: &str) {
        let labels =
            if machine.starts_with('c') { BTreeMap::from([("role".into(), "canary".into())]) } else { BTreeMap::new() };
        let open = OpenMachine {
            machine: name(machine),
            incarnation: Incarnation { boot_id: "b".into(), instance: 1 },
            profile: MachineProfile { labels, ..MachineProfile::default() },
            swept: true,
            ttl_ms: 3000,
        };
        if let Reply::Session(session) = self.done(Command::OpenMachine(open)) {
            self.sessions.insert(machine.to_owned(), session);
        }
    }

    fn lose(&mut self, machine: &str) {
        let session = self.sessions[machine];
        self.done(Command::CloseSessions { sessions: vec![session], term: Term(1) });
    }

    fn publish(&mut self) {
        let set = PublishSet { set: app(), parent: None, manifest: Digest([7; 32]), files: 1, bytes: 1, delta: None };
        self.done(Command::Publish { sets: vec![set], author: "ann".into(), message: String::new() });
    }

    fn report(&mut self, machine: &str, applied: u64, state: SyncState) {
        self.done(Command::ReportSync { machine: name(machine), sets: vec![(app(), applied, state)] });
    }

    /// Returns what comes next, in words, and does it.
    fn step(&mut self, quiet_ms: u64) -> String {
        let set = self.state.set(&app()).unwrap().clone();
        let Some(rollout) = &set.rollout else { return "over".into() };
        let quiet = is_quiet(&self.state, &app(), &set, rollout).then_some(Duration::from_millis(quiet_ms));
        match next(&self.state, &app(), &set, rollout, quiet) {
            Next::Wait(None) => "wait".into(),
            Next::Wait(Some(time)) => format!("wait {} ms", time.as_millis()),
            Next::Step(step) => {
                let words = match &step {
                    RolloutStep::Release(machines) => {
                        machines.iter().map(MachineName::as_str).collect::<Vec<_>>().join(" ")
                    }
                    RolloutStep::Halt(why) => format!("halt: {why}"),
                    RolloutStep::RollBack(why) => format!("back: {why}"),
                    RolloutStep::Finish => "finish".into(),
                };
                self.done(Command::StepRollout { set: app(), version: rollout.version, step, term: Term(1) });
                words
            }
        }
    }

    fn applied(&mut self, machines: &[&str], version: u64) {
        for machine in machines {
            self.report(machine, version, SyncState::Applied);
        }
    }

    fn refuses(&mut self, machine: &str) {
        self.report(machine, 1, SyncState::Rejected { version: 2, why: "no".into() });
    }
}

#[test]
fn who_is_canary_in_place_of_one_that_was_removed_is_waited_for_like_the_first() {
    for bake_ms in [0, 100] {
        let rule = RolloutRule { canaries: 1, bake_ms, ..RolloutRule::default() };
        let mut cluster = Cluster::new(&["m1", "m2", "m3", "m4"], rule);
        assert_eq!(cluster.step(0), "m1");
        cluster.lose("m1");
        assert_eq!(cluster.step(500), "wait", "perhaps it is the version that took it away");
        cluster.done(Command::RemoveMachine { machine: name("m1") });
        assert_eq!(cluster.step(500), "m2");
        assert_eq!(cluster.step(500), "wait", "the canary is on its way, bake {bake_ms}");
        cluster.lose("m2");
        assert_eq!(cluster.step(500), "wait", "the canary is away, bake {bake_ms}");
        cluster.open("m2");
        cluster.applied(&["m2"], 2);
        assert_eq!(cluster.step(500), "m3 m4");
    }
}

#[test]
fn canaries_come_first_prove_themselves_and_then_batches() {
    let canary_labels = BTreeMap::from([("role".into(), "canary".into())]);
    let rule = RolloutRule { canaries: 1, canary_labels, max_unavailable: 2, bake_ms: 100, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a1", "a2", "a3", "c1", "c2"], rule);
    assert_eq!(cluster.step(0), "c1");
    assert_eq!(cluster.step(0), "wait", "the canary is on its way");
    cluster.applied(&["c1"], 2);
    assert_eq!(cluster.step(40), "wait 60 ms");
    assert_eq!(cluster.step(100), "a1 a2");
    cluster.applied(&["a1"], 2);
    assert_eq!(cluster.step(500), "wait", "a2 is on its way");
    cluster.applied(&["a2"], 2);
    assert_eq!(cluster.step(0), "wait 100 ms");
    assert_eq!(cluster.step(100), "a3 c2");
    cluster.applied(&["a3", "c2"], 2);
    assert_eq!(cluster.step(99), "wait 1 ms");
    assert_eq!(cluster.step(100), "finish");
    assert_eq!(cluster.step(0), "over");
}

#[test]
fn a_canary_on_its_way_holds_the_rest_back_and_stays_the_canary_whoever_comes_back() {
    for max_unavailable in [0, 3] {
        let rule = RolloutRule { canaries: 1, max_unavailable, ..RolloutRule::default() };
        let mut cluster = Cluster::new(&["a", "b", "c", "d"], rule);
        cluster.lose("a");
        assert_eq!(cluster.step(0), "b");
        assert_eq!(cluster.step(1_000_000), "wait", "there is room, and b has shown nothing yet");
        cluster.open("a");
        assert_eq!(cluster.step(0), "wait", "a comes before b by name, and too late");
        cluster.applied(&["b"], 2);
        assert_eq!(cluster.step(0), "a c d");
    }
}

#[test]
fn without_a_time_to_prove_itself_the_next_one_goes_as_soon_as_there_is_room() {
    let rule = RolloutRule { max_unavailable: 2, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a", "b", "c", "d"], rule);
    assert_eq!(cluster.step(0), "a b");
    assert_eq!(cluster.step(0), "wait");
    cluster.applied(&["b"], 2);
    assert_eq!(cluster.step(0), "c");
    cluster.applied(&["a", "c"], 2);
    assert_eq!(cluster.step(0), "d");
    cluster.applied(&["d"], 2);
    assert_eq!(cluster.step(0), "finish");
}

#[test]
fn one_failure_too_many_stops_it_or_takes_everybody_back() {
    let rule = RolloutRule { canaries: 1, max_failed: 0, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a", "b", "c"], rule.clone());
    assert_eq!(cluster.step(0), "a");
    cluster.refuses("a");
    assert_eq!(cluster.step(0), "halt: 1 of its members refused it: a (no)");
    assert_eq!(cluster.step(1_000_000), "wait", "nobody else got it");
    let steer = leaseward_state::config::rollout::Steer::Resume;
    cluster.done(Command::SteerRollout { set: app(), version: 2, steer, by: "ann".into() });
    assert_eq!(cluster.step(0), "b c", "who failed was passed over");

    let mut cluster = Cluster::new(&["a", "b", "c"], RolloutRule { roll_back: true, max_failed: 1, ..rule });
    assert_eq!(cluster.step(0), "a");
    cluster.refuses("a");
    assert_eq!(cluster.step(0), "b c", "one may fail");
    cluster.refuses("c");
    assert_eq!(cluster.step(0), "back: 2 of its members refused it: a, c (no)");
    let set = cluster.state.set(&app()).unwrap();
    assert_eq!((set.head, set.bad.contains_key(&2), set.rollout.is_none()), (3, true, true));
    assert_eq!(set.newest().unwrap().manifest, set.versions[&1].manifest);
}

#[test]
fn staged_means_ready_everywhere_and_then_all_together() {
    let rule = RolloutRule { staged: true, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a", "b", "c"], rule);
    assert_eq!(cluster.step(0), "wait");
    for machine in ["a", "b"] {
        cluster.report(machine, 1, SyncState::OnDisk { version: 2 });
    }
    assert_eq!(cluster.step(0), "wait", "c is not ready");
    cluster.lose("c");
    assert_eq!(cluster.step(0), "a b", "who is away is not waited for");
    cluster.applied(&["a", "b"], 2);
    assert_eq!(cluster.step(0), "finish");
    let (set, c) = (cluster.state.set(&app()).unwrap(), name("c"));
    let wanted = cluster.state.wanted_version(&app(), set, &c, cluster.state.machine(&c).unwrap()).unwrap();
    assert_eq!(wanted.live.unwrap().number, 2, "it gets it when it comes back");
}

#[test]
fn nobody_follows_a_canary_that_was_lost_with_the_version() {
    let rule = RolloutRule { canaries: 1, bake_ms: 1_000, ..RolloutRule::default() };
    for applies in [false, true] {
        let mut cluster = Cluster::new(&["a", "b", "c"], rule.clone());
        assert_eq!(cluster.step(0), "a");
        if applies {
            // It has it, and dies before it has proven itself.
            cluster.applied(&["a"], 2);
        }
        cluster.lose("a");
        assert_eq!(cluster.step(1_000_000), "wait", "b would be the next one to be lost");
        let set = cluster.state.set(&app()).unwrap();
        let waits = waits_for(&cluster.state, &app(), set, set.rollout.as_ref().unwrap());
        assert_eq!(waits, BTreeSet::from([name("a")]), "who asks why is told");
        cluster.open("a");
        cluster.applied(&["a"], 2);
        assert_eq!(cluster.step(1_000_000), "b c", "it is back, and is well");
    }
}

#[test]
fn machines_that_are_away_do_not_stop_it_and_take_their_share_of_the_room() {
    let rule = RolloutRule { canaries: 1, max_unavailable: 2, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a", "b", "c", "d"], rule);
    cluster.lose("a");
    assert_eq!(cluster.step(0), "b", "a machine that is away is no canary");
    cluster.applied(&["b"], 2);
    assert_eq!(cluster.step(0), "c", "one of two is away");
    cluster.lose("c");
    assert_eq!(cluster.step(0), "d", "both are: it goes on, one at a time");
    cluster.applied(&["d"], 2);
    assert_eq!(cluster.step(0), "finish");
}

#[test]
fn pinned_members_are_passed_over() {
    let rule = RolloutRule { max_unavailable: 1, ..RolloutRule::default() };
    let mut cluster = Cluster::new(&["a", "b"], rule);
    let pin = leaseward_state::config::rollout::Pin { version: Some(1), by: "ann".into(), why: String::new() };
    cluster.done(Command::PinSet { set: app(), machine: Some(name("a")), pin: Some(pin) });
    assert_eq!(cluster.step(0), "b");
    cluster.applied(&["b"], 2);
    assert_eq!(cluster.step(0), "finish");
}

#[test]
fn every_rule_comes_to_its_end_whatever_order_members_answer_in() {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let dice = |seed: u64, i: u64, below: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, i).hash(&mut hasher);
        hasher.finish() % below
    };
    for seed in 0..300 {
        let machines: Vec<String> = (0..1 + dice(seed, 0, 7)).map(|i| format!("m{i}")).collect();
        let machines: Vec<&str> = machines.iter().map(String::as_str).collect();
        let rule = RolloutRule {
            canaries: dice(seed, 1, 4) as u32,
            max_unavailable: dice(seed, 2, 4) as u32,
            bake_ms: dice(seed, 3, 2) * 50,
            staged: dice(seed, 4, 2) == 1,
            max_failed: 10,
            roll_back: true,
            ..RolloutRule::default()
        };
        let most = rule.max_unavailable as usize;
        let mut cluster = Cluster::new(&machines, rule);
        let mut over = false;
        for turn in 0..200 {
            let said = cluster.step(1_000);
            if said == "over" {
                over = true;
                break;
            }
            let set = cluster.state.set(&app()).unwrap().clone();
            if let Some(rollout) = &set.rollout {
                let late = waits_for(&cluster.state, &app(), &set, rollout);
                assert!(
                    most == 0 || late.len() <= most.max(set.spec.rollout.canaries as usize),
                    "seed {seed}: {late:?}"
                );
            }
            let at = dice(seed, 100 + turn, machines.len() as u64) as usize;
            let who = name(machines[at]);
            let state = &cluster.state;
            let wanted = state.wanted_version(&app(), &set, &who, state.machine(&who).unwrap()).unwrap();
            let (live, staged) = (wanted.live.unwrap().number, wanted.staged.map(|version| version.number));
            let refuses = dice(seed, 500 + turn, 8) == 0;
            match (live, staged) {
                (2, _) if refuses => cluster.refuses(machines[at]),
                (1, Some(2)) => cluster.report(machines[at], 1, SyncState::OnDisk { version: 2 }),
                (live, _) => cluster.applied(&[machines[at]], live),
            }
        }
        assert!(over, "seed {seed} never ends");
    }
}
