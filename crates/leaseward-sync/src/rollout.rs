//! Whose turn it is to get a new version: pure.
//!
//! Must stay true: equal inputs give equal steps; a member whose agent is not connected is waited for by nobody and
//! counted as unavailable, but nobody follows a canary that was lost after its turn; nothing goes on before the members whose turn it was have the version and the time to prove
//! itself has passed; more failures than permitted stop it, or take everybody back, before anything else.
//! Left out on purpose: who asks (the leader's loop), and what a member should have meanwhile (the state).

use std::collections::BTreeSet;
use std::time::Duration;

use leaseward_state::config::rollout::{Rollout, RolloutStep};
use leaseward_state::config::spec::RolloutRule;
use leaseward_state::config::{MemberSync, SetStep, SyncState};
use leaseward_state::machine::Machine;
use leaseward_state::name::{MachineName, SetName};
use leaseward_state::state::{ConfigSet, State};

use crate::limits::REASON_CHARS;

/// What is to be done for a rollout now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This step.
    Step(RolloutStep),
    /// Nothing until something changes, or this much longer.
    Wait(Option<Duration>),
}

/// How far a member is with the version that goes round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Far {
    /// Not there yet.
    On,
    /// On its disk and checked, not live.
    Ready,
    Live,
    Failed,
}

/// Returns whether every connected member whose turn it was has the version, or failed: then its time to prove itself
/// runs.
#[must_use]
pub fn is_quiet(state: &State, name: &SetName, set: &ConfigSet, rollout: &Rollout) -> bool {
    let mut members = Members::of(state, name, set, rollout);
    members.all.retain(|member| member.released && member.connected);
    members.all.iter().all(|member| matches!(member.far, Far::Live | Far::Failed))
}

/// Returns the next step of a rollout. `quiet_for`: how long it has been quiet ([`is_quiet`]) since its last step.
#[must_use]
pub fn next(state: &State, name: &SetName, set: &ConfigSet, rollout: &Rollout, quiet_for: Option<Duration>) -> Next {
    let rule = &set.spec.rollout;
    let failed = state.failed_members(name, rollout);
    if rollout.halted.is_some() {
        return Next::Wait(None);
    }
    if failed.len() > rule.max_failed as usize {
        let why = refused(state, name, &failed);
        return Next::Step(if rule.roll_back { RolloutStep::RollBack(why) } else { RolloutStep::Halt(why) });
    }
    let members = Members::of(state, name, set, rollout);
    if members.all.is_empty() {
        return Next::Step(RolloutStep::Finish);
    }
    // Everything is on every disk before anybody switches.
    let reachable = || members.all.iter().filter(|member| member.connected && member.far != Far::Failed);
    if rule.staged && rollout.released.is_empty() && reachable().any(|member| member.far == Far::On) {
        return Next::Wait(None);
    }
    let bake = Duration::from_millis(rule.bake_ms);
    let proven = match quiet_for {
        Some(quiet) if quiet >= bake => true,
        Some(quiet) if members.under_way() == 0 && !rollout.released.is_empty() => {
            return Next::Wait(Some(bake - quiet));
        }
        _ => rollout.released.is_empty(),
    };
    if members.has_lost_canary(rule) {
        return Next::Wait(None);
    }
    let canaries = members.canaries(rule);
    if canaries.iter().any(|canary| !rollout.released.contains(canary)) {
        let mut waiting = canaries;
        waiting.retain(|canary| !rollout.released.contains(canary));
        return Next::Step(RolloutStep::Release(waiting));
    }
    let waiting: Vec<MachineName> = members
        .all
        .iter()
        .filter(|member| member.connected && !member.released)
        .map(|member| member.name.clone())
        .collect();
    if waiting.is_empty() {
        // Who is away gets it when he comes back.
        let done = proven && members.under_way() == 0 && (rollout.released.is_empty() || quiet_for.is_some());
        let nobody = rollout.released.is_empty();
        return if done && !nobody { Next::Step(RolloutStep::Finish) } else { Next::Wait(None) };
    }
    let only_canaries = members.are_only_canaries(rule) && !rollout.released.is_empty();
    if !proven && (only_canaries || rule.bake_ms > 0) {
        return Next::Wait(None);
    }
    let room = match rule.max_unavailable {
        0 => waiting.len(),
        most => {
            let away = members.all.iter().filter(|member| !member.connected).count();
            // Machines that are away for good must not stop it for ever.
            (most as usize).saturating_sub(away).max(1).saturating_sub(members.under_way())
        }
    };
    if room == 0 {
        return Next::Wait(None);
    }
    Next::Step(RolloutStep::Release(waiting.into_iter().take(room).collect()))
}

