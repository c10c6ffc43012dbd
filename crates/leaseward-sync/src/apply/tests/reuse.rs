//! What is linked, what is written anew, and what is fetched.

use super::*;

/// Applies with a source that gives nothing.
fn offline(applier: &mut Applier, number: u64, version: &Published) -> Result<Applied> {
    applier.apply(number, &version.manifest, &mut |digest| Err(Error::BlobMissing { digest }))
}

#[test]
fn unchanged_files_keep_their_inode_and_a_way_back_needs_no_source() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let (one, two) = (Published::new(&[("a", "1"), ("keep", "k")]), Published::new(&[("a", "2"), ("keep", "k")]));
    put(&mut applier, 1, &one).unwrap();
    let (a, keep) = (inode(&machine.path("a")), inode(&machine.path("keep")));
    assert_eq!(put(&mut applier, 2, &two).unwrap(), Applied { linked: 1, written: 1, bytes: 1 });
    assert_eq!(inode(&machine.path("keep")), keep);
    assert_ne!(inode(&machine.path("a")), a);
    assert_eq!(applier.previous().unwrap().version, 1);
    assert_eq!(offline(&mut applier, 3, &one).unwrap().linked, 2);
    assert_eq!(inode(&machine.path("a")), a, "the kept file came back");
    assert_eq!(machine.tree(), one.manifest);
}

#[test]
fn a_stamp_that_still_fits_spares_the_reading() {
    let machine = Machine::new();
    put(&mut machine.open(), 1, &Published::new(&[("a", "1")])).unwrap();
    let applier = machine.open();
    let lender = applier.lender(&applier.slots.state().live, &applier.names.live).unwrap().unwrap();
    let stat = applier.parent.child("app").unwrap().stat("a").unwrap().unwrap();
    assert_eq!(record::Stamp::of(&stat), lender.record.stamps[0]);
}

#[test]
fn stamps_still_fit_after_an_older_tree_with_the_same_inodes_was_removed() {
    let machine = Machine::new();
    let mut applier = machine.open();
    for (number, text) in [(1, "1"), (2, "2"), (3, "3")] {
        put(&mut applier, number, &Published::new(&[("a", text), ("d/keep", "k"), ("keep", "k2")])).unwrap();
    }
    // As the next process reads them.
    drop(applier);
    let applier = machine.open();
    let record = applier.record(&applier.slots.state().live.unwrap()).unwrap();
    let root = applier.parent.child("app").unwrap();
    for (entry, stamp) in record.manifest.entries.iter().zip(&record.stamps) {
        if matches!(entry.node, ManifestNode::File { .. }) {
            let stat = rustix::fs::fstat(root.file(&entry.path).unwrap()).unwrap();
            assert_eq!(record::Stamp::of(&stat), *stamp, "{} would be read", entry.path);
        }
    }
}

#[test]
fn an_edit_between_the_switch_and_what_is_left_to_do_is_found_however_well_hidden() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &Published::new(&[("a", "1"), ("keep", "good")])).unwrap();
    put(&mut applier, 2, &Published::new(&[("a", "2"), ("keep", "good")])).unwrap();
    let three = Published::new(&[("a", "3"), ("keep", "good")]);
    applier.stage(3, &three.manifest, &mut |digest| three.give(digest)).unwrap();
    applier.switch().unwrap();
    let times = fs::metadata(machine.path("keep")).unwrap();
    fs::write(machine.path("keep"), "evil").unwrap();
    let file = fs::File::options().write(true).open(machine.path("keep")).unwrap();
    file.set_modified(times.modified().unwrap()).unwrap();
    applier.finish().unwrap();
    let drifts = applier.scan().unwrap();
    assert_eq!(drifts.iter().map(|drift| drift.path.as_str()).collect::<Vec<_>>(), ["keep"]);
}

