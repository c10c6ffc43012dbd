//! What surrounds a server, as its owner sees it: up before a run, hooks during it, down before its end is told.
//!
//! Must stay true: an end is concluded only when nothing stands around the server by the record in the run directory;
//! what cannot be taken down is tried again, for ever, and told when the reason changes. A hook that belongs to a run
//! is killed when the run ends.

use std::path::Path;
use std::sync::Arc;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Announce, HookStep};
use tokio::sync::watch;
use tracing::{info, warn};

use super::entry::{Conclusion, Entry, Notice, State, order};
use super::owner::Owner;
use super::{Happened, StopMode};
use crate::clock::BootInstant;
use crate::error::Error;
use crate::files::{self, Files};
use crate::hook::HookOutcome;
use crate::launch::{self, Running};
use crate::limits::{SHIM_LOG_BYTES_MAX, STUCK_PAUSE, STUCK_PAUSE_MAX};
use crate::protocol::{Order, Work};
use crate::spares::Spares;
use crate::state_file::StateFile;
use crate::surroundings::{self, Failure, Surroundings, Until};

impl Owner {
    /// Returns what is to stand around a server's present run.
    pub(super) fn surroundings(&self, server: &ServerName) -> Option<Surroundings> {
        let entry = self.entries.get(server)?;
        let order = order(&self.config, &self.boot_id, server, entry);
        Surroundings::of(order, entry.turn.clone(), self.addresses.clone())
    }

    /// Completes an end that is proven: takes down what stands, then concludes.
    pub(super) fn settle(&mut self, server: &ServerName, conclusion: Conclusion) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let files = Files::of(&self.config.run_dir, server.as_str());
        // One that cannot be read says that something may stand.
        if matches!(surroundings::record(&files), Ok(None)) {
            self.conclude(server, conclusion);
            return;
        }
        entry.state = State::Ending { conclusion, stuck: None, pause: STUCK_PAUSE };
        self.take_down(server);
    }

    /// Takes down, or tries again to.
    pub(super) fn take_down(&mut self, server: &ServerName) {
        let Some(around) = self.surroundings(server) else {
            return;
        };
        let Some(run) = self.entries.get(server).map(|entry| entry.run) else {
            return;
        };
        self.send_later(server, run, async move { Notice::Down(around.down().await) });
    }

    pub(super) fn taken_down(&mut self, server: &ServerName, outcome: Result<(), Failure>) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let State::Ending { stuck, pause, .. } = &mut entry.state else {
            return;
        };
        let Err(failure) = outcome else {
            if let State::Ending { conclusion, .. } = std::mem::replace(&mut entry.state, State::Over(None)) {
                self.conclude(server, conclusion);
            }
            return;
        };
        let wait = *pause;
        *pause = (wait * 2).min(STUCK_PAUSE_MAX);
        let news = stuck.as_ref() != Some(&failure);
        *stuck = Some(failure.clone());
        let run = entry.run;
        if news {
            self.emit_stuck(server, failure);
        }
        self.send_later(server, run, async move {
            tokio::time::sleep(wait).await;
            Notice::DownDue
        });
    }

    pub(super) fn emit_stuck(&self, server: &ServerName, failure: Failure) {
        let step = failure.step.unwrap_or(HookStep::PostStop);
        warn!(%server, step = step.name(), why = failure.why, "a step of its stop failed");
        self.emit(server, Happened::Stuck { step, why: failure.why });
    }

    /// Tells an end that is complete.
    fn conclude(&mut self, server: &ServerName, conclusion: Conclusion) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        entry.state = State::Over(conclusion.word);
        for starter in entry.starters.drain(..) {
            let _ = starter.send(Err((conclusion.refuse)()));
        }
        if let Some(certificate) = entry.certificate.clone() {
            entry.answer_stopped(&certificate);
        }
        for what in conclusion.tell {
            self.emit(server, what);
        }
    }

    /// A server passed its check for the first time: `post_start`, then it is ready.
    pub(super) fn greet(&mut self, server: &ServerName) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        if std::mem::replace(&mut entry.greeting, true) {
            return;
        }
        if !entry.spec.hooks.contains_key(&HookStep::PostStart) {
            self.greeted(server, Ok(()));
            return;
        }
        let (run, until, stopping) = (entry.run, entry.until.subscribe(), entry.stop.is_some());
        let Some(around) = self.surroundings(server).filter(|_| !stopping) else {
            return;
        };
        self.send_later(server, run, async move { Notice::Greeted(around.greet(&until).await) });
    }

    pub(super) fn greeted(&mut self, server: &ServerName, outcome: Result<(), Failure>) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let State::Running { pid, ready, .. } = &mut entry.state else {
            return;
        };
        let pid = *pid;
        match outcome {
            Ok(()) => {
                (*ready, entry.came_up) = (true, true);
                if entry.spec.addresses.iter().any(|address| address.announce == Announce::AfterReady) {
                    self.addresses.announce(server);
                }
                info!(%server, token = %entry.token, pid, "server ready");
                self.emit(server, Happened::Ready { pid });
            }
            // It was called off.
            Err(_) if entry.stop.is_some() || entry.hung.is_some() => {}
            Err(failure) => {
                self.blame(server, failure);
                self.end(server, StopMode::Force);
            }
        }
    }

    /// Notes why a run failed, and tells it if a hook is to blame.
    pub(super) fn blame(&mut self, server: &ServerName, failure: Failure) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let Failure { step, outcome, why } = failure;
        warn!(%server, token = %entry.token, why, "a step around its start failed");
        entry.outcome = Some(outcome);
        entry.hung = Some(step.map_or_else(|| why.clone(), |step| format!("{}: {why}", step.name())));
        if let Some(step) = step {
            self.emit(server, Happened::HookFailed { step, outcome, why });
        }
    }

    /// Runs `pre_stop` once, before a graceful stop; returns a future that ends when no hook of it runs any more.
    pub(super) fn leave(&mut self, server: &ServerName) -> impl Future<Output = ()> + Send + 'static {
        let around = self.surroundings(server);
        let notices = self.notices.clone();
        let name = server.clone();
        let entry = self.entries.get_mut(server).map(|entry| {
            let first = !std::mem::replace(&mut entry.took_leave, true);
            if first {
                // A `post_start` that still runs has lost its purpose.
                entry.call_off();
                entry.until = watch::channel(entry.deadline).0;
            }
            (first, entry.run, entry.until.subscribe())
        });
        async move {
            let (Some(around), Some((first, run, until))) = (around, entry) else { return };
            if let Err(failure) = around.take_leave(first, &until).await {
                let _ = notices.send((name, run, Notice::LeftRudely(failure))).await;
            }
        }
    }

    /// Has each server's state file say how it stands.
    pub(super) fn tell_states(&mut self) {
        for (server, entry) in self.entries.iter().filter(|(_, entry)| entry.spec.state_file.is_some()) {
            if let Some(line) = entry.line() {
                self.state_files.entry(server.clone()).or_insert_with(StateFile::new).tell(&entry.spec, line);
            }
        }
    }
}

