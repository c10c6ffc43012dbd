//! Blobs that came for a version and stand in no tree yet: in memory as long as there is room, in files beyond.
//!
//! Must stay true: what is here was verified, and what is read from a file is verified again; what all sets of a machine hold
//! in memory together is bounded, and nothing is held for a version that nobody wants any more. Nothing here need survive:
//! what a death takes is fetched again.
//! Files that are made to be removed a moment later are what costs most of a first version: some file systems look at each
//! inode that was freed within the last minute before they give a new one (ext4 without a journal: 2,000 files took
//! seconds where they take 30 ms).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leaseward_state::config::Digest;

use super::Blob;
use crate::error::{Error, Result};
use crate::limits::HELD_BYTES_MAX;
use crate::tables::DigestMap;
use crate::{BlobStore, digest_of, frame, manifest};

/// The memory that the caches of a machine's sets may hold together.
#[derive(Debug, Default)]
pub(crate) struct Room(AtomicUsize);

impl Room {
    fn take(&self, bytes: usize) -> bool {
        let more = |held: usize| held.checked_add(bytes).filter(|all| *all <= HELD_BYTES_MAX);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Returns the bytes that are held.
    pub(crate) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The blobs of one set. Its methods block on the disk.
#[derive(Debug)]
pub(crate) struct Cache {
    files: BlobStore,
    held: Mutex<DigestMap<Arc<Vec<u8>>>>,
    room: Arc<Room>,
}

impl Cache {
    /// Opens the cache with its files at `dir`; writing them leaves so many bytes free on the file system.
    pub(crate) fn open(dir: &Path, floor: u64, room: Arc<Room>) -> Result<Self> {
        Ok(Self { files: BlobStore::open_cache(dir)?.with_floor(floor), held: Mutex::default(), room })
    }

    /// Returns its files.
    pub(crate) fn files(&self) -> &BlobStore {
        &self.files
    }

    /// Returns whether a blob is in memory.
    pub(crate) fn holds(&self, digest: Digest) -> bool {
        self.held().contains_key(&digest)
    }

    /// Returns the plain bytes of a blob, verified.
    pub(crate) fn get(&self, digest: Digest) -> Result<Arc<Vec<u8>>> {
        let held = self.held().get(&digest).cloned();
        held.map_or_else(|| self.files.get(digest).map(Arc::new), Ok)
    }

    /// Keeps what came from somewhere, after a look whether each bears its name: `taken` hears of each what came of that. What does
    /// not fit the memory is written at one time.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]; then any of them may be kept or not.
    pub(crate) fn keep<'b>(
        &self,
        blobs: impl Iterator<Item = (Digest, &'b Blob)>,
        taken: &mut dyn FnMut(Digest, Result<()>),
    ) -> Result<()> {
        let mut frames: Vec<(Digest, Cow<'b, [u8]>)> = Vec::new();
        for (digest, blob) in blobs {
            let plain = match blob {
                Blob::Frame(bytes) => frame::unpack(digest, bytes.as_slice(), Path::new("given frame")),
                Blob::Plain(plain) if digest_of(plain) == digest => Ok(plain.clone()),
                Blob::Plain(_) => {
                    let why = "its content has another name";
                    Err(Error::BlobCorrupt { path: "given bytes".into(), digest, why })
                }
            };
            let plain = match plain {
                Ok(plain) => plain,
                Err(error) => {
                    taken(digest, Err(error));
                    continue;
                }
            };
            if let Err(plain) = self.hold(digest, plain) {
                frames.push(match blob {
                    Blob::Frame(bytes) => (digest, Cow::Borrowed(bytes.as_slice())),
                    Blob::Plain(_) => (digest, Cow::Owned(frame::pack(&plain)?)),
                });
            }
            taken(digest, Ok(()));
        }
        if frames.is_empty() { Ok(()) } else { self.files.put_checked(&frames) }
    }

    /// Keeps bytes that are known to bear these names.
    pub(crate) fn keep_proven<'b>(&self, blobs: impl Iterator<Item = (Digest, &'b [u8])>) -> Result<()> {
        let rest: Vec<(Digest, &[u8])> =
            blobs.filter(|(digest, plain)| self.hold(*digest, plain.to_vec()).is_err()).collect();
        if rest.is_empty() { Ok(()) } else { self.files.put_plain(rest.into_iter()) }
    }

    /// Holds it, or gives it back if there is no room for it.
    fn hold(&self, digest: Digest, plain: Vec<u8>) -> std::result::Result<(), Vec<u8>> {
        if self.holds(digest) {
            return Ok(());
        }
        let size = plain.len();
        if !self.room.take(size) {
            return Err(plain);
        }
        // Another one may have been faster.
        if self.held().insert(digest, Arc::new(plain)).is_some() {
            self.room.give_back(size);
        }
        Ok(())
    }

    /// Puts what it holds in memory into files, for whoever opens it again.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]; what could not be written is forgotten.
    pub(crate) fn put_down(&self) -> Result<()> {
        let held: Vec<(Digest, Arc<Vec<u8>>)> =
            self.held().iter().map(|(digest, bytes)| (*digest, Arc::clone(bytes))).collect();
        if held.is_empty() {
            return Ok(());
        }
        let written = self.files.put_plain(held.iter().map(|(digest, bytes)| (*digest, bytes.as_slice())));
        self.let_go();
        written
    }

    /// Forgets what it holds in memory.
    pub(crate) fn let_go(&self) {
        self.forget(|_| true);
    }

    fn forget(&self, is_left: impl Fn(&Digest) -> bool) {
        let left: Vec<_> = self.held().extract_if(|digest, _| is_left(digest)).collect();
        self.room.give_back(left.iter().map(|(_, bytes)| bytes.len()).sum());
    }

    /// Keeps these blobs in files, as far as they are here, and nothing else.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]; what could not be written is forgotten.
    pub(crate) fn retain(&self, kept: &BTreeSet<Digest>) -> Result<()> {
        self.forget(|digest| !kept.contains(digest));
        let written = self.put_down();
        self.drop_others(kept)?;
        written
    }

    /// Forgets everything but these blobs, in memory and in files.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn drop_others(&self, kept: &BTreeSet<Digest>) -> Result<()> {
        self.forget(|digest| !kept.contains(digest));
        for digest in self.files.digests() {
            if !kept.contains(&digest) {
                self.files.remove(digest)?;
            }
        }
        Ok(())
    }

