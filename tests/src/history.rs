//! What clients did and what they were told, and whether it can have been so.
//!
//! Must stay true: every time is one clock's of one machine ([`crate::stamps::boot_ns`]), so that times compare; a record
//! says what its client knows and nothing more: an outcome that nobody was told is `unknown`, and may have taken effect at
//! any time since its question, or never. Checkers are pure, and each of them is shown histories that are bad.

pub mod converge;
pub mod judge;
pub mod lease;
pub mod linear;
pub mod once;
pub mod sets;
pub mod watch;

#[cfg(test)]
mod bad_tests;
#[cfg(test)]
mod random_tests;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How an operation ended, as far as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is done.
    Ok,
    /// It is not done, and never will be.
    Failed,
    /// Nobody told.
    Unknown,
}

/// One operation, one observation or one fault: a line of a history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What was done: one of [`op`].
    pub op: String,
    /// Which client; each does one thing after the other.
    pub client: u32,
    /// On which host, or in which role.
    pub process: String,
    /// To what: a lease, a set, a server, a resource.
    pub object: String,
    /// When it began, in nanoseconds of the boot clock.
    pub invoke: u64,
    /// When its client knew the outcome, or the observation ended.
    #[serde(rename = "return", default, skip_serializing_if = "Option::is_none")]
    pub ret: Option<u64>,
    /// What was asked.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub input: Value,
    /// What was answered.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub output: Value,
    /// How it ended.
    pub outcome: Outcome,
    /// The revision that the answer reflects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// The kinds of records.
pub mod op {
    /// Publishes versions of one or more sets, all or none.
    pub const WRITE: &str = "write";
    /// Reads the newest version of a set.
    pub const READ: &str = "read";
    /// Publishes under a key, again and again until it is known to be done.
    pub const ONCE: &str = "once";
    /// A watcher was told of a version.
    pub const EVENT: &str = "event";
    /// A watcher was told that it has missed some: it begins anew.
    pub const GAP: &str = "gap";
    /// A client believed in its lease, from the first moment to the last at which it looked.
    pub const HOLD: &str = "hold";
    /// A resource took an effect, under a token.
    pub const EFFECT: &str = "effect";
    /// An element was added to a set that a lease guards.
    pub const ADD: &str = "add";
    /// What such a set had in the end.
    pub const FINAL: &str = "final";
    /// A server executed, from its first instruction to its last.
    pub const LIFE: &str = "life";
    /// A reader read a set on a member's disk.
    pub const DISK: &str = "disk";
    /// Something was broken, from here to there.
    pub const FAULT: &str = "fault";
    /// The object of a fault: a disk went back to what it had before.
    pub const LOST_FSYNC: &str = "lost-fsync";
    /// The object of a fault: a host lost its power, and with it what its disk was not told to sync.
    pub const POWER: &str = "power";
}

impl Record {
    /// Returns a record of something that began; whatever is not known yet is left open.
    #[must_use]
    pub fn begun(op: &str, client: u32, process: &str, object: &str, invoke: u64) -> Self {
        Self {
            op: op.to_owned(),
            client,
            process: process.to_owned(),
            object: object.to_owned(),
            invoke,
            ret: None,
            input: Value::Null,
            output: Value::Null,
            outcome: Outcome::Unknown,
            revision: None,
        }
    }

    /// Adds what is asked.
    #[must_use]
    pub fn asking(mut self, input: Value) -> Self {
        self.input = input;
        self
    }

    /// Ends it well.
    #[must_use]
    pub fn done(mut self, ret: u64, output: Value) -> Self {
        (self.ret, self.output, self.outcome) = (Some(ret), output, Outcome::Ok);
        self
    }

    /// Ends it for certain without effect.
    #[must_use]
    pub fn failed(mut self, ret: u64, output: Value) -> Self {
        (self.ret, self.output, self.outcome) = (Some(ret), output, Outcome::Failed);
        self
    }

    /// Adds the revision that the answer reflects.
    #[must_use]
    pub fn at(mut self, revision: Option<u64>) -> Self {
        self.revision = revision;
        self
    }

    /// Returns a number of the answer.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        number(&self.output[key])
    }

    /// Returns a text of the answer.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.output[key].as_str()
    }
}

/// Returns a number, be it written as one or as text: revisions and tokens may be larger than a JSON number is exact.
#[must_use]
pub fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// A history that is being written: one line of JSON for each record. Clones write into the same.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
    shared: Arc<Mutex<(BufWriter<File>, Vec<Record>)>>,
}

impl History {
    /// Begins a history in this file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Self { path: path.to_owned(), shared: Arc::new(Mutex::new((file, Vec::new()))) })
    }

    /// Returns the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record. One that cannot be written ends the run: a history with holes proves nothing.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn add(&self, record: Record) {
        let mut shared = self.shared.lock().expect("no holder of this lock panics");
        let line = serde_json::to_string(&record).expect("plain text and numbers");
        writeln!(shared.0, "{line}").expect("the history is written");
        shared.1.push(record);
    }

    /// Returns the records so far, all of which are in the file then.
    ///
    /// # Panics
    /// If they cannot be written.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut shared = self.shared.lock().expect("no holder of this lock panics");
        shared.0.flush().expect("the history is written");
        shared.1.clone()
    }
}

/// Reads a history.
///
/// # Errors
/// What the operating system says, or that a line is no record.
pub fn read(path: &Path) -> io::Result<Vec<Record>> {
    let lines = BufReader::new(File::open(path)?).lines();
    lines.map(|line| serde_json::from_str(&line?).map_err(io::Error::other)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.jsonl");
        let history = History::create(&path).expect("it can be written");
        let open = Record::begun(op::WRITE, 3, "c1", "r0", 10).asking(json!({ "value": "x" }));
        history.add(open.clone());
        history.add(open.done(12, json!({ "version": "7" })).at(Some(44)));
        let read = read(&path);
        assert!(read.is_err() || read.is_ok_and(|some| some.len() < 2), "nothing is promised before it is flushed");
        let records = history.records();
        assert_eq!(super::read(&path).expect("it can be read"), records);
        assert_eq!((records[0].outcome, records[0].ret), (Outcome::Unknown, None));
        assert_eq!((records[1].number("version"), records[1].revision), (Some(7), Some(44)));
    }
}
