//! All checkers over one history.
//!
//! Must stay true: what a history has nothing of is not judged, and the counts say so: "no anomaly" among no operations is
//! no result.

use std::collections::BTreeMap;

use serde_json::Value;

use super::converge::{self, Relapse, Seen};
use super::lease::{self, Additions, Effect, Hold};
use super::once::{self, Request};
use super::watch::{self, Committed, Event, Watched};
use super::{Outcome, Record, number, op, sets};

/// Something that cannot have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// Which checker found it.
    pub checker: &'static str,
    /// What it found.
    pub what: String,
}

/// What must be so in the end.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// The members that must have the newest version in the end.
    pub members: Vec<String>,
    /// Of which set; `None`: it is not looked at.
    pub healed: Option<String>,
}

/// Operations by kind: how many ended well, failed, and are unknown.
pub type Counts = BTreeMap<String, [usize; 3]>;

/// Returns how many operations there are of each kind.
#[must_use]
pub fn counts(records: &[Record]) -> Counts {
    let mut counts = Counts::new();
    for record in records.iter().filter(|record| record.op != op::FAULT) {
        let place = match record.outcome {
            Outcome::Ok => 0,
            Outcome::Failed => 1,
            Outcome::Unknown => 2,
        };
        counts.entry(record.op.clone()).or_default()[place] += 1;
    }
    counts
}

/// The checkers, by name.
pub const CHECKERS: [&str; 8] =
    ["linearizable", "exclusive", "tokens", "guarded", "lock-set", "once", "watch", "converge"];

