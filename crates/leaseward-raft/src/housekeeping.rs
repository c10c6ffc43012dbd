//! What a node looks after from time to time: its core, its snapshots, its disk, learners that want to vote.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ServerState;
use tokio::time::interval;
use tracing::{error, info};

use crate::limits::LOG_BYTES_KEPT;
use crate::replica::Shared;
use crate::types::Raft;

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

/// Snapshots by size, members that want to vote, free space.
pub(crate) async fn run(weak: Weak<Shared>) {
    let mut ticks = interval(Duration::from_millis(200));
    let mut bytes_at_snapshot = 0;
    let mut snapshot_index = 0;
    loop {
        ticks.tick().await;
        let Some(shared) = weak.upgrade() else { return };
        let Some(core) = shared.core.get() else { return };
        shared.look_at_disk();
        let (leads, snapshot) = {
            let metrics = core.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.state == ServerState::Leader, metrics.snapshot.map_or(0, |at| at.index))
        };
        let bytes = core.log.appended_bytes();
        if snapshot != snapshot_index {
            snapshot_index = snapshot;
            bytes_at_snapshot = bytes;
            if let Some(purge) = core.log.index_before(LOG_BYTES_KEPT) {
                core.raft.trigger().purge_log(purge.min(snapshot)).await.ok();
            }
        }
        if bytes - bytes_at_snapshot > shared.settings.snapshot_after_bytes {
            bytes_at_snapshot = bytes;
            core.raft.trigger().snapshot().await.ok();
        }
        if leads {
            shared.promote_who_caught_up().await;
        }
    }
}

impl Shared {
    fn look_at_disk(&self) {
        let Ok(stat) = rustix::fs::statvfs(&self.settings.data) else { return };
        let full = stat.f_bavail * stat.f_frsize < self.settings.free_bytes_min;
        if self.disk_full.swap(full, Ordering::Relaxed) != full {
            if full {
                error!(dir = %self.settings.data.display(), "LW0605: the disk is nearly full; no proposals are taken");
            } else {
                info!("the disk has room again");
            }
        }
    }
}
