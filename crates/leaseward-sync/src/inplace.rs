//! Replacing single files where they stand, for directories that are shared with other files and for programs that
//! cannot follow a switch of directories.
//!
//! Must stay true: whole new files are staged and a journal of what will be done is durable before the first file is
//! replaced; after a death the journal is played to its end, so the set is the old or the new version once it is opened
//! again. Nothing is replaced or removed that was not proven to be ours, and nothing that was touched since it was looked at:
//! the version is staged anew then. What was changed by hand is put aside before a version takes its place (`stood.rs`). What
//! only its owner may read, as secrets are, is copied into no other file. Readers may see old and new files side by side for
//! the moment that the renames take: that is what [`crate::Applier`] is better at.

mod journal;
mod stood;
pub(crate) mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use leaseward_state::config::{Digest, Manifest, ManifestEntry, ManifestNode};
use rustix::fs::Mode;

use self::journal::{Op, decode_op, encode_version, journal, read, read_version, write_durably};
use self::stood::{Stood, put_aside};
use crate::apply::{Drift, DriftKind, Live, Lock, Owner, differs};
use crate::dir::{Dir, Kind, Parents, give, is_shut, kind};
use crate::error::{Error, Result, at};
use crate::limits::{DRIFTS_MAX, RENDERED_BYTES_MAX, RESERVE_BYTES, SYNC_EACH_MAX};
use crate::manifest::{check, decode, encode};
use crate::patterns::Patterns;
use crate::space;
use crate::tables::DigestMap;
use crate::xattr;
use crate::{Applied, BlobStore, SetDirs, digest_of};

/// Where new files wait, inside the target, so that they are on its file system.
const STAGE: &str = ".leaseward-stage";
const JOURNAL: &str = "journal";
const LIVE: &str = "live.files";
const PREVIOUS: &str = "previous.files";
/// What somebody had changed by hand where a version took its place, below the state's directory.
const FOUND: &str = "found";

/// Applies versions of one set file by file. Its methods block on the disk. One process at a time: it holds a lock.
#[derive(Debug)]
pub struct InPlace {
    target: PathBuf,
    state_dir: Dir,
    live: Option<(u64, Manifest)>,
    ready: Option<Ready>,
    ignore: Patterns,
    owner: Option<Owner>,
    reserve: u64,
    /// What was replaced and only its owner may read, by chunks: secrets are in no other file than their own.
    back: Back,
    /// Paths of a switch that failed: their names stand, and may not be durable. Another sync of them would prove nothing.
    doubted: BTreeSet<String>,
    _lock: Lock,
}

/// A version whose new files are staged.
#[derive(Debug)]
struct Ready {
    version: u64,
    manifest: Manifest,
    ops: Vec<Op>,
    done: Applied,
    /// How everything stood that it is about.
    stood: Stood,
    /// Files of the live version that somebody changed, and that are replaced; whether the version has them for their owner alone.
    by_hand: Vec<(String, bool)>,
}

/// Chunks that are held in memory for the way back, and their bytes together.
#[derive(Debug, Default)]
struct Back {
    chunks: DigestMap<Vec<u8>>,
    bytes: u64,
}

impl InPlace {
    /// Opens a set and finishes what a death interrupted.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process has it open, [`Error::Io`], [`Error::DiskFull`].
    pub fn open(dirs: &SetDirs) -> Result<Self> {
        std::fs::create_dir_all(&dirs.target).map_err(at("make directory", &dirs.target))?;
        std::fs::create_dir_all(&dirs.state_dir).map_err(at("make directory", &dirs.state_dir))?;
        let lock = Lock::take(&dirs.state_dir.join("lock"))?;
        let target = dirs.target.canonicalize().map_err(at("find", &dirs.target))?;
        let state_dir = Dir::open(&dirs.state_dir)?;
        let mut this = Self {
            target,
            state_dir,
            live: None,
            ready: None,
            ignore: Patterns::default(),
            owner: None,
            reserve: RESERVE_BYTES,
            back: Back::default(),
            doubted: BTreeSet::new(),
            _lock: lock,
        };
        if let Some((version, manifest, ops)) = this.read_journal() {
            tracing::info!(target = %this.target.display(), version, "an interrupted switch is played to its end");
            this.play(version, &manifest, &ops)?;
        }
        this.live = read_version(&this.state_dir, LIVE);
        let root = this.root()?;
        root.remove_tree(STAGE)?;
        Ok(this)
    }

