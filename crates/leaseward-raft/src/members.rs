//! Changes of members, one at a time, on the leader.
//!
//! Must stay true: a node id is the index of a committed entry, so it was never used before; a change that would
//! leave no quorum among those who answer is refused. Whether a node may vote is part of its membership record, so a
//! new leader goes on where the old one stopped. Who of them votes is up to `autopilot.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use leaseward_state::{ClusterMillis, UnixMillis};
use openraft::{ChangeMembers, ServerState};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::autopilot::SAY_WITHIN;
use crate::net::wire::{Answer, Ask, MemberChange, Purpose};
use crate::replica::{Core, Shared};
use crate::stored::Membership;
use crate::types::{Batch, NodeId, NodeInfo, Standing};

/// A change that is not committed after this is given up; it may still come true.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

fn failed(code: &str, why: impl Into<String>) -> Answer {
    Answer::Failed { code: code.into(), why: why.into() }
}

fn not_now() -> Answer {
    failed("LW0501", "the cluster has no leader that answers")
}

impl Shared {
    /// Lets a node in as a learner. Returns its id.
    pub(crate) async fn let_in(self: &Arc<Self>, mut info: NodeInfo, replace: bool, feature_level: u32) -> Answer {
        let Some(core) = self.core.get() else { return not_now() };
        let _one_at_a_time = core.changing.lock().await;
        // Whoever does not reign yet may not know the level.
        if self.leading().is_none() {
            return not_now();
        }
        if let Some(refused) = self.too_old(feature_level) {
            return refused;
        }
        let membership = self.status().membership;
        let namesakes: Vec<NodeId> =
            membership.nodes.iter().filter(|(_, node)| node.name == info.name).map(|(id, _)| *id).collect();
        let voters: BTreeSet<NodeId> = membership.voters.iter().flatten().copied().collect();
        info.replaces = None;
        for namesake in namesakes {
            if voters.contains(&namesake) {
                if !replace {
                    return failed(
                        "LW0608",
                        format!(
                            "node {namesake} is a voter with the name {}; if its disk is gone, join with --replace",
                            info.name
                        ),
                    );
                }
                info.replaces = Some(namesake);
            } else if let Err(answer) = self.change(ChangeMembers::RemoveNodes(BTreeSet::from([namesake]))).await {
                return answer;
            }
        }
        // Nothing is asked of the state, so the entry says no time.
        let nothing = Batch { at: UnixMillis(0), elapsed: ClusterMillis(0), requests: Vec::new() };
        let reserve = core.raft.client_write(nothing);
        let node = match timeout(CHANGE_WITHIN, reserve).await {
            Ok(Ok(reserved)) => {
                let response: openraft::raft::ClientWriteResponse<crate::types::TypeConfig> = reserved;
                response.log_id.index
            }
            Ok(Err(_)) | Err(_) => return not_now(),
        };
        info!(node, name = info.name, standing = ?info.standing, "letting a node in");
        match self.change(ChangeMembers::AddNodes(BTreeMap::from([(node, info)]))).await {
            Ok(()) => Answer::Joined { cluster: self.identity.cluster, node },
            Err(answer) => answer,
        }
    }

