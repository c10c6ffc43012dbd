//! Config sync: each member has versions that were published, whole, never an older one after a newer one, and the newest
//! one in the end.
//!
//! Must stay true: the witness reads files on a disk as any program would, and asks nobody.

use std::collections::BTreeMap;

use super::watch::Event;

/// What a reader found who read a member's tree at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The member.
    pub member: String,
    /// The set.
    pub set: String,
    /// When it was read.
    pub at: u64,
    /// What its files say that they belong to: one value for all of them, or the tree is torn.
    pub values: Vec<String>,
}

/// A member's disk went back to what it had before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relapse {
    /// The member.
    pub member: String,
    /// When that began.
    pub from: u64,
    /// When it was over.
    pub to: u64,
}

/// Returns what cannot be. With `healed`, each of these members must have the newest version in the end.
#[must_use]
pub fn check(
    seen: &[Seen],
    ledger: &[Event],
    relapses: &[Relapse],
    members: &[String],
    healed: Option<&str>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let published: BTreeMap<(&str, &str), u64> =
        ledger.iter().map(|event| ((event.set.as_str(), event.value.as_str()), event.version)).collect();
    let mut order: Vec<&Seen> = seen.iter().collect();
    order.sort_by_key(|seen| seen.at);
    let mut has: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for Seen { member, set, at, values } in order {
        let [value] = &values[..] else {
            wrong.push(format!("{member} had a torn tree of {set} at {at}: {values:?}"));
            continue;
        };
        let Some(version) = published.get(&(set.as_str(), value.as_str())) else {
            wrong.push(format!("{member} had {value} in {set}, which nobody published, at {at}"));
            continue;
        };
        let before = has.insert((member, set), *version).unwrap_or(0);
        // Its disk went back, and with it whatever is on it: no program can know.
        let is_disks =
            relapses.iter().any(|relapse| relapse.member == *member && (relapse.from..=relapse.to).contains(at));
        if before > *version && !is_disks {
            wrong.push(format!("{member} went back from v{before} to v{version} of {set}, at {at}"));
        }
    }
    let Some(set) = healed else { return wrong };
    let newest = ledger.iter().filter(|event| event.set == set).map(|event| event.version).max().unwrap_or(0);
    for member in members {
        let last = has.get(&(member.as_str(), set)).copied().unwrap_or(0);
        if last != newest {
            wrong.push(format!("{member} ended at v{last} of {set}; the newest is v{newest}"));
        }
    }
    wrong
}
