//! Rounds: what each of them needs around it, and that nothing of it stays.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::fight::Fight;
use super::offspring::{self, Offspring};
use super::wires::Wires;
use super::{Attack, Beside, Cgroup, WORD};
use crate::limits::{
    ATTACK_FIRST_DEADLINE, ATTACK_FIRST_DEADLINE_MAX, ATTACK_MISSES_MAX, ATTACK_PATIENCE, ATTACK_SERVERS_MAX,
};

/// What an attack did to one server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// How many of its processes ran on; of a fenced address: how many ways still let packets through.
    pub survivors: usize,
    /// By how many milliseconds its last instruction, or its last packet, missed the deadline.
    pub epsilon_ms: f64,
    /// Whether its shim had the real-time class.
    pub real_time: bool,
}

/// Why there is no trial.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It was called off.
    #[error("called off")]
    Abandoned,
    /// This machine or user does not allow the attack.
    #[error("{0}")]
    LeftOut(String),
    /// The machine was too busy to attack in time. Try again.
    #[error("{0}")]
    Missed(String),
    /// Something else than the fence does not work.
    #[error("{0}")]
    Broken(String),
}

impl Fault {
    /// Returns whether the same attack may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Missed(_))
    }
}

/// Where rounds are held, one at a time.
#[derive(Debug)]
pub struct Arena {
    exe: PathBuf,
    dir: PathBuf,
    user: Option<u32>,
    shim_arguments: Vec<String>,
    rounds: AtomicU32,
    /// How long the first deadline is, in milliseconds: longer once the machine was too busy for it.
    first_deadline_ms: AtomicU32,
}

impl Arena {
    /// Returns an arena whose processes run `exe`, keep their files below `dir`, and are `user`'s, or the caller's.
    /// From now on this process inherits whoever loses its parent.
    ///
    /// # Errors
    /// If the kernel refuses that.
    pub fn new(exe: PathBuf, dir: PathBuf, user: Option<u32>) -> io::Result<Self> {
        offspring::adopt()?;
        let first_deadline_ms = AtomicU32::new(ATTACK_FIRST_DEADLINE.as_millis() as u32);
        Ok(Self { exe, dir, user, shim_arguments: Vec::new(), rounds: AtomicU32::new(0), first_deadline_ms })
    }

    /// Gives shims another argument: to show that a broken one is noticed.
    #[must_use]
    pub fn with_shim_argument(mut self, argument: &str) -> Self {
        self.shim_arguments.push(argument.to_owned());
        self
    }

    /// Carries out an attack on as many servers as `trials`, a few at a time. Blocks; ends soon after `abandon` is
    /// set. No process is left behind. Call it on one thread, which lives on while it runs.
    ///
    /// # Errors
    /// Why there is no result; see [`Fault`].
    pub fn cell(&self, attack: &Attack, trials: usize, abandon: &AtomicBool) -> Result<Vec<Trial>, Fault> {
        let mut done = Vec::new();
        while done.len() < trials {
            done.extend(self.some(attack, trials - done.len(), abandon)?);
        }
        Ok(done)
    }

    /// As [`Self::cell`], on a few servers at the same time, `trials` at most.
    ///
    /// # Errors
    /// As for [`Self::cell`].
    pub fn some(&self, attack: &Attack, trials: usize, abandon: &AtomicBool) -> Result<Vec<Trial>, Fault> {
        let mut missed = 0;
        loop {
            match self.round(attack, ATTACK_SERVERS_MAX.min(trials), abandon) {
                Err(fault) if fault.is_retryable() && missed < ATTACK_MISSES_MAX => {
                    missed += 1;
                    let longer = self.first_deadline_ms.load(Ordering::Relaxed) * 2;
                    let longer = longer.min(ATTACK_FIRST_DEADLINE_MAX.as_millis() as u32);
                    self.first_deadline_ms.store(longer, Ordering::Relaxed);
                }
                done => return done,
            }
        }
    }

    fn round(&self, attack: &Attack, servers: usize, abandon: &AtomicBool) -> Result<Vec<Trial>, Fault> {
        let cgroup = match attack.beside {
            Beside::Freeze => Some(Cgroup::make().map_err(Fault::LeftOut)?),
            _ => None,
        };
        let wires = match attack.beside {
            Beside::Packets | Beside::PacketsUnfenced => Some(Wires::make()?),
            _ => None,
        };
        let dir = self.dir.join(format!("round-{}", self.rounds.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir).map_err(|e| Fault::Broken(format!("make {}: {e}", dir.display())))?;
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&dir, Some(user), Some(user))
                .map_err(|e| Fault::Broken(format!("give away {}: {e}", dir.display())))?;
        }
        let offspring = Offspring::from_now();
        let fight = Fight { attack, servers, abandon, dir: &dir, cgroup: cgroup.as_ref(), wires: wires.as_ref() };
        let outcome = match &wires {
            // The agent under attack dies with the thread that started it, so all of it is on one.
            Some(wires) => wires.on_host(|| fight.run(self)),
            None => fight.run(self),
        };
        let ended = offspring.end(ATTACK_PATIENCE);
        drop(cgroup);
        let _ = std::fs::remove_dir_all(&dir);
        ended.map_err(|left| Fault::Broken(format!("the kernel does not end the processes {left:?}")))?;
        outcome
    }

    /// Returns the program whose processes are attacked.
    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    pub(super) fn start_agent(
        &self,
        dir: &Path,
        servers: usize,
        kind: &str,
        lease: Duration,
        first: u32,
    ) -> io::Result<Child> {
        let first = Duration::from_millis(self.first_deadline_ms.load(Ordering::Relaxed).into()) * first;
        let mut command = Command::new(&self.exe);
        command.args([WORD, "agent"]).arg(dir).arg(servers.to_string());
        command.args([lease, first].map(|time| time.as_millis().to_string()));
        command.arg(kind).args(&self.shim_arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.spawn()
    }
}
