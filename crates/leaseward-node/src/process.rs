//! Processes by identity: process id and start time, so that a reused id is never taken for the old process.
//!
//! Must stay true: [`ProcessId::open`] answers `None` only if that very process is gone and reaped. For the init of a
//! PID namespace the kernel reaps last, so then every process of the namespace is gone too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::kernel;

/// One process, for as long as this boot lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its number in our PID namespace.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot.
    pub(crate) started: u64,
}

impl ProcessId {
    /// Returns the identity of the process that has this number now.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = started(&text).ok_or_else(|| io::Error::other("/proc/<pid>/stat is not understood"))?;
        Ok(Self { pid, started })
    }

    /// Opens the process; `None` if it is gone. A zombie is not gone, but its [`Pidfd`] says that it is over.
    pub(crate) fn open(self) -> io::Result<Option<Pidfd>> {
        let number = i32::try_from(self.pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Opened first and read after: a start time that matches now can only be that of the opened process.
        match Self::of(self.pid) {
            Ok(found) if found == self => Ok(Some(Pidfd(fd))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Returns the 22nd field of `/proc/<pid>/stat`. The second one may hold anything, also spaces and brackets.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A process that cannot be mistaken for another.
#[derive(Debug)]
pub(crate) struct Pidfd(OwnedFd);

impl Pidfd {
    /// Sends SIGKILL; no matter if it is over already.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }

    /// Returns whether it is over, without waiting.
    pub(crate) fn is_over(&self) -> bool {
        let mut look = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut look, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Returns when it is over. Cancel safe.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        // A copy, so that two may wait at a time.
        let watched = kernel::watch(self.0.try_clone()?)?;
        let _ready = watched.readable().await?;
        Ok(())
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3";
        assert_eq!(started(stat), Some(4242));
        assert_eq!(started("nonsense"), None);
    }

    #[test]
    fn another_process_under_the_same_number_is_not_taken_for_it() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.open().unwrap().is_some_and(|fd| !fd.is_over()));
        assert!(ProcessId { started: me.started + 1, ..me }.open().unwrap().is_none());
    }
}
