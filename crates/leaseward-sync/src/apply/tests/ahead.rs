//! The next tree that is begun ahead: it saves work, and changes nothing of what comes out.

use std::sync::Mutex;

use super::*;

/// Counts what is done to the disk from now on.
fn count_steps(applier: &mut Applier) -> Arc<Mutex<Vec<Step>>> {
    let steps: Arc<Mutex<Vec<Step>>> = Arc::default();
    let seen = Arc::clone(&steps);
    applier.steps.hook = Some(Box::new(move |step| {
        seen.lock().unwrap().push(step);
        true
    }));
    steps
}

fn stage(applier: &mut Applier, number: u64, version: &Published) {
    applier.stage(number, &version.manifest, &mut |digest| version.give(digest)).unwrap();
}

fn numbered(files: usize, changed: usize) -> Published {
    let files: Vec<(String, String)> = (0..files)
        .map(|i| (format!("d{}/f{i}", i % 5), if i == changed { format!("changed {i}") } else { format!("{i}") }))
        .collect();
    Published::new(&files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>())
}

#[test]
fn an_apply_touches_what_changes_and_nothing_else() {
    let (one, two, three) = (numbered(100, 1), numbered(100, 2), numbered(100, 3));
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &one).unwrap();
    let steps = count_steps(&mut applier);
    stage(&mut applier, 2, &two);
    let did = |step| steps.lock().unwrap().iter().filter(|did| **did == step).count();
    assert_eq!((did(Step::LinkFile), did(Step::MakeDirectory), did(Step::CreateFile)), (0, 0, 2));
    assert_eq!(did(Step::RemoveTree), 2, "the two files that differ");
    let done = applier.switch().unwrap();
    assert_eq!((done.linked, done.written), (98, 2));
    applier.finish().unwrap();
    assert_eq!(did(Step::LinkFile), 100, "the next one is begun");
    assert_eq!(machine.tree(), two.manifest);
    // Nobody's stamp was lost by all that linking.
    steps.lock().unwrap().clear();
    stage(&mut applier, 3, &three);
    assert_eq!((did(Step::LinkFile), did(Step::CreateFile)), (1, 1), "one comes back from the kept tree");
    applier.switch().unwrap();
    assert_eq!(machine.tree(), three.manifest);
}

#[test]
fn a_small_set_is_built_when_it_is_wanted() {
    let machine = Machine::new();
    let mut applier = machine.open();
    applier.ahead_from = 3;
    put(&mut applier, 1, &Published::new(&[("a", "1"), ("b", "1")])).unwrap();
    assert_eq!(machine.siblings(), ["app"]);
    put(&mut applier, 2, &Published::new(&[("a", "1"), ("b", "1"), ("c", "1")])).unwrap();
    assert_eq!(machine.siblings(), [".app.leaseward-next", ".app.leaseward-prev", "app"]);
    drop(applier);
    drop(machine.open());
    assert_eq!(machine.siblings(), [".app.leaseward-prev", "app"], "whoever opens it next begins anew");
}

#[test]
fn paths_may_become_anything_else() {
    let trees: [&[(&str, &str)]; 6] = [
        &[("a", "1"), ("b/c/d", "1"), ("b/e", "1"), ("l", "-> a"), ("same", "s")],
        &[("a/b", "1"), ("b/c", "1"), ("b/e", "1"), ("l", "-> same"), ("same", "s")],
        &[("a", "-> same"), ("b", "1"), ("l/x", "1"), ("same", "s")],
        &[("a-b", "1"), ("a/b/c", "1"), ("b", "-> a"), ("same/s", "s")],
        &[("b/c/d", "1"), ("b/e", "-> c"), ("l", "1"), ("same", "s")],
        &[],
    ];
    for from in trees {
        for to in trees {
            let machine = Machine::new();
            let mut applier = machine.open();
            let (one, two) = (Published::new(from), Published::new(to));
            put(&mut applier, 1, &one).unwrap();
            put(&mut applier, 2, &two).unwrap();
            assert_eq!(machine.tree(), two.manifest, "{from:?} to {to:?}");
            assert_eq!(applier.verify().unwrap(), vec![]);
            put(&mut applier, 3, &one).unwrap();
            assert_eq!(machine.tree(), one.manifest, "{to:?} back to {from:?}");
        }
    }
}

#[test]
fn a_directory_may_get_another_mode_and_what_is_in_it_stays() {
    let source = tempfile::tempdir().unwrap();
    write(source.path(), &[("d/a", "1"), ("d/b", "1"), ("d/sub/c", "1")]);
    let mode = |path: &str, mode| fs::set_permissions(source.path().join(path), fs::Permissions::from_mode(mode));
    mode("d", 0o555).unwrap();
    mode("d/sub", 0o555).unwrap();
    let one = Published::of(source.path());
    mode("d", 0o755).unwrap();
    fs::write(source.path().join("d/a"), "2").unwrap();
    let two = Published::of(source.path());
    mode("d/sub", 0o755).unwrap();
    fs::write(source.path().join("d/sub/c"), "3").unwrap();
    mode("d/sub", 0o555).unwrap();
    let three = Published::of(source.path());
    let machine = Machine::new();
    let mut applier = machine.open();
    for (number, version) in [(1, &one), (2, &two), (3, &three), (4, &one)] {
        put(&mut applier, number, version).unwrap();
        assert_eq!(machine.tree(), version.manifest, "v{number}");
    }
}

