//! What agents say of their copies: how they are, that they failed, that they are dead.
//!
//! Must stay true: a report counts for the copy that its token names and for no other; a failure counts once, however
//! often it is told.

use super::cut;
use crate::apply::Outcome;
use crate::command::{Reply, ServerReport};
use crate::event::Event;
use crate::lease::GrantEnd;
use crate::limits::{CLIENTS_KEPT_MAX, FAILURES_KEPT_MAX};
use crate::name::ServerName;
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::server::{
    Assignment, Cause, Certificate, Destination, Failure, FenceProof, Placement, Server, ServerStatus,
};
use crate::state::State;
use crate::token::FencingToken;

impl State {
    pub(in crate::apply) fn report_server(
        &mut self,
        name: &ServerName,
        token: FencingToken,
        report: &ServerReport,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let server = self.known_server(name)?;
        // A certificate proves the death of the copy that it names, of no other.
        let given = match report {
            ServerReport::Dead { certificate, .. } if certificate.token != token => certificate.token,
            _ => token,
        };
        let stale =
            || Refusal::StaleToken { lease: name.lease().to_string(), given, current: self.token(&name.lease()) };
        if given != token {
            return Err(stale());
        }
        match &server.placement {
            Placement::Assigned(assignment) if assignment.token == token => {
                let (server, assignment) = (server.clone(), assignment.clone());
                self.report_assigned(name, server, assignment, report, events);
                Ok(Reply::Done)
            }
            Placement::Expired(expired) if expired.token == token => {
                let proof = match report {
                    ServerReport::Dead { certificate, .. } if certificate.token == token => {
                        FenceProof::Certificate(certificate.clone())
                    }
                    ServerReport::Absent => FenceProof::Swept,
                    _ => return Err(stale()),
                };
                if expired.fence.is_none() {
                    let mut expired = expired.clone();
                    expired.fence = Some(proof.clone());
                    let machine = expired.machine.clone();
                    self.set_placement(name, Placement::Expired(expired));
                    self.orders_changed(&machine);
                    events.push(Event::ServerFenced { server: name.clone(), token, proof });
                }
                Ok(Reply::Done)
            }
            _ => Err(stale()),
        }
    }

    fn report_assigned(
        &mut self,
        name: &ServerName,
        mut server: Server,
        mut assignment: Assignment,
        report: &ServerReport,
        events: &mut Vec<Event>,
    ) {
        let machine = assignment.machine.clone();
        let reported = |status: &ServerStatus| Event::ServerReported {
            server: name.clone(),
            machine: machine.clone(),
            token: assignment.token,
            status: status.clone(),
        };
        match report {
            ServerReport::Status { status, restarts } => {
                if assignment.status == *status && assignment.restarts == *restarts {
                    return;
                }
                events.push(reported(status));
                assignment.status = status.clone();
                assignment.restarts = *restarts;
                if matches!(status, ServerStatus::Running { .. }) {
                    assignment.ready = true;
                    assignment.back_to = None;
                }
                server.placement = Placement::Assigned(assignment);
            }
            ServerReport::Crashed { restarts, why } => {
                let status = ServerStatus::Restarting { why: cut(why) };
                if assignment.status == status && assignment.restarts == *restarts {
                    return;
                }
                events.push(reported(&status));
                self.count_failure(&mut server, &assignment, restarts.saturating_sub(1), why, false);
                assignment.status = status;
                assignment.restarts = *restarts;
                server.placement = Placement::Assigned(assignment);
            }
            ServerReport::Dead { certificate, failure } => {
                if let Some(why) = failure {
                    self.count_failure(&mut server, &assignment, assignment.restarts, why, false);
                }
                self.stopped(name, server, assignment, failure.as_deref(), Some(certificate), events);
                return;
            }
            ServerReport::Clients(clients) => {
                let mut clients = clients.clone();
                clients.truncate(CLIENTS_KEPT_MAX);
                if server.clients == clients {
                    return;
                }
                server.clients = clients;
            }
            ServerReport::Absent => {
                self.stopped(name, server, assignment, None, None, events);
                return;
            }
            ServerReport::NotStarted { why } => {
                self.count_failure(&mut server, &assignment, assignment.restarts, why, false);
                self.stopped(name, server, assignment, Some(why), None, events);
                return;
            }
        }
        self.put(name, server);
    }

    /// The copy is dead and its lease is free.
    fn stopped(
        &mut self,
        name: &ServerName,
        mut server: Server,
        assignment: Assignment,
        why: Option<&str>,
        certificate: Option<&Certificate>,
        events: &mut Vec<Event>,
    ) {
        // What cannot be started where it was moved to goes back to where it worked.
        let back = assignment.back_to.clone().filter(|_| why.is_some());
        let back = back.map(|machine| Destination { machine, cause: Cause::RolledBack, back_to: None });
        server.placement = Placement::Unplaced { next: assignment.moving.clone().or(back) };
        self.put(name, server);
        self.drop_from_session(&name.lease(), assignment.session);
        self.leases.remove(&name.lease());
        self.touched.insert(RecordKey::Lease(name.lease()));
        self.orders_changed(&assignment.machine);
        events.push(Event::LeaseEnded { lease: name.lease(), token: assignment.token, why: GrantEnd::Released });
        let exit =
            certificate.map_or_else(|| "nothing of it was here".to_owned(), |certificate| certificate.exit.to_string());
        events.push(Event::ServerStopped {
            server: name.clone(),
            machine: assignment.machine,
            token: assignment.token,
            why: cut(why.unwrap_or(&exit)),
        });
    }

    /// Counts a failure once per token and restart, however often it is reported.
    pub(super) fn count_failure(
        &self,
        server: &mut Server,
        assignment: &Assignment,
        attempt: u32,
        why: &str,
        machine_lost: bool,
    ) {
        let counted = |failure: &Failure| failure.token == assignment.token && failure.attempt == attempt;
        if server.failures.iter().any(counted) {
            return;
        }
        server.failures.push(Failure {
            token: assignment.token,
            attempt,
            machine: assignment.machine.clone(),
            at: self.now,
            why: cut(why),
            machine_lost,
        });
        let surplus = server.failures.len().saturating_sub(FAILURES_KEPT_MAX);
        server.failures.drain(..surplus);
    }
}
