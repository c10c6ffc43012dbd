//! Keeps a session alive, and knows until when it may be believed (rule R1).
//!
//! Must stay true: validity counts from the *sending* of the renewal that was answered, on the holder's clock. What
//! the cluster says of the session's leases is taken from the same answer, so it was true at a moment within the
//! validity. When the cluster says that the session is over, it is over at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::net::wire::{Renewal, Renewed};
use leaseward_raft::rules::{Rule, broken};
use leaseward_state::{FencingToken, LeaseName, Revision, SessionId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::client::Client;
use crate::clock::{Moment, Validity};
use crate::limits::RENEWALS_PER_TTL;

/// What is known of a session.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Until when it may be believed.
    pub validity: Validity,
    /// The cluster said that it is over.
    pub over: bool,
    /// Its leases with their tokens, as the last answer that spoke of them said.
    pub held: Arc<BTreeMap<LeaseName, FencingToken>>,
    /// The entry that changed them last.
    pub held_revision: Revision,
    /// The revision of the machine's orders, if it is a machine's session.
    pub orders: Revision,
    /// Answered renewals so far.
    pub renewals: u64,
}

impl Standing {
    /// Returns how long it may still be believed; zero if it is over.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        if self.over { Duration::ZERO } else { self.validity.remaining() }
    }
}

/// Keeps a session alive for as long as it lives itself.
#[derive(Debug)]
pub struct Keeper {
    session: SessionId,
    ttl: Duration,
    standing: watch::Receiver<Standing>,
    now: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    /// Starts to keep a session whose opening, or last answered renewal, was sent at `sent`.
    #[must_use]
    pub fn start(client: Client, session: SessionId, ttl: Duration, sent: Moment) -> Self {
        let standing = Standing {
            validity: Validity::from_send(sent, ttl),
            over: false,
            held: Arc::default(),
            held_revision: Revision(0),
            orders: Revision(0),
            renewals: 0,
        };
        let (publish, standing) = watch::channel(standing);
        let now = Arc::new(Notify::new());
        let task = tokio::spawn(keep(client, session, ttl, publish, Arc::clone(&now)));
        Self { session, ttl, standing, now, task }
    }

    /// Returns the session.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Returns its time to live.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns what is known of it, as it goes on.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Renews at once instead of at the next turn. Cancel safe.
    pub fn renew_now(&self) {
        self.now.notify_one();
    }

    /// Renews and waits for the answer. Returns false if none came within `within`. Cancel safe.
    pub async fn renewed(&self, within: Duration) -> bool {
        let mut standing = self.standing.clone();
        let before = standing.borrow_and_update().renewals;
        self.now.notify_one();
        // Two: an answer may be under way whose renewal was sent before this call.
        let answered = standing.wait_for(|standing| standing.over || standing.renewals >= before + 2);
        tokio::pin!(answered);
        let half = tokio::time::sleep(within);
        tokio::pin!(half);
        loop {
            tokio::select! {
                done = &mut answered => return done.is_ok(),
                () = tokio::time::sleep(Duration::from_millis(10)) => self.now.notify_one(),
                () = &mut half => return false,
            }
        }
    }
}

/// The shortest time that an answer to a renewal gets, however short the time to live is.
const ANSWERED_WITHIN_MIN: Duration = Duration::from_millis(100);

async fn keep(client: Client, session: SessionId, ttl: Duration, publish: watch::Sender<Standing>, now: Arc<Notify>) {
    let period = ttl / RENEWALS_PER_TTL;
    loop {
        // Rule R1: the clock is read before the question leaves.
        let sent = Moment::now();
        let next = Instant::now() + period;
        let renewal = Renewal { session, known: publish.borrow().held_revision };
        // Slower than this is as good as lost, and another node may be quicker: whoever is tied to a node that lost its
        // power must be heard elsewhere before it is suspected.
        match client.renew(vec![renewal], period.max(ANSWERED_WITHIN_MIN)).await {
            Ok(Some(answers)) => match answers.into_iter().next() {
                Some(Renewed::Alive { leases, orders }) => {
                    let sent = if broken(Rule::R1) { Moment::now() } else { sent };
                    publish.send_modify(|standing| {
                        standing.validity = Validity::from_send(sent, ttl);
                        standing.orders = orders;
                        standing.renewals += 1;
                        if let Some(held) = leases {
                            standing.held = Arc::new(held.leases.into_iter().collect());
                            standing.held_revision = held.revision;
                        }
                    });
                }
                Some(Renewed::Over) | None => {
                    warn!(%session, "the cluster says that the session is over");
                    publish.send_modify(|standing| standing.over = true);
                    return;
                }
            },
            Ok(None) => debug!(%session, "no leader could prove itself"),
            Err(error) => debug!(%session, %error, "a renewal was not answered"),
        }
        let answered = publish.borrow().validity.remaining() > ttl.saturating_sub(period);
        let retry = if answered { next } else { Instant::now() + (period / 8).min(Duration::from_millis(50)) };
        tokio::select! {
            () = sleep_until(retry) => {}
            () = now.notified() => {}
            () = publish.closed() => return,
        }
    }
}
