//! Random histories of a cluster that keeps every promise pass; with one promise broken each of them is found, by the
//! checker whose promise it is.

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::judge::{Expected, judge};
use super::linear::{self, Found};
use super::sets::{self, Sets};
use super::{Outcome, Record, op};

const SETS: [&str; 2] = ["r", "s"];

/// A cluster that applies each operation at one moment between its question and its answer.
struct Good {
    random: SmallRng,
    now: u64,
    revision: u64,
    sets: BTreeMap<&'static str, (u64, String)>,
    events: Vec<Value>,
    records: Vec<Record>,
}

impl Good {
    /// Returns a history, and what must be so at its end.
    fn history(seed: u64) -> (Vec<Record>, Expected) {
        let random = SmallRng::seed_from_u64(seed);
        let mut good =
            Self { random, now: 1_000, revision: 5, sets: BTreeMap::new(), events: Vec::new(), records: Vec::new() };
        for i in 0..60 {
            good.operation(i);
        }
        good.watchers();
        good.leases();
        good.disks();
        (good.records, Expected { members: vec!["h1".into(), "h2".into()], healed: Some("r".into()) })
    }

    fn operation(&mut self, i: u32) {
        self.now += self.random.gen_range(1..20);
        // Operations overlap, as each may begin long before its moment and end long after.
        let (invoke, ret) = (self.now - self.random.gen_range(0..60), self.now + self.random.gen_range(0..60));
        let set = SETS[self.random.gen_range(0..2)];
        if self.random.gen_bool(0.4) {
            let (version, value) = self.sets.get(set).cloned().unwrap_or_default();
            let read = Record::begun(op::READ, i, "c", set, invoke);
            self.records.push(read.done(ret, json!({ "version": version, "value": value })).at(Some(self.revision)));
            return;
        }
        let value = format!("w{i}");
        let is_once = self.random.gen_bool(0.3);
        let chosen = if is_once || self.random.gen_bool(0.7) { vec![set] } else { SETS.to_vec() };
        let heads: Vec<u64> = chosen.iter().map(|set| self.sets.get(set).map_or(0, |head| head.0)).collect();
        let refused = !is_once && chosen.len() == 1 && self.random.gen_bool(0.2);
        let parts = chosen.iter().zip(&heads).map(|(set, head)| match is_once {
            true => json!({ "set": set }),
            false => json!({ "set": set, "upon": head + u64::from(refused) }),
        });
        let parts: Vec<Value> = parts.collect();
        let record = Record::begun(if is_once { op::ONCE } else { op::WRITE }, i, "c", chosen[0], invoke);
        let record = record.asking(json!({ "sets": parts, "value": value }));
        if refused {
            self.records.push(record.failed(ret, json!({ "current": heads[0] })));
            return;
        }
        let is_unknown = self.random.gen_bool(0.15);
        if is_unknown && self.random.gen_bool(0.5) {
            self.records.push(record);
            return;
        }
        self.revision += self.random.gen_range(1..3);
        let mut versions = Vec::new();
        for (part, (set, head)) in chosen.iter().zip(&heads).enumerate() {
            versions.push(head + 1);
            self.sets.insert(set, (head + 1, value.clone()));
            let event =
                json!({ "revision": self.revision, "part": part, "set": set, "version": head + 1, "value": value });
            self.events.push(event);
        }
        let revision = Some(self.revision);
        self.records.push(match is_unknown {
            true => record,
            false => record.done(ret, json!({ "versions": versions })).at(revision),
        });
    }

    fn watchers(&mut self) {
        for watcher in ["w1", "w2"] {
            let mut after = 0;
            let mut left = self.events.as_slice();
            while !left.is_empty() {
                let mut count = self.random.gen_range(1..=left.len());
                // Whole entries only.
                while count < left.len() && left[count]["revision"] == left[count - 1]["revision"] {
                    count += 1;
                }
                let (told, rest) = left.split_at(count);
                let until = told[count - 1]["revision"].as_u64().expect("a number");
                let record = Record::begun(op::EVENT, 0, watcher, "", self.now);
                let record = record.asking(json!({ "after": after })).done(self.now, json!({ "events": told }));
                self.records.push(record.at(Some(until)));
                (after, left) = (until, rest);
            }
        }
    }

