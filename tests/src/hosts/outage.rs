//! Hosts that come back, hosts that are stopped, and questions to a host whose answers say when they were true.
//!
//! Must stay true: a host that has power again has of before what is on its disk, and nothing else.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

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

/// Returns why a node of this name takes no part, in a list of nodes. One that it replaced has the name, too, until it is let go.
#[must_use]
pub fn quarantined(nodes: &Value, name: &str) -> Option<String> {
    let mut named = nodes["items"].as_array()?.iter().filter(|node| node["name"] == name);
    named.find_map(|node| node["quarantined"].as_str().map(str::to_owned))
}

impl Hosts {
    /// Gives a host its power back, and starts its agent. It knows that it has booted: its kernel has another id than before.
    ///
    /// # Panics
    /// If it cannot be given an id.
    pub fn power_on(&mut self, host: usize) {
        let id = self.dir.path().join(format!("{}.boot-id", self.names[host]));
        let is_first = !id.exists();
        // Any that it never had: the kernel makes one up at each reading.
        fs::copy("/proc/sys/kernel/random/uuid", &id).expect("an id of a boot");
        if is_first {
            let mut mount = self.network.mounts(self.names[host], "mount");
            let status = mount.arg("--bind").arg(&id).arg("/proc/sys/kernel/random/boot_id").status();
            assert!(status.is_ok_and(|status| status.success()), "{mount:?}");
        }
        // What is in memory only, as `/run` is.
        fs::remove_dir_all(self.dir.path().join(self.names[host]).join("run")).ok();
        let place = 1 + host as u8;
        let own = [self.network.v4(place), self.network.v6(place)];
        self.network.keep_only(self.names[host], &own);
        self.plug_in(host);
        self.start_agent(host);
    }

    /// Takes the power from a host whose disk lies ([`super::disk::Disk::begin_to_lie`]): what it acknowledged since then is gone.
    ///
    /// # Panics
    /// If its disk cannot be mounted again.
    pub fn power_off_and_forget(&mut self, host: usize) {
        self.power_off(host);
        self.go_back(host);
    }

    /// Takes the power from a host whose disk is honest: what was not synced is gone, but for some pages that a seed chooses. A disk of
    /// memory keeps everything.
    ///
    /// # Panics
    /// As [`Hosts::power_off_and_forget`].
    pub fn power_cut(&mut self, host: usize, seed: u64) {
        self.power_off(host);
        if self.disks.get_mut(host).is_some_and(|disk| disk.lose_power(seed)) {
            self.go_back(host);
        }
    }

    fn go_back(&mut self, host: usize) {
        let (own, at) = (self.dir.path().join(self.names[host]), self.own_dir());
        // Each host was given a view of all that was mounted before it: whoever has one keeps the disk.
        let quietly = |command: &mut Command| _ = command.stderr(Stdio::null()).status();
        for name in self.network.names() {
            quietly(self.network.mounts(name, "umount").arg(&own));
        }
        quietly(self.network.mounts(self.names[host], "umount").arg(&at));
        let device = self.disks[host].go_back();
        let mut mount = self.network.mounts(self.names[host], "mount");
        assert!(mount.arg(device).arg(&at).status().is_ok_and(|status| status.success()), "{mount:?}");
    }

    /// Starts a host anew whose node takes no part any more, as [LW0603](../docs/errors/LW0603.md) tells an operator: its data directory
    /// and its config sets are moved away, and it joins under a new id. Everything on it must be dead.
    ///
    /// # Panics
    /// If its data cannot be moved.
    pub fn replace(&mut self, host: usize) {
        let own = self.dir.path().join(self.names[host]);
        put_aside(&own, "data");
        put_aside(&own, "sets");
        fs::write(self.settings(host), self.settings_text(host, true)).expect("the settings are written");
        self.power_on(host);
    }

    /// Returns why the node of a host takes no part, as the others know.
    #[must_use]
    pub fn quarantined(&self, host: usize) -> Option<String> {
        let others = (0..self.names.len()).filter(|other| *other != host && self.is_reachable[*other]);
        others
            .filter_map(|other| self.ask(other, "/v1/nodes"))
            .find_map(|told| quarantined(&told.body, self.names[host]))
    }

    /// Returns how the agent of a host ended, if nobody ended it.
    pub fn end_of_agent(&mut self, host: usize) -> Option<ExitStatus> {
        self.agents[host].as_mut()?.try_wait().ok().flatten()
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

/// Gives a directory of a host another name, if it is there.
pub(super) fn put_aside(own: &Path, name: &str) {
    let mut aside = (0..).map(|i| own.join(format!("{name}-{i}")));
    let aside = aside.find(|path| !path.exists()).expect("some number is free");
    match fs::rename(own.join(name), aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{name} cannot be put aside: {error}"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_that_takes_no_part_is_seen_beside_the_one_that_it_replaced() {
        let nodes = json!({ "items": [
            { "id": 1, "name": "h1", "quarantined": null },
            { "id": 4, "name": "h4", "quarantined": null },
            { "id": 739, "name": "h4", "quarantined": "LW0603: its log ends at 1307" },
        ]});
        assert_eq!(quarantined(&nodes, "h4").as_deref(), Some("LW0603: its log ends at 1307"));
        assert_eq!(quarantined(&nodes, "h1"), None);
    }
}
