//! Machines make ready for servers that may be lost, and are told when they need not.

use std::sync::Arc;

use super::Outcome;
use super::machine::not_found as no_machine;
use super::server::cut;
use crate::command::Reply;
use crate::event::Event;
use crate::name::{MachineName, ServerName};
use crate::refusal::Refusal;
use crate::server::{Heir, Placement, Readiness, Server};
use crate::state::State;
use crate::token::FencingToken;

impl State {
    pub(super) fn prepare(
        &mut self,
        name: &ServerName,
        token: FencingToken,
        to: &MachineName,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let outdated = |why: &str| Refusal::Outdated(format!("server/{name}: {why}"));
        let server = self.known_server(name)?;
        let Placement::Assigned(assignment) = &server.placement else { return Err(outdated("no machine has it")) };
        if assignment.token != token || assignment.machine == *to {
            return Err(outdated("it was placed meanwhile"));
        }
        let is_suspected = |name: &MachineName| self.machine(name).is_some_and(|machine| machine.suspected.is_some());
        if !is_suspected(&assignment.machine) {
            return Err(outdated("its machine is heard again"));
        }
        if self.machine(to).ok_or_else(|| no_machine(to))?.session.is_none() {
            return Err(outdated("the other machine is not connected"));
        }
        let before = server.heir.clone();
        let mut server = server.clone();
        let readiness = Readiness::Preparing;
        server.heir = Some(Heir { machine: to.clone(), token, readiness: readiness.clone() });
        self.put(name, server);
        for machine in before.iter().map(|heir| &heir.machine).chain([to]) {
            self.orders_changed(machine);
        }
        events.push(Event::ServerPrepared { server: name.clone(), machine: to.clone(), readiness });
        Ok(Reply::Done)
    }

    pub(super) fn report_prepared(
        &mut self,
        machine: &MachineName,
        name: &ServerName,
        token: FencingToken,
        lacking: Option<&str>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let server = self.known_server(name)?;
        let outdated = || Refusal::Outdated(format!("server/{name}: machine/{machine} is not its heir"));
        let heir = server.heir().filter(|heir| heir.machine == *machine && heir.token == token).ok_or_else(outdated)?;
        let readiness = lacking.map_or(Readiness::Ready, |what| Readiness::Lacking(cut(what)));
        if heir.readiness == readiness {
            return Ok(Reply::Done);
        }
        let heir = Heir { readiness: readiness.clone(), ..heir.clone() };
        let server = Server { heir: Some(heir), ..server.clone() };
        self.put(name, server);
        events.push(Event::ServerPrepared { server: name.clone(), machine: machine.clone(), readiness });
        Ok(Reply::Done)
    }

    /// The machine is heard again: nobody need make ready for the loss of what it runs.
    pub(super) fn forget_heirs_of(&mut self, machine: &MachineName) {
        let runs_there = |server: &Arc<Server>| {
            server.heir.is_some() && server.assignment().is_some_and(|assignment| assignment.machine == *machine)
        };
        let names: Vec<_> =
            self.servers.iter().filter(|(_, server)| runs_there(server)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(mut server) = self.server(&name).cloned() else { continue };
            let heir = server.heir.take();
            self.put(&name, server);
            if let Some(heir) = heir {
                self.orders_changed(&heir.machine);
            }
        }
    }
}
