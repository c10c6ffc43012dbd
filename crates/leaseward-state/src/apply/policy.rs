//! The policy of the cluster, pauses, and their ends.

use std::sync::Arc;

use super::Outcome;
use crate::command::Reply;
use crate::event::Event;
use crate::limits::{NAMES_MAX, TEXT_BYTES_MAX, VOTER_SILENCE_MS_MIN, VOTERS_MAX};
use crate::name::ServerName;
use crate::policy::{Pause, Policy};
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::state::State;
use crate::token::UnixMillis;

impl State {
    pub(super) fn put_policy(&mut self, policy: &Policy, if_version: Option<u64>, events: &mut Vec<Event>) -> Outcome {
        let current = self.policy.version;
        if let Some(expected) = if_version.filter(|expected| *expected != current) {
            return Err(Refusal::Version { kind: "policy".into(), name: "cluster".into(), expected, current });
        }
        if policy.candidates.len() > NAMES_MAX {
            return Err(Refusal::Invalid(format!("a policy names at most {NAMES_MAX} candidates")));
        }
        let odd = |voters: u32| voters % 2 == 1 && voters <= VOTERS_MAX;
        if !odd(policy.voters_max) || !odd(policy.voters_min) || policy.voters_min > policy.voters_max {
            return Err(Refusal::Invalid(format!(
                "voters_min and voters_max are odd numbers up to {VOTERS_MAX}, the first not above the second"
            )));
        }
        if policy.voter_silence_ms < VOTER_SILENCE_MS_MIN {
            return Err(Refusal::Invalid(format!("voter_silence is at least {VOTER_SILENCE_MS_MIN} ms")));
        }
        check_pause(policy.maintenance.as_ref())?;
        let same = Policy { version: current, ..policy.clone() };
        if current > 0 && same == *self.policy {
            return Ok(Reply::Version(current));
        }
        let paused_before = self.policy.maintenance.is_some();
        self.policy = Arc::new(Policy { version: current + 1, ..policy.clone() });
        self.touched.insert(RecordKey::Policy);
        events.push(Event::PolicyChanged { version: current + 1 });
        if paused_before != self.policy.maintenance.is_some() {
            self.all_orders_changed();
        }
        Ok(Reply::Version(current + 1))
    }

    pub(super) fn pause_server(
        &mut self,
        name: &ServerName,
        pause: Option<&Pause>,
        events: &mut Vec<Event>,
    ) -> Outcome {
        check_pause(pause)?;
        let server = self.known_server(name)?;
        if server.paused.as_ref() != pause {
            let mut server = server.clone();
            server.paused = pause.cloned();
            let machine = server.assignment().map(|assignment| assignment.machine.clone());
            self.put(name, server);
            if let Some(machine) = machine {
                self.orders_changed(&machine);
            }
            events.push(Event::ServerPaused { server: name.clone(), pause: pause.cloned() });
        }
        Ok(Reply::Done)
    }

    /// Ends what was to end by itself. Which time it is says the wall clock of the leader, as of this entry.
    pub(super) fn end_pauses(&mut self, events: &mut Vec<Event>) -> Outcome {
        let now = self.now;
        let over = |until: Option<UnixMillis>| until.is_some_and(|until| until <= now);
        let machines: Vec<_> = self
            .machines
            .iter()
            .filter(|(_, machine)| machine.cordoned.as_ref().is_some_and(|cordon| over(cordon.until)))
            .map(|(name, _)| name.clone())
            .collect();
        for machine in machines {
            self.cordon(&machine, None, events)?;
        }
        let servers: Vec<_> = self
            .servers
            .iter()
            .filter(|(_, server)| server.paused.as_ref().is_some_and(|pause| over(pause.until)))
            .map(|(name, _)| name.clone())
            .collect();
        for server in servers {
            self.pause_server(&server, None, events)?;
        }
        if self.policy.maintenance.as_ref().is_some_and(|pause| over(pause.until)) {
            let policy = Policy { maintenance: None, ..Policy::clone(&self.policy) };
            self.put_policy(&policy, None, events)?;
        }
        Ok(Reply::Done)
    }

    fn all_orders_changed(&mut self) {
        let machines: Vec<_> = self.machines.keys().cloned().collect();
        for machine in machines {
            self.orders_changed(&machine);
        }
    }
}

fn check_pause(pause: Option<&Pause>) -> Result<(), Refusal> {
    if pause.is_some_and(|pause| pause.why.len() > TEXT_BYTES_MAX) {
        return Err(Refusal::Invalid(format!("a reason has at most {TEXT_BYTES_MAX} bytes")));
    }
    Ok(())
}