/// Returns who refused it, and what the first of them says: it stays with the rollout, whatever members say later.
fn refused(state: &State, name: &SetName, failed: &BTreeSet<MachineName>) -> String {
    let names: Vec<&str> = failed.iter().map(MachineName::as_str).take(5).collect();
    let said = failed.iter().find_map(|machine| match &state.sync(name, machine)?.state {
        SyncState::Rejected { why, .. } => Some(why.chars().take(REASON_CHARS).collect::<String>()),
        _ => None,
    });
    let said = said.map_or_else(String::new, |why| format!(" ({why})"));
    format!("{} of its members refused it: {}{said}", failed.len(), names.join(", "))
}

struct Member<'a> {
    name: &'a MachineName,
    machine: &'a Machine,
    connected: bool,
    released: bool,
    far: Far,
}

struct Members<'a> {
    /// By ascending names, without those that an operator keeps somewhere.
    all: Vec<Member<'a>>,
}

impl<'a> Members<'a> {
    fn of(state: &'a State, name: &SetName, set: &'a ConfigSet, rollout: &Rollout) -> Self {
        let free = state.members_of(set).filter(|(machine, _)| set.pin_of(machine).is_none());
        let member = |(machine_name, machine): (&'a MachineName, &'a Machine)| Member {
            name: machine_name,
            machine,
            connected: machine.session.is_some(),
            released: rollout.released.contains(machine_name),
            far: far(state.sync(name, machine_name), rollout.version),
        };
        Self { all: free.map(member).collect() }
    }

    fn under_way(&self) -> usize {
        self.all.iter().filter(|member| member.released && member.connected && member.far < Far::Live).count()
    }

    /// Returns whether nobody but canaries has had his turn. Who is no member any more counts for nothing: another one is the
    /// canary in his place.
    fn are_only_canaries(&self, rule: &RolloutRule) -> bool {
        self.all.iter().filter(|member| member.released).count() <= rule.canaries as usize
    }

    /// Returns whether a canary went away after its turn, while nobody else had his: perhaps it is the version that took it away.
    fn has_lost_canary(&self, rule: &RolloutRule) -> bool {
        self.are_only_canaries(rule) && self.all.iter().any(|member| member.released && !member.connected)
    }

    fn canaries(&self, rule: &RolloutRule) -> Vec<MachineName> {
        let mut reachable: Vec<&Member<'_>> = self.all.iter().filter(|member| member.connected).collect();
        let marked = |member: &Member<'_>| {
            let labels = &member.machine.profile.labels;
            rule.canary_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        // Those whose turn it was stay the canaries, whoever comes or goes.
        reachable.sort_by_key(|member| (!member.released, !marked(member), member.name));
        reachable.into_iter().take(rule.canaries as usize).map(|member| member.name.clone()).collect()
    }
}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some((*self as u8).cmp(&(*other as u8)))
    }
}

fn far(sync: Option<&MemberSync>, version: u64) -> Far {
    let Some(sync) = sync else { return Far::On };
    match &sync.state {
        SyncState::Rejected { version: refused, .. } if *refused == version => Far::Failed,
        SyncState::Applied | SyncState::Drifted { .. } if sync.applied == version => Far::Live,
        SyncState::OnDisk { version: ready } if *ready == version => Far::Ready,
        SyncState::Running { version: ready, step: SetStep::Reload, .. } if *ready == version => Far::Ready,
        _ => Far::On,
    }
}

/// Returns the members whose turn it was and who are not there yet, for those who ask why nothing goes on.
#[must_use]
pub fn waits_for(state: &State, name: &SetName, set: &ConfigSet, rollout: &Rollout) -> BTreeSet<MachineName> {
    let members = Members::of(state, name, set, rollout);
    let lost = members.has_lost_canary(&set.spec.rollout);
    let is_late = |member: &&Member<'_>| if member.connected { member.far < Far::Live } else { lost };
    let late = members.all.iter().filter(|member| member.released).filter(is_late);
    late.map(|member| member.name.clone()).collect()
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
