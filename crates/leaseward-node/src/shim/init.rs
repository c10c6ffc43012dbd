//! The init of the server's PID namespace: starts the server, reaps orphans, ends with it.
//!
//! Must stay true: it dies with the shim; the server does not start before the shim has said so, and the shim says
//! so only with its timer armed and the run on record. When init ends, for whatever reason, the kernel kills every
//! process of the namespace. A timer that init arms on itself would be ignored by the kernel: none is here.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use leaseward_state::server::Exit;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::exec::{Job, silence_stdin, silence_stdout};
use super::isolate;

/// The shim's word to init.
pub(super) const GO: u8 = b'G';
/// The shim's word to init.
pub(super) const STOP: u8 = b'S';

/// What init says to its shim, one a packet.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// From the server's process itself: the kernel stamps its number on the packet.
    Here,
    /// It executes.
    Started,
    /// It does not.
    Failed(String),
    /// Its main process ended.
    Exited(Exit),
}

/// Runs init; returns its exit code.
pub(super) fn run(link: &OwnedFd, job: &Job, stop: Option<&Job>, lock_memory: bool) -> i32 {
    let _ = prctl::set_name(c"leaseward-init");
    // After every change of credentials, which would clear it; and checked below, since the shim may be gone already.
    if prctl::set_pdeathsig(Some(Signal::SIGKILL)).is_err() || !told_to_go(link) {
        return 1;
    }
    if lock_memory {
        super::lock_memory(true);
    }
    if let Err(error) = isolate::mount_proc() {
        eprintln!("the server sees the machine's own /proc: {error}");
    }
    let Ok(signals) = SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), SfdFlags::SFD_CLOEXEC) else {
        return 1;
    };
    let server = match job.start(|| report(link, &Report::Here)) {
        Ok(pid) => Pid::from_raw(pid),
        Err(why) => {
            report(link, &Report::Failed(why));
            return 127;
        }
    };
    report(link, &Report::Started);
    let _ = (silence_stdin(), silence_stdout());
    loop {
        if let Some(exit) = reap(server) {
            report(link, &Report::Exited(exit));
            return match exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + signal,
                Exit::Unseen => 1,
            };
        }
        let mut look = [PollFd::new(link.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut look, PollTimeout::NONE);
        let [asked, signalled] = look.map(|each| each.any().unwrap_or(true));
        if signalled {
            let _ = signals.read_signal();
        }
        if asked {
            let mut word = [0];
            match recv(link.as_raw_fd(), &mut word, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::ECONNRESET) => return 1,
                Ok(_) if word[0] == STOP => ask_to_stop(server, stop),
                _ => {}
            }
        }
    }
}

/// Waits for the shim's word; false if there is no shim any more.
fn told_to_go(link: &OwnedFd) -> bool {
    let mut word = [0];
    loop {
        match recv(link.as_raw_fd(), &mut word, MsgFlags::empty()) {
            Ok(1) if word[0] == GO => break,
            Err(Errno::EINTR) => {}
            _ => return false,
        }
    }
    // The word may be older than the death of who said it.
    let mut look = [PollFd::new(link.as_fd(), PollFlags::empty())];
    poll(&mut look, PollTimeout::ZERO) == Ok(0)
}

fn report(link: &OwnedFd, report: &Report) {
    let text = serde_json::to_vec(report).unwrap_or_default();
    let _ = send(link.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
}

/// Reaps whoever is over; returns how the server's main process ended, once it has.
fn reap(server: Pid) -> Option<Exit> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == server => return Some(Exit::Code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == server => {
                return Some(Exit::Signal(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn ask_to_stop(server: Pid, stop: Option<&Job>) {
    let Some(stop) = stop else {
        let _ = kill(server, Signal::SIGTERM);
        return;
    };
    if let Err(why) = stop.start(|| ()) {
        eprintln!("stop command: {why}; sending SIGTERM");
        let _ = kill(server, Signal::SIGTERM);
    }
}
