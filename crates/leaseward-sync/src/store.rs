//! The content store: plain files named by the hash of the bytes they hold, `ab/cdef…`.
//!
//! Must stay true: a digest that [`BlobStore::contains`] affirms is durable, unless the store is a cache; bytes are
//! verified on every write, and on every read (in their stored form by their checksum, as whoever gets them looks at the
//! name); bad ones are never served; a crash leaves no half-written blob under a digest's name. One process owns a store
//! at a time.
//! Loose blobs are here and not yet durable: they wait for [`BlobStore::settle`], which syncs once for all of them, and
//! stand among the temporary files, so that a crash forgets them.
//! Left out on purpose: which blobs are still needed (the caller removes), packs of many small blobs, deltas.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use leaseward_state::config::Digest;

use crate::dir::Dir;
use crate::error::{Error, Result, at};
use crate::limits::{BLOB_BYTES_MAX, FLOOR_LOOK_EACH, STORE_FLOOR_BYTES, STORE_SYNC_EACH_MAX};
use crate::{digest_of, frame, space};

const TEMPORARY: &str = "tmp";

/// A directory of blobs. Its methods block on the disk; share it behind an `Arc`.
#[derive(Debug)]
pub struct BlobStore {
    root: Dir,
    temporary: Dir,
    floor: u64,
    durable: bool,
    /// Renamed and not yet synced: there for readers, not yet there for who counts on them.
    unsynced: Mutex<BTreeSet<Digest>>,
    /// Blobs that stand whole among the temporary files, by their names there: each gets its own name when it settles.
    loose: Mutex<BTreeMap<Digest, String>>,
    /// Held while loose blobs settle: whoever asks for it meanwhile must find them durable afterwards. Blobs that were named
    /// then, and whose names could not be synced yet.
    settling: Mutex<BTreeSet<Digest>>,
    next: AtomicU64,
}

