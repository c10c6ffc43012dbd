//! Work that runs programs of the set: the monitor says which, while they run.
//!
//! Must stay true: what ends soon is not spoken of; whatever comes after it is said by whoever waited.

use leaseward_state::config::SyncState;
use tokio::time::sleep;

use super::SetTask;
use crate::limits::STEP_SHOWN_AFTER;
use crate::member::running::{Running, Step};

impl SetTask {
    /// Waits for work, and says what it runs if that takes its time.
    pub(super) async fn telling<T>(&mut self, running: &Running, version: u64, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut heard = running.listen();
        let mut said = false;
        loop {
            let step = heard.borrow_and_update().clone().filter(|_| !said);
            let long = async {
                match &step {
                    Some(_) => sleep(STEP_SHOWN_AFTER).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = &mut work => return done,
                Ok(()) = heard.changed() => said = false,
                () = long => {
                    if let Some(Step { step, command, timeout_ms }) = step {
                        let elapsed_ms = STEP_SHOWN_AFTER.as_millis() as u64;
                        self.progress(SyncState::Running { version, step, command, elapsed_ms, timeout_ms }, version).await;
                    }
                    said = true;
                }
            }
        }
    }
}
