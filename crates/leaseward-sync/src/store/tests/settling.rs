//! On the way to the disk: nobody counts on what a power cut could still take.

use std::collections::BTreeSet;

use super::*;
use crate::dir::failing;
use crate::limits::PACKS_OPEN_MAX;

#[test]
fn loose_blobs_are_read_and_not_counted_on_until_they_settle() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let blobs: Vec<_> = (0..20).map(blob).collect();
    let digests = names(&blobs);
    let frames: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, frame::pack(bytes).unwrap())).collect();
    first.put_loose(&frames[..10]).unwrap();
    put_plain(&first, &blobs[10..]).unwrap();
    assert_eq!(first.lacking(&digests), []);
    assert_eq!(first.missing(&digests), digests, "nobody may count on them");
    for (digest, bytes) in &blobs {
        assert_eq!(first.get(*digest).unwrap(), *bytes);
    }
    drop(first);
    // A crash forgets them, all or nothing of each.
    let second = store(&temp);
    assert_eq!(second.lacking(&digests), digests);
    second.put_loose(&frames).unwrap();
    second.remove(digests[1]).unwrap();
    assert_eq!(second.missing(&digests), digests);
    second.settle().unwrap();
    second.settle().unwrap();
    assert_eq!(second.missing(&digests), [digests[1]]);
    drop(second);
    let third = store(&temp);
    third.remove(digests[1]).unwrap();
    assert_eq!(third.missing(&digests), [digests[1]]);
    assert_eq!((files(&temp, LOOSE).len(), files(&temp, PACK).len()), (0, 1));
}

#[test]
fn what_came_uncompressed_is_compressed_before_it_is_kept_and_given_away_so_already() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let text = b"timeout = 30\n".repeat(10_000);
    let (digest, packed) = (digest_of(&text), frame::pack(&text).unwrap());
    store.put_loose(&[(digest, frame::pack_later(&text).unwrap())]).unwrap();
    assert_eq!(store.get(digest).unwrap(), text);
    assert_eq!(store.get_frame(digest).unwrap(), packed, "others get it over a network");
    let bytes_of = |ending| -> Vec<u64> {
        files(&temp, ending).iter().map(|path| std::fs::metadata(path).unwrap().len()).collect()
    };
    assert!(bytes_of(LOOSE)[0] > text.len() as u64);
    store.settle().unwrap();
    assert!(store.contains(digest));
    let kept = bytes_of(PACK);
    assert!(kept.len() == 1 && kept[0] < text.len() as u64 / 10, "{kept:?}");
    assert_eq!(bytes_of(LOOSE), [0; 0]);
    assert_eq!((store.get(digest).unwrap(), store.get_frame(digest).unwrap()), (text, packed));
}

#[test]
fn what_came_uncompressed_is_kept_as_it_is_where_there_is_no_room_for_another_copy() {
    let temp = tempfile::tempdir().unwrap();
    let text = b"timeout = 30\n".repeat(10_000);
    let (digest, mut full) = (digest_of(&text), store(&temp));
    full.put_loose(&[(digest, frame::pack_later(&text).unwrap())]).unwrap();
    full = full.with_floor(u64::MAX / 2);
    full.settle().unwrap();
    assert!(full.contains(digest), "it is as durable as any");
    drop(full);
    let again = store(&temp);
    assert_eq!(again.get(digest).unwrap(), text);
    assert_eq!(again.get_frame(digest).unwrap(), frame::pack(&text).unwrap());
}

#[test]
fn a_name_that_is_not_yet_durable_does_not_count() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs = [blob(1)];
    put_plain(&store, &blobs).unwrap();
    let number = *store.index().packs.keys().next().unwrap();
    // As far as a settling goes before it syncs the names.
    store.name(number).unwrap();
    assert!(!store.contains(blobs[0].0), "a power cut could still take it");
    assert_eq!(store.get(blobs[0].0).unwrap(), blobs[0].1);
    store.put(blobs[0].0, &blobs[0].1).unwrap();
    assert!(store.contains(blobs[0].0));
}

