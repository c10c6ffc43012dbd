//! The few calls to the kernel that have no safe wrapper. The only module that may say `unsafe`.
//!
//! Must stay true: [`fork`] is called only where the process has one thread, or where the child only makes system
//! calls on what was prepared before; a child never returns into its parent's code.
#![expect(unsafe_code, reason = "fork, signal dispositions and scheduling have no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::unistd::ForkResult;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::REAL_TIME_PRIORITY;

/// The exit code of a child whose code panicked.
const PANICKED: i32 = 125;

/// Forks; the child runs `child` and ends with its code. Returns the child's process id.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: see the module's promise: one thread, or system calls only.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child.as_raw()),
        ForkResult::Child => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            // SAFETY: ends this process without running its parent's destructors.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Gives every signal its default meaning: ignored ones are inherited across exec, also those the runtime ignores.
pub(crate) fn default_signals() {
    // The kernel's `sigaction`, all zero: default, no flags, no mask. Not by way of the C library, which keeps two
    // signals to itself and would leave them as an ancestor left them.
    const SIGNALS: i32 = 64;
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: installs no handler; reads `default` only. SIGKILL and SIGSTOP are refused, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, SIGNALS / 8) };
    }
}

/// Closes every descriptor above standard error, whoever left it open.
pub(crate) fn close_inherited() {
    // SAFETY: called first thing in a process that has opened nothing of its own yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Sets where programs are looked for. Call it where the process has one thread.
pub(crate) fn set_search_path(path: &str) {
    // SAFETY: nobody else reads the environment meanwhile: there is no other thread.
    unsafe { std::env::set_var("PATH", path) }
}

/// Puts the calling thread under SCHED_FIFO. Children inherit it, until [`schedule_ordinary`].
pub(crate) fn schedule_real_time() -> io::Result<()> {
    schedule(libc::SCHED_FIFO, REAL_TIME_PRIORITY)
}

/// Puts the calling thread back under the ordinary scheduler.
pub(crate) fn schedule_ordinary() -> io::Result<()> {
    schedule(libc::SCHED_OTHER, 0)
}

fn schedule(policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: reads `parameters` only.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns the owner of a descriptor that was just received over a socket.
pub(crate) fn own(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel made it for us in `recvmsg`; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Lets the runtime watch a descriptor for being readable.
pub(crate) fn watch(owned: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is returned, which never replaces or closes it.
    Ok(unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) }?)
}

/// Has a command start as the leader of a session of its own, inside a cgroup if `procs` opens one.
pub(crate) fn lead_a_session(command: &mut tokio::process::Command, procs: Option<OwnedFd>) {
    let before_exec = move || {
        rustix::process::setsid()?;
        if let Some(procs) = &procs {
            // `0` is whoever writes it. Without a cgroup it is found in other ways.
            let _ = rustix::io::write(procs, b"0");
        }
        Ok(())
    };
    // SAFETY: system calls only, on what was prepared before.
    unsafe { command.pre_exec(before_exec) };
}

mod watchdog_call {
    nix::ioctl_readwrite!(set_timeout, b'W', 6, nix::libc::c_int);
}

/// Sets the time-out of a watchdog device, in seconds, and returns in the same place what it took.
pub(crate) fn set_watchdog_timeout(device: &std::fs::File, seconds: &mut nix::libc::c_int) -> nix::Result<()> {
    // SAFETY: the descriptor is open, and the kernel writes one integer to the place that it is given.
    unsafe { watchdog_call::set_timeout(std::os::fd::AsRawFd::as_raw_fd(device), seconds) }.map(drop)
}
