//! Failover, measured on hosts: network namespaces with a cable each, one agent each, and one host for clients.
//!
//! Must stay true: who executed when is told by the servers' own stamps, and in every trial it is looked whether two
//! copies ever overlapped. Every figure stands beside its goal. It needs root; without, each line says that it is left
//! out. `LEASEWARD_TRIALS` and `LEASEWARD_TTL` (such as `1s`) change how often and with which time to live.

mod clients;
mod crash;
mod keepalived;
mod power;

use std::fs;
use std::net::SocketAddr;

use leaseward_http::model::{Duration, Machine, Session};
use leaseward_tests::execs::Watched;
use leaseward_tests::hosts::outage::{Timing, Told};
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::stamps::{Stamps, boot_ns};
use leaseward_tests::victim;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use clients::moved_gap;
pub(crate) use crash::crash_in_place;
pub(crate) use keepalived::keepalived;
pub(crate) use power::{power_loss, power_loss_leader};

/// Where servers greet.
const PORT: u16 = 7000;

/// How often and with which times it is measured.
#[derive(Debug, Clone)]
pub(crate) struct Effort {
    trials: usize,
    timing: Timing,
}

impl Effort {
    /// Reads what the environment wants.
    fn wanted(usually: usize) -> Self {
        let trials = std::env::var("LEASEWARD_TRIALS").ok();
        let trials = trials.map_or(usually, |trials| trials.parse().expect("LEASEWARD_TRIALS is a number"));
        let ttl = std::env::var("LEASEWARD_TTL").unwrap_or_else(|_| "3s".to_owned());
        Self { trials: trials.max(1), timing: Timing { profile: "default", ttl } }
    }

    fn ttl_ms(&self) -> u64 {
        self.timing.ttl.parse::<Duration>().expect("a time to live such as 3s").millis()
    }
}

/// Why a measurement is left out that was not let finish.
pub(crate) const STOPPED: &str = "stopped by a signal";

/// Measures, until a signal asks us to stop: then the hosts are gone when this returns.
pub(crate) fn on_hosts(runtime: &Runtime, bench: impl Future<Output = Value>) -> Value {
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened to");
        tokio::select! {
            line = bench => line,
            _ = terminate.recv() => left_out(STOPPED),
            _ = ctrl_c() => left_out(STOPPED),
        }
    })
}

/// A line of a measurement that was not made.
fn left_out(why: &str) -> Value {
    json!({ "left_out": why })
}

/// Says on stderr how far it is.
fn progress(what: &str, trial: usize, trials: usize, words: &str) {
    eprintln!("{what}: {} of {trials}: {words}", trial + 1);
}

fn millis(ns: i64) -> f64 {
    ns as f64 / 1e6
}

/// Milliseconds from one moment to another.
fn between(from: u64, to: u64) -> f64 {
    millis(to.cast_signed() - from.cast_signed())
}

/// A server that stamps.
struct Stamping {
    name: String,
    stamps: Stamps,
    execs: Watched,
}

/// A server's description besides its name.
#[derive(Default)]
struct Wish<'a> {
    /// This address follows it: so many places after the first floating one.
    address: Option<u8>,
    /// It greets, as only one server on a host can.
    greets: bool,
    settings: &'a str,
}

/// Hosts with servers that stamp, which losses do not make anybody distrust.
struct Scene {
    hosts: Hosts,
    servers: Vec<Stamping>,
}

impl Scene {
    /// Starts hosts without servers; `None` without root.
    async fn start(effort: &Effort) -> Option<Self> {
        let hosts = Hosts::timed(effort.timing.clone()).await?;
        // Here machines are lost on purpose.
        hosts.must(&["policy", "set", "quarantine_losses=0", "poison_after=0"]);
        Some(Self { hosts, servers: Vec::new() })
    }

    /// Defines a server and waits until it runs.
    async fn add(&mut self, name: &str, wish: &Wish<'_>) {
        let stamps = Stamps::at(&self.hosts.dir().join(format!("{name}.stamps")));
        let copy = self.hosts.dir().join(format!("{name}.program"));
        let execs = Watched::copy(&victim(), &copy).expect("the program can be watched");
        let (victim, path, port) = (copy.to_string_lossy(), stamps.path().to_string_lossy(), PORT.to_string());
        let greeting = ["--greet", &port];
        let greeting = if wish.greets { &greeting[..] } else { &[] };
        let command = [&[&*victim, "stamp", &*path], greeting].concat();
        let vips = wish.address.map(|place| format!("vips = [{{ ip = \"{}\" }}]\n", self.address(place)));
        let text = format!(
            "command = {:?}\nstop_grace = \"500ms\"\ncandidates = {HOSTS:?}\n{}[restart]\ncluster = 1000\n{}\n",
            command,
            vips.unwrap_or_default(),
            wish.settings,
        );
        let file = self.hosts.dir().join(format!("{name}.toml"));
        fs::write(&file, text).expect("the file is written");
        self.hosts.must(&["server", "apply", "-f", &file.to_string_lossy()]);
        self.hosts.phase(name, "running").await;
        self.servers.push(Stamping { name: name.to_owned(), stamps, execs });
    }

