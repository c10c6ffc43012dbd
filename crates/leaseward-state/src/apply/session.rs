//! Opening and ending sessions.

use std::sync::Arc;

use imbl::OrdSet;

use super::Outcome;
use crate::command::Reply;
use crate::event::Event;
use crate::lease::GrantEnd;
use crate::limits::{SESSIONS_MAX, TEXT_BYTES_MAX, TTL_MS_MAX, TTL_MS_MIN};
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::server::Cause;
use crate::session::{Owner, Session, SessionEnd};
use crate::state::State;
use crate::token::SessionId;

impl State {
    pub(super) fn open_session(&mut self, name: &str, ttl_ms: u64, events: &mut Vec<Event>) -> Outcome {
        if name.len() > TEXT_BYTES_MAX {
            return Err(Refusal::Invalid("the client's name is too long".into()));
        }
        Ok(Reply::Session(self.new_session(Owner::Client(name.to_owned()), ttl_ms, events)?))
    }

    pub(super) fn new_session(
        &mut self,
        owner: Owner,
        ttl_ms: u64,
        events: &mut Vec<Event>,
    ) -> Result<SessionId, Refusal> {
        check_ttl(ttl_ms)?;
        if self.sessions.len() >= SESSIONS_MAX {
            return Err(Refusal::TooMany { what: "open sessions".into(), max: SESSIONS_MAX as u64 });
        }
        let id = SessionId(self.revision.0);
        let session = Session {
            id,
            owner: owner.clone(),
            ttl_ms,
            opened_at: self.now,
            leases: OrdSet::new(),
            leases_revision: self.revision,
        };
        self.sessions.insert(id, Arc::new(session));
        self.touched.insert(RecordKey::Session(id));
        events.push(Event::SessionOpened { session: id, owner });
        Ok(id)
    }

    pub(super) fn end_session(&mut self, session: SessionId, events: &mut Vec<Event>) -> Outcome {
        if !self.sessions.contains_key(&session) {
            return Err(Refusal::NoSession { session });
        }
        self.finish_sessions(&[session], SessionEnd::Ended, events);
        Ok(Reply::Done)
    }

    /// Ends the sessions that are still open; the others were ended by somebody else meanwhile.
    pub(super) fn close_sessions(&mut self, sessions: &[SessionId], events: &mut Vec<Event>) -> Reply {
        let open: Vec<_> = sessions.iter().copied().filter(|id| self.sessions.contains_key(id)).collect();
        self.finish_sessions(&open, SessionEnd::Expired, events);
        Reply::Done
    }

    /// Ends open sessions: first all of them stop waiting, so that none inherits what another leaves behind.
    pub(super) fn finish_sessions(&mut self, ids: &[SessionId], why: SessionEnd, events: &mut Vec<Event>) {
        let mut ended = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(session) = self.sessions.remove(id) else { continue };
            self.touched.insert(RecordKey::Session(*id));
            self.forget_program(*id);
            if let Owner::Machine(name) = &session.owner {
                self.machine_lost_session(name, *id, why);
            }
            events.push(Event::SessionEnded { session: *id, owner: session.owner.clone(), why });
            ended.push(session);
        }
        let gone: OrdSet<SessionId> = ended.iter().map(|session| session.id).collect();
        self.forget_waiters(&gone);

        let (end, cause) = match why {
            SessionEnd::Ended => (GrantEnd::Released, Cause::MachineLost),
            SessionEnd::Expired => (GrantEnd::Expired, Cause::MachineLost),
            SessionEnd::Superseded => (GrantEnd::Superseded, Cause::MachineRestarted),
        };
        for session in &ended {
            for lease in &session.leases {
                match lease.server() {
                    Some(server) => self.expire_server(&server, end, cause, session.ttl_ms, events),
                    None => self.end_grant(lease, end, session.ttl_ms, events),
                }
            }
        }
    }
}

/// Returns whether a session may have this time to live.
pub(super) fn check_ttl(ttl_ms: u64) -> Result<(), Refusal> {
    if (TTL_MS_MIN..=TTL_MS_MAX).contains(&ttl_ms) {
        return Ok(());
    }
    Err(Refusal::Ttl { ttl_ms, min_ms: TTL_MS_MIN, max_ms: TTL_MS_MAX })
}
