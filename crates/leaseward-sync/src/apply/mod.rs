//! Putting a version on this machine's disk in one step.
//!
//! Must stay true: the live path holds the old or the new version, whole, at every moment and after every death; a
//! version is durable before it is live; whatever cannot be proven to be ours is left alone.
//! The order: plan, check space, build next to the live tree with its record, sync, look at it again, `Staged`, exchange,
//! put the older kept tree aside, keep the old tree, sync the parent. Then the version is live. What is left can wait:
//! `Idle`, removing the tree put aside, stamps, and beginning the next tree.
//! What programs write themselves (ignored paths) is carried from the old tree to the new one.
//! Left out on purpose: switching single files in place (`inplace.rs`), hooks, and which version is wanted.

mod ahead;
mod build;
mod carry;
mod drift;
mod hand_over;
mod lock;
mod plan;
mod planning;
mod record;
mod recover;
mod slot;
mod step;
mod switch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use leaseward_state::config::{Chunk, Digest, Manifest, ManifestNode};

use self::ahead::Ahead;
pub use self::build::Applied;
use self::build::Build;
pub(crate) use self::build::{Given, Source};
pub(crate) use self::drift::differs;
pub use self::drift::{Drift, DriftKind};
pub(crate) use self::lock::Lock;
use self::plan::Lender;
use self::planning::Planned;
use self::record::Expected;
pub(crate) use self::record::{Record, Stamp};
use self::slot::{Slots, Standing, State, root_id};
use self::step::{Step, Steps};
use crate::dir::{Dir, Kind, kind};
use crate::error::{Error, Result, at};
use crate::limits::{AHEAD_FILES_MIN, RESERVE_BYTES};
use crate::manifest::{check, encode};
use crate::patterns::Patterns;
use crate::space::Space;
use crate::{BlobStore, Scanned, digest_of};

/// Where one set lives on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDirs {
    /// The live tree: a real directory, which programs read. Its parent must exist, and is where trees are built.
    pub target: PathBuf,
    /// Where Leaseward keeps what it knows about the tree. Must not lie inside the target.
    pub state_dir: PathBuf,
}

/// The version that is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub version: u64,
    /// The name of its encoded manifest.
    pub manifest: Digest,
}

/// What a version takes on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Chunks that stand in no tree on this disk, by ascending digest.
    pub fetch: Vec<Chunk>,
    /// What the new tree takes on the disk, next to the old one.
    pub space: Space,
}

/// Applies versions of one set. Its methods block on the disk. One process at a time: it holds a lock.
#[derive(Debug)]
pub struct Applier {
    parent: Dir,
    state_dir: Dir,
    names: Names,
    slots: Slots,
    reserve: u64,
    ignore: Patterns,
    owner: Option<Owner>,
    ready: Option<Ready>,
    /// The next tree, begun before anybody wants one.
    ahead: Option<Ahead>,
    /// From so many files on it pays to begin one.
    ahead_from: usize,
    /// The record of the live tree, with stamps that were proven again since it was written.
    known: Mutex<Option<(Standing, Arc<Record>)>>,
    /// The plan that was made last, for whoever asks what a version takes and then puts it on the disk.
    planned: Option<Planned>,
    /// How the files of the tree that was switched to last looked just before.
    unfinished: Option<Vec<Stamp>>,
    steps: Steps,
    _lock: Lock,
}

/// Whom the files of a set belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
}

/// A tree that stands next to the live one, whole and durable.
#[derive(Debug)]
struct Ready {
    wanted: Live,
    manifest: Arc<Manifest>,
    expected: Expected,
    exists: bool,
    done: Applied,
}

/// The names in the parent directory.
#[derive(Debug, Clone)]
struct Names {
    live: String,
    next: String,
    previous: String,
    gone: String,
}

impl Names {
    fn new(target: &Path) -> Result<Self> {
        let live = target.file_name().and_then(|name| name.to_str());
        let live = live.ok_or_else(|| Error::illegal(target, "its name is not UTF-8, or it has none"))?;
        if live.starts_with('.') && live.contains(".leaseward-") {
            return Err(Error::illegal(target, "its name is one that Leaseward gives to its own trees"));
        }
        let ours = |suffix| format!(".{live}.leaseward-{suffix}");
        Ok(Self { live: live.to_owned(), next: ours("next"), previous: ours("prev"), gone: ours("gone") })
    }
}

impl Applier {
    /// Opens a set, finishes or cleans up what a death interrupted, and finds out which version is live.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process has it open, [`Error::TargetNotOurs`] if the target is not a directory,
    /// [`Error::Io`], [`Error::DiskFull`].
    pub fn open(dirs: &SetDirs) -> Result<Self> {
        Self::open_with(dirs, Steps::default())
    }

