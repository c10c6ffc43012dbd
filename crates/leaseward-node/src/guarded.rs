//! One command under a lease: `leaseward run`.
//!
//! Must stay true: the command's whole process tree is dead soon after its deadline, whatever happens to the caller;
//! it is asked to stop as soon as the caller is gone. It keeps the caller's terminal, environment and directory.
//! Left out on purpose: restarts, logs and adoption; the command ends with its caller's connection.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::name::{LeaseName, MachineName};
use leaseward_state::server::Certificate;
use leaseward_state::token::FencingToken;
use tokio::sync::watch;

use crate::Result;
use crate::clock::{BootInstant, boot_id};
use crate::error::{Error, io_error};
use crate::launch::{self, Lent, Program, Running};
use crate::link::Link;
use crate::process::Pidfd;
use crate::protocol::{Order, Request, Status, Work};

/// What to run, and until when at most.
#[derive(Debug, Clone)]
pub struct GuardOrder {
    /// The program that has a shim's code behind `shim_arguments`.
    pub shim_exe: PathBuf,
    /// Its arguments, such as `["shim"]`.
    pub shim_arguments: Vec<OsString>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Added to the caller's environment, beside `LEASEWARD_TOKEN`, `LEASEWARD_LEASE` and `LEASEWARD_MACHINE`.
    pub environment: Vec<(OsString, OsString)>,
    /// The machine, as the command is told.
    pub machine: Option<MachineName>,
    /// The lease that it runs under.
    pub lease: LeaseName,
    /// The token of the grant.
    pub token: FencingToken,
    /// When the kernel kills it, unless [`Guarded::extend`] is acknowledged before.
    pub deadline: BootInstant,
    /// Whether to ask for real-time scheduling and locked memory.
    pub real_time: bool,
}

/// A running command. Dropping it asks the command to stop; its deadline ends it for certain.
#[derive(Debug)]
pub struct Guarded {
    status: Status,
    link: Link,
    init: Option<Arc<Pidfd>>,
    ended: watch::Receiver<Option<Certificate>>,
}

impl Guarded {
    /// Starts a command and returns once it executes, with the caller's standard input, output and error. The
    /// deadline is armed before.
    ///
    /// # Errors
    /// [`Error::DeadlinePassed`], or [`Error::Launch`] with the reason; whatever was started of it is killed.
    pub async fn spawn(order: GuardOrder) -> Result<Self> {
        let server = order.lease.to_string();
        if order.command.is_empty() {
            return Err(Error::BadOrder { server, why: "the command is empty".to_owned() });
        }
        if order.deadline <= BootInstant::now() {
            return Err(Error::DeadlinePassed { server, deadline: order.deadline });
        }
        let boot_id = boot_id().map_err(io_error("read", "/proc/sys/kernel/random/boot_id"))?;
        let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(io_error("lend", "/dev/stdin"))?;
        let lent = Lent { command: order.command, environment: order.environment, stdin };
        let program = Program { exe: order.shim_exe, arguments: order.shim_arguments };
        let order = Order {
            server: server.clone(),
            machine: order.machine.map_or_else(String::new, |machine| machine.to_string()),
            lease: server.clone(),
            token: order.token,
            boot_id,
            deadline: order.deadline,
            attempt: 0,
            real_time: order.real_time,
            work: Work::Command,
        };
        let running = launch::command(&program, &order, &lent).await;
        let Running { status, link, over, init, shim } = running.map_err(|why| Error::Launch { server, why })?;
        let (tell, ended) = watch::channel(None);
        let (seen, watched) = (status.clone(), init.clone());
        tokio::spawn(async move {
            let (at, exit) = launch::see_off(None, &seen, watched.as_deref(), shim.as_deref(), over).await;
            let proven_at_boottime_ns = at.0;
            let _ =
                tell.send(Some(Certificate { token: seen.token, boot_id: seen.boot_id, proven_at_boottime_ns, exit }));
        });
        Ok(Self { status, link, init, ended })
    }

    /// Returns the process id of the command.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.status.server_pid
    }

    /// Moves the deadline forward; an earlier one changes nothing. Bounded in time; cancel safe.
    ///
    /// # Errors
    /// [`Error::Unacked`]: count the deadline as possibly moved where you wait for the command's end, and as not
    /// moved where you count on its life. [`Error::Refused`].
    pub async fn extend(&self, deadline: BootInstant) -> Result<()> {
        let (token, boot_id) = (self.status.token, self.status.boot_id.clone());
        self.link.ask(Request::Extend { token, deadline, boot_id }).await.map(drop)
    }

    /// Sends SIGTERM to the command; what lives after the grace is killed. Does not wait for it. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Unacked`]: use [`Self::kill`].
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.link.ask(Request::Stop { token: self.status.token, grace_ms }).await.map(drop)
    }

    /// Kills the command with all its descendants, without the shim's help. Does not wait for it.
    pub fn kill(&self) {
        if let Some(init) = &self.init {
            init.kill();
        }
    }

    /// Returns the kernel's word that every process of the command is dead, and how it ended. Cancel safe; may be
    /// called again.
    ///
    /// # Errors
    /// [`Error::Closed`] if the runtime is shutting down.
    pub async fn wait(&self) -> Result<Certificate> {
        let mut ended = self.ended.clone();
        let certificate = ended.wait_for(Option::is_some).await.map_err(|_| Error::Closed)?;
        certificate.clone().ok_or(Error::Closed)
    }
}