impl BlobStore {
    /// Opens the store at `dir` and makes it if it is not there. Makes everything in it durable once, since a process
    /// that died may have left names that only memory knows.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`].
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Self::open_cache(dir)?;
        store.root.sync_file_system()?;
        Ok(Self { durable: true, ..store })
    }

    /// Opens a store that may lose its newest blobs in a power cut: for copies that can be fetched again.
    ///
    /// # Errors
    /// As [`BlobStore::open`].
    pub fn open_cache(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir.join(TEMPORARY)).map_err(at("make directory", dir))?;
        let root = Dir::open(dir)?;
        let temporary = root.child(TEMPORARY)?;
        for name in temporary.names()? {
            temporary.remove_tree(name)?;
        }
        Ok(Self {
            root,
            temporary,
            floor: STORE_FLOOR_BYTES,
            durable: false,
            unsynced: Mutex::default(),
            loose: Mutex::default(),
            settling: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Returns the store with another floor: the bytes that writing must leave free on the file system.
    #[must_use]
    pub fn with_floor(self, bytes: u64) -> Self {
        Self { floor: bytes, ..self }
    }

    /// Returns whether the blob is here and durable. Does not read it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn contains(&self, digest: Digest) -> Result<bool> {
        // In this order: it may get its name meanwhile, and is among the unsynced before that.
        Ok(self.stands(digest)? && !self.unsynced().contains(&digest))
    }

    fn stands(&self, digest: Digest) -> Result<bool> {
        let (shard, name) = names(digest);
        let path = self.root.path().join(shard).join(name);
        match rustix::fs::lstat(&path) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(error) => Err(Error::io("look at", path, error)),
        }
    }

    /// Returns those of `digests` that are not here, in their order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        let mut missing = Vec::new();
        for digest in digests {
            if !self.contains(*digest)? {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }

    /// Returns those of `digests` of which there is not even a loose copy here, in their order.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn lacking(&self, digests: &[Digest]) -> Result<Vec<Digest>> {
        // The loose ones first: one that settles meanwhile is found in its place.
        let loose = self.loose().clone();
        let mut lacking = Vec::new();
        for digest in digests {
            if !loose.contains_key(digest) && !self.stands(*digest)? {
                lacking.push(*digest);
            }
        }
        Ok(lacking)
    }

    /// Stores plain bytes under their name and returns when they are durable. Storing them again changes nothing,
    /// unless the stored copy is damaged: then it is replaced.
    ///
    /// # Errors
    /// [`Error::BlobCorrupt`] if `bytes` are not the content of `digest`, [`Error::TooLarge`],
    /// [`Error::DiskFull`] (nothing is left behind), [`Error::Io`].
    pub fn put(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        self.put_many(&[(digest, bytes)])
    }

    /// Stores many blobs with one wait for the disk, and returns when all are durable. After an error any of them may
    /// or may not be stored.
    ///
    /// # Errors
    /// As [`BlobStore::put`], for the first blob that fails.
    pub fn put_many<B: AsRef<[u8]>>(&self, blobs: &[(Digest, B)]) -> Result<()> {
        let pack = |(digest, bytes): &(Digest, B)| {
            let bytes = bytes.as_ref();
            if digest_of(bytes) != *digest {
                let why = "its content has another name";
                return Err(Error::BlobCorrupt { path: PathBuf::from("given bytes"), digest: *digest, why });
            }
            frame::pack(bytes)
        };
        self.store(blobs.len(), blobs.iter().map(|blob| Ok((blob.0, pack(blob)?))))
    }

    /// Stores a blob in its wire form, verified, and returns when it is durable.
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub fn put_frame(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        self.put_frames(&[(digest, bytes)])
    }

    /// As [`BlobStore::put_many`], for blobs in their wire form.
    ///
    /// # Errors
    /// As [`BlobStore::put`], for the first blob that fails.
    pub fn put_frames<B: AsRef<[u8]>>(&self, frames: &[(Digest, B)]) -> Result<()> {
        self.store(frames.len(), frames.iter().map(verified))
    }

    /// Stores blobs in their wire form, verified, and does not wait for the disk: a crash may forget them.
    ///
    /// # Errors
    /// As [`BlobStore::put`], for the first blob that fails.
    pub fn put_loose<B: AsRef<[u8]>>(&self, frames: &[(Digest, B)]) -> Result<()> {
        if !self.durable {
            return self.put_frames(frames);
        }
        self.loosen(frames.iter().map(verified))
    }

    /// As [`BlobStore::put_loose`], for plain bytes that are known to bear these names. Not looked at again.
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub fn put_plain<'a>(&self, blobs: impl Iterator<Item = (Digest, &'a [u8])>) -> Result<()> {
        let frames = blobs.map(|(digest, bytes)| Ok((digest, frame::pack(bytes)?)));
        if self.durable {
            return self.loosen(frames);
        }
        self.store(0, frames)
    }

    fn loosen(&self, frames: impl Iterator<Item = Result<(Digest, Vec<u8>)>>) -> Result<()> {
        let mut staged = Staged { store: self, files: Vec::new(), checked: 0 };
        for item in frames {
            let (digest, bytes) = item?;
            if self.get(digest).is_err() {
                staged.write(digest, &bytes, false)?;
            }
        }
        while let Some((digest, temporary)) = staged.files.pop() {
            if let Entry::Vacant(place) = self.loose().entry(digest) {
                place.insert(temporary);
                continue;
            }
            // Another thread brought it, too. That one stays if it is whole, for it may be about to settle.
            let is_whole = self.get(digest).is_ok();
            let twin = if is_whole { Some(temporary) } else { self.loose().insert(digest, temporary) };
            if let Some(twin) = twin {
                self.temporary.unlink(twin)?;
            }
        }
        Ok(())
    }

    /// Makes every loose blob durable, also those that another thread has begun with.
    ///
    /// # Errors
    /// [`Error::Io`]; what is not durable then is done by the next one.
    pub fn settle(&self) -> Result<()> {
        let mut named = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let loose = self.loose().clone();
        if loose.is_empty() && named.is_empty() {
            return Ok(());
        }
        self.root.sync_file_system()?;
        for (digest, temporary) in &loose {
            // It may have been removed meanwhile, or have come again under another name.
            let mut still = self.loose();
            if still.get(digest) == Some(temporary) {
                // Not affirmed before its name is durable, too; unless it is already, and this is another copy.
                if !self.contains(*digest)? {
                    self.unsynced().insert(*digest);
                }
                self.name(*digest, temporary)?;
                named.insert(*digest);
                still.remove(digest);
            }
        }
        let shards: BTreeSet<String> = named.iter().map(|digest| names(*digest).0).collect();
        self.sync_names(&shards, shards.len() <= STORE_SYNC_EACH_MAX)?;
        let mut unsynced = self.unsynced();
        for digest in std::mem::take(&mut *named) {
            unsynced.remove(&digest);
        }
        Ok(())
    }

    /// Returns the plain bytes of a blob, verified.
    ///
    /// # Errors
    /// [`Error::BlobMissing`], [`Error::BlobCorrupt`] with the path of the damaged file, [`Error::Io`].
    pub fn get(&self, digest: Digest) -> Result<Vec<u8>> {
        let (path, bytes) = self.read(digest)?;
        frame::unpack(digest, &bytes, &path)
    }

    /// Returns a blob in its wire form, verified by its checksum: whoever gets it looks whether it bears its name.
    ///
    /// # Errors
    /// As [`BlobStore::get`].
    pub fn get_frame(&self, digest: Digest) -> Result<Vec<u8>> {
        let (path, bytes) = self.read(digest)?;
        frame::check(digest, &bytes, &path)?;
        Ok(bytes)
    }

    /// Removes a blob, if it is here. A power cut may bring it back.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, digest: Digest) -> Result<()> {
        let (shard, name) = names(digest);
        if let Some(temporary) = self.loose().remove(&digest) {
            self.temporary.unlink(temporary)?;
        }
        match self.root.stat(&shard)? {
            Some(_) => self.root.child(&shard)?.unlink(name),
            None => Ok(()),
        }
    }

    /// Returns the names of all blobs, shard by shard, ascending. Blobs that come or go meanwhile may be missed.
    ///
    /// # Errors
    /// [`Error::Io`]; the iterator yields it for a shard that cannot be listed.
    pub fn digests(&self) -> Result<Digests> {
        let mut shards = self.root.names()?;
        shards.retain(|name| name.len() == 2);
        shards.reverse();
        Ok(Digests { root: self.root.path().to_owned(), shards, current: Vec::new() })
    }

    fn unsynced(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        // A panic while it was held cannot leave a set half-changed.
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loose(&self) -> MutexGuard<'_, BTreeMap<Digest, String>> {
        // A panic while it was held cannot leave a table half-changed.
        self.loose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file of a blob, wherever it stands.
    fn open_blob(&self, digest: Digest) -> Result<(PathBuf, File)> {
        let (shard, name) = names(digest);
        let at = |relative: String| -> Result<Option<(PathBuf, File)>> {
            match self.root.file(&relative) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
                other => Ok(Some((self.root.path().join(relative), other?))),
            }
        };
        let loose = self.loose().get(&digest).map(|temporary| format!("{TEMPORARY}/{temporary}"));
        if let Some(found) = loose.map_or(Ok(None), at)? {
            return Ok(found);
        }
        // Also if it has settled meanwhile.
        at(format!("{shard}/{name}"))?.ok_or(Error::BlobMissing { digest })
    }

    fn read(&self, digest: Digest) -> Result<(PathBuf, Vec<u8>)> {
        use std::io::Read as _;
        let (path, file) = self.open_blob(digest)?;
        let mut bytes = Vec::new();
        // A longer file is cut and fails its checksum.
        file.take(frame::FRAME_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(at("read", &path))?;
        Ok((path, bytes))
    }

    /// Writes frames to temporary files, syncs them, names them, syncs the names.
    fn store(&self, count: usize, frames: impl Iterator<Item = Result<(Digest, Vec<u8>)>>) -> Result<()> {
        let each = count <= STORE_SYNC_EACH_MAX;
        let mut staged = Staged { store: self, files: Vec::new(), checked: 0 };
        let mut here = BTreeSet::new();
        for item in frames {
            let (digest, bytes) = item?;
            // A loose copy is read first, and would hide that the other one is damaged.
            let is_loose = self.loose().contains_key(&digest);
            if !is_loose && self.stands(digest)? && self.get(digest).is_ok() {
                here.insert(digest);
            } else {
                staged.write(digest, &bytes, each && self.durable)?;
            }
        }
        if !each && self.durable {
            self.root.sync_file_system()?;
        }
        let named: Vec<Digest> = staged.files.iter().map(|(digest, _)| *digest).collect();
        if self.durable {
            self.unsynced().extend(&named);
        }
        let mut shards = staged.publish()?;
        if self.durable {
            // Another thread may have named these and not yet synced the name.
            shards.extend(here.iter().map(|digest| names(*digest).0));
            self.sync_names(&shards, each)?;
            let mut unsynced = self.unsynced();
            named.iter().chain(&here).for_each(|digest| {
                unsynced.remove(digest);
            });
        }
        Ok(())
    }

    fn sync_names(&self, shards: &BTreeSet<String>, each: bool) -> Result<()> {
        if !each {
            return self.root.sync_file_system();
        }
        for shard in shards {
            self.root.child(shard)?.sync()?;
        }
        self.root.sync()
    }

    /// Gives a temporary file the name of its blob, and returns its shard.
    fn name(&self, digest: Digest, temporary: &str) -> Result<String> {
        let (shard, name) = names(digest);
        let to = format!("{shard}/{name}");
        let rename = || rustix::fs::renameat(&self.temporary, temporary, &self.root, &to);
        match rename() {
            Err(rustix::io::Errno::NOENT) => {
                match self.root.mkdir(&shard) {
                    Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
                    made => drop(made?),
                }
                rename()
            }
            done => done,
        }
        .map_err(at("name", self.root.path().join(to)))?;
        Ok(shard)
    }

    /// Returns how many bytes more than `need` may be written.
    fn room_for(&self, need: usize) -> Result<usize> {
        let path = self.root.path();
        let free = space::free(&self.root, path, 0)?.bytes;
        match free.checked_sub(self.floor.saturating_add(need as u64)) {
            Some(room) => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
            None => Err(Error::DiskFull { path: path.to_owned(), free, floor: self.floor }),
        }
    }
}

