//! Work beside the loops: on threads of its own, some of which can wait.

use rustix::process::{getpriority_process, setpriority_process};
use tracing::debug;

/// Added to the niceness: a tenth of the weight of ordinary threads. They still move when the machine is busy, and
/// commits do not wait for them.
const NICER: i32 = 10;

/// Returns what `work` returns, which may block. A simulated host does it at once.
///
/// # Errors
/// If it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    #[cfg(feature = "simulation")]
    if crate::simulation::host().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Lets this thread, and those that it starts from now on, run after the ordinary ones when the machine is busy.
pub(crate) fn yield_to_commits() {
    let lowered = getpriority_process(None).and_then(|niceness| setpriority_process(None, (niceness + NICER).min(19)));
    if let Err(error) = lowered {
        debug!(%error, "a background thread keeps its priority");
    }
}
