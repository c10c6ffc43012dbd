//! Syncs of directories and of the file system that fail, each of them once.

use super::*;
use crate::dir::failing;

/// Begins anew with `before` until no sync is left that could fail; returns how many failed.
fn each_fails(before: Option<&Published>, wanted: &Published) -> usize {
    let mut is_after = false;
    for fails in 0.. {
        let machine = Machine::new();
        failing::after(usize::MAX);
        let mut applier = machine.open();
        if let Some(before) = before {
            put(&mut applier, 1, before).unwrap();
        }
        failing::after(fails);
        let outcome = put(&mut applier, 2, wanted);
        if failing::count() <= fails {
            assert!(outcome.is_ok() && fails > 0, "{outcome:?}");
            return fails;
        }
        if outcome.is_ok() {
            // It was of what a recovery would do as well, after the switch: what is live is durable.
            is_after = true;
            assert_eq!(applier.live().unwrap().version, 2, "sync {fails}");
            assert_eq!(machine.tree(), wanted.manifest, "sync {fails}");
            continue;
        }
        assert!(!is_after, "a sync before this one failed, and nobody noticed");
        assert_eq!(applier.live().map(|live| live.version), before.map(|_| 1), "sync {fails}: it is not durable");
        match before {
            Some(before) => assert_eq!(machine.tree(), before.manifest, "sync {fails}: the old version is live"),
            None => assert!(!machine.dirs.target.exists(), "sync {fails}: nothing is live"),
        }
        // It is done again, and not believed.
        failing::after(usize::MAX);
        put(&mut applier, 2, wanted).unwrap();
        assert!(failing::count() > 1, "sync {fails}: another one proves nothing of what was there");
        assert_eq!((applier.live().unwrap().version, machine.tree()), (2, wanted.manifest.clone()), "sync {fails}");
        assert_eq!(applier.verify().unwrap(), vec![], "sync {fails}");
        drop(applier);
        assert_eq!(machine.open().live().unwrap().version, 2, "sync {fails}");
    }
    unreachable!("some sync is the last one");
}

#[test]
fn a_version_whose_names_cannot_be_made_durable_is_not_live_and_the_old_one_is() {
    let few = |n: &str| Published::new(&[("a", n), ("sub/b", n), ("same", "same")]);
    let many = |n: &str| {
        let files: Vec<(String, String)> = (0..200).map(|i| (format!("d{}/f{i}", i % 7), format!("{n} {i}"))).collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        Published::new(&files)
    };
    // Each file alone, and the whole file system; first versions, and later ones.
    let failed = [
        each_fails(None, &few("2")),
        each_fails(Some(&few("1")), &few("2")),
        each_fails(None, &many("2")),
        each_fails(Some(&many("1")), &many("2")),
    ];
    assert!(failed.iter().all(|failed| *failed >= 2), "{failed:?}");
}

#[test]
fn a_state_file_whose_name_is_not_durable_is_made_again() {
    let machine = Machine::new();
    failing::after(0);
    Applier::open(&machine.dirs).unwrap_err();
    assert!(!machine.dirs.state_dir.join("state").exists());
    failing::after(usize::MAX);
    drop(Applier::open(&machine.dirs).unwrap());
    // And one that somebody left who died before it was.
    failing::after(0);
    Applier::open(&machine.dirs).unwrap_err();
}