/// Temporary files that are removed unless they get their names.
struct Staged<'a> {
    store: &'a BlobStore,
    files: Vec<(Digest, String)>,
    /// Bytes that may be written before the free space is looked at again.
    checked: usize,
}

impl Staged<'_> {
    fn write(&mut self, digest: Digest, bytes: &[u8], sync: bool) -> Result<()> {
        if self.checked < bytes.len() {
            let room = self.store.room_for(bytes.len())?;
            self.checked = bytes.len() + room.min(FLOOR_LOOK_EACH);
        }
        self.checked -= bytes.len();
        let name = self.store.next.fetch_add(1, Ordering::Relaxed).to_string();
        let path = self.store.temporary.path().join(&name);
        let mut file: File = self.store.temporary.create(&name)?;
        self.files.push((digest, name));
        file.write_all(bytes).map_err(at("write", &path))?;
        if sync {
            file.sync_data().map_err(at("sync", &path))?;
        }
        Ok(())
    }

    /// Gives every file its name and returns the shards that hold them.
    fn publish(&mut self) -> Result<BTreeSet<String>> {
        let mut shards = BTreeSet::new();
        while let Some((digest, temporary)) = self.files.last() {
            shards.insert(self.store.name(*digest, temporary)?);
            self.files.pop();
        }
        Ok(shards)
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        for (_, name) in &self.files {
            // What cannot be removed now is removed when the store is opened again.
            let _ = self.store.temporary.unlink(name);
        }
    }
}

