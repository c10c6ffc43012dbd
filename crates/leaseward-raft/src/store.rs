//! The materialised state on disk: a cache that saves replaying the log after a restart.
//!
//! Must stay true: it can be thrown away at any time and is rebuilt from a snapshot and the log. After a crash it holds
//! everything up to an entry and nothing of later ones, or counts as empty. `sled_store.rs` is the real one; the one
//! here lives in memory, for tests and simulation, and both pass the same tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use leaseward_state::record::{Record, RecordKey};
use serde::{Deserialize, Serialize};

use crate::stored::{LogPosition, StoredMembership};

/// How far the log is applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedTo {
    /// The last applied entry.
    pub position: Option<LogPosition>,
    /// The membership as of that entry.
    pub membership: StoredMembership,
}

/// A changed record: its new content, or `None` if it is gone.
pub type Change = (RecordKey, Option<Record>);

/// The store cannot be used; throw it away and rebuild it.
#[derive(Debug, thiserror::Error)]
#[error("the state store is unusable: {0}")]
pub struct Unusable(pub String);

/// A place for the materialised state.
pub trait StateStore: Send + 'static {
    /// Returns what was written last, if anything.
    ///
    /// # Errors
    /// [`Unusable`] if it is not whole.
    #[allow(clippy::type_complexity, reason = "a pair of a marker and the records under it")]
    fn load(&mut self) -> Result<Option<(AppliedTo, Vec<(RecordKey, Record)>)>, Unusable>;

    /// Writes changes and how far they bring it, all or none.
    ///
    /// # Errors
    /// [`Unusable`]; what is written is unknown then.
    fn write(&mut self, changes: &[Change], applied: &AppliedTo) -> Result<(), Unusable>;

    /// Replaces everything.
    ///
    /// # Errors
    /// [`Unusable`]; what is written is unknown then.
    fn replace(&mut self, records: &[(RecordKey, Record)], applied: &AppliedTo) -> Result<(), Unusable>;

    /// Makes everything written so far durable. Takes a while.
    ///
    /// # Errors
    /// [`Unusable`]; what is durable is unknown then.
    fn make_durable(&mut self) -> Result<(), Unusable>;
}

/// A store in memory. Clones share it, so that it outlives a simulated restart.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    applied: Option<AppliedTo>,
    records: BTreeMap<RecordKey, Record>,
}

impl MemoryStore {
    /// Returns a copy of all that it holds, for a simulated disk that goes back in time.
    #[must_use]
    pub fn copy(&self) -> Self {
        let memory = self.0.lock().expect("no holder of this lock panics");
        let copy = Memory { applied: memory.applied.clone(), records: memory.records.clone() };
        Self(Arc::new(Mutex::new(copy)))
    }
}

impl StateStore for MemoryStore {
    fn load(&mut self) -> Result<Option<(AppliedTo, Vec<(RecordKey, Record)>)>, Unusable> {
        let memory = self.0.lock().expect("no holder of this lock panics");
        Ok(memory.applied.clone().map(|applied| {
            (applied, memory.records.iter().map(|(key, record)| (key.clone(), record.clone())).collect())
        }))
    }

    fn write(&mut self, changes: &[Change], applied: &AppliedTo) -> Result<(), Unusable> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        for (key, record) in changes {
            match record {
                Some(record) => memory.records.insert(key.clone(), record.clone()),
                None => memory.records.remove(key),
            };
        }
        memory.applied = Some(applied.clone());
        Ok(())
    }

    fn replace(&mut self, records: &[(RecordKey, Record)], applied: &AppliedTo) -> Result<(), Unusable> {
        let mut memory = self.0.lock().expect("no holder of this lock panics");
        memory.records = records.iter().cloned().collect();
        memory.applied = Some(applied.clone());
        Ok(())
    }

    fn make_durable(&mut self) -> Result<(), Unusable> {
        Ok(())
    }
}
