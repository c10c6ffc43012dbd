//! The deadline as the kernel holds it.
//!
//! Must stay true: the deadline that is on record here is armed, and never moves backwards. It is absolute on
//! `CLOCK_BOOTTIME`, so a suspended machine's servers are over when it wakes.

use nix::errno::Errno;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use crate::clock::BootInstant;

/// Kills this process at the deadline.
pub(super) struct KillTimer {
    /// None in the mutant only.
    timer: Option<Timer>,
    deadline: BootInstant,
}

impl KillTimer {
    /// Arms it. A deadline that has passed kills at once.
    pub(super) fn arm(deadline: BootInstant, kernel_timer: bool) -> Result<Self, Errno> {
        let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        let timer = kernel_timer.then(|| Timer::new(ClockId::CLOCK_BOOTTIME, event)).transpose()?;
        let mut armed = Self { timer, deadline };
        armed.set(deadline)?;
        Ok(armed)
    }

    /// Moves the deadline forward; an earlier one changes nothing. Returns what is armed now.
    pub(super) fn extend(&mut self, deadline: BootInstant) -> Result<BootInstant, Errno> {
        if deadline > self.deadline {
            self.set(deadline)?;
        }
        Ok(self.deadline)
    }

    fn set(&mut self, deadline: BootInstant) -> Result<(), Errno> {
        if let Some(timer) = &mut self.timer {
            // Zero would disarm it.
            let at = TimeSpec::nanoseconds(i64::try_from(deadline.0.max(1)).map_err(|_| Errno::EINVAL)?);
            timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        }
        self.deadline = deadline;
        Ok(())
    }

    pub(super) fn deadline(&self) -> BootInstant {
        self.deadline
    }

    /// Returns when the shim's own loop must look: only where the kernel does not.
    pub(super) fn own_watch(&self) -> Option<BootInstant> {
        self.timer.is_none().then_some(self.deadline)
    }
}