    fn open_with(dirs: &SetDirs, steps: Steps) -> Result<Self> {
        let names = Names::new(&dirs.target)?;
        let above = dirs.target.parent().filter(|above| !above.as_os_str().is_empty());
        // The operator's own path may lead over links; what it leads to is ours from here on.
        let above = above.unwrap_or(Path::new(".")).canonicalize().map_err(at("find", &dirs.target))?;
        let parent = Dir::open(&above)?;
        std::fs::create_dir_all(&dirs.state_dir).map_err(at("make directory", &dirs.state_dir))?;
        let state_dir = Dir::open(&dirs.state_dir)?;
        let lock = Lock::take(&dirs.state_dir.join("lock"))?;
        let slots = Slots::open(&state_dir)?;
        let mut applier = Self {
            parent,
            state_dir,
            names,
            slots,
            reserve: RESERVE_BYTES,
            ignore: Patterns::default(),
            owner: None,
            ready: None,
            ahead: None,
            ahead_from: AHEAD_FILES_MIN,
            known: Mutex::default(),
            planned: None,
            unfinished: None,
            steps,
            _lock: lock,
        };
        applier.recover()?;
        Ok(applier)
    }

    /// Returns the applier with another reserve: the free bytes that an apply must leave.
    #[must_use]
    pub fn with_reserve(self, bytes: u64) -> Self {
        Self { reserve: bytes, ..self }
    }

    /// Says which paths programs write themselves, and whom everything belongs to (`None`: whoever this is). Holds from
    /// the next apply on; what is staged for another owner is forgotten.
    pub fn keep(&mut self, ignore: Patterns, owner: Option<Owner>) {
        self.ignore = ignore;
        if self.owner != owner {
            (self.planned, self.ahead) = (None, None);
            self.owner = owner;
            // It belongs to whom it should have belonged before.
            if let Err(error) = self.unstage() {
                tracing::warn!(target = %self.names.live, %error, "what was staged for another owner is not removed");
            }
        }
    }

    /// Returns the version that is live, as verified when the set was opened or last applied.
    #[must_use]
    pub fn live(&self) -> Option<Live> {
        self.slots.state().live.map(|tree| Live { version: tree.version, manifest: tree.manifest })
    }

    /// Returns the version that was live before and is kept for a quick way back, if there is one.
    #[must_use]
    pub fn previous(&self) -> Option<Live> {
        self.slots.state().previous.map(|tree| Live { version: tree.version, manifest: tree.manifest })
    }

