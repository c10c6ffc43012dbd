//! Placement by label, capacity and distance; brakes; what the master does for servers that run and for machines.

use expect_test::{Expect, expect};
use leaseward_state::policy::Pause;
use leaseward_state::server::{Failback, FenceLevel, ManagerKind, Wanted};
use leaseward_state::{Reply, ServerName, UnixMillis};

use crate::world::{World, machines, ms};

#[track_caller]
fn check(world: &mut World, expected: &Expect) {
    expected.assert_eq(&world.plan_text());
}

fn of(machines: &[&str]) -> World {
    let mut world = World::default();
    for name in machines {
        world.machine(name, FenceLevel::F2);
    }
    world
}

/// Carries out the plan, and every server that was placed comes up.
fn settle(world: &mut World, servers: &[&str]) {
    world.carry_out();
    for name in servers {
        world.ready(name);
    }
}

#[test]
fn a_required_label_is_looked_at() {
    let mut world = of(&["m3"]);
    world.machine_with("m1", |profile| drop(profile.labels.insert("disk".into(), "hdd".into())));
    world.machine_with("m2", |profile| drop(profile.labels.insert("disk".into(), "ssd".into())));
    world.server("a", |spec| drop(spec.labels.insert("disk".into(), "ssd".into())));
    check(&mut world, &expect!["assign a to m2 (Started)\n"]);
    world.close("m2");
    check(
        &mut world,
        &expect![
            "a waits: m1: label disk=ssd is required, it has disk=hdd; m2: its agent is not connected; m3: label disk=ssd is required, it has none\n"
        ],
    );
}

#[test]
fn servers_that_must_be_apart_are_apart_whoever_says_so() {
    let mut world = of(&["m1"]);
    world.server("a", |_| ());
    world.server("b", |spec| spec.apart_from = vec![ServerName::new("a").unwrap()]);
    // Within one plan too.
    check(
        &mut world,
        &expect!["assign a to m1 (Started)\nb waits: m1: a is there, and must not be on the same machine\n"],
    );
    let mut world = of(&["m1", "m2"]);
    world.server("b", |spec| spec.apart_from = vec![ServerName::new("c").unwrap()]);
    settle(&mut world, &["b"]);
    world.server("c", |spec| spec.candidates = machines(&["m1", "m2"]));
    check(&mut world, &expect!["assign c to m2 (Started)\n"]);
}

