//! Stories of extended attributes on real directories. What a file system without them says cannot be had here: see
//! `write_refuses_where_none_are_kept`.

use std::collections::BTreeMap;
use std::fs;

use expect_test::expect;
use leaseward_state::config::{Digest, Manifest};
use rustix::fs::setxattr;
use tempfile::TempDir;

use super::*;
use crate::{Applier, BlobStore, DriftKind, InPlace, SetDirs, manifest, scan_some};

/// A directory to publish, a machine to apply on.
struct World {
    temp: TempDir,
    chunks: BTreeMap<Digest, Vec<u8>>,
}

impl World {
    /// `None`, and why, where no attributes are kept: then nothing can be told here.
    fn new() -> Option<Self> {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["source", "etc"] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        fs::write(temp.path().join("source/a"), "same").unwrap();
        fs::write(temp.path().join("source/b"), "other").unwrap();
        if let Err(error) = setxattr(temp.path().join("source/a"), "user.probe", b"1", XattrFlags::empty()) {
            eprintln!("left out: {} keeps no extended attributes: {error}", temp.path().display());
            return None;
        }
        rustix::fs::removexattr(temp.path().join("source/a"), "user.probe").unwrap();
        Some(Self { temp, chunks: BTreeMap::new() })
    }

    fn set(&self, path: &str, name: &str, value: &[u8]) {
        setxattr(self.temp.path().join(path), name, value, XattrFlags::empty()).unwrap();
    }

    fn read(&self, path: &str) -> Xattrs {
        let path = self.temp.path().join(path);
        read(&File::open(&path).unwrap(), &path).unwrap()
    }

    fn inode(&self, path: &str) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(self.temp.path().join(path)).unwrap().ino()
    }

    fn publish(&mut self) -> Manifest {
        let scanned = scan_some(&self.temp.path().join("source"), true, &|_| true).unwrap();
        self.chunks.extend(scanned.digests().map(|digest| (digest, scanned.read(digest).unwrap())));
        scanned.manifest().clone()
    }

    fn dirs(&self) -> SetDirs {
        SetDirs { target: self.temp.path().join("etc/app"), state_dir: self.temp.path().join("state") }
    }

    fn give(&self, digest: Digest) -> Result<Vec<u8>> {
        self.chunks.get(&digest).cloned().ok_or(Error::BlobMissing { digest })
    }
}

fn one(name: &str, value: &[u8]) -> Xattrs {
    Xattrs::from([(name.to_owned(), value.to_vec())])
}

#[test]
fn a_changed_attribute_is_a_version_and_gets_an_inode_of_its_own() {
    let Some(mut world) = World::new() else { return };
    world.set("source/a", "user.origin", b"one");
    let first = world.publish();
    world.set("source/a", "user.origin", b"two");
    let second = world.publish();
    assert_ne!(manifest::encode(&first), manifest::encode(&second), "a changed attribute alone is a change");

    let mut applier = Applier::open(&world.dirs()).unwrap().with_reserve(0);
    applier.apply(1, &first, &mut |digest| world.give(digest)).unwrap();
    assert_eq!((world.read("etc/app/a"), world.read("etc/app/b")), (one("user.origin", b"one"), Xattrs::new()));
    let (a, b) = (world.inode("etc/app/a"), world.inode("etc/app/b"));

    let done = applier.apply(2, &second, &mut |digest| world.give(digest)).unwrap();
    assert_eq!((done.linked, done.written), (1, 1), "what has the same attributes is linked");
    assert_eq!(world.read("etc/app/a"), one("user.origin", b"two"));
    assert_eq!(world.inode("etc/app/b"), b);
    assert_ne!(world.inode("etc/app/a"), a);
    assert_eq!(world.read("etc/.app.leaseward-prev/a"), one("user.origin", b"one"), "the version before kept its own");
    assert_eq!(applier.verify().unwrap(), vec![]);
}

#[test]
fn equal_content_with_other_attributes_is_not_linked_under_another_name() {
    let Some(mut world) = World::new() else { return };
    world.set("source/a", "user.origin", b"one");
    let first = world.publish();
    fs::rename(world.temp.path().join("source/a"), world.temp.path().join("source/c")).unwrap();
    world.set("source/c", "user.origin", b"two");
    let second = world.publish();
    let mut applier = Applier::open(&world.dirs()).unwrap().with_reserve(0);
    applier.apply(1, &first, &mut |digest| world.give(digest)).unwrap();
    applier.apply(2, &second, &mut |digest| world.give(digest)).unwrap();
    assert_eq!(world.read("etc/app/c"), one("user.origin", b"two"));
}

#[test]
fn a_set_that_begins_to_keep_attributes_takes_no_file_of_which_it_does_not_know_them() {
    let Some(mut world) = World::new() else { return };
    let kept = world.publish();
    let alone = Manifest { xattrs: None, ..kept.clone() };
    let mut applier = Applier::open(&world.dirs()).unwrap().with_reserve(0);
    applier.apply(1, &alone, &mut |digest| world.give(digest)).unwrap();
    world.set("etc/app/a", "user.mine", b"by hand");
    assert_eq!(applier.verify().unwrap(), vec![], "they are left alone where the set does not keep them");
    applier.apply(2, &alone, &mut |digest| world.give(digest)).unwrap();
    assert_eq!(world.read("etc/app/a"), one("user.mine", b"by hand"));
    applier.apply(3, &kept, &mut |digest| world.give(digest)).unwrap();
    assert_eq!(world.read("etc/app/a"), Xattrs::new());
}

