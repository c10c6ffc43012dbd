//! openraft's log on our own log: an index in memory, recent entries in memory, the rest read back from segments.
//!
//! Must stay true: openraft is told that an entry is flushed only by the log's thread, after its sync. What is
//! appended can be read at once. [`Promise`] is raised before a vote is written, so that whoever reads it never
//! confirms an older term after a newer vote may have been given (rule R2). The last word to a leader is noted before
//! an entry is written, and before a confirmation that the promise allows (rule R4).

#![expect(clippy::result_large_err, reason = "openraft's error type, in openraft's signatures")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use leaseward_state::SessionId;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::codec;
use crate::last_word::LastWord;
use crate::limits::{APPEND_BYTES_MAX, ENTRY_CACHE_BYTES};
use crate::stored::{Entry, LogPosition, Vote};
use crate::types::{NodeId, TypeConfig};
use crate::wal::{Place, Record, RecordKind, Recovered, Writer};

type Failure = StorageError<NodeId>;
type RaftEntry = openraft::Entry<TypeConfig>;

/// The newest vote that this node has given or is about to give.
#[derive(Debug, Clone, Default)]
pub struct Promise(Arc<Mutex<Option<Vote>>>);

impl Promise {
    /// Returns whether this node has given no vote, and is giving none, in a later term than `vote`, or to another
    /// leader in the same term.
    #[must_use]
    pub fn allows(&self, vote: &Vote) -> bool {
        let promised = self.0.lock().expect("no holder of this lock panics");
        is_allowed(*promised, vote)
    }

    /// As [`Promise::allows`]; if it does, the word is given before a newer vote can be promised, for the sessions that
    /// are renewed ([`LastWord::give`]).
    #[must_use]
    pub fn confirms(&self, vote: &Vote, word: &LastWord, renewed: Option<&[SessionId]>) -> bool {
        let promised = self.0.lock().expect("no holder of this lock panics");
        let allowed = is_allowed(*promised, vote);
        if allowed {
            word.give(renewed);
        }
        allowed
    }

    fn raise(&self, vote: Vote) {
        let mut promised = self.0.lock().expect("no holder of this lock panics");
        if promised.is_none_or(|given| (given.term, given.node) < (vote.term, vote.node)) {
            *promised = Some(vote);
        }
    }
}

fn is_allowed(promised: Option<Vote>, vote: &Vote) -> bool {
    promised.is_none_or(|given| (given.term, given.node) <= (vote.term, vote.node))
}

struct Slot {
    position: LogPosition,
    /// Distinguishes this entry from one that stood at the same index before.
    stamp: u64,
    bytes: Option<Arc<Vec<u8>>>,
    place: Option<Place>,
}

impl Slot {
    /// Returns the length of its encoded entry, in bytes.
    fn size(&self) -> usize {
        self.bytes.as_ref().map_or_else(|| self.place.map_or(0, |place| place.length as usize), |bytes| bytes.len())
    }
}

#[derive(Default)]
struct Index {
    slots: BTreeMap<u64, Slot>,
    purged: Option<LogPosition>,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    cached: usize,
    appended: u64,
    next_stamp: u64,
    /// When the oldest entry came that is not on the disk yet. The core appends again only after it is.
    waits_since: Option<Instant>,
}

/// The log, shared by openraft's core and its readers.
#[derive(Clone)]
pub struct LogStore {
    writer: Arc<Writer>,
    index: Arc<Mutex<Index>>,
    promise: Promise,
    word: LastWord,
}

impl LogStore {
    /// Returns the log that was recovered, written on by `writer`.
    #[must_use]
    pub fn new(writer: Writer, recovered: Recovered) -> Self {
        let promise = Promise::default();
        if let Some(vote) = recovered.vote {
            promise.raise(vote);
        }
        let slots = recovered
            .entries
            .into_iter()
            .map(|(index, (position, place))| (index, Slot { position, stamp: 0, bytes: None, place: Some(place) }))
            .collect();
        let index = Index {
            slots,
            purged: recovered.purged,
            vote: recovered.vote,
            committed: recovered.committed,
            cached: 0,
            appended: 0,
            next_stamp: 1,
            waits_since: None,
        };
        Self { writer: Arc::new(writer), index: Arc::new(Mutex::new(index)), promise, word: LastWord::default() }
    }

    /// Returns the log, with the last word to a leader kept by the caller.
    #[must_use]
    pub fn with_word(self, word: LastWord) -> Self {
        Self { word, ..self }
    }

