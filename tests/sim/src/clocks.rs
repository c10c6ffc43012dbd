//! The clocks of a simulated host, as functions of true time.
//!
//! Must stay true: a reading is exact at each true instant, whatever the timers of the host do; the raw and the
//! disciplined clock have rates of their own; in a suspend those two stand still, and the boot clock goes on;
//! in a paused virtual machine all of them stand still.

use std::time::Duration;

use leaseward_raft::clock::Which;

/// True time since the world began, in nanoseconds.
pub type At = u64;

/// One millisecond of true time.
pub const MS: At = 1_000_000;

/// One second of true time.
pub const SECOND: At = 1_000 * MS;

/// A clock.
#[derive(Debug, Clone, Copy)]
struct Line {
    reading: i128,
    since: At,
    /// How much faster than true time, in parts per million.
    ppm: i64,
    stopped: bool,
}

impl Line {
    const fn new(reading: i128) -> Self {
        Self { reading, since: 0, ppm: 0, stopped: false }
    }

    fn at(&self, now: At) -> i128 {
        if self.stopped {
            return self.reading;
        }
        let passed = i128::from(now.saturating_sub(self.since));
        self.reading + passed + passed * i128::from(self.ppm) / 1_000_000
    }

    fn change(&mut self, now: At, change: impl FnOnce(&mut Self)) {
        self.reading = self.at(now);
        self.since = now;
        change(self);
    }
}

/// The four clocks of a host.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    raw: Line,
    monotonic: Line,
    boot: Line,
    wall: Line,
}

impl Clocks {
    /// Returns clocks that begin somewhere; wall clocks of different hosts are a little apart.
    #[must_use]
    pub fn new(offset: At) -> Self {
        let begin = i128::from(offset);
        Self {
            raw: Line::new(begin),
            monotonic: Line::new(begin),
            boot: Line::new(begin),
            wall: Line::new(1_790_000_000 * i128::from(SECOND) + begin / 1_000),
        }
    }

    /// Reads one.
    #[must_use]
    pub fn read(&self, which: Which, now: At) -> Duration {
        let line = match which {
            Which::Raw => &self.raw,
            Which::Monotonic => &self.monotonic,
            Which::Boot => &self.boot,
            Which::Wall => &self.wall,
        };
        let nanos = u128::try_from(line.at(now)).unwrap_or(0);
        Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
    }

    /// From now on the raw clock and the others run so much faster than true time, in parts per million.
    pub fn set_rates(&mut self, now: At, raw: i64, others: i64) {
        self.raw.change(now, |line| line.ppm = raw);
        for line in [&mut self.monotonic, &mut self.boot, &mut self.wall] {
            line.change(now, |line| line.ppm = others);
        }
    }

    /// The machine goes to sleep, or wakes.
    pub fn suspend(&mut self, now: At, asleep: bool) {
        for line in [&mut self.raw, &mut self.monotonic] {
            line.change(now, |line| line.stopped = asleep);
        }
    }

    /// The virtual machine is paused, or goes on: no clock of it knows.
    pub fn pause(&mut self, now: At, paused: bool) {
        for line in [&mut self.raw, &mut self.monotonic, &mut self.boot, &mut self.wall] {
            line.change(now, |line| line.stopped = paused);
        }
    }

    /// Somebody sets the wall clock.
    pub fn step_wall(&mut self, now: At, by: i64) {
        self.wall.change(now, |line| line.reading += i128::from(by));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how far each clock went in ten seconds, after `change` at their beginning: raw, monotonic, boot, wall.
    fn ten_seconds(change: impl FnOnce(&mut Clocks)) -> [u64; 4] {
        let mut clocks = Clocks::new(5 * SECOND);
        let read = |clocks: &Clocks, at| {
            [Which::Raw, Which::Monotonic, Which::Boot, Which::Wall]
                .map(|which| clocks.read(which, at).as_millis() as u64)
        };
        let before = read(&clocks, SECOND);
        change(&mut clocks);
        let after = read(&clocks, 11 * SECOND);
        [0, 1, 2, 3].map(|which| after[which] - before[which])
    }

    #[test]
    fn a_paused_machine_has_no_clock_that_goes_on_and_a_sleeping_one_has_two() {
        assert_eq!(ten_seconds(|_| {}), [10_000; 4]);
        assert_eq!(ten_seconds(|clocks| clocks.pause(SECOND, true)), [0; 4]);
        let for_a_while = |clocks: &mut Clocks| {
            clocks.pause(SECOND, true);
            clocks.pause(4 * SECOND, false);
        };
        assert_eq!(ten_seconds(for_a_while), [7_000; 4], "no clock knows of it afterwards");
        assert_eq!(ten_seconds(|clocks| clocks.suspend(SECOND, true)), [0, 0, 10_000, 10_000]);
        let five_percent = |clocks: &mut Clocks| clocks.set_rates(SECOND, 50_000, -50_000);
        assert_eq!(ten_seconds(five_percent), [10_500, 9_500, 9_500, 9_500]);
    }
}
