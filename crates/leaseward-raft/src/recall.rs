//! What nodes remember of each other, so that one whose disk went back in time is recognised before it votes.
//!
//! Must stay true: a node that was started again neither votes nor acknowledges until, together with itself, a quorum
//! has answered what it remembers; if anybody remembers more than its log holds, it stays out until an operator
//! replaces it. Nobody is suspected falsely: what is remembered of a node is only what it acknowledged as durable and
//! what was committed besides, so no later leader takes it out of its log again.
//! A second process of a node is a clone only if the first one was heard beside it: an open connection proves nothing,
//! because a machine that lost power closes none. Until then the second one asks again.
//! What was acknowledged is carried from the leader to everybody with each confirmation round, and kept on disk now and then and at a
//! clean stop: what the disk has is a lower bound, and a lost or damaged file only means that less is noticed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use openraft::LogId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use crate::codec::{self, CodecError, Kind};
use crate::identity::write_durably;
use crate::limits::{ON_ITS_WAY_MAX, RECALL_BYTES_MAX, SILENT_MAX, SPEAK_EACH};
use crate::types::{NodeId, Raft};

const RECALL: Kind = Kind { name: "recall", code: 0x11, version: 1, max: RECALL_BYTES_MAX };

/// The file in the data directory.
const FILE: &str = "recall";

/// What is kept of it on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The cluster whose nodes they are.
    pub cluster: u128,
    /// The greatest committed index that each node is known to have acknowledged.
    pub acknowledged: BTreeMap<NodeId, u64>,
}

impl Remembered {
    fn read(dir: &Path) -> io::Result<Option<Self>> {
        let bytes = match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = codec::open(RECALL, &bytes).and_then(|bytes| codec::decode(RECALL.name, bytes));
        read.map(Some).map_err(|error: CodecError| io::Error::other(error.to_string()))
    }
}

/// Where it is kept, and what was kept last.
#[derive(Debug)]
struct Kept {
    dir: PathBuf,
    last: Remembered,
}

/// What becomes of a process that says which node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It is that node from now on.
    Welcome {
        /// The process whose place it takes: nobody talks to that one any more.
        after: Option<u128>,
    },
    /// Another process was that node a moment ago. Who asks again learns whether it lives.
    Unclear,
    /// Another process is that node, and lives.
    Clone,
}

/// The process that speaks for a node.
#[derive(Debug)]
struct Speaker {
    instance: u128,
    connections: usize,
    heard: Instant,
    /// Another process wants its place.
    challenge: Option<Challenge>,
}

#[derive(Debug)]
struct Challenge {
    by: u128,
    since: Instant,
    /// When the speaker was heard first after what may have been on its way.
    answered: Option<Instant>,
}

impl Speaker {
    fn new(instance: u128, now: Instant) -> Self {
        Self { instance, connections: 0, heard: now, challenge: None }
    }

    fn hear(&mut self, now: Instant) {
        self.heard = now;
        if let Some(challenge) = &mut self.challenge
            && now >= challenge.since + ON_ITS_WAY_MAX
        {
            challenge.answered.get_or_insert(now);
        }
    }

    /// Returns whether it lives beside another process, if that is known. Two words with time between them are needed:
    /// a burst may be what was left unread.
    fn lives_beside(&mut self, other: u128, now: Instant) -> Option<bool> {
        if self.connections == 0 || now.saturating_duration_since(self.heard) >= SILENT_MAX {
            return Some(false);
        }
        if self.challenge.as_ref().is_none_or(|challenge| challenge.by != other) {
            self.challenge = Some(Challenge { by: other, since: now, answered: None });
        }
        let answered = self.challenge.as_ref().and_then(|challenge| challenge.answered);
        answered.filter(|first| self.heard >= *first + SPEAK_EACH / 2).map(|_| true)
    }
}

/// What this node remembers.
#[derive(Debug, Default)]
pub struct Memory {
    acknowledged: Mutex<BTreeMap<NodeId, u64>>,
    speakers: Mutex<BTreeMap<NodeId, Speaker>>,
    /// `None` if nothing is kept, or no more: the directory is somebody else's then.
    kept: Mutex<Option<Kept>>,
}

