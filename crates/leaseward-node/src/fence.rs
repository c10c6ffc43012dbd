//! What this process's privileges earn, found by trying once.
//!
//! Must stay true: a level is claimed only where its mechanism just worked. Left out on purpose: the levels above
//! F2, which need an operator's configuration, and the attacks that measure the grace.

use leaseward_state::server::FenceLevel;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::kernel;
use crate::shim::isolate::{self, Isolation, Maps};

/// `CAP_IPC_LOCK`'s place in a capability set.
const CAP_IPC_LOCK: u32 = 14;

/// What a trial has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Privileges {
    /// Whether there is a PID namespace, one way or the other.
    pub(crate) isolated: bool,
    /// Whether there is one without a user namespace around it.
    pub(crate) by_privilege: bool,
    /// Whether the kernel grants the real-time class.
    pub(crate) scheduled: bool,
    /// Whether memory may be locked without limit.
    pub(crate) may_lock: bool,
}

impl Privileges {
    /// Returns the level that they earn.
    pub(crate) fn level(self) -> FenceLevel {
        match self {
            Self { by_privilege: true, scheduled: true, may_lock: true, .. } => FenceLevel::F2,
            Self { isolated: true, .. } => FenceLevel::F1,
            _ => FenceLevel::F0,
        }
    }
}

/// Returns the level of servers that this process starts: [`FenceLevel::F2`] with a PID namespace by privilege,
/// real-time scheduling and locked memory; [`FenceLevel::F1`] with a namespace only; else [`FenceLevel::F0`].
///
/// `real_time` is the setting: without it there is no F2. Blocks for a few milliseconds: it forks twice.
#[must_use]
pub fn level(real_time: bool) -> FenceLevel {
    privileges(real_time).level()
}

/// Bits of the child's exit code.
const ISOLATED: i32 = 1;
const BY_PRIVILEGE: i32 = 2;
const SCHEDULED: i32 = 4;
/// Set by every child that came to its end.
const DONE: i32 = 8;

/// Tries what this process may do, in a child.
pub(crate) fn privileges(real_time: bool) -> Privileges {
    let maps = Maps::of_this_process();
    // The child only makes system calls: this process may have many threads.
    let child = kernel::fork(|| {
        let scheduled = real_time && kernel::schedule_real_time().is_ok();
        let isolated = match isolate::enter(&maps) {
            // The namespace works if a child starts in it and believes that it is the first.
            Ok(isolation) => match kernel::fork(|| i32::from(nix::unistd::getpid() != Pid::from_raw(1))) {
                Ok(first) if code(first) == Some(0) => match isolation {
                    Isolation::Privileged => ISOLATED | BY_PRIVILEGE,
                    Isolation::User => ISOLATED,
                },
                _ => 0,
            },
            Err(_) => 0,
        };
        DONE | isolated | if scheduled { SCHEDULED } else { 0 }
    });
    let seen = child.ok().and_then(code).filter(|seen| seen & !0xf == 0 && seen & DONE != 0).unwrap_or(0);
    Privileges {
        isolated: seen & ISOLATED != 0,
        by_privilege: seen & BY_PRIVILEGE != 0,
        scheduled: seen & SCHEDULED != 0,
        may_lock: may_lock_memory(),
    }
}

/// Waits for a child; returns its exit code, if it has one.
fn code(child: i32) -> Option<i32> {
    loop {
        match waitpid(Pid::from_raw(child), None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return Some(code),
            _ => return None,
        }
    }
}

fn may_lock_memory() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}
