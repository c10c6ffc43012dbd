//! Everything that one program has started: found and killed as a whole.
//!
//! Must stay true: [`Tree::kill`] says `Ok` only after a look at every process of the machine found none of the tree.
//! Where a cgroup (v2) can be had nothing escapes it; elsewhere a process belongs to the tree by its session, its
//! parent or the mark in its environment, and only one that sheds all three at once escapes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::clock::BootInstant;
use crate::files;
use crate::limits::TREE_KILL_WAIT;
use crate::process::ProcessId;

/// What is known of a program and all that it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tree {
    /// Leads a session of its own.
    pub(crate) leader: Option<ProcessId>,
    cgroup: Option<PathBuf>,
    mark: String,
}

impl Tree {
    /// Returns the tree of a program that does not run yet.
    pub(crate) fn plant(mark: &str) -> Self {
        Self { leader: None, cgroup: cgroup::make_for_hook().ok(), mark: mark.to_owned() }
    }

    /// Returns where its leader enters its cgroup.
    pub(super) fn entrance(&self) -> Option<OwnedFd> {
        let procs = self.cgroup.as_ref()?.join("cgroup.procs");
        File::options().write(true).open(procs).ok().map(Into::into)
    }

    /// Removes what it needed; a cgroup in which something lives on by intention stays.
    pub(super) fn fell(&self) {
        self.cgroup.iter().for_each(|path| drop(fs::remove_dir(path)));
    }

    /// Kills all of it.
    ///
    /// # Errors
    /// Who still lives after a while: uninterruptible, or not ours to kill.
    pub(super) async fn kill(self) -> Result<(), String> {
        tokio::task::spawn_blocking(move || self.kill_now()).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn kill_now(&self) -> Result<(), String> {
        let until = BootInstant::now() + TREE_KILL_WAIT;
        loop {
            if let Some(cgroup) = &self.cgroup {
                let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            }
            let living = self.living();
            if living.is_empty() {
                return Ok(());
            }
            for process in &living {
                if let Ok(Some(process)) = process.open() {
                    process.kill();
                }
            }
            if BootInstant::now() > until {
                let pids: Vec<_> = living.iter().map(|process| process.pid.to_string()).collect();
                return Err(format!("took too long and cannot be killed: {}", pids.join(", ")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Looks at every process.
    fn living(&self) -> Vec<ProcessId> {
        let in_cgroup: BTreeSet<u32> = self.cgroup.iter().flat_map(|path| cgroup::members(path)).collect();
        // Its number names a session as long as anybody is in it, and is not reused before.
        let session = self.leader.filter(|leader| leader.open().is_ok_and(|found| found.is_some()));
        let mut found = BTreeSet::new();
        let all: Vec<Seen> = processes().filter_map(|pid| Seen::look(pid).ok()).filter(|seen| !seen.zombie).collect();
        // Parents before children, whatever their numbers: until nothing is added.
        loop {
            let before = found.len();
            for seen in &all {
                let member = in_cgroup.contains(&seen.pid)
                    || session.is_some_and(|leader| seen.session == leader.pid || seen.parent == leader.pid)
                    || found.contains(&seen.parent)
                    || is_marked(seen.pid, &self.mark);
                if member && seen.pid != std::process::id() {
                    found.insert(seen.pid);
                }
            }
            if found.len() == before {
                break;
            }
        }
        found.into_iter().filter_map(|pid| ProcessId::of(pid).ok()).collect()
    }
}

/// Kills what an earlier agent left running under this record, if its leader still lives.
///
/// # Errors
/// Who cannot be killed. The record stays.
pub(crate) async fn end_left_over(record: PathBuf) -> Result<(), String> {
    let Ok(tree) = files::read::<Tree>(&record) else { return Ok(()) };
    // One that has ended may have left a daemon on purpose. Of one whose leader is not on record nobody knows.
    let lives = |leader: ProcessId| leader.open().is_ok_and(|found| found.is_some_and(|fd| !fd.is_over()));
    if tree.leader.is_none_or(lives) {
        tree.clone().kill().await?;
    }
    tree.fell();
    for _ in 0..50 {
        // What was killed is being reaped.
        if !tree.cgroup.as_ref().is_some_and(|path| path.exists() && cgroup::members(path).is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        tree.fell();
    }
    let _ = fs::remove_file(&record);
    Ok(())
}

/// Returns the numbers of all processes.
pub(crate) fn processes() -> impl Iterator<Item = u32> {
    let listed = fs::read_dir("/proc").into_iter().flatten();
    listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

struct Seen {
    pid: u32,
    parent: u32,
    session: u32,
    zombie: bool,
}

impl Seen {
    fn look(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = rest.split_ascii_whitespace();
        let zombie = matches!(fields.next(), Some("Z" | "X"));
        let mut number = || fields.next().and_then(|field| field.parse().ok()).ok_or(io::ErrorKind::InvalidData);
        let (parent, _group, session) = (number()?, number()?, number()?);
        Ok(Self { pid, parent, session, zombie })
    }
}

fn is_marked(pid: u32, mark: &str) -> bool {
    let environ = fs::read(Path::new("/proc").join(pid.to_string()).join("environ")).unwrap_or_default();
    environ.split(|byte| *byte == 0).any(|line| line == mark.as_bytes())
}
