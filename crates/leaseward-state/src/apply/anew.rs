//! A cluster that begins a new life with the state of a backup.
//!
//! Must stay true: nothing of the old life counts in the new one. Tokens, revisions, session ids and numbers of versions
//! go on above everything that the old life may have handed out after the backup; every session is over, so nobody
//! believes; no lease is granted again before its holder's time is over; servers are lost, and need a proof or a grace
//! as after any loss. What was in the backup stays what it was.
//! Left out on purpose: copies of servers that the old life started after the backup. Nobody here knows of them; whoever
//! restores waits until their time is over (`leaseward/backup/restore.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;

use crate::config::Version;
use crate::config::rollout::Rollout;
use crate::event::Event;
use crate::limits::{ANEW_REVISIONS, ANEW_VERSIONS};
use crate::machine::Machine;
use crate::session::SessionEnd;
use crate::state::{ConfigSet, State};
use crate::token::{Generation, Revision, SessionId, UnixMillis};

/// Who made the versions with which a restored cluster begins.
const AUTHOR: &str = "leaseward backup restore";

impl State {
    /// Returns the state with which a cluster goes on that is restored from this one at `at`, by a wall clock; `None` if
    /// it was restored too often for tokens to grow on.
    #[must_use]
    pub fn anew(&self, at: UnixMillis) -> Option<Self> {
        let mut state = self.clone();
        state.generation = Generation(self.generation.0.checked_add(1)?);
        state.revision = Revision(self.revision.0.checked_add(ANEW_REVISIONS)?);
        state.now = self.now.max(at);
        let mut events = vec![Event::Restored { from: self.revision, generation: state.generation }];

        // As if new runs had taken their place: what they held stays closed for a whole time to live.
        let sessions: Vec<SessionId> = state.sessions.keys().copied().collect();
        state.finish_sessions(&sessions, SessionEnd::Superseded, &mut events);
        let revision = state.revision;
        let anew = state.machines.iter().map(|(name, machine)| {
            let known = Machine::clone(machine);
            let machine = Machine {
                suspected: None,
                confirmed_dead: false,
                orders_revision: revision,
                modified: revision,
                ..known
            };
            (name.clone(), Arc::new(machine))
        });
        state.machines = anew.collect();
        // Answers speak of grants that are over, and reports of what members had in the old life.
        state.answers = OrdMap::new();
        state.answers_by_expiry = OrdMap::new();
        state.answers_by_age = OrdMap::new();
        state.syncs = OrdMap::new();

        let sets: Vec<_> = state.sets.iter().map(|(name, set)| (name.clone(), set.clone())).collect();
        for (name, mut set) in sets {
            if let Some(number) = go_on(&mut set, self.revision, revision, state.now) {
                state.forget_old_versions(&name, &mut set);
                let message = set.newest().map(|newest| newest.message.clone()).unwrap_or_default();
                events.push(Event::SetPublished {
                    set: name.clone(),
                    version: number,
                    author: AUTHOR.to_owned(),
                    message,
                });
            }
            set.modified = revision;
            state.sets.insert(name, set);
        }
        state.config_bytes = state.sets.values().map(ConfigSet::bytes).sum();
        state.record_events(&events);
        // Whoever watched the old life must list again: what came after the backup never happened.
        state.compacted = revision;
        state.touched.clear();
        Some(state)
    }
}

/// Gives a set a new version with what its members had in common, numbered above everything that they may have had.
/// Returns its number; `None` if the set has no version.
fn go_on(set: &mut ConfigSet, from: Revision, revision: Revision, now: UnixMillis) -> Option<u64> {
    // A rollout that was under way is given up: its version may have turned out to be bad after the backup.
    let settled = match set.settled() {
        0 => set.head,
        settled => settled,
    };
    let version = set.versions.get(&settled).or_else(|| set.versions.get(&set.head))?;
    let number = set.head + ANEW_VERSIONS;
    let next = Version {
        number,
        parent: version.number,
        author: AUTHOR.to_owned(),
        message: format!("v{} again, of the backup of revision {from}", version.number),
        at: now,
        revision,
        delta: None,
        ..Version::clone(version)
    };
    // Where nobody had had any version yet, an operator looks first.
    set.rollout = set.rollout.take().filter(|rollout| rollout.base == 0).map(|_| {
        Arc::new(Rollout {
            version: number,
            base: 0,
            kept: BTreeMap::new(),
            released: BTreeSet::new(),
            forgiven: BTreeSet::new(),
            halted: Some("the cluster was restored from a backup meanwhile".to_owned()),
            stepped_at: now,
            stepped: revision,
        })
    });
    // What they were made of is in the backup whole.
    let whole = set.versions.iter().map(|(number, version)| {
        let version = match version.delta {
            None => Arc::clone(version),
            Some(_) => Arc::new(Version { delta: None, ..Version::clone(version) }),
        };
        (*number, version)
    });
    set.versions = whole.collect();
    set.versions.insert(number, Arc::new(next));
    set.head = number;
    Some(number)
}
