//! The materialised state in sled. The one file that names sled.
//!
//! Must stay true: one tree; keys are a kind byte and big-endian parts, so that order on disk is order in memory;
//! values stay below [`SLED_VALUE_BYTES_MAX`], because sled leaks larger ones; nothing relies on sled's own flush,
//! which on Linux is no fsync: the barrier is `flush` and our own `fdatasync`. sled keeps every page that a batch replaces
//! until the batch ends, so batches are small; what does not fit one is written while the store counts as empty. Any trouble at opening moves the
//! directory aside, and the state is rebuilt.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use leaseward_state::record::{Record, RecordKey};
use tracing::warn;

use crate::background;
use crate::codec::{self, Kind};
use crate::limits::{
    SLED_CACHE_BYTES, SLED_LOCK_RETRY, SLED_LOCK_WITHIN, SLED_VALUE_BYTES_MAX, STATE_RECORD_BYTES_MAX,
    STORE_BATCH_RECORDS,
};
use crate::store::{AppliedTo, Change, StateStore, Unusable};

const STORED: Kind = Kind { name: "state record", code: 0x20, version: 1, max: STATE_RECORD_BYTES_MAX };
const APPLIED: Kind = Kind { name: "applied marker", code: 0x21, version: 1, max: STATE_RECORD_BYTES_MAX };

/// The key of the applied marker: before every record.
const APPLIED_KEY: &[u8] = &[0];

/// What a record's values hold together.
type Stored = (RecordKey, Record);

/// The store.
pub struct SledStore {
    dir: PathBuf,
    /// Taken only when the store is dropped.
    db: Option<sled::Db>,
    file: Option<FileId>,
    /// How many values a record spans, where it is more than one: a lease with thousands of waiters.
    long: BTreeMap<Vec<u8>, u8>,
}

impl SledStore {
    /// Opens the store in `dir`. What cannot be opened is moved aside, and the store is empty.
    ///
    /// # Errors
    /// What the operating system says if even an empty store cannot be made, or if the disk is full: that is no
    /// damage, and what is moved aside at every start would only fill it further.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        remove_half_snapshots(dir)?;
        if let Some(db) = file_id(dir).and_then(|file| parked().remove(&file)) {
            return Ok(Self::with(dir, db));
        }
        match open_patiently(dir) {
            Ok(db) => Ok(Self::with(dir, db)),
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
            Err(why) => {
                warn!(%why, "the state store cannot be opened and is rebuilt");
                set_aside(dir)?;
                let db = open_guarded(dir)?;
                Ok(Self::with(dir, db))
            }
        }
    }

    fn with(dir: &Path, db: sled::Db) -> Self {
        Self { dir: dir.to_owned(), db: Some(db), file: file_id(dir), long: BTreeMap::new() }
    }

    fn db(&self) -> &sled::Db {
        self.db.as_ref().expect("it is taken when the store is dropped")
    }

    fn alone<T>(&self, change: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, Unusable> {
        let _alone = alone();
        change(self.db()).map_err(|error| Unusable(error.to_string()))
    }

    fn put(&mut self, batch: &mut sled::Batch, key: &RecordKey, record: Option<&Record>) -> Result<(), Unusable> {
        let name = key_bytes(key);
        let value = record.map(|record| codec::seal(STORED, &codec::encode(&(key, record))));
        let pieces: Vec<&[u8]> = value.iter().flat_map(|value| value.chunks(SLED_VALUE_BYTES_MAX)).collect();
        if pieces.len() > usize::from(PARTS_MAX) {
            return Err(Unusable(format!("{key:?} is too large")));
        }
        for (part, piece) in (0..).zip(&pieces) {
            batch.insert(part_key(&name, part), *piece);
        }
        let before = self.long.remove(&name).unwrap_or(1);
        for part in pieces.len() as u8..before {
            batch.remove(part_key(&name, part));
        }
        if pieces.len() > 1 {
            self.long.insert(name, pieces.len() as u8);
        }
        Ok(())
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        if let (Some(db), Some(file)) = (self.db.take(), self.file) {
            parked().insert(file, db);
        }
    }
}

/// The device and inode of a database's file: its name may be given to another one.
type FileId = (u64, u64);

