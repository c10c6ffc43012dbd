//! Whether a version may be built upon another one by its delta alone.
//!
//! Must stay true: of the versions that are kept when the next one has come, a quorum of voters holds one durably, or the
//! log holds it whole; what is newer follows from it by the deltas that are kept with it. Otherwise a set that keeps few
//! versions could forget, within the moments in which voters make and sync what was committed, all that its newest one
//! is made of: a power cut of all voters would leave deltas upon nothing.
//! A `keep_versions` that is made smaller is committed under the same rule, and only upon the version for which it was found
//! to hold: what is published next was looked at after that version, and keeps one more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use leaseward_raft::NodeId;
use leaseward_raft::confirm::is_quorum;
use leaseward_raft::net::wire::{Answer, Ask, Purpose};
use leaseward_raft::stored::Membership;
use leaseward_state::config::{Digest, Version};
use leaseward_state::{Revision, SetName};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::QuorumContent;
use crate::error::Result;
use crate::limits::{ATTEMPT, HELD_LOOK_EACH, HELD_WITHIN};

/// Up to which revision a quorum of voters held all content durably when it was asked last.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicU64);

impl QuorumContent {
    /// Returns whether the next version may be made of `base`, the newest one of its set, by a delta.
    pub(super) async fn can_be_built_upon(&self, base: Option<(u64, Digest)>) -> bool {
        // The log holds a first version whole.
        let Some(base) = base else { return true };
        let state = Arc::clone(&self.replica.published().borrow().state);
        let of_base = |newest: &Version| (newest.number, newest.manifest) == base;
        // Two sets may be alike in that: the stricter one counts.
        let sets = state.sets().filter(|(_, set)| set.newest().is_some_and(of_base));
        let needed =
            sets.map(|(_, set)| anchor(set.versions.values().map(|version| &**version), set.spec.keep_versions));
        let needed = needed.max().unwrap_or_default();
        needed.0 <= self.held.0.load(Ordering::Relaxed) || self.look_for(needed).await
    }

    /// Makes sure that a set may keep so few versions from its newest one on: one of those that stay when the next one has
    /// come is on a quorum then, or in the log whole. Returns the number of the newest one; it holds for that one only.
    ///
    /// Waits a moment for the voters, which make and sync what was committed; after that the newest version goes to a quorum.
    ///
    /// # Errors
    /// As [`QuorumContent::make_quorum`] and [`QuorumContent::manifest`].
    pub async fn may_keep(&self, set: &SetName, keep: u32) -> Result<u64> {
        let until = Instant::now() + HELD_WITHIN;
        loop {
            let state = Arc::clone(&self.replica.published().borrow().state);
            let Some(found) = state.set(set) else { return Ok(0) };
            let needed = anchor(found.versions.values().map(|version| &**version), keep);
            if needed.0 <= self.held.0.load(Ordering::Relaxed) || self.look_for(needed).await {
                return Ok(found.head);
            }
            if let Some(newest) = found.newest()
                && until <= Instant::now()
            {
                let tree = self.manifest(newest.manifest).await?;
                let mut named: Vec<Digest> = tree.chunk_names().into_iter().collect();
                named.push(newest.manifest);
                self.make_quorum(&named).await?;
                return Ok(found.head);
            }
            // Whoever has yet to make it need not wait any longer.
            self.asked.notify_one();
            sleep(HELD_LOOK_EACH).await;
        }
    }

    /// Asks voters up to which revision they hold all content, until a quorum holds it up to this one.
    async fn look_for(&self, needed: Revision) -> bool {
        let own = self.replica.status();
        let mut said = BTreeMap::from([(own.node, own.content_complete)]);
        let mut asking = JoinSet::new();
        for id in self.others() {
            let replica = self.replica.clone();
            asking.spawn(async move { (id, replica.ask(id, Purpose::Bulk, &Ask::Status, ATTEMPT).await) });
        }
        loop {
            let held = held_by_quorum(&own.membership, &said);
            if held >= needed {
                self.held.0.fetch_max(held.0, Ordering::Relaxed);
                return true;
            }
            match asking.join_next().await {
                None => return false,
                Some(Ok((id, Ok(Answer::Status(status))))) => drop(said.insert(id, status.content_complete)),
                Some(_) => {}
            }
        }
    }
}

