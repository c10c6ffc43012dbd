//! How a set is kept, who is pinned, and the steps of a rollout.
//!
//! Must stay true: a step counts only for the rollout it was decided for; going back adds a version and marks the one
//! that failed, and never takes a number away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Outcome;
use super::config::no_set;
use super::feature::LIVE_IS_GOOD;
use super::machine::not_found as no_machine;
use crate::command::Reply;
use crate::config::Version;
use crate::config::rollout::{Pin, Rollout, RolloutStep, Steer};
use crate::config::spec::SetSpec;
use crate::event::{Event, RolloutChange};
use crate::limits::{NAMES_MAX, SETS_MAX, TEXT_BYTES_MAX};
use crate::name::{MachineName, SetName};
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::state::{ConfigSet, State};

impl State {
    /// Says how a set is kept. A set that does not exist is made, without a version.
    pub(super) fn put_set(
        &mut self,
        name: &SetName,
        spec: &SetSpec,
        if_version: Option<u64>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        spec.check()?;
        if !self.sets.contains_key(name) && self.sets.len() >= SETS_MAX {
            return Err(Refusal::TooMany { what: "config sets".into(), max: SETS_MAX as u64 });
        }
        let mut set = self.sets.get(name).cloned().unwrap_or_else(|| ConfigSet::new(self.revision));
        if let Some(expected) = if_version
            && expected != set.spec_version
        {
            let kind = "config policy".to_owned();
            return Err(Refusal::Version { kind, name: name.to_string(), expected, current: set.spec_version });
        }
        set.spec = Arc::new(spec.clone());
        set.spec_version += 1;
        let version = set.spec_version;
        // What a smaller `keep_versions` lets go makes room at once, not with the next version.
        self.forget_old_versions(name, &mut set);
        self.store_set(name, set);
        events.push(Event::SetDefined { set: name.clone(), version });
        Ok(Reply::Version(version))
    }

    /// Keeps a member, or all of them, at a version, or lets them go on.
    pub(super) fn pin_set(
        &mut self,
        name: &SetName,
        machine: Option<&MachineName>,
        pin: Option<&Pin>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let mut set = self.sets.get(name).cloned().ok_or_else(|| no_set(name))?;
        if let Some(machine) = machine
            && !self.machines.contains_key(machine)
        {
            return Err(no_machine(machine));
        }
        if let Some(pin) = pin {
            if pin.by.len() + pin.why.len() > TEXT_BYTES_MAX {
                return Err(Refusal::Invalid(format!("who and why have at most {TEXT_BYTES_MAX} bytes")));
            }
            if let Some(number) = pin.version
                && !set.versions.contains_key(&number)
            {
                return Err(Refusal::NotFound { kind: "config".into(), name: format!("{name} v{number}") });
            }
            if set.pins.len() >= NAMES_MAX {
                return Err(Refusal::TooMany { what: "pins of a set".into(), max: NAMES_MAX as u64 });
            }
        }
        let before = match pin {
            Some(pin) => set.pins.insert(machine.cloned(), pin.clone()),
            None => set.pins.remove(&machine.cloned()),
        };
        if before.as_ref() != pin {
            self.store_set(name, set);
            events.push(Event::SetPinned { set: name.clone(), machine: machine.cloned(), pin: pin.cloned() });
        }
        Ok(Reply::Done)
    }

    /// Asks members to begin anew with a set: to look at every file, and to try again what they refused.
    pub(super) fn resync(&mut self, name: &SetName, machines: &[MachineName]) -> Outcome {
        let mut set = self.sets.get(name).cloned().ok_or_else(|| no_set(name))?;
        if let Some(unknown) = machines.iter().find(|machine| !self.machines.contains_key(*machine)) {
            return Err(no_machine(unknown));
        }
        let all: Vec<MachineName> = match machines {
            [] => self.members_of(&set).map(|(name, _)| name.clone()).collect(),
            some => some.to_vec(),
        };
        set.resync.retain(|machine, _| self.machines.contains_key(machine));
        for machine in all {
            *set.resync.entry(machine).or_insert(0) += 1;
        }
        self.store_set(name, set);
        Ok(Reply::Done)
    }

    /// Begins to bring the newest version to the members, if the set asks for an order.
    ///
    /// What it begins from is what everybody goes back to if it fails: the version before it. If that one was under way
    /// itself, it is taken for good where it is live everywhere it was wanted ([`Self::is_live_everywhere`]), whether or
    /// not it had the time to prove itself: nobody refused it, so a fault of this one takes it from nobody. Otherwise the base
    /// stays what the one before began from.
    pub(super) fn begin_rollout(&self, set: &mut ConfigSet, base: u64, events: &mut Vec<Event>, name: &SetName) {
        let running = set.rollout.take();
        if set.spec.rollout.is_at_once() || base == 0 {
            return;
        }
        let is_good =
            |running: &Rollout| self.feature_level >= LIVE_IS_GOOD && self.is_live_everywhere(name, set, running);
        let (base, kept) = match &running {
            Some(running) if is_good(running) => (running.version, BTreeMap::new()),
            // Who has the version that never reached everybody keeps it until it is his turn again.
            Some(running) => {
                let mut kept = running.kept.clone();
                kept.extend(running.released.iter().map(|machine| (machine.clone(), running.version)));
                (running.base, kept)
            }
            None => (base, BTreeMap::new()),
        };
        set.rollout = Some(Arc::new(Rollout {
            version: set.head,
            base,
            kept,
            released: BTreeSet::new(),
            forgiven: BTreeSet::new(),
            halted: None,
            stepped_at: self.now,
            stepped: self.revision,
        }));
        events.push(Event::RolloutChanged { set: name.clone(), version: set.head, change: RolloutChange::Begun });
    }

