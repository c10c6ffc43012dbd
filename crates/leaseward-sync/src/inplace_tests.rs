//! Stories of replacing files where they stand, among files of others.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::dir::{Kind, kind};
use crate::scan;

struct Place {
    temp: tempfile::TempDir,
    dirs: SetDirs,
}

type Chunks = BTreeMap<Digest, Vec<u8>>;

fn published(files: &[(&str, &str)]) -> (Manifest, Chunks) {
    let temp = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = temp.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let scanned = scan(temp.path()).unwrap();
    let chunks = scanned.digests().map(|digest| (digest, scanned.read(digest).unwrap())).collect();
    (scanned.manifest().clone(), chunks)
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SetDirs { target: temp.path().join("etc"), state_dir: temp.path().join("state") };
        fs::create_dir(&dirs.target).unwrap();
        fs::write(dirs.target.join("hosts"), "not ours").unwrap();
        Self { temp, dirs }
    }

    fn open(&self) -> InPlace {
        InPlace::open(&self.dirs).unwrap().with_reserve(0)
    }

    fn cache(&self) -> BlobStore {
        BlobStore::open_cache(&self.temp.path().join("cache")).unwrap().with_floor(0)
    }

    fn apply(&self, place: &mut InPlace, version: u64, tree: &(Manifest, Chunks)) -> Result<Applied> {
        let mut give = |digest| tree.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        place.stage(version, &tree.0, &mut give, &self.cache())?;
        place.switch()
    }

    fn files(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let root = Dir::open(&self.dirs.target).unwrap();
        root.walk(&mut |path, dir, name, stat| {
            if kind(stat) == Kind::File {
                found.insert(path.to_owned(), fs::read_to_string(dir.path().join(name)).unwrap());
            }
            Ok(())
        })
        .unwrap();
        found
    }

    fn has(&self, files: &[(&str, &str)]) {
        let mut expected: BTreeMap<String, String> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        expected.insert("hosts".into(), "not ours".into());
        assert_eq!(self.files(), expected);
    }
}

#[test]
fn files_are_replaced_among_those_of_others() {
    let place = Place::new();
    let mut open = place.open();
    let one = published(&[("app.conf", "1"), ("conf.d/a", "a"), ("conf.d/b", "b")]);
    place.apply(&mut open, 1, &one).unwrap();
    place.has(&[("app.conf", "1"), ("conf.d/a", "a"), ("conf.d/b", "b")]);
    let two = published(&[("app.conf", "2"), ("conf.d/a", "a"), ("new/c", "c")]);
    let done = place.apply(&mut open, 2, &two).unwrap();
    assert_eq!((done.written, done.linked), (2, 1), "only what changed is written");
    place.has(&[("app.conf", "2"), ("conf.d/a", "a"), ("new/c", "c")]);
    assert_eq!(open.live().unwrap().version, 2);
    // The way back needs nobody: what was replaced is kept.
    let (live, manifest) = open.previous_manifest().unwrap();
    let cache = place.cache();
    open.stage(live.version, &manifest, &mut |digest| cache.get(digest), &cache).unwrap();
    open.switch().unwrap();
    place.has(&[("app.conf", "1"), ("conf.d/a", "a"), ("conf.d/b", "b")]);
}

#[test]
fn a_file_of_somebody_else_is_never_overwritten_or_removed() {
    let place = Place::new();
    let mut open = place.open();
    let bad = published(&[("hosts", "ours now")]);
    assert!(matches!(place.apply(&mut open, 1, &bad), Err(Error::TargetNotOurs { .. })));
    place.has(&[]);
    let one = published(&[("a", "1"), ("dir/b", "2")]);
    place.apply(&mut open, 1, &one).unwrap();
    fs::write(place.dirs.target.join("a"), "mine").unwrap();
    fs::write(place.dirs.target.join("dir/other"), "theirs").unwrap();
    assert_eq!(open.verify().unwrap().len(), 1);
    place.apply(&mut open, 2, &published(&[("c", "3")])).unwrap();
    place.has(&[("a", "mine"), ("c", "3"), ("dir/other", "theirs")]);
    let place = Place::new();
    let equal = published(&[("hosts", "not ours")]);
    place.apply(&mut place.open(), 1, &equal).unwrap();
    place.has(&[]);
}

