//! What nodes remember of each other, so that one whose disk went back in time is recognised before it votes.
//!
//! Must stay true: a node that was started again neither votes nor acknowledges until, together with itself, a quorum
//! has answered what it remembers; if anybody remembers more than its log holds, it stays out until an operator
//! replaces it. What is remembered lives in memory, carried from the leader to everybody with each confirmation
//! round; a cluster that was stopped as a whole starts with empty memories.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::types::{NodeId, Raft};

/// What this node remembers.
#[derive(Debug, Default)]
pub struct Memory {
    acknowledged: Mutex<BTreeMap<NodeId, u64>>,
    instances: Mutex<BTreeMap<NodeId, (u128, usize)>>,
}

impl Memory {
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

    /// Returns what the leader's replication knows, and learns it.
    pub(crate) fn as_leader(&self, raft: &Raft) -> Vec<(NodeId, u64)> {
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        let Some(replication) = &metrics.replication else { return Vec::new() };
        let acknowledged: Vec<_> =
            replication.iter().filter_map(|(node, at)| Some((*node, at.as_ref()?.index))).collect();
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
}
