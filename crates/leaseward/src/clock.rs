//! The clock of a holder: it must never run slow, so it is the fastest of three (rule R1).
//!
//! Must stay true: suspend counts (the boot clock), steering does not slow it (the raw clock), and a step of the wall
//! clock forwards is believed. Those who grant need the opposite (`leaseward_raft::clock`). A paused virtual machine
//! stops all three; fencing tokens are the answer to that, and no clock is.

use std::time::Duration;

use leaseward_raft::clock::{Which, read};

/// A moment on the three clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    raw: Duration,
    boot: Duration,
    wall: Duration,
}

impl Moment {
    /// Returns this moment. Takes about a hundred nanoseconds.
    #[must_use]
    pub fn now() -> Self {
        Self { raw: read(Which::Raw), boot: read(Which::Boot), wall: read(Which::Wall) }
    }

    /// Returns how much time may be over since `self` at `later`: the most that any clock says.
    #[must_use]
    pub fn until(&self, later: &Self) -> Duration {
        let raw = later.raw.saturating_sub(self.raw);
        let boot = later.boot.saturating_sub(self.boot);
        let wall = later.wall.saturating_sub(self.wall);
        raw.max(boot).max(wall)
    }

    /// Returns how much time may be over since this moment.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.until(&Self::now())
    }
}

/// Until when a holder may believe in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    sent: Moment,
    span: Duration,
}

impl Validity {
    /// Returns the validity that follows from the answer to a renewal *sent* at `sent` for a time to live `ttl`:
    /// until `sent + ttl·(1-r)/(1+r)` on this clock (rule R1; r is [`crate::limits::CLOCK_RATE_ERROR`]).
    #[must_use]
    pub fn from_send(sent: Moment, ttl: Duration) -> Self {
        let r = crate::limits::CLOCK_RATE_ERROR;
        Self { sent, span: ttl.mul_f64((1.0 - r) / (1.0 + r)) }
    }

    /// Returns how long it lasts at `now`; zero if it is over.
    #[must_use]
    pub fn remaining_at(&self, now: &Moment) -> Duration {
        self.span.saturating_sub(self.sent.until(now))
    }

    /// Returns how long it still lasts; zero if it is over.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.remaining_at(&Moment::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn moment(raw: u64, boot: u64, wall: u64) -> Moment {
        Moment { raw: Duration::from_millis(raw), boot: Duration::from_millis(boot), wall: Duration::from_millis(wall) }
    }

    #[test]
    fn validity_counts_from_the_sending_and_by_the_fastest_clock() {
        let validity = Validity::from_send(moment(0, 0, 0), Duration::from_millis(1_000));
        let left = |raw, boot, wall| validity.remaining_at(&moment(raw, boot, wall)).as_millis();
        assert_eq!(left(500, 500, 500), 498, "two in a thousand are kept back for the clocks' rates");
        assert_eq!(left(100, 900, 100), 98, "the machine slept: only the boot clock knows");
        assert_eq!(left(100, 100, 900), 98, "the wall clock was stepped forwards: something happened");
        assert_eq!(left(500, 500, 0), 498, "the wall clock was stepped backwards: the others know better");
        assert_eq!(left(2_000, 0, 0), 0);
    }

    /// The rule, broken: a holder that counted from the answer would believe in what somebody else has.
    #[test]
    fn counted_from_the_answer_two_would_believe() {
        let ttl = Duration::from_millis(1_000);
        // Sent at 0, with the leader at 10, answered at 900: the leader may grant it again 1000 ms after 10.
        let (sent, answered) = (moment(0, 0, 0), moment(900, 900, 900));
        let regranted = moment(1_010, 1_010, 1_010);
        assert!(Validity::from_send(sent, ttl).remaining_at(&regranted).is_zero());
        let mutant = Validity::from_send(answered, ttl);
        assert!(!mutant.remaining_at(&regranted).is_zero(), "the mutant believes 888 ms too long");
    }

    /// And without the margin for the clocks' rates: a holder's clock that is slow by r, a leader's that is fast by r.
    #[test]
    fn without_the_margin_a_slow_clock_believes_too_long() {
        let ttl = Duration::from_secs(1_000);
        let regranted_after = ttl.mul_f64(1.0 / (1.0 + crate::limits::CLOCK_RATE_ERROR));
        let on_holders_clock = regranted_after.mul_f64(1.0 - crate::limits::CLOCK_RATE_ERROR);
        let then = Moment { raw: on_holders_clock, boot: on_holders_clock, wall: on_holders_clock };
        let with_margin = Validity::from_send(moment(0, 0, 0), ttl);
        assert!(with_margin.remaining_at(&then) <= Duration::from_micros(1));
        let mutant = Validity { sent: moment(0, 0, 0), span: ttl };
        assert!(mutant.remaining_at(&then) > Duration::from_secs(1));
    }
}
