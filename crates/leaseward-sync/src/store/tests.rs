//! The content store: damage, repetition, leftovers of a death, room that comes back.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use super::*;

fn blob(n: u32) -> (Digest, Vec<u8>) {
    let bytes = format!("blob {n} ").repeat(100).into_bytes();
    (digest_of(&bytes), bytes)
}

fn store(temp: &tempfile::TempDir) -> BlobStore {
    BlobStore::open(temp.path()).unwrap().with_floor(0)
}

fn put_plain(store: &BlobStore, blobs: &[(Digest, Vec<u8>)]) -> Result<()> {
    store.put_plain(blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())))
}

fn names(blobs: &[(Digest, Vec<u8>)]) -> Vec<Digest> {
    blobs.iter().map(|(digest, _)| *digest).collect()
}

/// The files of a store, by what they are.
fn files(temp: &tempfile::TempDir, ending: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = all.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    found.sort();
    found
}

fn file_of(temp: &tempfile::TempDir, digest: Digest) -> PathBuf {
    stored(temp.path()).unwrap()[&digest].clone()
}

#[test]
fn blobs_are_kept_found_listed_and_removed() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let blobs: Vec<_> = (0..200).map(blob).collect();
    let digests = names(&blobs);
    assert_eq!(first.missing(&digests), digests);
    first.put_many(&blobs[..150]).unwrap();
    assert_eq!(first.missing(&digests), digests[150..]);
    blobs[150..].iter().for_each(|(digest, bytes)| first.put(*digest, bytes).unwrap());
    let store = store(&temp);
    for (digest, bytes) in &blobs {
        assert_eq!(store.get(*digest).unwrap(), *bytes);
    }
    let mut sorted = digests.clone();
    sorted.sort_unstable();
    assert_eq!(store.digests(), sorted);
    assert_eq!(stored(temp.path()).unwrap().into_keys().collect::<Vec<_>>(), sorted);
    store.remove(digests[0]).unwrap();
    store.remove(digests[0]).unwrap();
    assert!(matches!(store.get(digests[0]), Err(Error::BlobMissing { .. })));
    assert_eq!(store.digests().len(), 199);
}

#[test]
fn every_damage_of_a_blob_is_detected_named_and_mended_by_another_put() {
    let temp = tempfile::tempdir().unwrap();
    let kept = store(&temp);
    let (digest, bytes) = blob(1);
    kept.put(digest, &bytes).unwrap();
    let path = file_of(&temp, digest);
    let good = fs::read(&path).unwrap();
    let frame = kept.get_frame(digest).unwrap();
    assert_eq!(good[..frame.len()], frame);
    let mut damages = vec![vec![], good[..frame.len() - 1].to_vec()];
    damages.extend((0..frame.len()).map(|i| {
        let mut bad = good.clone();
        bad[i] ^= 0x10;
        bad
    }));
    for bad in damages {
        fs::write(&path, &bad).unwrap();
        for error in [kept.get(digest).unwrap_err(), kept.get_frame(digest).unwrap_err()] {
            assert_eq!(error.code(), "LW0802");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
    kept.put(digest, &bytes).unwrap();
    assert_eq!(kept.get(digest).unwrap(), bytes);
    drop(kept);
    let kept = store(&temp);
    assert_eq!(kept.get(digest).unwrap(), bytes, "the newer copy stands");
    // A whole frame under a wrong name.
    let (other, more) = blob(2);
    kept.put(other, &more).unwrap();
    let (from, to) = (file_of(&temp, other), file_of(&temp, digest));
    let other_frame = kept.get_frame(other).unwrap();
    assert_eq!(other_frame.len(), frame.len());
    let mut swapped = fs::read(&to).unwrap();
    swapped[..frame.len()].copy_from_slice(&fs::read(&from).unwrap()[..frame.len()]);
    fs::write(&to, swapped).unwrap();
    assert_eq!(kept.get(digest).unwrap_err().code(), "LW0802");
}

#[test]
fn every_damage_of_a_table_sets_the_pack_aside_and_the_store_opens() {
    let temp = tempfile::tempdir().unwrap();
    let kept = store(&temp);
    let blobs: Vec<_> = (0..3).map(blob).collect();
    kept.put_many(&blobs[..2]).unwrap();
    kept.put(blobs[2].0, &blobs[2].1).unwrap();
    let (path, digests) = (file_of(&temp, blobs[0].0), names(&blobs));
    let good = fs::read(&path).unwrap();
    let table = kept.get_frame(digests[0]).unwrap().len() + kept.get_frame(digests[1]).unwrap().len();
    drop(kept);
    let mut damages = vec![vec![], good[..table].to_vec(), good[..good.len() - 1].to_vec(), [&[0], &*good].concat()];
    damages.extend((table..good.len()).map(|i| {
        let mut bad = good.clone();
        bad[i] ^= 0x10;
        bad
    }));
    for bad in damages {
        fs::write(&path, &bad).unwrap();
        let kept = store(&temp);
        assert_eq!(kept.missing(&digests), digests[..2], "and the other pack is whole");
        assert_eq!(kept.get(digests[0]).unwrap_err().code(), "LW0801");
        assert!(!path.exists());
        let aside = files(&temp, DAMAGED);
        assert_eq!(fs::read(&aside[0]).unwrap(), bad, "somebody may want to look at it");
        fs::remove_file(&aside[0]).unwrap();
    }
    // A cache has nobody who would look.
    fs::write(&path, &good[1..]).unwrap();
    assert_eq!(BlobStore::open_cache(temp.path()).unwrap().missing(&digests), digests[..2]);
    assert_eq!((files(&temp, DAMAGED), files(&temp, PACK).len()), (vec![], 1));
}

#[test]
fn a_pack_that_is_gone_is_missed_once_somebody_asks_for_what_it_held() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let blobs: Vec<_> = (0..4).map(blob).collect();
    store.put_many(&blobs[..2]).unwrap();
    store.put_many(&blobs[2..]).unwrap();
    fs::remove_file(file_of(&temp, blobs[0].0)).unwrap();
    assert_eq!(store.get(blobs[1].0).unwrap_err().code(), "LW0801");
    assert_eq!(store.missing(&names(&blobs)), names(&blobs[..2]));
    store.put_many(&blobs).unwrap();
    assert!(blobs.iter().all(|(digest, bytes)| store.get(*digest).unwrap() == *bytes));
}

#[test]
fn what_does_not_match_its_name_is_not_stored() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let ((digest, bytes), (other, _)) = (blob(1), blob(2));
    assert_eq!(store.put(other, &bytes).unwrap_err().code(), "LW0802");
    assert_eq!(store.put_frame(other, &frame::pack(&bytes).unwrap()).unwrap_err().code(), "LW0802");
    assert_eq!(store.put(digest, &vec![0; BLOB_BYTES_MAX + 1]).unwrap_err().code(), "LW0802");
    let huge = vec![0; BLOB_BYTES_MAX + 1];
    assert_eq!(store.put(digest_of(&huge), &huge).unwrap_err().code(), "LW0808");
    // Also if another one before it does.
    let frames = [(digest, frame::pack(&bytes).unwrap()), (other, frame::pack(&bytes).unwrap())];
    assert_eq!(store.put_loose(&frames).unwrap_err().code(), "LW0802");
    assert_eq!(store.digests(), []);
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
}

