//! Replacing single files where they stand, for directories that are shared with other files and for programs that
//! cannot follow a switch of directories.
//!
//! Must stay true: whole new files are staged and a journal of what will be done is durable before the first file is
//! replaced; after a death the journal is played to its end (`play.rs`), so the set is the old or the new version once it is
//! opened again. Where that cannot be done, because the disk refuses a step, neither is live until some version is wholly there:
//! nothing staged is touched while a journal stands that would look for it, and what it may have put is known as ours (`halves.rs`).
//! Nothing is replaced or removed that was not proven to be ours (`plan.rs`), and nothing that was touched since it was looked
//! at: the version is staged anew then. What was changed by hand is put aside before a version takes its place (`stood.rs`). What
//! only its owner may read, as secrets are, is copied into no other file. Readers may see old and new files side by side for
//! the moment that the renames take: that is what [`crate::Applier`] is better at.

mod halves;
mod journal;
mod plan;
mod play;
mod stood;
pub(crate) mod whole;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use leaseward_state::config::{Digest, Manifest, ManifestEntry, ManifestNode};

use self::journal::{Begun, Op, encode_version, journal, read_journal, read_version, write_durably};
use self::plan::refuse_mounts;
use self::play::Play;
use self::stood::{Stood, put_aside};
use crate::apply::{Drift, DriftKind, Live, Lock, Owner, differs};
use crate::dir::{Dir, Parents, is_shut};
use crate::error::{Error, Result, at};
use crate::limits::{DRIFTS_MAX, RESERVE_BYTES};
use crate::manifest::{check, encode};
use crate::patterns::Patterns;
use crate::space;
use crate::tables::DigestMap;
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
    /// Switches that were begun and not ended, the oldest first: what stands at their paths may be theirs.
    halves: Vec<Begun>,
    /// Their paths: names that stand there may not be durable, and another sync of them would prove nothing.
    doubted: BTreeSet<String>,
    /// Whether the newest half is the journal, which is played when the set is opened again if nothing else is staged.
    is_journaled: bool,
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
            halves: Vec::new(),
            doubted: BTreeSet::new(),
            is_journaled: false,
            _lock: lock,
        };
        this.live = read_version(&this.state_dir, LIVE);
        this.read_halves()?;
        if let Some(begun) = read_journal(&this.state_dir, JOURNAL) {
            let (target, version) = (this.target.display().to_string(), begun.version);
            tracing::info!(target, version, "an interrupted switch is played to its end");
            if let Err(error) = this.prove(&begun).and_then(|()| this.play(&begun)) {
                tracing::warn!(target, version, %error, "it cannot be: no version is whole until another one is applied");
                this.doubt(begun);
            }
        }
        if !this.is_journaled {
            this.root()?.remove_tree(STAGE)?;
        }
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

    /// Returns the version that is live: none after a switch that was begun and could not be ended.
    #[must_use]
    pub fn live(&self) -> Option<Live> {
        let whole = self.live.as_ref().filter(|_| self.halves.is_empty());
        whole.map(|(version, manifest)| Live { version: *version, manifest: digest_of(&encode(manifest)) })
    }

    /// Returns the manifest of the version that is live, or was before a switch that could not be ended.
    #[must_use]
    pub fn live_manifest(&self) -> Option<Manifest> {
        self.live.as_ref().map(|(_, manifest)| manifest.clone())
    }

    /// Returns the version that is live, or was before a switch that could not be ended, with its manifest.
    pub(crate) fn last_whole(&self) -> Option<(Live, Manifest)> {
        let (version, manifest) = self.live.clone()?;
        Some((Live { version, manifest: digest_of(&encode(&manifest)) }, manifest))
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
            Some(_) => self.clear_stage(),
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
    /// [`Error::NotEnoughSpace`], [`Error::TargetNotOurs`], [`Error::OtherFileSystem`], [`Error::IllegalTree`], [`Error::Io`].
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
        self.clear_stage()?;
        let root = self.root()?;
        let stage = root.mkdir(STAGE)?;
        let mut source = |digest| held.chunks.get(&digest).cloned().map_or_else(|| source(digest), Ok);
        let staged = self.stage_into(&root, &stage, version, manifest, &mut source, cache);
        match staged {
            Ok(ready) => {
                self.ready = Some(ready);
                if !self.halves.is_empty() {
                    // What was replaced by the switch that failed is nowhere else any more.
                    self.back.bytes += held.bytes;
                    self.back.chunks.extend(held.chunks);
                }
            }
            Err(error) => {
                self.clear_stage()?;
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
    /// [`Error::Io`], [`Error::DiskFull`]: before the journal stands the old version is whole; after it no version is live,
    /// and opening the set again finishes the new one, unless another one is staged. [`Error::Changed`] if nothing is staged, or
    /// if somebody touched a file of the set since, [`Error::OtherFileSystem`] if something is mounted there. Then another
    /// [`InPlace::stage`] looks at every file.
    pub fn switch(&mut self) -> Result<Applied> {
        let Some(Ready { version, manifest, ops, done, stood, by_hand }) = self.ready.take() else {
            return Err(Error::Changed { path: self.target.clone() });
        };
        let root = self.root()?;
        let looked = stood
            .check(&root)
            .and_then(|()| refuse_mounts(&root, &ops))
            .and_then(|()| put_aside(&root, &by_hand, &self.state_dir, FOUND));
        if let Err(error) = looked {
            self.clear_stage()?;
            return Err(error);
        }
        let begun = Begun { version, manifest, ops };
        if let Err(error) = write_durably(&self.state_dir, JOURNAL, &journal(&begun)) {
            // It may have its name all the same, and be played by whoever opens the set.
            if !self.state_dir.stat(JOURNAL).is_ok_and(|found| found.is_none()) {
                self.doubt(begun);
            }
            return Err(error);
        }
        match self.play(&begun) {
            Ok(()) => Ok(done),
            Err(error) => {
                self.doubt(begun);
                Err(error)
            }
        }
    }

    /// Looks whether what is staged is what a journal would put in its places.
    fn prove(&self, begun: &Begun) -> Result<()> {
        Play::new(&self.root()?, &begun.manifest, None, self.owner).prove(&begun.ops)
    }

    /// Takes every step, then says that the version is live, then forgets the journal.
    fn play(&mut self, begun: &Begun) -> Result<()> {
        let root = self.root()?;
        let before = self.live.as_ref().map(|(_, manifest)| manifest);
        Play::new(&root, &begun.manifest, before, self.owner).run(&begun.ops)?;
        if let Some((before, tree)) = &self.live
            && *before != begun.version
        {
            write_durably(&self.state_dir, PREVIOUS, &encode_version(*before, tree))?;
        }
        write_durably(&self.state_dir, LIVE, &encode_version(begun.version, &begun.manifest))?;
        self.forget_halves()?;
        self.live = Some((begun.version, begun.manifest.clone()));
        if let Err(error) = root.remove_tree(STAGE) {
            tracing::warn!(target = %self.target.display(), %error, "what was staged is not removed");
        }
        Ok(())
    }

    /// Forgets what is in memory for the way back: the version that is live stays.
    pub fn finish(&mut self) {
        self.back = Back::default();
    }

    fn root(&self) -> Result<Dir> {
        Dir::open(&self.target)
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