/// The names of all blobs of a store.
#[derive(Debug)]
pub struct Digests {
    root: PathBuf,
    shards: Vec<std::ffi::OsString>,
    current: Vec<Digest>,
}

impl Iterator for Digests {
    type Item = Result<Digest>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.current.is_empty() {
            let shard = self.shards.pop()?;
            let names = match Dir::open(&self.root.join(&shard)).and_then(|dir| dir.names()) {
                Ok(names) => names,
                Err(error) => return Some(Err(error)),
            };
            let digest = |name: std::ffi::OsString| Digest::parse(&format!("{}{}", shard.to_str()?, name.to_str()?));
            self.current = names.into_iter().rev().filter_map(digest).collect();
        }
        self.current.pop().map(Ok)
    }
}

/// Returns a frame that holds what it should.
fn verified<B: AsRef<[u8]>>((digest, bytes): &(Digest, B)) -> Result<(Digest, Vec<u8>)> {
    frame::unpack(*digest, bytes.as_ref(), Path::new("given frame"))?;
    Ok((*digest, bytes.as_ref().to_vec()))
}

/// Returns the shard directory and the file name of a blob.
fn names(digest: Digest) -> (String, String) {
    let text = digest.to_string();
    let (shard, name) = text.split_at(2);
    (shard.to_owned(), name.to_owned())
}

// A frame of the largest blob must fit what a read takes.
const _: () = assert!(frame::FRAME_BYTES_MAX > BLOB_BYTES_MAX);

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
