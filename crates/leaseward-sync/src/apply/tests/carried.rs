//! Stories of what programs write themselves, at the worst moment of a switch.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

fn ignoring(applier: &mut Applier) {
    let patterns = ["**/*.db", "cache", "now"].map(str::to_owned);
    applier.keep(Patterns::new(&patterns).unwrap(), None);
}

/// Writes as careful programs do: beside the place, and then over it.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("db-new");
    fs::write(&new, content).unwrap();
    fs::rename(new, path).unwrap();
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// A machine with version 1 and what a program wrote beside it, and version 2.
fn machine() -> (Machine, Published) {
    let machine = Machine::new();
    let mut applier = machine.open();
    ignoring(&mut applier);
    put(&mut applier, 1, &Published::new(&[("a", "1"), ("sub/b", "1")])).unwrap();
    let files =
        [("kept.db", "old"), ("left.db", "old"), ("sub/x.db", "old"), ("cache/deep/y", "old"), ("now", "-> old")];
    write(&machine.dirs.target, &files);
    write(
        &machine.dirs.target,
        &[("cache/dir/z", "old"), ("cache/file", "old"), ("late.db", "old"), ("gone.db", "old")],
    );
    (machine, Published::new(&[("a", "2"), ("sub/b", "1")]))
}

/// What a program does between the first look and the switch.
fn work(target: &Path) {
    for path in ["kept.db", "sub/x.db", "cache/deep/y", "late.db"] {
        replace(&target.join(path), "new");
    }
    fs::remove_file(target.join("gone.db")).unwrap();
    fs::remove_file(target.join("now")).unwrap();
    symlink("new", target.join("now")).unwrap();
    fs::remove_dir_all(target.join("cache/dir")).unwrap();
    fs::write(target.join("cache/dir"), "a file").unwrap();
    fs::remove_file(target.join("cache/file")).unwrap();
    write(target, &[("cache/file/w", "a directory"), ("made.db", "new"), ("cache/made/v", "new")]);
}

#[test]
fn what_programs_do_to_their_files_during_a_switch_is_not_undone() {
    let (machine, two) = machine();
    let (target, kept) = (machine.dirs.target.clone(), inode(&machine.path("left.db")));
    let done = AtomicBool::new(false);
    let mut applier = machine.open();
    ignoring(&mut applier);
    applier.steps.hook = Some(Box::new(move |step| {
        if step == Step::Switch {
            work(&target);
        }
        if step == Step::Carry && !done.swap(true, Ordering::Relaxed) {
            // The new tree is live: what is done there comes last.
            replace(&target.join("late.db"), "last");
        }
        true
    }));
    put(&mut applier, 2, &two).unwrap();
    for path in ["kept.db", "sub/x.db", "cache/deep/y", "made.db", "cache/made/v"] {
        assert_eq!(read(machine.path(path)), "new", "{path}");
    }
    assert_eq!((read(machine.path("left.db")), inode(&machine.path("left.db"))), ("old".to_owned(), kept));
    assert_eq!((read(machine.path("late.db")), machine.path("gone.db").exists()), ("last".to_owned(), false));
    assert_eq!(fs::read_link(machine.path("now")).unwrap(), Path::new("new"));
    assert_eq!(read(machine.path("cache/dir")), "a file");
    assert_eq!(read(machine.path("cache/file/w")), "a directory");
    assert_eq!(applier.verify().unwrap(), vec![]);
    assert!(!machine.siblings().contains(&".app.leaseward-gone".to_owned()), "{:?}", machine.siblings());
}

#[test]
fn a_program_that_comes_in_between_has_the_last_word() {
    // The step at which it comes; before each of them its file is another one.
    for nth in 0.. {
        let (machine, two) = machine();
        let (target, count) = (machine.dirs.target.clone(), std::sync::Arc::new(AtomicUsize::new(0)));
        let mut applier = machine.open();
        ignoring(&mut applier);
        let counted = std::sync::Arc::clone(&count);
        applier.steps.hook = Some(Box::new(move |step| {
            if step == Step::Switch {
                replace(&target.join("kept.db"), "new");
                fs::remove_file(target.join("gone.db")).unwrap();
            }
            if step == Step::Carry && counted.fetch_add(1, Ordering::Relaxed) == nth {
                replace(&target.join("kept.db"), "last");
                replace(&target.join("gone.db"), "last");
            }
            true
        }));
        put(&mut applier, 2, &two).unwrap();
        if count.load(Ordering::Relaxed) <= nth {
            assert!(nth > 3, "the hook was not called");
            assert_eq!((read(machine.path("kept.db")), machine.path("gone.db").exists()), ("new".to_owned(), false));
            return;
        }
        assert_eq!(read(machine.path("kept.db")), "last", "step {nth}");
        assert_eq!(read(machine.path("gone.db")), "last", "step {nth}");
    }
}

