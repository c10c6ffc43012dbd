//! Telling the neighbours: a burst when an address has moved here, then once a minute while it is ours.
//!
//! Must stay true: nothing is sent after the address's time, nor after its release has begun: what is sent here goes
//! past the network fence, and an announcement by a former owner takes the address from its successor.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::link::Links;
use super::{Inner, blocking, wire};
use crate::clock::BootInstant;
use crate::limits::{ADDRESS_BURST, ADDRESS_REFRESH};

/// Until when an address is ours.
#[derive(Debug)]
pub(super) struct Gate(Mutex<BootInstant>);

impl Gate {
    pub(super) fn closed() -> Self {
        Self(Mutex::new(BootInstant(0)))
    }

    pub(super) fn open_until(&self, until: BootInstant) {
        *self.0.lock().expect("no holder of this lock panics") = until;
    }

    /// Closes it. What was being sent has been sent when this returns.
    pub(super) fn close(&self) {
        self.open_until(BootInstant(0));
    }

    /// Runs `send` if the time is not over; nobody closes the gate meanwhile.
    fn pass(&self, send: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let until = self.0.lock().expect("no holder of this lock panics");
        if BootInstant::now() < *until { send() } else { Ok(()) }
    }
}

/// Starts to tell the neighbours of `ip` in the background, until it is aborted or its owner is dropped. Must be
/// called within the runtime.
pub(super) fn start(owner: &Arc<Inner>, ip: IpAddr, gate: Arc<Gate>) -> AbortHandle {
    let owner = Arc::downgrade(owner);
    tokio::spawn(async move {
        let start = Instant::now();
        for after in ADDRESS_BURST {
            sleep_until(start + after).await;
            tell(&owner, ip, &gate, true).await;
        }
        while owner.strong_count() > 0 {
            sleep(ADDRESS_REFRESH).await;
            tell(&owner, ip, &gate, false).await;
        }
    })
    .abort_handle()
}

async fn tell(owner: &Weak<Inner>, ip: IpAddr, gate: &Arc<Gate>, wake: bool) {
    let Some(owner) = owner.upgrade() else { return };
    let gate = Arc::clone(gate);
    let tell = move || {
        let links = Links::read()?;
        for link in links.with_alone(ip) {
            wire::announce(link, ip)?;
            if wake {
                wire::tickle(&owner.to_wake(ip))?;
            }
        }
        Ok(())
    };
    if let Err(error) = blocking(move || gate.pass(tell)).await {
        tracing::warn!(%ip, %error, "an address could not be announced");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    #[test]
    fn nothing_passes_after_the_time_or_the_release() {
        let (gate, sent) = (Gate::closed(), Cell::new(0));
        let send = || {
            sent.set(sent.get() + 1);
            Ok(())
        };
        gate.pass(send).unwrap();
        gate.open_until(BootInstant::now() - Duration::from_millis(1));
        gate.pass(send).unwrap();
        assert_eq!(sent.get(), 0);
        gate.open_until(BootInstant::now() + Duration::from_secs(60));
        gate.pass(send).unwrap();
        gate.close();
        gate.pass(send).unwrap();
        assert_eq!(sent.get(), 1);
    }
}
