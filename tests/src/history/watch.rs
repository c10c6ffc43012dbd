//! Watches: who watches is told of everything, once, in order.
//!
//! Must stay true: a watcher that was told that it missed something begins anew; only what is missing in silence is wrong.

use std::collections::BTreeMap;

/// A version that somebody was told of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// The entry that made it.
    pub revision: u64,
    /// Its place among that entry's events.
    pub part: u64,
    /// The set.
    pub set: String,
    /// The version.
    pub version: u64,
    /// What was written.
    pub value: String,
}

/// What one watcher was told, without a gap in between that it knows of.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Which watcher.
    pub who: String,
    /// It was to be told of everything after this revision.
    pub after: u64,
    /// Up to this revision at least.
    pub until: u64,
    /// In the order in which it was told.
    pub events: Vec<Event>,
}

/// Returns everything that anybody was told of, each entry once, in order.
#[must_use]
pub fn ledger(watchers: &[Watched]) -> Vec<Event> {
    let mut all: Vec<Event> = watchers.iter().flat_map(|watched| watched.events.iter().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

/// An entry that is known from elsewhere: a client was told that it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Its revision.
    pub revision: u64,
    /// The set.
    pub set: String,
    /// The version.
    pub version: u64,
}

/// Returns what was missing, told twice, out of order, or told differently to different watchers.
#[must_use]
pub fn check(watchers: &[Watched], committed: &[Committed]) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = ledger(watchers);
    for pair in all.windows(2) {
        if (pair[0].revision, pair[0].part) == (pair[1].revision, pair[1].part) {
            wrong.push(format!("revision {} is told in two ways: {:?} and {:?}", pair[0].revision, pair[0], pair[1]));
        }
    }
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    for event in &all {
        let before = versions.insert(&event.set, event.version);
        if before.is_some_and(|before| before >= event.version) {
            wrong.push(format!(
                "{} v{} came at revision {}, after v{}",
                event.set,
                event.version,
                event.revision,
                before.unwrap_or_default()
            ));
        }
    }
    for Watched { who, after, until, events } in watchers {
        for pair in events.windows(2) {
            let (before, next) = ((pair[0].revision, pair[0].part), (pair[1].revision, pair[1].part));
            if before == next {
                wrong.push(format!("{who} was told twice of revision {}", next.0));
            } else if before > next {
                wrong.push(format!("{who} was told of revision {} after {}", next.0, before.0));
            }
        }
        if let Some(early) = events.iter().find(|event| event.revision <= *after) {
            wrong.push(format!("{who} asked for what came after {after}, and was told of revision {}", early.revision));
        }
        let is_due = |revision: u64| revision > *after && revision <= *until;
        for due in all.iter().filter(|event| is_due(event.revision) && !events.contains(event)) {
            wrong.push(format!("{who} was not told of {} v{} at revision {}", due.set, due.version, due.revision));
        }
        for due in committed.iter().filter(|entry| is_due(entry.revision)) {
            let is_told = events
                .iter()
                .any(|event| (event.revision, event.version, &event.set) == (due.revision, due.version, &due.set));
            if !is_told {
                wrong
                    .push(format!("{who} was not told of {} v{}, committed at {}", due.set, due.version, due.revision));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    wrong
}
