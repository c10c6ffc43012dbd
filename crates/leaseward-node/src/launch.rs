//! Starting a shim, finding one that lives, and proving the end of one that does not.
//!
//! Must stay true: [`server`] and [`command`] fail only when no process of the run lives: they wait for the proof. Whoever drops
//! it half way leaves a shim whose deadline is armed, to be found later.

use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::limits::NAME_BYTES_MAX;
use leaseward_state::server::Exit;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::files::{self, Files, Live};
use crate::limits::{ADOPT_WAIT, LAUNCH_WAIT, SHIM_LINGER};
use crate::link::{Lines, Link};
use crate::process::{Pidfd, ProcessId};
use crate::protocol::{Order, Reply, Request, Status, Work};
use crate::shim::{COMMAND_FOLLOWS, Lends, marks};
use crate::spares::Spares;

/// How a shim is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) exe: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

/// A shim whose server executes, or did a moment ago.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) status: Status,
    pub(crate) link: Link,
    pub(crate) over: oneshot::Receiver<Exit>,
    /// None if it is gone already.
    pub(crate) init: Option<Arc<Pidfd>>,
    pub(crate) shim: Option<Arc<Pidfd>>,
}

impl Running {
    fn take(status: Status, lines: Lines) -> Result<Self, String> {
        let open = |process: ProcessId| match process.open() {
            Ok(found) => Ok(found.map(Arc::new)),
            Err(error) => Err(format!("open process {}: {error}", process.pid)),
        };
        let (init, shim) = (open(status.init)?, open(status.shim)?);
        let (link, over) = Link::over(&status.server, lines);
        Ok(Self { status, link, over, init, shim })
    }
}

/// What the caller of a guarded command lends to it.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) command: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) stdin: OwnedFd,
}

/// A shim's process that waits for its order, and ends without one when we do. It has opened nothing, and guards nothing.
#[derive(Debug)]
pub(crate) struct Waiting {
    child: Child,
    socket: std::os::unix::net::UnixStream,
}

impl Waiting {
    /// Starts one for a server, whichever it will be.
    pub(crate) fn for_a_server(program: &Program) -> Result<Self, String> {
        let label = format!("{:<width$}", "(waits for an order)", width = NAME_BYTES_MAX);
        Self::start(program, |command| {
            command.arg(label).env_clear().current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
        })
    }

    fn for_a_command(program: &Program, order: &Order, lent: &Lent) -> Result<Self, String> {
        let variables = lent.environment.iter().map(|(key, value)| (key, value));
        Self::start(program, |command| {
            command.args(&lent.command).envs(variables).envs(marks(order));
        })
    }

    fn start(program: &Program, fill: impl FnOnce(&mut Command)) -> Result<Self, String> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| format!("make a socket: {e}"))?;
        let mut command = Command::new(&program.exe);
        command.args(&program.arguments).arg(COMMAND_FOLLOWS).stdin(Stdio::from(OwnedFd::from(theirs)));
        fill(&mut command);
        // The command holds our copy of the shim's end, which would keep the connection open after the shim's death.
        let child = command.spawn().map_err(|e| format!("run {}: {e}", program.exe.display()))?;
        Ok(Self { child, socket: ours })
    }

    /// Returns whether it is still there.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Gives it its order and waits until what it guards executes. What it is lent becomes the descriptor of that name.
    async fn obey(self, order: &Order, lends: Lends, lent: &OwnedFd) -> Result<Running, Unlaunched> {
        let Self { child, socket } = self;
        let rights = [lent.as_raw_fd()];
        let word = [lends as u8];
        let lend = [ControlMessage::ScmRights(&rights)];
        let greeted = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&word)], &lend, MsgFlags::MSG_NOSIGNAL, None);
        let begun = match greeted {
            Ok(_) => {
                let late = || Err(Unlaunched::Failed("it took too long".to_owned()));
                timeout(LAUNCH_WAIT, begin(socket, order)).await.unwrap_or_else(|_| late())
            }
            Err(error) => Err(Unlaunched::Gone(format!("greet the shim: {error}"))),
        };
        match begun {
            Ok(running) => {
                reap(child);
                Ok(running)
            }
            Err(why) => {
                prove_unlaunched(child, order).await;
                Err(why)
            }
        }
    }
}

/// Why nothing runs under a shim. No process of the run lives.
#[derive(Debug)]
pub(crate) enum Unlaunched {
    /// The shim ended without a word: another one may do better.
    Gone(String),
    /// It said why, or it hung.
    Failed(String),
}

impl From<Unlaunched> for String {
    fn from(why: Unlaunched) -> Self {
        match why {
            Unlaunched::Gone(why) | Unlaunched::Failed(why) => why,
        }
    }
}