#[test]
fn whoever_settles_finds_everything_durable_though_another_one_began_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    for round in 0..100 {
        let blobs: Vec<_> = (round * 10..round * 10 + 10).map(blob).collect();
        put_plain(&store, &blobs).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    store.settle().unwrap();
                    assert_eq!(store.missing(&names(&blobs)), []);
                });
            }
        });
    }
}

#[test]
fn whoever_brought_and_settled_finds_it_durable_though_others_bring_it_too() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let start = std::sync::Barrier::new(3);
    for round in 0..50 {
        let blobs: Vec<_> = (round * 10..round * 10 + 10).map(blob).collect();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    start.wait();
                    put_plain(&store, &blobs).unwrap();
                    store.settle().unwrap();
                    assert_eq!(store.missing(&names(&blobs)), [], "round {round}");
                });
            }
        });
    }
    store.settle().unwrap();
    assert_eq!(files(&temp, LOOSE).len(), 0, "twins are removed, or settled");
}

#[test]
fn what_could_not_be_settled_is_settled_by_the_next_one() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let (one, other) = ([blob(1), blob(2)], [blob(3)]);
    put_plain(&store, &one).unwrap();
    put_plain(&store, &other).unwrap();
    // The second pack cannot get its name.
    let number = *store.index().packs.keys().max().unwrap();
    let in_the_way = temp.path().join(name_of(number, Standing::Named));
    fs::write(&in_the_way, "").unwrap();
    assert!(store.settle().is_err());
    let all = names(&[one.as_slice(), other.as_slice()].concat());
    assert_eq!(store.missing(&all), all, "their names are not durable");
    assert!(one.iter().chain(&other).all(|(digest, bytes)| store.get(*digest).unwrap() == *bytes));
    fs::remove_file(&in_the_way).unwrap();
    store.settle().unwrap();
    assert_eq!(store.missing(&all), []);
    // One that went away meanwhile is in nobody's way.
    put_plain(&store, &[blob(9)]).unwrap();
    store.remove(blob(9).0).unwrap();
    store.settle().unwrap();
    assert_eq!(files(&temp, LOOSE).len(), 0);
}

#[test]
fn after_a_sync_that_failed_another_file_is_synced_and_not_that_one() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..3).map(blob).collect();
    put_plain(&store, &blobs[..2]).unwrap();
    let path = files(&temp, LOOSE).remove(0);
    // The file that it was written through tells of an error, whatever bears its name now; and tells it once.
    let number = *store.index().packs.keys().next().unwrap();
    let good = store.index().packs.get_mut(&number).unwrap().file.replace(unsyncable());
    assert!(store.settle().is_err());
    store.index().packs.get_mut(&number).unwrap().file = good;
    let doubted = fs::metadata(&path).unwrap().ino();
    put_plain(&store, &blobs).unwrap();
    store.settle().unwrap();
    assert_eq!((store.missing(&names(&blobs)), store.losses()), (vec![], 0));
    let inode = |digest| fs::metadata(file_of(&temp, digest)).unwrap().ino();
    assert!(blobs.iter().all(|(digest, bytes)| inode(*digest) != doubted && store.get(*digest).unwrap() == *bytes));
    assert_eq!((files(&temp, LOOSE).len(), files(&temp, PACK).len()), (0, 2));
}

/// Returns something whose sync fails.
fn unsyncable() -> Arc<File> {
    let (end, _) = std::io::pipe().unwrap();
    Arc::new(std::os::fd::OwnedFd::from(end).into())
}

