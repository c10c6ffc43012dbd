//! The file in which WebLogic's node manager says how a server stands, for the scripts that read it.
//!
//! Must stay true: it holds one whole line, `STATE:started:failed`, and the last word is written last; nobody here
//! ever reads it. Written by a task of its own: it may lie on a disk that hangs. If it lies on one of the server's
//! own mounts it is written only while that is mounted. Directories are not made.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use leaseward_state::server::ServerSpec;
use tokio::sync::watch;
use tracing::warn;

use crate::mount;

/// How a server stands, in WebLogic's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Starting,
    Running,
    ShuttingDown,
    ForceShuttingDown,
    Shutdown,
    Failed,
    FailedRestarting,
    FailedNotRestartable,
    FailedMigratable,
}

/// One line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) word: Word,
    /// Whether it has come up since it was started.
    pub(crate) started: bool,
    /// Whether it failed before it came up.
    pub(crate) failed: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.word {
            Word::Starting => "STARTING",
            Word::Running => "RUNNING",
            Word::ShuttingDown => "SHUTTING_DOWN",
            Word::ForceShuttingDown => "FORCE_SHUTTING_DOWN",
            Word::Shutdown => "SHUTDOWN",
            Word::Failed => "FAILED",
            Word::FailedRestarting => "FAILED_RESTARTING",
            Word::FailedNotRestartable => "FAILED_NOT_RESTARTABLE",
            Word::FailedMigratable => "FAILED_MIGRATABLE",
        };
        let letter = |yes| if yes { 'Y' } else { 'N' };
        writeln!(f, "{word}:{}:{}", letter(self.started), letter(self.failed))
    }
}

/// Keeps one server's file. The task behind it ends, its last word written, when this is dropped.
#[derive(Debug)]
pub(crate) struct StateFile(watch::Sender<Option<Told>>);

/// The file, the mounts that it lies on, and what it should say.
type Told = (PathBuf, Vec<PathBuf>, Line);

impl StateFile {
    /// Must be called inside the runtime.
    pub(crate) fn new() -> Self {
        let (told, mut wanted) = watch::channel(None::<Told>);
        tokio::spawn(async move {
            while wanted.changed().await.is_ok() {
                let Some((path, mounts, line)) = wanted.borrow_and_update().clone() else { continue };
                let written =
                    tokio::task::spawn_blocking(move || write(&path, &mounts, line).map_err(|error| (path, error)));
                if let Ok(Err((path, error))) = written.await {
                    warn!(path = %path.display(), %error, "cannot write a state file");
                }
            }
        });
        Self(told)
    }

    /// Has a line written, unless it was the last one.
    pub(crate) fn tell(&self, spec: &ServerSpec, line: Line) {
        let Some(path) = &spec.state_file else { return };
        let path = PathBuf::from(path);
        let mounts: Vec<_> = spec.mounts.iter().map(|mount| PathBuf::from(&mount.at)).collect();
        let mounts = mounts.into_iter().filter(|at| path.starts_with(at)).collect();
        let told = Some((path, mounts, line));
        self.0.send_if_modified(|last| {
            let news = *last != told;
            *last = told;
            news
        });
    }
}

fn write(path: &Path, mounts: &[PathBuf], line: Line) -> io::Result<()> {
    if !mounts.is_empty() {
        let table = mount::table()?;
        let here = |at: &PathBuf| {
            let place = mount::place(&at.to_string_lossy());
            table.iter().any(|found| found.point == place)
        };
        if !mounts.iter().all(here) {
            return Ok(());
        }
    }
    let new = path.with_added_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(line.to_string().as_bytes())?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_node_manager() {
        let line = |word, started, failed| Line { word, started, failed }.to_string();
        assert_eq!(line(Word::Running, true, false), "RUNNING:Y:N\n");
        assert_eq!(line(Word::FailedNotRestartable, false, true), "FAILED_NOT_RESTARTABLE:N:Y\n");
        assert_eq!(line(Word::ShuttingDown, true, false), "SHUTTING_DOWN:Y:N\n");
    }

    #[tokio::test]
    async fn the_last_word_is_written_whole_and_not_beside_a_missing_mount() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("srv.state");
        let mut spec = ServerSpec::new(["x"]);
        spec.state_file = path.to_str().map(str::to_owned);
        let file = StateFile::new();
        for word in [Word::Starting, Word::Running, Word::Shutdown] {
            file.tell(&spec, Line { word, started: true, failed: false });
        }
        drop(file);
        while fs::read_to_string(&path).unwrap_or_default() != "SHUTDOWN:Y:N\n" {
            tokio::task::yield_now().await;
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let line = Line { word: Word::Running, started: true, failed: false };
        write(&path, &[dir.path().to_owned()], line).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "SHUTDOWN:Y:N\n");
    }
}