/// Returns what cannot have been.
#[must_use]
pub fn judge(records: &[Record], expected: &Expected) -> Vec<Anomaly> {
    let watchers = watchers(records);
    let ledger = watch::ledger(&watchers);
    let holds = holds(records);
    let lock_sets = additions(records);
    let lock_sets = lock_sets.iter().flat_map(|(resource, added)| lease::set_is_wrong(resource, added));
    let (members, healed) = (&expected.members, expected.healed.as_deref());
    let converged = converge::check(&seen(records), &ledger, &relapses(records), members, healed);
    let found = [
        ("linearizable", sets::check(records, &ledger)),
        ("exclusive", lease::overlaps(&holds)),
        ("tokens", lease::tokens_fall(&holds)),
        ("guarded", lease::taken_late(&effects(records))),
        ("lock-set", lock_sets.collect()),
        ("once", once::check(&requests(records), &ledger)),
        ("watch", watch::check(&watchers, &committed(records))),
        ("converge", converged),
    ];
    let each =
        |(checker, found): (&'static str, Vec<String>)| found.into_iter().map(move |what| Anomaly { checker, what });
    found.into_iter().flat_map(each).collect()
}

fn of<'a>(records: &'a [Record], kind: &'a str) -> impl Iterator<Item = &'a Record> {
    records.iter().filter(move |record| record.op == kind)
}

/// Returns when clients believed in leases, and when servers executed.
#[must_use]
pub fn holds(records: &[Record]) -> Vec<Hold> {
    let held = records.iter().filter(|record| [op::HOLD, op::LIFE].contains(&record.op.as_str()));
    let hold = |record: &Record| {
        let owner = format!("{} {}", record.process, record.client);
        let (token, to) = (record.number("token")?, record.ret?);
        let place = record.number("machine").map_or_else(|| owner.clone(), |machine| format!("machine {machine}"));
        Some(Hold { lease: record.object.clone(), owner, place, token, from: record.invoke, to })
    };
    held.filter_map(hold).collect()
}

fn effects(records: &[Record]) -> Vec<Effect> {
    let effect = |record: &Record| {
        Some(Effect { resource: record.object.clone(), token: record.number("token")?, at: record.invoke })
    };
    of(records, op::EFFECT).filter_map(effect).collect()
}

fn additions(records: &[Record]) -> BTreeMap<&str, Additions> {
    let mut sets: BTreeMap<&str, Additions> = BTreeMap::new();
    for record in of(records, op::FINAL) {
        let elements = record.output["elements"].as_array().into_iter().flatten();
        sets.entry(&record.object).or_default().last = elements.filter_map(Value::as_u64).collect();
    }
    for record in of(records, op::ADD) {
        // Without an end there is nothing to compare with.
        let (Some(set), Some(element)) = (sets.get_mut(record.object.as_str()), number(&record.input["element"]))
        else {
            continue;
        };
        match record.outcome {
            Outcome::Ok => set.ok.insert(element),
            Outcome::Failed => set.failed.insert(element),
            Outcome::Unknown => set.unknown.insert(element),
        };
    }
    sets
}

fn requests(records: &[Record]) -> Vec<Request> {
    let version = |record: &Record| record.output["versions"].as_array()?.first().and_then(number);
    let request = |record: &Record| {
        let value = record.input["value"].as_str()?.to_owned();
        Some(Request { value, outcome: record.outcome, version: version(record) })
    };
    of(records, op::ONCE).filter_map(request).collect()
}

/// Returns what each watcher was told, from one gap to the next.
#[must_use]
pub fn watchers(records: &[Record]) -> Vec<Watched> {
    let mut open: BTreeMap<&str, Watched> = BTreeMap::new();
    let mut closed = Vec::new();
    for record in records {
        if record.op == op::GAP {
            closed.extend(open.remove(record.process.as_str()));
        }
        let (op::EVENT, Some(until)) = (record.op.as_str(), record.revision) else { continue };
        let watched = open.entry(&record.process).or_insert_with(|| Watched {
            who: record.process.clone(),
            after: number(&record.input["after"]).unwrap_or(0),
            ..Watched::default()
        });
        watched.until = until;
        watched.events.extend(record.output["events"].as_array().into_iter().flatten().filter_map(event));
    }
    closed.extend(open.into_values());
    closed
}

fn event(value: &Value) -> Option<Event> {
    Some(Event {
        revision: number(&value["revision"])?,
        part: number(&value["part"])?,
        set: value["set"].as_str()?.to_owned(),
        version: number(&value["version"])?,
        value: value["value"].as_str()?.to_owned(),
    })
}

fn committed(records: &[Record]) -> Vec<Committed> {
    let writes = records.iter().filter(|record| [op::WRITE, op::ONCE].contains(&record.op.as_str()));
    let mut committed = Vec::new();
    for write in writes.filter(|write| write.outcome == Outcome::Ok) {
        let (sets, versions) = (write.input["sets"].as_array(), write.output["versions"].as_array());
        for (set, version) in sets.into_iter().flatten().zip(versions.into_iter().flatten()) {
            if let (Some(revision), Some(set), Some(version)) = (write.revision, set["set"].as_str(), number(version)) {
                committed.push(Committed { revision, set: set.to_owned(), version });
            }
        }
    }
    committed
}

/// Returns when members' disks went back to what they had before.
fn relapses(records: &[Record]) -> Vec<Relapse> {
    // What readers saw before it was durable is gone with the power, too.
    let goes_back = |record: &&Record| record.op == op::FAULT && [op::LOST_FSYNC, op::POWER].contains(&&*record.object);
    let lost = records.iter().filter(goes_back);
    let relapse = |record: &Record| Relapse {
        member: record.process.clone(),
        from: record.invoke,
        to: record.ret.unwrap_or(u64::MAX),
    };
    lost.map(relapse).collect()
}

fn seen(records: &[Record]) -> Vec<Seen> {
    let seen = |record: &Record| {
        let values = record.output["values"].as_array()?.iter();
        Some(Seen {
            member: record.process.clone(),
            set: record.object.clone(),
            at: record.invoke,
            values: values.filter_map(|value| Some(value.as_str()?.to_owned())).collect(),
        })
    };
    of(records, op::DISK).filter_map(seen).collect()
}
