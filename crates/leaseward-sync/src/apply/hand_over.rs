//! A set that was kept as single files, or is from now on: what is live stays known.
//!
//! Must stay true: a directory in which others have files, too, is never taken for a tree of ours.

use std::sync::Arc;

use leaseward_state::config::Manifest;

use super::record::{self, Record};
use super::slot::{Phase, Slots, Standing, State, root_id};
use super::{Applier, DriftKind, Names, SetDirs, drift};
use crate::digest_of;
use crate::error::Result;
use crate::manifest::encode;
use crate::mounts;
use crate::patterns::Patterns;

impl Applier {
    /// Returns whether a set was kept as whole trees here.
    pub(crate) fn was_here(dirs: &SetDirs) -> bool {
        Slots::are_in(&dirs.state_dir)
    }

    /// Forgets what is known of trees, and removes those beside the live one: from now on somebody else keeps the set.
    pub(crate) fn hand_over(mut self) -> Result<()> {
        let Names { next, previous, gone, .. } = self.names.clone();
        let beside = [next.as_str(), &previous, &gone];
        mounts::refuse_below(&self.parent, &beside)?;
        self.write_state(State::EMPTY)?;
        for name in beside {
            self.parent.remove_tree(name)?;
        }
        self.drop_records()
    }

    /// Takes the directory that stands at the target for this version, if nothing is in it but its files, whatever somebody
    /// made of those. Nothing is known of them.
    pub(crate) fn take_over(&mut self, version: u64, manifest: Manifest, ignore: &Patterns) -> Result<()> {
        let Some(root) = root_id(&self.parent, &self.names.live)?.filter(|_| self.live().is_none()) else {
            return Ok(());
        };
        let drifts = drift::compare(&self.parent.child(&self.names.live)?, &manifest, ignore, None, None)?;
        if drifts.iter().any(|drift| drift.kind == DriftKind::Extra) {
            return Ok(());
        }
        let digest = digest_of(&encode(&manifest));
        let name = record::name(version, digest);
        Record::unproven(Arc::new(manifest)).save(&self.state_dir, &name)?;
        let live = Some(Standing { version, manifest: digest, root });
        self.write_state(State { phase: Phase::Idle, live, previous: None, next: None })
    }
}
