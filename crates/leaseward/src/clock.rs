//! The clock of a holder: it must never run slow, so it is the fastest of three (rule R1).
//!
//! Must stay true: suspend counts (the boot clock), steering does not slow it (the raw clock), and a step of the wall
//! clock forwards is believed. Those who grant need the opposite (`leaseward_raft::clock`). A paused virtual machine
//! stops all three; fencing tokens are the answer to that, and no clock is.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

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
        Self { raw: read(ClockId::MonotonicRaw), boot: read(ClockId::Boottime), wall: read(ClockId::Realtime) }
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

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), time.tv_nsec as u32)
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
}
