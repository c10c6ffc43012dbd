//! Reading a directory as a config set: the publisher's side.
//!
//! Must stay true: nothing outside the directory is read, whatever links stand in it; what cannot be rebuilt on every
//! member (devices, sockets, setuid bits, links that lead out) is refused with its path; a file that changes between
//! [`scan`] and [`Scanned::read`] is an error and never a wrong chunk. Memory: one chunk for each thread, and the list of
//! paths.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastcdc::v2020::{FastCDC, StreamCDC};
use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode, check_link};
use rustix::fs::Stat;

use crate::apply::Stamp;
use crate::dir::{Dir, Kind, Parents, kind, link_target, read_piece};
use crate::error::{Error, Result, at};
use crate::limits::{
    CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, CHUNK_BYTES_USUAL, SCAN_FILES_AT_ONCE, SCAN_THREADS_MAX, SEEN_NEWS_ONE_IN,
};
use crate::seen::{self, Seen};
use crate::tables::DigestMap;
use crate::{digest_of, listing, manifest, xattr};

/// A directory as it was when it was scanned.
#[derive(Debug)]
pub struct Scanned {
    manifest: Arc<Manifest>,
    root: Dir,
    places: DigestMap<Place>,
    /// How each entry looked before it was read, where that proves what it holds; as nothing does, elsewhere.
    looked: Vec<Stamp>,
    /// Entries whose content was read, as it was not known.
    read: HashSet<usize>,
}

/// Where the bytes of a chunk stand.
#[derive(Debug, Clone, Copy)]
struct Place {
    entry: usize,
    offset: u64,
    size: u32,
}

/// Returns what `directory` holds, as a manifest, with a plan to read each chunk. Blocks while it reads every file.
///
/// # Errors
/// [`Error::IllegalTree`] for anything that may not be in a set, [`Error::Changed`] for a file that is being written,
/// [`Error::TooLarge`] above the limits of a set, [`Error::Io`].
pub fn scan(directory: &Path) -> Result<Scanned> {
    scan_all(directory, false, &Seen::default(), &|_| true)
}

/// As [`scan_some`] of everything, and reads only files that are not as they were when [`Scanned::remember`] noted them in `seen`. That file
/// need not exist.
///
/// # Errors
/// As [`scan`].
pub fn scan_again(directory: &Path, xattrs: bool, seen: &Path) -> Result<Scanned> {
    scan_all(directory, xattrs, &Seen::load(seen), &|_| true)
}

/// As [`scan`], without the paths that `is_part` refuses; directories above a path that it takes are taken, too. With
/// `xattrs` the extended attributes of files are part of the version.
///
/// # Errors
/// As [`scan`].
pub fn scan_some(directory: &Path, xattrs: bool, is_part: &(dyn Fn(&str) -> bool + Sync)) -> Result<Scanned> {
    scan_all(directory, xattrs, &Seen::default(), is_part)
}

fn scan_all(directory: &Path, xattrs: bool, seen: &Seen, is_part: &(dyn Fn(&str) -> bool + Sync)) -> Result<Scanned> {
    let root = Dir::open(directory)?;
    let mut manifest = Manifest { xattrs: xattrs.then(BTreeMap::new), ..Manifest::default() };
    let (mut unread, mut looked) = (Vec::new(), Vec::new());
    let mut parents = Parents::new(&root);
    for (path, stat) in listing::list(&root, is_part)? {
        let is_file = kind(&stat) == Kind::File;
        let node = match seen.of(&path, &stat) {
            Some(known) => known,
            None => {
                if is_file {
                    unread.push(manifest.entries.len());
                }
                scan_entry(&path, &root, &mut parents, &stat)?
            }
        };
        let stamp = Stamp::of(&stat);
        looked.push(if is_file && stamp.is_old_enough() { stamp } else { Stamp::default() });
        if let Some(all) = &mut manifest.xattrs
            && is_file
        {
            let (dir, name) = parents.of(&path)?;
            let found = xattr::read(&dir.file(name)?, &dir.path().join(name))?;
            if !found.is_empty() {
                all.insert(path.clone(), found);
            }
        }
        manifest.entries.push(ManifestEntry { path, node });
    }
    cut_files(&root, &mut manifest.entries, &unread)?;
    manifest::check(&manifest)?;
    let places = places(&manifest);
    Ok(Scanned { manifest: Arc::new(manifest), root, places, looked, read: unread.into_iter().collect() })
}

