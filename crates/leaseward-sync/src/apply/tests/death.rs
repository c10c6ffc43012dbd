//! Death at every step of an apply, and at every step of the recovery from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// Returns a hook that dies at step `n`, from 0, and the count of steps begun.
fn die_at(n: usize) -> (impl FnMut(Step) -> bool + Send + 'static, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    (move |_| counted.fetch_add(1, Ordering::Relaxed) != n, count)
}

struct Versions {
    zero: Published,
    one: Published,
    two: Published,
}

fn versions() -> Versions {
    let large = |seed: u32| (0..60_000).map(|i| format!("{} ", i ^ seed)).collect::<String>();
    let (old, new) = (large(0), large(1 << 20));
    Versions {
        zero: Published::new(&[("a", "0"), ("keep", "same"), ("sub/b", "0")]),
        one: Published::new(&[("a", "1"), ("keep", "same"), ("sub/b", "1"), ("sub/gone", "x"), ("big", &old)]),
        two: Published::new(&[("a", "2"), ("keep", "same"), ("sub/b", "2"), ("new/c", "-> ../a"), ("big", &new)]),
    }
}

/// Recovers, dying at the first step, then at the second, and so on; after each death the live tree must be whole.
fn recover_dying(machine: &Machine, whole: impl Fn()) -> Applier {
    for n in 0..1000 {
        let (hook, _) = die_at(n);
        match machine.open_with(hook) {
            Ok(applier) => {
                drop(applier);
                return machine.open();
            }
            Err(error) => assert!(matches!(error, Error::Killed), "{error}"),
        }
        whole();
    }
    panic!("the recovery never ended");
}

#[test]
fn the_live_tree_is_the_old_or_the_new_one_after_death_at_every_step() {
    let versions = versions();
    let (mut olds, mut news) = (0, 0);
    for n in 0.. {
        let machine = Machine::new();
        let mut applier = machine.open();
        put(&mut applier, 10, &versions.zero).unwrap();
        put(&mut applier, 11, &versions.one).unwrap();
        let (hook, _) = die_at(n);
        applier.steps.hook = Some(Box::new(hook));
        let outcome = put(&mut applier, 12, &versions.two);
        drop(applier);
        if outcome.is_ok() {
            assert_eq!(machine.tree(), versions.two.manifest);
            break;
        }
        assert!(matches!(outcome, Err(Error::Killed)), "step {n}: {outcome:?}");
        let whole = || {
            let tree = machine.tree();
            assert!(tree == versions.one.manifest || tree == versions.two.manifest, "step {n}: a mixed tree");
        };
        whole();
        let mut applier = recover_dying(&machine, whole);
        match applier.live().map(|live| live.version) {
            Some(11) => {
                olds += 1;
                assert_eq!(machine.tree(), versions.one.manifest, "step {n}");
            }
            Some(12) => {
                news += 1;
                assert_eq!(machine.tree(), versions.two.manifest, "step {n}");
                assert_eq!(applier.previous().unwrap().version, 11, "step {n}");
            }
            other => panic!("step {n}: live is {other:?}"),
        }
        if applier.previous().is_none() {
            assert_eq!(machine.siblings(), ["app"], "step {n}: something was left behind");
        } else {
            assert_eq!(machine.siblings(), [".app.leaseward-prev", "app"], "step {n}: something was left behind");
        }
        assert_eq!(applier.verify().unwrap(), vec![], "step {n}");
        put(&mut applier, 12, &versions.two).unwrap();
        assert_eq!(machine.tree(), versions.two.manifest, "step {n}");
        // The kept tree is whole, too: going back needs nothing from anywhere.
        if applier.previous().is_some() {
            let back = applier.apply(13, &versions.one.manifest, &mut |digest| Err(Error::BlobMissing { digest }));
            back.unwrap();
            assert_eq!(machine.tree(), versions.one.manifest, "step {n}");
        }
    }
    assert!(olds > 20 && news > 5, "{olds} deaths before and {news} after the switch are too few to mean anything");
}

#[test]
fn the_first_apply_leaves_nothing_or_everything() {
    let versions = versions();
    for n in 0.. {
        let machine = Machine::new();
        let (hook, count) = die_at(n);
        let outcome = machine.open_with(hook).and_then(|mut applier| put(&mut applier, 1, &versions.one));
        let whole = || assert!(!machine.dirs.target.exists() || machine.tree() == versions.one.manifest, "step {n}");
        whole();
        if outcome.is_ok() {
            assert!(count.load(Ordering::Relaxed) > 15, "the hook was not called");
            break;
        }
        let mut applier = recover_dying(&machine, whole);
        assert_eq!(applier.live().is_some(), machine.dirs.target.exists(), "step {n}");
        put(&mut applier, 1, &versions.one).unwrap();
        drop(applier);
        drop(machine.open());
        assert_eq!(machine.siblings(), ["app"], "step {n}");
    }
}

#[test]
fn a_lost_state_file_costs_no_file() {
    let versions = versions();
    let machine = Machine::new();
    put(&mut machine.open(), 1, &versions.one).unwrap();
    fs::write(machine.dirs.state_dir.join("state"), "garbage").unwrap();
    let mut applier = machine.open();
    assert_eq!(applier.live(), None);
    assert_eq!(put(&mut applier, 2, &versions.two).unwrap_err().code(), "LW0805", "it could be anybody's");
    assert_eq!(machine.tree(), versions.one.manifest);
    put(&mut applier, 1, &versions.one).unwrap();
    put(&mut applier, 2, &versions.two).unwrap();
}

#[test]
fn a_tree_that_was_restored_from_a_backup_is_known_by_its_content() {
    let versions = versions();
    let machine = Machine::new();
    put(&mut machine.open(), 1, &versions.one).unwrap();
    let copy = machine.temp.path().join("etc/copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(&machine.dirs.target).arg(&copy).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&machine.dirs.target).unwrap();
    fs::rename(&copy, &machine.dirs.target).unwrap();
    let mut applier = machine.open();
    assert_eq!(applier.live().unwrap().version, 1);
    put(&mut applier, 2, &versions.two).unwrap();
    assert_eq!(machine.tree(), versions.two.manifest);
}
