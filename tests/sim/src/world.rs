//! The world: hosts and a network, stepped together in true time.
//!
//! Must stay true: hosts are stepped in the order of their numbers, one millisecond at a time, and nothing that one of
//! them does reaches another one within the step; so the order of steps decides nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::clocks::{At, MS};
use crate::host::{Host, Machine, Program};
use crate::net::Net;
use crate::trace::Trace;

/// One step.
pub const STEP: At = MS;

/// Hosts on a network.
pub struct World {
    /// True time.
    pub now: At,
    /// The hosts.
    pub machines: Vec<Machine>,
    /// The network.
    pub net: Net,
    /// What happened.
    pub trace: Trace,
    /// What the world itself draws.
    pub random: SmallRng,
}

/// Returns the address of the host with this number.
#[must_use]
pub fn address(id: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, id as u8 + 1), 7421))
}

impl World {
    /// Returns a world of hosts that are off, each with its name. Everything that is drawn follows from `seed`, in this
    /// whole process.
    #[must_use]
    pub fn new(seed: u64, names: &[String], data: &Path) -> Self {
        leaseward_raft::random::seed(seed);
        let mut random = SmallRng::seed_from_u64(seed);
        let trace = Trace::default();
        let addresses: Vec<_> = (0..names.len()).map(address).collect();
        let net = Net::new(random.r#gen(), &addresses, trace.clone());
        let idle: Program = Arc::new(|_| Box::pin(async {}));
        let machines = names.iter().enumerate().map(|(id, name)| {
            let host = Host::new(id, name.clone(), addresses[id], data.join(name), net.clone(), trace.clone());
            Machine::new(host, Arc::clone(&idle))
        });
        Self { now: 0, machines: machines.collect(), net, trace, random }
    }

    /// Gives a host its program.
    pub fn install(&mut self, id: usize, program: Program) {
        let host = Arc::clone(&self.machines[id].host);
        self.machines[id] = Machine::new(host, program);
    }

    /// Starts a host.
    pub fn boot(&mut self, id: usize) {
        self.machines[id].boot(self.now);
    }

    /// Notes something for people.
    pub fn say(&self, text: &str) {
        self.trace.line(self.now, text);
    }

    /// Makes one step.
    pub fn step(&mut self) {
        let (from, to) = (self.now, self.now + STEP);
        self.net.deliver(from);
        for machine in &mut self.machines {
            machine.step(from, to);
        }
        self.now = to;
    }

    /// Draws a number.
    pub fn draw(&mut self, low: u64, high: u64) -> u64 {
        self.random.gen_range(low..=high)
    }
}
