//! Random commands that often make sense: names, sessions and tokens come from the state, or nearly so.

use std::collections::BTreeMap;

use leaseward_state::access::{AccessToken, Role};
use leaseward_state::command::{Acquire, Assign, Condition, OpenMachine, PublishSet, ServerReport};
use leaseward_state::config::program::{ProgramReport, RejectedVersion};
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::machine::{Cordon, MachineProfile};
use leaseward_state::policy::{Pause, Policy};
use leaseward_state::server::{
    Cause, Certificate, Destination, Exit, FenceLevel, FenceProof, ServerSpec, ServerStatus, Wanted,
};
use leaseward_state::session::Incarnation;
use leaseward_state::{
    Command, FencingToken, LeaseName, MachineName, ServerName, SessionId, SetName, State, Term, TokenName, UnixMillis,
};

/// A seeded source of numbers (splitmix64): the same walk for the same seed, on every machine.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len() as u64) as usize].clone()) }
    }

    fn lease(&mut self) -> LeaseName {
        let name = ["a", "b", "c", "d/e", "server/s1"][self.below(5) as usize];
        LeaseName::new(name).expect("a name")
    }

    fn machine(&mut self) -> MachineName {
        MachineName::new(format!("m{}", self.below(4))).expect("a name")
    }

    fn server(&mut self) -> ServerName {
        ServerName::new(format!("s{}", self.below(4))).expect("a name")
    }

    fn set(&mut self) -> SetName {
        SetName::new(format!("set{}", self.below(3))).expect("a name")
    }

    fn session(&mut self, state: &State) -> SessionId {
        let open: Vec<_> = state.sessions().map(|(id, _)| *id).collect();
        if self.chance(90) { self.pick(&open).unwrap_or_default() } else { SessionId(self.below(50)) }
    }

    fn token(&mut self, state: &State, lease: &LeaseName) -> FencingToken {
        let known = state.leases().find(|(name, _)| *name == lease).map(|(_, lease)| match &lease.state {
            leaseward_state::lease::LeaseState::Held(grant) => grant.token,
            leaseward_state::lease::LeaseState::Delayed { token, .. } => *token,
        });
        if self.chance(90) { known.unwrap_or(FencingToken(1)) } else { FencingToken(self.below(100)) }
    }
}

/// Returns a random command for this state.
pub(crate) fn command(dice: &mut Dice, state: &State, present: Term) -> Command {
    // Now and then a verdict of a deposed leader.
    let term = if dice.chance(90) { present } else { Term(present.0 - 1) };
    let lease = dice.lease();
    match dice.below(28) {
        0 | 1 => Command::OpenSession { name: "c".into(), ttl_ms: 100 + dice.below(5_000) },
        2 | 3 => Command::OpenMachine(open_machine(dice)),
        4 => Command::EndSession { session: dice.session(state) },
        5 => {
            let count = dice.below(3) + 1;
            Command::CloseSessions { sessions: (0..count).map(|_| dice.session(state)).collect(), term }
        }
        6..=9 => Command::Acquire(acquire(dice, state)),
        10 => Command::Withdraw { lease, session: dice.session(state), holder: "h".into() },
        11 => Command::Release { token: dice.token(state, &lease), lease },
        12 => Command::Revoke { token: dice.chance(50).then(|| dice.token(state, &lease)), lease },
        13 => Command::EndDelay { token: dice.token(state, &lease), lease, term },
        14 if dice.chance(50) => {
            Command::Cordon { machine: dice.machine(), cordon: dice.chance(50).then(|| cordon(dice)) }
        }
        14 if dice.chance(70) => Command::RemoveMachine { machine: dice.machine() },
        14 => change_token(dice),
        15 => Command::PutServer {
            server: dice.server(),
            spec: Box::new(spec(dice)),
            if_version: dice.chance(30).then(|| dice.below(3)),
        },
        16 if dice.chance(30) => Command::RemoveServer { server: dice.server(), if_version: None },
        16 => {
            let wanted = if dice.chance(70) { Wanted::Running } else { Wanted::Stopped };
            Command::SetWanted { server: dice.server(), wanted }
        }
        17 => Command::Move { server: dice.server(), to: dice.machine(), rollback: dice.chance(50) },
        18 | 19 => Command::Assign(assign(dice, state, term)),
        20 if dice.chance(30) => Command::GiveUp { server: dice.server(), why: "tired".into(), term },
        20 => {
            let server = dice.server();
            let token = dice.token(state, &server.lease());
            Command::Settle { server, token, fence: dice.chance(70).then_some(FenceProof::Grace(100)), term }
        }
        21 => report(dice, state),
        22 => Command::Publish {
            sets: (0..=dice.below(2)).map(|_| publish(dice)).collect(),
            author: "a".into(),
            message: String::new(),
        },
        23 if dice.chance(20) => Command::RemoveSet { set: dice.set() },
        23 if dice.chance(40) => program(dice, state),
        23 => {
            Command::ReportSync { machine: dice.machine(), sets: vec![(dice.set(), dice.below(4), SyncState::Applied)] }
        }
        24 => care(dice, state, term),
        25 => {
            let server = dice.server();
            let token = dice.token(state, &server.lease());
            let to = Destination { machine: dice.machine(), cause: Cause::Drained, back_to: None };
            Command::Relocate { server, token, to, term }
        }
        _ => atomic(dice, state),
    }
}

