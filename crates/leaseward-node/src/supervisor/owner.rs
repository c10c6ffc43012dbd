//! The one task that owns every server of this machine.
//!
//! Must stay true: the loop never waits for a shim, a server or a disk other than its own small files; whatever
//! takes time is a task that sends a [`Notice`] with the number of the run it belongs to, and a notice of an older
//! run is ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Certificate, Exit};
use leaseward_state::token::FencingToken;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::around::launch_in;
use super::entry::{Conclusion, Entry, Notice, State, check, order};
use super::{Happened, NodeConfig, NodeEvent, ServerReport, StartOrder, Started, StopMode};
use crate::Result;
use crate::address::Addresses;
use crate::clock::BootInstant;
use crate::error::{Error, io_error};
use crate::files::{self, Files, Seen};
use crate::launch::Program;
use crate::limits::{NOTICES_WAITING_MAX, STOP_MARGIN, WATCHDOG_NONE, WATCHDOG_PETS};
use crate::protocol::Request;
use crate::spares::Spares;
use crate::state_file::{StateFile, Word};
use crate::surroundings::Surroundings;
use crate::watchdog::Watchdog;

/// Where records of addresses are, under the run directory.
const ADDRESSES: &str = "addresses";

type Extended = Vec<(ServerName, Result<()>)>;

/// What a handle asks.
pub(super) enum Command {
    Start(Box<StartOrder>, oneshot::Sender<Result<Started>>),
    Extend {
        which: Which,
        deadline: BootInstant,
        answer: oneshot::Sender<oneshot::Receiver<Extended>>,
    },
    Stop {
        server: ServerName,
        token: FencingToken,
        mode: StopMode,
        answer: oneshot::Sender<Result<oneshot::Receiver<Certificate>>>,
    },
    Retire {
        server: ServerName,
        token: FencingToken,
        answer: oneshot::Sender<Result<()>>,
    },
    Status(oneshot::Sender<Vec<ServerReport>>),
    Hold {
        server: ServerName,
        held: bool,
        answer: oneshot::Sender<()>,
    },
}

/// Whose deadline is moved.
pub(super) enum Which {
    One(ServerName, FencingToken),
    /// Of every server that runs under the token that is named here.
    All(BTreeMap<ServerName, FencingToken>),
}

impl Which {
    fn names(&self, server: &ServerName, token: FencingToken) -> bool {
        match self {
            Self::One(name, only) => (name, *only) == (server, token),
            Self::All(held) => held.get(server) == Some(&token),
        }
    }
}

/// Owns every server of this machine.
pub(super) struct Owner {
    pub(super) config: NodeConfig,
    pub(super) boot_id: String,
    pub(super) entries: BTreeMap<ServerName, Entry>,
    seen: BTreeMap<ServerName, Seen>,
    /// Left as they are when they end or hang.
    pub(super) held: BTreeSet<ServerName>,
    pub(super) addresses: Addresses,
    spares: Arc<Spares>,
    /// For whose sake the watchdog is not petted.
    overdue: Option<ServerName>,
    pub(super) runs: u64,
    events: mpsc::Sender<NodeEvent>,
    pub(super) notices: mpsc::Sender<(ServerName, u64, Notice)>,
    noticed: mpsc::Receiver<(ServerName, u64, Notice)>,
    pub(super) tasks: JoinSet<()>,
    pub(super) state_files: BTreeMap<ServerName, StateFile>,
    /// Held as long as we own the run directory.
    _lock: File,
}

impl Owner {
    pub(super) fn new(config: NodeConfig, boot_id: String, events: mpsc::Sender<NodeEvent>, lock: File) -> Self {
        let (notices, noticed) = mpsc::channel(NOTICES_WAITING_MAX);
        let addresses = Addresses::new(config.run_dir.join(ADDRESSES), config.interfaces.clone());
        let program = Program { exe: config.shim_exe.clone(), arguments: config.shim_arguments.clone() };
        Self {
            spares: Arc::new(Spares::of(program)),
            held: BTreeSet::new(),
            overdue: None,
            addresses,
            config,
            boot_id,
            entries: BTreeMap::new(),
            seen: BTreeMap::new(),
            runs: 0,
            events,
            notices,
            noticed,
            tasks: JoinSet::new(),
            state_files: BTreeMap::new(),
            _lock: lock,
        }
    }

