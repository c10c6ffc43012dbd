//! openraft's own storage suite, on our log and our state machine, with either store behind it.

use std::sync::Arc;

use leaseward_raft::NodeId;
use leaseward_raft::disk::{Disk, RealDisk};
use leaseward_raft::log_store::LogStore;
use leaseward_raft::machine::Machine;
use leaseward_raft::sled_store::SledStore;
use leaseward_raft::snapshot::Snapshots;
use leaseward_raft::store::{AppliedTo, MemoryStore, StateStore};
use leaseward_raft::types::TypeConfig;
use leaseward_raft::wal::{Wal, WalIdentity, Writer};
use leaseward_state::{Generation, State};
use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

struct Builder {
    sled: bool,
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<NodeId>> {
        let dir = tempfile::tempdir().expect("a directory");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&dir.path().join("wal")).expect("a directory"));
        let segment_bytes = 64 << 10;
        let (wal, recovered) =
            Wal::open(Arc::clone(&disk), WalIdentity { cluster: 1, node: 0 }, segment_bytes).expect("a log");
        let writer = Writer::start(wal, disk, segment_bytes, Arc::new(|why| panic!("{why}"))).expect("a thread");
        let store: Box<dyn StateStore> = if self.sled {
            Box::new(SledStore::open(&dir.path().join("state")).expect("a store"))
        } else {
            Box::new(MemoryStore::default())
        };
        let snapshots = Snapshots::open(&dir.path().join("snapshots"), 1).expect("a directory");
        let (machine, _, _) = Machine::new(State::new(Generation(0)), AppliedTo::default(), snapshots, None, store);
        Ok((dir, LogStore::new(writer, recovered), machine))
    }
}

#[test]
fn openrafts_suite_passes_with_the_store_in_memory() {
    Suite::test_all(Builder { sled: false }).expect("it passes");
}

#[test]
fn openrafts_suite_passes_with_sled() {
    Suite::test_all(Builder { sled: true }).expect("it passes");
}
