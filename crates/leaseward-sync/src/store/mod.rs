//! The content store: blobs by the hash of the bytes they hold, many to a file, as they came
//! or compressed before they are durable.
//!
//! Must stay true: a digest that [`BlobStore::contains`] affirms is durable, unless the store is a cache; bytes are
//! verified on every write, and on every read (in their stored form by their checksum, where whoever gave them has looked at
//! the name, or whoever gets them will); bad ones are never served; a crash leaves no half-written blob under a digest's name. One process owns a store
//! at a time.
//! What is written at one time is one pack (`pack.rs`), and memory knows where each blob is (`index.rs`). `settle.rs` makes packs durable,
//! `compact.rs` gives room back. A loose pack is here
//! and not yet durable: it waits for [`BlobStore::settle`], which syncs once for all of them, under a name that a new start
//! removes. A blob that is removed takes no room once the rest of its pack is moved ([`BlobStore::compact`]); until then a
//! new start brings it back.
//! Left out on purpose: which blobs are still needed (the caller removes), deltas.

mod batch;
mod compact;
mod index;
mod old_form;
mod pack;
mod settle;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use leaseward_state::config::Digest;
use rustix::io::Errno;
use tracing::{info, warn};

use self::batch::{Batch, Written};
use self::index::{Index, Place, Standing};
use crate::dir::Dir;
use crate::error::{Error, Result, at};
use crate::limits::{BLOB_BYTES_MAX, PACK_BYTES_MAX, STORE_FLOOR_BYTES};
use crate::{digest_of, frame};

const PACK: &str = "pack";
const LOOSE: &str = "loose";
/// A pack whose table cannot be believed: set aside for whoever wants to look at it, until nothing of it is missed.
const DAMAGED: &str = "damaged";

/// A blob in its stored form.
type Frame<'a> = (Digest, Cow<'a, [u8]>);

/// A directory of blobs. Its methods block on the disk; share it behind an `Arc`.
#[derive(Debug)]
pub struct BlobStore {
    root: Dir,
    floor: u64,
    durable: bool,
    index: Mutex<Index>,
    /// The pack that was read last: its blobs are mostly read one after another.
    last_read: Mutex<Option<(u32, Arc<File>)>>,
    /// Held while loose packs settle: whoever asks for it meanwhile must find them durable afterwards.
    settling: Mutex<()>,
    next: AtomicU32,
}

