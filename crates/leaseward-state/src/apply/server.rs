//! Servers are defined, wanted, placed, and proven dead.

mod reports;
mod sane;

use std::sync::Arc;

use self::sane::{check_spec, check_version};
use super::Outcome;
use super::machine::not_found as no_machine;
use crate::command::{Assign, Reply};
use crate::event::Event;
use crate::lease::{GrantEnd, LeaseState, Waiter};
use crate::limits::{SERVERS_MAX, TEXT_BYTES_MAX};
use crate::name::{MachineName, ServerName};
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::server::{
    Assignment, Cause, Destination, Expired, FenceEarned, FenceProof, Placement, Server, ServerSpec, ServerStatus,
    Wanted,
};
use crate::state::State;
use crate::token::{FencingToken, Revision};

impl State {
    pub(super) fn put_server(
        &mut self,
        name: &ServerName,
        spec: &ServerSpec,
        if_version: Option<u64>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        check_spec(spec)?;
        let known = self.servers.get(name);
        check_version(name, known.map(|known| &**known), if_version)?;
        self.check_addresses(name, spec)?;
        let version = known.map_or(1, |server| server.version + 1);
        if known.is_some_and(|server| server.spec == *spec) {
            return Ok(Reply::Version(version - 1));
        }
        if known.is_none() && self.servers.len() >= SERVERS_MAX {
            return Err(Refusal::TooMany { what: "servers".into(), max: SERVERS_MAX as u64 });
        }
        let server = match known {
            Some(server) => Server { spec: spec.clone(), version, modified: self.revision, ..Server::clone(server) },
            None => Server {
                spec: spec.clone(),
                version,
                created: self.revision,
                modified: self.revision,
                wanted: Wanted::Running,
                paused: None,
                placement: Placement::Unplaced { next: None },
                failures: Vec::new(),
                clients: Vec::new(),
                heir: None,
                last_token: None,
                last_machine: None,
            },
        };
        let machine = server.assignment().map(|assignment| assignment.machine.clone());
        self.servers.insert(name.clone(), Arc::new(server));
        self.touched.insert(RecordKey::Server(name.clone()));
        if let Some(machine) = machine {
            self.orders_changed(&machine);
        }
        events.push(Event::ServerDefined { server: name.clone(), version });
        Ok(Reply::Version(version))
    }

    pub(super) fn remove_server(
        &mut self,
        name: &ServerName,
        if_version: Option<u64>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let server = self.known_server(name)?;
        check_version(name, Some(server), if_version)?;
        if let Placement::Assigned(_) | Placement::Expired(_) = server.placement {
            return Err(Refusal::InUse {
                kind: "server".into(),
                name: name.to_string(),
                why: "it runs, or its death is not proven: stop it first".into(),
            });
        }
        self.servers.remove(name);
        self.touched.insert(RecordKey::Server(name.clone()));
        events.push(Event::ServerRemoved { server: name.clone() });
        Ok(Reply::Done)
    }

    pub(super) fn set_wanted(&mut self, name: &ServerName, wanted: Wanted, events: &mut Vec<Event>) -> Outcome {
        let server = self.known_server(name)?;
        let failed = matches!(server.placement, Placement::Failed { .. });
        // What an operator asked for is in the ledger also if it was so already: it is an operation.
        events.push(Event::ServerWanted { server: name.clone(), wanted });
        if server.wanted == wanted && !failed {
            return Ok(Reply::Version(server.version));
        }
        let mut server = server.clone();
        server.wanted = wanted;
        if failed {
            server.placement = Placement::Unplaced { next: None };
            server.failures.clear();
        }
        if let Placement::Assigned(assignment) = &mut server.placement
            && wanted == Wanted::Stopped
        {
            assignment.moving = None;
        }
        let version = server.version;
        let machine = server.assignment().map(|assignment| assignment.machine.clone());
        self.put(name, server);
        if let Some(machine) = machine {
            self.orders_changed(&machine);
        }
        Ok(Reply::Version(version))
    }

