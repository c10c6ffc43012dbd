//! Cluster time: what a leader stamps on its entries, so that how long answers are kept depends on nobody's wall clock.
//!
//! Must stay true: a stamp is never smaller than the newest one in this node's state, and never ahead of the time that
//! really passed since that one was seen here, by a clock that nobody sets and that goes on in a suspend. So cluster time
//! never runs backwards and never jumps. It may lag: what passes before a new leader's first entry may be missing, and
//! answers are kept for as much longer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_state::ClusterMillis;
use tokio::sync::watch;

use crate::clock::{self, Which};
use crate::machine::Published;
use crate::rules::{Rule, broken};

/// Reads cluster time on this node. Clones share it.
#[derive(Clone)]
pub(crate) struct ClusterTime {
    published: watch::Receiver<Published>,
    anchor: Arc<Mutex<Anchor>>,
}

/// At this moment of the boot clock, so much cluster time had passed at least.
#[derive(Debug, Clone, Copy, Default)]
struct Anchor {
    at: Duration,
    elapsed: Duration,
}

impl Anchor {
    /// Goes on to `now`, or to what the state knows by now if that is more. Returns the cluster time.
    fn advance(&mut self, now: Duration, known: Duration) -> Duration {
        let gone_on = self.elapsed + now.saturating_sub(self.at);
        *self = Self { at: now.max(self.at), elapsed: gone_on.max(known) };
        self.elapsed
    }
}

impl ClusterTime {
    /// Returns a clock that goes on from what the state knows.
    pub(crate) fn new(published: watch::Receiver<Published>) -> Self {
        let known = Duration::from_millis(published.borrow().state.elapsed().0);
        let anchor = Anchor { at: clock::read(Which::Boot), elapsed: known };
        Self { published, anchor: Arc::new(Mutex::new(anchor)) }
    }

    /// Returns the cluster time of an entry that is proposed now.
    pub(crate) fn now(&self) -> ClusterMillis {
        if broken(Rule::ClusterTime) {
            return ClusterMillis(clock::wall_millis());
        }
        let known = Duration::from_millis(self.published.borrow().state.elapsed().0);
        let mut anchor = self.anchor.lock().expect("no holder of this lock panics");
        ClusterMillis(anchor.advance(clock::read(Which::Boot), known).as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(of: u64) -> Duration {
        Duration::from_millis(of)
    }

    #[test]
    fn it_goes_on_from_the_newest_entry_and_never_jumps() {
        let mut anchor = Anchor { at: ms(1_000), elapsed: ms(50) };
        assert_eq!(anchor.advance(ms(1_010), ms(50)), ms(60), "it goes on by its own clock");
        assert_eq!(anchor.advance(ms(1_010), ms(60)), ms(60), "what is known is no more than that");
        assert_eq!(anchor.advance(ms(1_020), ms(500)), ms(500), "another one led meanwhile");
        assert_eq!(anchor.advance(ms(1_030), ms(500)), ms(510));
        assert_eq!(anchor.advance(ms(900), ms(500)), ms(510), "never backwards");
        assert_eq!(anchor.advance(ms(1_031), ms(500)), ms(511), "nor twice the same time");
    }
}
