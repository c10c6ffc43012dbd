//! A real process that applies versions without pause is killed with SIGKILL, again and again.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use leaseward_state::config::Digest;
use leaseward_sync::{Applier, BlobStore, Scanned, SetDirs, digest_of, scan};

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

const STORE: &str = "LEASEWARD_SYNC_KILL_STORE";

/// Blobs of one batch of the child that stores; every third one is removed again.
const BATCH: u64 = 6;

fn blob(number: u64) -> (Digest, Vec<u8>) {
    let bytes = format!("blob {number} ").repeat(1 + number as usize % 500).into_bytes();
    (digest_of(&bytes), bytes)
}

/// The child: stores, settles, removes and compacts until it is killed, and says which batch is durable.
#[test]
fn child_that_stores() {
    let Some(at) = std::env::var_os(STORE) else { return };
    let store = BlobStore::open(Path::new(&at)).unwrap().with_floor(0);
    let first = (0..).find(|batch| !store.contains(blob(batch * BATCH).0)).unwrap();
    for batch in first.. {
        let blobs: Vec<_> = (batch * BATCH..(batch + 1) * BATCH).map(blob).collect();
        store.put_plain(blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))).unwrap();
        store.settle().unwrap();
        println!("durable {batch}");
        blobs.iter().skip(2).for_each(|(digest, _)| store.remove(*digest).unwrap());
        if batch % 4 == 0 {
            store.compact().unwrap();
        }
    }
}

#[test]
fn what_was_said_to_be_durable_is_in_the_store_after_every_kill() {
    let temp = tempfile::tempdir().unwrap();
    let mut durable = 0;
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_stores", "--nocapture"])
            .env(STORE, temp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = || lines.by_ref().find_map(|line| line.ok()?.strip_prefix("durable ")?.parse::<u64>().ok());
        // Some batches, other each round; what it says until it is dead counts as well.
        let some = said().expect("the child stores something") + round as u64 % 7;
        let killed = std::iter::from_fn(&mut said).find(|batch| *batch >= some);
        child.kill().unwrap();
        durable = said().into_iter().chain(std::iter::from_fn(&mut said)).chain(killed).max().unwrap_or(durable);
        child.wait().unwrap();
        let store = BlobStore::open(temp.path()).unwrap();
        for batch in 0..=durable {
            for (digest, bytes) in (batch * BATCH..batch * BATCH + 2).map(blob) {
                assert!(store.contains(digest), "round {round}, batch {batch} of {durable}");
                assert_eq!(store.get(digest).unwrap(), bytes);
            }
        }
    }
    let names = std::fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| name.ends_with(".pack")));
}
