//! Asking the leader from anywhere: proposals, renewals, reads. One hop, and again until there is an answer.
//!
//! Must stay true: a proposal that is sent again keeps its key, so it is applied once however often the leader dies;
//! a leader's own commands stay on the leader.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use leaseward_state::propose::{Committed, NotCommitted, Propose};
use leaseward_state::{Request, RequestKey, Term};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::limits::COMMAND_BYTES_MAX;
use crate::machine::Published;
use crate::net::connection::CallError;
use crate::net::wire::{Answer, Ask, Outcome, Purpose, Renewal, Renewed};
use crate::replica::{Core, Replica, Shared};
use crate::rules::{Rule, broken};
use crate::types::{NodeId, NodeInfo};

/// One attempt with one leader; then the question is asked again, of whoever leads then.
const ATTEMPT: Duration = Duration::from_millis(1_000);

/// An election that is under way is over within this, nearly always. A renewal waits for it, for it has no time to go from
/// node to node instead.
const ELECTED_WITHIN: Duration = Duration::from_millis(100);

/// Pause while nobody leads.
const NO_LEADER_PAUSE: Duration = Duration::from_millis(10);

/// A handle for the leader's own loops. It does not keep the node alive.
#[derive(Clone)]
pub struct Internal(std::sync::Weak<Shared>);

impl Replica {
    /// Returns a handle for loops that run on the leader and must not keep the node alive.
    #[must_use]
    pub fn internal(&self) -> Internal {
        Internal(Arc::downgrade(&self.shared))
    }

    /// Returns the state as of now: with everything that was acknowledged to anybody before this call began.
    ///
    /// # Errors
    /// [`NotCommitted::NoLeader`] if no leader can prove in time that it leads; [`NotCommitted::Overloaded`] at once if this
    /// node is kept out of its cluster (`LW0603`).
    pub async fn read(&self) -> Result<Published, NotCommitted> {
        self.shared.read(self.shared.settings.propose_within).await
    }

    /// Renews sessions, here or at the leader. `None` if nobody can prove now that it leads.
    pub async fn renew(&self, renewals: Vec<Renewal>) -> Option<Vec<Renewed>> {
        self.shared.renew(renewals, true).await
    }
}

impl Propose for Replica {
    async fn propose(&self, request: Request) -> Result<Committed, NotCommitted> {
        self.shared.propose(request, true).await
    }

    async fn propose_internal(&self, request: Request) -> Result<Committed, NotCommitted> {
        self.shared.propose_here(request).await
    }

    fn leading(&self) -> Option<Term> {
        self.shared.leading()
    }
}

impl Propose for Internal {
    async fn propose(&self, request: Request) -> Result<Committed, NotCommitted> {
        match self.0.upgrade() {
            Some(shared) => shared.propose(request, true).await,
            None => Err(NotCommitted::NoLeader),
        }
    }

    async fn propose_internal(&self, request: Request) -> Result<Committed, NotCommitted> {
        match self.0.upgrade() {
            Some(shared) => shared.propose_here(request).await,
            None => Err(NotCommitted::NoLeader),
        }
    }

    fn leading(&self) -> Option<Term> {
        self.0.upgrade()?.leading()
    }
}

impl Shared {
    pub(crate) fn leading(&self) -> Option<Term> {
        *self.core.get()?.reign.borrow()
    }

    /// Returns the leader as this node knows it, also while its core stands still with its disk and believes in another.
    pub(crate) fn leader(&self) -> Option<(NodeId, NodeInfo)> {
        let metrics = self.core.get()?.raft.metrics();
        let metrics = metrics.borrow();
        let id = self.heard.successor(metrics.current_term).or(metrics.current_leader)?;
        Some((id, metrics.membership_config.membership().get_node(&id)?.clone()))
    }

    /// Refuses at once on a node that is kept out: it will know no leader, however long somebody waits.
    fn takes_part(&self) -> Result<(), NotCommitted> {
        match self.quarantined() {
            Some(why) => Err(NotCommitted::Overloaded(format!("LW0603: {why}"))),
            None => Ok(()),
        }
    }

    fn new_key(&self) -> RequestKey {
        RequestKey { client: self.instance, sequence: self.sequence.fetch_add(1, Ordering::Relaxed) }
    }

