//! What the master proposes, story by story: servers placed, waited for, moved, settled and given up.

use std::time::Duration;

use expect_test::{Expect, expect};
use leaseward_state::policy::Pause;
use leaseward_state::server::{FenceLevel, RestartPolicy, Wanted};
use leaseward_state::{Term, UnixMillis};

use crate::world::{Dice, World, machines, ms};

#[track_caller]
fn check(world: &mut World, expected: &Expect) {
    expected.assert_eq(&world.plan_text());
}

#[test]
fn the_least_loaded_machine_is_taken_and_names_break_ties() {
    let mut world = World::default();
    world.machine("m2", FenceLevel::F2);
    world.machine("m1", FenceLevel::F2);
    world.server("a", |_| ());
    check(&mut world, &expect!["assign a to m1 (Started)\n"]);
    world.carry_out();
    world.server("b", |_| ());
    check(&mut world, &expect!["assign b to m2 (Started)\n"]);
    world.carry_out();
    check(&mut world, &expect![""]);
}

#[test]
fn candidates_are_taken_in_their_order_and_nobody_else() {
    let mut world = World::default();
    for name in ["m1", "m2", "m3"] {
        world.machine(name, FenceLevel::F2);
    }
    world.server("a", |spec| spec.candidates = machines(&["m3", "m9", "m2"]));
    check(&mut world, &expect!["assign a to m3 (Started)\n"]);
    world.close("m3");
    check(&mut world, &expect!["assign a to m2 (Started)\n"]);
    world.close("m2");
    check(
        &mut world,
        &expect![
            "a waits: m1: it is not one of the server's candidates; m2: its agent is not connected; m3: its agent is not connected; m9: the cluster does not know it\n"
        ],
    );
}

#[test]
fn higher_priority_goes_first_then_names() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    for (name, priority) in [("a", 0), ("b", 5), ("c", 5), ("d", i32::MIN)] {
        world.server(name, |spec| spec.priority = priority);
    }
    check(
        &mut world,
        &expect![[r"
            assign b to m1 (Started)
            assign c to m1 (Started)
            assign a to m1 (Started)
            assign d to m1 (Started)
        "]],
    );
}

#[test]
fn machines_that_cannot_fence_well_enough_or_are_cordoned_are_not_taken() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F1);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |spec| spec.requires_fence = FenceLevel::F2);
    check(&mut world, &expect!["assign a to m2 (Started)\n"]);
    world.cordon("m2", "new disk");
    check(&mut world, &expect!["a waits: m1: its fence level is F1; F2 is required; m2: cordoned: new disk\n"]);
}

#[test]
fn without_a_proof_the_grace_is_waited_for_on_the_masters_own_clock() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F1);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m2"]));
    world.carry_out();
    world.now = ms(50_000);
    world.close("m1");
    check(&mut world, &expect!["a waits: grace: 2000 ms are left\nagain in 2000 ms\n"]);
    world.now = ms(51_999);
    check(&mut world, &expect!["a waits: grace: 1 ms are left\nagain in 1 ms\n"]);
    world.now = ms(52_000);
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Grace(2000)\n"]);
}

#[test]
fn the_grace_is_that_of_the_level_under_which_the_copy_was_started() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F1);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m2"]));
    world.carry_out();
    world.close("m1");
    // Its agent returns with more privileges; that says nothing of the copy that it cannot prove dead.
    world.machine("m1", FenceLevel::F2);
    check(&mut world, &expect!["a waits: grace: 2000 ms are left\nagain in 2000 ms\n"]);
}

#[test]
fn a_session_that_was_superseded_early_leaves_its_copy_a_whole_time_to_live() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.server("a", |_| ());
    world.carry_out();
    // The agent of m1 starts again without its memory: the copy of before may have been extended a moment ago.
    world.machine_back("m1", false);
    check(&mut world, &expect!["a waits: grace: 3100 ms are left\nagain in 3100 ms\n"]);
    world.now = ms(3_100);
    check(&mut world, &expect!["assign a to m1 (MachineRestarted) proof Grace(100)\n"]);
}

