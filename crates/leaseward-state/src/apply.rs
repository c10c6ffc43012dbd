//! Takes a command apart. Each object's rules stand in its own file below.
//!
//! Must stay true: a command either does all of what it says, or changes nothing and is refused.

mod access;
mod anew;
mod config;
pub mod feature;
mod heir;
mod lease;
mod machine;
mod policy;
mod program;
mod rollout;
mod server;
mod session;

use std::collections::BTreeSet;

use crate::command::{Command, Condition, Reply};
use crate::event::Event;
use crate::limits::ATOMIC_COMMANDS_MAX;
use crate::refusal::Refusal;
use crate::state::State;
use crate::token::{Revision, SessionId, Term};

/// What a command leads to: a reply, or a refusal after which nothing has changed.
type Outcome = Result<Reply, Refusal>;

impl State {
    pub(crate) fn execute(&mut self, command: &Command, term: Term, events: &mut Vec<Event>) -> Reply {
        let reply = self.dispatch(command, term, events).unwrap_or_else(Reply::Refused);
        debug_assert!(
            command.opens_session() || !self.sessions.contains_key(&SessionId(self.revision.0)),
            "{} opened a session, and voters do not expect it to",
            command.name()
        );
        reply
    }

    fn dispatch(&mut self, command: &Command, term: Term, events: &mut Vec<Event>) -> Outcome {
        self.check_feature_level(command)?;
        match command {
            Command::OpenSession { name, ttl_ms } => self.open_session(name, *ttl_ms, events),
            Command::OpenMachine(open) => self.open_machine(open, events),
            Command::EndSession { session } => self.end_session(*session, events),
            Command::CloseSessions { sessions, term: judged } => {
                own_term(*judged, term)?;
                Ok(self.close_sessions(sessions, events))
            }
            Command::Acquire(acquire) => self.acquire(acquire, events),
            Command::Withdraw { lease, session, holder } => Ok(self.withdraw(lease, *session, holder)),
            Command::Release { lease, token } => self.release(lease, *token, events),
            Command::Revoke { lease, token } => self.revoke(lease, *token, events),
            Command::EndDelay { lease, token, term: judged } => {
                own_term(*judged, term)?;
                self.end_delay(lease, *token, events)
            }
            Command::Cordon { machine, cordon } => self.cordon(machine, cordon.as_ref(), events),
            Command::RemoveMachine { machine } => self.remove_machine(machine, events),
            Command::PutServer { server, spec, if_version } => self.put_server(server, spec, *if_version, events),
            Command::RemoveServer { server, if_version } => self.remove_server(server, *if_version, events),
            Command::SetWanted { server, wanted } => self.set_wanted(server, *wanted, events),
            Command::Move { server, to, rollback } => self.move_server(server, to, *rollback, events),
            Command::Assign(assign) => {
                own_term(assign.term, term)?;
                self.assign(assign, events)
            }
            Command::GiveUp { server, why, term: judged } => {
                own_term(*judged, term)?;
                self.give_up(server, why, events)
            }
            Command::ReportServer { server, token, report } => self.report_server(server, *token, report, events),
            Command::Publish { sets, author, message } => self.publish(sets, author, message, events),
            Command::RemoveSet { set } => self.remove_set(set, events),
            Command::ReportSync { machine, sets } => self.report_sync(machine, sets, events),
            Command::Atomic { conditions, commands } => self.atomic(conditions, commands, term, events),
            Command::AcquireOpening { name, ttl_ms, acquire } => {
                let before = self.clone();
                let outcome = self.acquire_opening(name, *ttl_ms, acquire, events);
                if outcome.is_err() {
                    *self = before;
                }
                outcome
            }
            Command::Settle { server, token, fence, term: judged } => {
                own_term(*judged, term)?;
                self.settle(server, *token, fence.as_ref(), events)
            }
            Command::RaiseFeatureLevel { to, term: judged } => {
                own_term(*judged, term)?;
                self.raise_feature_level(*to, events)
            }
            Command::Restart { server } => self.restart_server(server, events),
            Command::Pause { server, pause } => self.pause_server(server, pause.as_ref(), events),
            Command::ConfirmDead { machine, by } => self.confirm_dead(machine, by, events),
            Command::PutPolicy { policy, if_version } => self.put_policy(policy, *if_version, events),
            Command::Relocate { server, token, to, term: judged } => {
                own_term(*judged, term)?;
                self.relocate(server, *token, to, events)
            }
            Command::Quarantine { machine, cordon, term: judged } => {
                own_term(*judged, term)?;
                self.quarantine(machine, cordon, events)
            }
            Command::ProveDead { server, token, proof, term: judged } => {
                own_term(*judged, term)?;
                self.prove_dead(server, *token, proof, events)
            }
            Command::EndPauses { term: judged } => {
                own_term(*judged, term)?;
                self.end_pauses(events)
            }
            Command::Suspect { machine, session, suspected, term: judged } => {
                own_term(*judged, term)?;
                self.suspect(machine, *session, *suspected, events)
            }
            Command::Prepare { server, token, machine, term: judged } => {
                own_term(*judged, term)?;
                self.prepare(server, *token, machine, events)
            }
            Command::ReportPrepared { machine, server, token, lacking } => {
                self.report_prepared(machine, server, *token, lacking.as_deref(), events)
            }
            Command::PutSet { set, spec, if_version } => self.put_set(set, spec, *if_version, events),
            Command::PinSet { set, machine, pin } => self.pin_set(set, machine.as_ref(), pin.as_ref(), events),
            Command::Resync { set, machines } => self.resync(set, machines),
            Command::SteerRollout { set, version, steer, by } => self.steer_rollout(set, *version, *steer, by, events),
            Command::StepRollout { set, version, step, term: judged } => {
                own_term(*judged, term)?;
                self.step_rollout(set, *version, step, events)
            }
            Command::ReportProgram { session, step, report } => self.report_program(*session, *step, report, events),
            Command::ChangeToken { name, token, by } => self.change_token(name, token.as_deref(), by, events),
            Command::NoteVoters { voters, why, term: judged } => {
                own_term(*judged, term)?;
                events.push(Event::VotersChanged { voters: voters.clone(), why: why.clone() });
                Ok(Reply::Done)
            }
        }
    }

