//! One program of the operator, run once around a server's life: as it is told, for as long as it may, as a tree.
//!
//! Must stay true: what an exit code means depends on the code and the step only; a program that runs out of time is
//! killed with everything it started before anybody hears of it; one that an earlier agent left running is killed
//! before the next one of its server begins. What a program leaves running when it ends by itself stays: a mount may
//! have a daemon. Programs see the machine as the agent does, and run as its user: they mount, signal and ask.

mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Hook, HookStep};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tracing::warn;

use crate::clock::BootInstant;
use crate::files;
use crate::kernel;
use crate::limits::{HOOK_TAIL_BYTES, LOG_BYTES_MAX};
use crate::process::ProcessId;
use crate::shim::DEFAULT_PATH;
pub(crate) use tree::{Tree, end_left_over, processes};

/// What a hook's end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookOutcome {
    /// It is done, or was before.
    Done,
    /// It failed, and may succeed if it is tried again.
    Transient,
    /// It cannot succeed on this machine: avoid it.
    WrongHere,
    /// It cannot succeed on any machine: an operator must mend it.
    WrongEverywhere,
    /// Somebody else has what it needs, such as a device: that copy must be fenced first.
    NeedsFence,
    /// Nobody knows whether it is done: count it as done where that is the dangerous side.
    Unknown,
    /// It asks to be tried later. This is no failure.
    TryLater,
}

impl HookOutcome {
    /// Returns what an exit code means at a step. Codes above 128 stand for signals.
    #[must_use]
    pub fn from_exit(step: HookStep, code: i32) -> Self {
        match code {
            0 | 4 => Self::Done,
            2 => Self::WrongHere,
            3 => Self::WrongEverywhere,
            5 => Self::NeedsFence,
            6 => Self::Unknown,
            75 => Self::TryLater,
            128.. => Self::cut_short(step),
            _ => Self::Transient,
        }
    }

    /// Returns what it means that a hook was killed, by us or by somebody else.
    #[must_use]
    pub fn cut_short(step: HookStep) -> Self {
        if step.is_stop_side() { Self::NeedsFence } else { Self::Transient }
    }
}

impl fmt::Display for HookOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Transient => "failed, may be tried again",
            Self::WrongHere => "cannot succeed on this machine",
            Self::WrongEverywhere => "cannot succeed anywhere",
            Self::NeedsFence => "needs a fence",
            Self::Unknown => "its outcome is unknown",
            Self::TryLater => "asks to be tried later",
        })
    }
}

/// A program that is about to be run.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) step: HookStep,
    /// What it is called in a reason.
    pub(crate) label: String,
    pub(crate) argv: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) directory: String,
    pub(crate) timeout: Duration,
    /// The server's log, which gets its output.
    pub(crate) log: PathBuf,
    /// Where it is on record while it runs.
    pub(crate) record: PathBuf,
    /// The variable that marks everything it starts, `KEY=value`.
    pub(crate) mark: String,
}

/// Runs a server's fence hook, which is to see to it that a lost machine cannot run the server any more: by its power
/// supply, its switch, its storage. `dir` is where the node keeps its record and its output, as `<server>.hook` and
/// `<server>.fence`. Dropped half way it runs on, and is ended before the next one begins.
///
/// # Errors
/// Why nothing is proven: it failed, or took too long.
pub async fn run_fence(
    server: &ServerName,
    hook: &Hook,
    environment: BTreeMap<String, String>,
    dir: &Path,
) -> Result<(), String> {
    let (log, record) = (dir.join(format!("{server}.fence")), dir.join(format!("{server}.hook")));
    Alone { step: HookStep::Fence, hook, environment, log, record }.run().await
}

/// A hook that belongs to no run of its server.
pub(crate) struct Alone<'a> {
    pub(crate) step: HookStep,
    pub(crate) hook: &'a Hook,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) log: PathBuf,
    pub(crate) record: PathBuf,
}

impl Alone<'_> {
    /// Runs it to its end, or until its time is over. Dropped half way it runs on, on record.
    pub(crate) async fn run(self) -> Result<(), String> {
        let Self { step, hook, mut environment, log, record } = self;
        let mut argv = hook.command.clone();
        argv.push(step.name().to_owned());
        let mark = ("LEASEWARD_HOOK_RUN".to_owned(), format!("{}:{}", record.display(), step.name()));
        environment.insert(mark.0.clone(), mark.1.clone());
        environment.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
        let program = Program {
            step,
            label: argv.first().cloned().unwrap_or_default(),
            argv,
            environment,
            directory: "/".to_owned(),
            timeout: Duration::from_millis(hook.timeout_ms),
            log,
            record,
            mark: format!("{}={}", mark.0, mark.1),
        };
        program.run(None).await.map_err(|failed| failed.why)
    }
}

/// How a program ended that did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) outcome: HookOutcome,
    pub(crate) why: String,
}

