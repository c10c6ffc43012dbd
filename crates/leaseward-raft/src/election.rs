//! Elections: when to campaign, and whom to ask first.
//!
//! Must stay true: nobody campaigns before a quorum has said that it would vote for it and has lost the leader too
//! (pre-vote), so a node that was cut off deposes nobody when it returns, and a single cut link deposes nobody at
//! all. A broken connection to the leader starts the question at once; silence starts it after the election timeout.
//! Left out on purpose: the vote itself, which is openraft's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ServerState;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::confirm::is_quorum;
use crate::log_store::LogStore;
use crate::net::links::Links;
use crate::net::wire::{Answer, Ask, Purpose};
use crate::random;
use crate::rules::{Rule, broken};
use crate::settings::Timing;
use crate::stored::{LogPosition, Membership, Vote};
use crate::types::{NodeId, Raft};

/// How long a pre-vote waits for answers.
const PRE_VOTE_WITHIN: Duration = Duration::from_millis(200);

/// After this node said yes to somebody else it lets that one try first.
const LET_OTHERS_TRY: Duration = Duration::from_millis(150);

/// What this node knows of its leader.
#[derive(Debug, Default)]
pub struct Heard {
    inner: Mutex<HeardInner>,
    changed: Notify,
    succeeded: Notify,
}

#[derive(Debug, Default)]
struct HeardInner {
    at: Option<Instant>,
    /// The connection to this leader broke, and it was not heard since.
    lost: bool,
    yes_to_other: Option<Instant>,
    /// The newest leader that spoke to this node: its term and its id. The core may not know of it yet: it takes no
    /// word while the disk stands still.
    newest: Option<(u64, NodeId)>,
}

impl Heard {
    /// Notes that this node was spoken to under a vote. Only whom a quorum has voted for leads.
    pub(crate) fn vote(&self, vote: &Vote) {
        if broken(Rule::Successor) {
            return;
        }
        let mut inner = self.lock();
        if vote.committed && inner.newest.is_none_or(|(term, _)| term < vote.term) {
            inner.newest = Some((vote.term, vote.node));
            self.succeeded.notify_waiters();
        }
    }

    /// Returns the leader of a later term that spoke to this node, if any did.
    pub(crate) fn successor(&self, term: u64) -> Option<NodeId> {
        self.lock().newest.filter(|(newest, _)| *newest > term).map(|(_, node)| node)
    }

    /// Waits for the next leader of a later term that speaks to this node.
    pub(crate) fn next(&self) -> Notified<'_> {
        self.succeeded.notified()
    }

    /// Waits until a leader of a later term has spoken to this node. Cancel safe.
    pub(crate) async fn succeeded(&self, term: u64) {
        loop {
            let next = self.next();
            tokio::pin!(next);
            // Before the look, so that nothing is missed between the two.
            next.as_mut().enable();
            if self.successor(term).is_some() {
                return;
            }
            next.await;
        }
    }

    /// Notes that the leader was heard.
    pub fn leader(&self) {
        let mut inner = self.lock();
        inner.at = Some(Instant::now());
        inner.lost = false;
    }

    /// Notes that this node would vote for another one.
    fn said_yes(&self) {
        self.lock().yes_to_other = Some(Instant::now());
    }

    fn lost_connection(&self) {
        self.lock().lost = true;
        self.changed.notify_waiters();
        self.changed.notify_one();
    }

    fn silence(&self, since_start: Instant) -> Duration {
        self.lock().at.unwrap_or(since_start).elapsed()
    }

    /// Returns how long ago the leader was heard, if it ever was in this run.
    pub(crate) fn ago(&self) -> Option<Duration> {
        self.lock().at.map(|at| at.elapsed())
    }

    fn is_lost(&self) -> bool {
        self.lock().lost
    }

    fn holds_back(&self) -> bool {
        self.lock().yes_to_other.is_some_and(|at| at.elapsed() < LET_OTHERS_TRY)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HeardInner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

/// What the election task needs.
#[derive(Clone)]
pub(crate) struct Elections {
    pub(crate) node: NodeId,
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) links: Links,
    pub(crate) heard: Arc<Heard>,
    pub(crate) timing: Timing,
    pub(crate) started: Instant,
}