    /// Gives the room back that removed blobs still take in files.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`].
    pub(crate) fn compact(&self) -> Result<()> {
        self.files.compact()
    }

    /// Returns the names of these versions' manifests that are here, and of everything that they name.
    pub(crate) fn named_by(&self, manifests: &[Digest]) -> BTreeSet<Digest> {
        let mut named = BTreeSet::new();
        for digest in manifests {
            if let Ok(tree) = self.get(*digest).and_then(|bytes| manifest::decode(&bytes)) {
                named.insert(*digest);
                named.extend(tree.chunk_names());
            }
        }
        named
    }

    fn held(&self) -> MutexGuard<'_, DigestMap<Arc<Vec<u8>>>> {
        // A panic while it was held cannot leave a table half-changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(byte: u8, size: usize) -> (Digest, Vec<u8>) {
        let bytes = vec![byte; size];
        (digest_of(&bytes), bytes)
    }

    fn plain(blobs: &[(Digest, Vec<u8>)]) -> impl Iterator<Item = (Digest, &[u8])> {
        blobs.iter().map(|(digest, bytes)| (*digest, bytes.as_slice()))
    }

    fn take(cache: &Cache, digest: Digest, blob: Blob) -> Result<()> {
        let mut outcome = None;
        cache.keep(std::iter::once((digest, &blob)), &mut |_, taken| outcome = Some(taken))?;
        outcome.unwrap()
    }

    fn files(cache: &Cache) -> usize {
        cache.files.digests().len()
    }

    #[test]
    fn what_does_not_fit_the_memory_of_all_sets_goes_to_files_and_room_comes_back() {
        let (temp, room) = (tempfile::tempdir().unwrap(), Arc::new(Room::default()));
        let open = |name: &str| Cache::open(&temp.path().join(name), 0, Arc::clone(&room)).unwrap();
        let (one, other) = (open("one"), open("other"));
        let blobs: Vec<_> = (0..5).map(|byte| blob(byte, HELD_BYTES_MAX / 4)).collect();
        for (cache, (digest, bytes)) in [&one, &one, &other, &other, &one].into_iter().zip(&blobs) {
            cache.keep_proven(std::iter::once((*digest, bytes.as_slice()))).unwrap();
            // Again it takes no more room.
            take(cache, *digest, Blob::Plain(bytes.clone())).unwrap();
        }
        assert_eq!((files(&one), files(&other)), (1, 0), "the fifth quarter");
        assert!(other.holds(blobs[2].0) && !one.holds(blobs[4].0));
        for (cache, at) in [(&one, 0), (&one, 4), (&other, 3)] {
            assert_eq!(*cache.get(blobs[at].0).unwrap(), *blobs[at].1);
        }
        drop(other);
        let (digest, frame) = (blobs[3].0, frame::pack(&blobs[3].1).unwrap());
        take(&one, digest, Blob::Frame(frame.into())).unwrap();
        assert!(one.holds(digest), "the other set is gone, and there is room");
        one.put_down().unwrap();
        assert_eq!((files(&one), one.holds(digest)), (4, false));
        one.keep_proven(std::iter::once((blob(9, 10).0, [9; 10].as_slice()))).unwrap();
        one.let_go();
        assert_eq!(room.taken(), 0);
        assert_eq!(one.get(blob(9, 10).0).unwrap_err().code(), "LW0801");
    }

    #[test]
    fn what_does_not_fit_the_memory_is_one_file_however_many_blobs_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let room = Arc::new(Room::default());
        assert!(room.take(HELD_BYTES_MAX), "somebody else holds it all");
        let cache = Cache::open(temp.path(), 0, room).unwrap();
        let on_disk = || std::fs::read_dir(temp.path()).unwrap().count();
        let blobs: Vec<_> = (0..20).map(|byte| blob(byte, 100)).collect();
        let given: Vec<_> = blobs
            .iter()
            .map(|(digest, plain)| match plain[0] % 2 {
                0 => (*digest, Blob::Plain(plain.clone())),
                _ => (*digest, Blob::Frame(frame::pack(plain).unwrap().into())),
            })
            .collect();
        let mut taken = 0;
        let each = given[..10].iter().map(|(digest, blob)| (*digest, blob));
        cache.keep(each, &mut |_, outcome| taken += usize::from(outcome.is_ok())).unwrap();
        assert_eq!((taken, files(&cache), on_disk()), (10, 10, 1));
        cache.keep_proven(plain(&blobs[10..])).unwrap();
        assert_eq!((files(&cache), on_disk()), (20, 2));
        assert!(blobs.iter().all(|(digest, plain)| *cache.get(*digest).unwrap() == *plain));
    }

    #[test]
    fn what_is_retained_is_in_files_and_the_rest_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 0, Arc::default()).unwrap();
        let blobs: Vec<_> = (0..4).map(|byte| blob(byte, 100)).collect();
        cache.files.put_plain(plain(&blobs[..2])).unwrap();
        cache.keep_proven(plain(&blobs[2..])).unwrap();
        cache.retain(&BTreeSet::from([blobs[1].0, blobs[2].0])).unwrap();
        let here = |(digest, _): &(Digest, Vec<u8>)| cache.files.get(*digest).is_ok();
        assert_eq!(blobs.iter().map(here).collect::<Vec<_>>(), [false, true, true, false]);
        assert!(!cache.holds(blobs[2].0) && cache.get(blobs[3].0).is_err());
    }

    #[test]
    fn what_was_removed_takes_no_room_for_ever_beside_what_stays() {
        let temp = tempfile::tempdir().unwrap();
        let open = || Cache::open(temp.path(), 0, Arc::default()).unwrap();
        let cache = open();
        let noise = |n: u32| (0..400u32).flat_map(|i| digest_of(&(n * 1000 + i).to_le_bytes()).0).collect::<Vec<_>>();
        // Of each version one file stays.
        let mut kept = BTreeSet::new();
        for version in 0..4 {
            let blobs: Vec<_> = (0..10).map(|i| noise(version * 10 + i)).collect();
            cache.files.put_plain(blobs.iter().map(|bytes| (digest_of(bytes), bytes.as_slice()))).unwrap();
            kept.insert(digest_of(&blobs[0]));
            cache.retain(&kept).unwrap();
            cache.compact().unwrap();
        }
        let bytes: u64 = std::fs::read_dir(temp.path()).unwrap().map(|at| at.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 2 * 4 * 400 * 32, "{bytes}");
        drop(cache);
        assert!(kept.iter().all(|digest| open().get(*digest).is_ok()));
    }

    #[test]
    fn wrong_bytes_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path(), 0, Arc::default()).unwrap();
        let ((digest, _), (_, other)) = (blob(1, 50), blob(2, 50));
        let frame = Blob::Frame(frame::pack(&other).unwrap().into());
        for wrong in [Blob::Plain(other), frame] {
            assert_eq!(take(&cache, digest, wrong).unwrap_err().code(), "LW0802");
            assert!(!cache.holds(digest) && cache.get(digest).is_err());
        }
    }
}
