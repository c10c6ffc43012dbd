//! A shim's beginning: arm, isolate, fork, record, go.
//!
//! Must stay true: in this order. The timer is armed before the first fork; the run is on record before the server's
//! first instruction; the server's lock is held before its socket is touched.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, setsockopt, socketpair, sockopt};

use super::Channel;
use super::exec::{Job, silence_stdin, silence_stdout};
use super::init::{self, GO};
use super::isolate::{self, Isolation, Maps};
use super::serve::Shim;
use super::timer::KillTimer;
use crate::clock::{BootInstant, boot_id};
use crate::files::{self, Files, Live};
use crate::kernel;
use crate::limits::DEADLINE_AHEAD_MAX;
use crate::process::ProcessId;
use crate::protocol::{Order, Status, Work};

impl Shim {
    /// Arms the timer, then makes the namespace and its init, then lets init go.
    pub(super) fn start(
        order: Order,
        channel: &mut Channel,
        command_line: Vec<CString>,
        kernel_timer: bool,
    ) -> Result<Self, String> {
        let boot = boot_id().map_err(|e| format!("read the boot id: {e}"))?;
        check(&order, &boot, BootInstant::now())?;
        let timer = KillTimer::arm(order.deadline, kernel_timer).map_err(|e| format!("arm the timer: {e}"))?;
        let (job, stop) = Job::of(&order, command_line)?;
        let (files, stop_grace) = match &order.work {
            Work::Server { run_dir, spec, .. } => {
                let _ = nix::unistd::setsid();
                (Some(Files::of(run_dir, &order.server)), Duration::from_millis(spec.stop_grace_ms))
            }
            Work::Command => (None, DEADLINE_AHEAD_MAX),
        };
        let lock = files.as_ref().map(lock).transpose()?;
        let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
        let isolation = isolate::enter(&Maps::of_this_process()).map_err(|e| format!("make a PID namespace: {e}"))?;
        let privileged = isolation == Isolation::Privileged;
        let real_time = order.real_time && kernel::schedule_real_time().is_ok();
        // Without privilege a lock on future pages makes later allocations fail at the limit.
        let locked = order.real_time && super::lock_memory(privileged);
        let mut listener = files.as_ref().map(listen).transpose()?;
        let signals =
            SignalFd::with_flags(&SigSet::from(Signal::SIGTERM), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(|e| format!("watch signals: {e}"))?;

        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|e| format!("make a socket: {e}"))?;
        setsockopt(&ours, sockopt::PassCred, &true).map_err(|e| format!("make a socket: {e}"))?;
        let mut ours = Some(ours);
        let mut signals = Some(signals);
        let pid = kernel::fork(|| {
            // Init's copies: with these open, the shim's death would go unseen by its clients and by init.
            drop((ours.take(), listener.take(), signals.take()));
            (channel.stream, channel.stdin) = (None, None);
            init::run(&theirs, &job, stop.as_ref(), locked && privileged)
        })
        .map_err(|e| format!("fork: {e}"))?;
        drop(theirs);
        let (Some(init_link), Some(signals)) = (ours, signals) else {
            return Err("fork returned twice".to_owned());
        };
        let _ = (silence_stdin(), silence_stdout());
        channel.stdin = None;

        let identify = |pid: u32| ProcessId::of(pid).map_err(|e| format!("read /proc/{pid}/stat: {e}"));
        let init = identify(u32::try_from(pid).unwrap_or(0))?;
        let init_fd = init.open().map_err(|e| format!("open init: {e}"))?.ok_or("init is gone")?;
        let status = Status {
            server: order.server.clone(),
            token: order.token,
            boot_id: boot,
            attempt: order.attempt,
            deadline: order.deadline,
            shim: identify(std::process::id())?,
            init,
            server_pid: 0,
            real_time,
        };
        if let Some(files) = &files {
            let live = Live { order: order.clone(), shim: status.shim, init };
            files::write(&files.live(), &live).map_err(|e| format!("write {}: {e}", files.live().display()))?;
        }
        send(init_link.as_raw_fd(), &[GO], MsgFlags::MSG_NOSIGNAL).map_err(|e| format!("let init go: {e}"))?;
        Ok(Self {
            order,
            status,
            files,
            stop_grace,
            timer,
            signals,
            listener,
            init_link,
            init_speaks: true,
            init_fd,
            started: false,
            failed: None,
            exit: None,
            kill_at: None,
            lock,
        })
    }
}

/// Returns why an order must not be carried out.
fn check(order: &Order, boot_id: &str, now: BootInstant) -> Result<(), String> {
    if order.boot_id != boot_id {
        return Err(format!("the order is of another boot, {}", order.boot_id));
    }
    if order.deadline <= now {
        return Err(format!("the deadline {} has passed", order.deadline));
    }
    if order.deadline > now + DEADLINE_AHEAD_MAX {
        return Err(format!("the deadline {} is more than a day ahead", order.deadline));
    }
    Ok(())
}

/// Takes the server's lock for as long as the shim or its init lives.
fn lock(files: &Files) -> Result<OwnedFd, String> {
    let path = files.lock();
    files::lock(&path).map_err(|e| format!("another shim of this server lives: lock {}: {e}", path.display()))
}

/// Listens on the server's socket; under the lock, so an old one is a dead shim's.
fn listen(files: &Files) -> Result<UnixListener, String> {
    let path = files.socket();
    let step = |doing: &'static str| {
        let path = path.display().to_string();
        move |e: std::io::Error| format!("{doing} {path}: {e}")
    };
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(step("listen on"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(step("protect"))?;
    listener.set_nonblocking(true).map_err(step("listen on"))?;
    Ok(listener)
}
