//! Scripts: each aims at one promise, and breaks when the rule behind it is switched off.

use std::time::Duration;

use leaseward_raft::net::wire::{Ask, MemberChange};
use leaseward_raft::rules::Rule;
use leaseward_state::Command;

use super::{Cast, Scenario, broken_clocks, calm, chaos, everybody, machines, rivals, upgrade};
use crate::clocks::{At, MS, SECOND};
use crate::mutant::Mutant;
use crate::stage::{Errand, Stage};

/// All scenarios.
pub const ALL: &[Scenario] = &[
    Scenario { name: "calm", cast: everybody, play: calm, notices: &[Mutant::Lease(Rule::R3)] },
    Scenario { name: "chaos", cast: everybody, play: chaos, notices: &[] },
    Scenario {
        name: "broken-clocks",
        cast: everybody,
        play: broken_clocks,
        notices: &[Mutant::Receiver, Mutant::Clocks],
    },
    Scenario { name: "upgrade", cast: older, play: upgrade, notices: &[Mutant::Lease(Rule::Upgrade)] },
    Scenario { name: "crowd", cast: crowd, play: chaos, notices: &[] },
    Scenario { name: "late-answers", cast: rivals, play: late_answers, notices: &[Mutant::Lease(Rule::R1)] },
    Scenario { name: "deposed", cast: rivals, play: deposed, notices: &[Mutant::Lease(Rule::R2)] },
    Scenario { name: "there-and-back", cast: rivals, play: there_and_back, notices: &[Mutant::Lease(Rule::R4)] },
    Scenario {
        name: "both-die",
        cast: rivals,
        play: both_die,
        notices: &[Mutant::Lease(Rule::R4Word), Mutant::Lease(Rule::R4Names)],
    },
    Scenario { name: "new-holder-cut", cast: rivals, play: new_holder_cut, notices: &[Mutant::Lease(Rule::R4Own)] },
    Scenario { name: "nobody-leads", cast: clinging, play: nobody_leads, notices: &[Mutant::Lease(Rule::R4Listen)] },
    Scenario { name: "slow-end", cast: rivals, play: slow_end, notices: &[Mutant::Lease(Rule::R5)] },
    Scenario { name: "deaf", cast: alone, play: deaf, notices: &[Mutant::Lease(Rule::R6)] },
    Scenario { name: "late-effects", cast: hasty, play: late_effects, notices: &[Mutant::Receiver] },
    Scenario { name: "agent-dies", cast: machines, play: agent_dies, notices: &[Mutant::Arm] },
    Scenario { name: "machine-cut", cast: busy_machines, play: machine_cut, notices: &[Mutant::Grace] },
    Scenario { name: "machine-late", cast: machines, play: machine_late, notices: &[Mutant::Sending] },
    Scenario { name: "late-orders", cast: machines, play: late_orders, notices: &[Mutant::Grant] },
    Scenario { name: "second-thoughts", cast: machines, play: second_thoughts, notices: &[Mutant::Retire] },
    Scenario { name: "stale-reads", cast: readers, play: stale_reads, notices: &[Mutant::Lease(Rule::Read)] },
    Scenario { name: "wall-clocks", cast: readers, play: wall_clocks, notices: &[Mutant::Lease(Rule::ClusterTime)] },
    Scenario {
        name: "stalled-leader",
        cast: readers,
        play: stalled_leader,
        notices: &[Mutant::Lease(Rule::Unconfirmed), Mutant::Lease(Rule::Successor)],
    },
    Scenario { name: "lights-out", cast: readers, play: lights_out, notices: &[Mutant::Sync] },
    Scenario { name: "behind", cast: publishers, play: behind, notices: &[] },
    Scenario { name: "old-disk", cast: everybody, play: old_disk, notices: &[] },
];

fn crowd() -> Cast {
    Cast { voters: 5, agents: 3, clients: 3, servers: 3, leases: 2, registers: 2, ..everybody() }
}

