//! A cluster on a stage: who is there, what is done to them, and the judge who looks on after each step.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::{LeaseName, MachineName, ServerName, SetName};
use leaseward_raft::Replica;
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::{Answer, Ask, Outcome};
use leaseward_raft::simulation::SimDisk;
use leaseward_raft::store::MemoryStore;
use leaseward_state::Command;
use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::propose::Propose;
use leaseward_state::server::{ServerSpec, Wanted};
use rand::Rng;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::clocks::{At, MS, SECOND};
use crate::host::Program;
use crate::judge::Judge;
use crate::mutant::Mutant;
use crate::world::{World, address};
use crate::{agent, client, voter};

/// How often an operator looks whether the servers run, once all faults have ended: a minute, all in all.
const OPERATOR_LOOKS: usize = 12;

/// Who is there.
#[derive(Debug, Clone)]
pub struct Cast {
    /// Voters.
    pub voters: usize,
    /// Machines with an agent.
    pub agents: usize,
    /// Hosts with client programs.
    pub clients: usize,
    /// Servers that agents run.
    pub servers: usize,
    /// Leases that clients take.
    pub leases: usize,
    /// Registers that clients use.
    pub registers: usize,
    /// The time to live of every session.
    pub ttl: Duration,
    /// Clients hold a lease for a time between these.
    pub holds: (Duration, Duration),
    /// They give one up only once its session is over.
    pub clings: bool,
    /// The voters begin with a release that reads one feature level less.
    pub old_release: bool,
    /// Effects under a lease are on their way for so long at most; zero: nobody sends any.
    pub effects_take: Duration,
}

/// Programs take their leases by a command that came with this feature level.
const TAKEN_FROM: u32 = 1;

/// What an operator asks for.
#[derive(Debug, Clone)]
pub enum Errand {
    /// A command.
    Write(Command),
    /// Anything else.
    Ask(Ask),
    /// A command, asked of one voter, once. What it answers is counted.
    WriteAt(usize, Command),
}

/// A cluster, and what is known of it.
pub struct Stage {
    /// The hosts.
    pub world: World,
    /// Who looks on.
    pub judge: Judge,
    /// Who is there.
    pub cast: Cast,
    replicas: voter::Replicas,
    levels: voter::Levels,
    mutant: Option<Mutant>,
    errands: Arc<Mutex<VecDeque<Errand>>>,
    /// Hosts that start again then.
    reboots: BTreeMap<usize, At>,
    /// Voters whose disk went back in time.
    pub rolled_back: Vec<usize>,
    dir: TempDir,
}

