//! Stories of applying versions on real directories.

mod ahead;
mod carried;
mod death;
mod full;
mod hostile;
mod mounted;
mod readers;
mod reuse;
mod unsynced;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use leaseward_state::config::{Digest, Manifest};
use tempfile::TempDir;

use super::*;
use crate::scan;

/// A published version: its manifest and every chunk.
pub(super) struct Published {
    pub(super) manifest: Manifest,
    pub(super) chunks: BTreeMap<Digest, Vec<u8>>,
}

impl Published {
    /// Publishes what stands in `dir`.
    pub(super) fn of(dir: &Path) -> Self {
        let scanned = scan(dir).unwrap();
        let chunks = scanned.digests().map(|digest| (digest, scanned.read(digest).unwrap())).collect();
        Self { manifest: scanned.manifest().clone(), chunks }
    }

    /// Publishes these files; a content of `-> x` is a link to `x`.
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        write(temp.path(), files);
        Self::of(temp.path())
    }

    pub(super) fn give(&self, digest: Digest) -> Result<Vec<u8>> {
        self.chunks.get(&digest).cloned().ok_or(Error::BlobMissing { digest })
    }
}

pub(super) fn write(dir: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
}

/// A machine with one set.
pub(super) struct Machine {
    pub(super) temp: TempDir,
    pub(super) dirs: SetDirs,
}

impl Machine {
    pub(super) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SetDirs { target: temp.path().join("etc/app"), state_dir: temp.path().join("state") };
        fs::create_dir(temp.path().join("etc")).unwrap();
        Self { temp, dirs }
    }

    /// Opens the set as if it were a large one: the next tree is always begun ahead.
    pub(super) fn open(&self) -> Applier {
        let mut applier = Applier::open(&self.dirs).unwrap().with_reserve(0);
        applier.ahead_from = 0;
        applier
    }

    pub(super) fn open_with(&self, hook: impl FnMut(Step) -> bool + Send + 'static) -> Result<Applier> {
        let steps = Steps { hook: Some(Box::new(hook)), ..Steps::default() };
        let mut applier = Applier::open_with(&self.dirs, steps)?.with_reserve(0);
        applier.ahead_from = 0;
        Ok(applier)
    }

    /// Returns what is live, as a publisher would see it.
    pub(super) fn tree(&self) -> Manifest {
        scan(&self.dirs.target).unwrap().manifest().clone()
    }

    pub(super) fn path(&self, relative: &str) -> PathBuf {
        self.dirs.target.join(relative)
    }

    /// Returns the names that stand next to the target.
    pub(super) fn siblings(&self) -> Vec<String> {
        Dir::open(&self.temp.path().join("etc"))
            .unwrap()
            .names()
            .unwrap()
            .into_iter()
            .map(|name| name.into_string().unwrap())
            .collect()
    }
}

pub(super) fn put(applier: &mut Applier, number: u64, version: &Published) -> Result<Applied> {
    applier.apply(number, &version.manifest, &mut |digest| version.give(digest))
}

pub(super) fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

#[test]
fn what_is_published_is_what_is_applied_with_modes_links_and_empty_directories() {
    let source = tempfile::tempdir().unwrap();
    let large: String = (0..80_000).map(|i| format!("line {i}\n")).collect();
    write(
        source.path(),
        &[("bin/run", "#!/bin/sh"), ("current", "-> conf/a"), ("conf/a", "a"), ("a-b", "x"), ("none", "")],
    );
    write(source.path(), &[("a/b", "y"), ("large", &large)]);
    fs::create_dir(source.path().join("empty")).unwrap();
    for (path, mode) in [("bin/run", 0o755), ("conf/a", 0o400), ("conf", 0o550), ("empty", 0o700)] {
        fs::set_permissions(source.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let version = Published::of(source.path());
    let machine = Machine::new();
    let mut applier = machine.open();
    assert_eq!(applier.live(), None);
    put(&mut applier, 1, &version).unwrap();
    assert_eq!(machine.tree(), version.manifest);
    assert_eq!(applier.verify().unwrap(), vec![]);
    assert_eq!(applier.live().unwrap().version, 1);
    assert_eq!(put(&mut applier, 1, &version).unwrap(), Applied::default(), "nothing to do");
    drop(applier);
    assert_eq!(machine.open().live().unwrap().version, 1);
    assert_eq!(machine.siblings(), ["app"]);
}

#[test]
fn a_fresh_state_file_is_not_written_at_rest() {
    let machine = Machine::new();
    put(&mut machine.open(), 1, &Published::new(&[("a", "1")])).unwrap();
    let state = machine.dirs.state_dir.join("state");
    let before = fs::metadata(&state).unwrap().ctime_nsec();
    drop(machine.open());
    assert_eq!(fs::metadata(&state).unwrap().ctime_nsec(), before);
}

#[test]
fn two_processes_do_not_apply_one_set() {
    let machine = Machine::new();
    let _first = machine.open();
    assert_eq!(Applier::open(&machine.dirs).unwrap_err().code(), "LW0809");
}

#[test]
fn verification_names_every_difference() {
    let machine = Machine::new();
    let mut applier = machine.open();
    put(&mut applier, 1, &Published::new(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "-> a")])).unwrap();
    fs::write(machine.path("a"), "2").unwrap();
    fs::set_permissions(machine.path("b"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(machine.path("c")).unwrap();
    fs::remove_file(machine.path("d")).unwrap();
    symlink("b", machine.path("d")).unwrap();
    fs::write(machine.path("e"), "").unwrap();
    let drifts: Vec<_> = applier.verify().unwrap().into_iter().map(|drift| (drift.path, drift.kind)).collect();
    let expected = [
        ("a", DriftKind::Content),
        ("b", DriftKind::Mode),
        ("c", DriftKind::Missing),
        ("d", DriftKind::Content),
        ("e", DriftKind::Extra),
    ];
    assert_eq!(drifts, expected.map(|(path, kind)| (path.to_owned(), kind)));
}