impl Memory {
    /// Returns what a data directory remembers. It may be used by this process until [`Memory::close`].
    #[must_use]
    pub fn open(dir: &Path, cluster: u128) -> Self {
        let nothing = Remembered { cluster, acknowledged: BTreeMap::new() };
        let last = match Remembered::read(dir) {
            Ok(Some(last)) if last.cluster == cluster => last,
            Ok(_) => nothing,
            Err(error) => {
                warn!(%error, "what the other nodes acknowledged is forgotten");
                nothing
            }
        };
        Self {
            acknowledged: Mutex::new(last.acknowledged.clone()),
            speakers: Mutex::default(),
            kept: Mutex::new(Some(Kept { dir: dir.to_owned(), last })),
        }
    }

    /// Keeps on disk what changed since it was kept last. Blocks on the disk.
    ///
    /// # Errors
    /// What the operating system says; it may be tried again.
    pub fn keep(&self) -> io::Result<()> {
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        let Some(kept) = kept.as_mut() else { return Ok(()) };
        let acknowledged = self.acknowledged.lock().expect("no holder of this lock panics").clone();
        if acknowledged != kept.last.acknowledged {
            let now = Remembered { cluster: kept.last.cluster, acknowledged };
            write_durably(&kept.dir, FILE, &codec::seal(RECALL, &codec::encode(&now)))?;
            kept.last = now;
        }
        Ok(())
    }

    /// Keeps it for the last time: afterwards the directory is not touched any more. Blocks on the disk.
    pub fn close(&self) {
        if let Err(error) = self.keep() {
            warn!(%error, "what the others acknowledged is not kept on disk");
        }
        self.kept.lock().expect("no holder of this lock panics").take();
    }

    /// Learns what the leader knows.
    pub fn learn(&self, acknowledged: &[(NodeId, u64)]) {
        let mut known = self.acknowledged.lock().expect("no holder of this lock panics");
        for (node, index) in acknowledged {
            let entry = known.entry(*node).or_default();
            *entry = (*entry).max(*index);
        }
    }

    /// Returns the greatest index that a node is known to have acknowledged.
    #[must_use]
    pub fn acknowledged(&self, node: NodeId) -> Option<u64> {
        self.acknowledged.lock().expect("no holder of this lock panics").get(&node).copied()
    }

    /// Returns what the leader's replication knows, as far as it is committed, and learns it.
    pub(crate) fn as_leader(&self, raft: &Raft) -> Vec<(NodeId, u64)> {
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        let Some(replication) = &metrics.replication else { return Vec::new() };
        let acknowledged: Vec<_> = committed(replication.iter(), metrics.last_applied.map_or(0, |at| at.index));
        self.learn(&acknowledged);
        acknowledged
    }

    /// Notes that a process wants to speak for a node. Whoever is welcome has one connection more.
    pub fn arrive(&self, node: NodeId, instance: u128, now: Instant) -> Arrival {
        let mut speakers = self.speakers.lock().expect("no holder of this lock panics");
        let speaker = speakers.entry(node).or_insert_with(|| Speaker::new(instance, now));
        let mut after = None;
        if speaker.instance != instance {
            match speaker.lives_beside(instance, now) {
                Some(true) => return Arrival::Clone,
                None => return Arrival::Unclear,
                Some(false) => after = Some(std::mem::replace(speaker, Speaker::new(instance, now)).instance),
            }
        }
        speaker.connections += 1;
        speaker.hear(now);
        Arrival::Welcome { after }
    }

    /// Notes that a process said something. Returns false if another one has taken its place.
    pub fn hear(&self, node: NodeId, instance: u128, now: Instant) -> bool {
        let mut speakers = self.speakers.lock().expect("no holder of this lock panics");
        let speaker = speakers.get_mut(&node).filter(|speaker| speaker.instance == instance);
        speaker.map(|speaker| speaker.hear(now)).is_some()
    }

    /// Notes that a connection of that process is over.
    pub fn leave(&self, node: NodeId, instance: u128) {
        let mut speakers = self.speakers.lock().expect("no holder of this lock panics");
        if let Some(speaker) = speakers.get_mut(&node).filter(|speaker| speaker.instance == instance) {
            speaker.connections = speaker.connections.saturating_sub(1);
        }
    }
}

