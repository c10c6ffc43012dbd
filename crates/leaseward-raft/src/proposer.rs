//! Proposals: gathered into entries on the leader, forwarded to it elsewhere, sent again until there is an answer.
//!
//! Must stay true: every proposal that may be sent twice carries a key, so that it is applied once; a leader's own
//! commands are never forwarded (rule R5); no answer never means "no". One entry carries all commands that wait, and
//! the next one is gathered meanwhile, so throughput does not depend on the latency of one commit.

use std::collections::VecDeque;
use std::sync::Arc;

use leaseward_state::Request;
use leaseward_state::UnixMillis;
use leaseward_state::propose::{Committed, NotCommitted};
use openraft::error::{ClientWriteError, RaftError};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::debug;

use crate::clock;
use crate::cluster_time::ClusterTime;
use crate::codec;
use crate::limits::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, BATCHES_IN_FLIGHT_MAX, PROPOSALS_WAITING_MAX};
use crate::types::{Answers, Batch, Raft};

type Respond = oneshot::Sender<Result<Committed, NotCommitted>>;

struct Proposal {
    request: Request,
    size: usize,
    respond: Respond,
}

/// Gathers proposals into entries.
#[derive(Clone)]
pub struct Batcher {
    proposals: mpsc::Sender<Proposal>,
}

impl Batcher {
    pub(crate) fn start(raft: Raft, time: ClusterTime) -> Self {
        let (proposals, queue) = mpsc::channel(PROPOSALS_WAITING_MAX);
        tokio::spawn(run(raft, time, queue));
        Self { proposals }
    }

    /// Returns the answer of this node as the leader. Dropping the future leaves the outcome unknown; so does a core
    /// that never answers, so callers set a deadline.
    pub(crate) async fn submit(&self, request: Request) -> Result<Committed, NotCommitted> {
        let size = codec::encoded_len(&request);
        let (respond, answer) = oneshot::channel();
        self.proposals
            .try_send(Proposal { request, size, respond })
            .map_err(|_| NotCommitted::Overloaded("too many proposals wait".into()))?;
        answer.await.unwrap_or(Err(NotCommitted::Unknown))
    }
}

async fn run(raft: Raft, time: ClusterTime, mut queue: mpsc::Receiver<Proposal>) {
    let in_flight = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT_MAX));
    let mut held_back = VecDeque::new();
    loop {
        // First the turn, then the batch: whoever comes while we wait is in it.
        let turn = Arc::clone(&in_flight).acquire_owned().await.expect("the semaphore is never closed");
        if held_back.is_empty() {
            match queue.recv().await {
                Some(first) => held_back.push_back(first),
                None => return,
            }
        }
        let batch = gather(&mut queue, &mut held_back);
        let (raft, time) = (raft.clone(), time.clone());
        tokio::spawn(async move {
            commit(&raft, &time, batch).await;
            drop(turn);
        });
    }
}

fn gather(queue: &mut mpsc::Receiver<Proposal>, held_back: &mut VecDeque<Proposal>) -> Vec<Proposal> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while let Some(next) = held_back.pop_front().or_else(|| queue.try_recv().ok()) {
        bytes += next.size;
        if !batch.is_empty() && bytes > BATCH_BYTES_MAX {
            held_back.push_front(next);
            break;
        }
        batch.push(next);
        if batch.len() == BATCH_COMMANDS_MAX {
            break;
        }
    }
    batch
}

async fn commit(raft: &Raft, time: &ClusterTime, batch: Vec<Proposal>) {
    let (requests, responds): (Vec<_>, Vec<_>) =
        batch.into_iter().map(|proposal| (proposal.request, proposal.respond)).unzip();
    let data = Batch { at: UnixMillis(clock::wall_millis()), elapsed: time.now(), requests };
    match raft.client_write(data).await {
        Ok(response) => answer(responds, response.data),
        Err(error) => {
            let outcome = match &error {
                RaftError::<_, ClientWriteError<_, _>>::APIError(ClientWriteError::ForwardToLeader(_)) => {
                    NotCommitted::NoLeader
                }
                _ => NotCommitted::Unknown,
            };
            debug!(%error, "a batch was not committed");
            for respond in responds {
                respond.send(Err(outcome.clone())).ok();
            }
        }
    }
}

fn answer(responds: Vec<Respond>, answers: Answers) {
    debug_assert_eq!(responds.len(), answers.replies.len(), "each command has one answer");
    for (respond, (revision, reply)) in responds.into_iter().zip(answers.replies) {
        respond.send(Ok(Committed { revision, reply })).ok();
    }
}
