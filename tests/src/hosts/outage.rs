//! Hosts that come back, hosts that are stopped, and questions to a host whose answers say when they were true.
//!
//! Must stay true: a host that has power again has of before what is on its disk, and nothing else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::process::Signal;
use serde_json::Value;

use super::{API_PORT, CLIENT, Hosts, LOOK};
use crate::signal;
use crate::stamps::boot_ns;

/// How a cluster is timed.
#[derive(Debug, Clone)]
pub struct Timing {
    /// `default`, `fast` or `wan`.
    pub profile: &'static str,
    /// Time to live of the machines' sessions.
    pub ttl: String,
}

impl Default for Timing {
    fn default() -> Self {
        Self { profile: "fast", ttl: "1s".to_owned() }
    }
}

/// What a host answered.
#[derive(Debug, Clone)]
pub struct Told {
    /// When it was asked, in nanoseconds of the boot clock: what it said was true then, or later.
    pub asked: u64,
    /// What it said.
    pub body: Value,
}

impl Hosts {
    /// Gives a host its power back, and starts its agent.
    pub fn power_on(&mut self, host: usize) {
        // What is in memory only, as `/run` is.
        fs::remove_dir_all(self.dir.path().join(self.names[host]).join("run")).ok();
        let place = 1 + host as u8;
        let own = [self.network.v4(place), self.network.v6(place)];
        self.network.keep_only(self.names[host], &own);
        self.plug_in(host);
        self.start_agent(host);
    }

    /// Sends a signal to the agent of a host, and to nothing else.
    ///
    /// # Panics
    /// If it has none.
    pub fn signal_agent(&self, host: usize, what: Signal) {
        signal(self.agents[host].as_ref().expect("its agent runs").id(), what);
    }

    /// Returns the process ids of the living shims of a host.
    #[must_use]
    pub fn shims(&self, host: usize) -> Vec<u32> {
        leaseward_node::live_shims(&self.dir.path().join(self.names[host]).join("run"))
    }

    /// Asks the API of one host, from the host of the clients.
    #[must_use]
    pub fn ask(&self, host: usize, path: &str) -> Option<Told> {
        let to = SocketAddr::new(self.network.v4(1 + host as u8), API_PORT);
        self.network.within(CLIENT, || {
            let mut stream = TcpStream::connect_timeout(&to, LOOK).ok()?;
            stream.set_read_timeout(Some(LOOK)).ok()?;
            let asked = boot_ns();
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {to}\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let (head, body) = text.split_once("\r\n\r\n")?;
            let is_ok = head.split(' ').nth(1) == Some("200");
            is_ok.then(|| serde_json::from_str(body).ok())?.map(|body| Told { asked, body })
        })
    }
}