#[test]
fn a_death_during_it_leaves_whole_files_and_nothing_beside_the_trees() {
    for nth in 0.. {
        let (machine, two) = machine();
        let (target, mut count) = (machine.dirs.target.clone(), 0);
        let mut applier = machine.open();
        ignoring(&mut applier);
        applier.steps.hook = Some(Box::new(move |step| {
            if step == Step::Switch {
                work(&target);
            }
            count += usize::from(step == Step::Carry);
            step != Step::Carry || count <= nth
        }));
        let outcome = put(&mut applier, 2, &two);
        drop(applier);
        if outcome.is_ok() {
            assert!(nth > 10, "the hook was not called");
            return;
        }
        let mut applier = machine.open();
        ignoring(&mut applier);
        assert_eq!((applier.live().unwrap().version, applier.previous().unwrap().version), (2, 1), "step {nth}");
        assert_eq!(applier.verify().unwrap(), vec![], "step {nth}");
        for path in ["kept.db", "sub/x.db", "cache/deep/y", "late.db", "left.db"] {
            assert!(["old", "new"].contains(&read(machine.path(path)).as_str()), "step {nth}: {path}");
        }
        assert_eq!(machine.siblings(), [".app.leaseward-prev", "app"], "step {nth}");
    }
}

#[test]
fn directories_of_programs_keep_all_of_their_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let (machine, two) = machine();
    let modes = [("cache", 0o2775), ("cache/deep", 0o1777), ("sub", 0o755)];
    for (path, mode) in &modes[..2] {
        fs::set_permissions(machine.path(path), fs::Permissions::from_mode(*mode)).unwrap();
    }
    let mut applier = machine.open();
    ignoring(&mut applier);
    put(&mut applier, 2, &two).unwrap();
    for (path, mode) in modes {
        assert_eq!(fs::metadata(machine.path(path)).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
}

/// Links are refused while this lives.
struct NoLinks;

impl NoLinks {
    fn now() -> Self {
        crate::dir::failing::LINKS.set(true);
        Self
    }
}

impl Drop for NoLinks {
    fn drop(&mut self) {
        crate::dir::failing::LINKS.set(false);
    }
}

#[test]
fn what_cannot_be_linked_is_moved_once_the_switch_is_durable() {
    let (machine, two) = machine();
    let (target, kept) = (machine.dirs.target.clone(), inode(&machine.path("left.db")));
    let _no_links = NoLinks::now();
    let mut applier = machine.open();
    ignoring(&mut applier);
    // A switch that is taken back takes nothing with it.
    let mut syncs = 0;
    loop {
        assert!(syncs < 100, "no sync was the last one before the switch was durable");
        crate::dir::failing::after(syncs);
        let outcome = put(&mut applier, 2, &two);
        if outcome.is_ok() {
            break;
        }
        for path in ["kept.db", "left.db", "sub/x.db", "cache/deep/y"] {
            assert_eq!(read(target.join(path)), "old", "{path} after sync {syncs}");
        }
        syncs += 1;
    }
    crate::dir::failing::after(usize::MAX);
    assert!(syncs > 2, "{syncs} syncs are too few to mean anything");
    for path in ["kept.db", "left.db", "sub/x.db", "cache/deep/y", "cache/dir/z"] {
        assert_eq!(read(machine.path(path)), "old", "{path}");
    }
    assert_eq!(inode(&machine.path("left.db")), kept, "a program that has it open goes on with it");
    assert_eq!((applier.live().unwrap().version, applier.verify().unwrap()), (2, vec![]));
}

#[test]
fn a_newer_file_that_cannot_be_linked_takes_the_place_of_the_one_that_was() {
    let (machine, two) = machine();
    let target = machine.dirs.target.clone();
    let mut applier = machine.open();
    ignoring(&mut applier);
    applier.steps.hook = Some(Box::new(move |step| {
        if step == Step::Switch {
            replace(&target.join("kept.db"), "new");
            crate::dir::failing::LINKS.set(true);
        }
        true
    }));
    put(&mut applier, 2, &two).unwrap();
    drop(NoLinks::now());
    assert_eq!((read(machine.path("kept.db")), read(machine.path("left.db"))), ("new".to_owned(), "old".to_owned()));
    assert_eq!(applier.verify().unwrap(), vec![]);
}
