//! Config sets are published; members say how far they are.

use std::sync::Arc;

use super::Outcome;
use super::feature::REMOVALS_ARE_HEARD;
use super::machine::not_found as no_machine;
use crate::command::{PublishSet, Reply};
use crate::config::{MemberSync, SyncState, Version};
use crate::event::Event;
use crate::limits::{
    ATOMIC_COMMANDS_MAX, BAD_KEPT_MAX, DELTA_BYTES_MAX, FILES_MAX, SET_BYTES_MAX, SETS_MAX, TEXT_BYTES_MAX,
};
use crate::name::{MachineName, SetName};
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::state::{ConfigSet, State};

impl State {
    /// Publishes new versions of several sets, all or none.
    pub(super) fn publish(
        &mut self,
        sets: &[PublishSet],
        author: &str,
        message: &str,
        events: &mut Vec<Event>,
    ) -> Outcome {
        if sets.is_empty() || sets.len() > ATOMIC_COMMANDS_MAX {
            return Err(Refusal::Invalid(format!("publish takes 1 to {ATOMIC_COMMANDS_MAX} sets")));
        }
        if author.len() > TEXT_BYTES_MAX || message.len() > TEXT_BYTES_MAX {
            return Err(Refusal::Invalid(format!("author and message have at most {TEXT_BYTES_MAX} bytes each")));
        }
        for (i, set) in sets.iter().enumerate() {
            if sets[..i].iter().any(|other| other.set == set.set) {
                return Err(Refusal::Invalid(format!("config/{} stands twice", set.set)));
            }
            self.check_publish(set)?;
        }
        // The clone shares everything, so taking back costs nothing.
        let before = self.clone();
        let mut happened = Vec::new();
        let mut versions = Vec::with_capacity(sets.len());
        for publish in sets {
            let number = self.add_version(publish, author, message, &mut happened);
            versions.push((publish.set.clone(), number));
        }
        if let Err(refusal) = self.check_config_bytes(before.config_bytes) {
            *self = before;
            return Err(refusal);
        }
        events.append(&mut happened);
        Ok(Reply::Versions(versions))
    }

    /// Refuses what adds to more bytes than the policy allows. Where there is more already, because the bound came later,
    /// whatever adds nothing still goes through. Versions that went to make room are not counted any more.
    fn check_config_bytes(&self, has: u64) -> Result<(), Refusal> {
        let (would, max) = (self.config_bytes, self.policy.config_bytes_max);
        if max > 0 && would > max && would > has {
            return Err(Refusal::ConfigFull { has, would, max });
        }
        Ok(())
    }