#[test]
fn a_file_that_somebody_edited_in_place_is_not_reused() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let one = Published::new(&[("a", "good"), ("b", "1")]);
    put(&mut applier, 1, &one).unwrap();
    let times = fs::metadata(machine.path("a")).unwrap();
    fs::write(machine.path("a"), "evil").unwrap();
    // Same size, and the edit is hidden as well as an editor can.
    let file = fs::File::options().write(true).open(machine.path("a")).unwrap();
    file.set_modified(times.modified().unwrap()).unwrap();
    let edited = inode(&machine.path("a"));
    let two = Published::new(&[("a", "good"), ("b", "2")]);
    assert_eq!(put(&mut applier, 2, &two).unwrap().linked, 0);
    assert_ne!(inode(&machine.path("a")), edited);
    assert_eq!(fs::read_to_string(machine.path("a")).unwrap(), "good");
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn another_mode_makes_a_fresh_inode_and_leaves_the_kept_one_alone() {
    let source = tempfile::tempdir().unwrap();
    write(source.path(), &[("a", "1")]);
    let one = Published::of(source.path());
    fs::set_permissions(source.path().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let two = Published::of(source.path());
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &one).unwrap();
    let before = inode(&machine.path("a"));
    offline(&mut applier, 2, &two).expect("the content is on the disk");
    assert_ne!(inode(&machine.path("a")), before);
    assert_eq!(machine.tree(), two.manifest);
    let kept = scan(&machine.temp.path().join("etc/.app.leaseward-prev")).unwrap();
    assert_eq!(*kept.manifest(), one.manifest);
}

#[test]
fn a_renamed_file_is_linked_and_two_equal_files_never_share_an_inode() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &Published::new(&[("a", "text")])).unwrap();
    let before = inode(&machine.path("a"));
    let two = Published::new(&[("b", "text"), ("c", "text")]);
    assert_eq!(offline(&mut applier, 2, &two).unwrap(), Applied { linked: 1, written: 1, bytes: 4 });
    assert_eq!(inode(&machine.path("b")), before);
    assert_ne!(inode(&machine.path("c")), before);
    // The kept tree has the inode of `b` under the name `a`: it must not lend it a second time.
    let mut three = Published::new(&[("a", "text"), ("b", "text"), ("c", "text"), ("d", "new")]);
    three.chunks.retain(|digest, _| *digest == digest_of(b"new"));
    put(&mut applier, 3, &three).unwrap();
    assert_ne!(inode(&machine.path("a")), inode(&machine.path("b")));
}

#[test]
fn a_small_edit_of_a_large_file_needs_few_chunks() {
    let text: String = (0..200_000).map(|i| format!("line {i}\n")).collect();
    let (one, two) = (Published::new(&[("big", &text)]), Published::new(&[("big", &format!("new\n{text}"))]));
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &one).unwrap();
    let needs = applier.needs(&two.manifest).unwrap();
    assert!(needs.fetch.len() <= 2 && two.chunks.len() > 10, "{} of {}", needs.fetch.len(), two.chunks.len());
    let mut asked = Vec::new();
    applier
        .apply(2, &two.manifest, &mut |digest| {
            asked.push(digest);
            two.give(digest)
        })
        .unwrap();
    assert_eq!(asked.len(), needs.fetch.len());
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn many_files_go_with_one_sync_of_the_file_system() {
    let names: Vec<String> = (0..300).map(|i| format!("d{}/f{i}", i % 7)).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
    let machine = Machine::new();
    let mut applier = machine.open();
    let one = Published::new(&files);
    assert_eq!(put(&mut applier, 1, &one).unwrap().written, 300);
    assert_eq!(machine.tree(), one.manifest);
    assert_eq!(offline(&mut applier, 2, &Published::new(&files[1..])).unwrap().linked, 299);
}

/// Opens the set on a file system that has no hard links.
fn open_without_links(machine: &Machine) -> Applier {
    let mut applier = machine.open();
    applier.steps.no_links = true;
    applier
}

#[test]
fn what_cannot_be_linked_is_written_from_its_twin_and_needs_no_source() {
    let large: String = (0..80_000).map(|i| format!("line {i}\n")).collect();
    let files = |a| [("a", a), ("d/keep", "k"), ("large", large.as_str())];
    let (one, mut two) = (Published::new(&files("1")), Published::new(&files("2")));
    for ahead_from in [0, usize::MAX] {
        let machine = Machine::new();
        let mut applier = open_without_links(&machine);
        applier.ahead_from = ahead_from;
        put(&mut applier, 1, &one).unwrap();
        let (keep, piece) = (inode(&machine.path("d/keep")), inode(&machine.path("large")));
        two.chunks.retain(|digest, _| *digest == digest_of(b"2"));
        assert_eq!(applier.needs(&two.manifest).unwrap().fetch.len(), 1);
        let done = put(&mut applier, 2, &two).expect("everything else stands on this disk");
        assert_eq!((done.linked, done.written, done.bytes), (0, 3, 2 + large.len() as u64));
        assert_eq!(machine.tree(), two.manifest);
        assert_ne!([inode(&machine.path("d/keep")), inode(&machine.path("large"))], [keep, piece]);
        assert_eq!(applier.verify().unwrap(), []);
        assert_eq!(offline(&mut applier, 3, &one).unwrap().linked, 0, "and the way back");
        assert_eq!(machine.tree(), one.manifest);
    }
}

