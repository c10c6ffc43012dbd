//! Room that comes back: what is left of worn packs is put together, and nothing is lost by that.

use super::*;
use crate::limits::{MOVED_BYTES_MAX, PACKS_SMALL_MAX};
use crate::store::compact::one_time;

#[test]
fn compacting_gives_room_back_and_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let blobs: Vec<_> = (0..100).map(blob).collect();
    first.put_many(&blobs[..50]).unwrap();
    first.put_many(&blobs[50..]).unwrap();
    let bytes = |temp| files(temp, PACK).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>();
    let before = bytes(&temp);
    // Most of the one goes, and little of the other one.
    for (digest, _) in blobs[..40].iter().chain(&blobs[50..60]) {
        first.remove(*digest).unwrap();
    }
    first.compact().unwrap();
    assert_eq!(files(&temp, PACK).len(), 2);
    assert!(bytes(&temp) < before * 7 / 10, "{} of {before}", bytes(&temp));
    let kept = || blobs[40..50].iter().chain(&blobs[60..]);
    for (digest, bytes) in kept() {
        assert!(first.contains(*digest));
        assert_eq!(first.get(*digest).unwrap(), *bytes);
    }
    first.compact().unwrap();
    drop(first);
    let second = store(&temp);
    assert_eq!(second.digests().len(), 10 + 50, "what a pack still holds comes back with a new start");
    assert!(kept().all(|(digest, bytes)| second.get(*digest).unwrap() == *bytes));
    // A pack of which nothing is needed goes at once.
    second.digests().into_iter().for_each(|digest| second.remove(digest).unwrap());
    assert_eq!(files(&temp, PACK).len(), 0);
}

#[test]
fn a_damaged_blob_keeps_its_pack_when_the_rest_moves() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..10).map(blob).collect();
    store.put_many(&blobs).unwrap();
    let path = file_of(&temp, blobs[0].0);
    let mut bad = fs::read(&path).unwrap();
    bad[20] ^= 1;
    fs::write(&path, bad).unwrap();
    blobs[2..].iter().for_each(|(digest, _)| store.remove(*digest).unwrap());
    store.compact().unwrap();
    assert_eq!(store.get(blobs[1].0).unwrap(), blobs[1].1);
    assert_ne!(file_of(&temp, blobs[1].0), path);
    let error = store.get(blobs[0].0).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn compacting_takes_little_room_at_a_time_also_from_the_floor() {
    let place = |pack, length| (Place { pack, offset: 0, length }, Digest([0; 32]));
    let half = MOVED_BYTES_MAX as u32 / 2;
    let moving = [place(1, half), place(1, half), place(2, 1), place(2, half), place(3, half - 1), place(4, 1)];
    assert_eq!(one_time(&moving), 2);
    assert_eq!(one_time(&moving[2..]), 3);
    assert_eq!(one_time(&[place(1, 2 * half), place(1, half), place(2, 1)]), 2, "whole packs, and one at least");

    let temp = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = (0..10).map(blob).collect();
    store(&temp).put_many(&blobs).unwrap();
    let free = crate::space::free(Dir::open(temp.path()).unwrap(), temp.path(), 0).unwrap().bytes;
    let store = BlobStore::open(temp.path()).unwrap().with_floor(free / 2 * 3);
    assert_eq!(store.put(blob(10).0, &blob(10).1).unwrap_err().code(), "LW0605");
    blobs[1..].iter().for_each(|(digest, _)| store.remove(*digest).unwrap());
    let before = file_of(&temp, blobs[0].0);
    store.compact().unwrap();
    assert_ne!(file_of(&temp, blobs[0].0), before, "it gives room back on a disk that has none");
}

#[test]
fn a_compaction_that_fails_leaves_everything_where_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..10).map(blob).collect();
    store.put_many(&blobs).unwrap();
    blobs[1..].iter().for_each(|(digest, _)| store.remove(*digest).unwrap());
    let number = store.next.load(Ordering::Relaxed);
    fs::write(temp.path().join(name_of(number, Standing::Named)), "in the way").unwrap();
    assert!(store.compact().is_err());
    assert_eq!((files(&temp, LOOSE).len(), files(&temp, PACK).len()), (0, 1));
    assert!(store.contains(blobs[0].0));
    assert_eq!(store.get(blobs[0].0).unwrap(), blobs[0].1);
    store.compact().unwrap();
    assert_eq!(store.get(blobs[0].0).unwrap(), blobs[0].1);
}

#[test]
fn many_small_packs_become_few() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let blobs: Vec<_> = (0..=PACKS_SMALL_MAX as u32).map(blob).collect();
    blobs[1..].iter().for_each(|(digest, bytes)| first.put(*digest, bytes).unwrap());
    first.compact().unwrap();
    assert_eq!(files(&temp, PACK).len(), PACKS_SMALL_MAX, "not too many yet");
    first.put(blobs[0].0, &blobs[0].1).unwrap();
    first.compact().unwrap();
    assert_eq!(files(&temp, PACK).len(), 1);
    drop(first);
    let second = store(&temp);
    assert!(blobs.iter().all(|(digest, bytes)| second.contains(*digest) && second.get(*digest).unwrap() == *bytes));
}

#[test]
fn whoever_reads_while_it_settles_and_is_compacted_finds_everything() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    for round in 0..20 {
        let blobs: Vec<_> = (round * 60..round * 60 + 60).map(blob).collect();
        let (kept, gone) = blobs.split_at(20);
        put_plain(&store, &blobs).unwrap();
        let (done, start) = (std::sync::atomic::AtomicBool::new(false), std::sync::Barrier::new(3));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    while !done.load(Ordering::Relaxed) {
                        kept.iter().for_each(|(digest, bytes)| assert_eq!(store.get(*digest).unwrap(), *bytes));
                    }
                });
            }
            start.wait();
            let first = store.index().places[&kept[0].0];
            store.settle().unwrap();
            gone.iter().for_each(|(digest, _)| store.remove(*digest).unwrap());
            store.compact().unwrap();
            done.store(true, Ordering::Relaxed);
            assert_ne!(store.index().places[&kept[0].0], first, "it moved");
        });
    }
}