    fn atomic(
        &mut self,
        conditions: &[Condition],
        commands: &[Command],
        term: Term,
        events: &mut Vec<Event>,
    ) -> Outcome {
        if commands.len() > ATOMIC_COMMANDS_MAX {
            return Err(Refusal::Invalid(format!("a transaction takes at most {ATOMIC_COMMANDS_MAX} commands")));
        }
        check_parts(commands)?;
        conditions.iter().try_for_each(|condition| self.check_condition(condition))?;

        // The clone shares everything, so taking back costs nothing.
        let before = self.clone();
        let mut replies = Vec::with_capacity(commands.len());
        let mut happened = Vec::new();
        for (part, command) in (0..).zip(commands) {
            match self.dispatch(command, term, &mut happened) {
                Ok(reply) => replies.push(reply),
                Err(refusal) => {
                    *self = before;
                    return Err(Refusal::Part { part, refusal: Box::new(refusal) });
                }
            }
        }
        events.append(&mut happened);
        Ok(Reply::Atomic(replies))
    }

    fn check_condition(&self, condition: &Condition) -> Result<(), Refusal> {
        let version = |kind: &str, name: &str, expected: u64, current: u64| {
            if expected == current {
                return Ok(());
            }
            Err(Refusal::Version { kind: kind.into(), name: name.into(), expected, current })
        };
        match condition {
            Condition::Fence { lease, token } => {
                let current = self.token(lease);
                if current == Some(*token) {
                    return Ok(());
                }
                Err(Refusal::StaleToken { lease: lease.to_string(), given: *token, current })
            }
            Condition::LeaseFree(lease) => match self.lease(lease) {
                None => Ok(()),
                Some(found) => Err(self.taken(lease, found)),
            },
            Condition::Server(name, expected) => {
                version("server", name.as_str(), *expected, self.server(name).map_or(0, |server| server.version))
            }
            Condition::Set(name, expected) => {
                version("config", name.as_str(), *expected, self.set(name).map_or(0, |set| set.head))
            }
            Condition::Machine(name, expected) => {
                let current = self.machine(name).map_or(Revision(0), |machine| machine.modified);
                version("machine", name.as_str(), expected.0, current.0)
            }
        }
    }
}

/// A transaction spends one revision, so it may grant a lease at most once (rule R7: no token twice), and opens or
/// ends no session.
fn check_parts(commands: &[Command]) -> Result<(), Refusal> {
    let mut leases = BTreeSet::new();
    for command in commands {
        let lease = match command {
            Command::Acquire(acquire) => Some(&acquire.lease),
            Command::Release { lease, .. } => Some(lease),
            Command::PutServer { .. }
            | Command::RemoveServer { .. }
            | Command::SetWanted { .. }
            | Command::Move { .. }
            | Command::Restart { .. }
            | Command::Pause { .. }
            | Command::ConfirmDead { .. }
            | Command::PutPolicy { .. }
            | Command::Cordon { .. }
            | Command::Publish { .. }
            | Command::PutSet { .. }
            | Command::PinSet { .. }
            | Command::Resync { .. }
            | Command::SteerRollout { .. }
            | Command::RemoveSet { .. } => None,
            other => return Err(Refusal::Invalid(format!("{} cannot be part of a transaction", other.name()))),
        };
        if lease.is_some_and(|lease| !leases.insert(lease)) {
            return Err(Refusal::Invalid("a transaction names each lease at most once".into()));
        }
    }
    Ok(())
}

/// Rule R5: what a leader decided counts only in the term in which it decided.
fn own_term(judged: Term, appended: Term) -> Result<(), Refusal> {
    if judged == appended {
        return Ok(());
    }
    Err(Refusal::Outdated(format!("term {judged} judged, term {appended} appended")))
}