    /// Runs until the last handle is gone. Servers live on.
    pub(super) async fn run(mut self, mut ordered: mpsc::Receiver<Command>, mut watchdog: Option<Watchdog>) {
        let mut pets = interval(watchdog.as_ref().map_or(WATCHDOG_NONE, |dog| dog.timeout() / WATCHDOG_PETS));
        pets.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let spares = Arc::clone(&self.spares);
        self.tasks.spawn(async move { spares.refill_soon().await });
        loop {
            self.tell_states();
            tokio::select! {
                command = ordered.recv() => match command {
                    Some(command) => self.obey(command),
                    None => break,
                },
                _ = pets.tick(), if watchdog.is_some() => self.pet(watchdog.as_mut()),
                Some((server, run, notice)) = self.noticed.recv() => self.take_in(&server, run, notice),
                Some(ended) = self.tasks.join_next() => if let Err(error) = ended
                    && !error.is_cancelled()
                {
                    error!(%error, "a task of the supervisor failed");
                },
            }
        }
        let armed = self.entries.values().any(|entry| !matches!(entry.state, State::Over(_)));
        if let Some(Err(error)) = watchdog.take().filter(|_| !armed).map(Watchdog::sleep) {
            error!(%error, "the watchdog does not sleep: the machine will be reset");
        }
    }

    /// Pets the watchdog, unless a server's time is over and the server, or what stood around it, is not.
    fn pet(&mut self, watchdog: Option<&mut Watchdog>) {
        let Some(watchdog) = watchdog else { return };
        let late = self.entries.iter().find(|(_, entry)| entry.is_overdue(BootInstant::now()));
        let overdue = late.map(|(server, _)| server.clone());
        if self.overdue != overdue {
            match &overdue {
                Some(server) => error!(
                    %server, watchdog = %watchdog.path().display(), resets_in = ?watchdog.timeout(),
                    "its time is over and it is not gone: the watchdog is not petted"
                ),
                None => info!("every server whose time is over is gone: the watchdog is petted again"),
            }
            self.overdue.clone_from(&overdue);
        }
        if overdue.is_none()
            && let Err(error) = watchdog.pet()
        {
            error!(%error, "the watchdog cannot be petted: the machine will be reset");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(order, answer) => self.start(*order, answer),
            Command::Extend { which, deadline, answer } => {
                let _ = answer.send(self.extend(&which, deadline));
            }
            Command::Retire { server, token, answer } => {
                let _ = answer.send(self.retire(&server, token));
            }
            Command::Stop { server, token, mode, answer } => {
                let _ = answer.send(self.stop(&server, token, mode));
            }
            Command::Hold { server, held, answer } => {
                match held {
                    true => self.held.insert(server),
                    false => self.held.remove(&server),
                };
                let _ = answer.send(());
            }
            Command::Status(answer) => {
                let _ = answer.send(self.entries.iter().map(|(server, entry)| entry.report(server)).collect());
            }
        }
    }

    fn start(&mut self, order: StartOrder, answer: oneshot::Sender<Result<Started>>) {
        if let Err(error) = self.may_start(&order) {
            let _ = answer.send(Err(error));
            return;
        }
        let StartOrder { server, spec, token, deadline, clients } = order;
        if !clients.is_empty() {
            let known = clients.iter().map(|client| (client.local, client.peer)).collect();
            self.addresses.set_connections(&server, known);
        }
        let attempt = match self.entries.get_mut(&server) {
            Some(entry) if entry.token == token => match &entry.state {
                State::Running { pid, .. } => {
                    let _ = answer.send(Ok(Started { pid: *pid, attempt: entry.attempt, already: true }));
                    return;
                }
                State::Launching | State::Waiting => {
                    entry.starters.push(answer);
                    return;
                }
                State::Ending { .. } => {
                    let _ = answer.send(Err(Error::Stopping { server: server.to_string() }));
                    return;
                }
                State::Over(_) => entry.attempt + 1,
            },
            _ => 0,
        };
        let mut entry = Entry::new(token, spec, deadline, attempt);
        entry.starters.push(answer);
        self.entries.insert(server.clone(), entry);
        self.launch(&server);
    }