#[test]
fn an_attribute_changed_by_hand_is_drift_and_is_put_right() {
    let Some(mut world) = World::new() else { return };
    world.set("source/a", "user.origin", b"one");
    let version = world.publish();
    let mut applier = Applier::open(&world.dirs()).unwrap().with_reserve(0);
    applier.apply(1, &version, &mut |digest| world.give(digest)).unwrap();
    for (path, change) in [("a", b"two"), ("b", b"new")] {
        world.set(&format!("etc/app/{path}"), "user.origin", change);
        // A stamp does not vouch for attributes: each look finds it again.
        for _ in 0..2 {
            let found = applier.scan().unwrap();
            let found: Vec<_> = found.iter().map(|drift| (drift.path.as_str(), drift.kind.word())).collect();
            assert_eq!(found, [(path, "xattr")]);
        }
        applier.rebuild(1, &version, &mut |digest| world.give(digest)).unwrap();
        assert_eq!(applier.scan().unwrap(), vec![]);
    }
    assert_eq!((world.read("etc/app/a"), world.read("etc/app/b")), (one("user.origin", b"one"), Xattrs::new()));
}

#[test]
fn files_that_are_replaced_where_they_stand_have_them_too() {
    let Some(mut world) = World::new() else { return };
    world.set("source/a", "user.origin", b"one");
    let first = world.publish();
    world.set("source/a", "user.origin", b"two");
    let second = world.publish();
    let mut place = InPlace::open(&world.dirs()).unwrap().with_reserve(0);
    let cache = BlobStore::open_cache(&world.temp.path().join("cache")).unwrap().with_floor(0);
    for (version, tree, value) in [(1, &first, b"one"), (2, &second, b"two")] {
        place.stage(version, tree, &mut |digest| world.give(digest), &cache).unwrap();
        place.switch().unwrap();
        assert_eq!(world.read("etc/app/a"), one("user.origin", value));
        assert_eq!(place.verify().unwrap(), vec![]);
    }
    world.set("etc/app/b", "user.mine", b"by hand");
    assert_eq!(place.verify().unwrap()[0].kind, DriftKind::Xattr);
}

#[test]
fn the_text_form_holds_them_and_refuses_what_no_file_may_have() {
    let digest = crate::digest_of(b"");
    let node = leaseward_state::config::ManifestNode::File { mode: 0o644, size: 0, digest, chunks: vec![] };
    let entries = vec![leaseward_state::config::ManifestEntry { path: "a".into(), node }];
    let of = |path: &str, xattrs: Xattrs| Manifest {
        entries: entries.clone(),
        xattrs: Some(BTreeMap::from([(path.to_owned(), xattrs)])),
    };
    let good = of("a", Xattrs::from([("user.a b\n".into(), vec![0, 255]), ("user.empty".into(), vec![])]));
    let bytes = manifest::encode(&good);
    expect![[r#"
        leaseward manifest 1
        xattrs
        f 644 0 af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262 - a
        x 00ff user.a b\0a
        x - user.empty
        end 1 0e2ea893
    "#]]
    .assert_eq(std::str::from_utf8(&bytes).unwrap());
    assert_eq!(manifest::decode(&bytes).unwrap(), good);
    for length in 0..bytes.len() {
        assert!(manifest::decode(&bytes[..length]).is_err(), "cut at {length}");
    }
    let many = (0..=XATTRS_MAX).map(|i| (format!("user.{i}"), vec![])).collect();
    let bad = [
        of("a", one("security.selinux", b"x")),
        of("a", one("user.", b"x")),
        of("b", one("user.a", b"x")),
        of("a", Xattrs::new()),
        of("a", one("user.large", &vec![0; XATTR_BYTES_MAX])),
        of("a", many),
    ];
    for bad in bad {
        assert_eq!(manifest::check(&bad).unwrap_err().code(), "LW0804", "{bad:?}");
    }
    let kept_by_none = Manifest { entries: entries.clone(), xattrs: Some(BTreeMap::new()) };
    assert_eq!(manifest::decode(&manifest::encode(&kept_by_none)).unwrap(), kept_by_none);
}

#[test]
fn more_than_a_version_keeps_is_refused_when_it_is_published() {
    let Some(world) = World::new() else { return };
    world.set("source/a", "user.large", &vec![b'x'; XATTR_BYTES_MAX]);
    let error = scan_some(&world.temp.path().join("source"), true, &|_| true).unwrap_err();
    assert_eq!(error.code(), "LW0804", "{error}");
}

#[test]
fn write_refuses_where_none_are_kept() {
    // procfs keeps no attributes, and its files can be opened for writing.
    let path = Path::new("/proc/self/comm");
    let file = File::options().write(true).open(path).unwrap();
    let refused = write(&file, &one("user.a", b"x"), path).unwrap_err();
    assert_eq!(refused.code(), "LW0813", "{refused}");
    assert_eq!(read(&File::open(path).unwrap(), path).unwrap(), Xattrs::new());
}
