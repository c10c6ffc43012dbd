//! Putting a version on this machine's disk in one step.
//!
//! Must stay true: the live path holds the old or the new version, whole, at every moment and after every death; a
//! version is durable before it is live; whatever cannot be proven to be ours is left alone.
//! The order: plan, check space, `Building`, build next to the live tree, sync, retire the older kept tree, stamp,
//! `Staged`, exchange, sync the parent, keep the old tree, `Idle`.
//! Left out on purpose: in-place switching of single files, owners, hooks, and which version is wanted.

mod build;
mod drift;
mod lock;
mod plan;
mod record;
mod recover;
mod slot;
mod step;

use std::path::{Path, PathBuf};

use leaseward_state::config::{Chunk, Digest, Manifest};

pub use self::build::Applied;
use self::build::{Build, Source};
pub use self::drift::{Drift, DriftKind};
use self::lock::Lock;
use self::plan::{Lender, Plan, plan, unmet};
use self::record::{Record, stamp_tree};
use self::slot::{Phase, Slots, Standing, State, root_id};
use self::step::{Step, Steps};
use crate::dir::Dir;
use crate::error::{Error, Result, at};
use crate::limits::RESERVE_BYTES;
use crate::manifest::{check, encode};
use crate::space::{self, Space};
use crate::{BlobStore, digest_of};

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
    steps: Steps,
    _lock: Lock,
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
        let mut applier = Self { parent, state_dir, names, slots, reserve: RESERVE_BYTES, steps, _lock: lock };
        applier.recover()?;
        Ok(applier)
    }

    /// Returns the applier with another reserve: the free bytes that an apply must leave.
    #[must_use]
    pub fn with_reserve(self, bytes: u64) -> Self {
        Self { reserve: bytes, ..self }
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

    /// Returns how the live tree differs from its version, by ascending path. Reads every file. Empty if nothing is
    /// live.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Changed`] if the tree is switched or edited meanwhile, [`Error::IllegalTree`] for names
    /// that are not UTF-8.
    pub fn verify(&self) -> Result<Vec<Drift>> {
        let Some(live) = &self.slots.state().live else { return Ok(Vec::new()) };
        let gone = || vec![Drift { path: String::new(), kind: DriftKind::Missing }];
        let Some(record) = Record::load(&self.state_dir, live) else { return Ok(gone()) };
        if self.parent.stat(&self.names.live)?.is_none() {
            return Ok(gone());
        }
        drift::compare(&self.parent.child(&self.names.live)?, &record.manifest)
    }

    /// Returns what `manifest` takes: which chunks must be fetched, and how much space, which is checked.
    ///
    /// # Errors
    /// [`Error::NotEnoughSpace`], [`Error::TargetNotOurs`], [`Error::IllegalTree`], [`Error::TooLarge`],
    /// [`Error::Io`].
    pub fn needs(&self, manifest: &Manifest) -> Result<Needs> {
        check(manifest)?;
        let (plan, _, _) = self.prepare(manifest)?;
        let fetch = plan.fetch.iter().map(|(digest, size)| Chunk { digest: *digest, size: *size }).collect();
        Ok(Needs { fetch, space: plan.need })
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
        let outcome = self.switch_to(wanted, manifest, source);
        #[cfg(test)]
        if matches!(outcome, Err(Error::Killed)) {
            return outcome;
        }
        if outcome.is_err()
            && let Err(error) = self.recover()
        {
            tracing::warn!(target = %self.names.live, %error, "could not clean up after a failed apply");
        }
        outcome
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

    /// Plans, and checks everything that can be checked before anything is written.
    fn prepare(&self, manifest: &Manifest) -> Result<(Plan, Vec<Lender>, bool)> {
        let exists = root_id(&self.parent, &self.names.live)?.is_some();
        if exists && !self.target_is_ours()? && !self.may_replace(manifest)? {
            return Err(Error::TargetNotOurs { path: self.parent.path().join(&self.names.live) });
        }
        let mut lenders = Vec::new();
        if self.target_is_ours()? {
            lenders.extend(self.lender(&self.slots.state().live, &self.names.live)?);
        }
        lenders.iter_mut().for_each(|lender| lender.prove(&unmet(manifest, None)));
        let mut planned = plan(manifest, &lenders);
        // The kept tree shares inodes that were linked since, so it costs hashing: only for what the live one lacks.
        if !planned.fetch.is_empty()
            && let Some(mut lender) = self.lender(&self.slots.state().previous, &self.names.previous)?
        {
            lender.prove(&unmet(manifest, Some(&planned)));
            lenders.push(lender);
            planned = plan(manifest, &lenders);
        }
        space::fits(planned.need, space::free(&self.parent, self.parent.path(), self.reserve)?)?;
        Ok((planned, lenders, exists))
    }

    fn lender(&self, tree: &Option<Standing>, name: &str) -> Result<Option<Lender>> {
        let Some(tree) = tree else { return Ok(None) };
        if root_id(&self.parent, name)? != Some(tree.root) {
            return Ok(None);
        }
        let Some(record) = Record::load(&self.state_dir, tree) else { return Ok(None) };
        Ok(Some(Lender::new(self.parent.child(name)?, record)))
    }

    /// Returns whether a target that is not ours holds nothing that could be lost.
    fn may_replace(&self, manifest: &Manifest) -> Result<bool> {
        let root = self.parent.child(&self.names.live)?;
        Ok(root.names()?.is_empty() || equal(&root, manifest)?)
    }

    fn switch_to(&mut self, wanted: Live, manifest: &Manifest, source: &mut Source<'_>) -> Result<Applied> {
        let (plan, lenders, exists) = self.prepare(manifest)?;
        let before = *self.slots.state();
        self.write_state(State { phase: Phase::Building, next: None, ..before })?;
        let root = self.make_root(exists)?;
        let mut build = Build {
            root: &root,
            lenders: &lenders,
            plan: &plan,
            steps: &mut self.steps,
            source: &mut |digest| source(digest),
            done: Applied::default(),
        };
        let expected = build.run(manifest)?;
        let done = build.done;
        self.steps.before(Step::SyncParent)?;
        self.parent.sync()?;
        drop(lenders);
        // Before the stamps are taken: removing links moves ctime.
        self.retire_previous()?;
        self.steps.before(Step::Stamp)?;
        let stamps = stamp_tree(&root, manifest, &expected)?;
        self.steps.before(Step::SaveRecord)?;
        let record = Record { manifest: manifest.clone(), stamps };
        record.save(&self.state_dir, &record::name(wanted.version, wanted.manifest))?;
        let next = root_id(&self.parent, &self.names.next)?.ok_or_else(|| self.changed(&self.names.next))?;
        let next = Standing { version: wanted.version, manifest: wanted.manifest, root: next };
        self.write_state(State { phase: Phase::Staged, next: Some(next), previous: None, ..before })?;
        self.exchange(exists)?;
        self.recover()?;
        Ok(done)
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
        let mut mode = 0o755;
        if exists && let Some(live) = self.parent.stat(&self.names.live)? {
            mode = live.st_mode & 0o777;
            let (owner, group) = (rustix::fs::Uid::from_raw(live.st_uid), rustix::fs::Gid::from_raw(live.st_gid));
            // Only root may give a directory away; others keep their own.
            let _ = rustix::fs::fchown(&root, Some(owner), Some(group));
        }
        root.set_mode(mode)?;
        Ok(root)
    }

    fn exchange(&mut self, exists: bool) -> Result<()> {
        self.steps.before(Step::Switch)?;
        if exists {
            self.parent.exchange(&self.names.next, &self.names.live)?;
        } else {
            self.parent.rename(&self.names.next, &self.names.live)?;
        }
        self.steps.before(Step::SyncParent)?;
        self.parent.sync()
    }

    fn write_state(&mut self, state: State) -> Result<()> {
        self.steps.before(Step::WriteState)?;
        self.slots.write(state)
    }
}

/// Returns whether `root` holds exactly `manifest`. What may not be in a set at all is a difference.
fn equal(root: &Dir, manifest: &Manifest) -> Result<bool> {
    match drift::compare(root, manifest) {
        Ok(drifts) => Ok(drifts.is_empty()),
        Err(Error::IllegalTree { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
