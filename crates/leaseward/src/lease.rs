//! A lease that this program holds.
//!
//! Must stay true: [`Lease::lost`] fires a stop budget before anybody else can get the lease, whether or not the
//! network answers; [`Lease::check`] reads the clock each time, because a timer that fires late is no check. What no
//! library can promise is that a machine is not paused between a check and the act it guards: the fencing token is
//! for that, and whoever is acted upon must look at it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::{Command, FencingToken, LeaseName, SessionId};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::{LeaseLost, LostReason, Result};
use crate::keeper::{Keeper, Standing};

/// A lease, renewed in the background while it lives. Dropping it gives it back as well as it can.
#[must_use = "a lease is given back when it is dropped"]
#[derive(Debug)]
pub struct Lease {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    keeper: Keeper,
    lease: LeaseName,
    token: FencingToken,
    stop_budget: Duration,
    cancelled: CancellationToken,
    released: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("lease", &self.lease).field("token", &self.token).finish_non_exhaustive()
    }
}

impl Lease {
    pub(crate) fn new(
        client: Client,
        keeper: Keeper,
        lease: LeaseName,
        token: FencingToken,
        stop_budget: Duration,
    ) -> Self {
        let cancelled = CancellationToken::new();
        let inner = Inner {
            client,
            keeper,
            lease,
            token,
            stop_budget,
            cancelled: cancelled.clone(),
            released: std::sync::atomic::AtomicBool::new(false),
        };
        let inner = Arc::new(inner);
        let (standing, name) = (inner.keeper.standing(), inner.lease.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = until_lost(standing, name, token, stop_budget) => cancelled.cancel(),
                () = cancelled.cancelled() => {}
            }
        });
        Self { inner }
    }

    /// Returns the fencing token: send it along with every effect.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.inner.token
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &LeaseName {
        &self.inner.lease
    }

    /// Returns the session that keeps it.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.inner.keeper.session()
    }

    /// Returns what is known of its session, as it goes on: for those who pass the deadline on.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.inner.keeper.standing()
    }

    /// Returns how long it may still be believed if no further renewal is answered; zero once it is lost.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let standing = self.inner.keeper.standing();
        let standing = standing.borrow();
        if holds(&standing, &self.inner.lease, self.inner.token) { standing.remaining() } else { Duration::ZERO }
    }

    /// Returns whether the lease is held at this moment. Reads the clock; cheap enough for a hot loop.
    ///
    /// # Errors
    /// [`LeaseLost`], with the reason.
    pub fn check(&self) -> Result<(), LeaseLost> {
        let standing = self.inner.keeper.standing();
        let standing = standing.borrow();
        match lost(&standing, &self.inner.lease, self.inner.token, Duration::ZERO) {
            Some(reason) => Err(self.lost_for(reason)),
            None => Ok(()),
        }
    }

    /// Returns a token that is cancelled when [`Lease::lost`] would fire.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.inner.cancelled.clone()
    }

    /// Waits until the lease is lost, or its stop budget is all that is left. Cancel safe.
    pub async fn lost(&self) -> LeaseLost {
        let inner = &self.inner;
        let standing = inner.keeper.standing();
        let reason = until_lost(standing, inner.lease.clone(), inner.token, inner.stop_budget).await;
        self.lost_for(reason)
    }

    /// Runs `work` for as long as the lease is held; drops it when the lease is lost.
    ///
    /// # Errors
    /// [`LeaseLost`] if the lease was lost first.
    pub async fn hold<F: Future>(&self, work: F) -> Result<F::Output, LeaseLost> {
        tokio::select! {
            biased;
            lost = self.lost() => Err(lost),
            done = work => Ok(done),
        }
    }

    /// Gives the lease back: the next one gets it at once.
    ///
    /// # Errors
    /// [`crate::Error`] if the cluster does not answer; the lease then ends with its session.
    pub async fn release(self) -> Result<()> {
        let inner = &self.inner;
        inner.released.store(true, std::sync::atomic::Ordering::Relaxed);
        inner.cancelled.cancel();
        inner.client.write(Command::EndSession { session: inner.keeper.session() }).await?;
        Ok(())
    }

    fn lost_for(&self, reason: LostReason) -> LeaseLost {
        LeaseLost { lease: self.inner.lease.clone(), token: self.inner.token, reason }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.cancelled.cancel();
        if self.released.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        let (client, session) = (self.client.clone(), self.keeper.session());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.write(Command::EndSession { session }).await });
        }
    }
}

fn holds(standing: &Standing, lease: &LeaseName, token: FencingToken) -> bool {
    // Before the first answer nothing is known of the leases; the grant itself is the newest word.
    standing.renewals == 0 || standing.held_revision < token.revision() || standing.held.get(lease) == Some(&token)
}

fn lost(standing: &Standing, lease: &LeaseName, token: FencingToken, budget: Duration) -> Option<LostReason> {
    if standing.over || !holds(standing, lease, token) {
        Some(LostReason::Revoked)
    } else if standing.validity.remaining() <= budget {
        Some(LostReason::Expired)
    } else {
        None
    }
}

async fn until_lost(
    mut standing: watch::Receiver<Standing>,
    lease: LeaseName,
    token: FencingToken,
    budget: Duration,
) -> LostReason {
    loop {
        let left = {
            let now = standing.borrow_and_update();
            if let Some(reason) = lost(&now, &lease, token, budget) {
                return reason;
            }
            now.validity.remaining().saturating_sub(budget)
        };
        tokio::select! {
            // The clocks differ in what they count, so the timer is only a reminder to look again.
            () = sleep(left.min(Duration::from_millis(250))) => {}
            changed = standing.changed() => if changed.is_err() { return LostReason::Released },
        }
    }
}
