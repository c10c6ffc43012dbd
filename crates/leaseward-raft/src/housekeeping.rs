//! What a node looks after from time to time: its core, its snapshots, its disk.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, interval};
use tracing::{error, info, warn};

use crate::background;
use crate::limits::REMEMBER_EACH;
use crate::replica::{Core, Shared};
use crate::types::{NodeId, Raft};

/// Ends the process when the consensus core is gone: its metrics would still say that all is well.
pub(crate) async fn watchdog(raft: Raft, fatal: crate::settings::Fatal) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        if let Err(gone) = raft.with_raft_state(|_| ()).await {
            if !matches!(gone, openraft::error::Fatal::Stopped) {
                fatal(&format!("the consensus core is gone: {gone}"));
            }
            return;
        }
    }
}

/// Snapshots by size, free space, what is known of the others.
pub(crate) async fn run(weak: Weak<Shared>) {
    let mut ticks = interval(Duration::from_millis(200));
    let mut snapshot_index = None;
    // What the log holds behind the snapshot, what was there at the start too: a node that is started again often
    // makes snapshots all the same.
    let mut behind = 0;
    let mut counted = 0;
    let mut remember = Remember::default();
    loop {
        ticks.tick().await;
        let Some(shared) = weak.upgrade() else { return };
        let Some(core) = shared.core.get() else { return };
        shared.look_at_disk();
        let snapshot = core.raft.metrics().borrow().snapshot.map_or(0, |at| at.index);
        let appended = core.log.appended_bytes();
        behind += appended - counted;
        counted = appended;
        if snapshot_index != Some(snapshot) {
            snapshot_index = Some(snapshot);
            behind = core.log.bytes_after(snapshot);
            if let Some(purge) = core.log.index_before(shared.settings.log_bytes_kept).filter(|_| snapshot > 0) {
                core.raft.trigger().purge_log(purge.min(snapshot)).await.ok();
            }
        }
        if behind > shared.settings.snapshot_after_bytes && shared.has_room_for_snapshot() {
            behind = 0;
            core.raft.trigger().snapshot().await.ok();
        }
        remember.now_and_then(&shared, core).await;
    }
}

/// Keeps on disk what this node knows of the others, and tells them, now and then; never if nothing changed.
#[derive(Default)]
struct Remember {
    at: Option<Instant>,
    told: Vec<(NodeId, u64)>,
}

impl Remember {
    async fn now_and_then(&mut self, shared: &Arc<Shared>, core: &Core) {
        if self.at.is_some_and(|at| at.elapsed() < REMEMBER_EACH) {
            return;
        }
        self.at = Some(Instant::now());
        let acknowledged = shared.memory.as_leader(&core.raft);
        if !acknowledged.is_empty() && acknowledged != self.told && core.confirmer.confirm().await.is_some() {
            // The round carried it to the others.
            self.told = acknowledged;
        }
        let memory = Arc::clone(&shared.memory);
        let kept = background::blocking(move || memory.keep()).await;
        if let Ok(Err(error)) = kept {
            warn!(%error, "what the others acknowledged is not kept on disk");
        }
    }
}

impl Shared {
    fn free_bytes(&self) -> Option<u64> {
        rustix::fs::statvfs(&self.settings.data).ok().map(|stat| stat.f_bavail * stat.f_frsize)
    }

    /// A snapshot must leave to the log what that needs: it is made when there is room for one like the last beside it.
    fn has_room_for_snapshot(&self) -> bool {
        let last = self.snapshots.newest_head().ok().flatten().map_or(0, |(file, _)| file.size);
        self.free_bytes().is_none_or(|free| free >= last + self.settings.free_bytes_min)
    }

    fn look_at_disk(&self) {
        let Some(free) = self.free_bytes() else { return };
        let full = free < self.settings.free_bytes_min;
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            if full {
                error!(dir = %self.settings.data.display(), "LW0605: the disk is nearly full; no proposals are taken");
            } else {
                info!("the disk has room again");
            }
        }
    }
}