    /// Returns it with another reserve: the free bytes that an apply must leave.
    #[must_use]
    pub fn with_reserve(self, bytes: u64) -> Self {
        Self { reserve: bytes, ..self }
    }

    /// Says which paths programs write themselves, and whom everything belongs to. Holds from the next apply on; what
    /// is staged for another owner is forgotten.
    pub fn keep(&mut self, ignore: Patterns, owner: Option<Owner>) {
        self.ignore = ignore;
        if self.owner != owner {
            self.owner = owner;
            if let Err(error) = self.unstage() {
                tracing::warn!(target = %self.target.display(), %error, "what was staged for another owner is not removed");
            }
        }
    }

    /// Returns the version that is live.
    #[must_use]
    pub fn live(&self) -> Option<Live> {
        self.live.as_ref().map(|(version, manifest)| Live { version: *version, manifest: digest_of(&encode(manifest)) })
    }

    /// Returns the manifest of the version that is live.
    #[must_use]
    pub fn live_manifest(&self) -> Option<Manifest> {
        self.live.as_ref().map(|(_, manifest)| manifest.clone())
    }

    /// Returns the version that was live before, with its manifest.
    #[must_use]
    pub fn previous_manifest(&self) -> Option<(Live, Manifest)> {
        let (version, manifest) = read_version(&self.state_dir, PREVIOUS)?;
        Some((Live { version, manifest: digest_of(&encode(&manifest)) }, manifest))
    }