fn program(dice: &mut Dice, state: &State) -> Command {
    let why = || "w".to_owned();
    let rejected = dice.chance(30).then(|| RejectedVersion { version: dice.below(4), why: why() });
    let report = ProgramReport { set: dice.set(), file: "f".into(), applied: dice.below(3), rejected };
    Command::ReportProgram { session: dice.session(state), step: dice.below(20), report }
}

fn change_token(dice: &mut Dice) -> Command {
    let role = [Role::Admin, Role::Viewer, Role::Publisher("set*".into())][dice.below(3) as usize].clone();
    let token = AccessToken {
        hash: Digest([1; 32]),
        roles: vec![role],
        until: dice.chance(20).then_some(UnixMillis(5)),
        by: "op".into(),
        made: UnixMillis(0),
    };
    let name = TokenName::new(format!("t{}", dice.below(3))).expect("a name");
    Command::ChangeToken { name, token: dice.chance(60).then(|| Box::new(token)), by: "op".into() }
}

/// What operators and the master do around servers.
fn care(dice: &mut Dice, state: &State, term: Term) -> Command {
    let pause = |dice: &mut Dice| Pause { why: "work".into(), until: dice.chance(50).then(|| state.now()) };
    match dice.below(7) {
        0 => Command::Restart { server: dice.server() },
        1 => Command::Pause { server: dice.server(), pause: dice.chance(60).then(|| pause(dice)) },
        2 => Command::ConfirmDead { machine: dice.machine(), by: "op".into() },
        3 => {
            let maintenance = dice.chance(50).then(|| pause(dice));
            let config_bytes_max = if dice.chance(30) { 1 + dice.below(10) } else { 0 };
            let policy = Box::new(Policy { maintenance, config_bytes_max, ..Policy::default() });
            Command::PutPolicy { policy, if_version: dice.chance(30).then(|| dice.below(3)) }
        }
        4 => Command::NoteVoters { voters: vec!["n1".into()], why: "one is lost".into(), term },
        5 => Command::Quarantine { machine: dice.machine(), cordon: cordon(dice), term },
        _ => Command::EndPauses { term },
    }
}

fn cordon(dice: &mut Dice) -> Cordon {
    let until = dice.chance(30).then(|| UnixMillis(dice.below(1_000)));
    Cordon { why: String::new(), drains: dice.chance(50), quarantine: false, until }
}

