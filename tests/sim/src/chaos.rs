//! Faults as they come: drawn one after the other, each with its end.

use leaseward::{MachineName, ServerName};
use leaseward_raft::net::wire::{Ask, MemberChange};
use leaseward_state::Command;

use crate::clocks::{At, MS, SECOND};
use crate::stage::{Errand, Stage};

/// Wall clocks are set by so much at most: three hours.
const WALL_STEP_MAX: At = 3 * 3_600 * SECOND;

/// What ends a fault.
enum Undo {
    Cuts(Vec<(usize, usize)>),
    Flap(Vec<(usize, usize)>, At, bool),
    Delay(Vec<(usize, usize)>),
    Hold(usize),
    Sleep(usize),
    Promote(u64),
    Full(usize),
    Pause(usize),
    Narrow(Vec<(usize, usize)>),
}

/// Draws faults for as long as it is asked.
pub struct Chaos {
    /// The longest time from one fault to the next.
    pace: At,
    /// Clocks may do what is assumed that they do not.
    breaks_clocks: bool,
    /// What is to be undone, and when.
    undo: Vec<(At, Undo)>,
}

impl Chaos {
    /// Returns faults that come at this pace: the longest time from one to the next.
    #[must_use]
    pub fn new(pace: At) -> Self {
        Self { pace, breaks_clocks: false, undo: Vec::new() }
    }

    /// Returns the same with virtual machines that are paused, and clocks whose rates are far beyond what is assumed.
    #[must_use]
    pub fn with_broken_clocks(self) -> Self {
        Self { breaks_clocks: true, ..self }
    }

    /// Does as it pleases with a cluster for so long.
    pub fn run(&mut self, stage: &mut Stage, time: At) {
        for id in 0..stage.world.machines.len() {
            self.rates(stage, id);
        }
        let until = stage.world.now + time;
        let mut next = stage.world.now;
        let mut led = stage.leader();
        while stage.world.now < until && stage.goes_on() {
            stage.step();
            self.undo_what_is_over(stage);
            let leads = stage.leader();
            if led.is_some() && leads != led && stage.world.draw(0, 3) == 0 {
                // A promise is about to be given: the power fails around it.
                let voter = self.voter(stage);
                let operations = stage.world.draw(0, 6);
                stage.world.machines[voter].host.disk().fail_after(operations);
            }
            led = leads;
            if stage.world.now >= next {
                next = stage.world.now + stage.world.draw(50, self.pace / MS) * MS;
                self.fault(stage);
            }
        }
    }

    fn voter(&self, stage: &mut Stage) -> usize {
        let voters = stage.cast.voters as u64;
        match stage.leader() {
            Some(leader) if stage.world.draw(0, 2) == 0 => leader,
            _ => stage.world.draw(0, voters - 1) as usize,
        }
    }

    fn anybody(&self, stage: &mut Stage) -> usize {
        let last = stage.ops() as u64 - 1;
        if stage.world.draw(0, 1) == 0 { self.voter(stage) } else { stage.world.draw(0, last) as usize }
    }

    fn rates(&self, stage: &mut Stage, id: usize) {
        // Within a tenth of a percent, as is assumed; or by up to five percent.
        let most = if self.breaks_clocks { 50_000 } else { 900 };
        let (raw, others) = (stage.world.draw(0, 2 * most) as i64, stage.world.draw(0, 2 * most) as i64);
        let (raw, others) = (raw - most as i64, others - most as i64);
        stage.world.machines[id].host.change_clocks(|clocks, now| clocks.set_rates(now, raw, others));
    }

    fn end(&mut self, stage: &mut Stage, low: u64, high: u64, undo: Undo) {
        let at = stage.world.now + stage.world.draw(low, high) * MS;
        self.undo.push((at, undo));
    }