#[test]
fn many_files_that_cannot_be_linked_are_not_kept_open_together() {
    let name = "apply::tests::reuse::many_files_that_cannot_be_linked_are_not_kept_open_together";
    if crate::few_files::are_allowed(64, name) {
        let names: Vec<String> = (0..300).map(|i| format!("f{i}")).collect();
        let mut files: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        let machine = Machine::new();
        let mut applier = open_without_links(&machine);
        put(&mut applier, 1, &Published::new(&files)).unwrap();
        // One file is all that is planned to be new.
        files[17].1 = "new";
        let two = Published::new(&files);
        assert_eq!(put(&mut applier, 2, &two).unwrap().written, 300);
        assert_eq!(machine.tree(), two.manifest);
    }
}

#[test]
fn a_file_that_is_edited_between_the_plan_and_its_link_is_written_anew() {
    let machine = Machine::new();
    let (one, two) = (Published::new(&[("keep", "good"), ("z", "1")]), Published::new(&[("keep", "good")]));
    put(&mut machine.open(), 1, &one).unwrap();
    let keep = machine.path("keep");
    let (edited, before) = (keep.clone(), inode(&keep));
    let mut applier = machine
        .open_with(move |step| {
            if step == Step::LinkFile {
                fs::write(&edited, "evil and longer").unwrap();
            }
            true
        })
        .unwrap();
    applier.ahead_from = usize::MAX;
    assert_eq!(offline(&mut applier, 2, &two).unwrap_err().code(), "LW0801", "nobody has what was there");
    assert_eq!(fs::read_to_string(&keep).unwrap(), "evil and longer", "the live tree is only read");
    let done = put(&mut applier, 2, &two).unwrap();
    assert_eq!((done.linked, done.written), (0, 1));
    assert_eq!(fs::read_to_string(&keep).unwrap(), "good");
    assert_ne!(inode(&keep), before);
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn the_kept_tree_is_consulted_for_what_nobody_holds_and_for_that_alone() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let files = |a| [("a", a), ("keep", "k"), ("same", "s")];
    let (one, two) = (Published::new(&files("1")), Published::new(&files("2")));
    put(&mut applier, 1, &one).unwrap();
    put(&mut applier, 2, &two).unwrap();
    let plan = |is_held: bool| {
        let (plan, lenders, _) = applier
            .prepare(&one.manifest, &|digest| {
                assert_eq!(digest, digest_of(b"1"), "only what the live tree lacks");
                is_held
            })
            .unwrap();
        let proven: Vec<Vec<bool>> =
            lenders.iter().map(|lender| lender.proven.iter().map(Option::is_some).collect()).collect();
        (plan.fetch.len(), plan.actions[0], proven)
    };
    let (live, kept) = (vec![false, true, true], vec![true, false, false]);
    assert_eq!(plan(true), (1, plan::Action::Write, vec![live.clone()]));
    // And nothing else of it is read: its stamps are old.
    assert_eq!(plan(false), (0, plan::Action::Link(plan::Origin { tree: 1, entry: 0 }), vec![live, kept]));
}

#[test]
fn what_was_edited_is_put_right_from_an_equal_file_of_the_live_tree() {
    let machine = Machine::new();
    let mut applier = machine.open();
    let one = Published::new(&[("a", "text"), ("b", "text"), ("c", "c")]);
    put(&mut applier, 1, &one).unwrap();
    fs::write(machine.path("a"), "evil").unwrap();
    let nothing = &mut |digest| Err(Error::BlobMissing { digest });
    assert_eq!(applier.rebuild(1, &one.manifest, nothing).unwrap(), Applied { linked: 2, written: 1, bytes: 4 });
    assert_eq!(machine.tree(), one.manifest);
    assert_ne!(inode(&machine.path("a")), inode(&machine.path("b")));
}