    /// Proposes as the leader, once. An answer that does not come is unknown.
    pub(crate) async fn propose_here(&self, request: Request) -> Result<Committed, NotCommitted> {
        let Some(core) = self.core.get() else { return Err(NotCommitted::NoLeader) };
        if self.disk_full.load(Ordering::Relaxed) {
            return Err(NotCommitted::Overloaded("LW0605: the leader's disk is nearly full".into()));
        }
        let needs = request.command.feature_level();
        let submit = async {
            self.admit(core, needs).await?;
            core.batcher.submit(request).await
        };
        timeout(ATTEMPT, submit).await.unwrap_or(Err(NotCommitted::Unknown))
    }

    /// As [`Shared::propose_here`], until another node is heard to lead: that one knows more.
    async fn propose_while_leading(&self, request: Request) -> Result<Committed, NotCommitted> {
        let Some(core) = self.core.get() else { return Err(NotCommitted::NoLeader) };
        let term = core.raft.metrics().borrow().current_term;
        tokio::select! {
            biased;
            outcome = self.propose_here(request) => outcome,
            () = self.heard.succeeded(term) => Err(NotCommitted::Unknown),
        }
    }

    /// Returns once no quorum has said for an election timeout that this node leads: whoever waits for its word had better
    /// ask another one. Most answers come long before it asks the first time. Cancel safe.
    async fn unconfirmed(&self) {
        if broken(Rule::Unconfirmed) {
            return std::future::pending().await;
        }
        let Some(core) = self.core.get() else { return };
        let timing = self.settings.timing;
        let mut since = None;
        loop {
            sleep(timing.election_min).await;
            let asked = Instant::now();
            if core.confirmer.confirm().await.is_some() {
                since = None;
            } else if since.get_or_insert(asked).elapsed() >= timing.election_max {
                return;
            }
        }
    }

    pub(crate) async fn propose(&self, mut request: Request, may_forward: bool) -> Result<Committed, NotCommitted> {
        if crate::codec::encoded_len(&request) > COMMAND_BYTES_MAX {
            return Err(NotCommitted::Overloaded(format!("LW0105: a command has at most {COMMAND_BYTES_MAX} bytes")));
        }
        if request.command.is_internal() {
            return Err(NotCommitted::Overloaded("LW0206: only a leader proposes this, for itself".into()));
        }
        if request.key.is_none() {
            request.key = Some(self.new_key());
        }
        self.takes_part()?;
        let deadline = Instant::now() + self.settings.propose_within;
        let mut maybe_appended = false;
        let unconfirmed = self.unconfirmed();
        tokio::pin!(unconfirmed);
        loop {
            let outcome = match self.leader() {
                Some((id, _)) if id == self.identity.node => tokio::select! {
                    biased;
                    outcome = self.propose_while_leading(request.clone()) => outcome,
                    () = &mut unconfirmed => return Err(NotCommitted::Unknown),
                },
                Some((id, info)) if may_forward => {
                    let needs = request.command.feature_level();
                    match self.may_forward_level(needs).await {
                        true => self.propose_there(id, &info, request.clone()).await,
                        false => Err(NotCommitted::Overloaded(format!(
                            "LW0612: this needs feature level {needs}, and the cluster is below it"
                        ))),
                    }
                }
                Some(_) => return Err(NotCommitted::NoLeader),
                None => Err(NotCommitted::NoLeader),
            };
            match outcome {
                Ok(committed) => {
                    self.catch_up(&committed, deadline).await;
                    return Ok(committed);
                }
                Err(NotCommitted::Overloaded(why)) if !maybe_appended => return Err(NotCommitted::Overloaded(why)),
                Err(NotCommitted::Unknown) => maybe_appended = true,
                Err(_) => {}
            }
            if !may_forward || Instant::now() >= deadline {
                return Err(if maybe_appended { NotCommitted::Unknown } else { NotCommitted::NoLeader });
            }
            sleep(NO_LEADER_PAUSE).await;
        }
    }

    async fn propose_there(&self, id: NodeId, info: &NodeInfo, request: Request) -> Result<Committed, NotCommitted> {
        let ask = Ask::Propose(request);
        match self.links.call(id, &info.peer_address, Purpose::Control, &ask, ATTEMPT).await {
            Ok(Answer::Proposed(outcome)) => Outcome::into(outcome),
            // Nobody was there to hear it.
            Err(CallError::Refused { .. }) => Err(NotCommitted::NoLeader),
            Ok(_) | Err(_) => Err(NotCommitted::Unknown),
        }
    }