fn file_id(dir: &Path) -> Option<FileId> {
    let found = fs::metadata(dir.join("db")).ok()?;
    Some((found.dev(), found.ino()))
}

/// Databases that nobody uses any more. They are never closed: closing flushes, and sled's flush may wait forever
/// for a part of its buffer that nobody writes out (seen where several nodes of one process stop and start under
/// load). Whoever opens the same file again in this process goes on with the same database.
fn parked() -> MutexGuard<'static, BTreeMap<FileId, sled::Db>> {
    static PARKED: Mutex<BTreeMap<FileId, sled::Db>> = Mutex::new(BTreeMap::new());
    PARKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One store of this process at a time changes or flushes: all databases of a process share one lock inside sled,
/// which a batch takes for writing and a flush for reading, and a flush needs sled's own thread, which reads too.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Parts of one record: four megabytes in pieces of thirty-two kilobytes.
const PARTS_MAX: u8 = 128;

fn part_key(name: &[u8], part: u8) -> Vec<u8> {
    let mut key = name.to_vec();
    key.push(part);
    key
}

fn key_bytes(key: &RecordKey) -> Vec<u8> {
    let mut out = Vec::new();
    let mut text = |kind: u8, parts: &[&str]| {
        out.push(kind);
        for part in parts {
            out.extend_from_slice(part.as_bytes());
            out.push(0);
        }
    };
    match key {
        RecordKey::Meta => text(1, &[]),
        RecordKey::Machine(name) => text(2, &[name.as_str()]),
        RecordKey::Session(id) => {
            text(3, &[]);
            out.extend_from_slice(&id.0.to_be_bytes());
        }
        RecordKey::Lease(name) => text(4, &[name.as_str()]),
        RecordKey::Server(name) => text(5, &[name.as_str()]),
        RecordKey::Set(name) => text(6, &[name.as_str()]),
        RecordKey::Version(name, number) => {
            text(7, &[name.as_str()]);
            out.extend_from_slice(&number.to_be_bytes());
        }
        RecordKey::Sync(set, machine) => text(8, &[set.as_str(), machine.as_str()]),
        RecordKey::Answer(key) => {
            text(9, &[]);
            out.extend_from_slice(&key.client.to_be_bytes());
            out.extend_from_slice(&key.sequence.to_be_bytes());
        }
        RecordKey::Policy => text(11, &[]),
        RecordKey::Program(session) => {
            text(12, &[]);
            out.extend_from_slice(&session.0.to_be_bytes());
        }
        RecordKey::Access => text(13, &[]),
        RecordKey::Ledger(revision, part) => {
            text(10, &[]);
            out.extend_from_slice(&revision.0.to_be_bytes());
            out.extend_from_slice(&part.to_be_bytes());
        }
    }
    out
}

impl StateStore for SledStore {
    fn load(&mut self) -> Result<Option<(AppliedTo, Vec<(RecordKey, Record)>)>, Unusable> {
        let unusable = |what: &dyn std::fmt::Display| Unusable(what.to_string());
        let Some(applied) = self.db().get(APPLIED_KEY).map_err(|error| unusable(&error))? else {
            // What a large change or a replacement left behind when it was cut short must not be mixed with what comes.
            if !self.db().is_empty() {
                self.alone(|db| db.clear())?;
                self.long.clear();
            }
            return Ok(None);
        };
        let applied = codec::open(APPLIED, &applied)
            .and_then(|bytes| codec::decode(APPLIED.name, bytes))
            .map_err(|error| unusable(&error))?;
        let mut records = Vec::new();
        let mut whole: Vec<u8> = Vec::new();
        let mut name: Vec<u8> = Vec::new();
        self.long.clear();
        let finish = |whole: &mut Vec<u8>, records: &mut Vec<_>| -> Result<(), Unusable> {
            if !whole.is_empty() {
                let stored: Stored = codec::open(STORED, whole)
                    .and_then(|bytes| codec::decode(STORED.name, bytes))
                    .map_err(|error| unusable(&error))?;
                records.push(stored);
                whole.clear();
            }
            Ok(())
        };
        for pair in self.db().range::<&[u8], _>(&[1_u8][..]..) {
            let (key, value) = pair.map_err(|error| unusable(&error))?;
            let (_, this) = key.split_last().ok_or_else(|| unusable(&"an empty key"))?;
            if this != name {
                finish(&mut whole, &mut records)?;
                name = this.to_vec();
            }
            let part = key[key.len() - 1];
            if part > 0 {
                self.long.insert(this.to_vec(), part + 1);
            }
            whole.extend_from_slice(&value);
        }
        finish(&mut whole, &mut records)?;
        Ok(Some((applied, records)))
    }

