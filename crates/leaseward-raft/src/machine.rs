//! openraft's state machine: applies entries to the state, publishes it, and keeps it on disk in the background.
//!
//! Must stay true: exactly one answer per entry; the state is published only after the whole apply call, so readers
//! see no half of a batch; the store may lag behind, for commits go first, and is caught up by replaying the log.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use leaseward_state::{Entry, Revision, State, Term};
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageError, StorageIOError,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use crate::background;
use crate::limits::{STORE_BACKLOG_RECORDS_MAX, STORE_BATCH_RECORDS, STORE_GATHERS_FOR};
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::store::{AppliedTo, Change, StateStore};
use crate::stored::{LogPosition, StoredMembership};
use crate::types::{Answers, NodeId, NodeInfo, TypeConfig};

type Failure = StorageError<NodeId>;
type RaftEntry = openraft::Entry<TypeConfig>;

/// The state as of an entry.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The state. Shared: cloning it costs nothing.
    pub state: Arc<State>,
    /// How far the log is applied in it.
    pub applied: AppliedTo,
    /// The newest term whose first entry this process has applied, and the revision before that entry.
    pub began: Option<(Term, Revision)>,
}

/// openraft's state machine on our state.
pub struct Machine {
    state: State,
    applied: AppliedTo,
    began: Option<(Term, Revision)>,
    publish: watch::Sender<Published>,
    keep: Sender<Keep>,
    snapshots: Snapshots,
    current: Option<(SnapshotMeta<NodeId, NodeInfo>, SnapshotFile)>,
}

enum Keep {
    Changes(Vec<Change>, AppliedTo),
    Replace(Box<State>, AppliedTo),
}

impl Machine {
    /// Returns a machine that goes on from `state`, which is applied as far as `applied` says; what it publishes;
    /// and the thread that keeps the state on disk, which ends after the machine. A simulated host has none.
    pub fn new(
        state: State,
        applied: AppliedTo,
        snapshots: Snapshots,
        current: Option<(AppliedTo, SnapshotFile)>,
        store: Box<dyn StateStore>,
    ) -> (Self, watch::Receiver<Published>, Option<JoinHandle<()>>) {
        let (publish, published) =
            watch::channel(Published { state: Arc::new(state.clone()), applied: applied.clone(), began: None });
        let (keep, keeper) = start_keeper(store);
        let current = current.map(|(applied, file)| (meta(&applied), file));
        (Self { state, applied, began: None, publish, keep, snapshots, current }, published, keeper)
    }

    fn publish(&self) {
        let state = Arc::new(self.state.clone());
        self.publish.send_replace(Published { state, applied: self.applied.clone(), began: self.began });
    }

    fn apply_one(&mut self, entry: RaftEntry, changes: &mut Vec<Change>) -> Answers {
        let position = LogPosition::from(entry.log_id);
        if self.applied.position.is_none_or(|before| before.term < position.term) {
            self.began = Some((Term(position.term), self.state.revision()));
        }
        self.applied.position = Some(position);
        match entry.payload {
            EntryPayload::Blank => Answers::default(),
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership { at: Some(position), membership: (&membership).into() };
                info!(voters = ?self.applied.membership.membership.voters, "membership changed");
                Answers::default()
            }
            EntryPayload::Normal(batch) => {
                let mut replies = Vec::with_capacity(batch.requests.len());
                for request in batch.requests {
                    let revision = self.state.revision().next();
                    let (term, at, elapsed) = (Term(position.term), batch.at, batch.elapsed);
                    let entry = Entry { revision, term, at, elapsed, request };
                    let applied = self.state.apply(&entry);
                    for event in &applied.events {
                        debug!(%revision, ?event, "applied");
                    }
                    replies.push((applied.revision, applied.reply));
                }
                let touched = self.state.take_touched();
                changes.extend(touched.into_iter().map(|key| {
                    let record = self.state.record(&key);
                    (key, record)
                }));
                Answers { replies }
            }
        }
    }
}

fn meta(applied: &AppliedTo) -> SnapshotMeta<NodeId, NodeInfo> {
    SnapshotMeta {
        last_log_id: applied.position.map(Into::into),
        last_membership: applied.membership.clone().into(),
        snapshot_id: applied
            .position
            .map_or_else(|| "0-0".to_owned(), |position| format!("{}-{}", position.term, position.index)),
    }
}

/// Starts the thread that keeps the state on disk. If the store fails it stops writing: the next start rebuilds.
fn start_keeper(mut store: Box<dyn StateStore>) -> (Sender<Keep>, Option<JoinHandle<()>>) {
    let (keep, work) = channel();
    #[cfg(feature = "simulation")]
    if crate::simulation::host().is_some() {
        tokio::spawn(keep_simulated(store, work));
        return (keep, None);
    }
    let keeper = std::thread::Builder::new()
        .name("state-store".into())
        .spawn(move || {
            background::yield_to_commits();
            let mut backlog = Backlog::default();
            while receive(&work, &mut backlog) {
                let outcome = match backlog.take() {
                    Some(Keep::Changes(changes, applied)) => store.write(&changes, &applied),
                    Some(Keep::Replace(state, applied)) => {
                        let records: Vec<_> = state.records().collect();
                        store.replace(&records, &applied)
                    }
                    None => Ok(()),
                };
                if let Err(error) = outcome {
                    error!(%error, "the state store stopped; it is rebuilt at the next start");
                    return;
                }
            }
        })
        .expect("a thread can be started");
    (keep, Some(keeper))
}