#[test]
fn a_machine_carries_no_more_than_its_capacity() {
    let mut world = of(&[]);
    world.machine_with("m1", |profile| profile.capacity = Some(5));
    world.machine_with("m2", |profile| profile.capacity = Some(3));
    for (name, weight) in [("a", 3), ("b", 3), ("c", 2), ("d", 1)] {
        world.server(name, |spec| spec.weight = weight);
    }
    check(
        &mut world,
        &expect![[r"
            assign a to m1 (Started)
            assign b to m2 (Started)
            assign c to m1 (Started)
            d waits: m1: 1 is needed of its capacity, 0 is free; m2: 1 is needed of its capacity, 0 is free
        "]],
    );
}

#[test]
fn the_lightest_machine_is_taken_also_within_one_plan() {
    let mut world = of(&["m1", "m2"]);
    for (name, weight) in [("a", 5), ("b", 1), ("c", 1)] {
        world.server(name, |spec| spec.weight = weight);
    }
    check(&mut world, &expect!["assign a to m1 (Started)\nassign b to m2 (Started)\nassign c to m2 (Started)\n"]);
}

#[test]
fn a_machine_starts_only_so_many_servers_at_a_time() {
    let mut world = of(&[]);
    world.machine_with("m1", |profile| profile.start_slots = 2);
    for name in ["a", "b", "c"] {
        world.server(name, |_| ());
    }
    check(
        &mut world,
        &expect![[r"
            assign a to m1 (Started)
            assign b to m1 (Started)
            c waits: m1: it starts 2 servers already, as many as it may at a time
        "]],
    );
    world.carry_out();
    check(&mut world, &expect!["c waits: m1: it starts 2 servers already, as many as it may at a time\n"]);
    world.ready("a");
    check(&mut world, &expect!["assign c to m1 (Started)\n"]);
}

#[test]
fn the_cluster_starts_only_so_many_servers_at_a_time() {
    let mut world = of(&["m1", "m2"]);
    world.policy(|policy| policy.concurrent_starts = 1);
    for (name, priority) in [("a", 0), ("b", 9)] {
        world.server(name, |spec| spec.priority = priority);
    }
    check(
        &mut world,
        &expect!["assign b to m1 (Started)\na waits: 1 servers are on their way up, as many as may be at a time\n"],
    );
    settle(&mut world, &["b"]);
    check(&mut world, &expect!["assign a to m2 (Started)\n"]);
}

#[test]
fn the_clusters_candidates_serve_those_that_name_none() {
    let mut world = of(&["m1", "m2", "m3"]);
    world.policy(|policy| policy.candidates = machines(&["m3", "m2"]));
    world.server("a", |_| ());
    world.server("b", |spec| spec.candidates = machines(&["m1"]));
    check(&mut world, &expect!["assign a to m3 (Started)\nassign b to m1 (Started)\n"]);
}

#[test]
fn a_server_that_does_not_migrate_waits_for_its_machine() {
    let mut world = of(&["m1", "m2"]);
    world.server("a", |spec| spec.migrates = false);
    settle(&mut world, &["a"]);
    world.close("m1");
    world.now = ms(100);
    check(&mut world, &expect!["a waits: grace: 100 ms are left\nagain in 100 ms\n"]);
    world.now = ms(200);
    check(
        &mut world,
        &expect![
            "a waits: m1: its agent is not connected; m2: the server waits for m1: it does not migrate by itself\n"
        ],
    );
    world.machine_again("m1");
    check(&mut world, &expect!["assign a to m1 (MachineLost) proof Swept\n"]);
}

#[test]
fn many_machines_lost_at_once_are_waited_for_once() {
    let mut world = of(&["m1", "m2", "m3", "m4", "m5"]);
    let servers = ["a", "b", "c", "d", "e"];
    for name in servers {
        world.server(name, |_| ());
    }
    settle(&mut world, &servers);
    for name in ["m1", "m2", "m3"] {
        world.close(name);
    }
    check(
        &mut world,
        &expect![[r"
            a waits: grace: 100 ms are left
            b waits: grace: 100 ms are left
            c waits: grace: 100 ms are left
            again in 100 ms
        "]],
    );
    world.now = ms(1_000);
    check(
        &mut world,
        &expect![[r"
            a waits: 3 of 5 machines were lost at once: 2000 ms for them to come back
            b waits: 3 of 5 machines were lost at once: 2000 ms for them to come back
            c waits: 3 of 5 machines were lost at once: 2000 ms for them to come back
            again in 2000 ms
        "]],
    );
    // One comes back, and the brake is off: two of five may be lost.
    world.machine_again("m1");
    check(
        &mut world,
        &expect![[r#"
            assign a to m1 (MachineLost) proof Swept
            assign b to m1 (MachineLost) proof Grace(100)
            assign c to m4 (MachineLost) proof Grace(100)
        "#]],
    );
    world.close("m1");
    world.now = ms(3_000);
    world.plan_text();
    world.now = ms(9_000);
    assert!(!world.plan_text().contains("at once"), "nobody is waited for for ever");
}

#[test]
fn a_server_that_takes_machine_after_machine_down_is_poison() {
    let mut world = of(&["m1", "m2", "m3", "m4"]);
    world.server("a", |spec| spec.restart.cluster = 2);
    for name in ["m1", "m2", "m3"] {
        settle(&mut world, &["a"]);
        assert_eq!(world.at("a").as_deref(), Some(name));
        world.clock(10_000);
        world.close(name);
        world.plan_text();
        world.now += ms(10_000);
    }
    check(&mut world, &expect!["settle a proof Grace(100)\n"]);
    world.carry_out();
    check(
        &mut world,
        &expect!["give up a: poison: m1, m2, m3 were lost one after the other, each soon after it was placed there\n"],
    );
    world.carry_out();
    world.wanted("a", Wanted::Running);
    check(&mut world, &expect!["assign a to m4 (Started)\n"]);
}

#[test]
fn machines_that_are_lost_late_make_no_poison() {
    let mut world = of(&["m1", "m2", "m3", "m4"]);
    world.server("a", |_| ());
    for name in ["m1", "m2", "m3"] {
        settle(&mut world, &["a"]);
        world.clock(60_000);
        world.close(name);
        world.plan_text();
        world.now += ms(10_000);
    }
    check(&mut world, &expect!["assign a to m4 (MachineLost) proof Grace(100)\n"]);
}

#[test]
fn a_machine_that_is_lost_too_often_gets_nothing_new_for_a_while() {
    let mut world = of(&["m1", "m2", "m3", "m4"]);
    for _ in 0..3 {
        check(&mut world, &expect![""]);
        world.close("m1");
        world.machine_again("m1");
        world.clock(1_000);
    }
    check(&mut world, &expect!["quarantine m1: quarantine: lost 3 times within 60 min\n"]);
    world.carry_out();
    world.server("a", |_| ());
    check(&mut world, &expect!["assign a to m2 (Started)\nagain in 10000 ms\n"]);
    // A second one would leave too few.
    for _ in 0..3 {
        world.close("m3");
        world.machine_again("m3");
    }
    check(&mut world, &expect!["assign a to m2 (Started)\nagain in 10000 ms\n"]);
    // Whoever lets it go trusts it.
    world.uncordon("m3");
    world.uncordon("m1");
    check(&mut world, &expect!["assign a to m1 (Started)\n"]);
}

#[test]
fn a_quarantine_ends_by_itself() {
    let mut world = of(&["m1", "m2", "m3", "m4"]);
    for _ in 0..3 {
        world.close("m1");
        world.machine_again("m1");
    }
    world.carry_out();
    world.clock(2 * 3_600_000 - 1);
    check(&mut world, &expect!["again in 1 ms\n"]);
    world.clock(1);
    world.server("a", |_| ());
    check(&mut world, &expect!["end pauses\nassign a to m2 (Started)\n"]);
    world.carry_out();
    world.server("b", |_| ());
    check(&mut world, &expect!["assign b to m1 (Started)\n"]);
}

#[test]
fn a_drained_machine_is_left_one_by_one() {
    let mut world = of(&["m1"]);
    for name in ["a", "b"] {
        world.server(name, |_| ());
    }
    world.server("c", |spec| spec.migrates = false);
    settle(&mut world, &["a", "b", "c"]);
    world.drain("m1", "firmware");
    check(
        &mut world,
        &expect![[r"
            a waits: stays on m1 (firmware): m1: cordoned: firmware
            b waits: stays on m1 (firmware): m1: cordoned: firmware
            c waits: it does not migrate by itself: move or stop it
        "]],
    );
    world.machine("m2", FenceLevel::F2);
    let first = expect![[r"
        relocate a to m2 (Drained)
        b waits: another one leaves m1 first
        c waits: it does not migrate by itself: move or stop it
    "]];
    check(&mut world, &first);
    world.carry_out();
    world.dead("a", None);
    world.carry_out();
    check(
        &mut world,
        &expect![[r"
            b waits: another one leaves m1 first
            c waits: it does not migrate by itself: move or stop it
        "]],
    );
    world.ready("a");
    check(
        &mut world,
        &expect!["relocate b to m2 (Drained)\nc waits: it does not migrate by itself: move or stop it\n"],
    );
    world.uncordon("m1");
    check(&mut world, &expect![""]);
}

#[test]
fn it_returns_by_itself_only_if_told_and_after_its_time() {
    let mut world = of(&["m1", "m2"]);
    world.server("a", |spec| {
        spec.candidates = machines(&["m1", "m2"]);
        spec.failback = Failback::AutoAfter(60_000);
    });
    world.server("b", |spec| spec.candidates = machines(&["m1", "m2"]));
    settle(&mut world, &["a", "b"]);
    world.close("m1");
    world.plan_text();
    world.now = ms(200);
    settle(&mut world, &["a", "b"]);
    assert_eq!((world.at("a").as_deref(), world.at("b").as_deref()), (Some("m2"), Some("m2")));
    world.now = ms(10_000);
    world.machine_again("m1");
    check(&mut world, &expect!["again in 60000 ms\n"]);
    // It was away for a moment: its time begins anew.
    world.now = ms(50_000);
    world.close("m1");
    check(&mut world, &expect![""]);
    world.machine_again("m1");
    check(&mut world, &expect!["again in 60000 ms\n"]);
    world.now = ms(109_999);
    check(&mut world, &expect!["again in 1 ms\n"]);
    world.now = ms(110_000);
    check(&mut world, &expect!["relocate a to m1 (FailedBack)\n"]);
    // A new master has seen nothing yet.
    world.new_master();
    check(&mut world, &expect!["again in 60000 ms\n"]);
}

#[test]
fn what_cannot_be_started_where_it_was_moved_to_goes_back() {
    let mut world = of(&["m1", "m2", "m3"]);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m3", "m2"]));
    settle(&mut world, &["a"]);
    world.move_to("a", "m2");
    world.dead("a", None);
    check(&mut world, &expect!["assign a to m2 (Moved)\n"]);
    world.carry_out();
    world.not_started("a");
    check(&mut world, &expect!["assign a to m1 (RolledBack)\n"]);
    // What has worked there once has moved.
    settle(&mut world, &["a"]);
    world.move_to("a", "m2");
    world.dead("a", None);
    settle(&mut world, &["a"]);
    world.dead("a", Some("exit 1"));
    check(&mut world, &expect!["assign a to m1 (Crashed)\n"]);
}

#[test]
fn a_restart_stays_where_it_is() {
    let mut world = of(&["m1", "m2", "m3"]);
    world.server("a", |spec| spec.candidates = machines(&["m3", "m2"]));
    settle(&mut world, &["a"]);
    world.restart("a");
    check(&mut world, &expect![""]);
    world.dead("a", None);
    check(&mut world, &expect!["assign a to m3 (Restarted)\n"]);
}

#[test]
fn a_paused_server_is_left_alone_and_a_pause_ends_by_itself() {
    let mut world = of(&["m1", "m2"]);
    world.server("a", |_| ());
    settle(&mut world, &["a"]);
    world.pause("a", Some(Pause { why: "surgery".into(), until: Some(UnixMillis(5_000)) }));
    world.drain("m1", "firmware");
    check(&mut world, &expect!["again in 5000 ms\n"]);
    world.dead("a", Some("killed"));
    check(&mut world, &expect!["a waits: paused: surgery\nagain in 5000 ms\n"]);
    world.clock(5_000);
    check(&mut world, &expect!["end pauses\na waits: paused: surgery\n"]);
    world.carry_out();
    check(&mut world, &expect!["assign a to m2 (Crashed)\n"]);
}

#[test]
fn in_maintenance_nothing_is_moved_and_stopped_servers_are_still_settled() {
    let mut world = of(&["m1", "m2"]);
    for name in ["a", "b"] {
        world.server(name, |spec| spec.candidates = machines(&["m1", "m2"]));
    }
    settle(&mut world, &["a", "b"]);
    world.policy(|policy| policy.maintenance = Some(Pause { why: "network".into(), until: None }));
    world.close("m1");
    world.wanted("b", Wanted::Stopped);
    world.plan_text();
    world.now = ms(1_000);
    check(&mut world, &expect!["settle b proof Grace(100)\na waits: paused: network\n"]);
    world.policy(|policy| policy.maintenance = None);
    world.carry_out();
    assert_eq!(world.at("a").as_deref(), Some("m2"));
}

#[test]
fn an_operators_word_counts_for_a_machine_that_is_gone_only() {
    let mut world = of(&["m2"]);
    world.machine("m1", FenceLevel::F0);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m2"]));
    settle(&mut world, &["a"]);
    assert!(matches!(world.confirm_dead("m1"), Reply::Refused(_)), "its agent is connected");
    world.close("m1");
    check(&mut world, &expect!["a waits: the death of its copy on m1 is not proven, and no grace is set\n"]);
    assert_eq!(world.confirm_dead("m1"), Reply::Done);
    check(
        &mut world,
        &expect![[r#"
        assign a to m2 (MachineLost) proof Operator("ann")
    "#]],
    );
}

#[test]
fn two_drained_machines_do_not_both_take_the_last_place() {
    let mut world = of(&["m1", "m2"]);
    for (name, machine) in [("a", "m1"), ("b", "m2")] {
        world.server(name, |spec| spec.candidates = machines(&[machine, "m3"]));
    }
    settle(&mut world, &["a", "b"]);
    world.machine_with("m3", |profile| profile.capacity = Some(1));
    world.drain("m1", "x");
    world.drain("m2", "x");
    let expected = expect![[r"
        relocate a to m3 (Drained)
        b waits: stays on m2 (x): m1: it is not one of the server's candidates; m2: cordoned: x; m3: 1 is needed of its capacity, 0 is free
    "]];
    check(&mut world, &expected);
    world.carry_out();
    // The place is kept for it while it stops, and while it starts.
    for _ in 0..2 {
        assert!(!world.plan_text().contains("relocate b"), "it would stop and have no place");
        world.dead("a", None);
        world.carry_out();
    }
    assert_eq!((world.at("a").as_deref(), world.at("b").as_deref()), (Some("m3"), Some("m2")));
}

#[test]
fn it_does_not_return_by_itself_to_where_it_failed_lately() {
    let mut world = of(&["m1", "m2"]);
    world.server("a", |spec| {
        spec.candidates = machines(&["m1", "m2"]);
        spec.failback = Failback::AutoAfter(60_000);
        spec.restart.in_place = 0;
    });
    settle(&mut world, &["a"]);
    world.dead("a", Some("exit 1"));
    settle(&mut world, &["a"]);
    assert_eq!(world.at("a").as_deref(), Some("m2"));
    world.now = ms(600_000);
    check(&mut world, &expect![""]);
    world.clock(3_600_001);
    world.plan_text();
    world.now = ms(660_000);
    check(&mut world, &expect!["relocate a to m1 (FailedBack)\n"]);
}

#[test]
fn a_control_script_runs_only_what_is_content_with_it() {
    let mut world = of(&[]);
    let by_ssh = |profile: &mut leaseward_state::machine::MachineProfile, level| {
        profile.labels.insert("manager".into(), "ssh".into());
        profile.fence = level;
    };
    world.machine_with("m2", |profile| by_ssh(profile, FenceLevel::F0));
    world.server("a", |spec| spec.manager = ManagerKind::Ssh);
    world.server("b", |_| ());
    world.server("c", |spec| {
        spec.manager = ManagerKind::Ssh;
        spec.limits.processes = Some(9);
    });
    check(
        &mut world,
        &expect![[r#"
            assign a to m2 (Started)
            b waits: m2: a control script runs it by ssh, and the server does not say manager = "ssh"
            c waits: m2: its control script brings up no addresses, mounts, hooks or limits, and the server needs some
        "#]],
    );
    // An agent on the far side of ssh is an agent.
    world.machine_with("m3", |profile| by_ssh(profile, FenceLevel::F2));
    check(&mut world, &expect!["assign a to m2 (Started)\nassign b to m3 (Started)\nassign c to m3 (Started)\n"]);
}

/// Three machines, `a` on the first one.
fn with_a_on_m1() -> World {
    let mut world = of(&["m1", "m2", "m3"]);
    world.server("a", |spec| spec.candidates = machines(&["m1", "m2", "m3"]));
    settle(&mut world, &["a"]);
    check(&mut world, &expect![""]);
    world
}

#[test]
fn while_a_machine_is_not_heard_the_next_one_makes_ready_and_then_gets_the_server() {
    let mut world = with_a_on_m1();
    world.suspect("m1", true);
    check(&mut world, &expect!["m2 makes ready for a\n"]);
    world.carry_out();
    check(&mut world, &expect![""]);
    // Heard again, and not heard again: anew.
    world.suspect("m1", false);
    check(&mut world, &expect![""]);
    world.suspect("m1", true);
    world.carry_out();
    world.prepared("m2", "a", None);
    world.close("m1");
    check(&mut world, &expect!["a waits: grace: 100 ms are left\nagain in 100 ms\n"]);
    world.now += ms(100);
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Grace(100)\n"]);
    // The machine itself is first, if it is back.
    world.machine_again("m1");
    check(&mut world, &expect!["assign a to m1 (MachineLost) proof Swept\n"]);
}

#[test]
fn a_machine_that_lacks_something_is_the_last_choice_and_one_that_is_ready_the_first() {
    let mut world = with_a_on_m1();
    world.suspect("m1", true);
    world.carry_out();
    world.prepared("m2", "a", Some("there is no program serve"));
    check(&mut world, &expect![""]);
    world.close("m1");
    world.plan_text();
    world.now += ms(100);
    check(&mut world, &expect!["assign a to m3 (MachineLost) proof Grace(100)\n"]);
    world.close("m3");
    check(&mut world, &expect!["assign a to m2 (MachineLost) proof Grace(100)\n"]);

    // The first of the candidates comes back too late: the one that is ready has what it needs.
    let mut world = with_a_on_m1();
    world.close("m2");
    world.suspect("m1", true);
    world.carry_out();
    world.prepared("m3", "a", None);
    world.close("m1");
    world.machine_again("m2");
    world.plan_text();
    world.now += ms(100);
    check(&mut world, &expect!["assign a to m3 (MachineLost) proof Grace(100)\n"]);
}

#[test]
fn nothing_new_goes_to_a_machine_that_is_not_heard_and_nobody_makes_ready_for_what_stays() {
    let mut world = with_a_on_m1();
    world.server("b", |spec| spec.candidates = machines(&["m1"]));
    world.server("c", |spec| {
        spec.candidates = machines(&["m3", "m2"]);
        spec.migrates = false;
    });
    world.suspect("m1", true);
    check(
        &mut world,
        &expect![[r#"
            m2 makes ready for a
            assign c to m3 (Started)
            b waits: m1: its agent was not heard for two renewals; m2: it is not one of the server's candidates; m3: it is not one of the server's candidates
        "#]],
    );
    settle(&mut world, &["c"]);
    world.pause("a", Some(Pause { why: "work".into(), until: None }));
    world.suspect("m1", false);
    world.suspect("m1", true);
    world.suspect("m3", true);
    check(
        &mut world,
        &expect![[r#"
        b waits: m1: its agent was not heard for two renewals; m2: it is not one of the server's candidates; m3: it is not one of the server's candidates
    "#]],
    );
}
