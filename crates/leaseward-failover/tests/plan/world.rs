//! A cluster of values: a state, a master's clock, and short words for what happens.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use leaseward_failover::plan::{Observed, Plan, plan};
use leaseward_failover::sane::misfit;
use leaseward_state::command::{OpenMachine, ServerReport};
use leaseward_state::machine::{Cordon, MachineProfile};
use leaseward_state::policy::{Pause, Policy};
use leaseward_state::server::{
    Certificate, Exit, FenceEarned, FenceLevel, FenceProof, Placement, ServerSpec, ServerStatus, Wanted,
};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    ClusterMillis, Command, Entry, FencingToken, MachineName, Reply, ServerName, State, Term, UnixMillis,
};

#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) now: Duration,
    state: State,
    observed: Observed,
    clock: u64,
    instance: u128,
    profiles: BTreeMap<MachineName, MachineProfile>,
    /// When this master saw that a copy's right was over, noted apart from the code under test.
    over: BTreeMap<(ServerName, FencingToken), Duration>,
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn machines(names: &[&str]) -> Vec<MachineName> {
    names.iter().map(|name| machine(name)).collect()
}

fn machine(name: &str) -> MachineName {
    MachineName::new(name).expect("a name")
}

fn server(name: &str) -> ServerName {
    ServerName::new(name).expect("a name")
}

/// A seeded source of numbers.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

impl World {
    fn apply(&mut self, command: Command) -> Reply {
        let entry = Entry {
            revision: self.state.revision().next(),
            term: Term(1),
            at: UnixMillis(self.clock),
            elapsed: ClusterMillis(self.clock),
            request: command.into(),
        };
        let reply = self.state.apply(&entry).reply;
        self.state.check_invariants().expect("whole");
        reply
    }

    pub(crate) fn clock(&mut self, later_ms: u64) {
        self.clock += later_ms;
        // Refused; every entry carries the time.
        self.apply(Command::RemoveMachine { machine: machine("nobody") });
    }

    pub(crate) fn machine(&mut self, name: &str, level: FenceLevel) {
        self.machine_with(name, |profile| profile.fence = level);
    }

    pub(crate) fn machine_with(&mut self, name: &str, change: impl FnOnce(&mut MachineProfile)) {
        let mut profile = MachineProfile { fence: FenceLevel::F2, ..MachineProfile::default() };
        change(&mut profile);
        self.profiles.insert(machine(name), profile);
        self.machine_back(name, false);
    }

    /// Its agent starts again and finds no process of before.
    pub(crate) fn machine_again(&mut self, name: &str) {
        self.machine_back(name, true);
    }

    pub(crate) fn machine_back(&mut self, name: &str, swept: bool) {
        self.instance += 1;
        self.apply(Command::OpenMachine(OpenMachine {
            machine: machine(name),
            incarnation: Incarnation { boot_id: "b".into(), instance: self.instance },
            profile: self.profiles[&machine(name)].clone(),
            swept,
            ttl_ms: 3_000,
        }));
    }

    pub(crate) fn server(&mut self, name: &str, change: impl FnOnce(&mut ServerSpec)) {
        let mut spec = ServerSpec::new(["serve"]);
        change(&mut spec);
        self.apply(Command::PutServer { server: server(name), spec: Box::new(spec), if_version: None });
    }

    /// Returns why a server could not work here, in words.
    pub(crate) fn misfit(&self, name: &str, change: impl FnOnce(&mut ServerSpec)) -> Option<String> {
        let mut spec = ServerSpec::new(["serve"]);
        change(&mut spec);
        misfit(&self.state, &server(name), &spec).map(|why| why.to_string())
    }

    pub(crate) fn close(&mut self, name: &str) {
        let session = self.state.machine(&machine(name)).and_then(|machine| machine.session);
        if let Some(session) = session {
            self.apply(Command::CloseSessions { sessions: vec![session], term: Term(1) });
        }
    }