/// Changes what stands in a target.
type Touch = fn(&Path);

#[test]
fn whatever_was_touched_since_it_was_looked_at_is_looked_at_again_before_anything_is_replaced() {
    let same_size_and_time = |target: &Path| {
        let file = fs::File::options().write(true).open(target.join("a")).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        (&file).write_all(b"X").unwrap();
        file.set_modified(before).unwrap();
    };
    let touches: [(&str, Touch); 7] = [
        ("a file that is replaced", same_size_and_time),
        ("a file that stays", |target| fs::write(target.join("stays"), "by hand").unwrap()),
        ("its mode", |target| fs::set_permissions(target.join("stays"), fs::Permissions::from_mode(0o600)).unwrap()),
        ("the mode of a directory", |target| {
            fs::set_permissions(target.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("a file that goes", |target| fs::write(target.join("goes"), "by hand").unwrap()),
        ("one that is gone already", |target| fs::remove_file(target.join("d/b")).unwrap()),
        ("somebody's new one", |target| fs::write(target.join("new"), "theirs").unwrap()),
    ];
    for (what, touch) in touches {
        let place = Place::new();
        let mut open = place.open();
        let one = published(&[("a", "1"), ("d/b", "b"), ("goes", "1"), ("stays", "s")]);
        place.apply(&mut open, 1, &one).unwrap();
        let two = published(&[("a", "2"), ("d/b", "b"), ("new", "2"), ("stays", "s")]);
        let mut give = |digest| two.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(2, &two.0, &mut give, &place.cache()).unwrap();
        touch(&place.dirs.target);
        let stands = place.files();
        assert!(matches!(open.switch(), Err(Error::Changed { .. })), "{what}");
        let is_stage = |path: &str| path.starts_with(STAGE);
        let stood: BTreeMap<_, _> = stands.into_iter().filter(|(path, _)| !is_stage(path)).collect();
        assert_eq!(place.files(), stood, "{what}: something was replaced");
        assert_eq!((open.staged(), open.live().unwrap().version), (None, 1), "{what}");
        // Looked at anew, the version wins; what is no longer ours is left alone.
        let again = place.apply(&mut open, 2, &two);
        match what {
            "somebody's new one" => assert!(matches!(again, Err(Error::TargetNotOurs { .. })), "{again:?}"),
            "a file that goes" => {
                let all = [("a", "2"), ("d/b", "b"), ("goes", "by hand"), ("new", "2"), ("stays", "s")];
                again.map(|_| place.has(&all)).unwrap();
            }
            _ => again.map(|_| place.has(&[("a", "2"), ("d/b", "b"), ("new", "2"), ("stays", "s")])).unwrap(),
        }
    }
}

#[test]
fn what_a_program_writes_itself_and_what_others_do_beside_holds_nothing_up() {
    let place = Place::new();
    let mut open = place.open();
    open.keep(Patterns::new(&["d/*.cache".to_owned()]).unwrap(), None);
    place.apply(&mut open, 1, &published(&[("a", "1"), ("d/app.cache", "")])).unwrap();
    let two = published(&[("a", "2"), ("d/app.cache", "")]);
    let mut give = |digest| two.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
    open.stage(2, &two.0, &mut give, &place.cache()).unwrap();
    fs::write(place.dirs.target.join("d/app.cache"), "warm").unwrap();
    fs::write(place.dirs.target.join("d/theirs"), "theirs").unwrap();
    fs::write(place.dirs.target.join("hosts"), "not ours").unwrap();
    open.switch().unwrap();
    place.has(&[("a", "2"), ("d/app.cache", "warm"), ("d/theirs", "theirs")]);
}

#[test]
fn what_was_changed_by_hand_is_put_aside_before_a_version_takes_its_place_unless_it_may_be_a_secret() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1"), ("d/b", "1"), ("p", "1"), ("untouched", "1")])).unwrap();
    for path in ["a", "d/b", "p"] {
        fs::write(place.dirs.target.join(path), format!("{path} by hand")).unwrap();
    }
    fs::set_permissions(place.dirs.target.join("p"), fs::Permissions::from_mode(0o600)).unwrap();
    let two = [("a", "2"), ("d/b", "1"), ("p", "2"), ("untouched", "2")];
    place.apply(&mut open, 2, &published(&two)).unwrap();
    place.has(&two);
    let found = || {
        let all = fs::read_dir(place.dirs.state_dir.join(FOUND)).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
        });
        all.collect::<BTreeMap<_, _>>()
    };
    let expected = [("a", "a by hand"), ("d%2Fb", "d/b by hand")].map(|(path, text)| (path.into(), text.into()));
    assert_eq!(found(), BTreeMap::from(expected));
    // It stays while nothing else is found.
    place.apply(&mut open, 3, &published(&[("a", "3")])).unwrap();
    assert_eq!(found().len(), 2);
    fs::write(place.dirs.target.join("a"), "again").unwrap();
    place.apply(&mut open, 4, &published(&[("a", "4")])).unwrap();
    assert_eq!(found(), BTreeMap::from([("a".into(), "again".into())]));
}

