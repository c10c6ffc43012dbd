//! The content store: what is kept, found, listed and taken over. `damage.rs`, `settling.rs` and `moving.rs` have the rest.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use super::*;

mod damage;
mod moving;
mod settling;

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
