//! Granting, queueing for, and ending leases.

use std::sync::Arc;

use imbl::OrdSet;

use super::Outcome;
use crate::command::{Acquire, Reply};
use crate::event::Event;
use crate::lease::{Grant, GrantEnd, Lease, LeaseState, Waiter};
use crate::limits::{LEASES_MAX, LOCK_DELAY_MS_MAX, META_BYTES_MAX, NAME_BYTES_MAX, WAITERS_MAX};
use crate::name::LeaseName;
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::state::State;
use crate::token::{FencingToken, SessionId};

impl State {
    pub(super) fn acquire(&mut self, acquire: &Acquire, events: &mut Vec<Event>) -> Outcome {
        check_acquire(acquire)?;
        if !self.sessions.contains_key(&acquire.session) {
            return Err(Refusal::NoSession { session: acquire.session });
        }
        let Some(lease) = self.leases.get(&acquire.lease) else {
            if self.leases.len() >= LEASES_MAX {
                return Err(Refusal::TooMany { what: "leases".into(), max: LEASES_MAX as u64 });
            }
            let waiter = waiter(acquire, self.revision);
            return Ok(self.grant(&acquire.lease, waiter, Vec::new(), events));
        };
        // The same holder asks again: its first answer was lost. It has what it asks for.
        if let Some(grant) = lease.grant()
            && grant.session == acquire.session
            && grant.holder == acquire.holder
        {
            return Ok(Reply::Granted { lease: acquire.lease.clone(), grant: grant.clone() });
        }
        if let Some(ahead) = position(&lease.waiters, acquire.session, &acquire.holder) {
            return Ok(Reply::Queued { ahead });
        }
        if !acquire.wait {
            return Err(self.taken(&acquire.lease, lease));
        }
        if lease.waiters.len() >= WAITERS_MAX {
            return Err(Refusal::TooMany { what: format!("waiters for {}", acquire.lease), max: WAITERS_MAX as u64 });
        }
        let mut lease = Lease::clone(lease);
        // Behind everybody of the same or a higher priority.
        let place = lease.waiters.partition_point(|other| other.priority >= acquire.priority);
        lease.waiters.insert(place, waiter(acquire, self.revision));
        self.put_lease(&acquire.lease, lease);
        events.push(Event::LeaseQueued { lease: acquire.lease.clone(), holder: acquire.holder.clone() });
        Ok(Reply::Queued { ahead: place as u32 })
    }

    /// Opens a session and acquires with it. The caller takes back what a refusal leaves behind.
    pub(super) fn acquire_opening(
        &mut self,
        name: &str,
        ttl_ms: u64,
        acquire: &Acquire,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let mut happened = Vec::new();
        self.open_session(name, ttl_ms, &mut happened)?;
        let session = SessionId(self.revision.0);
        let reply = self.acquire(&Acquire { session, ..acquire.clone() }, &mut happened)?;
        events.append(&mut happened);
        Ok(Reply::Atomic(vec![Reply::Session(session), reply]))
    }

    pub(super) fn withdraw(&mut self, name: &LeaseName, session: SessionId, holder: &str) -> Reply {
        if let Some(lease) = self.leases.get(name)
            && position(&lease.waiters, session, holder).is_some()
        {
            let mut lease = Lease::clone(lease);
            lease.waiters.retain(|waiter| waiter.session != session || waiter.holder != holder);
            self.put_lease(name, lease);
        }
        Reply::Done
    }

    pub(super) fn release(&mut self, name: &LeaseName, token: FencingToken, events: &mut Vec<Event>) -> Outcome {
        self.present_token(name, token)?;
        if name.server().is_some() {
            return Err(server_lease(name));
        }
        self.end_grant(name, GrantEnd::Released, 0, events);
        Ok(Reply::Done)
    }