    fn check_publish(&self, publish: &PublishSet) -> Result<(), Refusal> {
        if publish.files > FILES_MAX || publish.bytes > SET_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "config/{} has {} files and {} bytes; at most {FILES_MAX} files and {SET_BYTES_MAX} bytes are kept",
                publish.set, publish.files, publish.bytes
            )));
        }
        let known = self.sets.get(&publish.set);
        if let Some(quota) = known.and_then(|set| set.spec.quota_bytes)
            && publish.bytes > quota
        {
            return Err(Refusal::Invalid(format!(
                "config/{} would have {} bytes, and its quota is {quota}; make it smaller, or raise `quota` with `config policy`",
                publish.set, publish.bytes
            )));
        }
        let current = known.map_or(0, |set| set.head);
        if known.is_none() && self.sets.len() >= SETS_MAX {
            return Err(Refusal::TooMany { what: "config sets".into(), max: SETS_MAX as u64 });
        }
        if let Some(delta) = &publish.delta
            && delta.bytes.as_slice().len() > DELTA_BYTES_MAX
        {
            let size = delta.bytes.as_slice().len();
            let why = format!("the delta of config/{} has {size} bytes; at most {DELTA_BYTES_MAX}", publish.set);
            return Err(Refusal::Invalid(why));
        }
        // Upon another version than the newest one, nobody can make anything of a delta.
        let mut bases = publish.parent.into_iter().chain(publish.delta.iter().map(|delta| delta.base));
        match bases.find(|base| *base != current) {
            Some(expected) => {
                Err(Refusal::Version { kind: "config".into(), name: publish.set.to_string(), expected, current })
            }
            None => Ok(()),
        }
    }

    fn add_version(&mut self, publish: &PublishSet, author: &str, message: &str, events: &mut Vec<Event>) -> u64 {
        let mut set = self.sets.get(&publish.set).cloned().unwrap_or_else(|| ConfigSet::new(self.revision));
        let parent = set.head;
        set.head += 1;
        let version = Version {
            number: set.head,
            parent,
            manifest: publish.manifest,
            files: publish.files,
            bytes: publish.bytes,
            author: author.to_owned(),
            message: message.to_owned(),
            at: self.now,
            revision: self.revision,
            delta: publish.delta.clone(),
        };
        let number = set.head;
        self.keep_version(&publish.set, &mut set, version);
        events.push(Event::SetPublished {
            set: publish.set.clone(),
            version: number,
            author: author.to_owned(),
            message: message.to_owned(),
        });
        self.begin_rollout(&mut set, parent, events, &publish.set);
        self.forget_old_versions(&publish.set, &mut set);
        self.store_set(&publish.set, set);
        number
    }

    /// Keeps a version under its number.
    pub(super) fn keep_version(&mut self, name: &SetName, set: &mut ConfigSet, version: Version) {
        self.touched.insert(RecordKey::Version(name.clone(), version.number));
        self.config_bytes += version.bytes;
        set.versions.insert(version.number, Arc::new(version));
    }

    /// Forgets versions beyond those that the set keeps, the oldest first, and none that a member is to have.
    pub(super) fn forget_old_versions(&mut self, name: &SetName, set: &mut ConfigSet) {
        let surplus = set.versions.len().saturating_sub(set.spec.keep_versions as usize);
        let old: Vec<u64> =
            set.versions.keys().copied().take(surplus).filter(|number| !set.is_needed(*number)).collect();
        for number in old {
            let forgotten = set.versions.remove(&number);
            self.config_bytes -= forgotten.map_or(0, |version| version.bytes);
            self.touched.insert(RecordKey::Version(name.clone(), number));
        }
        while set.bad.len() > BAD_KEPT_MAX {
            set.bad.pop_first();
        }
    }

    pub(super) fn remove_set(&mut self, name: &SetName, events: &mut Vec<Event>) -> Outcome {
        let set = self.sets.remove(name).ok_or_else(|| no_set(name))?;
        if self.feature_level >= REMOVALS_ARE_HEARD {
            let members: Vec<_> = self.members_of(&set).map(|(machine, _)| machine.clone()).collect();
            for machine in members {
                self.orders_changed(&machine);
            }
        }
        self.config_bytes -= set.bytes();
        self.touched.insert(RecordKey::Set(name.clone()));
        self.touched.extend(set.versions.keys().map(|number| RecordKey::Version(name.clone(), *number)));
        let synced: Vec<_> = self.syncs.keys().filter(|(set, _)| set == name).cloned().collect();
        for key in synced {
            self.syncs.remove(&key);
            self.touched.insert(RecordKey::Sync(key.0, key.1));
        }
        self.forget_programs_of(name);
        events.push(Event::SetRemoved { set: name.clone() });
        Ok(Reply::Done)
    }

    pub(super) fn report_sync(
        &mut self,
        machine: &MachineName,
        sets: &[(SetName, u64, SyncState)],
        events: &mut Vec<Event>,
    ) -> Outcome {
        if !self.machines.contains_key(machine) {
            return Err(no_machine(machine));
        }
        for (set, applied, state) in sets {
            if !self.sets.contains_key(set) {
                continue;
            }
            let key = (set.clone(), machine.clone());
            if self.syncs.get(&key).is_some_and(|known| known.applied == *applied && known.state == *state) {
                continue;
            }
            // How many bytes came is for who looks now, not for history.
            let known = self.syncs.get(&key);
            let news = known.is_none_or(|known| known.applied != *applied || !known.state.is_like(state));
            let sync = MemberSync { applied: *applied, state: state.clone(), reported: self.revision, at: self.now };
            self.touched.insert(RecordKey::Sync(key.0.clone(), key.1.clone()));
            self.syncs.insert(key, Arc::new(sync));
            if news {
                events.push(Event::SyncReported {
                    machine: machine.clone(),
                    set: set.clone(),
                    applied: *applied,
                    state: state.clone(),
                });
            }
        }
        Ok(Reply::Done)
    }
}

pub(super) fn no_set(name: &SetName) -> Refusal {
    Refusal::NotFound { kind: "config".into(), name: name.to_string() }
}