    fn leases(&mut self) {
        let (mut token, mut elements) = (10, Vec::new());
        for client in 0..20 {
            token += self.random.gen_range(1..5);
            let from = self.now + self.random.gen_range(1..5);
            let to = from + self.random.gen_range(0..50);
            let kind = [op::HOLD, op::LIFE][client as usize % 2];
            let object = ["job", "pay"][client as usize % 2];
            let hold = Record::begun(kind, client, "c", object, from);
            self.records.push(hold.done(to, json!({ "token": token.to_string() })));
            let effect = Record::begun(op::EFFECT, client, "c", "guarded", from);
            self.records.push(effect.done(to, json!({ "token": token })));
            let add = Record::begun(op::ADD, client, "c", "set", from).asking(json!({ "element": client }));
            elements.push(client);
            self.records.push(add.done(to, Value::Null));
            self.now = to;
        }
        let last = Record::begun(op::FINAL, 0, "c", "set", self.now);
        self.records.push(last.done(self.now, json!({ "elements": elements })));
    }

    fn disks(&mut self) {
        let of_set: Vec<Value> = self.events.iter().filter(|event| event["set"] == "r").cloned().collect();
        for member in ["h1", "h2"] {
            for (i, event) in of_set.iter().enumerate() {
                // Members may leave out what is no longer the newest.
                if i + 1 < of_set.len() && self.random.gen_bool(0.3) {
                    continue;
                }
                self.now += 1;
                let disk = Record::begun(op::DISK, 0, member, "r", self.now);
                self.records.push(disk.done(self.now, json!({ "values": [event["value"]] })));
            }
        }
    }
}

/// Breaks one promise. Returns false if this history has no place for it.
type Break = fn(&mut Vec<Record>, &mut SmallRng) -> bool;

fn pick(records: &[Record], random: &mut SmallRng, fits: impl Fn(&Record) -> bool) -> Option<usize> {
    let places: Vec<usize> = (0..records.len()).filter(|i| fits(&records[*i])).collect();
    places.choose(random).copied()
}

const BREAKS: &[(&str, &str, Break)] = &[
    ("a read of an older version", "linearizable", |records, random| {
        let fits = |record: &Record| record.op == op::READ && record.number("version") > Some(1);
        let Some(i) = pick(records, random, fits) else { return false };
        let older = records[i].number("version").expect("it has one") - 1;
        records[i].output["version"] = json!(older);
        true
    }),
    ("an answer before the question of what it has seen", "linearizable", |records, random| {
        let last_write = records.iter().rfind(|record| record.op == op::WRITE && record.revision.is_some());
        let Some(write) = last_write.cloned() else { return false };
        let read = Record::begun(op::READ, 99, "c", "r", 0);
        let Some(seen) = pick(records, random, |record| record.op == op::READ && record.revision >= write.revision)
        else {
            return false;
        };
        let output = records[seen].output.clone();
        let object = records[seen].object.clone();
        let revision = records[seen].revision;
        records.push(Record { object, ..read.done(1, output).at(revision) });
        true
    }),
    ("a write that is acknowledged under another version", "linearizable", |records, random| {
        let fits = |record: &Record| record.op == op::WRITE && record.outcome == Outcome::Ok;
        let Some(i) = pick(records, random, fits) else { return false };
        records[i].output["versions"][0] = json!(77);
        true
    }),
    ("a belief that lasts too long", "exclusive", |records, random| {
        let last = records.iter().rposition(|record| record.op == op::HOLD).expect("there are holds");
        let fits = |record: &Record| record.op == op::HOLD;
        let Some(i) = pick(&records[..last], random, fits) else { return false };
        let next = records[i + 1..].iter().find(|record| record.op == op::HOLD).expect("one follows").invoke;
        records[i].ret = Some(next);
        true
    }),
    ("a server that lives too long", "exclusive", |records, random| {
        let last = records.iter().rposition(|record| record.op == op::LIFE).expect("there are lives");
        let Some(i) = pick(&records[..last], random, |record| record.op == op::LIFE) else { return false };
        let next = records[i + 1..].iter().find(|record| record.op == op::LIFE).expect("one follows").invoke;
        records[i].ret = Some(next + 1);
        true
    }),
    ("a token that is smaller", "tokens", |records, random| {
        let first = records.iter().position(|record| record.op == op::HOLD).expect("there are holds");
        let fits = |record: &Record| record.op == op::HOLD;
        let Some(i) = pick(&records[first + 1..], random, fits) else { return false };
        records[first + 1 + i].output["token"] = json!(1);
        true
    }),
    ("an old token that is taken", "guarded", |records, random| {
        let first = records.iter().position(|record| record.op == op::EFFECT).expect("there are effects");
        let Some(i) = pick(&records[first + 1..], random, |record| record.op == op::EFFECT) else { return false };
        records[first + 1 + i].output["token"] = json!(1);
        true
    }),
    ("an element that is lost", "lock-set", |records, random| {
        let last = records.iter().position(|record| record.op == op::FINAL).expect("there is an end");
        let elements = records[last].output["elements"].as_array_mut().expect("a list");
        elements.remove(random.gen_range(0..elements.len()));
        true
    }),
    ("a request that counts twice", "once", |records, random| {
        let ok = |record: &Record| record.op == op::ONCE && record.outcome == Outcome::Ok;
        let Some(i) = pick(records, random, ok) else { return false };
        let value = records[i].input["value"].clone();
        let event = json!({ "revision": 9_000, "part": 0, "set": "r", "version": 9_000, "value": value });
        let told = Record::begun(op::EVENT, 0, "w1", "", 0).asking(json!({ "after": 0 }));
        records.push(told.done(0, json!({ "events": [event] })).at(Some(9_000)));
        true
    }),
    ("a request whose effect is missing", "once", |records, random| {
        let unknown = |record: &Record| record.op == op::ONCE;
        let Some(i) = pick(records, random, unknown) else { return false };
        records[i].input["value"] = json!("never");
        records[i].outcome = Outcome::Ok;
        true
    }),
    ("an event that a watcher misses", "watch", |records, random| {
        let Some(i) = pick(records, random, |record| record.op == op::EVENT) else { return false };
        let events = records[i].output["events"].as_array_mut().expect("a list");
        events.remove(random.gen_range(0..events.len()));
        true
    }),
    ("an event that comes twice", "watch", |records, random| {
        let Some(i) = pick(records, random, |record| record.op == op::EVENT) else { return false };
        let events = records[i].output["events"].as_array_mut().expect("a list");
        let again = events[random.gen_range(0..events.len())].clone();
        events.push(again);
        true
    }),
    ("a torn tree", "converge", |records, random| {
        let Some(i) = pick(records, random, |record| record.op == op::DISK) else { return false };
        records[i].output["values"].as_array_mut().expect("a list").push(json!("w0"));
        true
    }),
    ("a member that stays behind", "converge", |records, _| {
        let seen = records.iter().filter(|record| record.op == op::DISK && record.process == "h2").count();
        let last = records.iter().rposition(|record| record.op == op::DISK).expect("there are disks");
        records.remove(last);
        seen > 0
    }),
];

