//! The types that openraft is instantiated with, and the words that the rest of the house uses instead of its own.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use leaseward_state::{ClusterMillis, Reply, Request, Revision, UnixMillis};
use openraft::{AsyncRuntime, OptionalSend, TokioRuntime};
use serde::{Deserialize, Serialize};

use crate::snapshot::SnapshotFile;

/// A node: the index of a committed entry, fresh for each data directory, never used again.
pub type NodeId = u64;

/// What everybody knows of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// What people call it. A replacement may have the name of the node it replaces.
    pub name: String,
    /// Where peers and clients of the framed protocol reach it.
    pub peer_address: String,
    /// Where its HTTP API is.
    pub api_address: String,
    /// Whether it may vote.
    pub standing: Standing,
    /// The node whose place it takes then.
    pub replaces: Option<NodeId>,
}

/// Whether a node may vote. Who does is up to autopilot: an odd number of those who may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// It may.
    #[default]
    Voter,
    /// It may, and is asked only when the others are too few: it runs no servers, and its machine may be small.
    Witness,
    /// Never: it has a copy of everything, for reading and for backups.
    Learner,
}

/// The commands of one log entry. Each is one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The proposer's wall clock, for people.
    pub at: UnixMillis,
    /// The proposer's cluster time (`cluster_time.rs`).
    pub elapsed: ClusterMillis,
    /// The commands.
    pub requests: Vec<Request>,
}

/// What the commands of one entry answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// One for each command, with the revision that made it.
    pub replies: Vec<(Revision, Reply)>,
}

openraft::declare_raft_types!(
    /// How openraft is instantiated.
    pub TypeConfig:
        D = Batch,
        R = Answers,
        NodeId = NodeId,
        Node = NodeInfo,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = SnapshotFile,
        AsyncRuntime = Runtime,
);

/// openraft's consensus core.
pub(crate) type Raft = openraft::Raft<TypeConfig>;

/// Tokio, with a source of randomness that a simulation may seed.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy, PartialOrd, Ord)]
pub struct Runtime;

type Tokio = TokioRuntime;

impl AsyncRuntime for Runtime {
    type JoinError = <Tokio as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <Tokio as AsyncRuntime>::Sleep;
    type Instant = <Tokio as AsyncRuntime>::Instant;
    type TimeoutError = <Tokio as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <Tokio as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = crate::random::Source;
    type OneshotSender<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = <Tokio as AsyncRuntime>::OneshotReceiver<T>;
    type OneshotReceiverError = <Tokio as AsyncRuntime>::OneshotReceiverError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        Tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Tokio::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Tokio::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        Tokio::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        Tokio::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        crate::random::Source
    }

    fn oneshot<T: OptionalSend>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>) {
        Tokio::oneshot()
    }
}