/// Gathers the work of a moment, or a batch of it. Returns whether there is any; if not, the machine is gone.
fn receive(work: &Receiver<Keep>, backlog: &mut Backlog) -> bool {
    let mut until = Instant::now();
    if backlog.is_empty() {
        let Ok(first) = work.recv() else { return false };
        backlog.push(first);
        until = Instant::now() + STORE_GATHERS_FOR;
    }
    while !backlog.has_batch() {
        match work.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(job) => backlog.push(job),
            Err(_) => break,
        }
    }
    // How much there is decides how much is written at once.
    work.try_iter().for_each(|job| backlog.push(job));
    true
}

/// What waits for the store, oldest first.
#[derive(Default)]
struct Backlog {
    replace: Option<(Box<State>, AppliedTo)>,
    changes: VecDeque<(Vec<Change>, AppliedTo)>,
    records: usize,
}

impl Backlog {
    fn is_empty(&self) -> bool {
        self.replace.is_none() && self.changes.is_empty()
    }

    fn has_batch(&self) -> bool {
        self.replace.is_some() || self.records >= STORE_BATCH_RECORDS
    }

    fn push(&mut self, job: Keep) {
        match job {
            Keep::Changes(changes, applied) => {
                self.records += changes.len();
                self.changes.push_back((changes, applied));
            }
            // The whole state holds everything that came before it.
            Keep::Replace(state, applied) => {
                *self = Self { replace: Some((state, applied)), ..Self::default() };
            }
        }
    }

    /// Returns what is written next: a batch of whole entries; all that waits, if the store does not keep up. Later changes
    /// win, so that its backlog never outgrows the state itself: an event that is kept and dropped again costs nothing.
    fn take(&mut self) -> Option<Keep> {
        if let Some((state, applied)) = self.replace.take() {
            return Some(Keep::Replace(state, applied));
        }
        let all = self.records > STORE_BACKLOG_RECORDS_MAX;
        let (mut merged, mut to) = (BTreeMap::new(), None);
        let mut taken = 0;
        while (all || taken < STORE_BATCH_RECORDS)
            && let Some((changes, applied)) = self.changes.pop_front()
        {
            taken += changes.len();
            merged.extend(changes);
            to = Some(applied);
        }
        self.records -= taken;
        to.map(|applied| Keep::Changes(merged.into_iter().collect(), applied))
    }
}

/// The keeper of a simulated host: as late as the thread may be.
#[cfg(feature = "simulation")]
async fn keep_simulated(mut store: Box<dyn StateStore>, work: Receiver<Keep>) {
    loop {
        tokio::time::sleep(STORE_GATHERS_FOR).await;
        loop {
            let outcome = match work.try_recv() {
                Ok(Keep::Changes(changes, applied)) => store.write(&changes, &applied),
                Ok(Keep::Replace(state, applied)) => store.replace(&state.records().collect::<Vec<_>>(), &applied),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            };
            if let Err(error) = outcome {
                error!(%error, "the state store stopped; it is rebuilt at the next start");
                return;
            }
        }
    }
}

