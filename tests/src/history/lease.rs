//! Leases: nobody believes in one while somebody else does, tokens only grow, and what a lease guards loses nothing.
//!
//! Must stay true: a belief is known at the moments at which its holder looked, so the time between the first look and
//! the last is a part of it, and never more than it. Two beliefs that overlap are two holders, and no tolerance is needed:
//! the margin for clocks is in the belief itself (rule R1).

use std::collections::{BTreeMap, BTreeSet};

/// Somebody was there from one moment to another: a client that believed in its lease, or a server that executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The lease, or the server.
    pub lease: String,
    /// Who.
    pub owner: String,
    /// Where: a server that is started again in place keeps its token (a restart is no new grant), on another machine never.
    pub place: String,
    /// Under which token.
    pub token: u64,
    /// The first moment that is known.
    pub from: u64,
    /// The last one.
    pub to: u64,
}

/// Something that a guarded resource took, under a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// The resource.
    pub resource: String,
    /// The token that came with it.
    pub token: u64,
    /// When it was taken.
    pub at: u64,
}

/// Returns each pair of holders of one lease at one time.
#[must_use]
pub fn overlaps(holds: &[Hold]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (lease, holds) in by_start(holds) {
        // The one that lasts longest so far: it overlaps the next one if any does.
        let mut longest: Option<&Hold> = None;
        for hold in holds {
            if let Some(before) = longest.filter(|before| hold.from <= before.to && !is_same(before, hold)) {
                wrong.push(format!(
                    "{lease}: {} (token {}) and {} (token {}) at one time, for {} ns",
                    before.owner,
                    before.token,
                    hold.owner,
                    hold.token,
                    before.to.min(hold.to) - hold.from
                ));
            }
            longest = longest.filter(|before| before.to >= hold.to).or(Some(hold));
        }
    }
    wrong
}

/// Returns how long there was more than one holder, in nanoseconds, over all leases.
#[must_use]
pub fn overlap_ns(holds: &[Hold]) -> u64 {
    let mut sum = 0;
    for holds in by_start(holds).values() {
        let mut until = 0;
        for hold in holds {
            sum += hold.to.min(until).saturating_sub(hold.from);
            until = until.max(hold.to);
        }
    }
    sum
}

/// Returns each token that was not greater than all before it.
#[must_use]
pub fn tokens_fall(holds: &[Hold]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (lease, holds) in by_start(holds) {
        let mut greatest: Option<&Hold> = None;
        for hold in holds {
            match greatest {
                Some(before) if hold.token < before.token => wrong.push(format!(
                    "{lease}: token {} of {} came after {} of {}",
                    hold.token, hold.owner, before.token, before.owner
                )),
                Some(before) if hold.token == before.token && hold.place != before.place => {
                    wrong.push(format!("{lease}: {} and {} have token {}", before.place, hold.place, hold.token));
                }
                _ => greatest = Some(hold),
            }
        }
    }
    wrong
}

/// Returns each effect that a resource took under a smaller token than one before it.
#[must_use]
pub fn taken_late(effects: &[Effect]) -> Vec<String> {
    let mut order: Vec<&Effect> = effects.iter().collect();
    order.sort_by_key(|effect| effect.at);
    let mut greatest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Effect { resource, token, at } in order {
        let before = greatest.entry(resource).or_default();
        if token < before {
            wrong.push(format!("{resource}: token {token} was taken after {before}, at {at}"));
        }
        *before = (*before).max(*token);
    }
    wrong
}

/// Elements that were added to one set, by what their clients were told, and what the set had in the end.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// Acknowledged.
    pub ok: BTreeSet<u64>,
    /// Refused.
    pub failed: BTreeSet<u64>,
    /// Nobody knows.
    pub unknown: BTreeSet<u64>,
    /// What was there in the end, in the order in which it is kept.
    pub last: Vec<u64>,
}

/// Returns what was lost, what is there although it was refused or never asked for, and what is there twice.
#[must_use]
pub fn set_is_wrong(resource: &str, added: &Additions) -> Vec<String> {
    let mut wrong = Vec::new();
    let there: BTreeSet<u64> = added.last.iter().copied().collect();
    let mut say = |what: &str, elements: Vec<u64>| {
        if !elements.is_empty() {
            wrong.push(format!("{resource}: {} {what}, such as {}", elements.len(), elements[0]));
        }
    };
    say("acknowledged and lost", added.ok.difference(&there).copied().collect());
    say("refused and there", added.failed.intersection(&there).copied().collect());
    let asked = |element: &&u64| [&added.ok, &added.failed, &added.unknown].iter().any(|some| some.contains(element));
    say("never asked for and there", there.iter().filter(|element| !asked(element)).copied().collect());
    let mut seen = BTreeSet::new();
    say("there twice", added.last.iter().filter(|element| !seen.insert(**element)).copied().collect());
    wrong
}

fn is_same(one: &Hold, other: &Hold) -> bool {
    one.owner == other.owner && one.token == other.token
}

fn by_start(holds: &[Hold]) -> BTreeMap<&str, Vec<&Hold>> {
    let mut leases: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
    for hold in holds {
        leases.entry(&hold.lease).or_default().push(hold);
    }
    for holds in leases.values_mut() {
        holds.sort_by_key(|hold| (hold.from, hold.to));
    }
    leases
}