#[test]
fn what_another_voter_has_verified_is_looked_at_by_its_checksum() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let ((digest, bytes), (other, _)) = (blob(1), blob(2));
    let good = frame::pack(&bytes).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(store.put_checked(&[(digest, bad)]).unwrap_err().code(), "LW0802", "bit {bit}");
    }
    store.put_checked(&[(digest, &good), (other, &good)]).unwrap();
    assert_eq!(store.get(digest).unwrap(), bytes);
    // Whoever has lied about the name is found out before anybody uses it, and a good copy takes its place.
    assert_eq!(store.get(other).unwrap_err().code(), "LW0802");
    store.put(other, &blob(2).1).unwrap();
    assert_eq!(store.get(other).unwrap(), blob(2).1);
}

#[test]
fn the_wire_form_goes_from_store_to_store() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (here, there) = (store(&here), store(&there));
    let (digest, bytes) = blob(1);
    here.put(digest, &bytes).unwrap();
    let wire = here.get_frame(digest).unwrap();
    assert!(wire.len() < bytes.len());
    there.put_frame(digest, &wire).unwrap();
    assert_eq!(there.get(digest).unwrap(), bytes);
}

#[test]
fn a_repeated_put_writes_nothing_and_a_death_leaves_no_litter() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let (digest, bytes) = blob(1);
    first.put(digest, &bytes).unwrap();
    let before = fs::metadata(file_of(&temp, digest)).unwrap().ino();
    first.put(digest, &bytes).unwrap();
    assert_eq!(fs::metadata(file_of(&temp, digest)).unwrap().ino(), before);
    fs::write(temp.path().join("0000000007.loose"), "half").unwrap();
    drop(first);
    let second = store(&temp);
    assert_eq!((files(&temp, LOOSE).len(), files(&temp, PACK).len()), (0, 1));
    assert_eq!(second.digests().len(), 1);
}

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
fn threads_may_put_the_same_blobs() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).map(blob).for_each(|(digest, bytes)| store.put(digest, &bytes).unwrap()));
        }
    });
    assert_eq!(store.digests().len(), 20);
    assert!((0..20).all(|n| store.contains(blob(n).0)));
    assert_eq!(files(&temp, PACK).len(), 20, "what nobody needs is removed");
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
    // Something that cannot be synced stands there, once.
    let aside = temp.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(store.settle().is_err());
    fs::rename(&aside, &path).unwrap();
    let doubted = fs::metadata(&path).unwrap().ino();
    put_plain(&store, &blobs).unwrap();
    store.settle().unwrap();
    assert_eq!((store.missing(&names(&blobs)), store.losses()), (vec![], 0));
    let inode = |digest| fs::metadata(file_of(&temp, digest)).unwrap().ino();
    assert!(blobs.iter().all(|(digest, bytes)| inode(*digest) != doubted && store.get(*digest).unwrap() == *bytes));
    assert_eq!((files(&temp, LOOSE).len(), files(&temp, PACK).len()), (0, 2));
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
fn what_cannot_be_looked_at_now_stays_as_it_is() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let (digest, bytes) = blob(1);
    first.put(digest, &bytes).unwrap();
    let (path, aside) = (file_of(&temp, digest), temp.path().join("aside"));
    // As with too many open files: no word about the pack.
    fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &path).unwrap();
    assert!(first.put_loose(&[(digest, frame::pack(&bytes).unwrap())]).is_err());
    assert_eq!((files(&temp, LOOSE).len(), first.contains(digest)), (0, true));
    fs::rename(&aside, &path).unwrap();
    drop(first);
    assert_eq!(store(&temp).get(digest).unwrap(), bytes, "it was durable, and still is");
}

