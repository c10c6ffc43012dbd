//! Clocks of hosts: each may have a boot clock of its own; the wall clock is one for the whole machine, and can be stepped.
//!
//! Must stay true: a boot clock is a time namespace's (Linux 6.0, for whoever enters by `exec`), so what a host reads and what
//! its kernel timers wait for is shifted alike; it is set before anything of the host runs, as a boot does. A step of the wall
//! clock is taken back whoever dies: a process of its own does it, by the boot clock, which nobody steps.
//!
//! Left out on purpose: clocks that run at other rates (`adjtimex` is the machine's, too; the simulation has them), and a
//! wall clock for each host: the kernel has no such thing.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::network::Network;
use crate::victim;

/// A step of the wall clock is taken back after this, whatever happens.
const STEPPED_MAX: Duration = Duration::from_secs(60);

/// A boot clock does not begin before this: the kernel knows no negative times.
const AGE_MIN: i64 = 5;

const NS: i64 = 1_000_000_000;

impl Network {
    /// Gives whatever is started on a host from now on a boot clock, and a monotonic one, that say so many seconds. What runs there
    /// keeps the clocks that it has.
    pub fn set_boot_clock(&mut self, host: &str, seconds: i64) {
        let now = clock_gettime(ClockId::Boottime).tv_sec.min(clock_gettime(ClockId::Monotonic).tv_sec);
        let ahead = seconds.max(AGE_MIN) - now;
        self.host_mut(host).clock_ahead = Some(ahead.max(AGE_MIN - now));
    }

    /// Returns by how many seconds the boot clock of a host is ahead of the machine's.
    #[must_use]
    pub fn clock_ahead(&self, host: &str) -> i64 {
        self.host(host).clock_ahead.unwrap_or(0)
    }
}

/// Returns the words before a program that is to see clocks which are ahead of the machine's.
pub(super) fn ahead(seconds: i64) -> Vec<String> {
    let shift = seconds.to_string();
    ["unshare", "--time", "--boottime", &shift, "--monotonic", &shift, "--"].map(str::to_owned).into()
}

/// The machine's wall clock, stepped until this is dropped.
#[derive(Debug)]
pub struct Stepped {
    guard: Child,
}

impl Stepped {
    /// Steps the wall clock of the whole machine.
    ///
    /// # Panics
    /// If it cannot be: it needs root.
    #[must_use]
    pub fn by(seconds: i64) -> Self {
        let mut guard = Command::new(victim());
        guard.args(["wall-clock", &seconds.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut guard = guard.spawn().expect("a guard");
        let mut said = String::new();
        BufReader::new(guard.stdout.take().expect("a pipe")).read_line(&mut said).expect("it says");
        assert_eq!(said, "stepped\n", "the wall clock cannot be stepped");
        Self { guard }
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        self.guard.wait().ok();
    }
}

/// Steps the wall clock, says so, and takes it back when standard input ends, or after a minute. Part of `leaseward-victim`.
///
/// # Panics
/// If the clock cannot be set.
pub fn step_until_told(seconds: i64) {
    let boot = ns(ClockId::Boottime);
    let before = ns(ClockId::Realtime);
    set(before + seconds * NS);
    println!("stepped");
    let (told, is_told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        told.send(()).ok();
    });
    is_told.recv_timeout(STEPPED_MAX).ok();
    set(before + (ns(ClockId::Boottime) - boot));
}

fn ns(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * NS + now.tv_nsec
}

fn set(to: i64) {
    clock_settime(ClockId::Realtime, Timespec { tv_sec: to / NS, tv_nsec: to % NS }).expect("root may set the clock");
}