    /// The holder may believe until its validity ends, so the lease is delayed for as long as its session lives:
    /// the leader ends the delay after the session's whole time to live.
    pub(super) fn revoke(&mut self, name: &LeaseName, token: Option<FencingToken>, events: &mut Vec<Event>) -> Outcome {
        let lease =
            self.lease(name).ok_or_else(|| Refusal::NotFound { kind: "lease".into(), name: name.to_string() })?;
        let current = lease.grant().ok_or_else(|| self.taken(name, lease))?.token;
        self.present_token(name, token.unwrap_or(current))?;
        if name.server().is_some() {
            return Err(server_lease(name));
        }
        self.end_grant(name, GrantEnd::Revoked, self.ttl_ms(name), events);
        Ok(Reply::Done)
    }

    pub(super) fn end_delay(&mut self, name: &LeaseName, token: FencingToken, events: &mut Vec<Event>) -> Outcome {
        let delayed = self.leases.get(name).map(|lease| &lease.state);
        match delayed {
            Some(LeaseState::Delayed { token: over, .. }) if *over == token && name.server().is_none() => {
                self.pass_on(name, events);
                Ok(Reply::Done)
            }
            _ => Err(Refusal::Outdated(format!("lease/{name} is not delayed under token {token}"))),
        }
    }

    /// Ends a grant that is not a server's, and passes the lease on or delays it.
    ///
    /// Whoever was revoked or superseded may believe in its lease for as long as its session's time to live.
    pub(super) fn end_grant(&mut self, name: &LeaseName, why: GrantEnd, ttl_ms: u64, events: &mut Vec<Event>) {
        let Some(grant) = self.leases.get(name).and_then(|lease| lease.grant()).cloned() else { return };
        self.drop_from_session(name, grant.session);
        events.push(Event::LeaseEnded { lease: name.clone(), token: grant.token, why });
        let delay_ms = match why {
            GrantEnd::Released => 0,
            GrantEnd::Expired => grant.lock_delay_ms,
            GrantEnd::Revoked | GrantEnd::Superseded => grant.lock_delay_ms.max(ttl_ms),
        };
        if delay_ms == 0 {
            self.pass_on(name, events);
        } else {
            let mut lease = Lease::clone(self.leases.get(name).expect("it was granted just now"));
            lease.state = LeaseState::Delayed { token: grant.token, delay_ms };
            self.put_lease(name, lease);
        }
    }

    fn ttl_ms(&self, name: &LeaseName) -> u64 {
        let session =
            self.leases.get(name).and_then(|lease| lease.grant()).and_then(|grant| self.sessions.get(&grant.session));
        session.map_or(0, |session| session.ttl_ms)
    }

    /// Gives a lease that nobody holds to its next waiter, or forgets it.
    fn pass_on(&mut self, name: &LeaseName, events: &mut Vec<Event>) {
        let Some(lease) = self.leases.get(name) else { return };
        let mut waiters = lease.waiters.clone();
        if waiters.is_empty() {
            self.leases.remove(name);
            self.touched.insert(RecordKey::Lease(name.clone()));
        } else {
            let next = waiters.remove(0);
            self.grant(name, next, waiters, events);
        }
    }

    /// Grants a lease: the one place where tokens are made.
    pub(super) fn grant(
        &mut self,
        name: &LeaseName,
        to: Waiter,
        waiters: Vec<Waiter>,
        events: &mut Vec<Event>,
    ) -> Reply {
        let grant = Grant {
            session: to.session,
            holder: to.holder,
            token: FencingToken::new(self.generation, self.revision),
            at: self.now,
            meta: to.meta,
            lock_delay_ms: to.lock_delay_ms,
        };
        let created = self.leases.get(name).map_or(self.revision, |lease| lease.created);
        let lease = Lease { created, modified: self.revision, state: LeaseState::Held(grant.clone()), waiters };
        self.leases.insert(name.clone(), Arc::new(lease));
        self.touched.insert(RecordKey::Lease(name.clone()));
        let session = Arc::make_mut(self.sessions.get_mut(&to.session).expect("grants go to open sessions only"));
        session.leases.insert(name.clone());
        session.leases_revision = self.revision;
        self.touched.insert(RecordKey::Session(to.session));
        events.push(Event::LeaseGranted {
            lease: name.clone(),
            token: grant.token,
            session: grant.session,
            holder: grant.holder.clone(),
        });
        Reply::Granted { lease: name.clone(), grant }
    }

