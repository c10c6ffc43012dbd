//! Confirmation rounds: a leader asks the others whether its vote is still the newest one they know of (rule R2).
//!
//! Must stay true: whoever waits is answered only by a round that started after it came; a round counts only if a
//! quorum of every set of voters, as known before and after it, said yes, the leader itself included. One round
//! serves everybody who waits, and nothing is written to the log. It does not pass through openraft's core, so a
//! stalled disk neither blocks it nor makes it lie: the others answer from the vote they have promised. But a leader whose
//! disk stands still for longer than the others would wait for it asks no more: they would believe that it leads, and
//! nothing could be committed until its disk goes on. Whoever says yes, the leader itself too, notes when and for which
//! sessions, before it does (rule R4, `last_word.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use leaseward_state::{SessionId, Term};
use tokio::sync::{mpsc, oneshot};

use crate::limits::{CONFIRM_TIMEOUT, RENEWALS_WAITING_MAX, RENEWED_NAMED_MAX};
use crate::log_store::LogStore;
use crate::net::links::Links;
use crate::net::wire::{Answer, Ask, Purpose};
use crate::recall::Memory;
use crate::stored::{Membership, Vote};
use crate::types::{NodeId, Raft};

/// Who waits for a round.
pub(crate) struct Waiter {
    /// Whose renewals it is for.
    pub(crate) renewed: Vec<SessionId>,
    pub(crate) done: oneshot::Sender<Option<Term>>,
}

/// Asks for confirmations.
#[derive(Clone)]
pub struct Confirmer {
    waiters: mpsc::Sender<Waiter>,
}

/// What a round needs.
pub(crate) struct Rounds {
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    /// A disk that stands still for longer is as good as none.
    pub(crate) patience: Duration,
    pub(crate) links: Links,
    pub(crate) memory: Arc<Memory>,
}

impl Confirmer {
    /// Starts the task that runs the rounds; it ends with the last handle.
    pub(crate) fn start(rounds: Rounds) -> Self {
        let (waiters, queue) = mpsc::channel(RENEWALS_WAITING_MAX);
        tokio::spawn(run(rounds, queue));
        Self { waiters }
    }

    /// Returns the term in which this node was the leader at some moment after this call began, if a quorum says
    /// so. Cancel safe.
    pub async fn confirm(&self) -> Option<Term> {
        self.confirm_for(Vec::new()).await
    }

    /// As [`Confirmer::confirm`]; the quorum remembers that these sessions were renewed (rule R4). Cancel safe.
    pub async fn confirm_for(&self, renewed: Vec<SessionId>) -> Option<Term> {
        let (done, wait) = oneshot::channel();
        self.waiters.try_send(Waiter { renewed, done }).ok()?;
        wait.await.ok().flatten()
    }
}

#[cfg(test)]
impl Confirmer {
    /// Returns a confirmer whose rounds a test answers by hand.
    pub(crate) fn by_hand() -> (Self, mpsc::Receiver<Waiter>) {
        let (waiters, rounds) = mpsc::channel(16);
        (Self { waiters }, rounds)
    }
}

async fn run(rounds: Rounds, mut queue: mpsc::Receiver<Waiter>) {
    while let Some(first) = queue.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let confirmed = rounds.round(renewed_by(&waiting)).await;
        for waiter in waiting {
            waiter.done.send(confirmed).ok();
        }
    }
}

/// Returns the sessions whose renewals wait; `None` if they are too many to name.
fn renewed_by(waiting: &[Waiter]) -> Option<Vec<SessionId>> {
    let total: usize = waiting.iter().map(|waiter| waiter.renewed.len()).sum();
    (total <= RENEWED_NAMED_MAX).then(|| waiting.iter().flat_map(|waiter| waiter.renewed.iter().copied()).collect())
}

impl Rounds {
    async fn round(&self, renewed: Option<Vec<SessionId>>) -> Option<Term> {
        if self.log.waits_for_disk() > self.patience {
            return None;
        }
        let (vote, before) = self.own_vote()?;
        let acknowledged = self.memory.as_leader(&self.raft);
        let ask = Ask::Confirm { vote, acknowledged, renewed: renewed.clone() };
        let others: BTreeSet<NodeId> = before.voters.iter().flatten().copied().filter(|id| *id != self.node).collect();
        let mut answers: FuturesUnordered<_> = others
            .iter()
            .filter_map(|id| Some((*id, before.nodes.get(id)?.peer_address.clone())))
            .map(|(id, address)| {
                let (links, ask) = (self.links.clone(), ask.clone());
                async move {
                    let answer = links.call(id, &address, Purpose::Control, &ask, CONFIRM_TIMEOUT).await;
                    (id, matches!(answer, Ok(Answer::Yes(true))))
                }
            })
            .collect();
        let mut yes = BTreeSet::from([self.node]);
        while !is_quorum(&before, &yes) {
            let (id, said_yes) = answers.next().await?;
            if said_yes {
                yes.insert(id);
            }
        }
        // Whoever has not answered yet may take its time: the answer must not be cut off inside its connection.
        tokio::spawn(async move { while answers.next().await.is_some() {} });
        let (now, after) = self.own_vote()?;
        // Our own yes counts as any other: the next election may have no other voter in common with this round.
        let confirmed = now == vote
            && is_quorum(&after, &yes)
            && self.log.promise().confirms(&vote, self.log.word(), renewed.as_deref());
        confirmed.then_some(Term(vote.term))
    }

    /// Returns our vote, if a quorum granted it and we have not promised a newer one since.
    fn own_vote(&self) -> Option<(Vote, Membership)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let vote = Vote::from(metrics.vote);
        let leads = vote.committed && vote.node == self.node && self.log.promise().allows(&vote);
        let membership = metrics.membership_config.membership();
        leads.then(|| (vote, membership.into()))
    }
}

/// Returns whether `yes` holds a majority of each set of voters.
#[must_use]
pub fn is_quorum(membership: &Membership, yes: &BTreeSet<NodeId>) -> bool {
    !membership.voters.is_empty()
        && membership.voters.iter().all(|voters| voters.intersection(yes).count() * 2 > voters.len())
}

/// How long a round takes at most.
pub const ROUND_MAX: Duration = CONFIRM_TIMEOUT;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_quorum_is_a_majority_of_every_set_of_voters() {
        let of = |voters: &[&[u64]]| Membership {
            voters: voters.iter().map(|set| set.iter().copied().collect()).collect(),
            nodes: BTreeMap::new(),
        };
        let check = |voters: &[&[u64]], yes: &[u64]| is_quorum(&of(voters), &yes.iter().copied().collect());
        assert!(check(&[&[1]], &[1]));
        assert!(!check(&[&[1, 2]], &[1]), "half is no majority");
        assert!(check(&[&[1, 2, 3]], &[1, 3]));
        assert!(!check(&[&[1, 2, 3]], &[1, 4, 5]), "learners do not count");
        assert!(!check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3]), "joint: the new set has no majority");
        assert!(check(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 4]));
        assert!(!check(&[], &[1, 2, 3]), "without voters nobody decides");
    }
}
