//! The agent's side: start servers under shims, watch them, restart them in place, prove their end.
//!
//! Must stay true: one task owns everything; handles only send it commands. A server is started only with a token at
//! least as great as any seen on this machine, with a deadline that has not passed, and when no other copy of it
//! lives here. A restart in place keeps the token. A server's end is told to nobody before what surrounds it is taken
//! down (`surroundings.rs`). Left out on purpose: leases (the caller renews and extends), and the hook `fence`,
//! which runs on the leader's node.

mod adopt;
mod around;
mod entry;
mod life;
mod owner;
mod prepare;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::name::{MachineName, ServerName};
use leaseward_state::server::{Certificate, Connection, Exit, HookStep, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::sync::{mpsc, oneshot};

use crate::Result;
use crate::address::Addresses;
use crate::clock::BootInstant;
use crate::error::{Error, io_error};
use crate::files;
use crate::hook::HookOutcome;
use crate::limits::{COMMANDS_WAITING_MAX, EVENTS_WAITING_MAX, LOG_TAIL_BYTES_MAX};
use crate::log_room;
use crate::watchdog::Watchdog;
use owner::{Command, Owner, Which};

/// Where and how this machine runs servers.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Sockets and records of the shims. Made with mode 0700 if missing; emptied by a boot (`/run/leaseward`). Its
    /// path must be at most 78 bytes.
    pub run_dir: PathBuf,
    /// What servers and shims print. Made if missing.
    pub log_dir: PathBuf,
    /// The program whose `shim_arguments` lead to [`crate::shim::main`].
    pub shim_exe: PathBuf,
    /// Such as `["shim"]`.
    pub shim_arguments: Vec<OsString>,
    /// This machine, as servers are told in `LEASEWARD_MACHINE`.
    pub machine: MachineName,
    /// Whether shims ask for real-time scheduling and locked memory. Without it a starved machine ends servers late.
    pub real_time: bool,
    /// Interfaces of floating addresses by subnet (`10.0.0.0/24`); others are found by the interfaces' own subnets.
    pub interfaces: BTreeMap<String, String>,
}

/// An order to start a server.
#[derive(Debug, Clone)]
pub struct StartOrder {
    /// The server.
    pub server: ServerName,
    /// What the operator asked for.
    pub spec: ServerSpec,
    /// The token of the machine's right to run it.
    pub token: FencingToken,
    /// Until when it may run, from a confirmed renewal.
    pub deadline: BootInstant,
    /// Clients of the copy before: they are woken when its addresses are announced here.
    pub clients: Vec<Connection>,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// The specification's stop command, or SIGTERM; after the grace it is killed.
    Graceful {
        /// How long it may take.
        grace: Duration,
    },
    /// As [`StopMode::Graceful`], without the hook `pre_stop`: there is no time for it.
    InTime {
        /// How long it may take.
        grace: Duration,
    },
    /// It is killed at once.
    Force,
}

/// A server that executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its main process.
    pub pid: u32,
    /// Which start under its token, from 0.
    pub attempt: u32,
    /// Whether it executed already: the order was a repeated one.
    pub already: bool,
}

/// A server that an earlier agent started and that lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The server.
    pub server: ServerName,
    /// The token it runs under.
    pub token: FencingToken,
    /// Its main process.
    pub pid: u32,
    /// When the kernel ends it, as its shim has just said.
    pub deadline: BootInstant,
    /// Which start under its token, from 0.
    pub attempt: u32,
    /// What it was started from.
    pub spec: ServerSpec,
}

/// Something happened to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEvent {
    /// The server.
    pub server: ServerName,
    /// The token it ran under.
    pub token: FencingToken,
    /// Which start under that token, from 0.
    pub attempt: u32,
    /// What happened.
    pub what: Happened,
}

/// What happened to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Happened {
    /// It executes.
    Started {
        /// Its main process.
        pid: u32,
    },
    /// It passed its check: the first time, or again after bad ones.
    Ready {
        /// Its main process.
        pid: u32,
    },
    /// A check failed after good ones; or it is hung and will be killed.
    Unhealthy {
        /// What was seen.
        why: String,
    },
    /// A step around its start failed while nobody waited for that start: at a restart in place, or `post_start`.
    /// What follows is told next.
    HookFailed {
        /// The step.
        step: HookStep,
        /// What it means for this machine and for others.
        outcome: HookOutcome,
        /// What failed.
        why: String,
    },
    /// A step of its stop failed. But for `pre_stop`, which is not repeated, the stop goes on only after it: it is
    /// tried again and again, and nothing of its end is told meanwhile. Told again when the reason changes.
    Stuck {
        /// The step.
        step: HookStep,
        /// What is in the way.
        why: String,
    },
    /// Every process of it is gone, and unless it is restarted here, so is what surrounded it.
    Exited {
        /// How its main process ended.
        exit: Exit,
        /// The proof.
        certificate: Certificate,
        /// When it is started again here; `None` if it is not, or if it was stopped.
        restarts_in: Option<Duration>,
    },
    /// It failed too often to be restarted here.
    GaveUp {
        /// What happened last.
        why: String,
        /// The proof that it is gone.
        certificate: Certificate,
    },
    /// Its deadline passed, and the kernel ended it; or it passed while it waited for its restart.
    DeadlinePassed {
        /// The proof that it is gone.
        certificate: Certificate,
    },
}

