//! What runs for a set on this machine, for whoever asks why it is not there yet.

use leaseward_state::config::SetStep;
use leaseward_state::config::spec::SetHook;
use tokio::sync::watch;

use crate::limits::COMMAND_BYTES_SHOWN;

/// A program that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) step: SetStep,
    pub(crate) command: String,
    pub(crate) timeout_ms: u64,
}

/// Says what runs. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(watch::Sender<Option<Step>>);

impl Running {
    /// Says that this program runs, until what is returned is dropped.
    pub(crate) fn begin(&self, step: SetStep, hook: &SetHook) -> Guard<'_> {
        let mut command = hook.command.join(" ");
        if command.len() > COMMAND_BYTES_SHOWN {
            command.truncate(command.floor_char_boundary(COMMAND_BYTES_SHOWN));
            command.push('…');
        }
        self.0.send_replace(Some(Step { step, command, timeout_ms: hook.timeout_ms }));
        Guard(self)
    }

    pub(crate) fn listen(&self) -> watch::Receiver<Option<Step>> {
        self.0.subscribe()
    }
}

/// Says that it ended when it is dropped.
pub(crate) struct Guard<'a>(&'a Running);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.0.send_replace(None);
    }
}