    pub(super) fn put_lease(&mut self, name: &LeaseName, mut lease: Lease) {
        lease.modified = self.revision;
        self.leases.insert(name.clone(), Arc::new(lease));
        self.touched.insert(RecordKey::Lease(name.clone()));
    }

    pub(super) fn drop_from_session(&mut self, lease: &LeaseName, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session).map(Arc::make_mut) {
            session.leases.remove(lease);
            session.leases_revision = self.revision;
            let id = session.id;
            self.touched.insert(RecordKey::Session(id));
        }
    }

    pub(super) fn forget_waiters(&mut self, gone: &OrdSet<SessionId>) {
        let waited: Vec<LeaseName> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.waiters.iter().any(|waiter| gone.contains(&waiter.session)))
            .map(|(name, _)| name.clone())
            .collect();
        for name in waited {
            let mut lease = Lease::clone(self.leases.get(&name).expect("it was found just now"));
            lease.waiters.retain(|waiter| !gone.contains(&waiter.session));
            self.put_lease(&name, lease);
        }
    }

    pub(super) fn present_token(&self, lease: &LeaseName, given: FencingToken) -> Result<(), Refusal> {
        let current = self.token(lease);
        if current == Some(given) {
            return Ok(());
        }
        Err(Refusal::StaleToken { lease: lease.to_string(), given, current })
    }

    pub(super) fn taken(&self, name: &LeaseName, lease: &Lease) -> Refusal {
        match &lease.state {
            LeaseState::Held(grant) => {
                let owner = self.sessions.get(&grant.session).map_or("?", |session| session.owner.name());
                let holder = if grant.holder.is_empty() { owner.to_owned() } else { grant.holder.clone() };
                Refusal::Held { lease: name.to_string(), holder, token: grant.token }
            }
            LeaseState::Delayed { token, .. } => Refusal::Delayed { lease: name.to_string(), token: *token },
        }
    }
}

fn check_acquire(acquire: &Acquire) -> Result<(), Refusal> {
    if acquire.lease.as_str().starts_with("server/") {
        return Err(server_lease(&acquire.lease));
    }
    if acquire.lock_delay_ms > LOCK_DELAY_MS_MAX {
        return Err(Refusal::Invalid(format!("a lock-delay is at most {LOCK_DELAY_MS_MAX} ms")));
    }
    if acquire.holder.len() > NAME_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a holder's name has at most {NAME_BYTES_MAX} bytes")));
    }
    let meta: usize = acquire.meta.iter().map(|(key, value)| key.len() + value.len()).sum();
    if meta > META_BYTES_MAX {
        return Err(Refusal::Invalid(format!("metadata has at most {META_BYTES_MAX} bytes, not {meta}")));
    }
    Ok(())
}

fn server_lease(name: &LeaseName) -> Refusal {
    Refusal::InUse {
        kind: "lease".into(),
        name: name.to_string(),
        why: "leases under server/ follow their servers: use `leaseward server start`, `stop` or `move`".into(),
    }
}

fn waiter(acquire: &Acquire, queued: crate::token::Revision) -> Waiter {
    Waiter {
        session: acquire.session,
        holder: acquire.holder.clone(),
        priority: acquire.priority,
        queued,
        meta: acquire.meta.clone(),
        lock_delay_ms: acquire.lock_delay_ms,
    }
}

fn position(waiters: &[Waiter], session: SessionId, holder: &str) -> Option<u32> {
    let place = waiters.iter().position(|waiter| waiter.session == session && waiter.holder == holder)?;
    Some(place as u32)
}