#[test]
fn a_tree_that_somebody_changed_meanwhile_is_not_made_live() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &numbered(10, 1)).unwrap();
    let begun = machine.temp.path().join("etc/.app.leaseward-next/d0/f5");
    fs::remove_file(&begun).unwrap();
    fs::write(&begun, "5").unwrap();
    let two = numbered(10, 2);
    stage(&mut applier, 2, &two);
    assert_eq!(applier.switch().unwrap_err().code(), "LW0807");
    assert_eq!(machine.tree(), numbered(10, 1).manifest);
    put(&mut applier, 2, &two).unwrap();
    assert_eq!(machine.tree(), two.manifest);
}

/// Something that somebody does to a file that stays, so that its length and mtime say nothing of it.
type ByHand = fn(&Path);

#[test]
fn what_somebody_did_to_a_file_that_stays_is_found_before_the_switch_and_put_right_at_once() {
    fn hidden(path: &Path) {
        let times = fs::metadata(path).unwrap();
        fs::write(path, "6").unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(times.modified().unwrap()).unwrap();
    }
    fn opened_to_all(path: &Path) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    }
    fn replaced(path: &Path) {
        fs::remove_file(path).unwrap();
        fs::write(path, "5").unwrap();
    }
    fn replaced_by_another(path: &Path) {
        fs::remove_file(path).unwrap();
        fs::write(path, "by hand").unwrap();
    }
    let tree = ["etc/app/d0/f5", "etc/.app.leaseward-next/d0/f5"];
    let cases: [(&str, ByHand, &str); 5] = [
        ("edited", hidden, tree[0]),
        ("replaced", replaced_by_another, tree[0]),
        ("chmod", opened_to_all, tree[0]),
        ("chmod in the tree that was begun", opened_to_all, tree[1]),
        ("replaced in the tree that was begun", replaced, tree[1]),
    ];
    for (what, by_hand, path) in cases {
        let machine = Machine::new();
        let mut applier = machine.open();
        put(&mut applier, 1, &numbered(10, 1)).unwrap();
        by_hand(&machine.temp.path().join(path));
        let two = numbered(10, 2);
        stage(&mut applier, 2, &two);
        assert_eq!(applier.switch().unwrap_err().code(), "LW0807", "{what}");
        assert_eq!(applier.live().unwrap().version, 1, "{what}");
        put(&mut applier, 2, &two).unwrap();
        assert_eq!(machine.tree(), two.manifest, "{what}");
        assert_eq!(applier.verify().unwrap(), vec![], "{what}");
        // And whoever does not look twice comes to the same.
        by_hand(&machine.temp.path().join(path));
        put(&mut applier, 3, &numbered(10, 3)).unwrap();
        assert_eq!(machine.tree(), numbered(10, 3).manifest, "{what}");
    }
}

/// Puts another content of the same length there, with the old mtime.
fn hidden(path: &Path) {
    let times = fs::metadata(path).unwrap();
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, text.replace(|c: char| c.is_ascii_alphanumeric(), "x")).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(times.modified().unwrap()).unwrap();
}

fn opened_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

fn lead_elsewhere(path: &Path) {
    fs::remove_file(path).unwrap();
    symlink("elsewhere", path).unwrap();
}

#[test]
fn what_is_staged_is_looked_at_however_long_it_waited() {
    let files = |number| [("d/f", number), ("d/stays", "s"), ("e/stays", "e"), ("link", "-> d/f")];
    let cases: [(&str, ByHand, &str); 7] = [
        ("edited", hidden, "app/d/stays"),
        ("chmod", opened_to_all, "app/d/stays"),
        ("edited in what is staged", hidden, ".app.leaseward-next/d/f"),
        ("chmod in what is staged", opened_to_all, ".app.leaseward-next/d/f"),
        ("chmod of a directory in what is staged", opened_to_all, ".app.leaseward-next/e"),
        ("another file in what is staged", lead_elsewhere, ".app.leaseward-next/d/f"),
        ("another link in what is staged", lead_elsewhere, ".app.leaseward-next/link"),
    ];
    for begun_ahead in [true, false] {
        for (what, by_hand, path) in cases {
            if path.ends_with("/e") && !begun_ahead {
                // It was made for this tree.
                continue;
            }
            let machine = Machine::new();
            let mut applier = machine.open();
            applier.ahead_from = if begun_ahead { 0 } else { usize::MAX };
            put(&mut applier, 1, &Published::new(&files("1"))).unwrap();
            let two = Published::new(&files("2"));
            stage(&mut applier, 2, &two);
            by_hand(&machine.temp.path().join("etc").join(path));
            assert_eq!(applier.switch().unwrap_err().code(), "LW0807", "{what}, begun ahead: {begun_ahead}");
            assert_eq!(applier.live().unwrap().version, 1, "{what}");
            put(&mut applier, 2, &two).unwrap();
            assert_eq!(machine.tree(), two.manifest, "{what}");
            assert_eq!(applier.verify().unwrap(), vec![], "{what}");
        }
    }
}