    pub(super) fn move_server(
        &mut self,
        name: &ServerName,
        to: &MachineName,
        rollback: bool,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let server = self.known_server(name)?;
        let in_use = |why: &str| in_use(name, why);
        let target = self.machines.get(to).ok_or_else(|| no_machine(to))?;
        if target.session.is_none() {
            return Err(in_use("the target machine is not connected"));
        }
        if !server.spec.candidates.is_empty() && !server.spec.candidates.contains(to) {
            return Err(in_use("the target machine is not one of its candidates"));
        }
        let mut server = server.clone();
        let mut next = Destination { machine: to.clone(), cause: Cause::Moved, back_to: None };
        match &mut server.placement {
            Placement::Assigned(assignment) if assignment.machine == *to && assignment.moving.is_none() => {}
            Placement::Assigned(assignment) => {
                let from = assignment.machine.clone();
                next.back_to = (rollback && from != *to).then(|| from.clone());
                assignment.moving = Some(next);
                self.put(name, server);
                self.orders_changed(&from);
            }
            Placement::Unplaced { next: known } => {
                *known = Some(next);
                self.put(name, server);
            }
            Placement::Expired(_) => return Err(in_use("the death of its last copy is not proven yet")),
            Placement::Failed { .. } => return Err(in_use("it failed too often: start it again first")),
        }
        events.push(Event::ServerMoving { server: name.clone(), to: to.clone(), cause: Cause::Moved });
        Ok(Reply::Done)
    }

    /// A restart is a move to where it is: the copy is proven dead, and the next one has a new token.
    pub(super) fn restart_server(&mut self, name: &ServerName, events: &mut Vec<Event>) -> Outcome {
        let mut server = self.known_server(name)?.clone();
        let Placement::Assigned(assignment) = &mut server.placement else {
            return Err(in_use(name, "it does not run: start it"));
        };
        if server.wanted != Wanted::Running || assignment.moving.is_some() {
            return Err(in_use(name, "it is being stopped or moved"));
        }
        let machine = assignment.machine.clone();
        assignment.moving = Some(Destination { machine: machine.clone(), cause: Cause::Restarted, back_to: None });
        self.put(name, server);
        self.orders_changed(&machine);
        events.push(Event::ServerMoving { server: name.clone(), to: machine, cause: Cause::Restarted });
        Ok(Reply::Done)
    }

    /// The master moves a server that it saw running under `token`.
    pub(super) fn relocate(
        &mut self,
        name: &ServerName,
        token: FencingToken,
        to: &Destination,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let outdated = |why: &str| Refusal::Outdated(format!("server/{name}: {why}"));
        let mut server = self.known_server(name)?.clone();
        if server.wanted != Wanted::Running || self.pause_of(&server).is_some() {
            return Err(outdated("it is to stay as it is"));
        }
        let is_there = self.machines.get(&to.machine).is_some_and(|machine| machine.session.is_some());
        match &mut server.placement {
            Placement::Assigned(assignment) if assignment.token == token && assignment.moving.is_none() && is_there => {
                let from = assignment.machine.clone();
                assignment.moving = Some(to.clone());
                self.put(name, server);
                self.orders_changed(&from);
                let (machine, cause) = (to.machine.clone(), to.cause);
                events.push(Event::ServerMoving { server: name.clone(), to: machine, cause });
                Ok(Reply::Done)
            }
            _ => Err(outdated("it changed meanwhile")),
        }
    }