#[test]
fn what_nobody_took_leaves_nothing_behind() {
    let temp = tempfile::tempdir().unwrap();
    let (digest, bytes) = blob(1);
    let frame = frame::pack(&bytes).unwrap();
    for store in [store(&temp), BlobStore::open_cache(temp.path()).unwrap().with_floor(0)] {
        let mut batch = Batch::new(&store);
        batch.push(digest, &frame, None).unwrap();
        batch.close().unwrap();
        batch.push(digest, &frame, None).unwrap();
        drop(batch);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
        // Also under its last name.
        let mut batch = Batch::new(&store);
        batch.push(digest, &frame, None).unwrap();
        let fail = |written: Written| {
            let name = |standing| temp.path().join(name_of(written.number, standing));
            let _ = fs::rename(name(Standing::Loose), name(Standing::Named));
            Err(Error::BlobMissing { digest })
        };
        assert!(batch.finish(&mut { fail }).is_err());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_good_copy_takes_the_place_of_a_damaged_one_also_after_a_crash() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let (digest, bytes) = blob(1);
    first.put(digest, &bytes).unwrap();
    let path = file_of(&temp, digest);
    let mut bad = fs::read(&path).unwrap();
    bad[20] ^= 1;
    fs::write(&path, bad).unwrap();
    first.put_loose(&[(digest, frame::pack(&bytes).unwrap())]).unwrap();
    assert_eq!(first.get(digest).unwrap(), bytes);
    assert!(!first.contains(digest), "a crash would forget the good one");
    first.put(digest, &bytes).unwrap();
    drop(first);
    assert_eq!(store(&temp).get(digest).unwrap(), bytes);
}

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
fn the_newest_copy_stands_after_a_start() {
    let temp = tempfile::tempdir().unwrap();
    let first = store(&temp);
    let blobs: Vec<_> = (0..3).map(blob).collect();
    first.put_many(&blobs).unwrap();
    let old = file_of(&temp, blobs[0].0);
    let mut bad = fs::read(&old).unwrap();
    bad[20] ^= 1;
    fs::write(&old, bad).unwrap();
    first.put_many(&blobs).unwrap();
    drop(first);
    let second = store(&temp);
    assert!(blobs.iter().all(|(digest, bytes)| second.get(*digest).unwrap() == *bytes));
    assert_ne!(file_of(&temp, blobs[0].0), old);
}

#[test]
fn a_pack_that_was_read_last_is_closed_when_it_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    let (digest, bytes) = blob(1);
    store.put(digest, &bytes).unwrap();
    store.get(digest).unwrap();
    assert!(store.last_read().is_some());
    store.remove(digest).unwrap();
    assert!(store.last_read().is_none(), "its room would not come back");
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

#[test]
fn a_store_of_single_files_is_taken_over() {
    let temp = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = (0..50).map(blob).collect();
    let path = |digest: Digest| {
        let hex = digest.to_string();
        temp.path().join(&hex[..2]).join(&hex[2..])
    };
    for (digest, bytes) in &blobs {
        fs::create_dir_all(path(*digest).parent().unwrap()).unwrap();
        fs::write(path(*digest), frame::pack(bytes).unwrap()).unwrap();
    }
    fs::write(path(blobs[0].0), "damaged").unwrap();
    fs::create_dir(temp.path().join("tmp")).unwrap();
    fs::write(temp.path().join("tmp/7"), "half").unwrap();
    for _ in 0..2 {
        let store = store(&temp);
        assert_eq!(store.missing(&names(&blobs)), [blobs[0].0]);
        assert!(blobs[1..].iter().all(|(digest, bytes)| store.get(*digest).unwrap() == *bytes));
    }
    assert!(fs::read_dir(temp.path()).unwrap().all(|entry| entry.unwrap().file_type().unwrap().is_file()));
}

#[test]
fn the_stored_form_stays() {
    let temp = tempfile::tempdir().unwrap();
    let store = store(&temp);
    store.put(digest_of(b"leaseward"), b"leaseward").unwrap();
    let hex: String = fs::read(&files(&temp, PACK)[0]).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    expect_test::expect!["4c57424601000000090000008aaa81d66c65617365776172647744277951364e307cb225311e0dacc23c70ee7f43aef0408e9569caf3daf5e51900000001000000846ff4894c575031"].assert_eq(&hex);
}