impl Program {
    /// Runs it to its end, or until its time is over, or `until` has passed (which may move while it runs). Dropped
    /// half way it runs on, on record.
    pub(crate) async fn run(self, until: Option<watch::Receiver<BootInstant>>) -> Result<(), Failed> {
        let fail = |outcome, why: String| Err(Failed { outcome, why: format!("{}: {why}", self.label) });
        if let Err(why) = end_left_over(self.record.clone()).await {
            return fail(HookOutcome::cut_short(self.step), why);
        }
        if until.as_ref().is_some_and(|until| *until.borrow() <= BootInstant::now()) {
            return fail(HookOutcome::cut_short(self.step), "there is no time left for it".to_owned());
        }
        let (log, from) = match open_log(&self.log) {
            Ok(opened) => opened,
            Err(error) => return fail(HookOutcome::Transient, format!("open {}: {error}", self.log.display())),
        };
        let mut tree = Tree::plant(&self.mark);
        // Before it begins: an agent that is killed in between leaves what its successor finds by mark and cgroup.
        if let Err(error) = files::write(&self.record, &tree) {
            tree.fell();
            return fail(HookOutcome::Transient, format!("write {}: {error}", self.record.display()));
        }
        let mut child = match self.spawn(&log, &tree) {
            Ok(child) => child,
            Err(error) => {
                tree.fell();
                let _ = std::fs::remove_file(&self.record);
                let wrong = matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied);
                let outcome = if wrong { HookOutcome::WrongHere } else { HookOutcome::Transient };
                return fail(outcome, format!("run {}: {error}", self.argv.first().map_or("", String::as_str)));
            }
        };
        tree.leader = child.id().and_then(|pid| ProcessId::of(pid).ok());
        if let Err(error) = files::write(&self.record, &tree) {
            warn!(record = %self.record.display(), %error, "a hook runs that the next agent would not find");
        }
        let ended = tokio::select! {
            ended = child.wait() => Some(ended),
            () = out_of_time(self.timeout, until) => None,
        };
        let ended = match ended {
            Some(Ok(status)) => Ok(status),
            Some(Err(error)) => Err(error.to_string()),
            None => {
                if let Err(why) = tree.clone().kill().await {
                    // It stays on record: nobody may say that it is over.
                    return fail(HookOutcome::cut_short(self.step), why);
                }
                let _ = child.wait().await;
                Err("took too long and was killed".to_owned())
            }
        };
        tree.fell();
        let _ = std::fs::remove_file(&self.record);
        let (outcome, how) = match ended {
            Err(how) => (HookOutcome::cut_short(self.step), how),
            Ok(status) => {
                let code = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
                let code = code.or(status.code()).unwrap_or(1);
                match HookOutcome::from_exit(self.step, code) {
                    HookOutcome::Done => return Ok(()),
                    other => (other, format!("exit {code} ({other})")),
                }
            }
        };
        let said = tail(&self.log, from);
        fail(outcome, if said.is_empty() { how } else { format!("{how}: {said}") })
    }

    fn spawn(&self, log: &File, tree: &Tree) -> std::io::Result<Child> {
        let (program, arguments) = self.argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(&self.environment).current_dir(&self.directory);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log.try_clone()?);
        kernel::lead_a_session(&mut command, tree.entrance());
        command.spawn()
    }
}

/// Returns once `timeout` is over, or `until` has passed.
async fn out_of_time(timeout: Duration, until: Option<watch::Receiver<BootInstant>>) {
    let ends = BootInstant::now() + timeout;
    let Some(mut until) = until else {
        return tokio::time::sleep(timeout).await;
    };
    loop {
        let at = ends.min(*until.borrow_and_update());
        let left = at.saturating_since(BootInstant::now());
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(left) => {}
            // Whoever kept it is gone: nobody extends any more.
            moved = until.changed() => if moved.is_err() { tokio::time::sleep(left).await },
        }
    }
}

fn open_log(path: &Path) -> std::io::Result<(File, u64)> {
    let log = files::open_log(path, LOG_BYTES_MAX)?;
    let from = log.metadata()?.len();
    Ok((log, from))
}

/// Returns the last lines that were added to a log since it was `from` bytes long, on one line.
fn tail(path: &Path, from: u64) -> String {
    let read = || {
        let log = File::open(path)?;
        let from = log.metadata()?.len().saturating_sub(HOOK_TAIL_BYTES as u64).max(from);
        let mut said = vec![0; HOOK_TAIL_BYTES];
        let length = log.read_at(&mut said, from)?;
        said.truncate(length);
        Ok::<_, std::io::Error>(said)
    };
    let said = read().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_contract() {
        use HookOutcome::{Done, NeedsFence, Transient, TryLater, Unknown, WrongEverywhere, WrongHere};
        // Code, on the start side, on the stop side.
        let rows = [
            (0, Done, Done),
            (1, Transient, Transient),
            (2, WrongHere, WrongHere),
            (3, WrongEverywhere, WrongEverywhere),
            (4, Done, Done),
            (5, NeedsFence, NeedsFence),
            (6, Unknown, Unknown),
            (7, Transient, Transient),
            (75, TryLater, TryLater),
            (127, Transient, Transient),
            (128, Transient, NeedsFence),
            (137, Transient, NeedsFence),
        ];
        for step in HookStep::ALL {
            let side = |start, stop| if step.is_stop_side() { stop } else { start };
            for (code, start, stop) in rows {
                assert_eq!(HookOutcome::from_exit(step, code), side(start, stop), "{step:?} {code}");
            }
            assert_eq!(HookOutcome::cut_short(step), side(Transient, NeedsFence), "{step:?}");
        }
    }

    #[test]
    fn the_last_lines_are_kept_and_no_earlier_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\nnew\n\n  newer\n").unwrap();
        assert_eq!(tail(&path, 4), "new | newer");
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(tail(&path, 0).len(), HOOK_TAIL_BYTES);
    }
}
