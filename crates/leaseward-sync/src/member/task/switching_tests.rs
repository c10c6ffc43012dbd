//! Stories of switches that could not be ended, and of where the way back leads then.

use std::fs;

use leaseward_state::config::spec::Layout;
use tempfile::TempDir;

use super::*;
use crate::dir::failing;
use crate::patterns::Patterns;
use crate::{SetDirs, manifest, scan};

struct Place {
    temp: TempDir,
    dirs: SetDirs,
    cache: Cache,
}

impl Place {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SetDirs { target: temp.path().join("etc"), state_dir: temp.path().join("state") };
        let cache = Cache::open(&temp.path().join("cache"), 0, Arc::default()).unwrap();
        Self { temp, dirs, cache }
    }

    fn open(&self) -> Disk {
        Disk::open(&self.dirs, Layout::Files, &Patterns::default(), 0).unwrap()
    }

    fn stage(&self, disk: &mut Disk, version: u64) -> Live {
        let tree = self.temp.path().join(format!("published-{version}"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join("a"), version.to_string()).unwrap();
        fs::write(tree.join("b"), version.to_string()).unwrap();
        let scanned = scan(&tree).unwrap();
        let name = crate::digest_of(&manifest::encode(scanned.manifest()));
        let wanted = Live { version, manifest: name };
        let manifest = Arc::new(scanned.manifest().clone());
        let mut source = |digest| scanned.read(digest).map(|bytes| Given::Proven(Arc::new(bytes)));
        disk.stage(wanted, &manifest, &mut source, &self.cache).unwrap();
        wanted
    }

    fn apply(&self, disk: &mut Disk, version: u64) -> Live {
        let live = self.stage(disk, version);
        disk.switch().unwrap();
        assert_eq!(disk.live(), Some(live));
        live
    }

    /// Lets a switch fail once its files are in their places.
    fn fails_halfway(&self, disk: &mut Disk, version: u64) {
        self.stage(disk, version);
        failing::after(1);
        disk.switch().unwrap_err();
        failing::after(usize::MAX);
        assert_eq!(disk.live(), None, "neither version is wholly there");
    }
}

#[test]
fn the_way_back_from_a_switch_that_could_not_be_ended_leads_to_what_was_live() {
    for is_noted in [true, false] {
        let place = Place::new();
        let (mut disk, due) = (place.open(), Due::of(&place.dirs));
        place.apply(&mut disk, 1);
        let two = place.apply(&mut disk, 2);
        if is_noted {
            due.note(way_back(&disk, &due).map(|(live, _)| live)).unwrap();
        }
        for version in [3, 3, 4] {
            place.fails_halfway(&mut disk, version);
            assert_eq!(way_back(&disk, &due).map(|(live, _)| live), Some(two), "{version}, noted: {is_noted}");
        }
    }
}

#[test]
fn the_way_back_does_not_lead_to_a_version_that_could_only_halfway_be_taken_back() {
    let place = Place::new();
    let (mut disk, due) = (place.open(), Due::of(&place.dirs));
    let two = place.apply(&mut disk, 2);
    due.note(way_back(&disk, &due).map(|(live, _)| live)).unwrap();
    // Its reload failed.
    place.apply(&mut disk, 3);
    place.fails_halfway(&mut disk, 2);
    assert_eq!(way_back(&disk, &due).map(|(live, _)| live), Some(two));
}

#[test]
fn a_note_is_never_half_of_one() {
    let place = Place::new();
    let (disk, due) = (place.open(), Due::of(&place.dirs));
    let live = |version| Live { version, manifest: crate::digest_of(b"any") };
    due.note(Some(live(1))).unwrap();
    let (note, old) = (place.dirs.state_dir.join("reload-due"), place.temp.path().join("old"));
    fs::hard_link(&note, &old).unwrap();
    due.note(Some(live(2))).unwrap();
    assert_eq!(due.before(), Some(live(2)));
    let old = fs::read_to_string(old).unwrap();
    assert!(old.starts_with("1 "), "it was written in its place: {old:?}");
    due.forget().unwrap();
    assert!(!due.is_noted());
    drop(disk);
}
