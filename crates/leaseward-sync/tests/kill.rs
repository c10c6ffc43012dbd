//! A real process that applies versions without pause is killed with SIGKILL, again and again.

use std::path::Path;
use std::process::{Command, Stdio};

use leaseward_sync::{Applier, BlobStore, Scanned, SetDirs, scan};

const ROUNDS: usize = 25;
const WORLD: &str = "LEASEWARD_SYNC_KILL_WORLD";

fn dirs(world: &Path) -> SetDirs {
    SetDirs { target: world.join("etc/app"), state_dir: world.join("state") }
}

fn published(world: &Path) -> [Scanned; 2] {
    ["one", "two"].map(|name| scan(&world.join(name)).expect("the versions are legal"))
}

/// The child: flips versions until it is killed. In an ordinary test run it has no world and does nothing.
#[test]
fn child_that_flips() {
    let Some(world) = std::env::var_os(WORLD) else { return };
    let world = Path::new(&world);
    let store = BlobStore::open(&world.join("blobs")).unwrap();
    let versions = published(world);
    let mut applier = Applier::open(&dirs(world)).unwrap();
    for number in 1.. {
        applier.apply_from(number, versions[number as usize % 2].manifest(), &store).unwrap();
    }
}

#[test]
fn the_live_tree_is_whole_after_every_kill() {
    let temp = tempfile::tempdir().unwrap();
    let world = temp.path();
    std::fs::create_dir(world.join("etc")).unwrap();
    let store = BlobStore::open(&world.join("blobs")).unwrap();
    for name in ["one", "two"] {
        for i in 0..30 {
            let dir = world.join(name).join(format!("d{}", i % 3));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(format!("f{i}")), if i % 5 == 0 { "same" } else { name }).unwrap();
        }
    }
    let versions = published(world);
    for version in &versions {
        let blobs: Vec<_> = version.digests().map(|digest| (digest, version.read(digest).unwrap())).collect();
        store.put_many(&blobs).unwrap();
    }
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_flips", "--nocapture"])
            .env(WORLD, world)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Let it flip some times, and then a little, other each round.
        let target = world.join("etc/app");
        let inode = || std::fs::metadata(&target).map_or(0, |found| std::os::unix::fs::MetadataExt::ino(&found));
        let mut last = inode();
        let mut flips = 0;
        while flips < 3 {
            assert!(child.try_wait().unwrap().is_none(), "the child died by itself");
            let now = inode();
            flips += usize::from(now != last);
            last = now;
        }
        (0..round * 40).for_each(|_| assert_ne!(inode(), 0));
        child.kill().unwrap();
        child.wait().unwrap();
        let tree = scan(&target).unwrap().manifest().clone();
        let which = versions.iter().position(|version| *version.manifest() == tree).expect("a mixed tree");
        let applier = Applier::open(&dirs(world)).unwrap();
        let live = applier.live().expect("one of ours is live");
        assert_eq!(live.version as usize % 2, which, "round {round}");
        assert_eq!(applier.verify().unwrap(), vec![]);
    }
}