    fn fault(&mut self, stage: &mut Stage) {
        match stage.world.draw(0, if self.breaks_clocks { 40 } else { 30 }) {
            0..=2 => self.partition(stage),
            3 | 4 => self.one_way(stage),
            5 => self.flap(stage),
            6 | 7 => {
                // A leader that is cut off from the others, and not from its clients.
                let voter = self.voter(stage);
                let pairs = both_ways(voter, stage.voters());
                self.cut(stage, pairs, 100, 5_000);
            }
            8 | 9 => self.slow(stage),
            10 => {
                let (one, other) = (self.anybody(stage), self.voter(stage));
                let now = stage.world.now;
                stage.world.say(&format!("streams between {one} and {other} are reset"));
                stage.world.net.reset(one, other, now);
            }
            11..=13 => {
                let (id, power) = (self.voter(stage), stage.world.draw(0, 1) == 0);
                self.crash(stage, id, power);
            }
            14 => {
                let voter = self.voter(stage);
                let operations = stage.world.draw(0, 40);
                stage.world.machines[voter].host.disk().fail_after(operations);
            }
            15 | 16 => {
                let voter = self.voter(stage);
                let until = stage.world.now + stage.world.draw(50, 4_000) * MS;
                stage.world.say(&format!("the disk of n{voter} stalls until {}", until / MS));
                stage.world.machines[voter].host.stall_disk(until);
            }
            17 => {
                let voter = self.voter(stage);
                stage.world.say(&format!("the disk of n{voter} fails to sync"));
                stage.world.machines[voter].host.disk().break_syncs(Some(5));
            }
            18 | 19 => {
                let id = self.anybody(stage);
                stage.world.say(&format!("{id} stands still"));
                stage.world.machines[id].hold(true);
                self.end(stage, 20, 4_000, Undo::Hold(id));
            }
            20 => {
                let id = self.anybody(stage);
                let now = stage.world.now;
                stage.world.say(&format!("{id} sleeps"));
                stage.world.machines[id].sleep(now, true);
                self.end(stage, 100, 5_000, Undo::Sleep(id));
            }
            21 | 22 => {
                let (low, high) = (stage.agents().start as u64, stage.ops() as u64 - 1);
                let (id, power) = (stage.world.draw(low, high) as usize, stage.world.draw(0, 1) == 0);
                self.crash(stage, id, power);
            }
            23 => {
                let id = self.anybody(stage);
                self.rates(stage, id);
                let by = stage.world.draw(0, 2 * WALL_STEP_MAX) as i64 - WALL_STEP_MAX as i64;
                stage.world.machines[id].host.change_clocks(|clocks, now| clocks.step_wall(now, by));
            }
            24 => stage.errand(Errand::Ask(Ask::Members(MemberChange::Transfer(None)))),
            25 => self.members(stage),
            26 => {
                let voter = self.voter(stage);
                stage.world.say(&format!("the disk of n{voter} is full"));
                stage.world.machines[voter].host.disk().leave_room(Some(0));
                self.end(stage, 500, 5_000, Undo::Full(voter));
            }
            27 => self.narrow(stage),
            28..=30 => self.operate(stage),
            31..=36 => {
                let id = self.anybody(stage);
                let now = stage.world.now;
                stage.world.say(&format!("the virtual machine of {id} is paused"));
                stage.world.machines[id].pause(now, true);
                self.end(stage, 100, 6_000, Undo::Pause(id));
            }
            _ => {
                let id = self.anybody(stage);
                self.rates(stage, id);
            }
        }
    }

    fn crash(&mut self, stage: &mut Stage, id: usize, power: bool) {
        stage.crash(id, power);
        let after = stage.world.draw(0, 3_000) * MS;
        stage.boot_after(id, after);
    }

    fn cut(&mut self, stage: &mut Stage, pairs: Vec<(usize, usize)>, low: u64, high: u64) {
        stage.world.say(&format!("cut: {pairs:?}"));
        for (from, to) in &pairs {
            stage.cut(*from, *to, true);
        }
        self.end(stage, low, high, Undo::Cuts(pairs));
    }