#[test]
fn a_plan_may_be_old_when_it_is_carried_out() {
    let files = |number| [("f", number), ("stays", "s")];
    for (what, by_hand) in [("edited", hidden as ByHand), ("chmod", opened_to_all)] {
        for begun_ahead in [true, false] {
            let machine = Machine::new();
            let mut applier = machine.open();
            applier.ahead_from = if begun_ahead { 0 } else { usize::MAX };
            put(&mut applier, 1, &Published::new(&files("1"))).unwrap();
            let two = Published::new(&files("2"));
            let name = digest_of(&crate::manifest::encode(&two.manifest));
            applier.plan_for(name, &two.manifest, &|_| false).unwrap();
            by_hand(&machine.path("stays"));
            put(&mut applier, 2, &two).unwrap();
            assert_eq!(machine.tree(), two.manifest, "{what}, begun ahead: {begun_ahead}");
        }
    }
}

#[test]
fn a_plan_from_before_the_next_tree_was_begun_is_not_trusted_either() {
    for by_hand in [hidden as ByHand, opened_to_all] {
        let machine = Machine::new();
        let mut applier = machine.open();
        put(&mut applier, 1, &numbered(10, 1)).unwrap();
        stage(&mut applier, 2, &numbered(10, 2));
        applier.switch().unwrap();
        let three = numbered(10, 3);
        let name = digest_of(&crate::manifest::encode(&three.manifest));
        applier.plan_for(name, &three.manifest, &|_| false).unwrap();
        // At the end of what the switch left to be done: the tree that is begun has the file already.
        let (stays, mut once) = (machine.path("d0/f5"), true);
        applier.steps.hook = Some(Box::new(move |step| {
            if step == Step::SaveRecord && std::mem::take(&mut once) {
                by_hand(&stays);
            }
            true
        }));
        put(&mut applier, 3, &three).unwrap();
        assert_eq!(machine.tree(), three.manifest);
    }
}

#[test]
fn another_tree_of_the_same_number_is_staged_anew() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let (one, two) = (numbered(10, 1), numbered(10, 2));
    stage(&mut applier, 1, &one);
    stage(&mut applier, 1, &two);
    applier.switch().unwrap();
    assert_eq!(machine.tree(), two.manifest, "as when a member's own words changed");
}

#[test]
fn what_is_staged_for_another_owner_is_forgotten() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let (one, two) = (numbered(10, 1), numbered(10, 2));
    put(&mut applier, 1, &one).unwrap();
    stage(&mut applier, 2, &two);
    applier.keep(Patterns::default(), None);
    assert_eq!(applier.staged().unwrap().0.version, 2, "nothing changed");
    let me = fs::metadata(machine.temp.path()).unwrap();
    let owner = Owner { user: me.uid(), group: me.gid() };
    applier.keep(Patterns::default(), Some(owner));
    assert_eq!((applier.staged(), machine.siblings()), (None, vec!["app".to_owned()]));
    put(&mut applier, 2, &two).unwrap();
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn when_the_tree_that_was_begun_is_gone_every_file_is_looked_at() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &numbered(10, 1)).unwrap();
    let two = numbered(10, 2);
    let name = digest_of(&crate::manifest::encode(&two.manifest));
    applier.plan_for(name, &two.manifest, &|_| false).unwrap();
    fs::set_permissions(machine.path("d0/f5"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::remove_dir_all(machine.temp.path().join("etc/.app.leaseward-next")).unwrap();
    stage(&mut applier, 2, &two);
    applier.switch().unwrap();
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn an_edit_in_place_is_in_both_trees_and_in_no_new_version() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &numbered(10, 1)).unwrap();
    fs::write(machine.path("d0/f5"), "by hand").unwrap();
    let two = numbered(10, 2);
    put(&mut applier, 2, &two).unwrap();
    assert_eq!(machine.tree(), two.manifest);
    assert_eq!(applier.verify().unwrap(), vec![]);
}

#[test]
fn an_edit_while_the_next_tree_is_begun_is_found_however_well_hidden() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &Published::new(&[("a", "1"), ("keep", "good")])).unwrap();
    let two = Published::new(&[("a", "2"), ("keep", "good")]);
    stage(&mut applier, 2, &two);
    applier.switch().unwrap();
    let keep = machine.path("keep");
    applier.steps.hook = Some(Box::new(move |step| {
        if step == Step::MakeRoot {
            let times = fs::metadata(&keep).unwrap();
            fs::write(&keep, "evil").unwrap();
            let file = fs::File::options().write(true).open(&keep).unwrap();
            file.set_modified(times.modified().unwrap()).unwrap();
        }
        true
    }));
    applier.finish().unwrap();
    let drifts = applier.scan().unwrap();
    assert_eq!(drifts.iter().map(|drift| drift.path.as_str()).collect::<Vec<_>>(), ["keep"]);
}
