//! The clock of those who grant: it must never run fast, so it is the slower of two (rule R3).
//!
//! Must stay true: a deadline has passed only when both the raw clock and the disciplined one say so. A stopped
//! clock only delays an expiry. Holders need the opposite, and have a clock of their own (`leaseward::clock`).

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// The raw clock: not steered by anybody.
    pub raw: Duration,
    /// The monotonic clock: steered by time synchronisation.
    pub monotonic: Duration,
}

impl Reading {
    /// Returns the moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self { raw: self.raw + duration, monotonic: self.monotonic + duration }
    }

    /// Returns the moment `duration` earlier, or the clocks' beginning.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self { raw: self.raw.saturating_sub(duration), monotonic: self.monotonic.saturating_sub(duration) }
    }

    /// Returns a moment that is not earlier than either on any clock.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { raw: self.raw.max(other.raw), monotonic: self.monotonic.max(other.monotonic) }
    }

    /// Returns how much time is certainly over since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        let raw = self.raw.saturating_sub(earlier.raw);
        let monotonic = self.monotonic.saturating_sub(earlier.monotonic);
        raw.min(monotonic)
    }

    /// Returns how long it takes at least until both clocks have reached `deadline`; zero if they have.
    #[must_use]
    pub fn until(self, deadline: Self) -> Duration {
        let raw = deadline.raw.saturating_sub(self.raw);
        let monotonic = deadline.monotonic.saturating_sub(self.monotonic);
        raw.max(monotonic)
    }
}

/// Reads the clocks.
pub trait GrantClock: Debug + Send + Sync + 'static {
    /// Returns this moment.
    fn now(&self) -> Reading;
}

impl<T: GrantClock + ?Sized> GrantClock for Arc<T> {
    fn now(&self) -> Reading {
        T::now(self)
    }
}

/// The kernel's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct KernelClock;

impl GrantClock for KernelClock {
    fn now(&self) -> Reading {
        Reading { raw: read(Which::Raw), monotonic: read(Which::Monotonic) }
    }
}

/// The clocks of a machine that anything is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Not steered by anybody; stops while the machine sleeps.
    Raw,
    /// Steered by time synchronisation; stops while the machine sleeps.
    Monotonic,
    /// As [`Which::Monotonic`], and goes on while the machine sleeps.
    Boot,
    /// Since 1970, and stepped at will.
    Wall,
}

/// Reads a clock of this machine. Takes some tens of nanoseconds.
#[must_use]
pub fn read(which: Which) -> Duration {
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        return host.clock(which);
    }
    let time = clock_gettime(match which {
        Which::Raw => ClockId::MonotonicRaw,
        Which::Monotonic => ClockId::Monotonic,
        Which::Boot => ClockId::Boottime,
        Which::Wall => return wall(),
    });
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), time.tv_nsec as u32)
}

/// From the C library, as everybody has it: whoever gives this machine another wall clock there gives it to all of us.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns the wall clock in milliseconds since 1970: for stamps that people read, never for a decision.
#[must_use]
pub fn wall_millis() -> u64 {
    read(Which::Wall).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn reading(raw: u64, monotonic: u64) -> Reading {
        Reading { raw: Duration::from_millis(raw), monotonic: Duration::from_millis(monotonic) }
    }

    #[test]
    fn a_deadline_waits_for_the_slower_clock() {
        let deadline = reading(0, 0).after(Duration::from_millis(100));
        assert_eq!(reading(150, 80).until(deadline), Duration::from_millis(20), "the disciplined clock was slowed");
        assert_eq!(reading(80, 150).until(deadline), Duration::from_millis(20), "the disciplined clock was sped up");
        assert_eq!(reading(100, 100).until(deadline), Duration::ZERO);
        assert_eq!(reading(10, 20).max(reading(30, 5)), reading(30, 20), "not earlier on any clock");
        assert_eq!(reading(10, 50).before(Duration::from_millis(20)), reading(0, 30));
    }
}