/// Returns what callers hear who wait for a start that failed.
pub(super) fn refusal(server: &ServerName, entry: &Entry, failure: Failure) -> Box<dyn Fn() -> Error + Send + Sync> {
    let (server, stopping) = (server.to_string(), entry.stop.is_some());
    Box::new(move || {
        let server = server.clone();
        let Failure { step, outcome, why } = failure.clone();
        match step {
            _ if stopping => Error::Stopping { server },
            Some(step) => Error::Hook { server, step, outcome, why },
            None => Error::Launch { server, why },
        }
    })
}

/// Returns whether trying again on this machine is of no use.
pub(super) fn is_hopeless_here(outcome: HookOutcome) -> bool {
    matches!(outcome, HookOutcome::WrongHere | HookOutcome::WrongEverywhere | HookOutcome::NeedsFence)
}

/// Brings up what surrounds a server, and starts its shim.
pub(super) async fn launch_in(
    spares: &Arc<Spares>,
    mut order: Order,
    shim_log: &Path,
    around: Option<Surroundings>,
    until: &Until,
) -> Result<Running, Failure> {
    if let Some(around) = around {
        let made = around.up(until).await?;
        if let Work::Server { cgroup, .. } = &mut order.work {
            *cgroup = made;
        }
    }
    // It may have moved meanwhile.
    order.deadline = *until.borrow();
    if order.deadline == BootInstant(0) {
        return Err(Failure::launch("it was called off"));
    }
    let log = files::open_log(shim_log, SHIM_LOG_BYTES_MAX);
    let log = log.map_err(|e| Failure::launch(format!("open {}: {e}", shim_log.display())))?;
    let missing = Arc::clone(spares);
    tokio::spawn(async move { missing.refill_soon().await });
    launch::server(spares, &order, log).await.map_err(Failure::launch)
}
