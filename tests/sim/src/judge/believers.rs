//! Who believes in a lease, and what reaches the things that leases guard.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward::{FencingToken, Lease, LeaseName};
use leaseward_raft::simulation;

use super::Judge;
use crate::clocks::At;
use crate::host::Host;

/// A lease in the hands of a program.
#[derive(Clone)]
pub struct Hold {
    /// Where.
    pub host: Arc<Host>,
    /// The lease.
    pub lease: Arc<Lease>,
}

/// An effect on its way to what a lease guards.
#[derive(Debug, Clone)]
pub struct Write {
    /// When it arrives.
    pub at: At,
    /// The lease.
    pub lease: LeaseName,
    /// The token that it carries.
    pub token: FencingToken,
}

impl Judge {
    /// Learns that a program has a lease. Returns a number for [`Judge::gave`].
    pub fn took(&self, host: &Arc<Host>, lease: &Arc<Lease>) -> u64 {
        host.say(&format!("has {} under {}", lease.name(), lease.token()));
        self.count("leases taken");
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.holds.insert(number, Hold { host: Arc::clone(host), lease: Arc::clone(lease) });
        let before = inner.granted.insert((lease.name().clone(), lease.token()), host.id());
        drop(inner);
        if let Some(before) = before {
            let (name, token) = (lease.name(), lease.token());
            self.violated(host.now(), &format!("{token} of {name} was granted twice: to {before} and {}", host.id()));
        }
        number
    }

    /// Learns that a program has dropped a lease.
    pub fn gave(&self, number: u64) {
        let dropped = self.lock().holds.remove(&number);
        drop(dropped);
    }

    /// Learns that a host's process is gone, with whatever it believed.
    pub fn gone(&self, host: usize) {
        let dropped: Vec<_> = self.lock().holds.extract_if(.., |_, hold| hold.host.id() == host).collect();
        drop(dropped);
    }

    /// Returns the host of a program that believed in a lease a moment ago.
    #[must_use]
    pub fn holder(&self) -> Option<usize> {
        self.lock().holder
    }

    /// Sends an effect on its way.
    pub fn send(&self, write: Write) {
        self.lock().writes.push(write);
    }

    /// What a lease guards forgets to look at tokens.
    pub fn blind_receiver(&self) {
        self.lock().blind_receiver = true;
    }

    /// Looks who believes in which lease at this instant.
    pub fn look_at_believers(&self, now: At) {
        let holds: Vec<(u64, Hold)> = self.lock().holds.iter().map(|(number, hold)| (*number, hold.clone())).collect();
        let mut believers: BTreeMap<LeaseName, (FencingToken, Arc<Host>)> = BTreeMap::new();
        let mut holder = None;
        for (_, hold) in holds {
            let believes = {
                let _there = simulation::enter(Arc::clone(&hold.host) as Arc<dyn simulation::Host>);
                hold.lease.check().is_ok()
            };
            if !believes {
                continue;
            }
            holder = Some(hold.host.id());
            let (name, token) = (hold.lease.name().clone(), hold.lease.token());
            let newest = self.lock().believed.get(&name).copied();
            if newest.is_some_and(|newest| newest > token) {
                let what = format!("{} believes in {name} under {token}, after {newest:?}", hold.host.name());
                self.violated_unless_clocks_are_broken(now, &what);
            }
            self.lock().believed.insert(name.clone(), newest.map_or(token, |newest| newest.max(token)));
            if let Some((other, host)) = believers.insert(name.clone(), (token, Arc::clone(&hold.host))) {
                self.violated_unless_clocks_are_broken(
                    now,
                    &format!(
                        "two believe in {name} at once: {} under {other} and {} under {token}",
                        host.name(),
                        hold.host.name()
                    ),
                );
            }
        }
        self.lock().holder = holder;
    }

    /// Lets effects arrive. What receives them refuses a smaller token than it has seen (rule R7).
    pub fn let_writes_arrive(&self, now: At) {
        let arrived: Vec<Write> = self.lock().writes.extract_if(.., |write| write.at <= now).collect();
        for write in arrived {
            let mut inner = self.lock();
            let before = inner.accepted.get(&write.lease).copied();
            let stale = before.is_some_and(|before| before > write.token);
            if stale && !inner.blind_receiver {
                drop(inner);
                self.count("stale writes refused");
                continue;
            }
            inner.accepted.insert(write.lease.clone(), write.token);
            drop(inner);
            self.count("writes");
            if stale {
                let Write { lease, token, .. } = write;
                self.violated(now, &format!("what {lease} guards took a write under {token} after {before:?}"));
            }
        }
    }

    /// Learns that the cluster itself took a write that was to count only under this token.
    pub fn guarded_write(&self, now: At, lease: &LeaseName, token: FencingToken, revision: u64) {
        self.count("guarded writes");
        let mut inner = self.lock();
        let newest = inner.guarded.get(lease).copied();
        let wrong = newest.is_some_and(|(at, of)| (at < revision && of > token) || (at > revision && of < token));
        if newest.is_none_or(|(at, _)| at < revision) {
            inner.guarded.insert(lease.clone(), (revision, token));
        }
        drop(inner);
        if wrong {
            self.violated(now, &format!("a write under {token} of {lease} counted at {revision}, beside {newest:?}"));
        }
    }
}