    /// Returns why an order must not be carried out; notes its token if it may.
    fn may_start(&mut self, order: &StartOrder) -> Result<()> {
        let StartOrder { server, spec, token, deadline, .. } = order;
        let name = || server.to_string();
        check(spec).map_err(|why| Error::BadOrder { server: name(), why })?;
        let seen = self.seen(server)?;
        if let Some(Seen { token: seen, .. }) = seen.filter(|seen| *token < seen.token) {
            return Err(Error::StaleToken { server: name(), token: *token, seen });
        }
        if *deadline <= BootInstant::now() {
            return Err(Error::DeadlinePassed { server: name(), deadline: *deadline });
        }
        if let Some(entry) = self.entries.get(server).filter(|entry| !matches!(entry.state, State::Over(_))) {
            if entry.token != *token {
                return Err(Error::OtherTokenLives { server: name(), token: entry.token });
            }
            if entry.stop.is_some() {
                return Err(Error::Stopping { server: name() });
            }
        } else if seen.is_some_and(|seen| seen.token == *token && seen.retired) {
            return Err(Error::Retired { server: name(), token: *token });
        }
        if seen.is_none_or(|seen| seen.token < *token) {
            self.note(server, Seen { token: *token, retired: false })?;
        }
        Ok(())
    }

    /// Returns the greatest token that was seen of a server, by this supervisor or an earlier one.
    fn seen(&mut self, server: &ServerName) -> Result<Option<Seen>> {
        if let Some(seen) = self.seen.get(server) {
            return Ok(Some(*seen));
        }
        let path = Files::of(&self.config.run_dir, server.as_str()).token();
        if !path.exists() {
            return Ok(None);
        }
        let seen = files::read(&path).map_err(io_error("read", &path))?;
        self.seen.insert(server.clone(), seen);
        Ok(Some(seen))
    }

    /// Notes a token for later supervisors. This one knows it also if that fails.
    fn note(&mut self, server: &ServerName, seen: Seen) -> Result<()> {
        let path = Files::of(&self.config.run_dir, server.as_str()).token();
        let noted = files::write(&path, &seen).map_err(io_error("write", &path));
        if noted.is_ok() || seen.retired {
            self.seen.insert(server.clone(), seen);
        }
        noted
    }

    fn retire(&mut self, server: &ServerName, token: FencingToken) -> Result<()> {
        let seen = self.seen(server)?;
        if seen.is_some_and(|seen| seen.token > token || seen == Seen { token, retired: true }) {
            return Ok(());
        }
        self.note(server, Seen { token, retired: true })
    }

    /// Starts the shim of an entry that has none.
    pub(super) fn launch(&mut self, server: &ServerName) {
        self.runs += 1;
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        entry.run = self.runs;
        entry.state = State::Launching;
        (entry.last_check, entry.hung, entry.outcome) = (None, None, None);
        (entry.took_leave, entry.greeting, entry.came_up) = (false, false, false);
        entry.until = watch::channel(entry.deadline).0;
        let until = entry.until.subscribe();
        let spares = Arc::clone(&self.spares);
        let order = order(&self.config, &self.boot_id, server, entry);
        let log = self.config.log_dir.join(format!("{server}.shim"));
        let (run, turn) = (entry.run, entry.turn.clone());
        let around = Surroundings::of(order.clone(), turn, self.addresses.clone());
        self.send_later(
            server,
            run,
            async move { Notice::Launched(launch_in(&spares, order, &log, around, &until).await) },
        );
    }

    /// Runs a task whose outcome concerns one run.
    pub(super) fn send_later(
        &mut self,
        server: &ServerName,
        run: u64,
        work: impl Future<Output = Notice> + Send + 'static,
    ) {
        let (notices, server) = (self.notices.clone(), server.clone());
        self.tasks.spawn(async move {
            let notice = work.await;
            let _ = notices.send((server, run, notice)).await;
        });
    }

