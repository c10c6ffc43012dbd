//! openraft's network on our links.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use leaseward_state::Term;
use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{OptionalSend, Snapshot};

use crate::last_word::Ballots;
use crate::limits::SNAPSHOT_PIECE_BYTES;
use crate::net::connection::CallError;
use crate::net::links::Links;
use crate::net::wire::{Answer, Appended, Ask, Purpose};
use crate::stored::{StoredMembership, Vote};
use crate::types::{NodeId, NodeInfo, TypeConfig};

/// Makes connections for openraft.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) links: Links,
    pub(crate) ballots: Ballots,
}

/// openraft's way to one node.
pub(crate) struct Peer {
    links: Links,
    ballots: Ballots,
    node: NodeId,
    address: String,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &NodeInfo) -> Peer {
        let (links, ballots) = (self.links.clone(), self.ballots.clone());
        Peer { links, ballots, node: target, address: node.peer_address.clone() }
    }
}

impl Peer {
    async fn call(&self, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        self.links.call(self.node, &self.address, Purpose::Control, ask, within).await
    }
}

type Rpc<E> = RPCError<NodeId, NodeInfo, RaftError<NodeId, E>>;

/// Unreachable makes openraft wait before it tries again; anything else makes it try at once.
fn unreachable<E: std::error::Error>(error: &(impl std::error::Error + 'static)) -> Rpc<E> {
    RPCError::Unreachable(Unreachable::new(error))
}

#[derive(Debug, thiserror::Error)]
#[error("an answer to another question: {0}")]
struct Strange(String);

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, Rpc<openraft::error::Infallible>> {
        let ask = Ask::Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            committed: request.leader_commit.map(Into::into),
        };
        match self.call(&ask, option.hard_ttl()).await.map_err(|error| unreachable(&error))? {
            Answer::Appended(Appended::Success) => Ok(AppendEntriesResponse::Success),
            Answer::Appended(Appended::Partial(at)) => Ok(AppendEntriesResponse::PartialSuccess(at.map(Into::into))),
            Answer::Appended(Appended::Conflict) => Ok(AppendEntriesResponse::Conflict),
            Answer::Appended(Appended::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote.into())),
            other => Err(unreachable(&Strange(format!("{other:?}")))),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, Rpc<openraft::error::Infallible>> {
        let ask = Ask::Vote { vote: request.vote.into(), last: request.last_log_id.map(Into::into) };
        match self.call(&ask, option.hard_ttl()).await.map_err(|error| unreachable(&error))? {
            Answer::Voted { vote, last, granted, heard_ago } => {
                if granted {
                    // Before the core counts the vote, and after it has promised our own.
                    let term = Term(request.vote.leader_id().term);
                    self.ballots.count(term, &heard_ago);
                }
                Ok(VoteResponse::new(openraft::Vote::from(vote), last.map(Into::into), granted))
            }
            other => Err(unreachable(&Strange(format!("{other:?}")))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: openraft::Vote<NodeId>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_snapshot(vote.into(), &snapshot, option.hard_ttl()) => sent,
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(50)))
    }
}

impl Peer {
    /// Sends a snapshot piece by piece, from where the other side has it.
    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: &Snapshot<TypeConfig>,
        within: Duration,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<TypeConfig, Fatal<NodeId>>> {
        let network = |error: &(dyn std::error::Error + 'static)| {
            StreamingError::Network(NetworkError::from(openraft::AnyError::error(error.to_string())))
        };
        let piece_within = within.max(Duration::from_secs(5));
        let call = async |ask: &Ask| {
            self.links.call(self.node, &self.address, Purpose::Bulk, ask, piece_within).await.map_err(|e| network(&e))
        };
        let file = File::open(&snapshot.snapshot.path).map_err(|e| network(&e))?;
        let size = file.metadata().map_err(|e| network(&e))?.len();
        let transfer = format!("{}-{size}", snapshot.meta.snapshot_id);
        let Answer::SnapshotAt(mut at) = call(&Ask::SnapshotBegin { vote, transfer: transfer.clone(), size }).await?
        else {
            return Err(network(&Strange("SnapshotBegin".into())));
        };
        while at < size {
            let mut bytes = vec![0; SNAPSHOT_PIECE_BYTES.min((size - at) as usize)];
            file.read_exact_at(&mut bytes, at).map_err(|e| network(&e))?;
            let length = bytes.len() as u64;
            match call(&Ask::SnapshotPiece { transfer: transfer.clone(), offset: at, bytes }).await? {
                Answer::Done => at += length,
                other => return Err(network(&Strange(format!("{other:?}")))),
            }
        }
        let last = snapshot.meta.last_log_id.map(Into::into);
        let membership = StoredMembership::from(&snapshot.meta.last_membership);
        match call(&Ask::SnapshotEnd { vote, transfer, last, membership }).await? {
            Answer::SnapshotInstalled { vote } => Ok(SnapshotResponse::new(vote.into())),
            other => Err(network(&Strange(format!("{other:?}")))),
        }
    }
}
