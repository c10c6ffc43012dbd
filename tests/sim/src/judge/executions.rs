//! What executes: a model of shims with their kernel timers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaseward::{FencingToken, ServerName};
use leaseward_raft::clock::Which;

use super::Judge;
use crate::clocks::At;
use crate::host::Host;

/// A copy of a server under its shim.
#[derive(Clone)]
pub struct Shim {
    /// The server.
    pub server: ServerName,
    /// The token.
    pub token: FencingToken,
    /// Where.
    pub host: Arc<Host>,
    /// In which boot.
    pub boot: u64,
    /// When its kernel timer kills it, on the boot clock; `None`: nobody has armed it.
    pub deadline: Option<Duration>,
    /// How late the kernel is with that.
    pub late: Duration,
}

impl Shim {
    fn lives(&self, now: At) -> bool {
        let boot = self.host.clock_at(Which::Boot, now);
        self.host.boots() == self.boot
            && self.host.has_power()
            && self.deadline.is_none_or(|deadline| boot < deadline + self.late)
    }
}

impl Judge {
    /// Starts a copy.
    pub fn start(&self, shim: Shim) -> u64 {
        let now = shim.host.now();
        shim.host.say(&format!("starts {} under {}", shim.server, shim.token));
        self.count("servers started");
        let before = self.lock().started.insert(shim.server.clone(), (shim.token, shim.host.id()));
        if let Some((token, host)) = before
            && (token > shim.token || (token == shim.token && host != shim.host.id()))
        {
            let (server, token_now, name) = (&shim.server, shim.token, shim.host.name());
            let what = format!("{name} starts {server} under {token_now} after {token} on host {host}");
            self.violated_unless_clocks_are_broken(now, &what);
            self.lock().started.insert(server.clone(), (token, host));
        }
        let mut inner = self.lock();
        inner.next += 1;
        let number = inner.next;
        inner.shims.insert(number, shim);
        number
    }

    /// Arms the timers of a host's copies, or moves them on; never back.
    pub fn extend(&self, host: usize, deadline: Duration) {
        for shim in self.lock().shims.values_mut().filter(|shim| shim.host.id() == host) {
            if let Some(armed) = &mut shim.deadline {
                *armed = (*armed).max(deadline);
            }
        }
    }

    /// Arms the timer of one copy.
    pub fn arm(&self, number: u64, deadline: Duration) {
        if let Some(shim) = self.lock().shims.get_mut(&number) {
            shim.deadline.get_or_insert(deadline);
        }
    }

    /// Kills a copy. Returns whether it lived until now.
    pub fn kill(&self, number: u64) -> bool {
        self.lock().shims.remove(&number).is_some()
    }

    /// Returns the copies that live on a host, with their numbers.
    #[must_use]
    pub fn living_on(&self, host: usize, now: At) -> BTreeMap<u64, (ServerName, FencingToken)> {
        let inner = self.lock();
        let here = inner.shims.iter().filter(|(_, shim)| shim.host.id() == host && shim.lives(now));
        here.map(|(number, shim)| (*number, (shim.server.clone(), shim.token))).collect()
    }

    /// Returns a host that executed a server a moment ago.
    #[must_use]
    pub fn runner(&self) -> Option<usize> {
        self.lock().runner
    }

    /// Returns how many servers execute.
    #[must_use]
    pub fn executing(&self) -> usize {
        self.lock().shims.len()
    }

    /// Looks what executes at this instant.
    pub fn look_at_executions(&self, now: At) {
        let mut inner = self.lock();
        inner.shims.retain(|_, shim| shim.lives(now));
        inner.runner = inner.shims.values().map(|shim| shim.host.id()).next_back();
        let mut living: BTreeMap<ServerName, (FencingToken, String)> = BTreeMap::new();
        let mut twice = Vec::new();
        for shim in inner.shims.values() {
            let here = (shim.token, shim.host.name().to_owned());
            if let Some((token, host)) = living.insert(shim.server.clone(), here) {
                let (server, now, there) = (&shim.server, shim.token, shim.host.name());
                twice.push(format!("{server} executes twice: on {host} under {token} and on {there} under {now}"));
            }
        }
        drop(inner);
        for what in twice {
            self.violated_unless_clocks_are_broken(now, &what);
        }
    }
}
