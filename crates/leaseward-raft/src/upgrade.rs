//! The feature level, on the leader: a new cluster begins with its first node's, an upgrade ends by raising it.
//!
//! Must stay true: it rises only to what every node has just said it can read, while no node can be let in; a node
//! that cannot read the level is not let in.

use std::collections::BTreeMap;
use std::time::Duration;

use leaseward_state::propose::NotCommitted;
use leaseward_state::{Command, Reply};
use tracing::info;

use crate::net::wire::{Answer, Ask, Purpose};
use crate::replica::{Core, Shared};
use crate::rules::{Rule, broken};

/// A node that does not say what it can read within this is not there.
const SAY_WITHIN: Duration = Duration::from_secs(2);

fn failed(why: String) -> Answer {
    Answer::Failed { code: "LW0612".into(), why }
}

impl Shared {
    fn feature_level(&self) -> u32 {
        self.published().borrow().state.feature_level()
    }

    /// Returns once a command of this level may be proposed here. The first command of a cluster sets its level.
    pub(crate) async fn admit(&self, core: &Core, needs: u32) -> Result<(), NotCommitted> {
        let brand_new = self.published().borrow().state.revision().0 == 0;
        if brand_new && self.settings.feature_level > 0 {
            let term = self.leading().ok_or(NotCommitted::NoLeader)?;
            let raise = Command::RaiseFeatureLevel { to: self.settings.feature_level, term };
            core.batcher.submit(raise.into()).await?;
        }
        let level = self.feature_level();
        if needs <= level {
            return Ok(());
        }
        Err(NotCommitted::Overloaded(format!(
            "LW0612: the cluster is at feature level {level}, and this needs {needs}: some node may run an older release"
        )))
    }

    /// Returns whether a command of this level may be sent to a leader, which may run an older release.
    pub(crate) async fn may_forward_level(&self, needs: u32) -> bool {
        if needs <= self.feature_level() {
            return true;
        }
        // This node may lag behind. A cluster without a command begins with its leader's level, which is not known here.
        let now = self.read(self.settings.propose_within).await;
        now.is_ok_and(|now| needs <= now.state.feature_level() || now.state.revision().0 == 0)
    }

    /// Returns why a node that can read this much may not come in.
    pub(crate) fn too_old(&self, readable: u32) -> Option<Answer> {
        let level = self.feature_level();
        (readable < level)
            .then(|| failed(format!("the cluster is at feature level {level}, the node reads {readable}")))
    }

    /// Raises the feature level to what every node can read. The caller holds back other changes of members.
    pub(crate) async fn finish_upgrade(&self) -> Answer {
        let Some(term) = self.leading() else {
            return Answer::Failed { code: "LW0501".into(), why: "the cluster has no leader that answers".into() };
        };
        let nodes = self.status().membership.nodes;
        let mut readable = BTreeMap::from([(self.settings.name.clone(), self.settings.feature_level)]);
        for (id, node) in nodes.iter().filter(|(id, _)| **id != self.identity.node) {
            match self.links.call(*id, &node.peer_address, Purpose::Control, &Ask::Status, SAY_WITHIN).await {
                Ok(Answer::Status(status)) => readable.insert(node.name.clone(), status.feature_level),
                Ok(_) | Err(_) => return failed(format!("node {} does not say what it can read", node.name)),
            };
        }
        let most = readable.values().copied().max().unwrap_or(0);
        let behind: Vec<_> = readable.iter().filter(|(_, level)| **level < most).collect();
        if !behind.is_empty() && !broken(Rule::Upgrade) {
            let names: Vec<_> = behind.iter().map(|(name, level)| format!("{name} reads level {level}")).collect();
            return failed(format!("not every node can read level {most}: {}", names.join(", ")));
        }
        match self.propose_here(Command::RaiseFeatureLevel { to: most, term }.into()).await.map(|done| done.reply) {
            Ok(Reply::Done) => {
                info!(level = most, "every node can read this feature level");
                Answer::Done
            }
            Ok(Reply::Refused(why)) => Answer::Failed { code: why.code().into(), why: why.to_string() },
            Ok(_) | Err(_) => Answer::Failed { code: "LW0502".into(), why: "the outcome is unknown".into() },
        }
    }
}
