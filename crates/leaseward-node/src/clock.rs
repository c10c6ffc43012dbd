//! The machine's boot clock: nanoseconds since boot, suspend included.
//!
//! Must stay true: an instant means something only together with the boot it was read in ([`boot_id`]). Left out on
//! purpose: wall clocks, which jump.

use std::fmt;
use std::io;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on `CLOCK_BOOTTIME`, in nanoseconds since this machine's boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootInstant(pub u64);

impl BootInstant {
    /// Returns the time now. Counts while the machine is suspended; stands still while a virtual machine is paused.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// Returns until when something may execute whose right to it lasts for what `remaining` returns. This clock is read first: a
    /// process that stands still between the two readings gets less then, and never more.
    #[must_use]
    pub fn after(remaining: impl FnOnce() -> Duration) -> Self {
        let now = Self::now();
        now + remaining()
    }

    /// Returns how long it is from `earlier` until this; zero if it is not later.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootInstant {
    type Output = Self;

    /// Saturates.
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for BootInstant {
    type Output = Self;

    /// Saturates.
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for BootInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{}.{:03}s", self.0 / 1_000_000_000, self.0 / 1_000_000 % 1_000)
    }
}

/// Returns the identity of this boot, as the kernel drew it.
///
/// # Errors
/// Where `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
