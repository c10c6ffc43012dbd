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

/// Returns the level of servers that this process starts: [`FenceLevel::F2`] with a PID namespace by privilege,
/// real-time scheduling and locked memory; [`FenceLevel::F1`] with a namespace only; else [`FenceLevel::F0`].
///
/// `real_time` is the setting: without it there is no F2. Blocks for a few milliseconds: it forks twice.
#[must_use]
pub fn level(real_time: bool) -> FenceLevel {
    let maps = Maps::of_this_process();
    let may_lock = may_lock_memory();
    // The child only makes system calls: this process may have many threads.
    let child = kernel::fork(|| {
        let scheduled = real_time && kernel::schedule_real_time().is_ok();
        let Ok(isolation) = isolate::enter(&maps) else {
            return 0;
        };
        // The namespace works if a child starts in it and believes that it is the first.
        let first = kernel::fork(|| i32::from(nix::unistd::getpid() != Pid::from_raw(1)));
        let Ok(first) = first else { return 0 };
        if code(first) != Some(0) {
            return 0;
        }
        if isolation == Isolation::Privileged && scheduled && may_lock { 2 } else { 1 }
    });
    let Ok(child) = child else {
        return FenceLevel::F0;
    };
    match code(child) {
        Some(2) => FenceLevel::F2,
        Some(1) => FenceLevel::F1,
        _ => FenceLevel::F0,
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
