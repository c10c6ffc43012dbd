//! The switch to a tree that is ready, and what it leaves to be done afterwards.
//!
//! Must stay true: when the switch returns, the new tree is live and durable; what is left is work that a recovery would do
//! as well, and costs time only. A stamp of the live tree survives the removal of the links that it shared with an older
//! one only if nobody else touched the file: one that looked otherwise just before loses its stamp, and is read.
//! A touch within the few microseconds between our own look and our own unlink that also puts mtime back is not seen by a
//! scan; the full look reads every file.

use std::sync::Arc;

use leaseward_state::config::Manifest;

use super::carry::{Carried, Trees};
use super::record::{self, Record, Stamp, check_tree, settle_stamps, unlink_shared};
use super::slot::{Phase, Standing, State, root_id};
use super::step::Step;
use super::{Applied, Applier, Ready};
use crate::dir::Dir;
#[cfg(test)]
use crate::error::Error;
use crate::error::Result;
use crate::mounts;

impl Applier {
    /// Makes what is ready live: looks at it once more, exchanges the trees, keeps the old one, and syncs the names.
    pub(super) fn switch_to_ready(&mut self) -> Result<Applied> {
        let Some(Ready { wanted, manifest, expected, exists, done }) = self.ready.take() else {
            return Err(self.changed(&self.names.next));
        };
        self.refuse_mounts()?;
        let before = *self.slots.state();
        let root = self.parent.child(&self.names.next)?;
        let mut carried = None;
        if exists {
            let from = self.parent.child(&self.names.live)?;
            let trees = Trees { from: &from, to: &root, aside: (&self.parent, &self.names.gone) };
            carried = Some(Carried::begin(trees, &manifest, &self.ignore, &mut self.steps)?);
        }
        self.steps.before(Step::Check)?;
        let stamps = check_tree(&root, &manifest, &expected, self.owner)?;
        let next = root_id(&self.parent, &self.names.next)?.ok_or_else(|| self.changed(&self.names.next))?;
        let next = Standing { version: wanted.version, manifest: wanted.manifest, root: next };
        self.write_state(State { phase: Phase::Staged, next: Some(next), ..before })?;
        self.exchange(exists)?;
        let mut left = None;
        if let Some(mut carried) = carried {
            // What programs did between the first look and the switch.
            let from = self.parent.child(&self.names.next)?;
            let trees = Trees { from: &from, to: &root, aside: (&self.parent, &self.names.gone) };
            carried.follow(trees, &manifest, &self.ignore, &mut self.steps)?;
            left = Some((carried, from));
        }
        self.put_aside_previous()?;
        let displaced = root_id(&self.parent, &self.names.next)?;
        let previous = before.live.filter(|live| Some(live.root) == displaced);
        if previous.is_some() {
            self.steps.before(Step::KeepPrevious)?;
            self.parent.rename(&self.names.next, &self.names.previous)?;
        }
        self.steps.before(Step::SyncParent)?;
        if let Err(error) = self.parent.sync() {
            let old = if previous.is_some() { &self.names.previous } else { &self.names.next };
            self.switch_back(&old.clone(), exists)?;
            return Err(error);
        }
        if let Some((carried, from)) = left {
            carried.move_refused(&from, &root);
        }
        // The disk says so from here on, and whoever opens it reads that from the staged state.
        self.slots.note(State { phase: Phase::Idle, live: Some(next), previous, next: None });
        self.planned = None;
        self.know(Some((next, Arc::new(Record::unproven(manifest)))));
        self.unfinished = Some(stamps);
        Ok(done)
    }

    /// Undoes a switch whose names cannot be made durable. The next sync might say that they are: the kernel says once that it lost
    /// them. Then the next switch writes all of them anew. After a crash either tree may be live; both are whole.
    fn switch_back(&mut self, old: &str, exists: bool) -> Result<()> {
        if !exists {
            return self.parent.rename(&self.names.live, &self.names.next);
        }
        self.parent.exchange(old, &self.names.live)?;
        if *old != self.names.next {
            self.parent.rename(old, &self.names.next)?;
        }
        Ok(())
    }

    fn exchange(&mut self, exists: bool) -> Result<()> {
        self.steps.before(Step::Switch)?;
        // Once more: to take along what programs write may have lasted a while.
        self.refuse_mounts()?;
        if exists {
            self.parent.exchange(&self.names.next, &self.names.live)?;
        } else {
            self.parent.rename(&self.names.next, &self.names.live)?;
        }
        Ok(())
    }

    /// Does what the last switch left to be done: removes the tree that was kept until then, begins the next one, and proves
    /// the live one, so that the next look and the next apply need not read it. Does nothing if nothing is left.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::DiskFull`]; then opening the set again does it, or the next apply.
    pub fn finish(&mut self) -> Result<()> {
        let Some(mut stamps) = self.unfinished.take() else { return Ok(()) };
        let state = *self.slots.state();
        self.write_state(state)?;
        let Some(live) = state.live else { return Ok(()) };
        let Some(record) = self.record(&live) else { return Ok(()) };
        let root = self.parent.child(&self.names.live)?;
        self.shed(&self.names.gone.clone(), &root, &record, &mut stamps)?;
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.next)?;
        self.drop_records()?;
        self.begin_next(live, &root, &record.manifest, &mut stamps)?;
        self.prove(live, &root, &record.manifest, stamps)
    }

    /// Removes a tree that may share files with the live one, and notes how those look then: it moves their ctime.
    pub(super) fn shed(&mut self, name: &str, root: &Dir, record: &Record, stamps: &mut [Stamp]) -> Result<()> {
        mounts::refuse_below(&self.parent, &[name])?;
        let gone = if self.parent.stat(name)?.is_some() { Some(self.parent.child(name)?) } else { None };
        self.steps.before(Step::RemoveTree)?;
        unlink_shared(root, gone.as_ref(), &record.manifest, stamps)?;
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(name)
    }

    /// Records how the files of the live tree look, once nothing of ours moves that any more.
    pub(super) fn prove(
        &mut self,
        live: Standing,
        root: &Dir,
        manifest: &Arc<Manifest>,
        mut stamps: Vec<Stamp>,
    ) -> Result<()> {
        self.steps.before(Step::Stamp)?;
        let probe = self.parent.mkdir(&self.names.gone)?;
        let settled = settle_stamps(root, manifest, &mut stamps, &probe);
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.gone)?;
        settled?;
        let record = Arc::new(Record { manifest: Arc::clone(manifest), stamps });
        self.know(Some((live, Arc::clone(&record))));
        self.steps.before(Step::SaveRecord)?;
        record.save(&self.state_dir, &record::name(live.version, live.manifest))
    }

    /// What is left then costs time later, and nothing else.
    pub(super) fn finish_if_possible(&mut self) -> Result<()> {
        match self.finish() {
            #[cfg(test)]
            Err(Error::Killed) => Err(Error::Killed),
            Err(error) => {
                tracing::warn!(target = %self.names.live, %error, "could not clean up after a switch");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}