/// Where a server is in its life on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its shim is being started.
    Launching,
    /// It executes and has not passed its first check.
    Starting,
    /// It passed its check.
    Ready,
    /// It is being stopped or killed, or is dead, and what surrounded it is being taken down.
    Stopping,
    /// It is gone and waits for its restart in place.
    Waiting,
    /// It is gone.
    Over,
}

/// A server as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerReport {
    /// The server.
    pub server: ServerName,
    /// The token it runs or ran under.
    pub token: FencingToken,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its main process, while it executes.
    pub pid: Option<u32>,
    /// Which start under its token, from 0.
    pub attempt: u32,
    /// The greatest deadline that was asked for.
    pub deadline: BootInstant,
    /// What the last check saw; `None` before it.
    pub last_check: Option<Result<(), String>>,
    /// The proof of its last end, if it does not execute and nothing that surrounded it may still stand.
    pub certificate: Option<Certificate>,
}

/// A handle of the machine's supervisor. Cheap to clone; the supervisor ends with its last handle, the servers do
/// not.
#[derive(Debug, Clone)]
pub struct Supervisor {
    commands: mpsc::Sender<Command>,
    config: Arc<NodeConfig>,
    addresses: Addresses,
}

impl Supervisor {
    /// Takes over this machine's run directory: adopts the servers that live, and proves the end of those that do
    /// not. Ends of this boot that an earlier agent may not have reported come as [`Happened::Exited`], in no
    /// particular order; they may be repeated by the next agent.
    ///
    /// Nothing is started. The caller decides which of the adopted ones it extends and which it stops. The receiver
    /// holds a bounded number of events; a caller that lets it fill up loses the newest, and must look at
    /// [`Self::status`].
    ///
    /// # Errors
    /// [`Error::Busy`] if another agent has the directory; [`Error::BadOrder`] if its path is too long;
    /// [`Error::Io`].
    pub async fn open(config: NodeConfig) -> Result<(Self, Vec<Adopted>, mpsc::Receiver<NodeEvent>)> {
        Self::open_with(config, None).await
    }

    /// As [`Self::open`], with a watchdog that is petted while every server whose time is over is dead and given up.
    ///
    /// # Errors
    /// As those of [`Self::open`].
    pub async fn open_with(
        config: NodeConfig,
        watchdog: Option<Watchdog>,
    ) -> Result<(Self, Vec<Adopted>, mpsc::Receiver<NodeEvent>)> {
        let (events, happened) = mpsc::channel(EVENTS_WAITING_MAX);
        let (commands, ordered) = mpsc::channel(COMMANDS_WAITING_MAX);
        let kept = Arc::new(config.clone());
        let (owner, adopted) = Owner::open(config, events).await?;
        let addresses = owner.addresses.clone();
        let room = tokio::spawn(log_room::keep(kept.log_dir.clone()));
        tokio::spawn(async move {
            owner.run(ordered, watchdog).await;
            room.abort();
        });
        Ok((Self { commands, config: kept, addresses }, adopted, happened))
    }

    /// Starts a server and returns once it executes, its deadline armed before. Repeating an order is no error and
    /// starts nothing; a server that is over starts again under the same token, as its next attempt. Dropped half
    /// way, the order is still carried out.
    ///
    /// # Errors
    /// [`Error::StaleToken`], [`Error::Retired`], [`Error::OtherTokenLives`], [`Error::Stopping`], [`Error::DeadlinePassed`],
    /// [`Error::BadOrder`]; [`Error::Launch`] when it could not be executed and [`Error::Hook`] when a step before that
    /// failed, and then no process of it lives and nothing around it stands.
    pub async fn start(&self, order: StartOrder) -> Result<Started> {
        self.ask(|answer| Command::Start(Box::new(order), answer)).await?
    }