impl Elections {
    /// Answers another node's pre-vote: would this node vote for it now?
    pub(crate) fn would_vote(&self, last: Option<LogPosition>) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.state == ServerState::Leader {
            // A leader that a quorum still follows is no reason for an election.
            let patience = self.timing.election_min.as_millis() as u64;
            if metrics.millis_since_quorum_ack.is_some_and(|millis| millis < patience) {
                return false;
            }
        } else if !self.has_lost_leader() {
            return false;
        }
        let up_to_date = last >= self.log.last();
        if up_to_date {
            self.heard.said_yes();
        }
        up_to_date
    }

    fn has_lost_leader(&self) -> bool {
        self.heard.is_lost() || self.heard.silence(self.started) >= self.timing.election_min
    }

    /// Watches the leader and campaigns when it is gone. Ends with openraft's core.
    pub(crate) async fn run(self) {
        tokio::spawn(self.clone().watch_connection());
        loop {
            let patience = random::between(self.timing.election_min, self.timing.election_max);
            let Some((votes, membership)) = self.standing() else { return };
            if !votes {
                // A leader, a learner, or nobody yet.
                self.wait(self.timing.heartbeat).await;
                continue;
            }
            let left = patience.saturating_sub(self.heard.silence(self.started));
            if !self.heard.is_lost() && !left.is_zero() {
                self.wait(left).await;
                continue;
            }
            // Not all at once, and not before the core's own lease on the old leader is over.
            let lease = self.timing.heartbeat + Duration::from_millis(10);
            let early = lease.saturating_sub(self.heard.silence(self.started));
            sleep(early + random::between(Duration::ZERO, Duration::from_millis(15))).await;
            if self.heard.holds_back() || !self.has_lost_leader() {
                self.wait(Duration::from_millis(20)).await;
                continue;
            }
            if self.quorum_would_vote(&membership).await && self.has_lost_leader() {
                info!("campaigning: a quorum has lost the leader too");
                if self.raft.trigger().elect().await.is_err() {
                    return;
                }
                let wait = random::between(Duration::from_millis(60), Duration::from_millis(180));
                self.raft.wait(Some(wait)).metrics(|m| m.current_leader.is_some(), "a leader").await.ok();
            } else {
                self.wait(random::between(Duration::from_millis(30), Duration::from_millis(120))).await;
            }
        }
    }

    async fn wait(&self, at_most: Duration) {
        timeout(at_most, self.heard.changed.notified()).await.ok();
    }

    /// Returns whether this node may campaign, and the members; `None` if the core is gone.
    fn standing(&self) -> Option<(bool, Membership)> {
        let metrics = self.raft.metrics();
        metrics.has_changed().ok()?;
        let metrics = metrics.borrow();
        metrics.running_state.as_ref().ok()?;
        let membership = metrics.membership_config.membership();
        let votes = metrics.state != ServerState::Leader && membership.voter_ids().any(|id| id == self.node);
        Some((votes, membership.into()))
    }

    async fn quorum_would_vote(&self, membership: &Membership) -> bool {
        let term = self.raft.metrics().borrow().current_term + 1;
        let ask = Ask::PreVote { term, last: self.log.last() };
        let voters: BTreeSet<NodeId> =
            membership.voters.iter().flatten().copied().filter(|id| *id != self.node).collect();
        let mut answers: FuturesUnordered<_> = voters
            .into_iter()
            .filter_map(|id| Some((id, membership.nodes.get(&id)?.peer_address.clone())))
            .map(|(id, address)| {
                let (links, ask) = (self.links.clone(), &ask);
                async move { (id, links.call(id, &address, Purpose::Control, ask, PRE_VOTE_WITHIN).await) }
            })
            .collect();
        let mut yes = BTreeSet::from([self.node]);
        while !is_quorum(membership, &yes) {
            match answers.next().await {
                Some((id, Ok(Answer::Yes(true)))) => {
                    yes.insert(id);
                }
                Some((id, answer)) => debug!(id, ?answer, "no pre-vote"),
                None => return false,
            }
        }
        true
    }

    /// Keeps a connection to the leader open, and notices when it breaks.
    async fn watch_connection(self) {
        let mut metrics = self.raft.metrics();
        loop {
            let leader = {
                let metrics = metrics.borrow_and_update();
                let leader = metrics.current_leader.filter(|id| *id != self.node);
                leader.and_then(|id| {
                    Some((id, metrics.membership_config.membership().get_node(&id)?.peer_address.clone()))
                })
            };
            let Some((leader, address)) = leader else {
                if metrics.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let Ok(connection) = self.links.connection(leader, &address, Purpose::Control).await else {
                // It answers nobody, or only us: the question of the pre-vote tells.
                self.heard.lost_connection();
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            tokio::select! {
                () = connection.closed() => {
                    // A living leader takes a new connection at once.
                    if self.links.connection(leader, &address, Purpose::Control).await.is_err() {
                        debug!(leader, "the connection to the leader broke");
                        self.heard.lost_connection();
                    }
                }
                changed = changed_leader(&mut metrics, leader) => if !changed { return },
            }
        }
    }
}

/// Waits until another node leads. Returns false if the core is gone. Cancel safe.
async fn changed_leader(
    metrics: &mut tokio::sync::watch::Receiver<openraft::RaftMetrics<NodeId, crate::types::NodeInfo>>,
    leader: NodeId,
) -> bool {
    metrics.wait_for(|metrics| metrics.current_leader != Some(leader)).await.is_ok()
}