#[test]
fn after_a_death_at_any_step_the_set_is_whole_once_it_is_opened() {
    let one: &[(&str, &str)] = &[("a", "1"), ("b", "1"), ("dir/c", "1"), ("gone/d", "1")];
    let two: &[(&str, &str)] = &[("a", "2"), ("b", "2"), ("dir/c", "2"), ("new/e", "2")];
    // The journal is durable from here on; each step may be the last one that was taken.
    for taken in 0..8 {
        let place = Place::new();
        let mut open = place.open();
        place.apply(&mut open, 1, &published(one)).unwrap();
        let tree = published(two);
        let mut give = |digest| tree.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(2, &tree.0, &mut give, &place.cache()).unwrap();
        let Ready { version, manifest, ops, .. } = open.ready.take().unwrap();
        if taken > 0 {
            let begun = Begun { version, manifest, ops: ops.clone() };
            write_durably(&open.state_dir, JOURNAL, &journal(&begun)).unwrap();
            // As `play`, which a death ended after so many steps.
            let root = open.root().unwrap();
            for op in ops.iter().take(taken - 1) {
                let mut parents = Parents::new(&root);
                match op {
                    Op::Directory(path, _) => drop(root.mkdir(path).unwrap()),
                    Op::Put(number, path) => {
                        let (dir, name) = parents.of(path).unwrap();
                        let stage = root.child(STAGE).unwrap();
                        rustix::fs::renameat(&stage, number.to_string(), dir, name).unwrap();
                    }
                    Op::Remove(path) => fs::remove_file(place.dirs.target.join(path)).unwrap(),
                    Op::RemoveDirectory(path) => fs::remove_dir(place.dirs.target.join(path)).unwrap(),
                }
            }
        }
        drop(open);
        let open = place.open();
        if taken == 0 {
            place.has(one);
            assert_eq!(open.live().unwrap().version, 1);
        } else {
            place.has(two);
            assert_eq!(open.live().unwrap().version, 2);
        }
    }
}

#[test]
fn a_torn_journal_counts_as_none() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1")])).unwrap();
    let tree = published(&[("a", "2")]);
    let bytes = journal(&Begun { version: 2, manifest: tree.0, ops: vec![Op::Remove("a".into())] });
    write_durably(&open.state_dir, JOURNAL, &bytes).unwrap();
    let path = place.dirs.state_dir.join(JOURNAL);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    drop(open);
    assert_eq!(place.open().live().unwrap().version, 1);
    place.has(&[("a", "1")]);
}

#[test]
fn what_is_staged_for_another_owner_is_forgotten() {
    use std::os::unix::fs::MetadataExt as _;
    let place = Place::new();
    let mut set = place.open();
    let (tree, chunks) = published(&[("a", "1")]);
    let mut give = |digest| chunks.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
    set.stage(1, &tree, &mut give, &place.cache()).unwrap();
    set.keep(Patterns::default(), None);
    assert!(set.staged().is_some(), "nothing changed");
    let me = fs::metadata(place.temp.path()).unwrap();
    set.keep(Patterns::default(), Some(Owner { user: me.uid(), group: me.gid() }));
    assert_eq!(set.staged(), None);
    assert!(!place.dirs.target.join(STAGE).exists());
}