    fn partition(&mut self, stage: &mut Stage) {
        let count = stage.ops();
        let sides: Vec<bool> = (0..count).map(|_| stage.world.draw(0, 1) == 0).collect();
        let pairs = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| sides[*from] != sides[*to]).collect();
        self.cut(stage, pairs, 100, 6_000);
    }

    fn one_way(&mut self, stage: &mut Stage) {
        let id = self.anybody(stage);
        let outwards = stage.world.draw(0, 1) == 0;
        let others: Vec<usize> = stage.voters().filter(|other| *other != id).collect();
        let some = others.into_iter().filter(|_| stage.world.draw(0, 3) > 0).collect::<Vec<_>>();
        let pairs = some.into_iter().map(|other| if outwards { (id, other) } else { (other, id) }).collect();
        self.cut(stage, pairs, 100, 5_000);
    }

    fn flap(&mut self, stage: &mut Stage) {
        let (one, other) = (self.voter(stage), self.anybody(stage));
        if one != other {
            stage.world.say(&format!("the link between {one} and {other} flaps"));
            let until = stage.world.now + stage.world.draw(500, 5_000) * MS;
            self.undo.push((stage.world.now, Undo::Flap(vec![(one, other), (other, one)], until, true)));
        }
    }

    fn slow(&mut self, stage: &mut Stage) {
        let id = self.anybody(stage);
        let pairs = both_ways(id, 0..stage.ops());
        let most = stage.world.draw(20, 500) * MS;
        stage.world.say(&format!("{id} is slow: up to {} ms", most / MS));
        for (from, to) in &pairs {
            stage.world.net.link(*from, *to, |link| link.delay = (MS, most));
        }
        self.end(stage, 200, 4_000, Undo::Delay(pairs));
    }

    fn narrow(&mut self, stage: &mut Stage) {
        let id = self.anybody(stage);
        let pairs = both_ways(id, 0..stage.ops());
        let each_ms = stage.world.draw(10, 2_000);
        stage.world.say(&format!("links of {id} carry {each_ms} bytes in a millisecond"));
        for (from, to) in &pairs {
            stage.world.net.link(*from, *to, |link| link.carries = Some(each_ms));
        }
        self.end(stage, 500, 6_000, Undo::Narrow(pairs));
    }

    fn members(&mut self, stage: &mut Stage) {
        let voter = self.voter(stage);
        if let Some(node) = stage.replica(voter).map(|replica| replica.node()) {
            stage.world.say(&format!("n{voter} is to vote no more"));
            stage.errand(Errand::Ask(Ask::Members(MemberChange::Demote(node))));
            self.end(stage, 1_000, 4_000, Undo::Promote(node));
        }
    }

    fn operate(&mut self, stage: &mut Stage) {
        if stage.cast.servers == 0 || stage.cast.agents == 0 {
            return;
        }
        let (servers, machines) = (stage.cast.servers as u64 - 1, stage.cast.agents as u64 - 1);
        let server = ServerName::new(format!("s{}", stage.world.draw(0, servers)));
        let to = MachineName::new(format!("m{}", stage.world.draw(0, machines)));
        if let (Ok(server), Ok(to)) = (server, to) {
            let restarts = stage.world.draw(0, 1) == 0;
            let command =
                if restarts { Command::Restart { server } } else { Command::Move { server, to, rollback: false } };
            stage.errand(Errand::Write(command));
        }
    }

    fn undo_what_is_over(&mut self, stage: &mut Stage) {
        let now = stage.world.now;
        let over: Vec<_> = self.undo.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, undo) in over {
            match undo {
                Undo::Cuts(pairs) => {
                    for (from, to) in pairs {
                        stage.cut(from, to, false);
                    }
                }
                Undo::Flap(pairs, until, cut) => {
                    let goes_on = now < until;
                    for (from, to) in &pairs {
                        stage.cut(*from, *to, cut && goes_on);
                    }
                    if goes_on {
                        let next = now + stage.world.draw(5, 300) * MS;
                        self.undo.push((next, Undo::Flap(pairs, until, !cut)));
                    }
                }
                Undo::Delay(pairs) => {
                    for (from, to) in pairs {
                        stage.world.net.link(from, to, |link| link.delay = (MS, 2 * MS));
                    }
                }
                Undo::Narrow(pairs) => {
                    for (from, to) in pairs {
                        stage.world.net.link(from, to, |link| link.carries = None);
                    }
                }
                Undo::Pause(id) => stage.world.machines[id].pause(now, false),
                Undo::Hold(id) => stage.world.machines[id].hold(false),
                Undo::Sleep(id) => stage.world.machines[id].sleep(now, false),
                Undo::Full(id) => stage.world.machines[id].host.disk().leave_room(None),
                Undo::Promote(node) => stage.errand(Errand::Ask(Ask::Members(MemberChange::Promote(node)))),
            }
        }
    }
}

fn both_ways(id: usize, others: std::ops::Range<usize>) -> Vec<(usize, usize)> {
    others.filter(|other| *other != id).flat_map(|other| [(id, other), (other, id)]).collect()
}
