//! Shared by the tests: the lab's processes, a shim's own words, stamps, and waiting for things with a bound.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub(crate) mod around;
pub(crate) mod node;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use leaseward_node::BootInstant;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::sync::{Mutex, MutexGuard};

/// How long anything may take on a bad day.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The user that stands for everybody without privileges.
pub(crate) const NOBODY: u32 = 65_534;

/// Victims keep both of a small machine's processors busy: one story at a time.
static STORY: Mutex<()> = Mutex::const_new(());

/// Waits for this story's turn, in a test without a runtime.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    STORY.blocking_lock()
}

/// Waits for this story's turn.
pub(crate) async fn alone_async() -> MutexGuard<'static, ()> {
    STORY.lock().await
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Waits for `found`, looking every millisecond.
pub(crate) fn wait_for<T>(what: &str, bound: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let until = BootInstant::now() + bound;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(BootInstant::now() < until, "waited {bound:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A directory for one story, and who plays in it.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    user: Option<u32>,
}

impl Stage {
    pub(crate) fn new(user: Option<u32>) -> Self {
        let dir = tempfile::Builder::new().prefix("lw").tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_leaseward-node-lab"), dir.path().join("lab")).unwrap();
        if let Some(user) = user {
            std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).unwrap();
        }
        Self { dir, user }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn lab(&self) -> PathBuf {
        self.path().join("lab")
    }

    /// Starts one of the lab's processes.
    pub(crate) fn play(&self, arguments: &[&str]) -> Player {
        let mut command = Command::new(self.lab());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Player { child, lines }
    }

    /// Returns what the parts of a victim have stamped, once each has.
    pub(crate) fn stamps_of_all(&self, n: usize) -> Vec<u64> {
        wait_for("every part of the victim", PATIENCE, || {
            let stamps = self.stamps(n);
            (stamps.len() == 5 && stamps.iter().all(|at| *at > 0)).then_some(stamps)
        })
    }

    pub(crate) fn stamps(&self, n: usize) -> Vec<u64> {
        let bytes = std::fs::read(self.path().join(format!("stamps-{n}"))).unwrap_or_default();
        bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).collect()
    }

    /// Returns how many parts still stamp: looks twice, a while apart.
    pub(crate) fn survivors(&self, n: usize) -> usize {
        let before = self.stamps(n);
        std::thread::sleep(Duration::from_millis(30));
        before.iter().zip(self.stamps(n)).filter(|(before, after)| *before != after).count()
    }

    /// Asks a server's shim how things are.
    pub(crate) fn ask_shim(&self, server: &str) -> ShimStatus {
        let path = self.path().join(format!("run/{server}.sock"));
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"\"status\"\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let reply: serde_json::Value = serde_json::from_str(&line).unwrap();
        let number = |pointer: &str| reply.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap();
        ShimStatus {
            deadline: BootInstant(number("/status/deadline")),
            shim: u32::try_from(number("/status/shim/pid")).unwrap(),
            init: u32::try_from(number("/status/init/pid")).unwrap(),
            server: u32::try_from(number("/status/server_pid")).unwrap(),
            real_time: reply.pointer("/status/real_time").unwrap().as_bool().unwrap(),
        }
    }
}

/// What a shim says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShimStatus {
    pub(crate) deadline: BootInstant,
    pub(crate) shim: u32,
    pub(crate) init: u32,
    pub(crate) server: u32,
    pub(crate) real_time: bool,
}

/// A process of the lab; killed when dropped.
pub(crate) struct Player {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Player {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the next line it prints; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub(crate) fn wait_until_ready(&mut self) {
        loop {
            match self.line().as_str() {
                "ready" => return,
                "" => panic!("the lab's process ended early"),
                _ => {}
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal);
}

/// Opens a process that surely lives.
pub(crate) fn open(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits until the kernel says that the process is over; returns when that was.
pub(crate) fn wait_for_end(process: &OwnedFd, bound: Duration) -> Option<BootInstant> {
    let until = BootInstant::now() + bound;
    loop {
        let left = until.saturating_since(BootInstant::now());
        let mut look = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut look, PollTimeout::try_from(left.as_millis()).unwrap()) {
            // The runtime's own signals.
            Err(Errno::EINTR) => {}
            ready => return (ready.unwrap() > 0).then(BootInstant::now),
        }
    }
}

/// Returns whether a process exists that is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z') && !rest.starts_with('X'))
}
