//! What an applier needs to know before it writes: which trees may lend files, what a version takes, and whether it fits.
//!
//! Must stay true: nothing is written here; a target that is somebody else's, or has something mounted in it, is refused before
//! anything else.

use leaseward_state::config::{Digest, Manifest};

use super::plan::{Lender, Plan, plan, staying, unmet};
use super::slot::{Standing, root_id};
use super::{Applier, Names, Needs, drift};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::manifest::check;
use crate::patterns::Patterns;
use crate::{mounts, space};

/// A plan for a manifest.
#[derive(Debug)]
pub(super) struct Planned {
    manifest: Digest,
    plan: Plan,
    lenders: Vec<Lender>,
    exists: bool,
}

impl Applier {
    /// Returns what `manifest` takes: which chunks must be fetched, and how much space, which is checked.
    ///
    /// # Errors
    /// [`Error::NotEnoughSpace`], [`Error::TargetNotOurs`], [`Error::IllegalTree`], [`Error::TooLarge`],
    /// [`Error::Io`].
    pub fn needs(&self, manifest: &Manifest) -> Result<Needs> {
        check(manifest)?;
        Ok(self.prepare(manifest, &|_| false)?.0.needs())
    }

    /// As [`Applier::needs`], for a manifest that was checked and whose name is known, and keeps the plan. What `is_held` says
    /// is on this machine already is not looked for in the kept tree.
    pub(crate) fn plan_for(
        &mut self,
        name: Digest,
        manifest: &Manifest,
        is_held: &dyn Fn(Digest) -> bool,
    ) -> Result<Needs> {
        let (plan, lenders, exists) = self.prepare(manifest, is_held)?;
        let needs = plan.needs();
        self.planned = Some(Planned { manifest: name, plan, lenders, exists });
        Ok(needs)
    }

    /// Plans, and checks everything that can be checked before anything is written.
    pub(super) fn prepare(
        &self,
        manifest: &Manifest,
        is_held: &dyn Fn(Digest) -> bool,
    ) -> Result<(Plan, Vec<Lender>, bool)> {
        self.refuse_mounts()?;
        let exists = root_id(&self.parent, &self.names.live)?.is_some();
        if exists && !self.target_is_ours()? && !self.may_replace(manifest)? {
            return Err(Error::TargetNotOurs { path: self.parent.path().join(&self.names.live) });
        }
        let mut lenders = Vec::new();
        if self.target_is_ours()? {
            lenders.extend(self.lender(&self.slots.state().live, &self.names.live)?);
        }
        let owner = self.owner;
        let begun = self.begun()?;
        for lender in &mut lenders {
            let stays = staying(manifest, &lender.record.manifest);
            if let Some(begun) = begun {
                lender.assume(&stays, begun);
            }
            lender.prove(&stays, &unmet(manifest, |entry| stays[entry].is_some()), owner);
        }
        let mut planned = plan(manifest, &lenders);
        // The kept tree shares inodes that were linked since, so it costs hashing: only for what the live one lacks. And what
        // should have stayed in that one, but was edited, may stand there under another name.
        if planned.fetch.keys().any(|digest| !is_held(*digest)) {
            lenders.extend(self.lender(&self.slots.state().previous, &self.names.previous)?);
            let wanted = planned.unmet(manifest);
            lenders.iter_mut().for_each(|lender| lender.prove(&[], &wanted, owner));
            planned = plan(manifest, &lenders);
        }
        space::fits(planned.need, space::free(&self.parent, self.parent.path(), self.reserve)?)?;
        Ok((planned, lenders, exists))
    }

    /// Refuses to move trees in which something is mounted: all of them change places at a switch, or are removed after it.
    pub(super) fn refuse_mounts(&self) -> Result<()> {
        let Names { live, next, previous, gone } = &self.names;
        mounts::refuse_below(&self.parent, &[live, next, previous, gone])
    }

    pub(super) fn lender(&self, tree: &Option<Standing>, name: &str) -> Result<Option<Lender>> {
        let Some(tree) = tree else { return Ok(None) };
        if root_id(&self.parent, name)? != Some(tree.root) {
            return Ok(None);
        }
        let Some(record) = self.record(tree) else { return Ok(None) };
        Ok(Some(Lender::new(self.parent.child(name)?, record)))
    }

    /// Returns whether a target that is not ours holds nothing that could be lost.
    fn may_replace(&self, manifest: &Manifest) -> Result<bool> {
        let root = self.parent.child(&self.names.live)?;
        Ok(root.names()?.is_empty() || equal(&root, manifest)?)
    }

    /// Returns the plan that was made for this manifest, if things still are so, or a new one. A file that was changed
    /// since is found when it is linked or read.
    pub(super) fn plan_of(&mut self, name: Digest, manifest: &Manifest) -> Result<(Plan, Vec<Lender>, bool)> {
        match self.planned.take() {
            Some(planned) if planned.manifest == name && planned.exists == self.target_is_ours()? => {
                let Planned { plan, lenders, exists, .. } = planned;
                space::fits(plan.need, space::free(&self.parent, self.parent.path(), self.reserve)?)?;
                Ok((plan, lenders, exists))
            }
            _ => self.prepare(manifest, &|_| false),
        }
    }
}

/// Returns whether `root` holds exactly `manifest`. What may not be in a set at all is a difference.
pub(super) fn equal(root: &Dir, manifest: &Manifest) -> Result<bool> {
    match drift::compare(root, manifest, &Patterns::default(), None, None) {
        Ok(drifts) => Ok(drifts.is_empty()),
        Err(Error::IllegalTree { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
