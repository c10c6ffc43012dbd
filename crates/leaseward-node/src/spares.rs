//! Shims that are started before anybody needs them: loading the program is the longest step of a start.
//!
//! Must stay true: one that is gone is never used, and without any a start takes a new one; so nothing depends on them.

use std::sync::{Mutex, PoisonError};

use crate::launch::{Program, Waiting};
use crate::limits::{SPARE_SHIMS, SPARES_PAUSE};

/// The shims of a machine that wait for an order.
#[derive(Debug)]
pub(crate) struct Spares {
    program: Program,
    waiting: Mutex<Vec<Waiting>>,
}

impl Spares {
    /// Returns none yet.
    pub(crate) fn of(program: Program) -> Self {
        Self { program, waiting: Mutex::default() }
    }

    /// Returns a shim that waits for an order, if need be a new one.
    ///
    /// # Errors
    /// None waited, and none could be started.
    pub(crate) fn take(&self) -> Result<Waiting, String> {
        loop {
            let spare = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut spare) = spare else { return self.fresh() };
            if spare.lives() {
                return Ok(spare);
            }
        }
    }

    /// Returns a new shim.
    pub(crate) fn fresh(&self) -> Result<Waiting, String> {
        Waiting::for_a_server(&self.program)
    }

    /// Starts those that are missing, once whoever is starting now is through.
    pub(crate) async fn refill_soon(&self) {
        tokio::time::sleep(SPARES_PAUSE).await;
        self.refill();
    }

    /// Starts those that are missing.
    fn refill(&self) {
        let missing = |waiting: &mut Vec<Waiting>| {
            waiting.retain_mut(Waiting::lives);
            waiting.len() < SPARE_SHIMS
        };
        // Not under the lock: who starts a server must not wait for this.
        while missing(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner)) {
            let Ok(spare) = self.fresh() else { return };
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if missing(&mut waiting) {
                waiting.push(spare);
            }
        }
    }
}