fn operator(voters: Vec<String>, errands: Arc<Mutex<VecDeque<Errand>>>, judge: Judge) -> Program {
    Arc::new(move |_| {
        let client = Client::new(voters.clone(), Transport::PlainAnywhere);
        let (errands, judge) = (Arc::clone(&errands), judge.clone());
        Box::pin(async move {
            loop {
                let next = errands.lock().expect("no holder of this lock panics").pop_front();
                match next {
                    Some(Errand::Write(command)) => drop(client.write(command).await),
                    Some(Errand::WriteAt(voter, command)) => {
                        drop(tokio::spawn(write_at(voter, command, judge.clone())));
                    }
                    Some(Errand::Ask(ask)) => drop(client.ask(&ask, Duration::from_secs(5)).await),
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        })
    })
}

/// Asks one voter for a write, and waits for as long as anybody would.
async fn write_at(voter: usize, command: Command, judge: Judge) {
    let client = Client::new(vec![address(voter).to_string()], Transport::PlainAnywhere);
    // The first attempt gets a quarter of it: longer than a voter takes for any answer.
    let answer = client.ask(&Ask::Propose(command.into()), Duration::from_secs(32)).await;
    if let Ok(Answer::Proposed(outcome)) = answer {
        judge.count("answers of one voter");
        if matches!(outcome, Outcome::Committed { .. }) {
            judge.count("writes through one voter");
        }
    }
}

impl Stage {
    /// Opens a stage on which the voters agree and everybody else begins.
    #[must_use]
    pub fn open(seed: u64, cast: Cast, mutant: Option<Mutant>, print: bool) -> Self {
        Mutant::begin(mutant);
        // Real files that are written in one go: where a sync costs nothing.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = TempDir::with_prefix_in("leaseward-sim-", base).expect("a directory");
        let named = |what: &str, count: usize| (0..count).map(|i| format!("{what}{i}")).collect::<Vec<_>>();
        let mut names = named("n", cast.voters);
        names.extend(named("m", cast.agents));
        names.extend(named("c", cast.clients));
        names.push("ops".into());
        let world = World::new(seed, &names, dir.path());
        if print {
            world.trace.print();
        }
        let judge = Judge::new(world.trace.clone());
        if mutant == Some(Mutant::Receiver) {
            judge.blind_receiver();
        }
        if mutant == Some(Mutant::Clocks) {
            judge.excuse_nothing();
        }
        let (replicas, errands) = Default::default();
        let level = if cast.old_release { TAKEN_FROM - 1 } else { FEATURE_LEVEL };
        let levels = Arc::new(Mutex::new((0..cast.voters).map(|id| (id, level)).collect()));
        let (reboots, rolled_back) = Default::default();
        let mut stage = Self { world, judge, cast, replicas, levels, mutant, errands, reboots, rolled_back, dir };
        stage.begin();
        stage
    }

    fn begin(&mut self) {
        for id in self.voters() {
            let first = (id > 0).then(|| address(0));
            self.install_voter(id, first, false);
            self.boot(id);
        }
        let count = self.cast.voters;
        let all_vote = |stage: &mut Self| {
            let replica = stage.replica(0);
            replica.is_some_and(|replica| replica.status().membership.voters.last().is_some_and(|of| of.len() == count))
        };
        self.until("all vote", 60 * SECOND, all_vote);
        let voters: Vec<String> = self.voters().map(|id| address(id).to_string()).collect();
        let ops = self.ops();
        self.world.install(ops, operator(voters.clone(), Arc::clone(&self.errands), self.judge.clone()));
        self.world.boot(ops);
        for i in 0..self.cast.servers {
            let Ok(server) = ServerName::new(format!("s{i}")) else { continue };
            let spec = Box::new(ServerSpec::new(["true"]));
            self.errand(Errand::Write(Command::PutServer { server, spec, if_version: None }));
        }
        for id in self.agents() {
            let habits = agent::Habits { voters: voters.clone(), ttl: self.cast.ttl, mutant: self.mutant };
            self.world.install(id, agent::program(habits, self.judge.clone()));
            self.world.boot(id);
        }
        let habits = client::Habits {
            voters,
            leases: (0..self.cast.leases).filter_map(|i| LeaseName::new(format!("l{i}")).ok()).collect(),
            ttl: self.cast.ttl,
            holds: self.cast.holds,
            effects_take: self.cast.effects_take,
            clings: self.cast.clings,
            registers: (0..self.cast.registers).filter_map(|i| SetName::new(format!("r{i}")).ok()).collect(),
        };
        for id in self.clients() {
            self.world.install(id, client::program(habits.clone(), self.judge.clone()));
            self.world.boot(id);
        }
        let servers = self.cast.servers;
        self.until("servers run", 60 * SECOND, |stage| stage.judge.executing() == servers);
    }

    fn install_voter(&mut self, id: usize, first: Option<SocketAddr>, replace: bool) {
        let (replicas, levels) = (Arc::clone(&self.replicas), Arc::clone(&self.levels));
        self.world.install(id, voter::program(first, replace, replicas, levels, self.mutant));
    }

    /// Puts the newer release in the place of the older one.
    pub fn upgrade(&mut self, id: usize) {
        let power = self.world.draw(0, 1) == 0;
        self.crash(id, power);
        self.levels.lock().expect("no holder of this lock panics").insert(id, FEATURE_LEVEL);
        self.world.say(&format!("n{id} gets the newer release"));
        let after = self.world.draw(0, 1_000) * MS;
        self.boot_after(id, after);
    }

    /// Returns the feature level of the cluster, as its leader knows it.
    #[must_use]
    pub fn feature_level(&self) -> Option<u32> {
        let published = self.replica(self.leader()?)?.published();
        let level = published.borrow().state.feature_level();
        Some(level)
    }

    /// Looks whether anybody has what its release cannot read.
    fn look_at_releases(&self) {
        let levels = self.levels.lock().expect("no holder of this lock panics");
        let replicas = self.replicas.lock().expect("no holder of this lock panics");
        for (id, replica) in &*replicas {
            let level = levels.get(id).copied().unwrap_or(FEATURE_LEVEL);
            let state = Arc::clone(&replica.published().borrow().state);
            let newer = (0..self.cast.leases).filter_map(|i| LeaseName::new(format!("l{i}")).ok());
            let met = newer.filter(|name| state.lease(name).is_some()).count() > 0;
            if state.feature_level() > level || (met && level < TAKEN_FROM) {
                let what = format!("n{id} reads feature level {level}, and has met {}", state.feature_level());
                self.judge.violated(self.world.now, &what);
            }
        }
    }

    /// Returns the voters' hosts.
    pub fn voters(&self) -> std::ops::Range<usize> {
        0..self.cast.voters
    }

    /// Returns the agents' hosts.
    pub fn agents(&self) -> std::ops::Range<usize> {
        let first = self.cast.voters;
        first..first + self.cast.agents
    }

    /// Returns the clients' hosts.
    pub fn clients(&self) -> std::ops::Range<usize> {
        let first = self.cast.voters + self.cast.agents;
        first..first + self.cast.clients
    }

    /// Returns the operator's host.
    #[must_use]
    pub fn ops(&self) -> usize {
        self.cast.voters + self.cast.agents + self.cast.clients
    }

    /// Returns the replica that runs on a host.
    #[must_use]
    pub fn replica(&self, id: usize) -> Option<Replica> {
        self.replicas.lock().expect("no holder of this lock panics").get(&id).cloned()
    }

    /// Returns the host that leads in the newest term, as far as it knows.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let replicas = self.replicas.lock().expect("no holder of this lock panics");
        replicas.iter().filter_map(|(id, replica)| Some((replica.leading()?, *id))).max().map(|(_, id)| id)
    }

    /// Returns the machine that has the first server, by the leader's state.
    #[must_use]
    pub fn placed_on(&self) -> Option<String> {
        let replica = self.replica(self.leader()?)?;
        let published = replica.published();
        let state = Arc::clone(&published.borrow().state);
        let (_, server) = state.servers().next()?;
        Some(server.assignment()?.machine.to_string())
    }

    /// Has the operator move the first server.
    pub fn moves_server(&mut self, to: &str) {
        if let (Ok(server), Ok(to)) = (ServerName::new("s0"), MachineName::new(to)) {
            self.errand(Errand::Write(Command::Move { server, to, rollback: false }));
        }
    }

    /// Has the operator do something, after what he was asked before.
    pub fn errand(&mut self, errand: Errand) {
        self.errands.lock().expect("no holder of this lock panics").push_back(errand);
    }

    /// Returns whether it goes on: nothing was violated yet.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.judge.violation().is_none()
    }

    /// Makes one step, and has the judge look.
    pub fn step(&mut self) {
        self.world.step();
        let now = self.world.now;
        for id in 0..self.world.machines.len() {
            if let Some(why) = self.world.machines[id].host.take_death() {
                let host = Arc::clone(&self.world.machines[id].host);
                let power = host.disk().is_dead();
                self.crash(id, power);
                if why.starts_with("LW0604") || why.starts_with("LW0607") {
                    self.judge.violated(now, &format!("{} cannot start: {why}", host.name()));
                }
                let after = self.world.draw(100, 2_000) * MS;
                self.reboots.insert(id, now + after);
            }
        }
        let due: Vec<usize> = self.reboots.extract_if(.., |_, at| *at <= now).map(|(id, _)| id).collect();
        for id in due {
            self.boot(id);
        }
        self.look();
    }

    fn look(&mut self) {
        let now = self.world.now;
        self.judge.let_writes_arrive(now);
        self.judge.look_at_believers(now);
        self.judge.look_at_executions(now);
        let replicas: Vec<(usize, Replica)> = {
            let replicas = self.replicas.lock().expect("no holder of this lock panics");
            replicas.iter().map(|(id, replica)| (*id, replica.clone())).collect()
        };
        for (id, replica) in &replicas {
            if let Some(term) = replica.leading() {
                self.judge.reigns(now, term, *id);
            }
        }
        if now.is_multiple_of(100 * MS) {
            if let Some(replica) = self.leader().and_then(|id| self.replica(id)) {
                let state = Arc::clone(&replica.published().borrow().state);
                self.judge.look_at_contents(now, &state);
            }
            if self.cast.old_release {
                self.look_at_releases();
            }
            for (id, replica) in replicas {
                if let Some(why) = replica.status().quarantined
                    && !self.rolled_back.contains(&id)
                {
                    self.judge.violated(now, &format!("n{id} is kept out although its disk is its own: {why}"));
                }
            }
        }
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: At) {
        let until = self.world.now + time;
        while self.world.now < until && self.goes_on() {
            self.step();
        }
    }

    /// Lets time pass until something holds. If that takes too long it is a violation.
    pub fn until(&mut self, what: &str, within: At, holds: impl FnMut(&mut Self) -> bool) {
        if !self.happens(within, holds) && self.goes_on() {
            self.judge.violated(self.world.now, &format!("not within {} s: {what}", within / SECOND));
        }
    }

    /// Lets time pass until something holds. Returns false if that takes too long.
    pub fn happens(&mut self, within: At, mut holds: impl FnMut(&mut Self) -> bool) -> bool {
        let until = self.world.now + within;
        while self.goes_on() {
            if self.world.now.is_multiple_of(5 * MS) && holds(self) {
                return true;
            }
            if self.world.now >= until {
                return false;
            }
            self.step();
        }
        false
    }

    /// Ends a host's process at once, or takes its power.
    pub fn crash(&mut self, id: usize, power: bool) {
        self.replicas.lock().expect("no holder of this lock panics").remove(&id);
        self.judge.gone(id);
        let seed = power.then(|| self.world.random.r#gen());
        self.world.machines[id].crash(self.world.now, seed);
        self.reboots.remove(&id);
    }

    /// Starts a host that is down.
    pub fn boot(&mut self, id: usize) {
        self.reboots.remove(&id);
        let disk = self.world.machines[id].host.disk();
        disk.break_syncs(None);
        if self.mutant == Some(Mutant::Sync) {
            disk.lie_about_syncs();
        }
        self.world.boot(id);
    }

    /// Starts a host again after a while.
    pub fn boot_after(&mut self, id: usize, after: At) {
        self.reboots.insert(id, self.world.now + after);
    }

    /// Cuts a direction between two hosts, or mends it.
    pub fn cut(&self, from: usize, to: usize, cut: bool) {
        self.world.net.link(from, to, |link| link.cut = cut);
    }

    /// Cuts one host from others in both directions, or mends it.
    pub fn isolate(&self, id: usize, others: impl IntoIterator<Item = usize>, cut: bool) {
        for other in others.into_iter().filter(|other| *other != id) {
            self.cut(id, other, cut);
            self.cut(other, id, cut);
        }
    }

    /// Returns a copy of everything that a voter has on its disk.
    #[must_use]
    pub fn back_up(&self, id: usize) -> (SimDisk, MemoryStore, TempDir) {
        let host = &self.world.machines[id].host;
        let copy = TempDir::new_in(self.dir.path()).expect("a directory");
        copy_dir(host.data(), copy.path());
        (host.disk().copy(), host.store().copy(), copy)
    }

    /// Puts the backup of a voter's disk in its place, while it is down.
    pub fn roll_back(&mut self, id: usize, (disk, store, files): (SimDisk, MemoryStore, TempDir)) {
        let host = Arc::clone(&self.world.machines[id].host);
        std::fs::remove_dir_all(host.data()).ok();
        copy_dir(files.path(), host.data());
        host.put_disk(disk, store);
        self.rolled_back.push(id);
        self.world.say(&format!("the disk of {} is one of before", host.name()));
    }

    /// Has a voter begin anew with an empty disk, in the place of what it was.
    pub fn replace(&mut self, id: usize, by: usize) {
        self.crash(id, true);
        let host = Arc::clone(&self.world.machines[id].host);
        std::fs::remove_dir_all(host.data()).ok();
        host.put_disk(SimDisk::default(), MemoryStore::default());
        self.rolled_back.retain(|other| *other != id);
        self.install_voter(id, Some(address(by)), true);
        self.world.say(&format!("{} begins anew", host.name()));
        self.boot(id);
    }

    /// Ends every fault.
    pub fn end_faults(&mut self) {
        self.world.say("every fault ends");
        let count = self.world.machines.len();
        for from in 0..count {
            for to in 0..count {
                self.world.net.link(from, to, |link| {
                    link.cut = false;
                    link.delay = (MS, 2 * MS);
                    link.carries = None;
                });
            }
        }
        let now = self.world.now;
        for id in 0..count {
            let machine = &mut self.world.machines[id];
            machine.hold(false);
            machine.sleep(now, false);
            machine.pause(now, false);
            machine.host.stall_disk(0);
            machine.host.disk().break_syncs(None);
            machine.host.disk().leave_room(None);
            machine.host.disk().keep_power();
            if !machine.is_up() {
                self.boot(id);
            }
        }
    }

    /// Ends every fault and looks whether all heals: there is a leader, everything that was acknowledged is there,
    /// everybody agrees, leases can be had, servers run.
    pub fn heal(&mut self) {
        if !self.goes_on() {
            return;
        }
        self.end_faults();
        self.trust_clocks_again();
        if let Some(by) = self.voters().find(|id| !self.rolled_back.contains(id)) {
            for id in self.rolled_back.clone() {
                self.replace(id, by);
            }
        }
        self.judge.hurry();
        let (leases, publishes) = (self.judge.counted("leases taken"), self.judge.counted("publishes"));
        let clients = if self.cast.leases == 0 { 0 } else { self.cast.clients as u64 };
        let writers = if self.cast.registers == 0 { 0 } else { self.cast.clients as u64 };
        let servers = self.cast.servers;
        self.until("a leader", 30 * SECOND, |stage| stage.leader().is_some());
        // An operator looks again: the master may judge what was lost only now.
        for _ in 0..OPERATOR_LOOKS {
            self.forgive();
            if self.happens(5 * SECOND, |stage| stage.judge.executing() == servers) {
                break;
            }
        }
        self.until("servers run", SECOND, |stage| stage.judge.executing() == servers);
        self.until("leases can be had", 60 * SECOND, |stage| stage.judge.counted("leases taken") >= leases + clients);
        self.until("registers can be written", 60 * SECOND, |stage| {
            stage.judge.counted("publishes") >= publishes + writers
        });
        self.judge.stop();
        self.until("all voters are there", 60 * SECOND, |stage| {
            stage.voters().all(|id| stage.replica(id).is_some_and(|replica| replica.reign().is_some()))
        });
        self.until("everybody agrees", 60 * SECOND, Self::agree);
        self.compare();
    }

    /// Has every clock run as it should, and judges again what depends on them once nobody believes what they said before.
    fn trust_clocks_again(&mut self) {
        if !self.judge.are_clocks_broken() {
            return;
        }
        for machine in &self.world.machines {
            machine.host.change_clocks(|clocks, now| clocks.set_rates(now, 0, 0));
        }
        self.run_for(self.cast.ttl.as_nanos() as At * 2);
        self.judge.break_clocks(false);
    }

    /// What the master holds against machines that were lost again and again, and servers that were lost with them, is
    /// for an operator to forget.
    fn forgive(&mut self) {
        for id in self.agents() {
            let Ok(machine) = MachineName::new(self.world.machines[id].host.name()) else { continue };
            self.errand(Errand::Write(Command::Cordon { machine, cordon: None }));
        }
        for i in 0..self.cast.servers {
            let Ok(server) = ServerName::new(format!("s{i}")) else { continue };
            self.errand(Errand::Write(Command::SetWanted { server, wanted: Wanted::Running }));
        }
    }

    fn agree(&mut self) -> bool {
        let revisions: Vec<_> =
            self.voters().filter_map(|id| Some(self.replica(id)?.published().borrow().state.revision())).collect();
        revisions.len() == self.cast.voters && revisions.iter().all(|revision| *revision == revisions[0])
    }

    fn compare(&mut self) {
        if !self.goes_on() {
            return;
        }
        let now = self.world.now;
        let states: Vec<_> = self
            .voters()
            .filter_map(|id| Some((id, Arc::clone(&self.replica(id)?.published().borrow().state))))
            .collect();
        let Some((_, first)) = states.first() else { return };
        for (id, state) in &states {
            if let Err(why) = state.check_invariants() {
                self.judge.violated(now, &format!("the state of n{id} contradicts itself: {why}"));
            }
            if !state.records().eq(first.records()) {
                self.judge.violated(now, &format!("n{id} has another state than n0 at {}", state.revision()));
            }
        }
        self.judge.look_at_registers(now, first);
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).ok();
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).ok();
        }
    }
}