/// Returns up to which revision a quorum must hold all content before another version is built upon the newest one of
/// these, ascending. Those that are forgotten with it, and those that nothing is made of, do not count.
fn anchor<'a>(versions: impl DoubleEndedIterator<Item = &'a Version>, keep: u32) -> Revision {
    let mut oldest = Revision(0);
    for version in versions.rev().take((keep as usize).saturating_sub(1)) {
        match &version.delta {
            Some(delta) if delta.base > 0 => oldest = version.revision,
            // Made of nothing, or on a quorum from the beginning.
            _ => return Revision(0),
        }
    }
    oldest
}

/// Returns the highest revision up to which a quorum holds all content.
fn held_by_quorum(membership: &Membership, said: &BTreeMap<NodeId, Revision>) -> Revision {
    let holds = |held: &Revision| {
        let yes: BTreeSet<NodeId> = said.iter().filter(|(_, other)| *other >= held).map(|(id, _)| *id).collect();
        is_quorum(membership, &yes)
    };
    said.values().copied().filter(holds).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use leaseward_state::UnixMillis;
    use leaseward_state::config::delta::InlineDelta;

    use super::*;

    /// A version at the revision of its number times ten, made of `base`; `None`: whole.
    fn version(number: u64, base: Option<u64>) -> Version {
        Version {
            number,
            parent: number - 1,
            manifest: Digest([number as u8; 32]),
            files: 1,
            bytes: 1,
            author: String::new(),
            message: String::new(),
            at: UnixMillis(0),
            revision: Revision(number * 10),
            delta: base.map(|base| InlineDelta { base, bytes: Vec::new().into() }),
        }
    }

    #[test]
    fn one_version_of_those_that_stay_must_be_held_unless_the_log_has_it_whole() {
        let needed = |bases: &[Option<u64>], keep| {
            let versions: Vec<Version> =
                bases.iter().enumerate().map(|(i, base)| version(i as u64 + 1, *base)).collect();
            anchor(versions.iter(), keep).0
        };
        assert_eq!(needed(&[], 2), 0);
        assert_eq!(needed(&[Some(0)], 2), 0, "the first one stays");
        assert_eq!(needed(&[Some(0), Some(1)], 2), 20, "only the second one stays");
        assert_eq!(needed(&[Some(0), Some(1)], 3), 0, "both stay");
        assert_eq!(needed(&[Some(0), Some(1), Some(2), Some(3)], 3), 30, "the third one and the fourth");
        assert_eq!(needed(&[Some(0), Some(1), None, Some(3)], 3), 0, "a quorum has the third one");
        assert_eq!(needed(&[Some(0), None, Some(2), Some(3)], 3), 30, "the second one goes");
    }

    #[test]
    fn what_a_quorum_holds_is_what_most_say() {
        let voters = vec![BTreeSet::from([1, 2, 3])];
        let membership = Membership { voters, nodes: BTreeMap::new() };
        let held = |said: &[(NodeId, u64)]| {
            held_by_quorum(&membership, &said.iter().map(|(id, held)| (*id, Revision(*held))).collect()).0
        };
        assert_eq!(held(&[(1, 50)]), 0, "one is no quorum");
        assert_eq!(held(&[(1, 50), (2, 30)]), 30);
        assert_eq!(held(&[(1, 50), (2, 30), (3, 40)]), 40);
        assert_eq!(held(&[(1, 50), (7, 50), (8, 50)]), 0, "others do not vote");
    }
}
