//! One round: start, attack, wait past the deadline, look who is left.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::namespace::Namespace;
use super::round::{Arena, Fault, Trial};
use super::wires::{Traffic, Wires};
use super::{Attack, Beside, Cgroup, Deed, agent, suspend, victim};
use crate::clock::BootInstant;
use crate::files::Files;
use crate::limits::{
    ATTACK_LEASE, ATTACK_LOOK, ATTACK_PACKETS_WATCH, ATTACK_PATIENCE, ATTACK_SLEEP_LEASE, ATTACK_STILL,
};
use crate::process::Pidfd;
use crate::protocol::{Reply, Request, Status};

/// A server under attack.
struct Target {
    status: Status,
    init: Pidfd,
    namespace: Namespace,
}

/// A round that is on.
pub(super) struct Fight<'a> {
    pub(super) attack: &'a Attack,
    pub(super) servers: usize,
    pub(super) abandon: &'a AtomicBool,
    pub(super) dir: &'a Path,
    pub(super) cgroup: Option<&'a Cgroup>,
    pub(super) wires: Option<&'a Wires>,
}

impl Fight<'_> {
    /// Ends with processes alive if it fails: its caller sees to them.
    pub(super) fn run(&self, arena: &Arena) -> Result<Vec<Trial>, Fault> {
        let (agent, targets) = self.start(arena)?;
        let traffic = self.wires.map(|wires| wires.traffic(self.servers)).transpose()?;
        if let Some(traffic) = &traffic {
            self.wait("packets of every address", || traffic.all_pass())?;
            traffic.answers(true)?;
            self.wait_for_extension()?;
        }
        self.prepare(&targets)?;
        let mut over_at = self.strike(&agent, &targets)?;
        if self.attack.beside == Beside::Suspend {
            over_at = sleep_through(&over_at)?;
        }
        if let Some(traffic) = &traffic {
            traffic.keep_addresses()?;
        }
        self.wait_for_ends(&targets, &over_at)?;
        let trials = self.trials(&targets, &over_at);
        match traffic {
            Some(traffic) => self.crossings(&traffic, &trials, &over_at),
            None => Ok(trials),
        }
    }

    /// Starts the agent and its servers, until every part of each runs.
    fn start(&self, arena: &Arena) -> Result<(Child, Vec<Target>), Fault> {
        // Addresses are probed before they are claimed, which takes a while.
        let (kind, first) = match self.attack.beside {
            Beside::Nothing | Beside::Terminate | Beside::Suspend => (victim::FULL, 1),
            Beside::Swarm => (victim::SWARM, 1),
            Beside::Freeze => (victim::STEADY, 1),
            Beside::Packets => (victim::FENCED, 2),
            Beside::PacketsUnfenced => (victim::FLOATING, 2),
        };
        let lease = if self.attack.beside == Beside::Suspend { ATTACK_SLEEP_LEASE } else { ATTACK_LEASE };
        let agent = arena.start_agent(self.dir, self.servers, kind, lease, first);
        let mut agent = agent.map_err(|e| Fault::Broken(format!("run {}: {e}", arena.exe().display())))?;
        let said = agent.stdout.take().ok_or_else(|| Fault::Broken("the agent has no output".into()))?;
        self.wait_until_ready(said)?;
        for n in 0..self.servers {
            self.wait("every part of the victim", || {
                let stamps = self.stamps(n);
                stamps.len() == victim::slots(kind) && stamps.iter().all(|at| *at > 0)
            })?;
        }
        let targets = (0..self.servers).map(|n| self.target(n)).collect::<Result<_, _>>()?;
        Ok((agent, targets))
    }

    /// Waits until every server lives by an extension and no longer by its first deadline, which lies further ahead.
    /// Its fence already does: compared with the first deadline it would seem to close early.
    fn wait_for_extension(&self) -> Result<(), Fault> {
        for n in 0..self.servers {
            while self.ask(n)?.deadline > BootInstant::now() + ATTACK_LEASE {
                self.check_on()?;
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// Attacks. Returns when the time of each server is over.
    fn strike(&self, agent: &Child, targets: &[Target]) -> Result<Vec<BootInstant>, Fault> {
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
        Ok(over_at)
    }

    fn wait_for_ends(&self, targets: &[Target], over_at: &[BootInstant]) -> Result<(), Fault> {
        for (n, (target, over_at)) in targets.iter().zip(over_at).enumerate() {
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
        Ok(())
    }

    /// Whoever stamps on runs on; whoever is in the namespace may.
    fn trials(&self, targets: &[Target], over_at: &[BootInstant]) -> Vec<Trial> {
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
        trials.collect()
    }

    /// Returns by how much the last packet of each server's addresses was late, and how many ways are still open.
    fn crossings(&self, traffic: &Traffic, trials: &[Trial], over_at: &[BootInstant]) -> Result<Vec<Trial>, Fault> {
        let over = over_at.iter().max().copied().unwrap_or(BootInstant(0));
        while BootInstant::now() < over + ATTACK_PACKETS_WATCH {
            self.check_on()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        let answering = traffic.answers(false)?;
        let crossings = trials.iter().zip(over_at).enumerate().map(|(n, (trial, over_at))| {
            let (last, open) = traffic.of(n);
            Trial {
                survivors: trial.survivors + open + answering.iter().filter(|server| **server == n).count(),
                epsilon_ms: (last.0 as f64 - over_at.0 as f64) / 1e6,
                real_time: trial.real_time,
            }
        });
        Ok(crossings.collect())
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

/// Puts the machine to sleep past every deadline. Returns from when on nothing may run: the first moment at which
/// anything could.
fn sleep_through(over_at: &[BootInstant]) -> Result<Vec<BootInstant>, Fault> {
    let suspend = suspend::look().map_err(Fault::LeftOut)?;
    let last = over_at.iter().max().copied().unwrap_or(BootInstant(0));
    let slept = suspend.sleep_past(last).map_err(|e| Fault::LeftOut(format!("this machine does not suspend: {e}")))?;
    match over_at.iter().all(|at| slept.covers(*at)) {
        true => Ok(vec![slept.to; over_at.len()]),
        // Another try would put it to sleep as often.
        false => Err(Fault::LeftOut("the machine did not sleep while the deadlines passed".into())),
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