    /// Moves a server's deadline forward and returns once its shim has acknowledged it. An earlier deadline changes
    /// nothing. While the server waits for its restart, or starts, the deadline is only noted. Cancel safe.
    ///
    /// # Errors
    /// [`Error::NotHere`]; [`Error::Refused`]; [`Error::Unacked`] after at most [`crate::limits::ACK_WAIT`]: count
    /// the deadline as possibly moved where you wait for the server's end, and as not moved where you count on its
    /// life.
    pub async fn extend(&self, server: &ServerName, token: FencingToken, deadline: BootInstant) -> Result<()> {
        let server = server.clone();
        let asked = self.ask(|answer| Command::Extend { which: Which::One(server, token), deadline, answer }).await?;
        match asked.await.map_err(|_| Error::Closed)?.pop() {
            Some((_, result)) => result,
            None => Err(Error::Closed),
        }
    }

    /// Moves the deadline of every server that is not over and whose token is `held`, all at a time; returns each with its
    /// result, by name. What runs under a token that nobody holds any more ends at the deadline that it has.
    ///
    /// # Errors
    /// [`Error::Closed`]. The results are as those of [`Self::extend`].
    pub async fn extend_all(
        &self,
        held: BTreeMap<ServerName, FencingToken>,
        deadline: BootInstant,
    ) -> Result<Vec<(ServerName, Result<()>)>> {
        let asked = self.ask(|answer| Command::Extend { which: Which::All(held), deadline, answer }).await?;
        asked.await.map_err(|_| Error::Closed)
    }

    /// Has nothing started under this token, or a smaller one, any more: by nobody who asks later, and by no later supervisor of
    /// this directory. Whoever tells others that nothing of a copy runs here calls this first, or a start that was ordered before
    /// could come after. What runs is left as it is.
    ///
    /// # Errors
    /// [`Error::Closed`]; [`Error::Io`] if it could not be noted for later supervisors: it holds for this one.
    pub async fn retire(&self, server: &ServerName, token: FencingToken) -> Result<()> {
        self.ask(|answer| Command::Retire { server: server.clone(), token, answer }).await?
    }

    /// Stops a server and returns the kernel's proof that every process of it is gone; at once if it is over
    /// already. Needs neither the server's nor the shim's help, but waits as long as the kernel needs: a process in
    /// uninterruptible sleep may take forever, and so may a mount that somebody else keeps busy
    /// ([`Happened::Stuck`]). Dropped half way, the stop goes on.
    ///
    /// # Errors
    /// [`Error::NotHere`] if it is not known here under this token.
    pub async fn stop(&self, server: &ServerName, token: FencingToken, mode: StopMode) -> Result<Certificate> {
        let server = server.clone();
        let stopped = self.ask(|answer| Command::Stop { server, token, mode, answer }).await??;
        stopped.await.map_err(|_| Error::Closed)
    }

    /// Has a server left as it is when it ends or hangs, or no longer. Unknown servers are nobody's.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn hold(&self, server: &ServerName, held: bool) -> Result<()> {
        self.ask(|answer| Command::Hold { server: server.clone(), held, answer }).await
    }

    /// Returns every server known here, by name, also those that are over.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn status(&self) -> Result<Vec<ServerReport>> {
        self.ask(Command::Status).await
    }

    /// Returns the last lines that a server printed, oldest first, from at most the last mebibyte of its log.
    /// Reads a file without waiting for the supervisor.
    ///
    /// # Errors
    /// [`Error::NotHere`] if it never printed here; [`Error::Io`].
    pub fn logs(&self, server: &ServerName, last_lines: usize) -> Result<Vec<String>> {
        logs(&self.config.log_dir, server, last_lines)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)
    }
}

/// As [`Supervisor::logs`], of the servers that print to this directory, with or without a supervisor.
///
/// # Errors
/// As those of [`Supervisor::logs`].
pub fn logs(log_dir: &Path, server: &ServerName, last_lines: usize) -> Result<Vec<String>> {
    let path = files::log_path(log_dir, server);
    let mut log = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotHere { server: server.to_string() });
        }
        opened => opened.map_err(io_error("open", &path))?,
    };
    let mut tail = Vec::new();
    let length = log.metadata().map_err(io_error("read", &path))?.len();
    let from = length.saturating_sub(LOG_TAIL_BYTES_MAX);
    log.seek(SeekFrom::Start(from)).map_err(io_error("read", &path))?;
    log.take(LOG_TAIL_BYTES_MAX).read_to_end(&mut tail).map_err(io_error("read", &path))?;
    let text = String::from_utf8_lossy(&tail);
    // The first line of a cut log is a part of one.
    let mut lines: Vec<String> = text.lines().skip(usize::from(from > 0)).map(str::to_owned).collect();
    let surplus = lines.len().saturating_sub(last_lines);
    lines.drain(..surplus);
    Ok(lines)
}
