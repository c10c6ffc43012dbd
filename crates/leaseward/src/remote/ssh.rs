//! The system's ssh: how it is called.
//!
//! Must stay true: it never asks anybody anything (no password, no unknown host key); a network that swallows packets
//! is noticed; it dies with whoever called it. Keys, known hosts and everything else are its own configuration's.

use std::ffi::OsString;
use std::process::Stdio;

use tokio::process::Command;

/// How a machine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// The program; `ssh` on the path.
    pub program: OsString,
    /// As ssh takes it: a host, `user@host`, or a name of its configuration. It must always mean the same machine.
    pub destination: String,
    /// More options, such as `-i` and a key. They win over ours.
    pub options: Vec<String>,
}

/// What is always asked of ssh.
const OPTIONS: [&str; 5] =
    ["BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=1", "ServerAliveCountMax=3", "ClearAllForwardings=yes"];

impl Ssh {
    /// Returns a machine that is reached by the system's ssh with no more options.
    #[must_use]
    pub fn new(destination: impl Into<String>) -> Self {
        Self { program: "ssh".into(), destination: destination.into(), options: Vec::new() }
    }

    /// Returns ssh, not started, with pipes. Killed when it is dropped.
    pub(crate) fn command(&self, remote: &str) -> Command {
        let mut command = Command::new(&self.program);
        // ssh takes the first value that it meets, so the operator's come first.
        command.arg("-T").args(&self.options);
        for option in OPTIONS {
            command.args(["-o", option]);
        }
        command.args(["--", &self.destination, remote]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }
}
