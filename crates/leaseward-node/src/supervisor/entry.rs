//! One server under one token, as its owner keeps it.

use std::sync::Arc;
use std::time::Duration;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Certificate, Exit, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::AbortHandle;

use super::{Happened, NodeConfig, Phase, ServerReport, Started, StopMode};
use crate::Result;
use crate::clock::BootInstant;
use crate::error::Error;
use crate::files;
use crate::health::Verdict;
use crate::hook::HookOutcome;
use crate::launch::Running;
use crate::limits::WATCHDOG_PATIENCE;
use crate::link::Link;
use crate::probe;
use crate::process::Pidfd;
use crate::protocol::{Order, Work};
use crate::state_file::{Line, Word};
use crate::surroundings::{self, Failure};

/// What a task of ours says about one run.
pub(super) enum Notice {
    Launched(Result<Running, Failure>),
    /// It passed its first check, and `post_start` was run.
    Greeted(Result<(), Failure>),
    /// `pre_stop` failed.
    LeftRudely(Failure),
    /// What surrounded it was taken down, or not.
    Down(Result<(), Failure>),
    DownDue,
    Looked(Result<(), String>, Verdict),
    Ended {
        at: BootInstant,
        exit: Exit,
    },
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
    /// Why we killed it ourselves, or why it could not be started again.
    pub(super) hung: Option<String>,
    /// What a failed step around its start means for what follows.
    pub(super) outcome: Option<HookOutcome>,
    /// Until when what is done around this run may go on; zero once it is called off.
    pub(super) until: watch::Sender<BootInstant>,
    /// One program at a time.
    pub(super) turn: Arc<Mutex<()>>,
    /// Whether `pre_stop` was run, or is running.
    pub(super) took_leave: bool,
    /// Whether its first good check was followed up.
    pub(super) greeting: bool,
    /// Whether it has been ready since it was started.
    pub(super) came_up: bool,
    pub(super) stopped: Vec<oneshot::Sender<Certificate>>,
    pub(super) starters: Vec<oneshot::Sender<Result<Started>>>,
}

/// Where it is in its life.
pub(super) enum State {
    Launching,
    Running {
        pid: u32,
        ready: bool,
        link: Link,
        init: Option<Arc<Pidfd>>,
        checks: Option<AbortHandle>,
    },
    Waiting,
    /// Dead; what surrounded it is being taken down.
    Ending {
        conclusion: Conclusion,
        /// What was in the way last.
        stuck: Option<Failure>,
        pause: Duration,
    },
    /// How it stands, if we know.
    Over(Option<Word>),
}

/// What is told once a server's end is complete.
pub(super) struct Conclusion {
    /// In this order.
    pub(super) tell: Vec<Happened>,
    /// What callers hear who wait for its start.
    pub(super) refuse: Box<dyn Fn() -> Error + Send + Sync>,
    pub(super) word: Option<Word>,
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
            outcome: None,
            until: watch::channel(deadline).0,
            turn: Arc::default(),
            took_leave: false,
            greeting: false,
            came_up: false,
            stopped: Vec::new(),
            starters: Vec::new(),
        }
    }

    /// Returns whether its time has been over for a while, and something of it may still be here.
    pub(super) fn is_overdue(&self, now: BootInstant) -> bool {
        let gone = match &self.state {
            State::Over(_) => true,
            // Between two runs nothing executes; what surrounds it may stand.
            State::Waiting => !surroundings::is_surrounded(&self.spec),
            State::Launching | State::Running { .. } | State::Ending { .. } => false,
        };
        !gone && now.saturating_since(self.deadline) > WATCHDOG_PATIENCE
    }

    pub(super) fn answer_stopped(&mut self, certificate: &Certificate) {
        for stopped in self.stopped.drain(..) {
            let _ = stopped.send(certificate.clone());
        }
    }

    /// Ends what is being done around this run.
    pub(super) fn call_off(&self) {
        self.until.send_replace(BootInstant(0));
    }

    /// Returns how it stands, in the words of its state file; `None` if we do not know.
    pub(super) fn line(&self) -> Option<Line> {
        let died = || Line { word: Word::Failed, started: self.came_up, failed: !self.came_up };
        let asked = match self.stop {
            None => None,
            Some(StopMode::Graceful { .. } | StopMode::InTime { .. }) => Some(Word::ShuttingDown),
            Some(StopMode::Force) => Some(Word::ForceShuttingDown),
        };
        let plain = |word| Line { word, started: self.came_up, failed: false };
        Some(match (&self.state, asked) {
            (State::Over(Some(Word::Shutdown)), _) => plain(Word::Shutdown),
            (State::Over(word), _) => Line { word: (*word)?, ..died() },
            (_, Some(word)) => plain(word),
            (State::Launching, None) => plain(Word::Starting),
            (State::Running { .. }, None) if self.hung.is_some() => died(),
            (State::Running { ready: true, .. }, None) => plain(Word::Running),
            (State::Running { .. }, None) => plain(Word::Starting),
            (State::Waiting, None) => Line { word: Word::FailedRestarting, ..died() },
            (State::Ending { .. }, None) => died(),
        })
    }

    pub(super) fn report(&self, server: &ServerName) -> ServerReport {
        let (phase, pid) = match &self.state {
            State::Launching => (Phase::Launching, None),
            State::Running { pid, .. } if self.stop.is_some() || self.hung.is_some() => (Phase::Stopping, Some(*pid)),
            State::Running { pid, ready: true, .. } => (Phase::Ready, Some(*pid)),
            State::Running { pid, .. } => (Phase::Starting, Some(*pid)),
            State::Waiting => (Phase::Waiting, None),
            State::Ending { .. } => (Phase::Stopping, None),
            State::Over(_) => (Phase::Over, None),
        };
        // While anything around it may stand its end is not complete, and nobody may act on it.
        let complete = match &self.state {
            State::Over(_) => true,
            State::Waiting => !surroundings::is_surrounded(&self.spec),
            _ => false,
        };
        ServerReport {
            server: server.clone(),
            token: self.token,
            phase,
            pid,
            attempt: self.attempt,
            deadline: self.deadline,
            last_check: self.last_check.clone(),
            certificate: self.certificate.clone().filter(|_| complete),
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
            cgroup: None,
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
    surroundings::check(spec)?;
    spec.check.as_ref().map_or(Ok(()), |check| probe::check(&check.probe))
}
