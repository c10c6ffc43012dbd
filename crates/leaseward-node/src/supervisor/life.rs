//! What follows what happens: launched, looked at, ended, restarted.
//!
//! Must stay true: an entry leaves `Running` only with the kernel's proof; whoever waits for an end gets the
//! certificate of exactly that end; a stop wins over a restart.

use std::time::Duration;

use leaseward_state::name::ServerName;
use leaseward_state::server::{Certificate, Exit, ServerSpec};
use tracing::{info, warn};

use super::around::{is_hopeless_here, refusal};
use super::entry::{Conclusion, Entry, Notice, State, order};
use super::owner::Owner;
use super::{Happened, Started, StopMode};
use crate::clock::BootInstant;
use crate::error::Error;
use crate::files::Files;
use crate::health::{self, Verdict};
use crate::hook::HookOutcome;
use crate::launch::{self, Running};
use crate::limits::TRY_LATER_PAUSE;
use crate::probe::Scene;
use crate::protocol::{Order, Request};
use crate::restart::{self, Next};
use crate::shim::marks;
use crate::state_file::Word;
use crate::surroundings::{self, Failure};

impl Owner {
    /// Takes in what a task says, unless it speaks of an older run.
    pub(super) fn take_in(&mut self, server: &ServerName, run: u64, notice: Notice) {
        if self.entries.get(server).is_none_or(|entry| entry.run != run) {
            return;
        }
        match notice {
            Notice::Launched(Ok(running)) => self.launched(server, running),
            Notice::Launched(Err(failure)) => self.not_launched(server, failure),
            Notice::Greeted(outcome) => self.greeted(server, outcome),
            Notice::LeftRudely(failure) => self.emit_stuck(server, failure),
            Notice::Down(outcome) => self.taken_down(server, outcome),
            Notice::DownDue => self.take_down(server),
            Notice::Looked(look, verdict) => self.looked(server, look, verdict),
            Notice::Ended { at, exit } => self.ended(server, at, exit),
            Notice::RestartDue => self.restart(server),
        }
    }

