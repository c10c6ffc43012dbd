//! Config sets are published; members say how far they are.

use std::sync::Arc;

use imbl::OrdMap;

use super::Outcome;
use super::machine::not_found as no_machine;
use crate::command::{PublishSet, Reply};
use crate::config::{MemberSync, SyncState, Version};
use crate::event::Event;
use crate::limits::{ATOMIC_COMMANDS_MAX, FILES_MAX, SET_BYTES_MAX, SETS_MAX, TEXT_BYTES_MAX, VERSIONS_KEPT_MAX};
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
        let mut versions = Vec::with_capacity(sets.len());
        for publish in sets {
            let number = self.add_version(publish, author, message);
            versions.push((publish.set.clone(), number));
            events.push(Event::SetPublished {
                set: publish.set.clone(),
                version: number,
                author: author.to_owned(),
                message: message.to_owned(),
            });
        }
        Ok(Reply::Versions(versions))
    }

    fn check_publish(&self, publish: &PublishSet) -> Result<(), Refusal> {
        if publish.files > FILES_MAX || publish.bytes > SET_BYTES_MAX {
            return Err(Refusal::Invalid(format!(
                "config/{} has {} files and {} bytes; at most {FILES_MAX} files and {SET_BYTES_MAX} bytes are kept",
                publish.set, publish.files, publish.bytes
            )));
        }
        let current = self.sets.get(&publish.set).map_or(0, |set| set.head);
        if current == 0 && self.sets.len() >= SETS_MAX {
            return Err(Refusal::TooMany { what: "config sets".into(), max: SETS_MAX as u64 });
        }
        match publish.parent {
            Some(expected) if expected != current => {
                Err(Refusal::Version { kind: "config".into(), name: publish.set.to_string(), expected, current })
            }
            _ => Ok(()),
        }
    }

    fn add_version(&mut self, publish: &PublishSet, author: &str, message: &str) -> u64 {
        let mut set = self.sets.get(&publish.set).cloned().unwrap_or_else(|| ConfigSet {
            created: self.revision,
            modified: self.revision,
            head: 0,
            versions: OrdMap::new(),
        });
        let parent = set.head;
        set.head += 1;
        set.modified = self.revision;
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
        };
        set.versions.insert(set.head, Arc::new(version));
        self.touched.insert(RecordKey::Version(publish.set.clone(), set.head));
        while set.versions.len() > VERSIONS_KEPT_MAX {
            let Some(oldest) = set.versions.get_min().map(|(number, _)| *number) else { break };
            set.versions.remove(&oldest);
            self.touched.insert(RecordKey::Version(publish.set.clone(), oldest));
        }
        let number = set.head;
        self.sets.insert(publish.set.clone(), set);
        self.touched.insert(RecordKey::Set(publish.set.clone()));
        number
    }

    pub(super) fn remove_set(&mut self, name: &SetName, events: &mut Vec<Event>) -> Outcome {
        let set = self
            .sets
            .remove(name)
            .ok_or_else(|| Refusal::NotFound { kind: "config".into(), name: name.to_string() })?;
        self.touched.insert(RecordKey::Set(name.clone()));
        self.touched.extend(set.versions.keys().map(|number| RecordKey::Version(name.clone(), *number)));
        let synced: Vec<_> = self.syncs.keys().filter(|(set, _)| set == name).cloned().collect();
        for key in synced {
            self.syncs.remove(&key);
            self.touched.insert(RecordKey::Sync(key.0, key.1));
        }
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
            let sync = MemberSync { applied: *applied, state: state.clone(), reported: self.revision, at: self.now };
            self.touched.insert(RecordKey::Sync(key.0.clone(), key.1.clone()));
            self.syncs.insert(key, Arc::new(sync));
            events.push(Event::SyncReported {
                machine: machine.clone(),
                set: set.clone(),
                applied: *applied,
                state: state.clone(),
            });
        }
        Ok(Reply::Done)
    }
}
