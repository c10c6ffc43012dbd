//! What is stored and sent: our own mirrors of openraft's types, so that its layout is not our format.
//!
//! Must stay true: structs are plain and never change; a new shape is a new version of its envelope. Enums grow at
//! the end only.

use std::collections::{BTreeMap, BTreeSet};

use leaseward_state::{ClusterMillis, Request, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::types::{Batch, NodeId, NodeInfo, TypeConfig};

/// A position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPosition {
    /// The term of the leader that appended it.
    pub term: u64,
    /// That leader.
    pub node: NodeId,
    /// Its index.
    pub index: u64,
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// The candidate or leader.
    pub node: NodeId,
    /// Whether a quorum granted it.
    pub committed: bool,
}

/// Who votes and who learns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The sets of voters; two while a change is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All nodes, learners included.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
}

/// A membership with the entry that made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembership {
    /// The entry that made it, if any.
    pub at: Option<LogPosition>,
    /// Who votes and who learns.
    pub membership: Membership,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands.
    pub position: LogPosition,
    /// What it says.
    pub payload: Payload,
}

/// What an entry says. Grows at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// Commands for the state, each of them one revision.
    Commands {
        /// The proposer's wall clock.
        at: UnixMillis,
        /// The commands.
        requests: Vec<Request>,
        /// The proposer's cluster time.
        elapsed: ClusterMillis,
    },
    /// A change of members.
    Membership(Membership),
}

type RaftLogId = openraft::LogId<NodeId>;
type RaftMembership = openraft::Membership<NodeId, NodeInfo>;

impl From<RaftLogId> for LogPosition {
    fn from(id: RaftLogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<LogPosition> for RaftLogId {
    fn from(position: LogPosition) -> Self {
        Self::new(openraft::CommittedLeaderId::new(position.term, position.node), position.index)
    }
}

impl From<openraft::Vote<NodeId>> for Vote {
    fn from(vote: openraft::Vote<NodeId>) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<Vote> for openraft::Vote<NodeId> {
    fn from(vote: Vote) -> Self {
        if vote.committed { Self::new_committed(vote.term, vote.node) } else { Self::new(vote.term, vote.node) }
    }
}

impl From<&RaftMembership> for Membership {
    fn from(membership: &RaftMembership) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }
}

impl From<Membership> for RaftMembership {
    fn from(membership: Membership) -> Self {
        Self::new(membership.voters, membership.nodes)
    }
}

impl From<&openraft::StoredMembership<NodeId, NodeInfo>> for StoredMembership {
    fn from(stored: &openraft::StoredMembership<NodeId, NodeInfo>) -> Self {
        Self { at: stored.log_id().map(Into::into), membership: stored.membership().into() }
    }
}

impl From<StoredMembership> for openraft::StoredMembership<NodeId, NodeInfo> {
    fn from(stored: StoredMembership) -> Self {
        Self::new(stored.at.map(Into::into), stored.membership.into())
    }
}

impl From<&openraft::Entry<TypeConfig>> for Entry {
    fn from(entry: &openraft::Entry<TypeConfig>) -> Self {
        let payload = match &entry.payload {
            openraft::EntryPayload::Blank => Payload::Blank,
            openraft::EntryPayload::Normal(batch) => {
                Payload::Commands { at: batch.at, requests: batch.requests.clone(), elapsed: batch.elapsed }
            }
            openraft::EntryPayload::Membership(membership) => Payload::Membership(membership.into()),
        };
        Self { position: entry.log_id.into(), payload }
    }
}

impl From<Entry> for openraft::Entry<TypeConfig> {
    fn from(entry: Entry) -> Self {
        let payload = match entry.payload {
            Payload::Blank => openraft::EntryPayload::Blank,
            Payload::Commands { at, requests, elapsed } => {
                openraft::EntryPayload::Normal(Batch { at, elapsed, requests })
            }
            Payload::Membership(membership) => openraft::EntryPayload::Membership(membership.into()),
        };
        Self { log_id: entry.position.into(), payload }
    }
}
