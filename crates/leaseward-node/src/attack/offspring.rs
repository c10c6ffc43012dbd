//! Everybody who descends from this process, and their end.
//!
//! Must stay true: whoever loses its parent becomes a child of this process, so killing children until there are none
//! ends every descendant, also one that left its session.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::namespace::{pids, stat};
use crate::clock::BootInstant;

/// The children that were there before.
#[derive(Debug)]
pub(super) struct Offspring {
    before: BTreeSet<u32>,
}

/// Makes this process the parent of whoever loses its own, for as long as it lives.
pub(super) fn adopt() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

impl Offspring {
    pub(super) fn from_now() -> Self {
        Self { before: children().collect() }
    }

    /// Kills and reaps every child that came since, until there is none.
    ///
    /// # Errors
    /// Those who are still there when time is up: the kernel itself holds them.
    pub(super) fn end(&self, bound: Duration) -> Result<(), Vec<u32>> {
        let until = BootInstant::now() + bound;
        loop {
            let left: Vec<u32> = children().filter(|pid| !self.before.contains(pid)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if BootInstant::now() >= until {
                return Err(left);
            }
            for pid in left.into_iter().filter_map(|pid| i32::try_from(pid).ok()).map(Pid::from_raw) {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn children() -> impl Iterator<Item = u32> {
    let me = std::process::id();
    pids().filter(move |pid| stat(*pid).is_some_and(|stat| stat.parent == me))
}