    /// Returns when this process last gave its word to a leader.
    #[must_use]
    pub fn word(&self) -> &LastWord {
        &self.word
    }

    /// Returns the newest vote that this node has given or is about to give.
    #[must_use]
    pub fn promise(&self) -> Promise {
        self.promise.clone()
    }

    /// Returns for how long entries have been waiting for the disk; zero if none wait.
    #[must_use]
    pub fn waits_for_disk(&self) -> Duration {
        self.lock().waits_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns the log's thread.
    #[must_use]
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// Returns the bytes of all entries appended since this process began.
    #[must_use]
    pub fn appended_bytes(&self) -> u64 {
        self.lock().appended
    }

    /// Returns the index up to which entries may go so that the rest has at most `bytes` bytes.
    #[must_use]
    pub fn index_before(&self, bytes: u64) -> Option<u64> {
        let index = self.lock();
        let mut kept = 0;
        for (at, slot) in index.slots.iter().rev() {
            kept += slot.size() as u64;
            if kept > bytes {
                return Some(*at);
            }
        }
        None
    }

    /// Returns the bytes of the entries behind `position`. Looks at each of them.
    #[must_use]
    pub fn bytes_after(&self, position: u64) -> u64 {
        self.lock().slots.range(position + 1..).map(|(_, slot)| slot.size() as u64).sum()
    }

    /// Returns the position of the last entry, or of the last purged one.
    #[must_use]
    pub fn last(&self) -> Option<LogPosition> {
        let index = self.lock();
        index.slots.last_key_value().map(|(_, slot)| slot.position).or(index.purged)
    }

    /// Has the log go on after a snapshot, durably. If it does not hold the last entry that the snapshot covers, its own entries are
    /// others than those that were committed, or end before: none of them counts.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn begin_after(&self, position: LogPosition) -> Result<(), Failure> {
        let (holds, last) = {
            let index = self.lock();
            let holds = index.slots.get(&position.index).is_some_and(|slot| slot.position == position);
            let covered = index.purged.is_some_and(|purged| purged.index >= position.index);
            (holds || covered, index.slots.last_key_value().map(|(last, _)| *last))
        };
        if holds {
            return Ok(());
        }
        let mut log = self.clone();
        let after = LogId::from(LogPosition { index: position.index + 1, ..position });
        if last > Some(position.index) {
            log.truncate(after).await?;
        }
        log.purge(position.into()).await
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().expect("no holder of this lock panics")
    }

    async fn write_and_wait(&self, record: Record) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.writer.write(
            vec![record],
            Box::new(move |outcome| {
                done.send(outcome.map(drop)).ok();
            }),
        );
        wait.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }

    fn read(&self, range: (Bound<u64>, Bound<u64>), max_bytes: usize) -> Result<Vec<RaftEntry>, Failure> {
        let mut wanted = Vec::new();
        {
            let index = self.lock();
            let mut total = 0;
            for slot in index.slots.range(range).map(|(_, slot)| slot) {
                total += slot.size();
                if total > max_bytes && !wanted.is_empty() {
                    break;
                }
                wanted.push((slot.bytes.clone(), slot.place));
            }
        }
        wanted.into_iter().map(|(bytes, place)| self.load(bytes, place)).collect()
    }

    fn load(&self, bytes: Option<Arc<Vec<u8>>>, place: Option<Place>) -> Result<RaftEntry, Failure> {
        let read_failed = |error: io::Error| failure(ErrorSubject::Logs, ErrorVerb::Read, &error);
        let bytes = match (bytes, place) {
            (Some(bytes), _) => bytes,
            (None, Some(place)) => {
                let file = self
                    .writer
                    .file(place.segment)
                    .ok_or_else(|| read_failed(io::Error::other(format!("segment {} is gone", place.segment))))?;
                let mut bytes = vec![0; place.length as usize];
                file.read_at(&mut bytes, place.offset).map_err(read_failed)?;
                Arc::new(bytes)
            }
            (None, None) => return Err(read_failed(io::Error::other("an entry has neither bytes nor a place"))),
        };
        let entry: Entry =
            codec::decode("entry", &bytes).map_err(|error| read_failed(io::Error::other(error.to_string())))?;
        Ok(entry.into())
    }
}