    /// Returns the tree that is live, to read chunks of it; each is verified. `None` if nothing is, or if somebody put
    /// another tree there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn live_tree(&self) -> Result<Option<Scanned>> {
        let lender = self.lender(&self.slots.state().live, &self.names.live)?;
        Ok(lender.map(|lender| Scanned::of(Arc::clone(&lender.record.manifest), lender.root)))
    }

    /// Returns how the live tree differs from its version, by ascending path. Reads every file. Empty if nothing is
    /// live.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Changed`] if the tree is switched or edited meanwhile, [`Error::IllegalTree`] for names
    /// that are not UTF-8.
    pub fn verify(&self) -> Result<Vec<Drift>> {
        let Some(live) = &self.slots.state().live else { return Ok(Vec::new()) };
        let Some(record) = self.record(live) else { return Ok(vec![Drift::of("", DriftKind::Missing)]) };
        if let Some(drift) = self.target_is_no_directory()? {
            return Ok(vec![drift]);
        }
        drift::compare(&self.parent.child(&self.names.live)?, &record.manifest, &self.ignore, self.owner, None)
    }

    /// As [`Applier::verify`], and reads only files whose inodes no longer look as they did: a look at 10,000 files costs
    /// some 20 ms. Sees every kind of change, since an edit moves ctime and nobody can put that back.
    ///
    /// # Errors
    /// As [`Applier::verify`].
    pub fn scan(&mut self) -> Result<Vec<Drift>> {
        let Some(live) = self.slots.state().live else { return Ok(Vec::new()) };
        if let Some(drift) = self.target_is_no_directory()? {
            return Ok(vec![drift]);
        }
        if root_id(&self.parent, &self.names.live)? != Some(live.root) {
            // Another directory stands there: only its content can tell.
            return self.verify();
        }
        let Some(mut record) = self.record(&live) else { return Ok(vec![Drift::of("", DriftKind::Missing)]) };
        // Nobody else has it: what is proven again is noted in place.
        self.know(None);
        let root = self.parent.child(&self.names.live)?;
        let manifest = Arc::clone(&record.manifest);
        let stamps = &mut Arc::make_mut(&mut record).stamps;
        let found = drift::compare(&root, &manifest, &self.ignore, self.owner, Some(stamps));
        self.know(Some((live, record)));
        found
    }

    /// Returns the difference of a target that is gone, or that somebody put something else in the place of, such as a link.
    fn target_is_no_directory(&self) -> Result<Option<Drift>> {
        Ok(match self.parent.stat(&self.names.live)? {
            None => Some(Drift::of("", DriftKind::Missing)),
            Some(stat) if kind(&stat) != Kind::Directory => Some(Drift::found("", DriftKind::Content, &stat)),
            Some(_) => None,
        })
    }

    /// Returns the directories of the live version, for those who watch them; empty if nothing is live.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        let Some(manifest) = self.live_manifest() else { return Vec::new() };
        let root = self.target();
        let directories = manifest
            .entries
            .iter()
            .filter(|entry| matches!(entry.node, ManifestNode::Directory { .. }) && !self.ignore.ignores(&entry.path));
        std::iter::once(root.clone()).chain(directories.map(|entry| root.join(&entry.path))).collect()
    }

    /// Makes `manifest` the live version, with chunks that this disk lacks from `source`. Does nothing if it is live.
    ///
    /// # Errors
    /// After any error the old version is live and whole. [`Error::NotEnoughSpace`] and [`Error::TargetNotOurs`] before
    /// anything is written; [`Error::DiskFull`]; [`Error::BlobCorrupt`] for bytes from the source that do not match;
    /// [`Error::IllegalTree`]; [`Error::Changed`]; what `source` returns; [`Error::Io`].
    pub fn apply(
        &mut self,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
    ) -> Result<Applied> {
        check(manifest)?;
        let digest = digest_of(&encode(manifest));
        let wanted = Live { version, manifest: digest };
        if self.live() == Some(wanted) && self.target_is_ours()? {
            return Ok(Applied::default());
        }
        self.rebuild(version, manifest, source)
    }

    /// As [`Applier::apply`], even if that version is live: what somebody changed by hand is put right. What stood there
    /// is kept as the previous tree.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn rebuild(
        &mut self,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
    ) -> Result<Applied> {
        self.stage(version, manifest, source)?;
        let done = match self.switch() {
            // Somebody edited the live tree. The second attempt assumes nothing.
            Err(Error::Changed { .. }) => {
                self.stage(version, manifest, source)?;
                self.switch()?
            }
            done => done?,
        };
        self.finish_if_possible()?;
        Ok(done)
    }

    /// Puts `manifest` on the disk next to the live tree, whole and durable, and switches nothing. Does nothing if it
    /// stands there already. What is staged is forgotten when the set is opened again, or another version is staged.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn stage(
        &mut self,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
    ) -> Result<()> {
        check(manifest)?;
        let wanted = Live { version, manifest: digest_of(&encode(manifest)) };
        self.stage_known(wanted, &Arc::new(manifest.clone()), &mut |digest| source(digest).map(Given::Claimed))
    }

    /// As [`Applier::stage`], for a manifest that was checked and bears the name that is wanted.
    pub(crate) fn stage_known(
        &mut self,
        wanted: Live,
        manifest: &Arc<Manifest>,
        source: &mut Source<'_>,
    ) -> Result<()> {
        if self.ready.as_ref().is_some_and(|ready| ready.wanted == wanted) {
            return Ok(());
        }
        self.ready = None;
        self.finish_if_possible()?;
        let outcome = self.build(wanted, manifest, source);
        self.cleaned_up(outcome)
    }

    /// Returns the version that stands next to the live one, and where.
    #[must_use]
    pub fn staged(&self) -> Option<(Live, PathBuf)> {
        self.ready.as_ref().map(|ready| (ready.wanted, self.parent.path().join(&self.names.next)))
    }

    /// Makes what was staged live, in one step, and durably. [`Applier::finish`] does what can wait.
    ///
    /// # Errors
    /// As [`Applier::apply`]; [`Error::Changed`] if nothing is staged, or if somebody changed a file that stays. Then another
    /// [`Applier::stage`] looks at every file.
    pub fn switch(&mut self) -> Result<Applied> {
        let outcome = self.switch_to_ready();
        self.cleaned_up(outcome)
    }

    /// Forgets what was staged.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unstage(&mut self) -> Result<()> {
        match self.ready.take() {
            Some(_) => self.recover(),
            None => Ok(()),
        }
    }

    fn cleaned_up<T>(&mut self, outcome: Result<T>) -> Result<T> {
        #[cfg(test)]
        if matches!(outcome, Err(Error::Killed)) {
            return outcome;
        }
        if outcome.is_err() {
            self.ready = None;
            if let Err(error) = self.recover() {
                tracing::warn!(target = %self.names.live, %error, "could not clean up after a failed apply");
            }
        }
        outcome
    }

    /// Returns the manifest of the version that was live before, if its tree is kept.
    #[must_use]
    pub fn previous_manifest(&self) -> Option<(Live, Arc<Manifest>)> {
        let previous = self.slots.state().previous?;
        let record = self.record(&previous)?;
        Some((Live { version: previous.version, manifest: previous.manifest }, Arc::clone(&record.manifest)))
    }

    /// Returns the manifest of the version that is live.
    #[must_use]
    pub fn live_manifest(&self) -> Option<Arc<Manifest>> {
        let live = self.slots.state().live?;
        self.record(&live).map(|record| Arc::clone(&record.manifest))
    }

    /// Returns the record of a tree. The one of the live tree is read once.
    fn record(&self, tree: &Standing) -> Option<Arc<Record>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, record)) = &*known
            && of == tree
        {
            return Some(Arc::clone(record));
        }
        let record = Arc::new(Record::load(&self.state_dir, tree)?);
        if self.slots.state().live == Some(*tree) {
            *known = Some((*tree, Arc::clone(&record)));
        }
        Some(record)
    }

    fn know(&self, record: Option<(Standing, Arc<Record>)>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = record;
    }

    /// Returns where the set lives.
    #[must_use]
    pub fn target(&self) -> PathBuf {
        self.parent.path().join(&self.names.live)
    }

    /// As [`Applier::apply`], with chunks from a store.
    ///
    /// # Errors
    /// As [`Applier::apply`].
    pub fn apply_from(&mut self, version: u64, manifest: &Manifest, store: &BlobStore) -> Result<Applied> {
        self.apply(version, manifest, &mut |digest| store.get(digest))
    }

    fn target_is_ours(&self) -> Result<bool> {
        let found = root_id(&self.parent, &self.names.live)?;
        Ok(found.is_some() && found == self.slots.state().live.map(|tree| tree.root))
    }

    fn build(&mut self, wanted: Live, manifest: &Arc<Manifest>, source: &mut Source<'_>) -> Result<()> {
        let (mut plan, mut lenders, mut exists) = self.plan_of(wanted.manifest, manifest)?;
        let ahead = self.take_ahead()?;
        if ahead.is_none() && lenders.iter().any(Lender::assumes) {
            // Somebody removed the tree that was begun.
            (plan, lenders, exists) = self.prepare(manifest, &|_| false)?;
        }
        let root = match &ahead {
            Some(_) => {
                let root = self.parent.child(&self.names.next)?;
                self.dress_root(&root, exists)?;
                root
            }
            None => self.make_root(exists)?,
        };
        let mut build = Build {
            root: &root,
            parent: &self.parent,
            state_dir: &self.state_dir,
            record: &record::name(wanted.version, wanted.manifest),
            lenders: &lenders,
            plan: &plan,
            ahead: ahead.as_ref(),
            owner: self.owner,
            steps: &mut self.steps,
            source: &mut |digest| source(digest),
            done: Applied::default(),
            unsynced: None,
        };
        let expected = build.run(manifest)?;
        let done = build.done;
        self.ready = Some(Ready { wanted, manifest: Arc::clone(manifest), expected, exists, done });
        Ok(())
    }

    fn changed(&self, name: &str) -> Error {
        Error::Changed { path: self.parent.path().join(name) }
    }

    /// Makes the empty root of the next tree, with the owner and mode that the live one has.
    fn make_root(&mut self, exists: bool) -> Result<Dir> {
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.next)?;
        self.steps.before(Step::MakeRoot)?;
        let root = self.parent.mkdir(&self.names.next)?;
        self.dress_root(&root, exists)?;
        Ok(root)
    }

    /// Gives the root of the next tree the owner and mode of the live one.
    fn dress_root(&self, root: &Dir, exists: bool) -> Result<()> {
        let mut mode = 0o755;
        if exists && let Some(live) = self.parent.stat(&self.names.live)? {
            mode = live.st_mode & 0o777;
            let (owner, group) = (rustix::fs::Uid::from_raw(live.st_uid), rustix::fs::Gid::from_raw(live.st_gid));
            // Only root may give a directory away; others keep their own.
            let _ = rustix::fs::fchown(root, Some(owner), Some(group));
        }
        if let Some(owner) = self.owner {
            root.give_to(owner.user, owner.group)?;
        }
        root.set_mode(mode)
    }

    fn write_state(&mut self, state: State) -> Result<()> {
        self.steps.before(Step::WriteState)?;
        self.slots.write(state)
    }
}

#[cfg(test)]
mod tests;