/// Has a shim start its server, and waits until that executes. The shim's own words go to the end of `log`.
///
/// # Errors
/// Why it does not. No process of it lives then.
pub(crate) async fn server(spares: &Spares, order: &Order, log: std::fs::File) -> Result<Running, String> {
    let log = log.into();
    match spares.take()?.obey(order, Lends::Log, &log).await {
        // It may have ended while it waited, or the moment after we looked.
        Err(Unlaunched::Gone(_)) => Ok(spares.fresh()?.obey(order, Lends::Log, &log).await?),
        done => Ok(done?),
    }
}

/// Starts a shim for a command of the caller's, and waits until that executes.
///
/// # Errors
/// Why it does not. No process of it lives then.
pub(crate) async fn command(program: &Program, order: &Order, lent: &Lent) -> Result<Running, String> {
    Ok(Waiting::for_a_command(program, order, lent)?.obey(order, Lends::Stdin, &lent.stdin).await?)
}

async fn begin(ours: std::os::unix::net::UnixStream, order: &Order) -> Result<Running, Unlaunched> {
    let failed = |what: &str, error: std::io::Error| Unlaunched::Failed(format!("{what}: {error}"));
    let stream = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    let mut lines = Lines::new(stream.map_err(|error| failed("use the socket", error))?);
    lines.write(order).await.map_err(|error| Unlaunched::Gone(format!("send the order: {error}")))?;
    match lines.read().await {
        Ok(Reply::Started(status)) => Running::take(status, lines).map_err(Unlaunched::Failed),
        Ok(Reply::Failed { why }) => Err(Unlaunched::Failed(why)),
        Ok(other) => Err(Unlaunched::Failed(format!("the shim answered {other:?}"))),
        Err(error) => Err(Unlaunched::Gone(format!("the shim ended before its server began: {error}"))),
    }
}

/// Lets a child be reaped whenever it ends.
fn reap(mut child: Child) {
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
}

/// Ends a shim that did not start its server, and whatever it did start.
async fn prove_unlaunched(mut child: Child, order: &Order) {
    let pid = child.id();
    // A shim that said why it failed is writing its record. One that hangs does not get further than this.
    if timeout(SHIM_LINGER, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
    let Work::Server { run_dir, .. } = &order.work else {
        return;
    };
    let files = Files::of(run_dir, &order.server);
    // Without a record of this very shim, init was never let go.
    let Ok(live) = files::read::<Live>(&files.live()) else {
        return;
    };
    if Some(live.shim.pid) == pid && live.order.token == order.token {
        if let Ok(Some(init)) = live.init.open() {
            init.kill();
            let _ = init.ended().await;
        }
        files.forget_live();
    }
}

/// Connects to a server's shim, if one lives and answers.
///
/// # Errors
/// Why there is none, or why it is of no use.
pub(crate) async fn find(files: &Files, boot_id: &str) -> Result<Running, String> {
    let look = async {
        let stream = UnixStream::connect(files.socket()).await.map_err(|e| format!("connect: {e}"))?;
        let mut lines = Lines::new(stream);
        lines.write(&Request::Status).await.map_err(|e| format!("ask: {e}"))?;
        match lines.read().await {
            Ok(Reply::Status(status)) if status.boot_id == boot_id => Running::take(status, lines),
            Ok(other) => Err(format!("the shim answered {other:?}")),
            Err(error) => Err(format!("read its status: {error}")),
        }
    };
    timeout(ADOPT_WAIT, look).await.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// Waits until init is over, then for the shim's last word, or its end: afterwards it touches nothing of the server's.
/// Returns how the server ended, as far as anybody saw it.
///
/// The first element is when the proof was read.
pub(crate) async fn see_off(
    files: Option<&Files>,
    status: &Status,
    init: Option<&Pidfd>,
    shim: Option<&Pidfd>,
    over: oneshot::Receiver<Exit>,
) -> (crate::BootInstant, Exit) {
    if let Some(init) = init {
        while let Err(error) = init.ended().await {
            // Without the runtime's help we look ourselves; there is no other proof.
            tracing::error!(server = status.server, %error, "cannot watch a process descriptor");
            if init.is_over() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let proven = crate::BootInstant::now();
    let told = timeout(SHIM_LINGER, over).await.ok().and_then(Result::ok);
    if told.is_none()
        && let Some(shim) = shim
        && timeout(SHIM_LINGER, shim.ended()).await.is_err()
    {
        shim.kill();
        // It holds the server's lock. SIGKILL ends a shim even where it is stopped.
        let _ = timeout(ADOPT_WAIT, shim.ended()).await;
    }
    let recorded = || files.and_then(|files| files.exit_of(status.init, &status.boot_id)).map(|record| record.exit);
    let exit = told.or_else(recorded).unwrap_or(Exit::Unseen);
    if let Some(files) = files {
        files.forget_live();
    }
    (proven, exit)
}