fn failure(verb: ErrorVerb, error: &(impl std::error::Error + 'static)) -> Failure {
    StorageError::IO { source: StorageIOError::new(ErrorSubject::StateMachine, verb, AnyError::new(error)) }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeId>>, openraft::StoredMembership<NodeId, NodeInfo>), Failure> {
        Ok((self.applied.position.map(Into::into), self.applied.membership.clone().into()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, Failure>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes = Vec::new();
        let answers = entries.into_iter().map(|entry| self.apply_one(entry, &mut changes)).collect();
        self.publish();
        self.keep.send(Keep::Changes(changes, self.applied.clone())).ok();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { state: self.state.clone(), applied: self.applied.clone(), snapshots: self.snapshots.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, Failure> {
        Ok(Box::new(SnapshotFile { path: self.snapshots.incoming("core"), size: 0 }))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, NodeInfo>,
        snapshot: Box<SnapshotFile>,
    ) -> Result<(), Failure> {
        let (head, state) = self.snapshots.read(&snapshot.path).map_err(|error| failure(ErrorVerb::Read, &error))?;
        let file =
            self.snapshots.adopt(&snapshot.path, &head.applied).map_err(|error| failure(ErrorVerb::Write, &error))?;
        assert!(
            state.revision() >= self.state.revision() || self.state.revision() == Revision(0),
            "a snapshot never takes the state back"
        );
        info!(revision = %state.revision(), "installed a snapshot");
        self.state = state;
        self.applied = head.applied;
        self.began = None;
        self.current = Some((meta.clone(), file));
        self.publish();
        self.keep.send(Keep::Replace(Box::new(self.state.clone()), self.applied.clone())).ok();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        // The builder may have made a newer one meanwhile.
        if let Ok(Some((file, head))) = self.snapshots.newest_head() {
            let meta = meta(&head.applied);
            self.current = Some((meta, file));
        }
        Ok(self.current.as_ref().map(|(meta, file)| Snapshot { meta: meta.clone(), snapshot: Box::new(file.clone()) }))
    }
}

/// For a snapshot that found no room, room is looked for each so often.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(1);

/// Writes a snapshot of one moment while the state goes on.
pub struct Builder {
    state: State,
    applied: AppliedTo,
    snapshots: Snapshots,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        let mut said = false;
        let file = loop {
            let (state, applied, snapshots) = (self.state.clone(), self.applied.clone(), self.snapshots.clone());
            match background::blocking(move || snapshots.write(&state, &applied)).await {
                Ok(Ok(file)) => break file,
                // The core would end over it. It is no worse off without: the log stays, and goes once there is room.
                Ok(Err(error)) if error.is_for_room() => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(%error, "LW0605: no room for a snapshot; it waits until there is");
                    }
                    sleep(SNAPSHOT_RETRY).await;
                }
                Ok(Err(error)) => return Err(failure(ErrorVerb::Write, &error)),
                Err(error) => return Err(failure(ErrorVerb::Write, &error)),
            }
        };
        info!(revision = %self.state.revision(), bytes = file.size, "wrote a snapshot");
        Ok(Snapshot { meta: meta(&self.applied), snapshot: Box::new(file) })
    }
}

#[cfg(test)]
mod tests {
    use leaseward_state::record::{Record, RecordKey};

    use super::*;

    #[tokio::test]
    async fn a_snapshot_that_finds_no_room_waits_for_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let snapshots = Snapshots::open(dir.path(), 5).expect("opened").without_room_once();
        let mut builder = Builder { state: State::default(), applied: at(3), snapshots: snapshots.clone() };
        let built = builder.build_snapshot().await.expect("built once there is room");
        assert_eq!(built.meta.last_log_id.map(|at| at.index), Some(3));
        assert_eq!(snapshots.newest().expect("readable").expect("there").1.applied, at(3));
    }

    /// The changes of one entry: so many events from `first` on, gone or not.
    fn job(index: u64, first: u64, records: usize) -> Keep {
        let changes = (first..).take(records).map(|n| (RecordKey::Ledger(Revision(n), 0), None::<Record>)).collect();
        Keep::Changes(changes, at(index))
    }

    fn at(index: u64) -> AppliedTo {
        AppliedTo { position: Some(LogPosition { term: 1, node: 1, index }), ..AppliedTo::default() }
    }

    /// Takes everything. Returns up to which entry, with how many records, each batch went.
    fn batches(backlog: &mut Backlog) -> Vec<(u64, usize)> {
        std::iter::from_fn(|| backlog.take())
            .map(|job| match job {
                Keep::Changes(changes, to) => (to.position.expect("it has one").index, changes.len()),
                Keep::Replace(_, to) => (to.position.expect("it has one").index, usize::MAX),
            })
            .collect()
    }

    #[test]
    fn batches_are_small_and_of_whole_entries() {
        let mut backlog = Backlog::default();
        let each = STORE_BATCH_RECORDS / 2 + 1;
        for index in 0..4 {
            backlog.push(job(index, index * 1_000, each));
        }
        assert_eq!(batches(&mut backlog), [(1, 2 * each), (3, 2 * each)]);
        assert!(backlog.is_empty());
        assert_eq!(backlog.records, 0);
    }

    #[test]
    fn a_store_that_does_not_keep_up_writes_each_record_once() {
        let mut backlog = Backlog::default();
        for index in 0..=(STORE_BACKLOG_RECORDS_MAX / 100) as u64 {
            backlog.push(job(index, 0, 100));
        }
        let last = (STORE_BACKLOG_RECORDS_MAX / 100) as u64;
        assert_eq!(batches(&mut backlog), [(last, 100)]);
    }

    #[test]
    fn a_whole_state_takes_the_place_of_what_came_before_it() {
        let mut backlog = Backlog::default();
        backlog.push(job(1, 0, 10));
        backlog.push(Keep::Replace(Box::default(), at(7)));
        backlog.push(job(8, 0, 3));
        assert_eq!(batches(&mut backlog), [(7, usize::MAX), (8, 3)]);
    }

    #[test]
    fn what_waits_when_the_machine_goes_is_written() {
        let (keep, work) = channel();
        let mut backlog = Backlog::default();
        for index in 0..3 {
            keep.send(job(index, index * 10_000, STORE_BATCH_RECORDS)).expect("it is heard");
        }
        drop(keep);
        let mut taken = Vec::new();
        while receive(&work, &mut backlog) {
            taken.extend(backlog.take());
        }
        assert_eq!(taken.len(), 3);
    }
}
