//! The content store: damage, repetition, leftovers of a death.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;

fn blob(n: u32) -> (Digest, Vec<u8>) {
    let bytes = format!("blob {n} ").repeat(100).into_bytes();
    (digest_of(&bytes), bytes)
}

fn file_of(temp: &tempfile::TempDir, digest: Digest) -> PathBuf {
    let (shard, name) = names(digest);
    temp.path().join(shard).join(name)
}

#[test]
fn blobs_are_kept_found_listed_and_removed() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let blobs: Vec<_> = (0..200).map(blob).collect();
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    assert_eq!(store.missing(&digests).unwrap(), digests);
    store.put_many(&blobs[..150]).unwrap();
    assert_eq!(store.missing(&digests).unwrap(), digests[150..]);
    blobs[150..].iter().for_each(|(digest, bytes)| store.put(*digest, bytes).unwrap());
    let store = BlobStore::open(temp.path()).unwrap();
    for (digest, bytes) in &blobs {
        assert_eq!(store.get(*digest).unwrap(), *bytes);
    }
    let mut sorted = digests.clone();
    sorted.sort_unstable();
    assert_eq!(store.digests().unwrap().collect::<Result<Vec<_>>>().unwrap(), sorted);
    store.remove(digests[0]).unwrap();
    store.remove(digests[0]).unwrap();
    assert!(matches!(store.get(digests[0]), Err(Error::BlobMissing { .. })));
    assert_eq!(store.digests().unwrap().count(), 199);
}

#[test]
fn every_damage_is_detected_named_and_mended_by_another_put() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let (digest, bytes) = blob(1);
    store.put(digest, &bytes).unwrap();
    let path = file_of(&temp, digest);
    let good = fs::read(&path).unwrap();
    let mut damages = vec![vec![], good[..good.len() - 1].to_vec(), [good.clone(), vec![0]].concat()];
    damages.extend((0..good.len()).map(|i| {
        let mut bad = good.clone();
        bad[i] ^= 0x10;
        bad
    }));
    for bad in damages {
        fs::write(&path, &bad).unwrap();
        for error in [store.get(digest).unwrap_err(), store.get_frame(digest).unwrap_err()] {
            assert_eq!(error.code(), "LW0802");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
    store.put(digest, &bytes).unwrap();
    assert_eq!(store.get(digest).unwrap(), bytes);
    // A whole frame under a wrong name.
    let (other, more) = blob(2);
    store.put(other, &more).unwrap();
    fs::copy(file_of(&temp, other), &path).unwrap();
    assert_eq!(store.get(digest).unwrap_err().code(), "LW0802");
}

#[test]
fn what_does_not_match_its_name_is_not_stored() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let ((digest, bytes), (other, _)) = (blob(1), blob(2));
    assert_eq!(store.put(other, &bytes).unwrap_err().code(), "LW0802");
    assert_eq!(store.put_frame(other, &frame::pack(&bytes).unwrap()).unwrap_err().code(), "LW0802");
    assert_eq!(store.put(digest, &vec![0; BLOB_BYTES_MAX + 1]).unwrap_err().code(), "LW0802");
    let huge = vec![0; BLOB_BYTES_MAX + 1];
    assert_eq!(store.put(digest_of(&huge), &huge).unwrap_err().code(), "LW0808");
    assert_eq!(store.digests().unwrap().count(), 0);
    assert_eq!(store.temporary.names().unwrap().len(), 0);
}

#[test]
fn the_wire_form_goes_from_store_to_store() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (here, there) = (BlobStore::open(here.path()).unwrap(), BlobStore::open(there.path()).unwrap());
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
    let store = BlobStore::open(temp.path()).unwrap();
    let (digest, bytes) = blob(1);
    store.put(digest, &bytes).unwrap();
    let before = fs::metadata(file_of(&temp, digest)).unwrap().ino();
    store.put(digest, &bytes).unwrap();
    assert_eq!(fs::metadata(file_of(&temp, digest)).unwrap().ino(), before);
    fs::write(temp.path().join("tmp/7"), "half").unwrap();
    drop(store);
    let store = BlobStore::open(temp.path()).unwrap();
    assert_eq!(fs::read_dir(temp.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(store.digests().unwrap().count(), 1);
}

#[test]
fn a_name_that_is_not_yet_durable_does_not_count() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap();
    let (digest, bytes) = blob(1);
    let mut staged = Staged { store: &store, files: Vec::new(), checked: 0 };
    staged.write(digest, &frame::pack(&bytes).unwrap(), true).unwrap();
    store.unsynced().insert(digest);
    staged.publish().unwrap();
    assert!(!store.contains(digest).unwrap(), "a power cut could still take it");
    store.put(digest, &bytes).unwrap();
    assert!(store.contains(digest).unwrap());
}