fn places(manifest: &Manifest) -> DigestMap<Place> {
    let mut places = DigestMap::with_capacity_and_hasher(manifest.entries.len(), Default::default());
    for (entry, found) in manifest.entries.iter().enumerate() {
        let ManifestNode::File { chunks, .. } = &found.node else { continue };
        let mut offset = 0;
        for chunk in chunks {
            places.entry(chunk.digest).or_insert(Place { entry, offset, size: chunk.size });
            offset += u64::from(chunk.size);
        }
    }
    places
}

fn ascending(digests: impl Iterator<Item = Digest>) -> std::vec::IntoIter<Digest> {
    let mut digests: Vec<Digest> = digests.collect();
    digests.sort_unstable();
    digests.into_iter()
}

fn scan_entry(path: &str, root: &Dir, parents: &mut Parents<'_>, stat: &Stat) -> Result<ManifestNode> {
    let here = || root.path().join(path);
    match kind(stat) {
        Kind::Directory => Ok(ManifestNode::Directory { mode: permissions(stat, here)? }),
        Kind::File => {
            // Its content is read afterwards, by several threads.
            let mode = permissions(stat, here)?;
            Ok(ManifestNode::File { mode, size: 0, digest: Digest([0; 32]), chunks: Vec::new() })
        }
        Kind::Symlink => {
            let (dir, name) = parents.of(path)?;
            let target = link_target(dir, OsStr::new(name))?;
            check_link(path, &target).map_err(|bad| Error::illegal(here(), bad.why))?;
            Ok(ManifestNode::Symlink { target })
        }
        Kind::Special => Err(Error::illegal(here(), "it is a device, a pipe or a socket")),
    }
}

fn permissions(stat: &Stat, here: impl Fn() -> std::path::PathBuf) -> Result<u32> {
    if stat.st_mode & 0o7000 != 0 {
        return Err(Error::illegal(here(), "it has a setuid, setgid or sticky bit"));
    }
    Ok(stat.st_mode & 0o777)
}

/// Fills in what the files hold.
fn cut_files(root: &Dir, entries: &mut [ManifestEntry], unread: &[usize]) -> Result<()> {
    let mut unread = unread.iter().copied().peekable();
    let mut files: Vec<&mut ManifestEntry> =
        entries.iter_mut().enumerate().filter_map(|(at, entry)| unread.next_if_eq(&at).map(|_| entry)).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SCAN_THREADS_MAX);
    if threads == 1 || files.len() <= SCAN_FILES_AT_ONCE {
        return cut_some(root, &mut files);
    }
    let runs = Mutex::new(files.chunks_mut(SCAN_FILES_AT_ONCE).enumerate());
    let failures = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // The lock is not held while files are read.
                let next = || lock(&runs).next();
                while let Some((turn, run)) = next() {
                    if let Err(error) = cut_some(root, run) {
                        lock(&failures).insert(turn, error);
                        // The others need not go on.
                        while next().is_some() {}
                    }
                }
            });
        }
    });
    let first = lock(&failures).pop_first();
    first.map_or(Ok(()), |(_, error)| Err(error))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cut_some(root: &Dir, files: &mut [&mut ManifestEntry]) -> Result<()> {
    let mut parents = Parents::new(root);
    for ManifestEntry { path, node } in files {
        let ManifestNode::File { mode, size, digest, chunks } = node else { continue };
        let (dir, name) = parents.of(path)?;
        (*size, *digest, *chunks) = scan_file(dir, name, *mode)?;
    }
    Ok(())
}

fn scan_file(dir: &Dir, name: &str, mode: u32) -> Result<(u64, Digest, Vec<Chunk>)> {
    let path = dir.path().join(name);
    let mut file = dir.file(name)?;
    let look = |file: &File| rustix::fs::fstat(file).map_err(at("look at", &path));
    let before = look(&file)?;
    if kind(&before) != Kind::File || before.st_mode & 0o7777 != mode {
        return Err(Error::Changed { path });
    }
    let (digest, chunks) = cut(&mut file, before.st_size as u64, &path)?;
    let size = chunks.iter().map(|chunk| u64::from(chunk.size)).sum();
    let after = look(&file)?;
    let stamp = |stat: &Stat| (stat.st_ino, stat.st_size, stat.st_mode, stat.st_ctime, stat.st_ctime_nsec);
    if stamp(&before) != stamp(&after) || size != after.st_size as u64 {
        return Err(Error::Changed { path });
    }
    Ok((size, digest, chunks))
}

