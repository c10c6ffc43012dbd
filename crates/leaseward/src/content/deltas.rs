//! What members are given that have one version and should have another: the committed delta, or one that is made here.
//!
//! Must stay true: memory for one delta at a time, and a few that were made; a member that gets none fetches blobs.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaseward_raft::machine::Published;
use leaseward_state::SetName;
use leaseward_state::config::Digest;
use leaseward_state::config::delta::SharedBytes;
use leaseward_sync::delta::{self, Delta};
use leaseward_sync::limits::DELTA_SENT_BYTES_MAX;
use leaseward_sync::{BlobStore, manifest};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::debug;

/// A member may know of a version a moment before this voter does.
const KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Deltas that were made and are kept: members that were away ask for the same ones, one after another.
const MADE_KEPT: usize = 4;

type Made = ((Digest, Digest), Option<SharedBytes>);

/// Makes deltas.
pub(super) struct Deltas {
    turns: Semaphore,
    made: Mutex<VecDeque<Made>>,
}

impl Default for Deltas {
    fn default() -> Self {
        Self { turns: Semaphore::new(1), made: Mutex::default() }
    }
}

impl Deltas {
    /// Waits until nobody else holds the memory that a delta takes.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    pub(super) async fn find(
        &self,
        store: &Arc<BlobStore>,
        mut published: watch::Receiver<Published>,
        set: &SetName,
        base: Digest,
        next: Digest,
    ) -> Option<SharedBytes> {
        let known = published.wait_for(|published| {
            let set = published.state.set(set);
            set.is_some_and(|set| set.versions.values().any(|version| version.manifest == next))
        });
        let state = Arc::clone(&timeout(KNOWN_WITHIN, known).await.ok()?.ok()?.state);
        let versions = state.set(set)?.versions.values();
        let inline = versions.filter(|version| version.manifest == next).filter_map(|version| version.delta.as_ref());
        for delta in inline {
            if Delta::open(delta.bytes.as_slice()).is_ok_and(|delta| delta.base() == base) {
                return Some(delta.bytes.clone());
            }
        }
        // Out of nothing only blobs can be made.
        if base == leaseward_sync::empty_tree() {
            return None;
        }
        let _turn = self.turn().await?;
        if let Some((_, made)) = self.made().iter().find(|(names, _)| *names == (base, next)) {
            return made.clone();
        }
        let store = Arc::clone(store);
        let made = spawn_blocking(move || make(&store, base, next)).await.ok()?;
        let made = match made {
            Ok(made) => made.map(SharedBytes::from),
            // Not remembered: the blobs may still be on their way here.
            Err(error) => {
                debug!(%set, %error, "no delta for a member");
                return None;
            }
        };
        let mut kept = self.made();
        kept.push_back(((base, next), made.clone()));
        if kept.len() > MADE_KEPT {
            kept.pop_front();
        }
        made
    }

    fn made(&self) -> std::sync::MutexGuard<'_, VecDeque<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(store: &BlobStore, base: Digest, next: Digest) -> leaseward_sync::Result<Option<Vec<u8>>> {
    let tree = |digest| manifest::decode(&store.get(digest)?);
    delta::encode(&tree(base)?, &tree(next)?, &mut |chunk| store.get(chunk.digest), DELTA_SENT_BYTES_MAX)
}