    /// Gives a server to a machine. Only checks what the master saw: whether and where is the master's business.
    pub(super) fn assign(&mut self, assign: &Assign, events: &mut Vec<Event>) -> Outcome {
        let outdated = |why: &str| Refusal::Outdated(format!("server/{}: {why}", assign.server));
        let server = self.known_server(&assign.server)?;
        if server.wanted != Wanted::Running {
            return Err(outdated("it is not wanted any more"));
        }
        if server.last_token != assign.after {
            return Err(outdated("it was placed meanwhile"));
        }
        let machine = self.machines.get(&assign.machine).ok_or_else(|| no_machine(&assign.machine))?;
        if machine.session != Some(assign.session) {
            return Err(outdated("the machine's session is another one"));
        }
        let earned = FenceEarned { level: machine.profile.fence, watchdog_ms: machine.profile.watchdog_ms };
        let fence = match &server.placement {
            Placement::Unplaced { .. } => None,
            Placement::Expired(expired) => Some(
                expired
                    .fence
                    .clone()
                    .or_else(|| assign.fence.clone())
                    .ok_or_else(|| outdated("the death of its last copy is not proven"))?,
            ),
            Placement::Assigned(_) => return Err(outdated("it is placed")),
            Placement::Failed { .. } => return Err(outdated("it failed too often")),
        };
        let lease = assign.server.lease();
        let to = Waiter {
            session: assign.session,
            holder: assign.machine.to_string(),
            priority: 0,
            queued: self.revision,
            meta: std::collections::BTreeMap::new(),
            lock_delay_ms: 0,
        };
        let back_to = match &server.placement {
            Placement::Unplaced { next: Some(next) } if next.machine == assign.machine => next.back_to.clone(),
            _ => None,
        };
        let mut server = server.clone();
        let reply = self.grant(&lease, to, Vec::new(), events);
        let token = FencingToken::new(self.generation, self.revision);
        server.placement = Placement::Assigned(Assignment {
            machine: assign.machine.clone(),
            session: assign.session,
            token,
            fence: earned,
            at: self.now,
            cause: assign.cause,
            status: ServerStatus::Ordered,
            restarts: 0,
            ready: false,
            moving: None,
            back_to,
        });
        server.heir = None;
        server.last_token = Some(token);
        server.last_machine = Some(assign.machine.clone());
        self.put(&assign.server, server);
        self.orders_changed(&assign.machine);
        events.push(Event::ServerAssigned {
            server: assign.server.clone(),
            machine: assign.machine.clone(),
            token,
            cause: assign.cause,
            fence,
        });
        Ok(reply)
    }

    pub(super) fn give_up(&mut self, name: &ServerName, why: &str, events: &mut Vec<Event>) -> Outcome {
        let server = self.known_server(name)?;
        if !matches!(server.placement, Placement::Unplaced { .. }) {
            return Err(Refusal::Outdated(format!("server/{name} is placed")));
        }
        self.set_placement(name, Placement::Failed { why: why.to_owned() });
        events.push(Event::ServerFailed { server: name.clone(), why: why.to_owned() });
        Ok(Reply::Done)
    }

    /// The last copy of an expired server is dead and nobody wants another one.
    pub(super) fn settle(
        &mut self,
        name: &ServerName,
        token: FencingToken,
        fence: Option<&FenceProof>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let outdated = |why: &str| Refusal::Outdated(format!("server/{name}: {why}"));
        let Placement::Expired(expired) = self.known_server(name)?.placement.clone() else {
            return Err(outdated("it is not expired"));
        };
        if expired.token != token {
            return Err(outdated("it was placed meanwhile"));
        }
        let Some(proof) = expired.fence.as_ref().or(fence) else {
            return Err(outdated("the death of its last copy is not proven"));
        };
        if expired.fence.is_none() {
            events.push(Event::ServerFenced { server: name.clone(), token, proof: proof.clone() });
        }
        self.set_placement(name, Placement::Unplaced { next: None });
        self.leases.remove(&name.lease());
        self.touched.insert(RecordKey::Lease(name.lease()));
        self.orders_changed(&expired.machine);
        Ok(Reply::Done)
    }