fn open_machine(dice: &mut Dice) -> OpenMachine {
    OpenMachine {
        machine: dice.machine(),
        incarnation: Incarnation { boot_id: format!("b{}", dice.below(2)), instance: u128::from(dice.below(3)) },
        profile: MachineProfile { fence: FenceLevel::F2, ..MachineProfile::default() },
        swept: dice.chance(50),
        ttl_ms: if dice.chance(90) { 3_000 } else { 5 },
    }
}

fn acquire(dice: &mut Dice, state: &State) -> Acquire {
    Acquire {
        lease: dice.lease(),
        session: dice.session(state),
        holder: if dice.chance(50) { "h".into() } else { String::new() },
        wait: dice.chance(70),
        priority: dice.below(3) as i32 - 1,
        lock_delay_ms: if dice.chance(30) { 1_000 } else { 0 },
        meta: BTreeMap::new(),
    }
}

fn spec(dice: &mut Dice) -> ServerSpec {
    ServerSpec {
        candidates: if dice.chance(50) { Vec::new() } else { vec![dice.machine(), dice.machine()] },
        start_timeout_ms: 1,
        stop_grace_ms: 1,
        priority: dice.below(3) as i32,
        ..ServerSpec::new(["serve"])
    }
}

fn assign(dice: &mut Dice, state: &State, term: Term) -> Assign {
    let (server, machine) = (dice.server(), dice.machine());
    let session = state.machine(&machine).and_then(|machine| machine.session);
    let after = state.server(&server).and_then(|server| server.last_token);
    Assign {
        session: if dice.chance(95) { session.unwrap_or_default() } else { dice.session(state) },
        after: if dice.chance(95) { after } else { None },
        fence: dice.chance(60).then_some(FenceProof::Grace(100)),
        cause: Cause::MachineLost,
        server,
        machine,
        term,
    }
}

fn report(dice: &mut Dice, state: &State) -> Command {
    let server = dice.server();
    let token = dice.token(state, &server.lease());
    let restarts = dice.below(4) as u32;
    let why = || "w".to_owned();
    let report = match dice.below(6) {
        5 => ServerReport::Absent,
        0 => ServerReport::Status { status: ServerStatus::Running { pid: 1 }, restarts },
        1 => ServerReport::Status { status: ServerStatus::Stopping, restarts },
        2 => ServerReport::Crashed { restarts, why: why() },
        3 => ServerReport::NotStarted { why: why() },
        _ => {
            let token = if dice.chance(90) { token } else { FencingToken(3) };
            let certificate = Certificate { token, boot_id: "b0".into(), proven_at_boottime_ns: 1, exit: Exit::Unseen };
            ServerReport::Dead { certificate, failure: dice.chance(50).then(why) }
        }
    };
    Command::ReportServer { server, token, report }
}

fn publish(dice: &mut Dice) -> PublishSet {
    let parent = dice.chance(30).then(|| dice.below(4));
    PublishSet { set: dice.set(), parent, manifest: Digest([1; 32]), files: 1, bytes: 1, delta: None }
}

fn atomic(dice: &mut Dice, state: &State) -> Command {
    let lease = dice.lease();
    let condition = match dice.below(3) {
        0 => Condition::Fence { token: dice.token(state, &lease), lease },
        1 => Condition::LeaseFree(lease),
        _ => Condition::Set(dice.set(), dice.below(3)),
    };
    let part = |dice: &mut Dice| match dice.below(6) {
        0 | 1 => Command::Acquire(acquire(dice, state)),
        2 => {
            let lease = dice.lease();
            Command::Release { token: dice.token(state, &lease), lease }
        }
        3 => Command::PutServer { server: dice.server(), spec: Box::new(spec(dice)), if_version: None },
        4 => Command::Publish { sets: vec![publish(dice)], author: String::new(), message: String::new() },
        _ => Command::SetWanted { server: dice.server(), wanted: Wanted::Stopped },
    };
    let commands = (0..=dice.below(3)).map(|_| part(dice)).collect();
    Command::Atomic { conditions: if dice.chance(50) { vec![condition] } else { Vec::new() }, commands }
}