fn failure(subject: ErrorSubject<NodeId>, verb: ErrorVerb, error: &(impl std::error::Error + 'static)) -> Failure {
    StorageError::IO { source: StorageIOError::new(subject, verb, AnyError::new(error)) }
}

impl Index {
    fn insert(&mut self, position: LogPosition, bytes: Vec<u8>) -> (u64, u64) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.cached += bytes.len();
        self.appended += bytes.len() as u64;
        self.slots.insert(position.index, Slot { position, stamp, bytes: Some(Arc::new(bytes)), place: None });
        (position.index, stamp)
    }

    fn placed(&mut self, index: u64, stamp: u64, place: Place) {
        if let Some(slot) = self.slots.get_mut(&index)
            && slot.stamp == stamp
        {
            slot.place = Some(place);
        }
    }

    /// Forgets the bytes of the oldest entries that can be read back.
    fn shrink(&mut self) {
        if self.cached <= ENTRY_CACHE_BYTES {
            return;
        }
        for slot in self.slots.values_mut() {
            if self.cached <= ENTRY_CACHE_BYTES / 2 {
                break;
            }
            if slot.place.is_some()
                && let Some(bytes) = slot.bytes.take()
            {
                self.cached -= bytes.len();
            }
        }
    }

    fn removed(&mut self, removed: &BTreeMap<u64, Slot>) {
        let bytes: usize = removed.values().filter_map(|slot| slot.bytes.as_ref()).map(|bytes| bytes.len()).sum();
        self.cached -= bytes;
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<RaftEntry>, Failure> {
        self.read((range.start_bound().cloned(), range.end_bound().cloned()), usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, Failure> {
        self.read((Bound::Included(start), Bound::Excluded(end)), APPEND_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        let index = self.lock();
        let purged: Option<LogId<NodeId>> = index.purged.map(Into::into);
        let last = index.slots.last_key_value().map(|(_, slot)| slot.position.into());
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &openraft::Vote<NodeId>) -> Result<(), Failure> {
        let vote = Vote::from(*vote);
        self.promise.raise(vote);
        self.write_and_wait(Record::new(RecordKind::Vote, codec::encode(&vote)))
            .await
            .map_err(|error| failure(ErrorSubject::Vote, ErrorVerb::Write, &error))?;
        self.lock().vote = Some(vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<openraft::Vote<NodeId>>, Failure> {
        Ok(self.lock().vote.map(Into::into))
    }

    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<(), Failure> {
        let committed: Option<LogPosition> = committed.map(Into::into);
        self.lock().committed = committed;
        self.writer.write_lazily(Record::new(RecordKind::Committed, codec::encode(&committed)));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>, Failure> {
        Ok(self.lock().committed.map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().map(|entry| Entry::from(&entry)).collect();
        // Rule R4: before anybody can count it. The core promises a newer vote only after this call.
        self.word.give_for(&entries);
        let mut records = Vec::new();
        let mut stamps = Vec::new();
        {
            let mut index = self.lock();
            for entry in &entries {
                let bytes = codec::encode(entry);
                stamps.push(index.insert(entry.position, bytes.clone()));
                records.push(Record::new(RecordKind::Entry, bytes));
            }
            index.shrink();
            index.waits_since.get_or_insert_with(Instant::now);
        }
        let shared = Arc::clone(&self.index);
        let then = move |outcome: io::Result<Vec<Place>>| {
            let mut index = shared.lock().expect("no holder of this lock panics");
            index.waits_since = None;
            let outcome = outcome.map(|places| {
                for ((at, stamp), place) in stamps.into_iter().zip(places) {
                    index.placed(at, stamp, place);
                }
            });
            drop(index);
            callback.log_io_completed(outcome);
        };
        self.writer.write(records, Box::new(then));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), Failure> {
        {
            let mut index = self.lock();
            let removed = index.slots.split_off(&log_id.index);
            index.removed(&removed);
        }
        self.write_and_wait(Record::new(RecordKind::TruncateFrom, codec::encode(&log_id.index)))
            .await
            .map_err(|error| failure(ErrorSubject::Logs, ErrorVerb::Delete, &error))
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), Failure> {
        let position = LogPosition::from(log_id);
        {
            let mut index = self.lock();
            let kept = index.slots.split_off(&(position.index + 1));
            let removed = std::mem::replace(&mut index.slots, kept);
            index.removed(&removed);
            index.purged = Some(position);
        }
        self.write_and_wait(Record::new(RecordKind::PurgeTo, codec::encode(&position)))
            .await
            .map_err(|error| failure(ErrorSubject::Logs, ErrorVerb::Delete, &error))?;
        self.writer.purged();
        Ok(())
    }
}