/// As machines, with writes that have the master look again and again.
fn busy_machines() -> Cast {
    Cast { clients: 3, registers: 1, ..machines() }
}

/// Machines that follow a set which is published again and again.
fn publishers() -> Cast {
    Cast { leases: 0, ..busy_machines() }
}

/// Programs that read and write registers.
fn readers() -> Cast {
    Cast { leases: 0, agents: 0, servers: 0, clients: 3, registers: 2, ..everybody() }
}

/// Everybody, with voters of a release that reads one feature level less.
fn older() -> Cast {
    Cast { old_release: true, ..everybody() }
}

/// Rivals that never give up by themselves, and have little time to find whoever leads.
fn clinging() -> Cast {
    Cast { clings: true, ttl: Duration::from_millis(400), ..rivals() }
}

fn alone() -> Cast {
    Cast { voters: 1, clients: 1, ..rivals() }
}

fn hasty() -> Cast {
    Cast {
        holds: (Duration::from_millis(100), Duration::from_millis(900)),
        effects_take: Duration::from_secs(2),
        ..rivals()
    }
}

/// The host of the program that believes in the lease, once there is one.
fn holder(stage: &mut Stage) -> usize {
    stage.until("somebody has the lease", 20 * SECOND, |stage| stage.judge.holder().is_some());
    stage.judge.holder().unwrap_or_default()
}

/// The leader, once there is one.
fn leader(stage: &mut Stage) -> usize {
    stage.until("somebody leads", 20 * SECOND, |stage| stage.leader().is_some());
    stage.leader().unwrap_or_default()
}

/// Waits until a rival has the lease that `before` had.
fn passes_on(stage: &mut Stage, before: usize) {
    stage.happens(6 * SECOND, |stage| stage.judge.holder().is_some_and(|holder| holder != before));
}