    /// The leader's proof counts for the copy that it names, if nobody proved its death before.
    pub(super) fn prove_dead(
        &mut self,
        name: &ServerName,
        token: FencingToken,
        proof: &FenceProof,
        events: &mut Vec<Event>,
    ) -> Outcome {
        match &self.known_server(name)?.placement {
            Placement::Expired(expired) if expired.token == token && expired.fence.is_none() => {
                let expired = Expired { fence: Some(proof.clone()), ..expired.clone() };
                let machine = expired.machine.clone();
                self.set_placement(name, Placement::Expired(expired));
                self.orders_changed(&machine);
                events.push(Event::ServerFenced { server: name.clone(), token, proof: proof.clone() });
                Ok(Reply::Done)
            }
            _ => Err(Refusal::Outdated(format!("server/{name}: there is no such copy without a proof"))),
        }
    }

    /// The machine's session is over, so its right to run the server is; the copy may live on for a while.
    ///
    /// A session that did not run out of time may have been renewed a moment ago, so the copy's deadline may lie a whole
    /// time to live ahead.
    pub(super) fn expire_server(
        &mut self,
        name: &ServerName,
        why: GrantEnd,
        cause: Cause,
        ttl_ms: u64,
        events: &mut Vec<Event>,
    ) {
        let Some(server) = self.servers.get(name) else { return };
        let Placement::Assigned(assignment) = server.placement.clone() else { return };
        let expired = Expired {
            machine: assignment.machine.clone(),
            token: assignment.token,
            earned: assignment.fence,
            wait_ms: if why == GrantEnd::Expired { 0 } else { ttl_ms },
            since: self.revision,
            cause,
            fence: None,
        };
        let mut server = Server::clone(server);
        let stood_ms = self.now.0.saturating_sub(assignment.at.0);
        if why == GrantEnd::Expired && stood_ms < self.policy.poison_within_ms {
            let why = format!("its machine was lost {stood_ms} ms after it was placed there");
            self.count_failure(&mut server, &assignment, assignment.restarts, &why, true);
        }
        server.placement = Placement::Expired(expired);
        self.put(name, server);
        let lease = name.lease();
        if let Some(mut found) = self.lease(&lease).cloned() {
            found.state = LeaseState::Delayed { token: assignment.token, delay_ms: 0 };
            self.put_lease(&lease, found);
        }
        self.drop_from_session(&lease, assignment.session);
        events.push(Event::LeaseEnded { lease, token: assignment.token, why });
        events.push(Event::ServerExpired {
            server: name.clone(),
            machine: assignment.machine,
            token: assignment.token,
            silent_ms: if why == GrantEnd::Expired { ttl_ms } else { 0 },
        });
    }

    pub(super) fn set_placement(&mut self, name: &ServerName, placement: Placement) {
        if let Some(mut server) = self.server(name).cloned() {
            server.placement = placement;
            self.put(name, server);
        }
    }

    pub(super) fn put(&mut self, name: &ServerName, mut server: Server) {
        server.modified = self.revision;
        self.servers.insert(name.clone(), Arc::new(server));
        self.touched.insert(RecordKey::Server(name.clone()));
    }

    pub(super) fn known_server(&self, name: &ServerName) -> Result<&Server, Refusal> {
        self.server(name).ok_or_else(|| Refusal::NotFound { kind: "server".into(), name: name.to_string() })
    }

    /// Returns the revision that expired a server's last assignment, if its fence is still open.
    #[must_use]
    pub fn unfenced_since(&self, name: &ServerName) -> Option<Revision> {
        match &self.servers.get(name)?.placement {
            Placement::Expired(expired) if expired.fence.is_none() => Some(expired.since),
            _ => None,
        }
    }
}

fn in_use(name: &ServerName, why: &str) -> Refusal {
    Refusal::InUse { kind: "server".into(), name: name.to_string(), why: why.into() }
}

pub(super) fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX / 4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