#[test]
fn threads_may_put_the_same_blobs() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..20).map(blob).for_each(|(digest, bytes)| store.put(digest, &bytes).unwrap()));
        }
    });
    assert_eq!(store.digests().unwrap().count(), 20);
    assert!((0..20).all(|n| store.contains(blob(n).0).unwrap()));
}

#[test]
fn loose_blobs_are_read_and_not_counted_on_until_they_settle() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let blobs: Vec<_> = (0..20).map(blob).collect();
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let frames: Vec<_> = blobs.iter().map(|(digest, bytes)| (*digest, frame::pack(bytes).unwrap())).collect();
    store.put_loose(&frames[..10]).unwrap();
    store.put_plain(blobs[10..].iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))).unwrap();
    assert_eq!(store.lacking(&digests).unwrap(), []);
    assert_eq!(store.missing(&digests).unwrap(), digests, "nobody may count on them");
    for (digest, bytes) in &blobs {
        assert_eq!(store.get(*digest).unwrap(), *bytes);
    }
    // A crash forgets them, all or nothing of each.
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    assert_eq!(store.lacking(&digests).unwrap(), digests);
    store.put_loose(&frames).unwrap();
    // Put for good while they are loose, and removed.
    store.put(digests[0], &blobs[0].1).unwrap();
    store.remove(digests[1]).unwrap();
    assert_eq!(store.missing(&digests[..2]).unwrap(), [digests[1]]);
    store.settle().unwrap();
    store.settle().unwrap();
    assert_eq!(store.missing(&digests).unwrap(), [digests[1]]);
    let store = BlobStore::open(temp.path()).unwrap();
    assert_eq!(store.missing(&digests).unwrap(), [digests[1]]);
    assert_eq!(fs::read_dir(temp.path().join(TEMPORARY)).unwrap().count(), 0);
}

#[test]
fn whoever_settles_finds_everything_durable_though_another_one_began_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    for round in 0..100 {
        let blobs: Vec<_> = (round * 10..round * 10 + 10).map(blob).collect();
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        store.put_plain(blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    store.settle().unwrap();
                    assert_eq!(store.missing(&digests).unwrap(), []);
                });
            }
        });
    }
}

#[test]
fn what_could_not_be_settled_is_settled_by_the_next_one() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let mut blobs: Vec<_> = (0..5).map(blob).collect();
    blobs.sort_unstable();
    blobs.dedup_by_key(|(digest, _)| digest.0[0]);
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let put = || store.put_plain(blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))).unwrap();
    put();
    // The last of them cannot get its name.
    let in_the_way = temp.path().join(names(*digests.last().unwrap()).0);
    fs::write(&in_the_way, "").unwrap();
    assert!(store.settle().is_err());
    assert_eq!(store.missing(&digests[..1]).unwrap(), digests[..1], "its name is not durable");
    fs::remove_file(&in_the_way).unwrap();
    put();
    store.settle().unwrap();
    assert_eq!(store.missing(&digests).unwrap(), [], "all are here, and nobody may count on some of them");
    // One that went away meanwhile is in nobody's way.
    let (digest, bytes) = blob(9);
    store.put_plain(std::iter::once((digest, bytes.as_slice()))).unwrap();
    let in_the_way = temp.path().join(names(digest).0);
    fs::write(&in_the_way, "").unwrap();
    assert!(store.settle().is_err());
    fs::remove_file(&in_the_way).unwrap();
    store.remove(digest).unwrap();
    store.settle().unwrap();
}

#[test]
fn a_loose_copy_does_not_hide_a_damaged_one() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let (digest, bytes) = blob(1);
    store.put(digest, &bytes).unwrap();
    fs::write(file_of(&temp, digest), "damaged").unwrap();
    store.put_loose(&[(digest, frame::pack(&bytes).unwrap())]).unwrap();
    assert_eq!(store.get(digest).unwrap(), bytes);
    store.put(digest, &bytes).unwrap();
    // A crash forgets the loose one.
    drop(store);
    assert_eq!(BlobStore::open(temp.path()).unwrap().get(digest).unwrap(), bytes);
}

#[test]
fn whoever_brought_and_settled_finds_it_durable_though_others_bring_it_too() {
    let temp = tempfile::tempdir().unwrap();
    let store = BlobStore::open(temp.path()).unwrap().with_floor(0);
    let start = std::sync::Barrier::new(3);
    for round in 0..50 {
        let blobs: Vec<_> = (round * 10..round * 10 + 10).map(blob).collect();
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    start.wait();
                    store.put_plain(blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))).unwrap();
                    store.settle().unwrap();
                    assert_eq!(store.missing(&digests).unwrap(), [], "round {round}");
                });
            }
        });
    }
    store.settle().unwrap();
    assert_eq!(store.temporary.names().unwrap().len(), 0, "twins are removed");
}
