//! What is different between two states, at the cost of the difference and not of the whole: for the leader's
//! timers, which follow the state and not the events.

use imbl::ordmap::DiffItem;

use crate::lease::{Lease, LeaseState};
use crate::name::LeaseName;
use crate::session::Session;
use crate::state::State;
use crate::token::{FencingToken, SessionId};

/// What happened to the things that have a deadline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timed {
    /// Sessions that are open now, with their time to live in milliseconds, and were not or had another one.
    pub opened: Vec<(SessionId, u64)>,
    /// Sessions that are over.
    pub ended: Vec<SessionId>,
    /// Leases that are delayed now and were not under this token, with the delay in milliseconds.
    pub delayed: Vec<(LeaseName, FencingToken, u64)>,
    /// Leases whose delay is over.
    pub resumed: Vec<LeaseName>,
}

impl State {
    /// Returns what is different in `newer` of the things that have a deadline.
    #[must_use]
    pub fn timed_changes(&self, newer: &Self) -> Timed {
        let mut timed = Timed::default();
        for item in self.sessions.diff(&newer.sessions) {
            match item {
                DiffItem::Add(id, session) => timed.opened.push((*id, session.ttl_ms)),
                DiffItem::Update { old: (_, old), new: (id, new) } => {
                    if old.ttl_ms != new.ttl_ms {
                        timed.opened.push((*id, new.ttl_ms));
                    }
                }
                DiffItem::Remove(id, _) => timed.ended.push(*id),
            }
        }
        for item in self.leases.diff(&newer.leases) {
            match item {
                DiffItem::Add(name, lease) => timed.delayed.extend(delay(name, lease)),
                DiffItem::Update { old: (_, old), new: (name, new) } => match (delay(name, old), delay(name, new)) {
                    (before, Some(now)) if before.as_ref() != Some(&now) => timed.delayed.push(now),
                    (Some(_), None) => timed.resumed.push(name.clone()),
                    _ => {}
                },
                DiffItem::Remove(name, lease) => {
                    if delay(name, lease).is_some() {
                        timed.resumed.push(name.clone());
                    }
                }
            }
        }
        timed
    }

    /// Returns the leases whose sessions are `session`'s, with their tokens, ascending.
    #[must_use]
    pub fn held(&self, session: &Session) -> Vec<(LeaseName, FencingToken)> {
        session.leases.iter().filter_map(|name| Some((name.clone(), self.token(name)?))).collect()
    }
}

/// Servers' leases have no delay of their own: the master ends it.
fn delay(name: &LeaseName, lease: &Lease) -> Option<(LeaseName, FencingToken, u64)> {
    match &lease.state {
        LeaseState::Delayed { token, delay_ms } if *delay_ms > 0 => Some((name.clone(), *token, *delay_ms)),
        _ => None,
    }
}
