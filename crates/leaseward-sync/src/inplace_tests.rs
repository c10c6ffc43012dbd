//! Stories of replacing files where they stand, among files of others.

use std::collections::BTreeMap;
use std::fs;

use super::*;
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
    use std::os::unix::fs::PermissionsExt as _;
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
    use std::os::unix::fs::PermissionsExt as _;
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
            write_durably(&open.state_dir, JOURNAL, &journal(version, &manifest, &ops)).unwrap();
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
    let ops = [Op::Remove("a".into())];
    let bytes = journal(2, &tree.0, &ops);
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
    use std::os::unix::fs::PermissionsExt as _;
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
        assert_eq!(files.live().map(|live| live.version), Some(1), "sync {fails}");
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