    /// Takes over a server that executes: one just launched, or one adopted.
    fn launched(&mut self, server: &ServerName, running: Running) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let Running { status, link, over, init, shim } = running;
        let pid = status.server_pid;
        let started = Started { pid, attempt: entry.attempt, already: false };
        for starter in entry.starters.drain(..) {
            let _ = starter.send(Ok(started));
        }
        entry.state = State::Running { pid, ready: false, link: link.clone(), init: init.clone(), checks: None };
        info!(%server, token = %entry.token, pid, attempt = entry.attempt, "server started");
        if entry.deadline > status.deadline {
            let (token, deadline, boot_id) = (entry.token, entry.deadline, self.boot_id.clone());
            let name = server.clone();
            self.tasks.spawn(async move {
                if let Err(error) = link.ask(Request::Extend { token, deadline, boot_id }).await {
                    warn!(server = %name, %error, "could not extend a server that just started");
                }
            });
        }
        let (run, spec, stop) = (entry.run, entry.spec.clone(), entry.stop);
        let order = order(&self.config, &self.boot_id, server, entry);
        self.emit(server, Happened::Started { pid });
        if spec.check.is_none() {
            self.greet(server);
        }
        let files = Files::of(&self.config.run_dir, server.as_str());
        self.send_later(server, run, async move {
            let (at, exit) = launch::see_off(Some(&files), &status, init.as_deref(), shim.as_deref(), over).await;
            Notice::Ended { at, exit }
        });
        if let Some(check) = spec.check.clone() {
            let scene = Scene::of(&spec, marks(&order), pid);
            let (notices, name) = (self.notices.clone(), server.clone());
            let start_timeout = Duration::from_millis(spec.start_timeout_ms);
            let watch = health::watch(check, start_timeout, scene, async move |look, verdict| {
                let notice = Notice::Looked(look, verdict);
                notices.send((name.clone(), run, notice)).await.is_ok()
            });
            let task = self.tasks.spawn(watch);
            if let Some(State::Running { checks, .. }) = self.entries.get_mut(server).map(|entry| &mut entry.state) {
                *checks = Some(task);
            }
        }
        if let Some(mode) = stop {
            self.end(server, mode);
        }
    }

    fn not_launched(&mut self, server: &ServerName, failure: Failure) {
        let certificate = self.certificate(server, BootInstant::now(), Exit::Code(127));
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        warn!(%server, token = %entry.token, why = failure.why, "server could not be started");
        entry.certificate = Some(certificate.clone());
        if entry.starters.is_empty() {
            self.blame(server, failure);
            self.after_end(server, certificate);
            return;
        }
        // Whoever ordered it hears it first-hand and decides.
        let refuse = refusal(server, entry, failure);
        self.settle(server, Conclusion { tell: Vec::new(), refuse, word: Some(Word::FailedNotRestartable) });
    }

    fn looked(&mut self, server: &ServerName, look: Result<(), String>, verdict: Verdict) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        entry.last_check = Some(look);
        let State::Running { pid, ready, .. } = &mut entry.state else {
            return;
        };
        let pid = *pid;
        match verdict {
            Verdict::Same => {}
            Verdict::Good if *ready => {
                info!(%server, token = %entry.token, pid, "server healthy again");
                self.emit(server, Happened::Ready { pid });
            }
            Verdict::Good => self.greet(server),
            Verdict::Ailing(why) => {
                warn!(%server, token = %entry.token, why, "server unhealthy");
                self.emit(server, Happened::Unhealthy { why });
            }
            Verdict::Hung(why) if self.held.contains(server) => self.emit(server, Happened::Unhealthy { why }),
            Verdict::Hung(why) => {
                warn!(%server, token = %entry.token, why, "server hung; killing it");
                entry.hung = Some(why.clone());
                self.emit(server, Happened::Unhealthy { why });
                self.end(server, StopMode::Force);
            }
        }
    }

    fn ended(&mut self, server: &ServerName, at: BootInstant, exit: Exit) {
        let certificate = self.certificate(server, at, exit);
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        if let State::Running { checks: Some(checks), .. } = &entry.state {
            checks.abort();
        }
        info!(%server, token = %entry.token, %exit, "server ended");
        entry.call_off();
        entry.certificate = Some(certificate.clone());
        self.after_end(server, certificate);
    }

    /// Decides what follows an end that is proven.
    fn after_end(&mut self, server: &ServerName, certificate: Certificate) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        let now = BootInstant::now();
        let exit = certificate.exit;
        let exited = |restarts_in| Happened::Exited { exit, certificate: certificate.clone(), restarts_in };
        let name = server.to_string();
        let refuse = Box::new(move || Error::Stopping { server: name.clone() });
        let conclude = |tell, word| Conclusion { tell, refuse, word: Some(word) };
        if entry.stop.is_some() {
            self.settle(server, conclude(vec![exited(None)], Word::Shutdown));
            return;
        }
        if entry.deadline <= now {
            warn!(%server, token = %entry.token, "server ended by its deadline");
            let tell = vec![exited(None), Happened::DeadlinePassed { certificate }];
            self.settle(server, conclude(tell, Word::FailedMigratable));
            return;
        }
        let next = match entry.outcome {
            _ if self.held.contains(server) => Next::GiveUp,
            Some(HookOutcome::TryLater) => Next::Restart(TRY_LATER_PAUSE),
            Some(outcome) if is_hopeless_here(outcome) => Next::GiveUp,
            _ => restart::next(&entry.spec.restart, &mut entry.restarts, now),
        };
        match next {
            Next::Restart(wait) => {
                entry.state = State::Waiting;
                let run = entry.run;
                self.emit(server, exited(Some(wait)));
                self.send_later(server, run, async move {
                    // A timer takes a millisecond, however short it is.
                    if !wait.is_zero() {
                        tokio::time::sleep(wait).await;
                    }
                    Notice::RestartDue
                });
            }
            Next::GiveUp => {
                let last = entry.hung.clone().unwrap_or_else(|| exit.to_string());
                let why = format!("{last}, after {} restarts in place", entry.restarts.len());
                warn!(%server, token = %entry.token, why, "gave up on server");
                let tell = vec![exited(None), Happened::GaveUp { why, certificate }];
                self.settle(server, conclude(tell, Word::FailedNotRestartable));
            }
        }
    }

    fn restart(&mut self, server: &ServerName) {
        let Some(entry) = self.entries.get_mut(server) else {
            return;
        };
        if !matches!(entry.state, State::Waiting) {
            return;
        }
        if entry.deadline <= BootInstant::now() {
            let (deadline, name) = (entry.deadline, server.to_string());
            let refuse = Box::new(move || Error::DeadlinePassed { server: name.clone(), deadline });
            let certificate = entry.certificate.clone();
            let tell = certificate.map(|certificate| Happened::DeadlinePassed { certificate }).into_iter().collect();
            self.settle(server, Conclusion { tell, refuse, word: Some(Word::FailedMigratable) });
            return;
        }
        entry.attempt += 1;
        self.launch(server);
    }

    /// Takes in a server that was found alive or dying.
    pub(super) fn adopt(&mut self, server: &ServerName, entry_of: &Order, spec: ServerSpec, running: Running) {
        self.runs += 1;
        let deadline = running.status.deadline;
        let mut entry = Entry::new(entry_of.token, spec, deadline, entry_of.attempt);
        entry.run = self.runs;
        self.entries.insert(server.clone(), entry);
        self.launched(server, running);
    }

    /// Takes in the end of a server that no agent may have reported.
    pub(super) fn adopt_end(&mut self, server: &ServerName, spec: ServerSpec, attempt: u32, certificate: Certificate) {
        self.runs += 1;
        let mut entry = Entry::new(certificate.token, spec, BootInstant(0), attempt);
        entry.run = self.runs;
        entry.state = State::Over(None);
        entry.certificate = Some(certificate.clone());
        self.entries.insert(server.clone(), entry);
        // What still stands says that its end was never told.
        let files = Files::of(&self.config.run_dir, server.as_str());
        let word = (!matches!(surroundings::record(&files), Ok(None))).then_some(Word::FailedMigratable);
        let tell = vec![Happened::Exited { exit: certificate.exit, certificate, restarts_in: None }];
        let name = server.to_string();
        let refuse = Box::new(move || Error::Stopping { server: name.clone() });
        self.settle(server, Conclusion { tell, refuse, word });
    }
}