    pub(crate) async fn change(&self, change: ChangeMembers<NodeId, NodeInfo>) -> Result<(), Answer> {
        let Some(core) = self.core.get() else { return Err(not_now()) };
        match timeout(CHANGE_WITHIN, core.raft.change_membership(change, true)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed("LW0609", format!("the members cannot be changed now: {error}"))),
            Err(_) => Err(failed("LW0502", "the change is not committed yet; its outcome is unknown")),
        }
    }

    /// Carries out a change that an operator asked for.
    pub(crate) async fn change_members(self: &Arc<Self>, change: MemberChange) -> Answer {
        let Some(core) = self.core.get() else { return not_now() };
        let _one_at_a_time = core.changing.lock().await;
        let membership = self.status().membership;
        let voters: BTreeSet<NodeId> = membership.voters.iter().flatten().copied().collect();
        let known = |id: &NodeId| membership.nodes.contains_key(id);
        let outcome = match change {
            MemberChange::Promote(id) | MemberChange::Demote(id) | MemberChange::Remove(id) if !known(&id) => {
                return failed("LW0404", format!("there is no node {id}"));
            }
            MemberChange::Promote(id) => self.stand(&membership, id, Standing::Voter).await,
            MemberChange::Demote(id) | MemberChange::Remove(id) => {
                if voters.contains(&id) {
                    if let Err(answer) = self.keeps_quorum(core, &membership, id).await {
                        return answer;
                    }
                    if let Err(answer) = self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await {
                        return answer;
                    }
                }
                match change {
                    MemberChange::Remove(_) => self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id]))).await,
                    _ => self.stand(&membership, id, Standing::Learner).await,
                }
            }
            MemberChange::FinishUpgrade => return self.finish_upgrade().await,
            MemberChange::Transfer(to) => return self.transfer(&voters, &membership, to).await,
        };
        outcome.map_or_else(|answer| answer, |()| Answer::Done)
    }

    /// Says whether a node may vote; autopilot does the rest.
    async fn stand(&self, membership: &Membership, id: NodeId, standing: Standing) -> Result<(), Answer> {
        let info = NodeInfo { standing, ..membership.nodes.get(&id).cloned().unwrap_or_default() };
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(id, info)]))).await
    }

    /// Refuses to remove a voter if those who are left and answer would be no majority. They are asked: how far one got says
    /// nothing of whether it still lives.
    async fn keeps_quorum(&self, core: &Core, membership: &Membership, removed: NodeId) -> Result<(), Answer> {
        let voters: BTreeSet<NodeId> = membership.voters.iter().flatten().copied().collect();
        let left: BTreeSet<NodeId> = voters.into_iter().filter(|id| *id != removed).collect();
        if left.is_empty() {
            return Err(failed("LW0610", "the last voter cannot be removed"));
        }
        let answers = async |id: NodeId| {
            let Some(node) = membership.nodes.get(&id) else { return false };
            let said = self.links.call(id, &node.peer_address, Purpose::Control, &Ask::Status, SAY_WITHIN).await;
            matches!(said, Ok(Answer::Status(status)) if status.quarantined.is_none())
        };
        let others = left.iter().copied().filter(|id| *id != self.identity.node);
        let answered = join_all(others.map(async |id| (id, answers(id).await))).await;
        let caught_up = self.caught_up(core);
        let well = answered.into_iter().filter(|(id, answers)| *answers && caught_up.contains(id)).count();
        let healthy = well + usize::from(left.contains(&self.identity.node));
        if healthy * 2 > left.len() {
            return Ok(());
        }
        Err(failed(
            "LW0610",
            format!(
                "without node {removed} only {healthy} of {} voters would answer: the cluster would stop",
                left.len()
            ),
        ))
    }

    /// Hands leadership over: waits until the other one has everything, falls silent, and lets it campaign.
    async fn transfer(&self, voters: &BTreeSet<NodeId>, membership: &Membership, to: Option<NodeId>) -> Answer {
        let Some(core) = self.core.get() else { return not_now() };
        let positions = |id: &NodeId| {
            let metrics = core.raft.metrics();
            let metrics = metrics.borrow();
            let replication = metrics.replication.as_ref()?;
            replication.get(id)?.as_ref().map(|at| at.index)
        };
        let target = to.or_else(|| {
            voters.iter().copied().filter(|id| *id != self.identity.node).max_by_key(|id| positions(id).unwrap_or(0))
        });
        let Some(target) = target else { return failed("LW0611", "there is no other voter") };
        if target == self.identity.node {
            return Answer::Done;
        }
        let Some(address) = membership.nodes.get(&target).map(|node| node.peer_address.clone()) else {
            return failed("LW0404", format!("there is no node {target}"));
        };
        if !voters.contains(&target) {
            return failed("LW0611", format!("node {target} does not vote"));
        }
        let give_up = Instant::now() + Duration::from_secs(3);
        while positions(&target) < core.raft.metrics().borrow().last_log_index {
            if Instant::now() > give_up {
                return failed("LW0611", format!("node {target} does not keep up"));
            }
            sleep(Duration::from_millis(5)).await;
        }
        let term = core.raft.metrics().borrow().current_term;
        // Whoever asked may hang up.
        let silence = Silence::begin(core);
        let asked =
            self.links.call(target, &address, Purpose::Control, &Ask::TakeOver { term }, Duration::from_secs(2)).await;
        let mut metrics = core.raft.metrics();
        let handed_over = timeout(
            Duration::from_secs(2),
            metrics.wait_for(|metrics| metrics.state != ServerState::Leader && metrics.current_leader.is_some()),
        )
        .await
        .is_ok();
        drop(silence);
        match (handed_over, asked) {
            (true, _) => Answer::Done,
            (false, Err(error)) => failed("LW0611", format!("node {target} does not answer: {error}")),
            (false, Ok(_)) => failed("LW0611", format!("node {target} was not elected")),
        }
    }
}

/// No heartbeats, as long as it lives: whoever waits for the word of a leader that gives up the lead need not wait for long.
struct Silence<'a>(&'a Core);

impl<'a> Silence<'a> {
    fn begin(core: &'a Core) -> Self {
        core.raft.runtime_config().heartbeat(false);
        Self(core)
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        self.0.raft.runtime_config().heartbeat(true);
    }
}
