//! What is damaged, gone or never was right: detected, named, mended, and never served.

use super::*;

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
