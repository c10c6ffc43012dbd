//! A file system that is full, really: a small tmpfs. Needs root; without it the story is left out and says so.

use std::process::Command;

use super::*;
use crate::store::BlobStore;

/// A small file system that goes away with the test.
struct SmallDisk {
    at: TempDir,
}

impl SmallDisk {
    fn new(options: &str) -> Option<Self> {
        let at = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { at });
        }
        eprintln!("LEFT OUT: only root can mount the small file system that this test fills");
        None
    }

    fn machine(&self) -> Machine {
        let etc = self.at.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let dirs = SetDirs { target: etc.join("app"), state_dir: self.at.path().join("state") };
        Machine { temp, dirs }
    }

    /// Fills the disk to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.at.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
        path
    }

    /// Gives back what was filled, at once: a child that another test is just starting may have a copy of the open file, and
    /// then its removal alone does not.
    fn empty(filler: &Path) {
        fs::File::options().write(true).open(filler).unwrap().set_len(0).unwrap();
        fs::remove_file(filler).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
    }
}

fn noise(length: usize) -> String {
    (0..length as u64 / 16).map(|i| format!("{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
}

#[test]
fn a_version_that_does_not_fit_is_refused_with_the_numbers() {
    let Some(disk) = SmallDisk::new("size=2m") else { return };
    let machine = disk.machine();
    let mut applier = machine.open();
    let one = Published::new(&[("a", "1")]);
    put(&mut applier, 1, &one).unwrap();
    let error = put(&mut applier, 2, &Published::new(&[("a", &noise(4 << 20))])).unwrap_err();
    let Error::NotEnoughSpace { need, free } = &error else { panic!("{error}") };
    assert!(need.bytes > 4 << 20 && free.bytes < 2 << 20, "{error}");
    assert_eq!(machine.tree(), one.manifest);
}

#[test]
fn too_few_inodes_are_noticed_before() {
    let Some(disk) = SmallDisk::new("size=8m,nr_inodes=40") else { return };
    let machine = disk.machine();
    let names: Vec<String> = (0..60).map(|i| format!("f{i}")).collect();
    let version = Published::new(&names.iter().map(|name| (name.as_str(), "")).collect::<Vec<_>>());
    assert_eq!(put(&mut machine.open(), 1, &version).unwrap_err().code(), "LW0803");
    assert!(!machine.dirs.target.exists());
}

#[test]
fn a_disk_that_fills_up_meanwhile_leaves_the_old_version_and_no_litter() {
    let Some(disk) = SmallDisk::new("size=4m") else { return };
    let machine = disk.machine();
    let mut applier = machine.open();
    let (one, two) = (Published::new(&[("a", "1")]), Published::new(&[("a", &noise(1 << 20)), ("b", "2")]));
    put(&mut applier, 1, &one).unwrap();
    let mut filler = None;
    let error = applier
        .apply(2, &two.manifest, &mut |digest| {
            filler.get_or_insert_with(|| disk.fill());
            two.give(digest)
        })
        .unwrap_err();
    assert_eq!(error.code(), "LW0605", "{error}");
    assert!(error.is_retryable());
    assert_eq!(machine.tree(), one.manifest);
    assert_eq!(applier.live().unwrap().version, 1);
    let names = Dir::open(&disk.at.path().join("etc")).unwrap().names().unwrap();
    assert_eq!(names, ["app"]);
    // Opening works on a full disk as well.
    drop(applier);
    let mut applier = machine.open();
    SmallDisk::empty(&filler.unwrap());
    put(&mut applier, 2, &two).unwrap();
    assert_eq!(machine.tree(), two.manifest);
}

#[test]
fn a_full_store_says_so_and_leaves_nothing_half_written() {
    let Some(disk) = SmallDisk::new("size=1m") else { return };
    let store = BlobStore::open(&disk.at.path().join("blobs")).unwrap().with_floor(0);
    let small = b"small".to_vec();
    store.put(digest_of(&small), &small).unwrap();
    let filler = disk.fill();
    let large = noise(200_000).into_bytes();
    let digest = digest_of(&large);
    assert_eq!(store.put(digest, &large).unwrap_err().code(), "LW0605");
    assert!(!store.contains(digest));
    assert_eq!(fs::read_dir(disk.at.path().join("blobs")).unwrap().count(), 1, "the small one");
    assert_eq!(store.get(digest_of(&small)).unwrap(), small);
    SmallDisk::empty(&filler);
    store.put(digest, &large).unwrap();
    let store = store.with_floor(900_000);
    let other = noise(100_000).into_bytes();
    let Err(Error::DiskFull { floor, .. }) = store.put(digest_of(&other), &other) else { panic!("below the floor") };
    assert_eq!(floor, 900_000);
}

#[test]
fn a_store_in_the_old_form_is_opened_on_a_full_disk_and_taken_over_where_there_is_room() {
    // Smaller than half of the floor.
    let Some(disk) = SmallDisk::new("size=1m") else { return };
    let bytes = b"small".to_vec();
    let (digest, hex) = (digest_of(&bytes), digest_of(&bytes).to_string());
    let dir = disk.at.path().join("blobs");
    let path = dir.join(&hex[..2]).join(&hex[2..]);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, crate::frame::pack(&bytes).unwrap()).unwrap();
    for _ in 0..2 {
        assert!(!BlobStore::open(&dir).unwrap().contains(digest));
        assert!(path.exists(), "nothing else has it");
    }
    let large = tempfile::tempdir().unwrap();
    fs::create_dir(large.path().join(&hex[..2])).unwrap();
    fs::copy(&path, large.path().join(&hex[..2]).join(&hex[2..])).unwrap();
    let store = BlobStore::open(large.path()).unwrap();
    assert!(store.contains(digest));
    assert_eq!(fs::read_dir(large.path()).unwrap().count(), 1);
}