#[test]
fn a_new_master_counts_the_grace_anew() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |_| ());
    world.carry_out();
    world.close("m1");
    check(&mut world, &expect!["a waits: grace: 100 ms are left\nagain in 100 ms\n"]);
    world.now = ms(99);
    world.new_master();
    check(&mut world, &expect!["a waits: grace: 100 ms are left\nagain in 100 ms\n"]);
    world.now = ms(199);
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Grace(100)\n"]);
}

#[test]
fn a_certificate_makes_the_grace_zero() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F0);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |_| ());
    world.carry_out();
    world.close("m1");
    world.dead("a", None);
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Certificate\n"]);
}

#[test]
fn where_only_the_operator_knows_the_grace_nothing_happens_without_one() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F0);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |_| ());
    world.server("b", |spec| {
        spec.grace_ms = Some(700);
        spec.candidates = machines(&["m1", "m2"]);
    });
    world.carry_out();
    world.close("m1");
    check(
        &mut world,
        &expect![[r"
            a waits: the death of its copy on m1 is not proven, and no grace is set
            b waits: grace: 700 ms are left
            again in 700 ms
        "]],
    );
    world.now = ms(3_600_000);
    check(
        &mut world,
        &expect![[r"
            assign b to m2 (MachineLost) proof Grace(700)
            a waits: the death of its copy on m1 is not proven, and no grace is set
        "]],
    );
}

#[test]
fn the_same_machine_comes_first_when_it_is_back() {
    let mut world = World::default();
    for name in ["m1", "m2"] {
        world.machine(name, FenceLevel::F2);
    }
    world.server("a", |spec| spec.candidates = machines(&["m2", "m1"]));
    world.server("b", |_| ());
    world.carry_out();
    world.close("m2");
    world.machine_again("m2");
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Swept\n"]);
    // Even if it is the more loaded one.
    world.carry_out();
    world.close("m1");
    world.machine_again("m1");
    check(&mut world, &expect!["assign b to m1 (MachineLost) proof Swept\n"]);
}

#[test]
fn where_it_failed_too_often_it_does_not_go_again_unless_there_is_nothing_else() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m2"]));
    world.carry_out();
    for attempt in 1..=3 {
        world.crashed("a", attempt);
    }
    world.dead("a", Some("too often"));
    check(&mut world, &expect!["assign a to m2 (Crashed)\n"]);
    world.close("m2");
    check(&mut world, &expect!["assign a to m1 (Crashed)\n"]);
    // After its window the failures there are forgotten.
    world.machine_again("m2");
    world.clock(RestartPolicy::default().per_ms + 1);
    check(&mut world, &expect!["assign a to m1 (Crashed)\n"]);
}

#[test]
fn beyond_the_budget_of_the_cluster_it_is_given_up() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.machine("m2", FenceLevel::F2);
    world.server("a", |spec| spec.restart.cluster = 3);
    for _ in 0..3 {
        world.carry_out();
        world.dead("a", Some("exit 3"));
    }
    check(&mut world, &expect!["give up a: it failed 3 times; last on m1: exit 3\n"]);
    world.carry_out();
    check(&mut world, &expect![""]);
    world.wanted("a", Wanted::Running);
    check(&mut world, &expect!["assign a to m1 (Started)\n"]);
}

#[test]
fn failures_before_the_window_do_not_count() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.server("a", |spec| spec.restart.cluster = 2);
    world.carry_out();
    world.dead("a", Some("exit 3"));
    world.clock(RestartPolicy::default().cluster_per_ms + 1);
    world.carry_out();
    world.dead("a", Some("exit 4"));
    check(&mut world, &expect!["assign a to m1 (Crashed)\n"]);
}

#[test]
fn stopped_while_its_machine_was_lost_it_is_settled_after_the_grace() {
    let mut world = World::default();
    world.machine("m1", FenceLevel::F2);
    world.server("a", |_| ());
    world.carry_out();
    world.close("m1");
    world.wanted("a", Wanted::Stopped);
    check(&mut world, &expect!["a waits: grace: 100 ms are left\nagain in 100 ms\n"]);
    world.now = ms(100);
    check(&mut world, &expect!["settle a proof Grace(100)\n"]);
    world.carry_out();
    check(&mut world, &expect![""]);
}