#[test]
fn what_only_its_owner_may_read_goes_back_and_is_copied_nowhere() {
    let private = |text: &str| {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("p"), text).unwrap();
        fs::set_permissions(temp.path().join("p"), fs::Permissions::from_mode(0o600)).unwrap();
        let scanned = scan(temp.path()).unwrap();
        let chunks: Chunks = scanned.digests().map(|digest| (digest, scanned.read(digest).unwrap())).collect();
        (scanned.manifest().clone(), chunks)
    };
    let place = Place::new();
    let mut set = place.open();
    let one = private("one");
    place.apply(&mut set, 1, &one).unwrap();
    place.apply(&mut set, 2, &private("two")).unwrap();
    place.apply(&mut set, 3, &(one.0.clone(), Chunks::new())).unwrap();
    assert_eq!(fs::read_to_string(place.dirs.target.join("p")).unwrap(), "one", "from this machine alone");
    assert_eq!(place.cache().digests().len(), 0);
    set.finish();
    assert!(set.back.chunks.is_empty());
}

#[test]
fn a_version_whose_names_cannot_be_made_durable_is_not_reported_until_they_are() {
    let (one, two) =
        (published(&[("a", "1"), ("sub/b", "1")]), published(&[("a", "2"), ("sub/b", "2"), ("new/c", "2")]));
    let mut anew = 0;
    for fails in 0.. {
        let place = Place::new();
        let mut files = place.open();
        place.apply(&mut files, 1, &one).unwrap();
        crate::dir::failing::after(fails);
        let outcome = place.apply(&mut files, 2, &two);
        if crate::dir::failing::count() <= fails {
            assert!(fails > 3 && anew > 3, "{fails} syncs and {anew} files are too few to mean anything");
            outcome.unwrap();
            return;
        }
        outcome.expect_err("it is not durable");
        assert_ne!(files.live().map(|live| live.version), Some(2), "sync {fails}");
        // Names that stand already are not believed after another sync: what bears them is made anew.
        let inode = |path: &str| {
            use std::os::unix::fs::MetadataExt as _;
            let there = place.files().get(path).is_some_and(|text| text == "2");
            there.then(|| fs::metadata(place.dirs.target.join(path)).unwrap().ino())
        };
        let before = ["a", "sub/b", "new/c"].map(inode);
        crate::dir::failing::after(usize::MAX);
        place.apply(&mut files, 2, &two).unwrap();
        assert!(crate::dir::failing::count() > 0, "sync {fails}: not durable, and reported");
        for (path, before) in ["a", "sub/b", "new/c"].into_iter().zip(before) {
            assert!(before.is_none() || inode(path) != before, "sync {fails}: {path} is believed");
            anew += usize::from(before.is_some());
        }
        assert_eq!(files.live().map(|live| live.version), Some(2), "sync {fails}");
        drop(files);
        assert_eq!(place.open().live().map(|live| live.version), Some(2), "sync {fails}");
        assert_eq!(place.files()["sub/b"], "2", "sync {fails}");
    }
}

/// The path of a directory that stands in the way of a file: no step gets past it, not even root's.
const SHUT: &str = "m";

/// Puts something in the way of the file `m` after everything was looked at, as a disk that refuses a step would.
fn shut(place: &Place) {
    fs::create_dir_all(place.dirs.target.join(SHUT).join("in")).unwrap();
}

/// Lets a version fail at its second file.
fn fails_halfway(place: &Place, open: &mut InPlace, version: u64, tree: &(Manifest, Chunks)) {
    let mut give = |digest| tree.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
    open.stage(version, &tree.0, &mut give, &place.cache()).unwrap();
    let ready = open.ready.as_mut().unwrap();
    // What came after the last look.
    ready.stood = Stood::default();
    shut(place);
    open.switch().unwrap_err();
    assert_eq!(open.live(), None, "neither version is wholly there");
}

#[test]
fn a_switch_that_failed_halfway_is_played_when_the_set_is_opened_and_nothing_else_was_staged() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1"), ("z", "1")])).unwrap();
    let two = [("a", "2"), (SHUT, "2"), ("z", "2")];
    fails_halfway(&place, &mut open, 2, &published(&two));
    drop(open);
    // Still in the way.
    let open = place.open();
    assert_eq!(open.live(), None, "it is half of it");
    drop(open);
    fs::remove_dir_all(place.dirs.target.join(SHUT)).unwrap();
    let open = place.open();
    assert_eq!(open.live().unwrap().version, 2);
    place.has(&two);
}

