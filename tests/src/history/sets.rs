//! Config sets as registers: a write publishes versions of some sets, all or none, upon the versions that it names; a read
//! returns the newest version of one set.
//!
//! Must stay true: each write has a value of its own, so a value that is read says which write it was.

use std::collections::BTreeMap;

use super::linear::{self, Model, Op};
use super::watch::Event;
use super::{Outcome, Record, number, op};

/// One set of a write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Part {
    /// The set.
    pub set: String,
    /// The version that it must have; `None`: whatever it has.
    pub upon: Option<u64>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum In {
    /// The newest version of a set.
    Read(String),
    /// All of these sets get this value, or none of them.
    Write(Vec<Part>, String),
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Out {
    /// The newest version and its value; version 0 if there is none.
    Newest(u64, String),
    /// The new versions, in the order of the sets.
    Versions(Vec<u64>),
}

/// Config sets.
#[derive(Debug)]
pub struct Sets;

/// An operation on config sets.
pub type SetOp = Op<In, Out>;

impl Model for Sets {
    type In = In;
    type Out = Out;
    /// The newest version of each set, and its value.
    type State = BTreeMap<String, (u64, String)>;

    fn first() -> Self::State {
        BTreeMap::new()
    }

    fn step(state: &Self::State, input: &In, output: Option<&Out>) -> Option<Self::State> {
        let newest = |set: &str| state.get(set).cloned().unwrap_or_default();
        match (input, output) {
            (In::Read(_), None) => Some(state.clone()),
            (In::Read(set), Some(Out::Newest(version, value))) => {
                let (is, has) = newest(set);
                (is == *version && (is == 0 || has == *value)).then(|| state.clone())
            }
            (In::Write(parts, value), output) => {
                if parts.iter().any(|part| part.upon.is_some_and(|upon| upon != newest(&part.set).0)) {
                    // It is refused. Who was told otherwise was told wrong.
                    return output.is_none().then(|| state.clone());
                }
                let mut after = state.clone();
                let mut versions = Vec::new();
                for part in parts {
                    let version = newest(&part.set).0 + 1;
                    versions.push(version);
                    after.insert(part.set.clone(), (version, value.clone()));
                }
                match output {
                    Some(Out::Versions(said)) => (*said == versions).then_some(after),
                    Some(Out::Newest(..)) => None,
                    None => Some(after),
                }
            }
            (In::Read(_), Some(Out::Versions(_))) => None,
        }
    }

    fn is_read(input: &In) -> bool {
        matches!(input, In::Read(_))
    }
}

/// A write that was refused because a set had another version than it named.
#[derive(Debug, Clone)]
struct Refused {
    set: String,
    upon: u64,
    /// The version that the refusal names.
    current: u64,
    invoke: u64,
    ret: u64,
}

/// Checks reads, writes and transactions. Where a write's outcome is unknown, the ledger says whether it took effect.
#[must_use]
pub fn check(records: &[Record], ledger: &[Event]) -> Vec<String> {
    let ops = operations(records, ledger);
    let mut wrong: Vec<String> = linear::by_revision::<Sets>(&ops).err().into_iter().collect();
    wrong.extend(refusals(records).iter().filter_map(|refused| unjust(refused, &ops)));
    let failed = records.iter().filter(|record| record.op == op::WRITE && record.outcome == Outcome::Failed);
    for value in failed.filter_map(|record| record.input["value"].as_str()) {
        wrong.extend(ledger.iter().find(|event| event.value == value).map(|event| {
            format!("{value} was refused, and is v{} of {} since revision {}", event.version, event.set, event.revision)
        }));
    }
    wrong
}

/// Returns the operations of a history.
#[must_use]
pub fn operations(records: &[Record], ledger: &[Event]) -> Vec<SetOp> {
    let mut effects: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in ledger {
        effects.entry(&event.value).or_default().push(event);
    }
    let operation = |record: &Record| {
        let (input, output) = match record.op.as_str() {
            op::READ => {
                let value = record.text("value").unwrap_or_default().to_owned();
                (In::Read(record.object.clone()), record.number("version").map(|version| Out::Newest(version, value)))
            }
            op::WRITE | op::ONCE => {
                let value = record.input["value"].as_str()?;
                let versions = record.output["versions"].as_array();
                let versions = versions.map(|versions| Out::Versions(versions.iter().filter_map(number).collect()));
                (In::Write(parts(record), value.to_owned()), versions)
            }
            _ => return None,
        };
        let is_nothing = match (&input, record.outcome) {
            (_, Outcome::Ok) => false,
            (In::Read(_), _) => true,
            (In::Write(_, value), outcome) => outcome == Outcome::Failed && !effects.contains_key(value.as_str()),
        };
        let mut op = Op {
            client: record.client,
            invoke: record.invoke,
            ret: record.ret,
            input,
            output,
            revision: record.revision,
        };
        if record.outcome != Outcome::Ok {
            (op.ret, op.output, op.revision) = (None, None, None);
        }
        // What nobody was told the ledger says: that it took effect, and as what. Also if somebody was told that it did not.
        if let (In::Write(parts, value), None) = (&op.input, op.revision)
            && let Some(events) = effects.get(value.as_str())
        {
            let version =
                |part: &Part| events.iter().find(|event| event.set == part.set).map_or(0, |event| event.version);
            op.revision = events.first().map(|event| event.revision);
            op.output = Some(Out::Versions(parts.iter().map(version).collect()));
        }
        (!is_nothing).then_some(op)
    };
    records.iter().filter_map(operation).collect()
}

fn parts(record: &Record) -> Vec<Part> {
    let sets = record.input["sets"].as_array().into_iter().flatten();
    let part =
        |part: &serde_json::Value| Some(Part { set: part["set"].as_str()?.to_owned(), upon: number(&part["upon"]) });
    sets.filter_map(part).collect()
}

fn refusals(records: &[Record]) -> Vec<Refused> {
    let writes = records.iter().filter(|record| record.op == op::WRITE && record.outcome == Outcome::Failed);
    let refused = |record: &Record| {
        // Of a transaction it is not said which set it was.
        let [Part { set, upon: Some(upon) }] = &parts(record)[..] else { return None };
        let (current, ret) = (record.number("current")?, record.ret?);
        Some(Refused { set: set.clone(), upon: *upon, current, invoke: record.invoke, ret })
    };
    writes.filter_map(refused).collect()
}

/// Returns why a refusal cannot have been right.
fn unjust(refused: &Refused, ops: &[SetOp]) -> Option<String> {
    let Refused { set, upon, current, invoke, ret } = refused;
    let made = |wanted: u64| {
        ops.iter().find(|op| match (&op.input, &op.output) {
            (In::Write(parts, _), Some(Out::Versions(versions))) => {
                parts.iter().zip(versions).any(|(part, version)| part.set == *set && *version == wanted)
            }
            _ => false,
        })
    };
    if upon == current {
        return Some(format!("a write upon v{upon} of {set} was refused because that is its version, at {ret}"));
    }
    if made(current + 1).and_then(|next| next.ret).is_some_and(|over| over < *invoke) {
        return Some(format!(
            "a write to {set} was refused for v{current}, which was over before it was asked at {invoke}"
        ));
    }
    let later = made(*current).filter(|write| write.invoke > *ret)?;
    Some(format!(
        "a write to {set} was refused for v{current} at {ret}, and that was only asked for at {}",
        later.invoke
    ))
}