#[test]
fn histories_of_a_good_cluster_pass() {
    for seed in 0..300 {
        let (records, expected) = Good::history(seed);
        assert_eq!(judge(&records, &expected), [], "seed {seed}");
    }
}

#[test]
fn whatever_is_broken_is_found() {
    for (what, checker, break_it) in BREAKS {
        let mut broken = 0;
        for seed in 0..100 {
            let (mut records, expected) = Good::history(seed);
            if !break_it(&mut records, &mut SmallRng::seed_from_u64(seed)) {
                continue;
            }
            broken += 1;
            let found = judge(&records, &expected);
            assert!(found.iter().any(|anomaly| anomaly.checker == *checker), "seed {seed}: {what}: {found:?}");
        }
        assert!(broken > 50, "{what} fits only {broken} of a hundred histories");
    }
}

/// The two ways to look for an order agree, also where the order is broken: a search needs no revisions.
#[test]
fn the_search_agrees_with_the_revisions() {
    let (mut orders, mut none) = (0, 0);
    for seed in 0..400 {
        let (mut records, _) = Good::history(seed);
        records.truncate(14);
        let mut random = SmallRng::seed_from_u64(seed);
        if seed % 2 == 0
            && let Some(i) = pick(&records, &mut random, |record| record.op == op::READ)
        {
            records[i].output =
                json!({ "version": random.gen_range(0..4), "value": format!("w{}", random.gen_range(0..14)) });
        }
        // Whatever took effect without a word is known here by its revision only if somebody was told: leave that out.
        records.retain(|record| record.outcome != Outcome::Unknown || record.op == op::READ);
        let ops = sets::operations(&records, &[]);
        let by_revision = linear::by_revision::<Sets>(&ops);
        let found = linear::search::<Sets>(&ops, 1_000_000);
        assert_ne!(found, Found::Unknown, "seed {seed}");
        // The revisions may name one order where another one would do; never the other way round.
        assert!(by_revision.is_err() || found == Found::Order, "seed {seed}: {found:?}");
        *(if found == Found::Order { &mut orders } else { &mut none }) += 1;
        if seed % 2 == 1 && by_revision.is_ok() {
            assert_eq!(found, Found::Order, "seed {seed}");
        }
    }
    assert!(orders > 100 && none > 50, "{orders} with an order, {none} without");
}
