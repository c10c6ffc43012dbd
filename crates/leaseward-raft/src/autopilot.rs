//! Keeps the right nodes voting: an odd number of them, a standby in the place of one that is lost.
//!
//! Must stay true: it acts only while this node leads, on what it has heard in this reign, one change at a time; a node
//! learns before it votes, and holds the content that committed versions name before it counts for a quorum of it.
//! Who should vote is decided on values in `choose.rs`.

mod choose;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::{Arc, Weak};
use std::time::Duration;

use leaseward_state::{Command, MachineName, State, Term};
use openraft::ChangeMembers;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::limits::{ASK_NODES_EACH, GONE_SHARE, MISSED_AFTER, STEADY_SHARE};
use crate::net::wire::{Answer, Ask, NodeStatus, Purpose};
use crate::replica::{Core, Shared};
use crate::stored::Membership;
use crate::types::{NodeId, NodeInfo};
use choose::{Bounds, Choice, Heard, Seat, choose};

/// A learner is caught up when it lacks at most this many entries.
const CAUGHT_UP: u64 = 64;

/// A node that says nothing within this is not heard.
pub(crate) const SAY_WITHIN: Duration = Duration::from_secs(1);

/// What this leader has heard of one node in its reign.
#[derive(Debug)]
struct Known {
    /// When it answered last; at first, when the reign began.
    heard: Instant,
    /// Since when it answers without a break.
    steady: Option<Instant>,
    /// It answered and fell silent in this reign.
    faltered: bool,
    /// Since when nothing listens where it was.
    refused: Option<Instant>,
    /// Whether the log says that it is not heard.
    missed: bool,
    said: Option<NodeStatus>,
}

/// How a node answered.
enum Said {
    Status(Box<NodeStatus>),
    /// Nothing listens there.
    Refused,
    Nothing,
}

/// Runs until the node is gone.
pub(crate) async fn run(weak: Weak<Shared>) {
    let mut reign: Option<Term> = None;
    let mut known: BTreeMap<NodeId, Known> = BTreeMap::new();
    loop {
        sleep(ASK_NODES_EACH).await;
        let Some(shared) = weak.upgrade() else { return };
        let Some(core) = shared.core.get() else { continue };
        let term = shared.leading();
        if term != reign {
            known.clear();
            reign = term;
        }
        let Some(term) = term else { continue };
        let membership = shared.status().membership;
        shared.listen(&membership, &mut known).await;
        let state = Arc::clone(&shared.published().borrow().state);
        if let Some(choice) = shared.who_should_vote(core, &membership, &known, &state) {
            shared.seat(core, choice, term).await;
        }
    }
}

impl Shared {
    /// Asks every other node how it is.
    async fn listen(&self, membership: &Membership, known: &mut BTreeMap<NodeId, Known>) {
        known.retain(|id, _| membership.nodes.contains_key(id));
        let mut asked = JoinSet::new();
        for (id, node) in membership.nodes.iter().filter(|(id, _)| **id != self.identity.node) {
            let (links, id, address) = (self.links.clone(), *id, node.peer_address.clone());
            let transport = self.settings.transport;
            asked.spawn(async move {
                let said = match links.call(id, &address, Purpose::Control, &Ask::Status, SAY_WITHIN).await {
                    Ok(Answer::Status(status)) if status.quarantined.is_none() => Said::Status(status),
                    Ok(_) => Said::Nothing,
                    Err(_) => match timeout(SAY_WITHIN, transport.connect(&address)).await {
                        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Said::Refused,
                        _ => Said::Nothing,
                    },
                };
                (id, said)
            });
        }
        let name = |id: &NodeId| membership.nodes.get(id).map_or("", |node| node.name.as_str());
        while let Some(answered) = asked.join_next().await {
            let Ok((id, said)) = answered else { continue };
            let now = Instant::now();
            let node = known.entry(id).or_insert(Known {
                heard: now,
                steady: None,
                faltered: false,
                refused: None,
                missed: false,
                said: None,
            });
            match said {
                Said::Status(status) => {
                    if std::mem::take(&mut node.missed) {
                        info!(node = id, name = name(&id), after = ?node.heard.elapsed(), "a node is heard again");
                    }
                    node.heard = now;
                    node.steady.get_or_insert(now);
                    node.refused = None;
                    node.said = Some(*status);
                }
                silent => {
                    // A new node says nothing until it has opened its directory.
                    node.faltered |= node.steady.take().is_some();
                    node.said = None;
                    node.refused = matches!(silent, Said::Refused).then(|| node.refused.unwrap_or(now));
                    if !node.missed && node.heard.elapsed() >= MISSED_AFTER {
                        node.missed = true;
                        let gone = node.refused.is_some();
                        warn!(node = id, name = name(&id), gone, "a node is not heard");
                    }
                }
            }
        }
    }

