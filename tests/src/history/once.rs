//! Exactly once: a request that is sent again and again under one key has one effect.
//!
//! Must stay true: the judge is the ledger, which knows nothing of keys: each request writes a value of its own.

use std::collections::BTreeMap;

use super::Outcome;
use super::watch::Event;

/// A request that was sent as often as it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What it writes: nobody else does.
    pub value: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The version that its answer named.
    pub version: Option<u64>,
}

/// Returns the requests that had not the effect that their clients were told. The ledger has each entry once.
#[must_use]
pub fn check(requests: &[Request], ledger: &[Event]) -> Vec<String> {
    let mut effects: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for event in ledger {
        effects.entry(&event.value).or_default().push(event.version);
    }
    let wrong = |request: &Request| {
        let found = effects.get(request.value.as_str()).map_or(&[][..], Vec::as_slice);
        let Request { value, outcome, version } = request;
        match (outcome, found) {
            (_, [_, _, ..]) => Some(format!("{value} has {} effects: v{found:?}", found.len())),
            (Outcome::Ok, []) => Some(format!("{value} was acknowledged and has no effect")),
            (Outcome::Ok, [is]) if version.is_some_and(|said| said != *is) => {
                Some(format!("{value} is v{is}, and its client was told v{}", version.unwrap_or_default()))
            }
            (Outcome::Failed, [is]) => Some(format!("{value} was refused, and is v{is}")),
            _ => None,
        }
    };
    requests.iter().filter_map(wrong).collect()
}
