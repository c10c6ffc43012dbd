//! What is played: faults as they come, and scripts that aim at the instants where a promise is given.

mod aimed;

use std::time::Duration;

use leaseward_raft::net::wire::{Ask, MemberChange};
use leaseward_state::apply::feature::FEATURE_LEVEL;

use crate::chaos::Chaos;
use crate::clocks::{MS, SECOND};
use crate::mutant::Mutant;
use crate::stage::{Cast, Errand, Stage};

/// A play.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// Who is there.
    cast: fn() -> Cast,
    /// What happens, from the moment on at which everything runs.
    play: fn(&mut Stage),
    /// Rules that it notices the lack of.
    pub notices: &'static [Mutant],
}

pub use aimed::ALL;

/// Returns a cast of everybody.
fn everybody() -> Cast {
    Cast {
        voters: 3,
        agents: 2,
        clients: 2,
        servers: 2,
        leases: 1,
        registers: 1,
        ttl: Duration::from_millis(1_500),
        holds: (Duration::from_millis(300), Duration::from_secs(6)),
        clings: false,
        old_release: false,
        effects_take: Duration::from_secs(2),
    }
}

/// Returns a cast of voters and two programs that want the same lease, and keep it for as long as they can.
fn rivals() -> Cast {
    Cast {
        agents: 0,
        servers: 0,
        registers: 0,
        ttl: Duration::from_secs(1),
        holds: (Duration::from_secs(60), Duration::from_secs(60)),
        effects_take: Duration::ZERO,
        ..everybody()
    }
}

/// Returns a cast of voters and two machines for one server.
fn machines() -> Cast {
    Cast { clients: 0, leases: 0, servers: 1, registers: 0, ttl: Duration::from_secs(1), ..everybody() }
}

/// Nothing happens: nobody loses anything.
fn calm(stage: &mut Stage) {
    stage.judge.keep_sessions(true);
    stage.run_for(10 * SECOND);
    stage.judge.keep_sessions(false);
}

/// Faults as they come, dense or sparse.
fn chaos(stage: &mut Stage) {
    let pace = stage.world.draw(150, 3_000) * MS;
    Chaos::new(pace).run(stage, 20 * SECOND);
}

/// As chaos, with clocks that nobody should have: virtual machines are paused, rates are five percent apart. Whatever
/// does not depend on clocks holds all the same.
fn broken_clocks(stage: &mut Stage) {
    let pace = stage.world.draw(150, 1_500) * MS;
    stage.judge.break_clocks(true);
    // Time stands still for whoever believes in the lease, until somebody else has it.
    stage.until("somebody has the lease", 20 * SECOND, |stage| stage.judge.holder().is_some());
    if let Some(before) = stage.judge.holder() {
        stage.world.machines[before].pause(stage.world.now, true);
        stage.happens(8 * SECOND, |stage| stage.judge.holder().is_some_and(|holder| holder != before));
        stage.world.machines[before].pause(stage.world.now, false);
    }
    Chaos::new(pace).with_broken_clocks().run(stage, 20 * SECOND);
}

/// A cluster of the release before gets the newer one, voter by voter, while faults come as they please.
fn upgrade(stage: &mut Stage) {
    let pace = stage.world.draw(300, 3_000) * MS;
    let mut chaos = Chaos::new(pace);
    let mut old: Vec<usize> = stage.voters().collect();
    while !old.is_empty() && stage.goes_on() {
        let time = stage.world.draw(200, 4_000) * MS;
        chaos.run(stage, time);
        // Too early: somebody cannot read it yet. Every other time all of them are there, and say what they can read.
        let all_there = stage.world.draw(0, 1) == 0;
        if all_there {
            stage.end_faults();
            stage.until("somebody leads", 20 * SECOND, |stage| stage.leader().is_some());
        }
        stage.errand(Errand::Ask(Ask::Members(MemberChange::FinishUpgrade)));
        if all_there {
            stage.run_for(2 * SECOND);
        }
        let next = stage.world.draw(0, old.len() as u64 - 1) as usize;
        stage.upgrade(old.swap_remove(next));
    }
    let time = stage.world.draw(200, 4_000) * MS;
    chaos.run(stage, time);
    stage.end_faults();
    let finished = |stage: &mut Stage| {
        if stage.world.now.is_multiple_of(SECOND) {
            stage.errand(Errand::Ask(Ask::Members(MemberChange::FinishUpgrade)));
        }
        stage.feature_level() == Some(FEATURE_LEVEL)
    };
    stage.until("the upgrade is finished", 60 * SECOND, finished);
}

impl Scenario {
    /// Returns the scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|scenario| scenario.name == name)
    }

    /// Plays it, and lets everything heal afterwards.
    #[must_use]
    pub fn play(&self, seed: u64, mutant: Option<Mutant>, print: bool) -> Stage {
        let mut stage = Stage::open(seed, (self.cast)(), mutant, print);
        if stage.goes_on() {
            (self.play)(&mut stage);
        }
        stage.heal();
        stage.run_for(10 * MS);
        stage
    }
}