impl BlobStore {
    /// Opens the store at `dir` and makes it if it is not there. A pack that is damaged where its table is, is set aside, and
    /// said in the log: its blobs are missing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`].
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Self::load(dir, true)?;
        old_form::take_over(&store)?;
        // A process that died may have left names that only memory knows.
        store.root.sync()?;
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
            File::open(above).and_then(|above| above.sync_all()).map_err(at("sync", above))?;
        }
        Ok(store)
    }

    /// Opens a store that may lose its newest blobs in a power cut: for copies that can be fetched again.
    ///
    /// # Errors
    /// As [`BlobStore::open`].
    pub fn open_cache(dir: &Path) -> Result<Self> {
        Self::load(dir, false)
    }

    fn load(dir: &Path, durable: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(at("make directory", dir))?;
        let root = Dir::open(dir)?;
        let (mut index, mut last, mut unneeded, mut aside) = (Index::default(), 0, Vec::new(), 0);
        for name in root.names()? {
            let Some((number, ending)) = name.to_str().and_then(parse) else { continue };
            last = last.max(number);
            match ending {
                PACK => match pack::read(&root.file(&name)?, &dir.join(&name))? {
                    // The newest copy of a blob stands: an older one was found damaged, or was about to be removed.
                    Some(pack) => unneeded.extend(index.add(number, Standing::Durable, &pack, |_, before| before)),
                    None if durable => {
                        let aside = format!("{number:010}.{DAMAGED}");
                        warn!(path = %dir.join(&aside).display(), "a pack of blobs is damaged: set aside");
                        rustix::fs::renameat(&root, &*name, &root, &*aside).map_err(at("rename", dir.join(&aside)))?;
                    }
                    None => root.unlink(&name)?,
                },
                LOOSE => root.unlink(&name)?,
                _ => aside += 1,
            }
        }
        if aside > 0 {
            warn!(dir = %dir.display(), packs = aside, "damaged packs of earlier starts stand aside until nothing of them is missed");
        }
        if durable && !unneeded.is_empty() {
            // The newer copies may have names that only memory knows.
            root.sync()?;
        }
        for (number, standing) in unneeded {
            root.unlink(name_of(number, standing))?;
        }
        Ok(Self {
            root,
            floor: STORE_FLOOR_BYTES,
            durable,
            index: Mutex::new(index),
            last_read: Mutex::default(),
            settling: Mutex::default(),
            next: AtomicU32::new(last + 1),
        })
    }

    /// Returns the store with another floor: the bytes that writing must leave free on the file system.
    #[must_use]
    pub fn with_floor(self, bytes: u64) -> Self {
        Self { floor: bytes, ..self }
    }

    /// Returns whether the blob is here and durable. Does not read it.
    #[must_use]
    pub fn contains(&self, digest: Digest) -> bool {
        self.index().standing(digest) == Some(Standing::Durable)
    }

    /// Returns those of `digests` that are not here durably, in their order.
    #[must_use]
    pub fn missing(&self, digests: &[Digest]) -> Vec<Digest> {
        let index = self.index();
        digests.iter().copied().filter(|digest| index.standing(*digest) != Some(Standing::Durable)).collect()
    }

    /// Returns those of `digests` of which there is not even a loose copy here, in their order.
    #[must_use]
    pub fn lacking(&self, digests: &[Digest]) -> Vec<Digest> {
        let index = self.index();
        digests.iter().copied().filter(|digest| !index.places.contains_key(digest)).collect()
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
            Ok((*digest, frame::pack(bytes)?.into()))
        };
        self.write(blobs.iter().map(pack), self.floor)?;
        self.settle()
    }

    /// Stores a blob in its wire form, verified, and returns when it is durable.
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub fn put_frame(&self, digest: Digest, bytes: &[u8]) -> Result<()> {
        self.put_loose(&[(digest, bytes)])?;
        self.settle()
    }

    /// Stores blobs in their wire form, verified, and does not wait for the disk: a crash may forget them.
    ///
    /// # Errors
    /// As [`BlobStore::put`], for the first blob that fails.
    pub fn put_loose<B: AsRef<[u8]>>(&self, frames: &[(Digest, B)]) -> Result<()> {
        self.write(frames.iter().map(verified), self.floor)
    }

    /// As [`BlobStore::put_loose`], for frames whose content somebody else has verified: what may have happened to them
    /// since is seen by their checksum.
    ///
    /// # Errors
    /// As [`BlobStore::put`], for the first frame that is damaged.
    pub fn put_checked<B: AsRef<[u8]>>(&self, frames: &[(Digest, B)]) -> Result<()> {
        self.write(frames.iter().map(checked), self.floor)
    }

    /// As [`BlobStore::put_loose`], for plain bytes that are known to bear these names. Not looked at again.
    ///
    /// # Errors
    /// As [`BlobStore::put`].
    pub fn put_plain<'a>(&self, blobs: impl Iterator<Item = (Digest, &'a [u8])>) -> Result<()> {
        self.write(blobs.map(|(digest, bytes)| Ok((digest, frame::pack(bytes)?.into()))), self.floor)
    }

    /// Writes what is not here yet, or damaged here. Loose, unless this is a cache.
    fn write<'f>(&self, frames: impl Iterator<Item = Result<Frame<'f>>>, floor: u64) -> Result<()> {
        let mut batch = Batch::with_floor(self, floor);
        for item in frames {
            let (digest, bytes) = item?;
            let seen = self.index().places.get(&digest).copied();
            let is_here = match self.get(digest) {
                Ok(_) => true,
                Err(error) if is_damage(&error) => false,
                // What cannot be looked at now may be good and durable, and its pack goes once nothing of it is needed.
                Err(error) => return Err(error),
            };
            if !is_here {
                batch.push(digest, &bytes, seen)?;
            }
        }
        batch.finish(&mut |written| {
            let standing = if self.durable { Standing::Loose } else { Standing::Durable };
            self.add(&written, standing)
        })
    }

    /// Gives the blobs of a pack that was written their places.
    fn add(&self, written: &Written, standing: Standing) -> Result<()> {
        let mut index = self.index();
        // What another thread put there meanwhile stays: it may be durable already.
        let left = index.add(written.number, standing, &written.pack, |i, _| written.seen[i]);
        index.keep_open(written.number, &written.file);
        if let Some(pack) = index.packs.get_mut(&written.number) {
            pack.is_untried = written.is_untried;
        }
        self.drop_packs(left)
    }

    /// Removes the files of packs that the index has forgotten. Called with the index held, as a pack may be about to get
    /// another name.
    fn drop_packs(&self, left: impl IntoIterator<Item = (u32, Standing)>) -> Result<()> {
        for (number, standing) in left {
            let mut last = self.last_read();
            if last.as_ref().is_some_and(|(last, _)| *last == number) {
                *last = None;
            }
            self.root.unlink(name_of(number, standing))?;
        }
        Ok(())
    }

    /// Returns how many times something was lost that nobody removed, since the store was opened.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.index().losses
    }

    /// Returns the plain bytes of a blob, verified.
    ///
    /// # Errors
    /// [`Error::BlobMissing`], [`Error::BlobCorrupt`] with the path of the damaged file, [`Error::Io`].
    pub fn get(&self, digest: Digest) -> Result<Vec<u8>> {
        let (path, bytes) = self.read(digest)?;
        frame::unpack(digest, &bytes, &path)
    }

    /// Returns a blob in its wire form, verified by its checksum: whoever gets it looks whether it bears its name. Compressed
    /// if that helps, however it came.
    ///
    /// # Errors
    /// As [`BlobStore::get`].
    pub fn get_frame(&self, digest: Digest) -> Result<Vec<u8>> {
        let (path, bytes) = self.read(digest)?;
        frame::check(digest, &bytes, &path)?;
        frame::tried(bytes)
    }

    /// Removes a blob, if it is here. It may come back when the store is opened again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove(&self, digest: Digest) -> Result<()> {
        let mut index = self.index();
        let left = index.remove(digest);
        self.drop_packs(left)
    }

    /// Returns the names of all blobs, ascending.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        let mut all: Vec<Digest> = self.index().places.keys().copied().collect();
        all.sort_unstable();
        all
    }

    /// Removes the packs that were set aside. For whoever found that nothing is missed that they may have held.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_damaged(&self) -> Result<()> {
        for name in self.root.names()? {
            if matches!(name.to_str().and_then(parse), Some((_, DAMAGED))) {
                info!(path = %self.root.path().join(&name).display(), "a damaged pack goes: nothing of it is missed");
                self.root.unlink(&name)?;
            }
        }
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic while it was held cannot leave a table half-changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_read(&self) -> MutexGuard<'_, Option<(u32, Arc<File>)>> {
        // A panic while it was held cannot leave an option half-changed.
        self.last_read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the pack that a blob is in.
    fn open_pack(&self, digest: Digest) -> Result<(PathBuf, Arc<File>, Place)> {
        loop {
            let (place, name) = {
                let index = self.index();
                let place = index.places.get(&digest).copied().ok_or(Error::BlobMissing { digest })?;
                let standing = index.packs.get(&place.pack).map_or(Standing::Durable, |pack| pack.standing);
                (place, name_of(place.pack, standing))
            };
            let path = self.root.path().join(&name);
            if let Some((number, file)) = &*self.last_read()
                && *number == place.pack
            {
                return Ok((path, Arc::clone(file), place));
            }
            match self.root.file(&name) {
                Ok(file) => {
                    let file = Arc::new(file);
                    let index = self.index();
                    // What is forgotten meanwhile must not stay open.
                    if index.packs.contains_key(&place.pack) {
                        *self.last_read() = Some((place.pack, Arc::clone(&file)));
                    }
                    return Ok((path, file, place));
                }
                Err(error) if is_absent(&error) => {
                    let mut index = self.index();
                    let standing = index.packs.get(&place.pack).map(|pack| pack.standing);
                    // It got another name, or all of it another place; or somebody took it away.
                    if standing.is_some_and(|standing| name_of(place.pack, standing) == name) {
                        warn!(path = %path.display(), "a pack of blobs is gone");
                        index.forget(place.pack);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn read(&self, digest: Digest) -> Result<(PathBuf, Vec<u8>)> {
        let (path, file, place) = self.open_pack(digest)?;
        let mut bytes = vec![0; place.length as usize];
        match file.read_exact_at(&mut bytes, u64::from(place.offset)) {
            Ok(()) => Ok((path, bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(Error::BlobCorrupt { path, digest, why: "its pack ends before it" })
            }
            Err(error) => Err(at("read", path)(error)),
        }
    }
}

/// Returns the packs of a store's directory and what they hold durably, whoever owns the store: for a look from outside.
///
/// # Errors
/// [`Error::Io`].
pub fn stored(dir: &Path) -> Result<BTreeMap<Digest, PathBuf>> {
    let root = Dir::open(dir)?;
    loop {
        if let Some(stored) = stored_now(&root)? {
            return Ok(stored);
        }
    }
}

/// As [`stored`]; `None` if a pack went meanwhile: what it held may stand in one that came.
fn stored_now(root: &Dir) -> Result<Option<BTreeMap<Digest, PathBuf>>> {
    let mut stored = BTreeMap::new();
    for name in root.names()? {
        if !matches!(name.to_str().and_then(parse), Some((_, PACK))) {
            continue;
        }
        let path = root.path().join(&name);
        match root.file(&name) {
            Ok(file) => {
                let table = pack::read(&file, &path)?.map(|(table, _)| table).unwrap_or_default();
                stored.extend(table.into_iter().map(|(digest, _)| (digest, path.clone())));
            }
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(stored))
}

/// Returns a frame that is as it was made.
fn checked<B: AsRef<[u8]>>((digest, bytes): &(Digest, B)) -> Result<Frame<'_>> {
    frame::check(*digest, bytes.as_ref(), Path::new("given frame"))?;
    Ok((*digest, Cow::Borrowed(bytes.as_ref())))
}

/// Returns a frame that holds what it should.
fn verified<B: AsRef<[u8]>>((digest, bytes): &(Digest, B)) -> Result<Frame<'_>> {
    frame::verify(*digest, bytes.as_ref(), Path::new("given frame"))?;
    Ok((*digest, Cow::Borrowed(bytes.as_ref())))
}

fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// Returns whether a blob that was read is not there, or not whole: reading it again would not help.
fn is_damage(error: &Error) -> bool {
    match error {
        Error::BlobMissing { .. } | Error::BlobCorrupt { .. } => true,
        Error::Io { source, .. } => {
            let errno = source.raw_os_error().map(Errno::from_raw_os_error);
            matches!(errno, Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN | Errno::NODATA))
        }
        _ => false,
    }
}

/// Returns the file name of a pack.
fn name_of(number: u32, standing: Standing) -> String {
    let ending = if standing == Standing::Loose { LOOSE } else { PACK };
    format!("{number:010}.{ending}")
}

/// Returns the number and the ending of a file of ours.
fn parse(name: &str) -> Option<(u32, &str)> {
    let (number, ending) = name.split_once('.')?;
    let known = [PACK, LOOSE, DAMAGED];
    Some((number.parse().ok().filter(|_| number.len() == 10)?, known.into_iter().find(|known| *known == ending)?))
}

// A frame of the largest blob must fit a pack whose offsets are counted in 32 bits.
const _: () = assert!((PACK_BYTES_MAX as usize) + BLOB_BYTES_MAX < u32::MAX as usize);

#[cfg(test)]
mod tests;