#[test]
fn a_move_goes_where_it_was_told() {
    let mut world = World::default();
    for name in ["m1", "m2", "m3"] {
        world.machine(name, FenceLevel::F2);
    }
    world.server("a", |_| ());
    world.carry_out();
    world.move_to("a", "m3");
    check(&mut world, &expect![""]);
    world.dead("a", None);
    check(&mut world, &expect!["assign a to m3 (Moved)\n"]);
    // The target died meanwhile: somewhere is better than nowhere.
    world.close("m3");
    check(&mut world, &expect!["assign a to m1 (Moved)\n"]);
}

#[test]
fn a_stopped_server_and_a_cluster_without_machines_wait() {
    let mut world = World::default();
    world.server("a", |_| ());
    check(&mut world, &expect!["a waits: there is no machine\n"]);
    world.wanted("a", Wanted::Stopped);
    world.machine("m1", FenceLevel::F2);
    check(&mut world, &expect![""]);
}

/// Random lives: the plan is the same for equal states, is taken by the state, and never comes before its proof.
#[test]
fn no_unproven_copy_is_ever_doubled_and_every_member_plans_alike() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut world = World::default();
        for name in ["m1", "m2", "m3"] {
            world.machine(name, [FenceLevel::F0, FenceLevel::F1, FenceLevel::F2][dice.below(3) as usize]);
        }
        for name in ["a", "b", "c"] {
            let grace = (dice.below(2) == 0).then_some(500);
            world.server(name, |spec| spec.grace_ms = grace);
        }
        for _ in 0..120 {
            world.now += Duration::from_millis(dice.below(300));
            let machine = ["m1", "m2", "m3"][dice.below(3) as usize];
            let server = ["a", "b", "c"][dice.below(3) as usize];
            match dice.below(16) {
                0 => world.close(machine),
                1 => world.machine_back(machine, dice.below(2) == 0),
                2 => world.dead(server, (dice.below(2) == 0).then_some("w")),
                3 => world.wanted(server, if dice.below(3) == 0 { Wanted::Stopped } else { Wanted::Running }),
                4 => world.move_to(server, machine),
                5 => world.new_master(),
                6 => world.drain(machine, "w"),
                7 | 8 => world.uncordon(machine),
                9 => world.restart(server),
                10 => {
                    let until = (dice.below(2) == 0).then_some(UnixMillis(1));
                    world.pause(server, (dice.below(2) == 0).then(|| Pause { why: "w".into(), until }));
                }
                11 | 12 => world.ready(server),
                13 => drop(world.confirm_dead(machine)),
                _ => {}
            }
            world.check_proofs();
            let again = world.copy();
            assert_eq!(world.plan(Term(1)), again.clone().plan(Term(1)), "seed {seed}: two members plan differently");
            if dice.below(2) == 0 {
                world.carry_out();
            }
        }
    }
}

#[test]
fn the_grace_is_the_shortest_of_the_levels_that_a_server_is_content_with() {
    let mut world = World::default();
    world.machine_with("m1", |profile| {
        profile.fence = FenceLevel::F4;
        profile.watchdog_ms = Some(10_000);
    });
    world.machine_with("m2", |profile| {
        profile.fence = FenceLevel::F4;
        profile.watchdog_ms = Some(10_000);
    });
    for (name, level) in [("a", FenceLevel::F1), ("b", FenceLevel::F4)] {
        world.server(name, |spec| {
            spec.requires_fence = level;
            spec.candidates = machines(&["m1", "m2"]);
        });
    }
    world.carry_out();
    world.close("m1");
    check(
        &mut world,
        &expect![[r"
            a waits: grace: 100 ms are left
            b waits: grace: 11000 ms are left
            again in 100 ms
        "]],
    );
    world.now = ms(11_000);
    check(
        &mut world,
        &expect![[r"
            assign a to m2 (MachineLost) proof Grace(100)
            assign b to m2 (MachineLost) proof Grace(11000)
        "]],
    );
}