#[test]
fn what_is_staged_for_one_version_is_never_put_for_another_whoever_dies_in_between() {
    for is_unstaged in [false, true] {
        let place = Place::new();
        let mut open = place.open();
        place.apply(&mut open, 1, &published(&[("a", "1"), ("b", "1"), ("z", "1")])).unwrap();
        let two = published(&[("a", "2"), ("b", "1"), ("half", "2"), (SHUT, "2"), ("z", "2")]);
        fails_halfway(&place, &mut open, 2, &two);
        assert_eq!(place.files()["half"], "2");
        fs::remove_dir_all(place.dirs.target.join(SHUT)).unwrap();
        // Other files by the same numbers.
        let three = published(&[("b", "3"), ("c", "3"), ("d", "3"), ("z", "1")]);
        let mut give = |digest| three.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(3, &three.0, &mut give, &place.cache()).unwrap();
        if is_unstaged {
            open.unstage().unwrap();
        }
        drop(open);
        let mut open = place.open();
        assert_eq!(open.live(), None, "a version that is not there is said to be live: {:?}", place.files());
        assert_eq!((place.files()["a"].as_str(), place.files()["z"].as_str()), ("2", "1"), "something was put");
        // What was put halfway is known as ours, replaced and removed; also by the version that was there before.
        if is_unstaged {
            place.apply(&mut open, 1, &published(&[("a", "1"), ("b", "1"), ("z", "1")])).unwrap();
            place.has(&[("a", "1"), ("b", "1"), ("z", "1")]);
            assert_eq!(open.live().unwrap().version, 1);
        } else {
            place.apply(&mut open, 4, &published(&[("half", "4"), ("z", "1")])).unwrap();
            place.has(&[("half", "4"), ("z", "1")]);
        }
        assert!(!place.dirs.state_dir.join(FOUND).exists(), "what was ours was taken for changed by hand");
        drop(open);
        let open = place.open();
        assert!(open.live().is_some() && open.halves.is_empty() && open.doubted.is_empty());
    }
}

#[test]
fn what_somebody_put_where_a_failed_version_wanted_a_file_is_his() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1")])).unwrap();
    fails_halfway(&place, &mut open, 2, &published(&[("a", "2"), (SHUT, "2"), ("z", "2")]));
    fs::remove_dir_all(place.dirs.target.join(SHUT)).unwrap();
    fs::write(place.dirs.target.join("z"), "mine").unwrap();
    let three = published(&[("a", "3"), ("z", "3")]);
    assert!(matches!(place.apply(&mut open, 3, &three), Err(Error::TargetNotOurs { .. })));
    place.apply(&mut open, 4, &published(&[("a", "4")])).unwrap();
    place.has(&[("a", "4"), ("z", "mine")]);
}

#[test]
fn halves_are_bounded_however_often_it_is_tried() {
    use crate::limits::HALVES_MAX;
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1"), ("z", "1")])).unwrap();
    for version in 2..HALVES_MAX as u64 + 6 {
        let text = version.to_string();
        fails_halfway(&place, &mut open, version, &published(&[("a", &text), (SHUT, &text), ("z", &text)]));
        fs::remove_dir_all(place.dirs.target.join(SHUT)).unwrap();
        if version == 10 {
            drop(open);
            // Nobody plays it: it is a half by then.
            shut(&place);
            open = place.open();
            fs::remove_dir_all(place.dirs.target.join(SHUT)).unwrap();
        }
    }
    assert!(open.halves.len() <= HALVES_MAX + 1, "{}", open.halves.len());
    place.apply(&mut open, 100, &published(&[("a", "100"), ("z", "100")])).unwrap();
    place.has(&[("a", "100"), ("z", "100")]);
    let left = fs::read_dir(&place.dirs.state_dir).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with("half.")));
}

#[test]
fn a_staged_file_that_a_power_cut_took_is_missed() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1"), ("b", "1")])).unwrap();
    let two = published(&[("a", "2"), ("b", "2")]);
    let mut give = |digest| two.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
    open.stage(2, &two.0, &mut give, &place.cache()).unwrap();
    let Ready { version, manifest, ops, .. } = open.ready.take().unwrap();
    write_durably(&open.state_dir, JOURNAL, &journal(&Begun { version, manifest, ops })).unwrap();
    fs::remove_file(place.dirs.target.join(STAGE).join("1")).unwrap();
    drop(open);
    let mut open = place.open();
    assert_eq!(open.live(), None, "{:?}", place.files());
    place.apply(&mut open, 2, &two).unwrap();
    place.has(&[("a", "2"), ("b", "2")]);
}

