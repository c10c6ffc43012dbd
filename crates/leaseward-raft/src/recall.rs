//! What nodes remember of each other, so that one whose disk went back in time is recognised before it votes.
//!
//! Must stay true: a node that was started again neither votes nor acknowledges until, together with itself, a quorum
//! has answered what it remembers; if anybody remembers more than its log holds, it stays out until an operator
//! replaces it. Nobody is suspected falsely: what is remembered of a node is only what it acknowledged as durable and
//! what was committed besides, so no later leader takes it out of its log again.
//! It is carried from the leader to everybody with each confirmation round, and kept on disk now and then and at a
//! clean stop: what the disk has is a lower bound, and a lost or damaged file only means that less is noticed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use openraft::LogId;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::codec::{self, CodecError, Kind};
use crate::identity::write_durably;
use crate::limits::RECALL_BYTES_MAX;
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

/// What this node remembers.
#[derive(Debug, Default)]
pub struct Memory {
    acknowledged: Mutex<BTreeMap<NodeId, u64>>,
    instances: Mutex<BTreeMap<NodeId, (u128, usize)>>,
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
            instances: Mutex::default(),
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

    /// Notes that a process speaks for a node. Returns false if another one does already: one of them is a clone.
    pub fn arrive(&self, node: NodeId, instance: u128) -> bool {
        let mut instances = self.instances.lock().expect("no holder of this lock panics");
        let (known, connections) = instances.entry(node).or_insert((instance, 0));
        if *known != instance && *connections > 0 {
            return false;
        }
        if *known != instance {
            *known = instance;
            *connections = 0;
        }
        *connections += 1;
        true
    }

    /// Notes that a connection of that process is over.
    pub fn leave(&self, node: NodeId, instance: u128) {
        let mut instances = self.instances.lock().expect("no holder of this lock panics");
        if let Some((known, connections)) = instances.get_mut(&node)
            && *known == instance
        {
            *connections = connections.saturating_sub(1);
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
    use super::*;

    #[test]
    fn a_second_process_with_the_same_id_is_a_clone_while_the_first_one_lives() {
        let memory = Memory::default();
        assert!(memory.arrive(3, 111));
        assert!(memory.arrive(3, 111), "its second connection");
        assert!(!memory.arrive(3, 222), "a clone");
        memory.leave(3, 111);
        memory.leave(3, 111);
        assert!(memory.arrive(3, 222), "the first one is gone: this is a restart");
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