/// Returns the pieces that these bytes are stored in, as a file with that content is.
#[must_use]
pub fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    if bytes.len() <= CHUNK_BYTES_MAX {
        return if bytes.is_empty() { Vec::new() } else { vec![bytes] };
    }
    let cuts = FastCDC::new(bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_USUAL, CHUNK_BYTES_MAX);
    cuts.map(|piece| &bytes[piece.offset..piece.offset + piece.length]).collect()
}

/// Returns the hash of the file and its pieces: one up to the largest chunk, content-defined ones above.
fn cut(file: &mut File, size: u64, path: &Path) -> Result<(Digest, Vec<Chunk>)> {
    if size <= CHUNK_BYTES_MAX as u64 {
        let mut bytes = Vec::with_capacity(size as usize);
        // One byte more shows a file that grows.
        file.take(size + 1).read_to_end(&mut bytes).map_err(at("read", path))?;
        if bytes.len() as u64 != size {
            return Err(Error::Changed { path: path.to_owned() });
        }
        let digest = digest_of(&bytes);
        let chunks = if size == 0 { vec![] } else { vec![Chunk { digest, size: size as u32 }] };
        return Ok((digest, chunks));
    }
    let mut hasher = blake3::Hasher::new();
    let mut chunks = Vec::new();
    // No more than was seen at first, so that a growing log ends the scan.
    let bounded = file.take(size);
    for piece in StreamCDC::new(bounded, CHUNK_BYTES_MIN, CHUNK_BYTES_USUAL, CHUNK_BYTES_MAX) {
        let piece = piece.map_err(|error| Error::io("read", path, std::io::Error::from(error)))?;
        hasher.update(&piece.data);
        chunks.push(Chunk { digest: digest_of(&piece.data), size: piece.data.len() as u32 });
    }
    Ok((Digest(*hasher.finalize().as_bytes()), chunks))
}

impl Scanned {
    /// Returns the tree that stands at `root`, as `manifest` says.
    pub(crate) fn of(manifest: Arc<Manifest>, root: Dir) -> Self {
        let places = places(&manifest);
        Self { manifest, root, places, looked: Vec::new(), read: HashSet::new() }
    }

    /// Notes what was read, for the next [`scan_again`], if that is enough to be worth it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`].
    pub fn remember(&self, seen: &Path) -> Result<()> {
        let proves = |stamp: &Stamp| *stamp != Stamp::default();
        let news = self.read.iter().filter(|entry| self.looked.get(**entry).is_some_and(proves));
        match news.count() {
            0 => Ok(()),
            news if news * SEEN_NEWS_ONE_IN < self.looked.iter().filter(|stamp| proves(stamp)).count() => Ok(()),
            _ => seen::remember(seen, &self.manifest, &self.looked),
        }
    }

    /// Returns the names of the chunks of files that were read: all but those that [`scan_again`] knew. In ascending order.
    pub fn read_now(&self) -> impl Iterator<Item = Digest> + '_ {
        let read = |place: &Place| self.read.contains(&place.entry);
        ascending(self.places.iter().filter(|(_, place)| read(place)).map(|(digest, _)| *digest))
    }

    /// Returns what the directory held.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Returns the names of all chunks, each once, in ascending order.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        ascending(self.places.keys().copied())
    }

    /// Returns the plain bytes of a chunk, read again from its file and verified. Blocks on the disk.
    ///
    /// # Errors
    /// [`Error::Changed`] if the file is no longer what it was, [`Error::BlobMissing`] for a digest that is not of
    /// this tree, [`Error::Io`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>> {
        let place = self.places.get(&digest).ok_or(Error::BlobMissing { digest })?;
        let relative = &self.manifest.entries[place.entry].path;
        let path = self.root.path().join(relative);
        let changed = || Error::Changed { path: path.clone() };
        let mut file = self.root.file(relative).map_err(|_| changed())?;
        let bytes = read_piece(&mut file, place.offset, place.size, &path)?;
        if digest_of(&bytes) != digest {
            return Err(changed());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