/// R1: answers to the holder are on their way for almost a time to live, and then none comes.
fn late_answers(stage: &mut Stage) {
    for _ in 0..3 {
        let holder = holder(stage);
        for voter in stage.voters() {
            let late = stage.world.draw(150, 230) * MS;
            stage.world.net.link(voter, holder, |link| link.delay = (late, late + 10 * MS));
        }
        let wait = stage.world.draw(500, 1_500) * MS;
        stage.run_for(wait);
        for voter in stage.voters() {
            // What is asked does not arrive any more; what was answered does.
            stage.cut(holder, voter, true);
        }
        passes_on(stage, holder);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

/// R2: the leader is cut off from the other voters, and not from the holder.
fn deposed(stage: &mut Stage) {
    for _ in 0..2 {
        let (leader, holder) = (leader(stage), holder(stage));
        let others: Vec<usize> = stage.voters().chain(stage.clients()).filter(|id| *id != holder).collect();
        stage.isolate(leader, others, true);
        // The holder knows no other voter.
        let rest: Vec<usize> = stage.voters().filter(|id| *id != leader).collect();
        stage.isolate(holder, rest, true);
        passes_on(stage, holder);
        stage.run_for(500 * MS);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

fn lead(stage: &mut Stage, id: usize) {
    let Some(node) = stage.replica(id).map(|replica| replica.node()) else { return };
    stage.errand(Errand::Ask(Ask::Members(MemberChange::Transfer(Some(node)))));
    stage.happens(5 * SECOND, |stage| stage.leader() == Some(id));
}

/// R4: a leader leads again after another one had its turn, in which the holder renewed.
fn there_and_back(stage: &mut Stage) {
    let first = leader(stage);
    let second = (first + 1) % stage.cast.voters;
    for _ in 0..3 {
        lead(stage, second);
        let turn = stage.world.draw(1_200, 2_500) * MS;
        stage.run_for(turn);
        lead(stage, first);
        stage.run_for(2 * SECOND);
    }
}

/// R4: the leader dies, and nobody hears the holder any more from that moment on.
fn both_die(stage: &mut Stage) {
    for _ in 0..4 {
        let (leader, holder) = (leader(stage), holder(stage));
        let wait = stage.world.draw(0, 300) * MS;
        stage.run_for(wait);
        let voters: Vec<usize> = stage.voters().collect();
        stage.isolate(holder, voters, true);
        stage.crash(leader, true);
        passes_on(stage, holder);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

/// R4: whoever opened its session in this reign is cut off before its first renewal.
fn new_holder_cut(stage: &mut Stage) {
    for _ in 0..3 {
        // A leader that was elected: it knows what its voters heard of the one before.
        let led = leader(stage);
        stage.crash(led, true);
        stage.boot_after(led, 500 * MS);
        leader(stage);
        let (one, other) = (stage.clients().start, stage.clients().start + 1);
        stage.crash(one, false);
        stage.crash(other, false);
        stage.run_for(2_500 * MS);
        stage.boot(one);
        holder(stage);
        let voters: Vec<usize> = stage.voters().collect();
        stage.isolate(one, voters, true);
        stage.boot(other);
        passes_on(stage, one);
        stage.end_faults();
        stage.run_for(500 * MS);
    }
}

/// R4: nobody led for longer than a time to live. Whoever lives keeps its session.
fn nobody_leads(stage: &mut Stage) {
    for _ in 0..3 {
        holder(stage);
        stage.judge.keep_sessions(true);
        let led = leader(stage);
        stage.crash(led, true);
        for voter in stage.voters() {
            let others: Vec<usize> = stage.voters().collect();
            stage.isolate(voter, others, true);
        }
        let time = stage.world.draw(1_100, 2_500) * MS;
        stage.run_for(time);
        // The one that led stays away: it could not say when it was heard last.
        let others: Vec<usize> = stage.voters().filter(|id| *id != led).collect();
        stage.isolate(others[0], [others[1]], false);
        leader(stage);
        stage.run_for(2 * SECOND);
        stage.judge.keep_sessions(false);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

/// R5: the holder is heard again while the end of its session is on its way to the disks.
fn slow_end(stage: &mut Stage) {
    for _ in 0..4 {
        let holder = holder(stage);
        let voters: Vec<usize> = stage.voters().collect();
        stage.isolate(holder, voters.clone(), true);
        stage.run_for(900 * MS);
        let until = stage.world.now + 900 * MS;
        for voter in voters.clone() {
            stage.world.machines[voter].host.stall_disk(until);
        }
        let heard = stage.world.draw(150, 400) * MS;
        stage.run_for(heard);
        stage.isolate(holder, voters, false);
        // Its renewals arrive beside the end of its session; then it is not heard any more.
        stage.run_for(500 * MS);
        passes_on(stage, holder);
        stage.end_faults();
        stage.run_for(500 * MS);
    }
}

/// R6: the only voter stands still for longer than a time to live. Nobody is to blame for it.
fn deaf(stage: &mut Stage) {
    holder(stage);
    stage.judge.keep_sessions(true);
    for _ in 0..3 {
        stage.world.machines[0].hold(true);
        let time = stage.world.draw(1_100, 3_000) * MS;
        stage.run_for(time);
        stage.world.machines[0].hold(false);
        stage.run_for(2 * SECOND);
    }
    stage.judge.keep_sessions(false);
}

/// R7: effects arrive after the next holder's.
fn late_effects(stage: &mut Stage) {
    stage.run_for(15 * SECOND);
}

/// The machine that runs the server, once there is one.
fn runner(stage: &mut Stage) -> usize {
    stage.until("the server runs", 30 * SECOND, |stage| stage.judge.runner().is_some());
    stage.judge.runner().unwrap_or_default()
}

/// Waits until another machine runs the server.
fn moves_on(stage: &mut Stage, before: usize) {
    stage.happens(8 * SECOND, |stage| stage.judge.runner().is_some_and(|runner| runner != before));
}

/// The fence: an agent dies in the moment in which it starts a server, and stays away.
fn agent_dies(stage: &mut Stage) {
    for _ in 0..4 {
        let before = runner(stage);
        stage.crash(before, true);
        moves_on(stage, before);
        let runner = runner(stage);
        stage.boot(before);
        stage.run_for(SECOND / 100);
        stage.crash(runner, false);
        stage.run_for(4 * SECOND);
        stage.boot(runner);
        stage.run_for(2 * SECOND);
    }
}

/// The fence: a machine is cut off, and its kernel is late.
fn machine_cut(stage: &mut Stage) {
    for _ in 0..6 {
        let runner = runner(stage);
        let all: Vec<usize> = (0..stage.ops()).collect();
        stage.isolate(runner, all, true);
        moves_on(stage, runner);
        stage.end_faults();
        stage.run_for(2 * SECOND);
    }
}

/// The fence: answers to an agent are late, and then none comes.
fn machine_late(stage: &mut Stage) {
    for _ in 0..4 {
        let runner = runner(stage);
        for voter in stage.voters() {
            let late: At = stage.world.draw(150, 230) * MS;
            stage.world.net.link(voter, runner, |link| link.delay = (late, late + 10 * MS));
        }
        let wait = stage.world.draw(1_000, 2_000) * MS;
        stage.run_for(wait);
        for voter in stage.voters() {
            stage.cut(runner, voter, true);
        }
        moves_on(stage, runner);
        stage.end_faults();
        stage.run_for(2 * SECOND);
    }
}

/// The fence: a machine learns of its order only when it is not its any more.
fn late_orders(stage: &mut Stage) {
    for _ in 0..4 {
        let before = runner(stage);
        let heir = stage.agents().find(|id| *id != before).unwrap_or(before);
        stage.crash(before, true);
        let name = stage.world.machines[heir].host.name().to_owned();
        stage.happens(8 * SECOND, |stage| stage.placed_on().is_some_and(|machine| machine == name));
        // What it is told stands in the network for longer than its session lives.
        let all: Vec<usize> = (0..stage.ops()).collect();
        stage.isolate(heir, all, true);
        stage.boot(before);
        let time = stage.world.draw(1_300, 1_900) * MS;
        stage.run_for(time);
        stage.end_faults();
        stage.run_for(2 * SECOND);
    }
}

/// The fence: somebody takes a move back while the machine is about to start the server.
fn second_thoughts(stage: &mut Stage) {
    for _ in 0..8 {
        let before = runner(stage);
        let heir = stage.agents().find(|id| *id != before).unwrap_or(before);
        let name = |stage: &Stage, id: usize| stage.world.machines[id].host.name().to_owned();
        let (here, there) = (name(stage, before), name(stage, heir));
        stage.moves_server(&there);
        stage.happens(8 * SECOND, |stage| stage.placed_on().is_some_and(|machine| machine == there));
        stage.moves_server(&here);
        stage.run_for(2 * SECOND);
    }
}

/// Reads: a leader that is cut off from the others, and asked by one of the programs.
fn stale_reads(stage: &mut Stage) {
    for _ in 0..3 {
        let leader = leader(stage);
        let reader = stage.clients().start;
        let others: Vec<usize> = (0..stage.ops()).filter(|id| *id != reader).collect();
        stage.isolate(leader, others, true);
        let rest: Vec<usize> = stage.voters().filter(|id| *id != leader).collect();
        stage.isolate(reader, rest, true);
        stage.run_for(5 * SECOND);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

/// Retries: answers are lost with the leader, and the next one's wall clock is hours ahead, or behind.
fn wall_clocks(stage: &mut Stage) {
    for _ in 0..4 {
        let led = leader(stage);
        for voter in stage.voters() {
            let by = (stage.world.draw(3_600, 3 * 3_600) * SECOND) as i64;
            let ahead = stage.world.draw(0, 2) > 0;
            let host = &stage.world.machines[voter].host;
            host.change_clocks(|clocks, now| clocks.step_wall(now, if ahead { by } else { -by }));
        }
        let pairs: Vec<_> =
            stage.voters().flat_map(|voter| stage.clients().map(move |client| (voter, client))).collect();
        for (voter, client) in &pairs {
            stage.cut(*voter, *client, true);
        }
        // What is asked counts, and nobody is told.
        let time = stage.world.draw(100, 400) * MS;
        stage.run_for(time);
        stage.crash(led, true);
        stage.boot_after(led, 3 * SECOND);
        // Until whoever waits for an answer asks elsewhere.
        stage.run_for(1_300 * MS);
        for (voter, client) in &pairs {
            stage.cut(*voter, *client, false);
        }
        stage.run_for(4 * SECOND);
    }
}

/// Writes: the leader's disk stands still, and another one leads. Whoever asked the old one is not left waiting.
fn stalled_leader(stage: &mut Stage) {
    // Not in the middle of the last change of members.
    stage.run_for(SECOND);
    for alone in [false, true, false] {
        let led = leader(stage);
        let voters: Vec<usize> = stage.voters().collect();
        if alone {
            stage.isolate(led, voters, true);
        }
        let until = stage.world.now + 30 * SECOND;
        stage.world.machines[led].host.stall_disk(until);
        let answers = stage.judge.counted("answers of one voter");
        let writes = stage.judge.counted("writes through one voter");
        let command = Command::OpenSession { name: "ops".into(), ttl_ms: 60_000 };
        stage.errand(Errand::WriteAt(led, command));
        stage.until("another one leads", 10 * SECOND, |stage| stage.leader().is_some_and(|leader| leader != led));
        stage.until("whoever asked the old leader is answered", SECOND, |stage| {
            stage.judge.counted("answers of one voter") > answers
        });
        // It knows of the new leader if it hears anybody, and asks it.
        if !alone && stage.judge.counted("writes through one voter") == writes {
            stage.judge.violated(stage.world.now, "the old leader knows who leads, and did not ask");
        }
        stage.end_faults();
        stage.run_for(2 * SECOND);
    }
}

/// Durability: all voters lose their power at once.
fn lights_out(stage: &mut Stage) {
    for _ in 0..4 {
        let time = stage.world.draw(500, 2_500) * MS;
        stage.run_for(time);
        for voter in stage.voters() {
            stage.crash(voter, true);
            let after = stage.world.draw(0, 1_000) * MS;
            stage.boot_after(voter, after);
        }
        stage.run_for(3 * SECOND);
    }
}

/// A member that was started again hears first of a voter that is behind. Its config does not run backwards.
fn behind(stage: &mut Stage) {
    for _ in 0..3 {
        // Everybody asks the first voter first.
        lead(stage, 1);
        let member = stage.agents().start;
        let others: Vec<usize> = (0..stage.ops()).filter(|id| *id != member).collect();
        stage.isolate(0, others, true);
        let time = stage.world.draw(500, 2_000) * MS;
        stage.run_for(time);
        let power = stage.world.draw(0, 1) == 0;
        stage.crash(member, power);
        stage.boot(member);
        // The first voter waits for so long for somebody who leads before it sends its callers on.
        stage.run_for(7 * SECOND);
        stage.end_faults();
        stage.run_for(SECOND);
    }
}

/// A voter's disk is put back to what it was. The others know better, and it takes no part.
fn old_disk(stage: &mut Stage) {
    let Some(id) = stage.voters().find(|id| Some(*id) != stage.leader()) else { return };
    let backup = stage.back_up(id);
    let time = stage.world.draw(2_000, 8_000) * MS;
    stage.run_for(time);
    let power = stage.world.draw(0, 1) == 0;
    stage.crash(id, power);
    stage.roll_back(id, backup);
    let wait = stage.world.draw(0, 2_000) * MS;
    stage.run_for(wait);
    stage.boot(id);
    stage.until("it is kept out", 20 * SECOND, |stage| {
        stage.replica(id).is_some_and(|replica| replica.status().quarantined.is_some())
    });
    stage.run_for(2 * SECOND);
}