    pub(crate) fn suspect(&mut self, name: &str, suspected: bool) {
        let session = self.state.machine(&machine(name)).and_then(|machine| machine.session).expect("it is connected");
        self.apply(Command::Suspect { machine: machine(name), session, suspected, term: Term(1) });
    }

    /// A machine that makes ready says how far it is.
    pub(crate) fn prepared(&mut self, at: &str, name: &str, lacking: Option<&str>) {
        let token = self.state.server(&server(name)).and_then(|server| server.last_token).expect("it has one");
        let lacking = lacking.map(str::to_owned);
        let report = Command::ReportPrepared { machine: machine(at), server: server(name), token, lacking };
        assert_eq!(self.apply(report), Reply::Done);
    }

    pub(crate) fn cordon(&mut self, name: &str, why: &str) {
        self.cordon_as(name, Cordon { why: why.into(), drains: false, quarantine: false, until: None });
    }

    pub(crate) fn drain(&mut self, name: &str, why: &str) {
        self.cordon_as(name, Cordon { why: why.into(), drains: true, quarantine: false, until: None });
    }

    pub(crate) fn cordon_as(&mut self, name: &str, cordon: Cordon) {
        self.apply(Command::Cordon { machine: machine(name), cordon: Some(cordon) });
    }

    pub(crate) fn uncordon(&mut self, name: &str) {
        self.apply(Command::Cordon { machine: machine(name), cordon: None });
    }

    pub(crate) fn policy(&mut self, change: impl FnOnce(&mut Policy)) {
        let mut policy = self.state.policy().clone();
        change(&mut policy);
        self.apply(Command::PutPolicy { policy: Box::new(policy), if_version: None });
    }

    pub(crate) fn pause(&mut self, name: &str, pause: Option<Pause>) {
        self.apply(Command::Pause { server: server(name), pause });
    }

    pub(crate) fn restart(&mut self, name: &str) {
        self.apply(Command::Restart { server: server(name) });
    }

    pub(crate) fn confirm_dead(&mut self, name: &str) -> Reply {
        self.apply(Command::ConfirmDead { machine: machine(name), by: "ann".into() })
    }

    /// It passed its check.
    pub(crate) fn ready(&mut self, name: &str) {
        self.report(name, |_| ServerReport::Status { status: ServerStatus::Running { pid: 7 }, restarts: 0 });
    }

    pub(crate) fn not_started(&mut self, name: &str) {
        self.report(name, |_| ServerReport::NotStarted { why: "no such file".into() });
    }

    /// Where it is.
    pub(crate) fn at(&self, name: &str) -> Option<String> {
        self.state.server(&server(name))?.assignment().map(|at| at.machine.to_string())
    }

    fn report(&mut self, name: &str, report: impl FnOnce(FencingToken) -> ServerReport) {
        let token = self.state.server(&server(name)).and_then(|server| server.last_token);
        if let Some(token) = token {
            self.apply(Command::ReportServer { server: server(name), token, report: report(token) });
        }
    }

    pub(crate) fn crashed(&mut self, name: &str, restarts: u32) {
        self.report(name, |_| ServerReport::Crashed { restarts, why: "exit 1".into() });
    }

    pub(crate) fn dead(&mut self, name: &str, failure: Option<&str>) {
        self.report(name, |token| ServerReport::Dead {
            certificate: Certificate { token, boot_id: "b".into(), proven_at_boottime_ns: 1, exit: Exit::Code(0) },
            failure: failure.map(str::to_owned),
        });
    }

    pub(crate) fn wanted(&mut self, name: &str, wanted: Wanted) {
        self.apply(Command::SetWanted { server: server(name), wanted });
    }

    pub(crate) fn move_to(&mut self, name: &str, to: &str) {
        self.apply(Command::Move { server: server(name), to: machine(to), rollback: true });
    }

