//! Which version of a set each member should have, while a new one goes round and after.
//!
//! Must stay true: [`State::wanted_version`] is the only place that answers it; a member that a rollout has not
//! reached keeps what it had; numbers of versions only grow, so going back is a new version with old content. Who refused a
//! version goes on being told of it while its rollout stands still, and so goes on saying why.
//! Left out on purpose: when the next member's turn is (`leaseward-sync/rollout.rs`, the leader's).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::spec::SetSpec;
use super::{SyncState, Version};
use crate::machine::Machine;
use crate::name::{MachineName, SetName};
use crate::state::{ConfigSet, State};
use crate::token::{Revision, UnixMillis};

/// A new version on its way to the members, one after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version.
    pub version: u64,
    /// What members keep until it is their turn; 0: nothing.
    pub base: u64,
    /// Members that had a later version than `base` from a rollout that this one took over: they keep that.
    pub kept: BTreeMap<MachineName, u64>,
    /// Members whose turn it was.
    pub released: BTreeSet<MachineName>,
    /// Members whose failure an operator has seen and passed over.
    pub forgiven: BTreeSet<MachineName>,
    /// Why it stands still, if it does.
    pub halted: Option<String>,
    /// When the last step was taken, by the proposer's clock. For people.
    pub stepped_at: UnixMillis,
    /// The entry of the last step.
    pub stepped: Revision,
}

/// A step of a rollout, taken by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutStep {
    /// It is these members' turn.
    Release(Vec<MachineName>),
    /// Nothing goes on until an operator says so.
    Halt(String),
    /// Everybody goes back to what the rollout began from, as a new version.
    RollBack(String),
    /// Everybody had his turn.
    Finish,
}

/// What an operator does with a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steer {
    /// It stands still.
    Halt,
    /// It goes on; members that failed so far are passed over.
    Resume,
    /// Everybody goes back.
    Abort,
    /// Everybody gets the version now.
    Finish,
}

/// An operator keeps a member, or all of them, at a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version; `None`: whatever is there, and nothing is touched.
    pub version: Option<u64>,
    /// Who says so.
    pub by: String,
    /// Why.
    pub why: String,
}

/// What a member should have of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSet<'a> {
    /// What should be live; `None`: what is there, untouched.
    pub live: Option<&'a Version>,
    /// What should be ready on the disk, if it is another one.
    pub staged: Option<&'a Version>,
    /// Another one when an operator asks the member to begin anew, or the set itself is another one.
    pub attempt: u64,
    /// How the set is kept.
    pub spec: &'a Arc<SetSpec>,
}

impl ConfigSet {
    /// Returns the version that members have when nothing is pinned and the rollout, if there is one, has not come to
    /// them.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.rollout.as_ref().map_or(self.head, |rollout| rollout.base)
    }

    /// Returns the version that programs should have, which are no members: what all members are kept at if an operator
    /// says so, else what everybody has when no rollout is under way. Neither a pin of one machine nor one that leaves
    /// disks as they are concerns them. `None` while no version is for everybody.
    #[must_use]
    pub fn for_programs(&self) -> Option<&Version> {
        let pinned = self.pins.get(&None).and_then(|pin| pin.version);
        self.versions.get(&pinned.unwrap_or_else(|| self.settled())).map(|version| &**version)
    }

    /// Returns the pin of a member: its own, or the one of all.
    #[must_use]
    pub fn pin_of(&self, machine: &MachineName) -> Option<&Pin> {
        self.pins.get(&Some(machine.clone())).or_else(|| self.pins.get(&None))
    }

    /// Returns whether some member or rollout needs this version, however old it is.
    #[must_use]
    pub fn is_needed(&self, number: u64) -> bool {
        number == self.head
            || self.pins.values().any(|pin| pin.version == Some(number))
            || self.rollout.as_ref().is_some_and(|rollout| {
                rollout.base == number || rollout.kept.values().any(|version| *version == number)
            })
    }
}

impl State {
    /// Returns what a member should have of a set; `None` if the set is not for it, or has no version for it.
    #[must_use]
    pub fn wanted_version<'a>(
        &'a self,
        set_name: &SetName,
        set: &'a ConfigSet,
        name: &MachineName,
        machine: &Machine,
    ) -> Option<WantedSet<'a>> {
        if !set.spec.is_for(&machine.profile.labels) {
            return None;
        }
        // A set that was forgotten and made anew is another one, though its numbers begin alike. Between the two there is more
        // than an entry for each time that somebody asked.
        let attempt = set.created.0.wrapping_add(set.resync.get(name).copied().unwrap_or(0));
        let wanted = |live, staged| Some(WantedSet { live, staged, attempt, spec: &set.spec });
        let version = |number: u64| set.versions.get(&number).map(|version| &**version);
        if let Some(pin) = set.pin_of(name) {
            return match pin.version {
                None => wanted(None, None),
                Some(number) => wanted(Some(version(number)?), None),
            };
        }
        let Some(rollout) = &set.rollout else { return wanted(Some(version(set.head)?), None) };
        if rollout.released.contains(name) {
            return wanted(Some(version(rollout.version)?), None);
        }
        // Who refused it goes on saying why: without the order he would be as if nothing had happened.
        let is_ordered = || rollout.halted.is_none() || self.has_refused(set_name, name, rollout.version);
        let staged = version(rollout.version).filter(|_| set.spec.rollout.staged && is_ordered());
        let kept = rollout.kept.get(name).copied().unwrap_or(rollout.base);
        match (version(kept), staged) {
            (None, None) => None,
            (live, staged) => wanted(live, staged),
        }
    }

    /// Returns whether the last word of a machine is that it refuses this version of a set.
    pub(crate) fn has_refused(&self, set: &SetName, machine: &MachineName, number: u64) -> bool {
        let refused = |state: &SyncState| matches!(state, SyncState::Rejected { version, .. } if *version == number);
        self.sync(set, machine).is_some_and(|sync| refused(&sync.state))
    }

    /// Returns whether a rollout has nothing left to do but to wait until its version has proven itself: nobody refused it,
    /// nobody halted it, and it is live on every member that is not pinned, but for those that were away when it was their turn.
    pub(crate) fn is_live_everywhere(&self, name: &SetName, set: &ConfigSet, rollout: &Rollout) -> bool {
        let is_there = |(machine_name, machine): (&MachineName, &Machine)| {
            if !rollout.released.contains(machine_name) {
                return machine.session.is_none();
            }
            self.sync(name, machine_name).is_some_and(|sync| {
                sync.applied == rollout.version && matches!(sync.state, SyncState::Applied | SyncState::Drifted { .. })
            })
        };
        rollout.halted.is_none()
            && rollout.forgiven.is_empty()
            && !rollout.released.is_empty()
            && self.failed_members(name, rollout).is_empty()
            && self.members_of(set).filter(|(machine, _)| set.pin_of(machine).is_none()).all(is_there)
    }

    /// Returns the members of a set: machines that it is for.
    pub fn members_of<'a>(&'a self, set: &'a ConfigSet) -> impl Iterator<Item = (&'a MachineName, &'a Machine)> {
        self.machines().filter(|(_, machine)| set.spec.is_for(&machine.profile.labels))
    }

    /// Returns what a machine should have, by set.
    pub fn wanted_sets<'a>(&'a self, name: &'a MachineName) -> impl Iterator<Item = (&'a SetName, WantedSet<'a>)> {
        let machine = self.machine(name);
        self.sets()
            .filter_map(move |(set_name, set)| Some((set_name, self.wanted_version(set_name, set, name, machine?)?)))
    }
}
