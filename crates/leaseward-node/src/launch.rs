//! Starting a shim, finding one that lives, and proving the end of one that does not.
//!
//! Must stay true: [`launch`] fails only when no process of the server lives: it waits for the proof. Whoever drops
//! it half way leaves a shim whose deadline is armed, to be found later.

use std::ffi::OsString;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

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
use crate::shim::{COMMAND_FOLLOWS, DEFAULT_PATH, marks};

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
#[derive(Debug, Default)]
pub(crate) struct Lent {
    pub(crate) command: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) stdin: Option<OwnedFd>,
}

/// Starts a shim and waits until its server executes.
///
/// # Errors
/// Why it does not. No process of it lives then.
pub(crate) async fn launch(
    program: &Program,
    order: &Order,
    lent: Lent,
    shim_log: Option<std::fs::File>,
) -> Result<Running, String> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| format!("make a socket: {e}"))?;
    let mut command = Command::new(&program.exe);
    command.args(&program.arguments).arg(COMMAND_FOLLOWS).stdin(Stdio::from(OwnedFd::from(theirs)));
    match &order.work {
        Work::Server { spec, .. } => {
            let path = spec.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
            command.arg(&order.server).env_clear().env("PATH", path).current_dir("/").stdout(Stdio::null());
        }
        Work::Command => {
            command.args(&lent.command).envs(lent.environment).envs(marks(order));
        }
    }
    if let Some(log) = shim_log {
        command.stderr(log);
    }
    let child = command.spawn().map_err(|e| format!("run {}: {e}", program.exe.display()))?;
    // It holds our copy of the shim's end, which would keep the connection open after the shim's death.
    drop(command);
    let stdin: Vec<RawFd> = lent.stdin.iter().map(AsRawFd::as_raw_fd).collect();
    let lend = [ControlMessage::ScmRights(&stdin)];
    let lend = if stdin.is_empty() { &lend[..0] } else { &lend[..] };
    let greeted = sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(b" ")], lend, MsgFlags::MSG_NOSIGNAL, None);
    let begun = match greeted {
        Ok(_) => timeout(LAUNCH_WAIT, begin(ours, order)).await.unwrap_or_else(|_| Err("it took too long".to_owned())),
        Err(error) => Err(format!("greet the shim: {error}")),
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

async fn begin(ours: std::os::unix::net::UnixStream, order: &Order) -> Result<Running, String> {
    let stream = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    let mut lines = Lines::new(stream.map_err(|e| format!("use the socket: {e}"))?);
    lines.write(order).await.map_err(|e| format!("send the order: {e}"))?;
    match lines.read().await {
        Ok(Reply::Started(status)) => Running::take(status, lines),
        Ok(Reply::Failed { why }) => Err(why),
        Ok(other) => Err(format!("the shim answered {other:?}")),
        Err(error) => Err(format!("the shim ended before its server began: {error}")),
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

/// Waits until init is over, then sees the shim off. Returns how the server ended, as far as anybody saw it.
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
    if let Some(shim) = shim
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