    /// Waits until this node has applied what was committed elsewhere, so that its callers read their own writes. Not for
    /// a disk that stands still: their answer is known, and what they ask next is asked of the leader, too.
    async fn catch_up(&self, committed: &Committed, deadline: Instant) {
        let mut published = self.published();
        let applied = published.wait_for(|published| published.state.revision() >= committed.revision);
        let stands_still = async {
            let timing = self.settings.timing;
            while self.core.get().is_none_or(|core| core.log.waits_for_disk() < timing.election_max) {
                sleep(timing.heartbeat).await;
            }
        };
        tokio::select! {
            biased;
            _ = timeout_at(deadline, applied) => {}
            () = stands_still => {}
        }
    }

    pub(crate) async fn renew(&self, renewals: Vec<Renewal>, may_forward: bool) -> Option<Vec<Renewed>> {
        let core = self.core.get()?;
        let asked = async {
            let mut waited = false;
            loop {
                match self.leader() {
                    Some((id, _)) if id == self.identity.node => {
                        // It was elected a moment ago, and applies what came before.
                        let mut reign = core.reign.clone();
                        let begun = async { reign.wait_for(Option::is_some).await.is_ok() };
                        tokio::select! {
                            biased;
                            begun = begun => {
                                return if begun { core.sessions.renew(&renewals).await } else { None };
                            }
                            () = self.leads_no_more(core, Some(id)) => {}
                        }
                    }
                    Some((id, info)) if may_forward => {
                        let ask = Ask::Renew(renewals.clone());
                        tokio::select! {
                            biased;
                            answer = self.links.call(id, &info.peer_address, Purpose::Control, &ask, ATTEMPT) => {
                                return match answer {
                                    Ok(Answer::Renewed(renewed)) => renewed,
                                    Ok(_) | Err(_) => None,
                                };
                            }
                            // Whoever asked has little time: it is not for waiting for somebody who is dead.
                            () = self.leads_no_more(core, Some(id)) => {}
                        }
                    }
                    None if may_forward && !waited => {
                        waited = true;
                        timeout(ELECTED_WITHIN, self.leads_no_more(core, None)).await.ok();
                    }
                    _ => return None,
                }
            }
        };
        timeout(ATTEMPT, asked).await.ok().flatten()
    }

    /// Waits until this node knows of another leader than this one, or of none. Cancel safe.
    async fn leads_no_more(&self, core: &Core, id: Option<NodeId>) {
        let mut metrics = core.raft.metrics();
        loop {
            metrics.borrow_and_update();
            let next = self.heard.next();
            tokio::pin!(next);
            // Before the look, so that nothing is missed between the two.
            next.as_mut().enable();
            if self.leader().map(|(leader, _)| leader) != id {
                return;
            }
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { std::future::pending().await },
                () = next => {}
            }
        }
    }

    /// Returns the index up to which a read that begins now must look.
    pub(crate) async fn read_point(&self, may_forward: bool) -> Option<u64> {
        let core = self.core.get()?;
        match self.leader()? {
            (id, _) if id == self.identity.node => {
                let term = if broken(Rule::Read) { self.leading()? } else { core.confirmer.confirm().await? };
                (*core.reign.borrow() == Some(term))
                    .then(|| self.published().borrow().applied.position.map_or(0, |position| position.index))
            }
            (id, info) if may_forward => {
                match self.links.call(id, &info.peer_address, Purpose::Control, &Ask::ReadPoint, ATTEMPT).await {
                    Ok(Answer::ReadPoint(point)) => point,
                    Ok(_) | Err(_) => None,
                }
            }
            _ => None,
        }
    }

    pub(crate) async fn read(&self, within: Duration) -> Result<Published, NotCommitted> {
        let deadline = Instant::now() + within;
        loop {
            self.takes_part()?;
            if let Some(point) = self.read_point(true).await {
                let mut published = self.published();
                let reached = published
                    .wait_for(|published| published.applied.position.map_or(0, |position| position.index) >= point);
                if let Ok(Ok(published)) = timeout_at(deadline, reached).await {
                    return Ok(published.clone());
                }
            }
            if Instant::now() >= deadline {
                return Err(NotCommitted::NoLeader);
            }
            sleep(NO_LEADER_PAUSE).await;
        }
    }
}
