//! One server under one token, as its owner keeps it.

use std::sync::Arc;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Certificate, Exit, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::{NodeConfig, Phase, ServerReport, Started, StopMode};
use crate::Result;
use crate::clock::BootInstant;
use crate::files;
use crate::health::Verdict;
use crate::launch::Running;
use crate::link::Link;
use crate::probe;
use crate::process::Pidfd;
use crate::protocol::{Order, Work};

/// What a task of ours says about one run.
pub(super) enum Notice {
    Launched(Result<Running, String>),
    Looked(Result<(), String>, Verdict),
    Ended { at: BootInstant, exit: Exit },
    RestartDue,
}

/// One server under one token.
pub(super) struct Entry {
    pub(super) token: FencingToken,
    pub(super) spec: ServerSpec,
    pub(super) deadline: BootInstant,
    pub(super) attempt: u32,
    pub(super) restarts: Vec<BootInstant>,
    /// The run that notices belong to.
    pub(super) run: u64,
    pub(super) state: State,
    pub(super) last_check: Option<Result<(), String>>,
    /// Of the last end.
    pub(super) certificate: Option<Certificate>,
    /// Set once a caller wants it gone; it is not restarted.
    pub(super) stop: Option<StopMode>,
    /// Why we killed it ourselves.
    pub(super) hung: Option<String>,
    pub(super) stopped: Vec<oneshot::Sender<Certificate>>,
    pub(super) starters: Vec<oneshot::Sender<Result<Started>>>,
}

/// Where it is in its life.
pub(super) enum State {
    Launching,
    Running { pid: u32, ready: bool, link: Link, init: Option<Arc<Pidfd>>, checks: Option<AbortHandle> },
    Waiting,
    Over,
}

impl Entry {
    pub(super) fn new(token: FencingToken, spec: ServerSpec, deadline: BootInstant, attempt: u32) -> Self {
        Self {
            token,
            spec,
            deadline,
            attempt,
            restarts: Vec::new(),
            run: 0,
            state: State::Launching,
            last_check: None,
            certificate: None,
            stop: None,
            hung: None,
            stopped: Vec::new(),
            starters: Vec::new(),
        }
    }

    pub(super) fn answer_stopped(&mut self, certificate: &Certificate) {
        for stopped in self.stopped.drain(..) {
            let _ = stopped.send(certificate.clone());
        }
    }

    pub(super) fn report(&self, server: &ServerName) -> ServerReport {
        let (phase, pid) = match &self.state {
            State::Launching => (Phase::Launching, None),
            State::Running { pid, .. } if self.stop.is_some() || self.hung.is_some() => (Phase::Stopping, Some(*pid)),
            State::Running { pid, ready: true, .. } => (Phase::Ready, Some(*pid)),
            State::Running { pid, .. } => (Phase::Starting, Some(*pid)),
            State::Waiting => (Phase::Waiting, None),
            State::Over => (Phase::Over, None),
        };
        ServerReport {
            server: server.clone(),
            token: self.token,
            phase,
            pid,
            attempt: self.attempt,
            deadline: self.deadline,
            last_check: self.last_check.clone(),
            certificate: self.certificate.clone().filter(|_| pid.is_none()),
        }
    }
}

/// Returns what a shim is told.
pub(super) fn order(config: &NodeConfig, boot_id: &str, server: &ServerName, entry: &Entry) -> Order {
    Order {
        server: server.to_string(),
        machine: config.machine.to_string(),
        lease: server.lease().to_string(),
        token: entry.token,
        boot_id: boot_id.to_owned(),
        deadline: entry.deadline,
        attempt: entry.attempt,
        real_time: config.real_time,
        work: Work::Server {
            run_dir: config.run_dir.clone(),
            log: files::log_path(&config.log_dir, server),
            spec: Box::new(entry.spec.clone()),
        },
    }
}

/// Returns why a specification cannot be run.
pub(super) fn check(spec: &ServerSpec) -> Result<(), String> {
    if spec.command.first().is_none_or(String::is_empty) {
        return Err("its command is empty".to_owned());
    }
    let texts = spec.command.iter().chain(&spec.stop_command).chain(spec.environment.values());
    if texts.chain(spec.environment.keys()).any(|text| text.contains('\0')) {
        return Err("a text holds a NUL".to_owned());
    }
    if spec.environment.keys().any(|key| key.is_empty() || key.contains('=')) {
        return Err("a variable's name is empty or holds `=`".to_owned());
    }
    spec.check.as_ref().map_or(Ok(()), |check| probe::check(&check.probe))
}
