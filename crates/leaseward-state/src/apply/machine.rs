//! Machines come, go, and are kept free.

use std::sync::Arc;

use super::Outcome;
use super::feature::INCARNATIONS_COUNTED;
use super::session::check_ttl;
use crate::command::{OpenMachine, Reply};
use crate::event::Event;
use crate::limits::{LOSSES_KEPT_MAX, MACHINES_MAX, META_BYTES_MAX, SESSIONS_MAX, TEXT_BYTES_MAX};
use crate::machine::{Cordon, Machine};
use crate::name::MachineName;
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::server::{FenceProof, Placement};
use crate::session::{Owner, SessionEnd};
use crate::state::State;
use crate::token::SessionId;

impl State {
    pub(super) fn open_machine(&mut self, open: &OpenMachine, events: &mut Vec<Event>) -> Outcome {
        let labels: usize = open.profile.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
        if labels > META_BYTES_MAX {
            return Err(Refusal::Invalid(format!("a machine's labels have at most {META_BYTES_MAX} bytes")));
        }
        // Before the old session ends: a refusal changes nothing.
        check_ttl(open.ttl_ms)?;
        let known = self.machines.get(&open.machine).cloned();
        if known.is_none() && self.machines.len() >= MACHINES_MAX {
            return Err(Refusal::TooMany { what: "machines".into(), max: MACHINES_MAX as u64 });
        }
        // The same run asks again: its first answer was lost.
        if let Some(machine) = &known
            && machine.incarnation == open.incarnation
            && let Some(session) = machine.session
            && self.sessions.get(&session).is_some_and(|session| session.ttl_ms == open.ttl_ms)
        {
            return Ok(Reply::Session(session));
        }
        let old = known.as_ref().and_then(|machine| machine.session);
        if old.is_none() && self.sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::TooMany { what: "open sessions".into(), max: SESSIONS_MAX as u64 });
        }
        // A machine that boots again is not told apart from a second one of the same name. While the first one renews its
        // session, the other stays out; after a real reboot nobody does, and it runs out of time.
        let rebooted = known.as_ref().is_some_and(|machine| machine.incarnation.boot_id != open.incarnation.boot_id);
        if rebooted && old.is_some() {
            return Err(Refusal::InUse {
                kind: "machine".into(),
                name: open.machine.to_string(),
                why: "it is connected from another boot; after a reboot its old session ends within its time to live"
                    .into(),
            });
        }
        // In the same boot only a run that remembers the last one knows what that one left here.
        let follows = known.as_ref().is_none_or(|machine| open.incarnation.follows(&machine.incarnation))
            || self.feature_level < INCARNATIONS_COUNTED;
        if !follows && old.is_some() {
            return Err(Refusal::InUse {
                kind: "machine".into(),
                name: open.machine.to_string(),
                why: "another agent has its session, or this one lost its memory; that session ends within its time to live \
                      if nobody renews it"
                    .into(),
            });
        }
        if let Some(old) = old {
            self.finish_sessions(&[old], SessionEnd::Superseded, events);
        }
        let id = self.new_session(Owner::Machine(open.machine.clone()), open.ttl_ms, events)?;
        let machine = Machine {
            created: known.as_ref().map_or(self.revision, |machine| machine.created),
            modified: self.revision,
            profile: open.profile.clone(),
            incarnation: open.incarnation.clone(),
            session: Some(id),
            since: self.now,
            cordoned: known.as_ref().and_then(|machine| machine.cordoned.clone()),
            losses: known.map(|machine| machine.losses.clone()).unwrap_or_default(),
            suspected: None,
            confirmed_dead: false,
            orders_revision: self.revision,
        };
        self.machines.insert(open.machine.clone(), Arc::new(machine));
        self.touched.insert(RecordKey::Machine(open.machine.clone()));
        if rebooted {
            self.prove_all_dead(&open.machine, &FenceProof::Rebooted, events);
        } else if open.swept && follows {
            self.prove_all_dead(&open.machine, &FenceProof::Swept, events);
        }
        Ok(Reply::Session(id))
    }

    /// Records that no copy of any expired server of this machine is alive.
    fn prove_all_dead(&mut self, machine: &MachineName, proof: &FenceProof, events: &mut Vec<Event>) {
        let expired: Vec<_> = self
            .servers
            .iter()
            .filter_map(|(name, server)| match &server.placement {
                Placement::Expired(expired) if expired.machine == *machine && expired.fence.is_none() => {
                    Some((name.clone(), expired.clone()))
                }
                _ => None,
            })
            .collect();
        for (name, mut expired) in expired {
            let token = expired.token;
            expired.fence = Some(proof.clone());
            self.set_placement(&name, Placement::Expired(expired));
            events.push(Event::ServerFenced { server: name, token, proof: proof.clone() });
        }
    }

    pub(super) fn machine_lost_session(&mut self, name: &MachineName, session: SessionId, why: SessionEnd) {
        let (revision, now) = (self.revision, self.now);
        let Some(machine) = self.machines.get_mut(name).filter(|machine| machine.session == Some(session)) else {
            return;
        };
        let machine = Arc::make_mut(machine);
        machine.session = None;
        machine.suspected = None;
        machine.since = now;
        if why == SessionEnd::Expired {
            machine.losses.push(now);
            let surplus = machine.losses.len().saturating_sub(LOSSES_KEPT_MAX);
            machine.losses.drain(..surplus);
        }
        machine.modified = revision;
        self.touched.insert(RecordKey::Machine(name.clone()));
    }

    /// The leader has not heard a machine's agent for two renewals, or hears it again. Nothing of its rights changes:
    /// others make ready for the worst.
    pub(super) fn suspect(
        &mut self,
        name: &MachineName,
        session: SessionId,
        suspected: bool,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let now = self.now;
        let revision = self.revision;
        let machine = self.machines.get_mut(name).ok_or_else(|| not_found(name))?;
        if machine.session != Some(session) || machine.suspected.is_some() == suspected {
            return Err(Refusal::Outdated(format!("machine/{name}: its session is another one, or it is known")));
        }
        let machine = Arc::make_mut(machine);
        machine.suspected = suspected.then_some(now);
        machine.modified = revision;
        self.touched.insert(RecordKey::Machine(name.clone()));
        events.push(Event::MachineSuspected { machine: name.clone(), suspected });
        if !suspected {
            self.forget_heirs_of(name);
        }
        Ok(Reply::Done)
    }

    pub(super) fn cordon(&mut self, name: &MachineName, cordon: Option<&Cordon>, events: &mut Vec<Event>) -> Outcome {
        if cordon.is_some_and(|cordon| cordon.why.len() > TEXT_BYTES_MAX) {
            return Err(Refusal::Invalid(format!("a reason has at most {TEXT_BYTES_MAX} bytes")));
        }
        let revision = self.revision;
        let machine = self.machines.get_mut(name).ok_or_else(|| not_found(name))?;
        let is_drain = cordon.is_some_and(|cordon| cordon.drains);
        let is_distrusted = cordon.is_none() && !machine.losses.is_empty();
        if machine.cordoned.as_ref() != cordon || is_distrusted {
            let machine = Arc::make_mut(machine);
            machine.cordoned = cordon.cloned();
            if cordon.is_none() {
                // Whoever lets it go trusts it again.
                machine.losses.clear();
            }
            machine.modified = revision;
            self.touched.insert(RecordKey::Machine(name.clone()));
            events.push(Event::MachineCordoned { machine: name.clone(), cordon: cordon.cloned() });
        } else if is_drain {
            // An operation: it is in the ledger also if it was so already.
            events.push(Event::MachineCordoned { machine: name.clone(), cordon: cordon.cloned() });
        }
        Ok(Reply::Done)
    }

    /// The master's own cordon; an operator's is left as it is.
    pub(super) fn quarantine(&mut self, name: &MachineName, cordon: &Cordon, events: &mut Vec<Event>) -> Outcome {
        let machine = self.machines.get(name).ok_or_else(|| not_found(name))?;
        if machine.cordoned.is_some() {
            return Err(Refusal::Outdated(format!("machine/{name} is cordoned already")));
        }
        self.cordon(name, Some(cordon), events)
    }

    /// An operator vouches for the death of every copy on a machine that is not connected.
    pub(super) fn confirm_dead(&mut self, name: &MachineName, by: &str, events: &mut Vec<Event>) -> Outcome {
        let machine = self.machines.get(name).ok_or_else(|| not_found(name))?;
        if machine.session.is_some() {
            return Err(Refusal::InUse {
                kind: "machine".into(),
                name: name.to_string(),
                why: "its agent is connected, so it is not dead: stop or drain it".into(),
            });
        }
        if by.is_empty() || by.len() > TEXT_BYTES_MAX / 4 {
            return Err(Refusal::Invalid("somebody must vouch for it by name".into()));
        }
        if !machine.confirmed_dead {
            let mut machine = Machine::clone(machine);
            (machine.confirmed_dead, machine.modified) = (true, self.revision);
            self.machines.insert(name.clone(), Arc::new(machine));
            self.touched.insert(RecordKey::Machine(name.clone()));
        }
        events.push(Event::MachineConfirmedDead { machine: name.clone(), by: by.to_owned() });
        self.prove_all_dead(name, &FenceProof::Operator(by.to_owned()), events);
        Ok(Reply::Done)
    }

    pub(super) fn remove_machine(&mut self, name: &MachineName, events: &mut Vec<Event>) -> Outcome {
        let machine = self.machines.get(name).ok_or_else(|| not_found(name))?;
        let in_use = |why: String| Refusal::InUse { kind: "machine".into(), name: name.to_string(), why };
        if machine.session.is_some() {
            return Err(in_use("its agent is connected: stop it first".into()));
        }
        let unfenced = self.servers.iter().find(|(_, server)| match &server.placement {
            Placement::Expired(expired) => expired.machine == *name && expired.fence.is_none(),
            _ => false,
        });
        if let Some((server, _)) = unfenced {
            return Err(in_use(format!("the death of server/{server} on it is not proven")));
        }
        let synced: Vec<_> = self.syncs.keys().filter(|(_, machine)| machine == name).cloned().collect();
        for key in synced {
            self.syncs.remove(&key);
            self.touched.insert(RecordKey::Sync(key.0, key.1));
        }
        self.machines.remove(name);
        self.touched.insert(RecordKey::Machine(name.clone()));
        events.push(Event::MachineRemoved { machine: name.clone() });
        Ok(Reply::Done)
    }

    /// Tells a machine's agent that its orders changed.
    pub(super) fn orders_changed(&mut self, name: &MachineName) {
        let revision = self.revision;
        if let Some(machine) = self.machines.get_mut(name).map(Arc::make_mut) {
            machine.orders_revision = revision;
            self.touched.insert(RecordKey::Machine(name.clone()));
        }
    }
}

pub(super) fn not_found(name: &MachineName) -> Refusal {
    Refusal::NotFound { kind: "machine".into(), name: name.to_string() }
}
