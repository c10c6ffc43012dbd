//! One round: start, attack, wait past the deadline, look who is left.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::Namespace;
use super::offspring::{self, Offspring};
use super::{Attack, Beside, Cgroup, Deed, WORD, agent, victim};
use crate::clock::BootInstant;
use crate::files::Files;
use crate::limits::{ATTACK_LEASE, ATTACK_LOOK, ATTACK_MISSES_MAX, ATTACK_PATIENCE, ATTACK_SERVERS_MAX, ATTACK_STILL};
use crate::process::Pidfd;
use crate::protocol::{Reply, Request, Status};

/// What an attack did to one server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// How many of its processes ran on.
    pub survivors: usize,
    /// By how many milliseconds its last instruction missed the deadline.
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
}

impl Arena {
    /// Returns an arena whose processes run `exe`, keep their files below `dir`, and are `user`'s, or the caller's.
    /// From now on this process inherits whoever loses its parent.
    ///
    /// # Errors
    /// If the kernel refuses that.
    pub fn new(exe: PathBuf, dir: PathBuf, user: Option<u32>) -> io::Result<Self> {
        offspring::adopt()?;
        Ok(Self { exe, dir, user, shim_arguments: Vec::new(), rounds: AtomicU32::new(0) })
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
        let (mut done, mut missed) = (Vec::new(), 0);
        while done.len() < trials {
            match self.round(attack, ATTACK_SERVERS_MAX.min(trials - done.len()), abandon) {
                Ok(more) => done.extend(more),
                Err(fault) if fault.is_retryable() && missed < ATTACK_MISSES_MAX => missed += 1,
                Err(fault) => return Err(fault),
            }
        }
        Ok(done)
    }

    fn round(&self, attack: &Attack, servers: usize, abandon: &AtomicBool) -> Result<Vec<Trial>, Fault> {
        let cgroup = match attack.beside {
            Beside::Freeze => Some(Cgroup::make().map_err(Fault::LeftOut)?),
            _ => None,
        };
        let dir = self.dir.join(format!("round-{}", self.rounds.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir).map_err(|e| Fault::Broken(format!("make {}: {e}", dir.display())))?;
        if let Some(user) = self.user {
            std::os::unix::fs::chown(&dir, Some(user), Some(user))
                .map_err(|e| Fault::Broken(format!("give away {}: {e}", dir.display())))?;
        }
        let offspring = Offspring::from_now();
        let outcome = Fight { attack, servers, abandon, dir: &dir, cgroup: cgroup.as_ref() }.run(self);
        let ended = offspring.end(ATTACK_PATIENCE);
        drop(cgroup);
        let _ = std::fs::remove_dir_all(&dir);
        ended.map_err(|left| Fault::Broken(format!("the kernel does not end the processes {left:?}")))?;
        outcome
    }

    fn start_agent(&self, dir: &Path, servers: usize, kind: &str) -> io::Result<Child> {
        let mut command = Command::new(&self.exe);
        command.args([WORD, "agent"]).arg(dir).arg(servers.to_string()).arg(ATTACK_LEASE.as_millis().to_string());
        command.arg(kind).args(&self.shim_arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command.spawn()
    }
}

/// A server under attack.
struct Target {
    status: Status,
    init: Pidfd,
    namespace: Namespace,
}

/// A round that is on.
struct Fight<'a> {
    attack: &'a Attack,
    servers: usize,
    abandon: &'a AtomicBool,
    dir: &'a Path,
    cgroup: Option<&'a Cgroup>,
}

impl Fight<'_> {
    /// Ends with processes alive if it fails: its caller sees to them.
    fn run(&self, arena: &Arena) -> Result<Vec<Trial>, Fault> {
        let kind = match self.attack.beside {
            Beside::Nothing | Beside::Terminate => victim::FULL,
            Beside::Swarm => victim::SWARM,
            Beside::Freeze => victim::STEADY,
        };
        let agent = arena.start_agent(self.dir, self.servers, kind);
        let mut agent = agent.map_err(|e| Fault::Broken(format!("run {}: {e}", arena.exe.display())))?;
        let said = agent.stdout.take().ok_or_else(|| Fault::Broken("the agent has no output".into()))?;
        self.wait_until_ready(said)?;
        for n in 0..self.servers {
            self.wait("every part of the victim", || {
                let stamps = self.stamps(n);
                stamps.len() == victim::slots(kind) && stamps.iter().all(|at| *at > 0)
            })?;
        }
        let targets = (0..self.servers).map(|n| self.target(n)).collect::<Result<Vec<_>, _>>()?;
        self.prepare(&targets)?;
        deed(self.attack.agent, agent.id());
        let mut over_at = Vec::new();
        for (n, target) in targets.iter().enumerate() {
            let deadline = self.ask(n)?.deadline;
            deed(self.attack.init, target.status.init.pid);
            let killed_at = BootInstant::now();
            deed(self.attack.shim, target.status.shim.pid);
            // The shim's death is the server's.
            over_at.push(if self.attack.shim == Deed::Kill { killed_at.min(deadline) } else { deadline });
        }
        for (n, (target, over_at)) in targets.iter().zip(&over_at).enumerate() {
            let until = BootInstant::now().max(*over_at) + ATTACK_PATIENCE;
            while !target.init.is_over() && BootInstant::now() < until {
                self.check_on()?;
                let mut look = [PollFd::new(target.init.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut look, PollTimeout::from(ATTACK_LOOK));
            }
            if target.init.is_over() && BootInstant::now() < *over_at {
                return Err(Fault::Broken(format!("server {n} ended before its deadline")));
            }
        }
        // Whoever stamps on runs on; whoever is in the namespace may.
        let before: Vec<_> = (0..self.servers).map(|n| self.stamps(n)).collect();
        std::thread::sleep(ATTACK_STILL);
        let trials = targets.iter().zip(over_at).zip(before).enumerate().map(|(n, ((target, over_at), before))| {
            let after = self.stamps(n);
            let stamping = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            let last = after.into_iter().max().unwrap_or(0);
            Trial {
                survivors: target.namespace.processes().len().max(stamping),
                epsilon_ms: (last as f64 - over_at.0 as f64) / 1e6,
                real_time: target.status.real_time,
            }
        });
        Ok(trials.collect())
    }

    /// Does what is done beside, while the agent still extends.
    fn prepare(&self, targets: &[Target]) -> Result<(), Fault> {
        if self.attack.beside == Beside::Terminate {
            for pid in targets.iter().flat_map(|target| target.namespace.processes()) {
                signal(pid, Signal::SIGTERM);
            }
        }
        if let Some(cgroup) = self.cgroup {
            let refused = |e: io::Error| Fault::LeftOut(format!("freeze a server: {e}"));
            for target in targets {
                cgroup.take(&target.namespace.processes()).map_err(refused)?;
            }
            cgroup.freeze().map_err(refused)?;
            self.wait("the freeze", || cgroup.is_frozen())?;
        }
        Ok(())
    }

    fn target(&self, n: usize) -> Result<Target, Fault> {
        let status = self.ask(n)?;
        let gone = |what: String| Fault::Missed(format!("server {n} is gone before the attack: {what}"));
        let init = status.init.open().map_err(|e| gone(e.to_string()))?.ok_or_else(|| gone("no init".into()))?;
        let namespace = Namespace::of(status.init.pid).map_err(|e| gone(e.to_string()))?;
        Ok(Target { status, init, namespace })
    }

    /// Asks a server's shim how things are.
    fn ask(&self, n: usize) -> Result<Status, Fault> {
        let name = agent::server(n).map_err(Fault::Broken)?;
        let socket = Files::of(&self.dir.join("run"), name.as_str()).socket();
        let asked = || -> io::Result<Reply> {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(ATTACK_PATIENCE))?;
            let mut line = serde_json::to_vec(&Request::Status)?;
            line.push(b'\n');
            stream.write_all(&line)?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(serde_json::from_str(&line)?)
        };
        match asked() {
            Ok(Reply::Status(status)) => Ok(status),
            Ok(other) => Err(Fault::Broken(format!("the shim of server {n} says {other:?}"))),
            Err(error) => Err(Fault::Missed(format!("the shim of server {n} is gone before the attack: {error}"))),
        }
    }