    fn extend(&mut self, which: &Which, deadline: BootInstant) -> oneshot::Receiver<Extended> {
        let (answer, answered) = oneshot::channel();
        let mut results = Extended::new();
        let mut asks = JoinSet::new();
        let lives = |entry: &Entry| !matches!(entry.state, State::Over(_));
        let found = self.entries.iter_mut().filter(|(server, entry)| lives(entry) && which.names(server, entry.token));
        let mut any = false;
        for (server, entry) in found {
            any = true;
            // Noted before it is sent: an extension that is not acknowledged may be in force.
            entry.deadline = entry.deadline.max(deadline);
            entry.until.send_if_modified(|at| {
                let moves = *at > BootInstant(0) && *at < deadline;
                *at = if moves { deadline } else { *at };
                moves
            });
            let (token, boot_id, server) = (entry.token, self.boot_id.clone(), server.clone());
            if !entry.spec.addresses.is_empty() {
                let (addresses, name) = (self.addresses.clone(), server.clone());
                self.tasks.spawn(async move {
                    if let Err(error) = addresses.extend(&name, deadline).await {
                        warn!(server = %name, %error, "could not extend its addresses");
                    }
                });
            }
            match &entry.state {
                State::Running { link, .. } => {
                    let link = link.clone();
                    asks.spawn(async move {
                        let extended = link.ask(Request::Extend { token, deadline, boot_id }).await;
                        (server, extended.map(drop))
                    });
                }
                _ => results.push((server, Ok(()))),
            }
        }
        if let (false, Which::One(server, _)) = (any, which) {
            results.push((server.clone(), Err(Error::NotHere { server: server.to_string() })));
        }
        self.tasks.spawn(async move {
            while let Some(asked) = asks.join_next().await {
                results.extend(asked);
            }
            results.sort_by(|(a, _), (b, _)| a.cmp(b));
            let _ = answer.send(results);
        });
        answered
    }

    fn stop(
        &mut self,
        server: &ServerName,
        token: FencingToken,
        mode: StopMode,
    ) -> Result<oneshot::Receiver<Certificate>> {
        let not_here = || Error::NotHere { server: server.to_string() };
        let entry = self.entries.get_mut(server).filter(|entry| entry.token == token).ok_or_else(not_here)?;
        let (answer, answered) = oneshot::channel();
        entry.stop = Some(mode);
        entry.stopped.push(answer);
        match (&entry.state, entry.certificate.clone()) {
            (State::Over(_), Some(certificate)) => entry.answer_stopped(&certificate),
            (State::Waiting, _) => {
                let name = server.to_string();
                let refuse = Box::new(move || Error::Stopping { server: name.clone() });
                self.settle(server, Conclusion { tell: Vec::new(), refuse, word: Some(Word::Shutdown) });
            }
            (State::Running { .. }, _) => self.end(server, mode),
            // A launch that is under way is ended when it has come to its end, which is now, if it can be.
            (State::Launching, _) => entry.call_off(),
            _ => {}
        }
        Ok(answered)
    }

    /// Asks a running server to stop, and sees to it that it does.
    pub(super) fn end(&mut self, server: &ServerName, mode: StopMode) {
        let Some(entry) = self.entries.get(server) else {
            return;
        };
        let State::Running { link, init, .. } = &entry.state else {
            return;
        };
        let (link, init, token) = (link.clone(), init.clone(), entry.token);
        let leave = matches!(mode, StopMode::Graceful { .. }).then(|| self.leave(server));
        let grace = match mode {
            StopMode::Graceful { grace } | StopMode::InTime { grace } => Some(grace),
            StopMode::Force => None,
        };
        self.tasks.spawn(async move {
            let kill = || init.iter().for_each(|init| init.kill());
            if let Some(grace) = grace {
                if let Some(leave) = leave {
                    leave.await;
                }
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                // A shim that does not answer cannot ask the server, either.
                if link.ask(Request::Stop { token, grace_ms }).await.is_ok() {
                    tokio::time::sleep(grace + STOP_MARGIN).await;
                }
            }
            kill();
        });
    }

    pub(super) fn certificate(&self, server: &ServerName, at: BootInstant, exit: Exit) -> Certificate {
        let token = self.entries.get(server).map_or(FencingToken(0), |entry| entry.token);
        Certificate { token, boot_id: self.boot_id.clone(), proven_at_boottime_ns: at.0, exit }
    }

    pub(super) fn emit(&self, server: &ServerName, what: Happened) {
        let Some(entry) = self.entries.get(server) else {
            return;
        };
        let event = NodeEvent { server: server.clone(), token: entry.token, attempt: entry.attempt, what };
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            error!(?event, "nobody takes the supervisor's events; dropped one");
        }
    }
}