    /// Returns a floating address.
    fn address(&self, place: u8) -> std::net::IpAddr {
        self.hosts.network().v4(100 + place)
    }

    /// Returns where the server with the first floating address greets.
    fn greeter(&self) -> SocketAddr {
        SocketAddr::new(self.address(0), PORT)
    }

    /// Returns the host on which a server runs, once it does.
    async fn host_of(&self, name: &str) -> usize {
        let server = self.hosts.phase(name, "running").await;
        HOSTS.iter().position(|host| server["machine"] == *host).expect("one of ours")
    }

    /// Returns the host on which all servers run; moves those that run elsewhere than the first.
    async fn together(&self) -> usize {
        let host = self.host_of(&self.servers[0].name).await;
        for server in &self.servers[1..] {
            if self.host_of(&server.name).await != host {
                self.hosts.must(&["server", "move", &server.name, "--to", HOSTS[host]]);
                self.host_of(&server.name).await;
            }
        }
        host
    }

    /// Gives a host its power back and waits until all is as it was.
    async fn restore(&mut self, host: usize) {
        self.hosts.power_on(host);
        self.until_whole().await;
    }

    /// Waits until every host is connected and votes.
    async fn until_whole(&self) {
        self.hosts.until_connected(HOSTS.len() as u64).await;
        let health = async |hosts: &Hosts| hosts.cluster().is_some_and(|cluster| cluster["health"] == "ok");
        self.hosts.until("the cluster is well", health).await;
    }

    /// Returns the tokens under which the servers run now, in their order.
    fn tokens(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.stamps.tail().expect("it runs").0).collect()
    }

    /// Waits until every server has stamped under another token than this.
    async fn until_elsewhere(&self, old: &[u64]) {
        let is_new = |(server, old): (&Stamping, &u64)| server.stamps.tail().is_some_and(|(token, _)| token != *old);
        let all = async |_: &Hosts| self.servers.iter().zip(old).all(is_new);
        self.hosts.until("every server runs elsewhere", all).await;
    }

    /// Counts the overlaps since the last count, and forgets the stamps.
    fn count_overlaps(&self) -> usize {
        self.servers
            .iter()
            .map(|server| {
                let overlaps = server.stamps.overlaps();
                server.stamps.clear();
                overlaps
            })
            .sum()
    }
}

/// Asks the leader when the session of a machine ends if it is not renewed any more: at this moment of the boot clock
/// at the earliest. `None` if that host does not lead.
struct Renewals {
    path: String,
    leader: usize,
}

impl Renewals {
    fn of(hosts: &Hosts, machine: usize, leader: usize) -> Option<Self> {
        let machine = hosts.ask(leader, &format!("/v1/machines/{}", HOSTS[machine]))?;
        let machine: Machine = serde_json::from_value(machine.body).ok()?;
        let path = format!("/v1/sessions/{}?consistency=stale", machine.session?);
        Some(Self { path, leader })
    }

    fn deadline(&self, hosts: &Hosts) -> Option<u64> {
        let Told { asked, body } = hosts.ask(self.leader, &self.path)?;
        let session: Session = serde_json::from_value(body).ok()?;
        Some(asked + session.remaining?.millis() * 1_000_000)
    }

    /// Waits until the machine's last renewal is so long ago, in shares of the time between two.
    async fn until_renewed_ago(&self, hosts: &Hosts, ttl_ms: u64, share: f64) -> u64 {
        let ttl = ttl_ms * 1_000_000;
        let ago = (ttl as f64 / 4.0 * share) as u64;
        hosts
            .until_some("the next renewal is so far", async |hosts| {
                let deadline = self.deadline(hosts)?;
                let since = (boot_ns() + ttl).checked_sub(deadline)?;
                (since >= ago && since < ago + ttl / 16).then_some(deadline)
            })
            .await
    }
}
