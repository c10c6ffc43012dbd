//! What is refused before it is committed: what could run nowhere, and what leaves no room for a loss.

use leaseward_state::server::FenceLevel;

use crate::world::{World, machines};

fn sized(machines: &[(&str, u32)]) -> World {
    let mut world = World::default();
    for (name, capacity) in machines {
        world.machine_with(name, |profile| profile.capacity = Some(*capacity));
    }
    world
}

#[test]
fn what_no_machine_could_ever_run_is_refused_with_what_each_lacks() {
    let mut world = World::default();
    assert_eq!(world.misfit("a", |spec| spec.candidates = machines(&["m1"])), None, "servers may be defined first");
    world.machine("m1", FenceLevel::F1);
    world.machine_with("m2", |profile| profile.capacity = Some(2));
    assert_eq!(world.misfit("a", |_| ()), None);
    assert_eq!(
        world.misfit("a", |spec| spec.requires_fence = FenceLevel::F3).expect("refused"),
        "no machine could ever run it: m1: its fence level is F1; F3 is required; m2: its fence level is F2; F3 is required"
    );
    assert_eq!(
        world.misfit("a", |spec| spec.candidates = machines(&["m7", "m8"])).expect("refused"),
        "no machine could ever run it: m7: the cluster does not know it; m8: the cluster does not know it"
    );
    let too_large = |spec: &mut leaseward_state::server::ServerSpec| {
        spec.weight = 3;
        spec.candidates = machines(&["m2"]);
    };
    assert_eq!(
        world.misfit("a", too_large).expect("refused"),
        "no machine could ever run it: m2: 3 is needed of its capacity, 2 is free"
    );
    let labelled =
        |spec: &mut leaseward_state::server::ServerSpec| drop(spec.labels.insert("gpu".into(), "yes".into()));
    assert!(world.misfit("a", labelled).expect("refused").contains("label gpu=yes is required, it has none"));
    // One that could is enough, and one that is away may come back.
    assert_eq!(world.misfit("a", |spec| spec.candidates = machines(&["m7", "m2"])), None);
    world.close("m2");
    assert_eq!(world.misfit("a", |spec| spec.candidates = machines(&["m2"])), None);
}

#[test]
fn the_others_must_be_able_to_carry_the_loss_of_any_machine() {
    let mut world = sized(&[("m1", 4), ("m2", 4), ("m3", 2)]);
    let weight = |weight: u32| move |spec: &mut leaseward_state::server::ServerSpec| spec.weight = weight;
    assert_eq!(world.misfit("a", weight(4)), None);
    world.server("a", weight(4));
    assert_eq!(world.misfit("b", weight(2)), None, "6 are left without m1");
    // m3 could not take it, so it is not counted.
    assert_eq!(
        world.misfit("b", weight(3)).expect("refused"),
        "`weight`: if m2 were lost, the servers that can go nowhere else would need 7, and the other machines have 4"
    );
    // The same server again, and smaller, is no new load.
    world.server("b", weight(2));
    assert_eq!(world.misfit("b", weight(1)), None);
    // What does not migrate is not carried, and what may go elsewhere too is not bound here.
    assert_eq!(
        world.misfit("c", |spec| {
            spec.weight = 3;
            spec.migrates = false;
        }),
        None
    );
    world.machine("m4", FenceLevel::F2);
    assert_eq!(world.misfit("c", weight(3)), None, "m4 has no bound");
    // Within its own candidates it counts those that can go nowhere else only.
    let pinned = |weight: u32| {
        move |spec: &mut leaseward_state::server::ServerSpec| {
            spec.weight = weight;
            spec.candidates = machines(&["m1", "m2"]);
        }
    };
    assert_eq!(world.misfit("c", pinned(4)), None);
    world.server("c", pinned(4));
    assert!(world.misfit("d", pinned(1)).is_some());
    // Where the promise is broken already, one more is not refused for it.
    world.server("d", pinned(1));
    assert_eq!(world.misfit("e", pinned(1)), None);
}

#[test]
fn one_machine_alone_promises_nothing() {
    let world = sized(&[("m1", 4)]);
    assert_eq!(world.misfit("a", |spec| spec.weight = 4), None);
}