    fn who_should_vote(
        &self,
        core: &Core,
        membership: &Membership,
        known: &BTreeMap<NodeId, Known>,
        state: &State,
    ) -> Option<Choice> {
        let policy = state.policy();
        let silence = Duration::from_millis(policy.voter_silence_ms);
        let content = state.sets().map(|(_, set)| set.modified).max().unwrap_or_default();
        let voters = membership.voters.last()?;
        let caught_up = self.caught_up(core);
        let seat = |(id, info): (&NodeId, &NodeInfo)| {
            let votes = voters.contains(id);
            let mine = *id == self.identity.node;
            let known = known.get(id);
            let dead = MachineName::new(info.name.clone())
                .is_ok_and(|name| state.machine(&name).is_some_and(|machine| machine.confirmed_dead));
            let heard = match known {
                _ if mine => Heard::Well,
                None => Heard::NotNow,
                Some(known) if known.steady.is_some() => Heard::Well,
                Some(known) if dead || known.heard.elapsed() >= silence => Heard::Lost,
                Some(known) if known.refused.is_some_and(|since| since.elapsed() >= silence / GONE_SHARE) => {
                    Heard::Gone
                }
                Some(_) => Heard::NotNow,
            };
            let ready = known.is_some_and(|known| {
                let steady =
                    !known.faltered || known.steady.is_some_and(|since| since.elapsed() >= silence / STEADY_SHARE);
                let whole = known.said.as_ref().is_some_and(|said| said.content_complete >= content);
                steady && whole && caught_up.contains(id)
            });
            Seat {
                id: *id,
                name: info.name.clone(),
                standing: info.standing,
                votes,
                heard,
                ready: ready && !votes,
                replaces: info.replaces,
            }
        };
        let seats: Vec<Seat> = membership.nodes.iter().map(seat).collect();
        let bounds = Bounds { min: policy.voters_min as usize, max: policy.voters_max as usize };
        let choice = choose(&seats, self.identity.node, bounds, policy.maintenance.is_some());
        // What a leader before us began is brought to an end first.
        choice.or_else(|| {
            (membership.voters.len() > 1).then(|| Choice {
                voters: voters.clone(),
                settled: None,
                why: "a change of voters that was cut short is ended".into(),
            })
        })
    }

    /// Returns the nodes that have almost all of the log.
    pub(crate) fn caught_up(&self, core: &Core) -> BTreeSet<NodeId> {
        let metrics = core.raft.metrics();
        let metrics = metrics.borrow();
        let last = metrics.last_log_index.unwrap_or_default();
        let positions = metrics.replication.iter().flatten();
        positions
            .filter(|(_, at)| at.as_ref().is_some_and(|at| at.index + CAUGHT_UP >= last))
            .map(|(id, _)| *id)
            .collect()
    }

    async fn seat(self: &Arc<Self>, core: &Core, choice: Choice, term: Term) {
        let Ok(_one_at_a_time) = core.changing.try_lock() else { return };
        let Choice { voters, settled, why } = choice;
        let mut steps = vec![ChangeMembers::ReplaceAllVoters(voters.clone())];
        if let Some((id, old)) = settled {
            let mut info = self.status().membership.nodes.get(&id).cloned().unwrap_or_default();
            info.replaces = None;
            steps.push(ChangeMembers::RemoveNodes(BTreeSet::from([old])));
            steps.push(ChangeMembers::SetNodes(BTreeMap::from([(id, info)])));
        }
        for step in steps {
            if let Err(answer) = self.change(step).await {
                warn!(?answer, why, "the voters could not be changed; trying again");
                return;
            }
        }
        let nodes = self.status().membership.nodes;
        let name = |id: &NodeId| nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.clone());
        let voters: Vec<String> = voters.iter().map(name).collect();
        info!(?voters, why, "other nodes vote now");
        let note = Command::NoteVoters { voters, why, term };
        if let Err(error) = self.propose_here(note.into()).await {
            warn!(%error, "the change of voters is not in the ledger");
        }
    }
}