    /// Another member becomes the master: it knows the state, and nothing of what the one before saw.
    pub(crate) fn new_master(&mut self) {
        self.observed = Observed::default();
        self.over.clear();
    }

    /// The same world as another member has it: read back from records.
    pub(crate) fn copy(&self) -> Self {
        let state = State::restore(self.state.records().collect::<Vec<_>>()).expect("whole");
        Self { state, ..self.clone() }
    }

    pub(crate) fn plan(&mut self, term: Term) -> Plan {
        self.observed.look(&self.state, self.now, UnixMillis(self.clock));
        plan(&self.state, &self.observed, self.now, term)
    }

    /// Everything that is planned is proposed, and nothing of it is refused: the plan knows the state's rules.
    pub(crate) fn carry_out(&mut self) {
        for command in self.plan(Term(1)).commands {
            let reply = self.apply(command.clone());
            assert!(!matches!(reply, Reply::Refused(_)), "{command:?}: {reply:?}");
        }
    }

    /// Nothing is placed or settled before the death of its last copy is proven, or its grace is over.
    pub(crate) fn check_proofs(&mut self) {
        let (state, now) = (self.state.clone(), self.now);
        for (name, server) in state.servers() {
            if let Placement::Expired(expired) = &server.placement {
                self.over.entry((name.clone(), expired.token)).or_insert(now);
            }
        }
        for command in self.plan(Term(1)).commands {
            let (name, fence) = match &command {
                Command::Assign(assign) => (&assign.server, &assign.fence),
                Command::Settle { server, fence, .. } => (server, fence),
                _ => continue,
            };
            let server = state.server(name).expect("it exists");
            let Placement::Expired(expired) = &server.placement else { continue };
            if expired.fence.is_some() {
                continue;
            }
            let Some(FenceProof::Grace(given)) = fence else { panic!("{command:?} without a proof") };
            let level = state.machine(&expired.machine).expect("it exists").profile.fence;
            let earned = FenceEarned { level, watchdog_ms: None };
            let needed = server
                .spec
                .grace_ms
                .or(earned.grace_ms(server.spec.requires_fence))
                .expect("a level without a grace is never passed");
            assert_eq!(*given, needed);
            let since = self.over[&(name.clone(), expired.token)];
            assert!(now >= since + ms(needed), "{command:?} at {now:?}, over since {since:?}");
        }
    }

    pub(crate) fn plan_text(&mut self) -> String {
        let plan = self.plan(Term(1));
        let mut out = String::new();
        let proof = |fence: &Option<FenceProof>| match fence {
            None => String::new(),
            Some(FenceProof::Certificate(_)) => " proof Certificate".into(),
            Some(other) => format!(" proof {other:?}"),
        };
        for command in &plan.commands {
            let line = match command {
                Command::Assign(assign) => {
                    let (server, machine, cause) = (&assign.server, &assign.machine, assign.cause);
                    format!("assign {server} to {machine} ({cause:?}){}", proof(&assign.fence))
                }
                Command::Settle { server, fence, .. } => format!("settle {server}{}", proof(fence)),
                Command::GiveUp { server, why, .. } => format!("give up {server}: {why}"),
                Command::Relocate { server, to, .. } => format!("relocate {server} to {} ({:?})", to.machine, to.cause),
                Command::Quarantine { machine, cordon, .. } => format!("quarantine {machine}: {}", cordon.why),
                Command::EndPauses { .. } => "end pauses".to_owned(),
                Command::Prepare { server, machine, .. } => format!("{machine} makes ready for {server}"),
                other => format!("{other:?}"),
            };
            writeln!(out, "{line}").expect("a string takes it");
        }
        for (server, why) in &plan.waiting {
            writeln!(out, "{server} waits: {why}").expect("a string takes it");
        }
        if let Some(again) = plan.again {
            writeln!(out, "again in {} ms", again.as_millis()).expect("a string takes it");
        }
        out
    }
}
