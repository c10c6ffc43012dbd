//! When a leader may act: the beginning of its reign.

use leaseward_state::Term;
use openraft::ServerState;
use tokio::sync::watch;

use crate::types::Raft;

/// Publishes the term in which this node leads, from the moment on at which everything that was in the log when it
/// began to lead is applied.
///
/// Waiting for the new leader's own first entry is not enough: a leader that is started again in its own term leads
/// without a new one, and its log may hold the end of a session that it proposed before, not yet applied. It must
/// not answer that session's renewals (rule R2).
pub(crate) async fn follow(raft: Raft, reign: watch::Sender<Option<Term>>) {
    let mut metrics = raft.metrics();
    let mut barrier: Option<(u64, u64)> = None;
    loop {
        let now = {
            let metrics = metrics.borrow_and_update();
            if metrics.state == ServerState::Leader {
                let term = metrics.current_term;
                let last = metrics.last_log_index.unwrap_or_default();
                if barrier.is_none_or(|(of, _)| of != term) {
                    barrier = Some((term, last));
                }
                let index = barrier.map_or(last, |(_, index)| index);
                let applied = metrics.last_applied.as_ref();
                applied.filter(|at| at.index >= index && at.leader_id.term == term).map(|_| Term(term))
            } else {
                barrier = None;
                None
            }
        };
        reign.send_if_modified(|known| std::mem::replace(known, now) != now);
        if metrics.changed().await.is_err() {
            reign.send_replace(None);
            return;
        }
    }
}