#[test]
fn a_journal_that_stands_by_a_name_that_was_not_made_durable_is_not_played_with_another_versions_files() {
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&[("a", "1"), ("b", "1")])).unwrap();
    let stage = |open: &mut InPlace, version, tree: &(Manifest, Chunks)| {
        let mut give = |digest| tree.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(version, &tree.0, &mut give, &place.cache()).unwrap();
    };
    let (two, three) = (published(&[("a", "2"), ("b", "1")]), published(&[("a", "1"), ("b", "3")]));
    stage(&mut open, 2, &two);
    crate::dir::failing::after(0);
    open.switch().unwrap_err();
    crate::dir::failing::after(usize::MAX);
    assert!(place.dirs.state_dir.join(JOURNAL).exists(), "another sync failed");
    stage(&mut open, 3, &three);
    drop(open);
    let mut open = place.open();
    place.has(&[("a", "1"), ("b", "1")]);
    place.apply(&mut open, 3, &three).unwrap();
    place.has(&[("a", "1"), ("b", "3")]);
    assert_eq!(open.live().unwrap().version, 3);
    // One that comes back with a power cut, although it was taken away.
    stage(&mut open, 4, &two);
    let Ready { version, manifest, ops, .. } = open.ready.take().unwrap();
    stage(&mut open, 5, &published(&[("a", "5"), ("b", "3")]));
    write_durably(&open.state_dir, JOURNAL, &journal(&Begun { version, manifest, ops })).unwrap();
    drop(open);
    let mut open = place.open();
    assert_eq!((place.files()["a"].as_str(), place.files()["b"].as_str()), ("1", "3"), "something was put");
    assert_eq!(open.live(), None);
    place.apply(&mut open, 4, &two).unwrap();
    place.has(&[("a", "2"), ("b", "1")]);
}

#[test]
fn a_path_on_another_file_system_is_refused_before_anything_is_replaced() {
    use crate::mounts::testing::Mount;
    let place = Place::new();
    let mut open = place.open();
    let one = [("a", "1"), ("data/deep/b", "1"), ("z", "1")];
    place.apply(&mut open, 1, &published(&one)).unwrap();
    let two = published(&[("a", "2"), ("data/deep/b", "2"), ("z", "2")]);
    let stage = |open: &mut InPlace, version| {
        let mut give = |digest| two.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(version, &two.0, &mut give, &place.cache())
    };
    let refused = |outcome: Result<()>, open: &InPlace| {
        let error = outcome.unwrap_err();
        let names_it = error.to_string().starts_with(open.target().join("data/deep/b").to_str().unwrap());
        assert!(error.code() == "LW0805" && error.is_retryable() && names_it, "{error}");
        assert_eq!(place.files()["a"], "1", "something was replaced");
        assert_eq!(open.live().unwrap().version, 1);
    };
    let at = place.dirs.target.join("data");
    let Some(mount) = Mount::at(&at) else { return };
    refused(open.needs(&two.0).map(drop), &open);
    refused(stage(&mut open, 2), &open);
    drop(mount);
    // What is mounted there since, and looks the same.
    stage(&mut open, 2).unwrap();
    let Some(mount) = Mount::at(&at) else { return };
    open.ready.as_mut().unwrap().stood = Stood::default();
    refused(open.switch().map(drop), &open);
    drop(mount);
    place.apply(&mut open, 2, &two).unwrap();
    place.has(&[("a", "2"), ("data/deep/b", "2"), ("z", "2")]);
}

