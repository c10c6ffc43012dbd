//! Registers, made of config sets: what was acknowledged stays, and reads are linearizable.
//!
//! Every answer carries the revision it reflects, so it is enough to look that no answer is older than one that was
//! complete before its question began, and that each version has one content.

use std::collections::BTreeMap;

use leaseward::SetName;
use leaseward_state::State;
use leaseward_state::config::Digest;

use super::Judge;
use crate::clocks::At;

/// What is known of one register.
#[derive(Default)]
pub(super) struct Register {
    /// The content of each version that anybody was told of.
    versions: BTreeMap<u64, Digest>,
    /// The version of each content that was ever sent, once known.
    sent: BTreeMap<Digest, Option<u64>>,
    /// Answers that are complete: when, and which revision they reflect.
    complete: Vec<(At, u64)>,
    acknowledged: u64,
    /// The version of each content that counted.
    counted: BTreeMap<Digest, u64>,
}

impl Judge {
    /// Learns that this content is sent.
    pub fn publishes(&self, set: &SetName, content: Digest) {
        self.lock().registers.entry(set.clone()).or_default().sent.insert(content, None);
    }

    /// Learns an answer: at this version the register has this content, since this revision.
    pub fn answered(
        &self,
        set: &SetName,
        (began, ended): (At, At),
        revision: u64,
        version: u64,
        content: Digest,
        write: bool,
    ) {
        self.count(if write { "publishes" } else { "reads" });
        let mut wrong = Vec::new();
        {
            let mut inner = self.lock();
            let register = inner.registers.entry(set.clone()).or_default();
            let newest = register.complete.iter().filter(|(at, _)| *at < began).map(|(_, revision)| *revision).max();
            if newest.is_some_and(|newest| newest > revision) {
                wrong.push(format!("an answer of {set} reflects {revision}, after one of {newest:?} was complete"));
            }
            register.complete.push((ended, revision));
            let before = *register.versions.entry(version).or_insert(content);
            if before != content {
                wrong.push(format!("version {version} of {set} has two contents: {before} and {content}"));
            }
            match register.sent.get_mut(&content) {
                None => wrong.push(format!("version {version} of {set} was never sent")),
                Some(known) => {
                    let before = *known.get_or_insert(version);
                    if before != version {
                        wrong.push(format!("one publish of {set} counted twice: as {before} and as {version}"));
                    }
                }
            }
            if write {
                register.acknowledged = register.acknowledged.max(version);
            }
        }
        for what in wrong {
            self.violated(ended, &what);
        }
    }

    /// Looks whether each publish counted once, also those of which nobody was told.
    pub fn look_at_contents(&self, now: At, state: &State) {
        let mut wrong = Vec::new();
        for (set, register) in &mut self.lock().registers {
            for version in state.set(set).into_iter().flat_map(|set| set.versions.values()) {
                let before = *register.counted.entry(version.manifest).or_insert(version.number);
                if before != version.number {
                    wrong.push(format!("one publish of {set} counted twice: as {before} and as {}", version.number));
                }
            }
        }
        for what in wrong {
            self.violated(now, &what);
        }
    }

    /// Looks whether a state has everything that was acknowledged.
    pub fn look_at_registers(&self, now: At, state: &State) {
        let mut wrong = Vec::new();
        for (set, register) in &self.lock().registers {
            let newest = state.set(set).map_or(0, |set| set.head);
            if newest < register.acknowledged {
                wrong.push(format!("{set} is at version {newest}, and {} was acknowledged", register.acknowledged));
            }
            for version in state.set(set).into_iter().flat_map(|set| set.versions.values()) {
                if register.versions.get(&version.number).is_some_and(|content| *content != version.manifest) {
                    wrong.push(format!("version {} of {set} has another content than was told", version.number));
                }
            }
        }
        for what in wrong {
            self.violated(now, &what);
        }
    }
}