/// What a minority acknowledged may be taken back by the next leader: only what is committed stays for good.
fn committed<'a>(
    replication: impl Iterator<Item = (&'a NodeId, &'a Option<LogId<NodeId>>)>,
    committed: u64,
) -> Vec<(NodeId, u64)> {
    replication.filter_map(|(node, at)| Some((*node, at.as_ref()?.index.min(committed)))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_second_process_with_the_same_id_is_a_clone_once_the_first_one_is_heard_beside_it() {
        let (memory, start) = (Memory::default(), Instant::now());
        let arrive = |instance, millis| memory.arrive(3, instance, at(start, millis));
        assert_eq!(arrive(111, 0), Arrival::Welcome { after: None });
        assert_eq!(arrive(111, 0), Arrival::Welcome { after: None }, "its second connection");
        assert_eq!(arrive(222, 10), Arrival::Unclear);
        assert!(memory.hear(3, 111, at(start, 500)), "this may have been on its way");
        assert_eq!(arrive(222, 510), Arrival::Unclear);
        assert!(memory.hear(3, 111, at(start, 1_020)) && memory.hear(3, 111, at(start, 1_021)), "a burst, read late");
        assert_eq!(arrive(222, 1_030), Arrival::Unclear);
        assert!(memory.hear(3, 111, at(start, 1_520)));
        assert_eq!(arrive(222, 1_530), Arrival::Clone);
        assert_eq!(arrive(333, 1_540), Arrival::Unclear, "another one is judged by itself");
        memory.leave(3, 111);
        memory.leave(3, 111);
        assert_eq!(
            arrive(222, 1_600),
            Arrival::Welcome { after: Some(111) },
            "the first one is gone: this is a restart"
        );
    }

    #[test]
    fn a_process_that_falls_silent_without_a_word_is_followed_by_another_one() {
        let (memory, start) = (Memory::default(), Instant::now());
        let arrive = |instance, millis| memory.arrive(3, instance, at(start, millis));
        assert_eq!(arrive(111, 0), Arrival::Welcome { after: None });
        assert_eq!(arrive(222, 2_000), Arrival::Unclear);
        assert_eq!(arrive(222, 2_999), Arrival::Unclear);
        assert_eq!(arrive(222, 3_000), Arrival::Welcome { after: Some(111) });
        assert!(!memory.hear(3, 111, at(start, 3_001)), "it is not listened to any more");
        memory.leave(3, 111);
        assert_eq!(arrive(111, 3_002), Arrival::Unclear, "now this one would be the clone");
        assert!(memory.hear(3, 222, at(start, 4_100)) && memory.hear(3, 222, at(start, 4_600)));
        assert_eq!(arrive(111, 4_601), Arrival::Clone);
    }

    #[test]
    fn what_was_acknowledged_is_never_unlearnt() {
        let memory = Memory::default();
        memory.learn(&[(2, 10), (3, 4)]);
        memory.learn(&[(2, 7)]);
        assert_eq!(memory.acknowledged(2), Some(10));
    }

    #[test]
    fn what_may_be_taken_back_is_not_remembered() {
        let at = |index| Some(LogId::new(openraft::CommittedLeaderId::new(3, 1), index));
        let replication = BTreeMap::from([(1, at(9)), (2, at(9)), (3, at(5)), (4, None)]);
        assert_eq!(committed(replication.iter(), 7), [(1, 7), (2, 7), (3, 5)]);
    }

    #[test]
    fn it_is_kept_across_a_restart_and_a_damaged_file_is_no_obstacle() {
        let dir = tempfile::tempdir().expect("a directory");
        let memory = Memory::open(dir.path(), 0xc);
        memory.learn(&[(2, 10), (3, 4)]);
        memory.close();
        memory.learn(&[(2, 99)]);
        memory.keep().expect("nothing is written any more");

        let again = Memory::open(dir.path(), 0xc);
        assert_eq!((again.acknowledged(2), again.acknowledged(3)), (Some(10), Some(4)));
        assert_eq!(Memory::open(dir.path(), 0xd).acknowledged(2), None, "another cluster's nodes");

        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).expect("readable");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&path, bytes).expect("written");
        let damaged = Memory::open(dir.path(), 0xc);
        assert_eq!(damaged.acknowledged(2), None);
        damaged.learn(&[(2, 11)]);
        damaged.keep().expect("written");
        assert_eq!(Memory::open(dir.path(), 0xc).acknowledged(2), Some(11));
    }
}