    /// Takes a step that the leader decided.
    pub(super) fn step_rollout(
        &mut self,
        name: &SetName,
        version: u64,
        step: &RolloutStep,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let (set, mut rollout) = self.rollout_of(name, version)?;
        let change = match step {
            RolloutStep::Release(machines) => {
                if rollout.halted.is_some() {
                    return Err(Refusal::Outdated(format!("the rollout of config/{name} v{version} is halted")));
                }
                let new: Vec<MachineName> =
                    machines.iter().filter(|machine| rollout.released.insert((*machine).clone())).cloned().collect();
                RolloutChange::Released(new)
            }
            RolloutStep::Halt(why) => {
                rollout.halted = Some(cut(why));
                RolloutChange::Halted(cut(why))
            }
            RolloutStep::RollBack(why) => {
                return self.go_back(name, set, &rollout, &cut(why), "leaseward", events);
            }
            RolloutStep::Finish => RolloutChange::Finished,
        };
        Ok(self.stepped(name, set, rollout, change, events))
    }

    /// Does what an operator asks of a rollout.
    pub(super) fn steer_rollout(
        &mut self,
        name: &SetName,
        version: u64,
        steer: Steer,
        by: &str,
        events: &mut Vec<Event>,
    ) -> Outcome {
        if by.len() > TEXT_BYTES_MAX {
            return Err(Refusal::Invalid(format!("who has at most {TEXT_BYTES_MAX} bytes")));
        }
        let (set, mut rollout) = self.rollout_of(name, version)?;
        let change = match steer {
            Steer::Halt => {
                let why = format!("halted by {by}");
                rollout.halted = Some(why.clone());
                RolloutChange::Halted(why)
            }
            Steer::Resume => {
                rollout.halted = None;
                let failed = self.failed_members(name, &rollout);
                rollout.forgiven.extend(failed);
                RolloutChange::Resumed(by.to_owned())
            }
            Steer::Abort => return self.go_back(name, set, &rollout, "aborted", by, events),
            Steer::Finish => RolloutChange::Finished,
        };
        Ok(self.stepped(name, set, rollout, change, events))
    }

    /// Keeps what became of a rollout, or forgets one that is over.
    fn stepped(
        &mut self,
        name: &SetName,
        mut set: ConfigSet,
        rollout: Rollout,
        change: RolloutChange,
        events: &mut Vec<Event>,
    ) -> Reply {
        let version = rollout.version;
        let goes_on = Rollout { stepped: self.revision, stepped_at: self.now, ..rollout };
        set.rollout = (change != RolloutChange::Finished).then(|| Arc::new(goes_on));
        self.store_set(name, set);
        events.push(Event::RolloutChanged { set: name.clone(), version, change });
        Reply::Done
    }

    /// Returns the members that refused the version of a rollout, without those that were passed over.
    #[must_use]
    pub fn failed_members(&self, name: &SetName, rollout: &Rollout) -> BTreeSet<MachineName> {
        let refused = |machine: &MachineName| self.has_refused(name, machine, rollout.version);
        let all = self.machines().map(|(machine, _)| machine);
        all.filter(|machine| !rollout.forgiven.contains(*machine) && refused(machine)).cloned().collect()
    }

    fn rollout_of(&self, name: &SetName, version: u64) -> Result<(ConfigSet, Rollout), Refusal> {
        let set = self.sets.get(name).cloned().ok_or_else(|| no_set(name))?;
        match &set.rollout {
            Some(rollout) if rollout.version == version => {
                let rollout = Rollout::clone(rollout);
                Ok((set, rollout))
            }
            _ => Err(Refusal::Outdated(format!("no rollout of config/{name} v{version} is under way"))),
        }
    }

    /// Everybody gets the content that the rollout began from, under a new number, at once.
    fn go_back(
        &mut self,
        name: &SetName,
        mut set: ConfigSet,
        rollout: &Rollout,
        why: &str,
        by: &str,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let Some(base) = set.versions.get(&rollout.base).cloned() else {
            return Err(Refusal::NotFound { kind: "config".into(), name: format!("{name} v{}", rollout.base) });
        };
        set.bad.insert(rollout.version, why.to_owned());
        set.head += 1;
        let message = format!("back to v{}: v{} {why}", rollout.base, rollout.version);
        let version = Version {
            number: set.head,
            parent: rollout.version,
            author: by.to_owned(),
            message: message.clone(),
            at: self.now,
            revision: self.revision,
            ..Version::clone(&base)
        };
        let number = set.head;
        // Also beyond the cluster's quota: going back must not wait for room.
        self.keep_version(name, &mut set, version);
        set.rollout = None;
        self.forget_old_versions(name, &mut set);
        self.store_set(name, set);
        let (set, author) = (name.clone(), by.to_owned());
        events.push(Event::RolloutChanged {
            set: set.clone(),
            version: rollout.version,
            change: RolloutChange::RolledBack(why.to_owned()),
        });
        events.push(Event::SetPublished { set, version: number, author, message });
        Ok(Reply::Versions(vec![(name.clone(), number)]))
    }

    pub(super) fn store_set(&mut self, name: &SetName, mut set: ConfigSet) {
        set.modified = self.revision;
        self.sets.insert(name.clone(), set);
        self.touched.insert(RecordKey::Set(name.clone()));
    }
}

fn cut(text: &str) -> String {
    text.chars().take(1024).collect()
}