    /// Returns what is live, to be read from.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn live_tree(&self) -> Result<Option<crate::Scanned>> {
        match &self.live {
            Some((_, manifest)) => Ok(Some(crate::Scanned::of(std::sync::Arc::new(manifest.clone()), self.root()?))),
            None => Ok(None),
        }
    }

    /// Returns the directories that hold files of the set, for those who watch them.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let Some((_, manifest)) = &self.live else { return Vec::new() };
        let above = |entry: &ManifestEntry| entry.path.rsplit_once('/').map(|(above, _)| above.to_owned());
        let all: BTreeSet<_> = manifest.entries.iter().map(above).collect();
        all.into_iter().map(|above| above.map_or(self.target.clone(), |above| self.target.join(above))).collect()
    }

    /// Forgets what was staged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unstage(&mut self) -> Result<()> {
        match self.ready.take() {
            Some(_) => self.root()?.remove_tree(STAGE),
            None => Ok(()),
        }
    }

    /// Returns where the set lives.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Returns how the files of the live version differ from it. Other files in the directory are none of ours.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn verify(&self) -> Result<Vec<Drift>> {
        let Some((_, manifest)) = &self.live else { return Ok(Vec::new()) };
        let root = self.root()?;
        let mut drifts = Vec::new();
        for entry in &manifest.entries {
            if self.ignore.ignores(&entry.path) || drifts.len() >= DRIFTS_MAX {
                continue;
            }
            if let Some(kind) = difference(&root, entry, manifest, self.owner)? {
                let mut drift = Drift::of(&entry.path, kind);
                if let Ok(stat) = std::fs::symlink_metadata(self.target.join(&entry.path))
                    && kind != DriftKind::Missing
                {
                    use std::os::unix::fs::MetadataExt as _;
                    drift.owner = Some(stat.uid());
                    drift.at = u64::try_from(stat.ctime() * 1000).ok();
                }
                drifts.push(drift);
            }
        }
        Ok(drifts)
    }

    /// Returns which chunks a version takes that stand in no file here, and what space, which is checked.
    ///
    /// # Errors
    /// [`Error::NotEnoughSpace`], [`Error::TargetNotOurs`], [`Error::IllegalTree`], [`Error::Io`].
    pub fn needs(&self, manifest: &Manifest) -> Result<crate::Needs> {
        check(manifest)?;
        let root = self.root()?;
        let mut needs = crate::Needs::default();
        let mut seen = BTreeSet::new();
        for entry in self.changed(&root, manifest)? {
            needs.space.inodes += 1;
            needs.space.bytes += crate::limits::BLOCK_BYTES;
            if let ManifestNode::File { size, chunks, .. } = &entry.node {
                needs.space.bytes += *size;
                needs.fetch.extend(chunks.iter().filter(|chunk| seen.insert(chunk.digest)));
            }
        }
        space::fits(needs.space, space::free(&root, &self.target, self.reserve)?)?;
        needs.fetch.sort_unstable_by_key(|chunk| chunk.digest);
        Ok(needs)
    }

    /// Puts every new file of `manifest` on the disk beside its place, whole and durable, and replaces nothing. What it
    /// will replace is kept in `cache`, for the way back.
    ///
    /// # Errors
    /// As [`InPlace::needs`]; [`Error::BlobCorrupt`]; [`Error::DiskFull`]; what `source` returns.
    pub fn stage(
        &mut self,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
        cache: &BlobStore,
    ) -> Result<()> {
        if self.ready.as_ref().is_some_and(|ready| (ready.version, &ready.manifest) == (version, manifest)) {
            return Ok(());
        }
        self.ready = None;
        // Of the version before: if that is what is staged now, it is the way back.
        let held = std::mem::take(&mut self.back);
        self.needs(manifest)?;
        let root = self.root()?;
        root.remove_tree(STAGE)?;
        let stage = root.mkdir(STAGE)?;
        let mut source = |digest| held.chunks.get(&digest).cloned().map_or_else(|| source(digest), Ok);
        let staged = self.stage_into(&root, &stage, version, manifest, &mut source, cache);
        match staged {
            Ok(ready) => {
                self.ready = Some(ready);
                if !self.doubted.is_empty() {
                    // What was replaced by the switch that failed is nowhere else any more.
                    self.back.bytes += held.bytes;
                    self.back.chunks.extend(held.chunks);
                }
            }
            Err(error) => {
                root.remove_tree(STAGE)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns whether this version is staged.
    #[must_use]
    pub fn staged(&self) -> Option<Live> {
        let ready = self.ready.as_ref()?;
        Some(Live { version: ready.version, manifest: digest_of(&encode(&ready.manifest)) })
    }

    /// Puts what was staged in its places.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]: before the journal is durable the old version is whole; after it, opening the
    /// set again finishes the new one. [`Error::Changed`] if nothing is staged, or if somebody touched a file of the set
    /// since. Then another [`InPlace::stage`] looks at every file.
    pub fn switch(&mut self) -> Result<Applied> {
        let Some(Ready { version, manifest, ops, done, stood, by_hand }) = self.ready.take() else {
            return Err(Error::Changed { path: self.target.clone() });
        };
        let root = self.root()?;
        let looked = stood.check(&root).and_then(|()| put_aside(&root, &by_hand, &self.state_dir, FOUND));
        if let Err(error) = looked {
            root.remove_tree(STAGE)?;
            return Err(error);
        }
        write_durably(&self.state_dir, JOURNAL, &journal(version, &manifest, &ops))?;
        if let Err(error) = self.play(version, &manifest, &ops) {
            self.doubted.extend(ops.iter().map(|op| op.path().to_owned()));
            return Err(error);
        }
        self.doubted.clear();
        self.live = Some((version, manifest));
        Ok(done)
    }

    /// Forgets what is in memory for the way back: the version that is live stays.
    pub fn finish(&mut self) {
        self.back = Back::default();
    }

    fn root(&self) -> Result<Dir> {
        Dir::open(&self.target)
    }

    /// Returns the entries that are not on the disk as they should be. A file in the way that is not ours is refused.
    fn changed<'a>(&self, root: &Dir, manifest: &'a Manifest) -> Result<Vec<&'a ManifestEntry>> {
        let ours: BTreeMap<&str, &ManifestNode> = self
            .live
            .iter()
            .flat_map(|(_, manifest)| &manifest.entries)
            .map(|entry| (entry.path.as_str(), &entry.node))
            .collect();
        let mut changed = Vec::new();
        for entry in &manifest.entries {
            match difference(root, entry, manifest, self.owner)? {
                // It stands there by a name that may not be durable: it is made anew.
                None if self.doubted.contains(&entry.path) => {}
                None => continue,
                Some(DriftKind::Missing) => {}
                Some(DriftKind::Content) if self.is_in_the_way(root, entry)? => {
                    return Err(Error::TargetNotOurs { path: self.target.join(&entry.path) });
                }
                Some(_) if ours.contains_key(entry.path.as_str()) => {}
                // A directory that was there before keeps its mode and owner.
                Some(DriftKind::Mode | DriftKind::Owner) if matches!(entry.node, ManifestNode::Directory { .. }) => {
                    continue;
                }
                Some(_) => return Err(Error::TargetNotOurs { path: self.target.join(&entry.path) }),
            }
            changed.push(entry);
        }
        Ok(changed)
    }

    /// Returns whether a directory that somebody filled stands where a file of the version belongs: what is in it is his.
    fn is_in_the_way(&self, root: &Dir, entry: &ManifestEntry) -> Result<bool> {
        if matches!(entry.node, ManifestNode::Directory { .. }) {
            return Ok(false);
        }
        match root.child(&entry.path) {
            Ok(found) => Ok(!found.names()?.is_empty()),
            Err(error) if is_shut(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn stage_into(
        &mut self,
        root: &Dir,
        stage: &Dir,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
        cache: &BlobStore,
    ) -> Result<Ready> {
        let live = self.live.iter().flat_map(|(_, live)| &live.entries);
        let paths: BTreeSet<&str> = live.chain(&manifest.entries).map(|entry| entry.path.as_str()).collect();
        // Before any of it is read.
        let stood = Stood::look(root, paths.into_iter().filter(|path| !self.ignore.ignores(path)))?;
        let mut by_hand = Vec::new();
        let mut ops = Vec::new();
        let mut done = Applied::default();
        let mut back = Back::default();
        let changed = self.changed(root, manifest)?;
        let each = changed.len() <= SYNC_EACH_MAX;
        for entry in changed {
            let number = ops.len() as u64;
            let name = number.to_string();
            match &entry.node {
                ManifestNode::Directory { mode } => {
                    by_hand.extend(self.changed_by_hand(root, &entry.path)?);
                    ops.push(Op::Directory(entry.path.clone(), *mode));
                    continue;
                }
                ManifestNode::Symlink { target } => stage.symlink(target, &name)?,
                ManifestNode::File { mode, digest, chunks, .. } => {
                    let path = stage.path().join(&name);
                    let mut file = stage.create(&name)?;
                    let mut hasher = blake3::Hasher::new();
                    for chunk in chunks {
                        let bytes = source(chunk.digest)?;
                        hasher.update(&bytes);
                        file.write_all(&bytes).map_err(at("write", &path))?;
                        done.bytes += bytes.len() as u64;
                    }
                    if hasher.finalize().as_bytes() != &digest.0 {
                        let why = "its content has another name or length";
                        return Err(Error::BlobCorrupt { path: PathBuf::from("the source"), digest: *digest, why });
                    }
                    if let Some(owner) = self.owner {
                        give(&file, owner.user, owner.group, &path)?;
                    }
                    if let Some(xattrs) = manifest.xattrs_of(&entry.path) {
                        xattr::write(&file, xattrs, &path)?;
                    }
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode)).map_err(at("set the mode of", &path))?;
                    if each {
                        file.sync_all().map_err(at("sync", &path))?;
                    }
                    done.written += 1;
                    self.remember(root, &entry.path, cache, &mut back)?;
                }
            }
            by_hand.extend(self.changed_by_hand(root, &entry.path)?);
            ops.push(Op::Put(number, entry.path.clone()));
        }
        let wanted: BTreeSet<&str> = manifest.entries.iter().map(|entry| entry.path.as_str()).collect();
        let old = self.live.iter().flat_map(|(_, live)| live.entries.iter().rev().map(move |entry| (entry, live)));
        for (entry, live) in old.filter(|(entry, _)| !wanted.contains(entry.path.as_str())) {
            match (&entry.node, difference(root, entry, live, None)?) {
                (ManifestNode::Directory { .. }, _) => ops.push(Op::RemoveDirectory(entry.path.clone())),
                (_, None | Some(DriftKind::Mode | DriftKind::Xattr)) => {
                    self.remember(root, &entry.path, cache, &mut back)?;
                    ops.push(Op::Remove(entry.path.clone()));
                }
                // Removed by the switch that failed.
                (_, Some(DriftKind::Missing)) if self.doubted.contains(&entry.path) => {
                    ops.push(Op::Remove(entry.path.clone()));
                }
                // Somebody made it his own.
                (_, Some(_)) => tracing::warn!(path = %entry.path, "no longer in the set, changed by hand: left alone"),
            }
        }
        if each {
            stage.sync()?;
        } else {
            stage.sync_file_system()?;
        }
        done.linked = manifest.totals().0.saturating_sub(done.written);
        self.back = back;
        Ok(Ready { version, manifest: manifest.clone(), ops, done, stood, by_hand })
    }

    /// Returns the path if something else stands there than the live version has, and whether that has it for its owner alone.
    fn changed_by_hand(&self, root: &Dir, path: &str) -> Result<Option<(String, bool)>> {
        let is_ours = self.ignore.ignores(path) || self.doubted.contains(path);
        let Some((_, live)) = self.live.as_ref().filter(|_| !is_ours) else { return Ok(None) };
        let Some(entry) = live.entries.iter().find(|entry| entry.path == path) else { return Ok(None) };
        let is_private = matches!(entry.node, ManifestNode::File { mode, .. } if mode & 0o077 == 0);
        let is_changed = difference(root, entry, live, None)? == Some(DriftKind::Content);
        Ok(is_changed.then(|| (path.to_owned(), is_private)))
    }

    /// Keeps the chunks of a file that will be replaced: in the cache, or in memory if it may be a secret, as those are for
    /// their owner alone. Those of one version fit there.
    fn remember(&self, root: &Dir, path: &str, cache: &BlobStore, back: &mut Back) -> Result<()> {
        let old = self.live.iter().flat_map(|(_, manifest)| &manifest.entries).find(|entry| entry.path == path);
        let Some(ManifestNode::File { mode, chunks, .. }) = old.map(|entry| &entry.node) else { return Ok(()) };
        let Ok(mut file) = root.file(path) else { return Ok(()) };
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Ok(());
        }
        let mut offset = 0;
        for chunk in chunks {
            let bytes = crate::dir::read_piece(&mut file, offset, chunk.size, Path::new(path))?;
            offset += u64::from(chunk.size);
            if digest_of(&bytes) != chunk.digest {
                continue;
            }
            if mode & 0o077 != 0 {
                cache.put(chunk.digest, &bytes)?;
            } else if back.bytes + u64::from(chunk.size) <= RENDERED_BYTES_MAX {
                back.bytes += u64::from(chunk.size);
                back.chunks.insert(chunk.digest, bytes);
            }
        }
        Ok(())
    }

    /// Takes every step, then says that the version is live, then forgets the journal.
    fn play(&self, version: u64, manifest: &Manifest, ops: &[Op]) -> Result<()> {
        let root = self.root()?;
        let mut touched = BTreeSet::new();
        for op in ops {
            let path = op.path();
            let mut parents = Parents::new(&root);
            // A directory above it may be gone by an earlier step that was taken before a death.
            let Ok((dir, name)) = parents.of(path) else { continue };
            touched.insert(path.rsplit_once('/').map_or(String::new(), |(above, _)| above.to_owned()));
            match op {
                Op::Directory(_, mode) => {
                    match dir.stat(name)? {
                        Some(stat) if kind(&stat) == Kind::Directory => {}
                        Some(_) => {
                            dir.unlink(name)?;
                            dir.mkdir(name)?;
                        }
                        None => drop(dir.mkdir(name)?),
                    }
                    let made = dir.child(name)?;
                    if let Some(owner) = self.owner {
                        made.give_to(owner.user, owner.group)?;
                    }
                    made.set_mode(*mode)?;
                }
                Op::Put(number, _) => {
                    let from = number.to_string();
                    let Ok(stage) = root.child(STAGE) else { continue };
                    if stage.stat(&from)?.is_some() {
                        // An empty directory may stand there: a file does not take its place by itself.
                        let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::REMOVEDIR);
                        rustix::fs::renameat(&stage, &from, dir, name)
                            .map_err(at("replace", self.target.join(path)))?;
                    }
                }
                Op::Remove(_) => dir.unlink(name)?,
                Op::RemoveDirectory(_) => {
                    // Somebody else has something in it: it stays.
                    let _ = rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::REMOVEDIR);
                }
            }
        }
        if touched.len() > SYNC_EACH_MAX {
            root.sync_file_system()?;
        } else {
            for dir in touched {
                match dir.as_str() {
                    "" => root.sync()?,
                    dir => match root.child(dir) {
                        Ok(dir) => dir.sync()?,
                        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    },
                }
            }
        }
        if let Some((before, tree)) = read_version(&self.state_dir, LIVE)
            && before != version
        {
            write_durably(&self.state_dir, PREVIOUS, &encode_version(before, &tree))?;
        }
        write_durably(&self.state_dir, LIVE, &encode_version(version, manifest))?;
        self.state_dir.unlink(JOURNAL)?;
        self.state_dir.sync()?;
        root.remove_tree(STAGE)
    }

    fn read_journal(&self) -> Option<(u64, Manifest, Vec<Op>)> {
        let bytes = read(&self.state_dir, JOURNAL)?;
        let (head, rest) = bytes.split_at_checked(16)?;
        let version = u64::from_le_bytes(head[..8].try_into().ok()?);
        let length = usize::try_from(u64::from_le_bytes(head[8..].try_into().ok()?)).ok()?;
        let (manifest, ops) = rest.split_at_checked(length)?;
        let mut ops = ops.split(|byte| *byte == 0).filter(|op| !op.is_empty());
        let ops = ops.try_fold(Vec::new(), |mut all, op| {
            all.push(decode_op(std::str::from_utf8(op).ok()?)?);
            Some(all)
        })?;
        Some((version, decode(manifest).ok()?, ops))
    }
}

/// Returns how what stands at an entry's path differs from it, if it does.
fn difference(
    root: &Dir,
    entry: &ManifestEntry,
    manifest: &Manifest,
    owner: Option<Owner>,
) -> Result<Option<DriftKind>> {
    let looks = (manifest.xattrs_of(&entry.path), owner);
    let mut parents = Parents::new(root);
    let (dir, name) = match parents.of(&entry.path) {
        // A directory above it is gone, or somebody put something else in its place.
        Err(error) if is_shut(&error) => return Ok(Some(DriftKind::Missing)),
        found => found?,
    };
    match dir.stat(name)? {
        None => Ok(Some(DriftKind::Missing)),
        Some(stat) => match differs(&entry.node, looks, (dir, name.as_ref()), &stat, None) {
            // An ordinary user may not read what he may not read any more.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(Some(DriftKind::Mode))
            }
            found => found,
        },
    }
}

#[cfg(test)]
#[path = "inplace_tests.rs"]
mod tests;