#[test]
fn so_many_loose_packs_that_not_all_are_open_are_synced_with_their_file_system() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..=PACKS_OPEN_MAX as u32).map(blob).collect();
    for blob in &blobs {
        put_plain(&store, std::slice::from_ref(blob)).unwrap();
    }
    let open = |store: &BlobStore| store.index().packs.values().filter(|pack| pack.file.is_some()).count();
    assert_eq!(open(&store), PACKS_OPEN_MAX);
    // One that is open goes: the one that is not must not be left out.
    store.remove(blobs[0].0).unwrap();
    for pack in store.index().packs.values_mut().filter(|pack| pack.file.is_some()) {
        pack.file = Some(unsyncable());
    }
    store.settle().unwrap();
    assert_eq!(store.missing(&names(&blobs[1..])), []);
    assert_eq!((open(&store), files(&temp, PACK).len()), (0, PACKS_OPEN_MAX));
}

#[test]
fn what_a_failed_sync_took_is_missed_and_said() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..2).map(blob).collect();
    put_plain(&store, &blobs).unwrap();
    let path = files(&temp, LOOSE).remove(0);
    let number = *store.index().packs.keys().next().unwrap();
    store.doubt(&[number]);
    let mut bad = fs::read(&path).unwrap();
    bad[20] ^= 1;
    fs::write(&path, bad).unwrap();
    store.settle().unwrap();
    assert_eq!((store.lacking(&names(&blobs)), store.losses()), (vec![blobs[0].0], 1));
    assert!(store.contains(blobs[1].0));
    store.put_many(&blobs).unwrap();
    assert_eq!(store.missing(&names(&blobs)), []);
}

#[test]
fn names_whose_sync_failed_do_not_count_and_what_they_name_is_written_again() {
    // One pack after the other is synced, or the whole file system for many; then the names are.
    for (packs, fails) in [(1, 0), (PACKS_OPEN_MAX + 1, 0), (PACKS_OPEN_MAX + 1, 1)] {
        let temp = tempfile::tempdir().unwrap();
        let store = store(&temp);
        let blobs: Vec<_> = (0..packs as u32).map(blob).collect();
        blobs.chunks(1).for_each(|blobs| put_plain(&store, blobs).unwrap());
        failing::after(fails);
        store.settle().unwrap_err();
        assert_eq!(
            store.missing(&names(&blobs)),
            names(&blobs),
            "{packs} packs, sync {fails}: nobody may count on them"
        );
        let inodes = || -> BTreeSet<u64> {
            let all = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().ino());
            all.collect()
        };
        // Held open, so that no new file can have the number of one that went.
        let open: Vec<_> =
            fs::read_dir(temp.path()).unwrap().map(|entry| fs::File::open(entry.unwrap().path())).collect();
        let doubted = inodes();
        store.settle().unwrap();
        assert_eq!((store.missing(&names(&blobs)), store.losses()), (vec![], 0));
        assert!(
            inodes().is_disjoint(&doubted),
            "{packs} packs, sync {fails}: another sync of the same ones proves nothing"
        );
        assert!(blobs.iter().all(|(digest, bytes)| store.get(*digest).unwrap() == *bytes));
        drop(open);
    }
}

/// The kernel says it once, to whoever asks first.
#[test]
fn a_sync_that_failed_for_a_compaction_failed_for_whoever_settles_too() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let worn: Vec<_> = (0..10).map(blob).collect();
    store.put_many(&worn).unwrap();
    worn[..8].iter().for_each(|(digest, _)| store.remove(*digest).unwrap());
    let new = [blob(100)];
    put_plain(&store, &new).unwrap();
    // As far as a settling goes before it syncs the names.
    let number = *store.index().packs.keys().max().unwrap();
    store.name(number).unwrap();
    let before = files(&temp, PACK);
    failing::after(0);
    store.compact().unwrap_err();
    assert_eq!(files(&temp, PACK), before, "what was to be moved is where it was");
    assert!(worn[8..].iter().all(|(digest, bytes)| store.contains(*digest) && store.get(*digest).unwrap() == *bytes));
    let name = file_of(&temp, new[0].0);
    store.settle().unwrap();
    assert!(store.contains(new[0].0));
    assert_ne!(file_of(&temp, new[0].0), name, "its name may be lost, whatever the next sync says");
}
