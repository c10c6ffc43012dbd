//! What to make of the disk after a death at any moment.
//!
//! Must stay true: [`decide`] is pure; the live tree is never touched, only trees with our own suffixes are moved or
//! removed; running it again after a death in the middle of it gives the same answer. What a switch leaves to be done after
//! it ([`Applier::finish`]) is work that a recovery would do as well.

use super::Applier;
use super::planning::equal;
use super::record::{self, Record, Stamp};
use super::slot::{Phase, RootId, Standing, State, root_id};
use super::step::Step;
#[cfg(test)]
use crate::error::Error;
use crate::error::Result;

/// Which root directories stand at the three paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) live: Option<RootId>,
    pub(crate) next: Option<RootId>,
    pub(crate) previous: Option<RootId>,
}

/// What the disk shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The version that is live, if it is one of ours.
    pub(crate) live: Option<Standing>,
    /// The version that was live before and is kept.
    pub(crate) previous: Option<Standing>,
    /// The kept version still stands where the next one was built.
    pub(crate) keep_next: bool,
}

/// Returns what is live, given what was recorded and what is found.
///
/// A staged tree is live if its root stands at the live path: a rename does not change a root's identity.
pub(crate) fn decide(state: &State, found: Found) -> Verdict {
    let stands = |tree: Option<Standing>, at: Option<RootId>| tree.filter(|tree| Some(tree.root) == at);
    let switched = if state.phase == Phase::Staged { stands(state.next, found.live) } else { None };
    if switched.is_none() {
        let live = stands(state.live, found.live);
        return Verdict { live, previous: stands(state.previous, found.previous), keep_next: false };
    }
    let displaced = stands(state.live, found.next);
    let kept = stands(state.live, found.previous);
    Verdict { live: switched, previous: displaced.or(kept), keep_next: displaced.is_some() }
}

impl Applier {
    /// Finishes or cleans up, from what the state file and the disk say.
    pub(super) fn recover(&mut self) -> Result<()> {
        (self.planned, self.unfinished, self.ahead) = (None, None, None);
        let state = *self.slots.state();
        let found = Found {
            live: root_id(&self.parent, &self.names.live)?,
            next: root_id(&self.parent, &self.names.next)?,
            previous: root_id(&self.parent, &self.names.previous)?,
        };
        let mut verdict = decide(&state, found);
        if verdict.live.is_none() && found.live.is_some() {
            verdict.live = self.adopt(&state)?;
        }
        if state.phase == Phase::Staged {
            // A kill between the exchange and its sync left it in memory only.
            self.steps.before(Step::SyncParent)?;
            self.parent.sync()?;
        }
        if verdict.keep_next {
            self.retire_previous()?;
            self.steps.before(Step::KeepPrevious)?;
            self.parent.rename(&self.names.next, &self.names.previous)?;
            self.steps.before(Step::SyncParent)?;
            self.parent.sync()?;
        }
        if state.phase == Phase::Idle && found.next.is_some() {
            match self.shed_next(&state, &verdict) {
                #[cfg(test)]
                Err(Error::Killed) => return Err(Error::Killed),
                // What is not known any more is read again.
                Err(error) => tracing::info!(target = %self.names.live, %error, "could not prove what is live"),
                Ok(()) => {}
            }
        }
        for name in [&self.names.next, &self.names.gone] {
            self.steps.before(Step::RemoveTree)?;
            self.parent.remove_tree(name)?;
        }
        let (live, previous) = (verdict.live, verdict.previous);
        self.write_state(State { phase: Phase::Idle, live, previous, next: None })?;
        self.drop_records()
    }

    /// Removes a next tree that was begun, so that what is known of the live one stays true.
    fn shed_next(&mut self, state: &State, verdict: &Verdict) -> Result<()> {
        let Some(live) = verdict.live.filter(|live| state.live == Some(*live)) else { return Ok(()) };
        let Some(record) = self.record(&live) else { return Ok(()) };
        let mut stamps = record.stamps.clone();
        if stamps.iter().all(|stamp| *stamp == Stamp::default()) {
            return Ok(());
        }
        let root = self.parent.child(&self.names.live)?;
        self.shed(&self.names.next.clone(), &root, &record, &mut stamps)?;
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.gone)?;
        self.prove(live, &root, &record.manifest, stamps)
    }

    /// Returns the version that a target with an unknown root holds, if it is equal to one of ours: a restored backup
    /// or a copied machine.
    fn adopt(&self, state: &State) -> Result<Option<Standing>> {
        let root = self.parent.child(&self.names.live)?;
        for tree in [state.next, state.live].into_iter().flatten() {
            let Some(record) = Record::load(&self.state_dir, &tree) else { continue };
            if equal(&root, &record.manifest)?
                && let Some(found) = root_id(&self.parent, &self.names.live)?
            {
                return Ok(Some(Standing { root: found, ..tree }));
            }
        }
        Ok(None)
    }

    /// Removes the older kept tree.
    fn retire_previous(&mut self) -> Result<()> {
        self.put_aside_previous()?;
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.gone)
    }

    /// Takes its name from the older kept tree, so that a half-removed one never counts as the kept one.
    pub(super) fn put_aside_previous(&mut self) -> Result<()> {
        self.steps.before(Step::RemoveTree)?;
        self.parent.remove_tree(&self.names.gone)?;
        if self.parent.stat(&self.names.previous)?.is_some() {
            self.steps.before(Step::RetirePrevious)?;
            self.parent.rename(&self.names.previous, &self.names.gone)?;
        }
        Ok(())
    }

    pub(super) fn drop_records(&mut self) -> Result<()> {
        let state = self.slots.state();
        let kept: Vec<String> = [state.live, state.previous]
            .into_iter()
            .flatten()
            .map(|tree| record::name(tree.version, tree.manifest))
            .collect();
        for name in self.state_dir.names()? {
            let Some(text) = name.to_str() else { continue };
            if text.ends_with(".tree") && !kept.iter().any(|kept| kept == text) {
                self.steps.before(Step::DropRecords)?;
                self.state_dir.unlink(text)?;
            }
        }
        Ok(())
    }
}
