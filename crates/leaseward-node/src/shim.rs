//! The shim: the process between an agent and one server, which ends the server at its deadline.
//!
//! Must stay true: one thread, no runtime; the timer is armed before the first fork and only ever moves forward;
//! the shim outlives the agent and needs nothing of it. The kernel, not this code, ends the server: the shim may be
//! stopped, starved or killed at any instruction. Left out on purpose: restarts, health, policy. Keep it boring.

mod exec;
mod init;
pub(crate) mod isolate;
mod label;
mod serve;
mod start;
mod timer;

use std::ffi::{CString, OsString};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::SigSet;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

pub(crate) use exec::{DEFAULT_PATH, marks};

use crate::kernel;
use crate::limits::ORDER_BYTES_MAX;
use crate::protocol::{Order, Reply, Work};

/// What a starter lends with the byte that it greets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Lends {
    /// The standard input of a command.
    Stdin = b'i',
    /// Where the shim of a server says what goes wrong.
    Log = b'e',
}

/// Ends the shim's own options; what follows is a command, or room for a server's name, for `ps`.
pub(crate) const COMMAND_FOLLOWS: &str = "--";

/// A shim without its kernel timer, guarded by its own loop only. Exists to show that the attack tests notice.
#[cfg(debug_assertions)]
const MUTANT: &str = "--mutant-without-kernel-timer";

/// Runs a shim until its server is over; the code of the process `leaseward shim`.
///
/// Call it first thing in `main`, in a process that has one thread and has opened nothing: every descriptor but the
/// standard three is closed. `arguments` are those after the word `shim`. The order comes on standard input, which
/// must be a UNIX socket; a shim started by hand says so and ends.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("shim: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<(), String> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(|e| format!("count threads: {e}"))?.count();
    if threads != 1 {
        return Err(format!("must be the only thread of its process, but there are {threads}"));
    }
    kernel::close_inherited();
    kernel::default_signals();
    // All of them: what concerns us is read from a descriptor. SIGKILL cannot be blocked, which is the point.
    SigSet::all().thread_set_mask().map_err(|e| format!("block signals: {e}"))?;
    let (kernel_timer, command_line) = parse(arguments)?;
    let mut channel = Channel::open()?;
    let order = channel.order()?;
    if let Work::Server { spec, .. } = &order.work {
        kernel::set_search_path(spec.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str));
        let _ = label::show(&order.server);
    }
    match serve::Shim::start(order, &mut channel, command_line, kernel_timer) {
        Ok(shim) => shim.serve(channel),
        Err(why) => {
            channel.tell(&Reply::Failed { why: why.clone() });
            Err(why)
        }
    }
}

/// Returns whether to arm the kernel's timer (always, but for the mutant), and the command.
fn parse(arguments: Vec<OsString>) -> Result<(bool, Vec<CString>), String> {
    #[cfg_attr(not(debug_assertions), expect(unused_mut, reason = "only the mutant changes it"))]
    let mut kernel_timer = true;
    let mut arguments = arguments.into_iter();
    for argument in arguments.by_ref() {
        if argument == COMMAND_FOLLOWS {
            break;
        }
        #[cfg(debug_assertions)]
        if argument == MUTANT {
            kernel_timer = false;
            continue;
        }
        return Err(format!("unknown argument {}", argument.display()));
    }
    let command = arguments.map(|a| CString::new(a.into_vec()).map_err(|_| "an argument holds a NUL".to_owned()));
    Ok((kernel_timer, command.collect::<Result<_, _>>()?))
}

/// The connection to whoever started us, and its standard input, if it lent it.
pub(super) struct Channel {
    /// None in init, whose copy would keep the connection open after the shim's death.
    stream: Option<UnixStream>,
    stdin: Option<OwnedFd>,
}

impl Channel {
    /// Takes the socket off standard input and puts what the starter sent, or nothing, in its place.
    fn open() -> Result<Self, String> {
        let by_hand = |e| format!("started by an agent only: standard input is no socket ({e})");
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
        let mut first = [0];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut first)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(by_hand)?;
        let mut stdin = None;
        for part in message.cmsgs().map_err(|e| e.to_string())? {
            if let ControlMessageOwned::ScmRights(received) = part {
                stdin = received.into_iter().map(kernel::own).next_back();
            }
        }
        if first[0] == Lends::Log as u8 {
            let log = stdin.take().ok_or("it was lent nothing")?;
            nix::unistd::dup2_stderr(log).map_err(|e| e.to_string())?;
        }
        match &stdin {
            Some(lent) => nix::unistd::dup2_stdin(lent).map_err(|e| e.to_string())?,
            None => exec::silence_stdin().map_err(|e| e.to_string())?,
        }
        Ok(Self { stream: Some(UnixStream::from(socket)), stdin })
    }

    /// Reads the order: one line. Blocks until it is whole; nothing runs yet.
    fn order(&mut self) -> Result<Order, String> {
        let stream = self.stream.as_mut().ok_or("there is no connection")?;
        let mut line = Vec::new();
        let mut some = [0; 4096];
        while line.last() != Some(&b'\n') {
            match stream.read(&mut some) {
                Ok(0) => return Err("the order ends before its end".to_owned()),
                Ok(n) => line.extend_from_slice(&some[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("read the order: {error}")),
            }
            if line.len() > ORDER_BYTES_MAX {
                return Err("the order is too long".to_owned());
            }
        }
        serde_json::from_slice(&line).map_err(|e| format!("read the order: {e}"))
    }

    /// Says one line; a listener that is gone or deaf does not matter.
    fn tell(&self, reply: &Reply) {
        if let Some(stream) = &self.stream {
            serve::say(stream, reply);
        }
    }
}

/// Keeps this process's memory in memory, as far as is permitted: what it has used, once it has. All of the binary would
/// cost milliseconds before the start, and again before the kernel tells init of the shim's death.
fn lock_memory(future: bool) -> bool {
    let all = if future { MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE } else { MlockAllFlags::MCL_CURRENT };
    let used = all | MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    mlockall(used).is_ok() || mlockall(all).is_ok()
}