    fn wait_until_ready(&self, mut said: ChildStdout) -> Result<(), Fault> {
        let mut text = Vec::new();
        let mut some = [0; 1024];
        let until = BootInstant::now() + ATTACK_PATIENCE;
        loop {
            self.check_on()?;
            let mut look = [PollFd::new(said.as_fd(), PollFlags::POLLIN)];
            if poll(&mut look, PollTimeout::from(ATTACK_LOOK)).is_ok_and(|ready| ready > 0) {
                let length = said.read(&mut some).map_err(|e| Fault::Broken(format!("hear the agent: {e}")))?;
                text.extend_from_slice(&some[..length]);
                if text.ends_with(b"ready\n") {
                    return Ok(());
                }
                if length == 0 {
                    let words = String::from_utf8_lossy(&text).trim().to_owned();
                    return Err(Fault::Missed(format!("the servers do not start: {words}")));
                }
            }
            if BootInstant::now() >= until {
                return Err(Fault::Missed("the servers take too long to start".into()));
            }
        }
    }

    fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> Result<(), Fault> {
        let until = BootInstant::now() + ATTACK_PATIENCE;
        while !is_so() {
            self.check_on()?;
            if BootInstant::now() >= until {
                return Err(Fault::Missed(format!("waited in vain for {what}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn check_on(&self) -> Result<(), Fault> {
        if self.abandon.load(Ordering::Relaxed) { Err(Fault::Abandoned) } else { Ok(()) }
    }

    fn stamps(&self, n: usize) -> Vec<u64> {
        let bytes = std::fs::read(self.dir.join(format!("stamps-{n}"))).unwrap_or_default();
        bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default())).collect()
    }
}

fn deed(deed: Deed, pid: u32) {
    match deed {
        Deed::Spare => {}
        Deed::Stop => signal(pid, Signal::SIGSTOP),
        Deed::Kill => signal(pid, Signal::SIGKILL),
    }
}

fn signal(pid: u32, signal: Signal) {
    // Zero would be all of us.
    if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
