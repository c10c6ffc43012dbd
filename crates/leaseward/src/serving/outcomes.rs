//! What became of the steps that were carried out, and what happened to servers meanwhile: noted here, and told.
//!
//! Must stay true: whatever ends a copy is told under its token, once; an end that we brought about is no failure.

use leaseward_node::{Happened, HookOutcome, NodeEvent};
use leaseward_state::command::ServerReport;
use leaseward_state::order::Action;
use leaseward_state::server::ServerStatus;
use leaseward_state::{Command, FencingToken, ServerName};
use tracing::{debug, info, warn};

use super::{Here, Serving, Step};

impl Serving<'_> {
    pub(super) async fn step_done(&self, step: Step, here: &mut Here) {
        match step {
            Step::Held => {}
            Step::Prepared { server, token, lacking } => {
                if here.prepared.get(&server) != Some(&token) {
                    return;
                }
                match &lacking {
                    None => info!(%server, %token, "ready to take it over"),
                    Some(what) => warn!(%server, %token, what, "could not take it over"),
                }
                let machine = self.config.machine.clone();
                self.reports.send(Command::ReportPrepared { machine, server, token, lacking }).await.ok();
            }
            Step::Looked { server, token, clients } => {
                let runs = here.running.get(&server).is_some_and(|(running, _)| *running == token);
                if runs && here.clients.get(&server) != Some(&clients) {
                    here.clients.insert(server.clone(), clients.clone());
                    let command = Command::ReportServer { server, token, report: ServerReport::Clients(clients) };
                    self.reports.try_send(command).ok();
                }
            }
            Step::Started { order, outcome } => {
                // If a stop overtook it, the stop says what became of it.
                if here.starting.get(&order.server) != Some(&order.token) {
                    return;
                }
                here.starting.remove(&order.server);
                here.busy.remove(&order.server);
                let Action::Run { spec, .. } = order.action else { return };
                match outcome {
                    Ok(()) => {
                        here.ending.retain(|(server, _)| *server != order.server);
                        here.running.insert(order.server, (order.token, *spec));
                    }
                    Err(
                        error @ (leaseward_node::Error::Launch { .. }
                        | leaseward_node::Error::BadOrder { .. }
                        | leaseward_node::Error::Io { .. }),
                    ) => {
                        warn!(server = %order.server, token = %order.token, %error, "cannot be started here");
                        let report = ServerReport::NotStarted { why: error.to_string() };
                        self.report(here, order.server, order.token, report).await;
                    }
                    Err(error @ leaseward_node::Error::Retired { .. }) => {
                        // An agent before this one was about to say so.
                        info!(server = %order.server, token = %order.token, %error, "nothing of it is here");
                        self.report(here, order.server, order.token, ServerReport::Absent).await;
                    }
                    Err(leaseward_node::Error::Hook { outcome: HookOutcome::TryLater, why, .. }) => {
                        debug!(server = %order.server, why, "it is to be tried later");
                    }
                    Err(error @ leaseward_node::Error::Hook { .. }) => {
                        warn!(server = %order.server, token = %order.token, %error, "cannot be started here");
                        let report = ServerReport::NotStarted { why: error.to_string() };
                        self.report(here, order.server, order.token, report).await;
                    }
                    Err(error) => debug!(server = %order.server, %error, "not started yet"),
                }
            }
            Step::Stopped { server, token, outcome, report } => {
                here.busy.remove(&server);
                match outcome {
                    Ok(certificate) => {
                        here.running.remove(&server);
                        if report {
                            self.report(here, server, token, ServerReport::Dead { certificate, failure: None }).await;
                        }
                    }
                    Err(leaseward_node::Error::NotHere { .. }) => {
                        // Nothing of it ever ran here, or its end was told before.
                        here.running.remove(&server);
                        if report && self.knows(token) {
                            self.report(here, server, token, ServerReport::Absent).await;
                        } else if report {
                            debug!(%server, %token, "not found; what an earlier session left must be proven or waited for");
                            here.ended.insert(server, token);
                        }
                    }
                    Err(error) => warn!(%server, %token, %error, "not stopped yet"),
                }
            }
        }
    }

    pub(super) async fn happened(&self, event: NodeEvent, here: &mut Here) {
        let NodeEvent { server, token, attempt, what } = event;
        let ours = here.ending.contains(&(server.clone(), token));
        let report = match what {
            Happened::Started { pid } => {
                ServerReport::Status { status: ServerStatus::Starting { pid }, restarts: attempt }
            }
            Happened::Ready { pid } => {
                info!(%server, %token, pid, "running");
                ServerReport::Status { status: ServerStatus::Running { pid }, restarts: attempt }
            }
            Happened::Unhealthy { why } => {
                let pid = 0;
                ServerReport::Status { status: ServerStatus::Unhealthy { pid, why }, restarts: attempt }
            }
            Happened::Exited { exit, restarts_in: Some(wait), .. } => {
                warn!(%server, %token, %exit, ?wait, "ended; it is restarted in place");
                ServerReport::Crashed { restarts: attempt + 1, why: exit.to_string() }
            }
            Happened::Exited { .. } | Happened::GaveUp { .. } | Happened::DeadlinePassed { .. } if ours => return,
            Happened::Exited { exit, certificate, restarts_in: None } => {
                here.running.remove(&server);
                ServerReport::Dead { certificate, failure: Some(exit.to_string()) }
            }
            Happened::GaveUp { why, certificate } => {
                warn!(%server, %token, why, "given up on this machine");
                here.running.remove(&server);
                ServerReport::Dead { certificate, failure: Some(why) }
            }
            Happened::DeadlinePassed { certificate } => {
                warn!(%server, %token, "ended by its deadline");
                here.running.remove(&server);
                ServerReport::Dead { certificate, failure: None }
            }
            Happened::Stuck { step, why } => {
                warn!(%server, %token, step = step.name(), why, "dead, and something is in the way of giving it up");
                let status = ServerStatus::Stuck { step: step.name().to_owned(), why };
                ServerReport::Status { status, restarts: attempt }
            }
            other => {
                debug!(%server, ?other, "nothing to report");
                return;
            }
        };
        self.report(here, server, token, report).await;
    }

    /// Returns whether this agent would find what runs under a token. Copies of an earlier session may be where it does not
    /// look: their run directory was wiped, or is another one. What is known of those was said when this session was opened.
    fn knows(&self, token: FencingToken) -> bool {
        token.revision() > self.keeper.session().opened()
    }

    async fn report(&self, here: &mut Here, server: ServerName, token: FencingToken, report: ServerReport) {
        if matches!(report, ServerReport::Dead { .. } | ServerReport::NotStarted { .. } | ServerReport::Absent) {
            here.ended.insert(server.clone(), token);
            super::retire(self.supervisor, &server, token).await;
        }
        self.reports.send(Command::ReportServer { server, token, report }).await.ok();
    }
}