    fn write(&mut self, changes: &[Change], applied: &AppliedTo) -> Result<(), Unusable> {
        let is_large = changes.len() > STORE_BATCH_RECORDS;
        if is_large {
            // Without the marker the store counts as empty, so a crash in between costs a snapshot's reading.
            self.alone(|db| db.remove(APPLIED_KEY))?;
        }
        let mut pieces = changes.chunks(STORE_BATCH_RECORDS).peekable();
        let mut is_first = true;
        while is_first || pieces.peek().is_some() {
            is_first = false;
            let mut batch = sled::Batch::default();
            for (key, record) in pieces.next().into_iter().flatten() {
                self.put(&mut batch, key, record.as_ref())?;
            }
            if pieces.peek().is_none() {
                batch.insert(APPLIED_KEY, codec::seal(APPLIED, &codec::encode(applied)));
            }
            self.alone(|db| db.apply_batch(batch))?;
        }
        Ok(())
    }

    fn replace(&mut self, records: &[(RecordKey, Record)], applied: &AppliedTo) -> Result<(), Unusable> {
        // Without the marker the store counts as empty, so a crash in between leaves nothing half.
        self.alone(|db| db.remove(APPLIED_KEY))?;
        self.make_durable()?;
        self.alone(|db| db.clear())?;
        self.long.clear();
        for piece in records.chunks(STORE_BATCH_RECORDS) {
            let mut batch = sled::Batch::default();
            for (key, record) in piece {
                self.put(&mut batch, key, Some(record))?;
            }
            self.alone(|db| db.apply_batch(batch))?;
        }
        self.make_durable()?;
        self.alone(|db| db.insert(APPLIED_KEY, codec::seal(APPLIED, &codec::encode(applied))))?;
        self.make_durable()
    }

    fn make_durable(&mut self) -> Result<(), Unusable> {
        self.alone(|db| db.flush())?;
        // sled's flush is no fsync on Linux; this one is.
        File::open(self.dir.join("db")).and_then(|file| file.sync_data()).map_err(|error| Unusable(error.to_string()))
    }
}

/// A crash inside sled's own recovery leaves a file that its next recovery trusts and fails on.
fn remove_half_snapshots(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Waits for a former handle of this process to let go: sled's own threads end a little after it is dropped. Nobody
/// else can hold its lock, because the whole data directory is locked.
fn open_patiently(dir: &Path) -> io::Result<sled::Db> {
    let mut waited = Duration::ZERO;
    loop {
        match open_guarded(dir) {
            Err(error) if error.to_string().contains("could not acquire lock") && waited < SLED_LOCK_WITHIN => {
                sleep(SLED_LOCK_RETRY);
                waited += SLED_LOCK_RETRY;
            }
            outcome => return outcome,
        }
    }
}

fn open_guarded(dir: &Path) -> io::Result<sled::Db> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(SLED_CACHE_BYTES)
        .flush_every_ms(Some(500))
        .mode(sled::Mode::LowSpace);
    // On a thread of its own, because sled's own threads inherit its priority. A panic at opening is one of its ways
    // to say that it cannot.
    let open = move || {
        background::yield_to_commits();
        let _alone = alone();
        config.open()
    };
    match std::thread::Builder::new().name("state-open".into()).spawn(open)?.join() {
        Ok(Ok(db)) => Ok(db),
        // As the operating system said it, with its kind.
        Ok(Err(sled::Error::Io(error))) => Err(error),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::other("it panicked at opening")),
    }
}

fn set_aside(dir: &Path) -> io::Result<()> {
    let mut number = 0;
    loop {
        let aside = dir.with_extension(format!("bad-{number}"));
        if !aside.exists() {
            fs::rename(dir, aside)?;
            return fs::create_dir_all(dir);
        }
        number += 1;
    }
}