#[test]
fn a_directory_becomes_a_file_and_a_file_a_directory_whenever_somebody_dies() {
    let (dir, file) = ([("a/b", "1"), ("a/c/d", "1"), ("z", "1")], [("a", "2"), ("z", "2")]);
    for (one, two) in [(&dir[..], &file[..]), (&file[..], &dir[..])] {
        let place = Place::new();
        let mut open = place.open();
        place.apply(&mut open, 1, &published(one)).unwrap();
        place.apply(&mut open, 2, &published(two)).unwrap();
        place.has(two);
        // The way back needs nobody.
        let (live, manifest) = open.previous_manifest().unwrap();
        let cache = place.cache();
        open.stage(live.version, &manifest, &mut |digest| cache.get(digest), &cache).unwrap();
        open.switch().unwrap();
        place.has(one);

        for steps in 0.. {
            let place = Place::new();
            let mut open = place.open();
            place.apply(&mut open, 1, &published(one)).unwrap();
            let tree = published(two);
            let mut give = |digest| tree.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
            open.stage(2, &tree.0, &mut give, &place.cache()).unwrap();
            let Ready { version, manifest, ops, .. } = open.ready.take().unwrap();
            if steps > ops.len() {
                break;
            }
            let root = open.root().unwrap();
            let begun = Begun { version, manifest: manifest.clone(), ops };
            write_durably(&open.state_dir, JOURNAL, &journal(&begun)).unwrap();
            Play::new(&root, &manifest, open.live.as_ref().map(|(_, tree)| tree), None)
                .run(&begun.ops[..steps])
                .unwrap();
            drop(open);
            assert_eq!(place.open().live().unwrap().version, 2, "after {steps} steps");
            place.has(two);
        }
    }
    // What somebody has in it keeps it.
    let place = Place::new();
    let mut open = place.open();
    place.apply(&mut open, 1, &published(&dir)).unwrap();
    fs::write(place.dirs.target.join("a/c/theirs"), "theirs").unwrap();
    assert!(matches!(place.apply(&mut open, 2, &published(&file)), Err(Error::TargetNotOurs { .. })));
    place.has(&[("a/b", "1"), ("a/c/d", "1"), ("a/c/theirs", "theirs"), ("z", "1")]);
}

#[test]
fn directories_that_their_owner_may_not_write_to_are_filled_changed_and_emptied() {
    let with_mode = |mode: u32, files: &[(&str, &str)]| {
        let (mut manifest, chunks) = published(files);
        for entry in &mut manifest.entries {
            if let ManifestNode::Directory { mode: of } = &mut entry.node {
                *of = mode;
            }
        }
        (manifest, chunks)
    };
    let mode =
        |place: &Place, path: &str| fs::metadata(place.dirs.target.join(path)).unwrap().permissions().mode() & 0o777;
    for shut in [0o555, 0o500] {
        let place = Place::new();
        let mut open = place.open();
        place.apply(&mut open, 1, &with_mode(shut, &[("ro/deep/a", "1"), ("ro/b", "1")])).unwrap();
        assert_eq!((mode(&place, "ro"), mode(&place, "ro/deep")), (shut, shut));
        place.apply(&mut open, 2, &with_mode(shut, &[("ro/deep/a", "2"), ("ro/c", "2")])).unwrap();
        place.has(&[("ro/deep/a", "2"), ("ro/c", "2")]);
        assert_eq!((mode(&place, "ro"), mode(&place, "ro/deep")), (shut, shut));
        // A death in the middle leaves one that is open.
        let three = with_mode(shut, &[("ro/deep/a", "3"), ("ro/c", "2")]);
        let mut give = |digest| three.1.get(&digest).cloned().ok_or(Error::BlobMissing { digest });
        open.stage(3, &three.0, &mut give, &place.cache()).unwrap();
        let Ready { version, manifest, ops, .. } = open.ready.take().unwrap();
        write_durably(&open.state_dir, JOURNAL, &journal(&Begun { version, manifest, ops })).unwrap();
        fs::set_permissions(place.dirs.target.join("ro"), fs::Permissions::from_mode(shut | 0o700)).unwrap();
        drop(open);
        let mut open = place.open();
        place.has(&[("ro/deep/a", "3"), ("ro/c", "2")]);
        assert_eq!((mode(&place, "ro"), mode(&place, "ro/deep")), (shut, shut));
        place.apply(&mut open, 4, &with_mode(0o755, &[("ro/d", "4")])).unwrap();
        place.has(&[("ro/d", "4")]);
        assert_eq!(mode(&place, "ro"), 0o755);
        place.apply(&mut open, 5, &with_mode(shut, &[("ro/d", "4")])).unwrap();
        place.apply(&mut open, 6, &with_mode(shut, &[("x", "6")])).unwrap();
        place.has(&[("x", "6")]);
    }
}
