//! Two hosts with keepalived and a server each, on a network of their own.
//!
//! Must stay true: neither host is preferred (`nopreempt`), so the address moves only when its owner is gone or silent.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use leaseward_tests::hosts::knock::Knocks;
use leaseward_tests::hosts::network::Network;
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{eventually, signal, victim};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::failover::{PORT, between, left_out, progress};
use crate::figures::millis;

/// Where Debian has it.
const PROGRAM: &str = "/usr/sbin/keepalived";

/// The hosts. Tokens of their servers are their places, from 1.
const PAIR: [&str; 2] = ["k1", "k2"];
const CLIENT: &str = "client";

/// So many answers make a server that works.
const STEADY: usize = 50;

struct Vrrp {
    // Before the directory: its processes use it.
    network: Network,
    started: [Vec<Child>; 2],
    dir: TempDir,
}

/// Measures power loss and a stopped master, with one advertisement in so many seconds.
pub(super) async fn measure(advert_int: &str, trials: usize, window: Duration) -> Value {
    if !Path::new(PROGRAM).exists() {
        return left_out("keepalived is not installed: apt-get install keepalived");
    }
    let mut vrrp = Vrrp::start(advert_int).await;
    let (mut gap, mut both, mut takeover) = (Vec::new(), Vec::new(), Vec::new());
    for trial in 0..trials {
        gap.push(vrrp.lose_power().await);
        let (after, double) = vrrp.stop_master(window).await;
        takeover.push(after);
        both.push(double);
        let words = format!("{:.0} ms without an answer; two owners for {double:.0} ms", gap[trial]);
        progress(&format!("keepalived, advert_int {advert_int}"), trial, trials, &words);
    }
    json!({
        "advert_int": advert_int, "power_loss_gap": millis(&gap),
        "stopped_master": { "taken_over_after": millis(&takeover), "double_owned": millis(&both) },
    })
}

impl Vrrp {
    async fn start(advert_int: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("lw").tempdir().expect("a directory");
        let at = dir.path().join("host");
        fs::create_dir(&at).expect("a directory");
        let mut vrrp = Self { network: Network::new(), started: [Vec::new(), Vec::new()], dir };
        for name in PAIR.into_iter().chain([CLIENT]) {
            let own = vrrp.dir.path().join(name);
            fs::create_dir(&own).expect("a directory");
            vrrp.network.add(name, &own, &at, None);
        }
        for host in 0..PAIR.len() {
            fs::write(vrrp.path(host, "conf"), vrrp.settings(host, advert_int)).expect("the settings are written");
            vrrp.power_on(host).await;
        }
        vrrp.owner().await;
        vrrp
    }

    fn settings(&self, host: usize, advert_int: &str) -> String {
        format!(
            "global_defs {{\n router_id {}\n vrrp_version 3\n}}\nvrrp_instance v {{\n state BACKUP\n nopreempt\n \
             interface eth0\n virtual_router_id 51\n priority {}\n advert_int {advert_int}\n virtual_ipaddress {{\n  \
             {}/32 dev eth0\n }}\n}}\n",
            PAIR[host],
            100 + host,
            self.floating()
        )
    }

    fn floating(&self) -> IpAddr {
        self.network.v4(100)
    }

    fn path(&self, host: usize, what: &str) -> PathBuf {
        self.dir.path().join(format!("{}.{what}", PAIR[host]))
    }

    /// Starts what runs on a host, and waits until its keepalived minds the address.
    async fn power_on(&mut self, host: usize) {
        let place = 1 + host as u8;
        self.network.keep_only(PAIR[host], &[self.network.v4(place), self.network.v6(place)]);
        self.network.set_cable(PAIR[host], true);
        // What is in memory only, as `/run` is.
        for file in ["pid", "vrrp_pid"] {
            fs::remove_file(self.path(host, file)).ok();
        }
        let stamps = self.path(host, "stamps");
        let mut server = self.network.command(PAIR[host], &victim());
        server.arg("stamp").arg(&stamps).args(["--greet", &PORT.to_string()]);
        server.env("LEASEWARD_MACHINE", PAIR[host]).env("LEASEWARD_TOKEN", place.to_string());
        let log = File::create(self.path(host, "log")).expect("a log");
        let mut keepalived = self.network.command(PAIR[host], Path::new(PROGRAM));
        keepalived
            .args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file"])
            .arg(self.path(host, "conf"));
        keepalived.arg("--pid").arg(self.path(host, "pid")).arg("--vrrp_pid").arg(self.path(host, "vrrp_pid"));
        keepalived.stdout(log.try_clone().expect("a log")).stderr(log);
        let children = [server.stdout(Stdio::null()).spawn(), keepalived.spawn()];
        self.started[host] = children.into_iter().map(|child| child.expect("it starts")).collect();
        let says = || fs::read_to_string(self.path(host, "log")).unwrap_or_default();
        eventually("keepalived minds the address", async || says().contains("Entering BACKUP STATE")).await;
    }

    /// Returns the one host that has the address.
    async fn owner(&self) -> usize {
        let owners =
            || (0..PAIR.len()).filter(|host| self.network.has(PAIR[*host], self.floating())).collect::<Vec<_>>();
        eventually("one has the address", async || owners().len() == 1).await;
        owners().first().copied().expect("nobody was stopped since")
    }

    /// Returns the owner, and a client that it answers steadily.
    async fn steady(&self) -> (usize, Knocks) {
        let host = self.owner().await;
        let to = SocketAddr::new(self.floating(), PORT);
        let knocks = self.network.within(CLIENT, || Knocks::start(to));
        eventually("it answers steadily", async || knocks.count() >= STEADY).await;
        (host, knocks)
    }

    /// Takes the power from the owner. Returns for how long nobody answered.
    async fn lose_power(&mut self) -> f64 {
        let (host, knocks) = self.steady().await;
        let old = 1 + host as u64;
        self.network.set_cable(PAIR[host], false);
        self.network.kill_all(PAIR[host]);
        self.started[host].iter_mut().for_each(|child| drop(child.wait()));
        eventually("the other one answers", async || knocks.other_than(old).is_some()).await;
        let last = knocks.last(old).expect("it answered");
        let first = knocks.other_than(old).expect("just seen");
        self.power_on(host).await;
        between(last.at, first.at)
    }

    /// Stops the owner's keepalived, and lets it go on after the window. Returns after how long the other one had the
    /// address, and for how long both had it, until one of them gave it up.
    async fn stop_master(&self, window: Duration) -> (f64, f64) {
        let host = self.owner().await;
        let other = 1 - host;
        let watch = self.network.watch(&[PAIR[other], PAIR[host]], self.floating());
        let monitor = self.network.monitor(PAIR[other]);
        let stopped = boot_ns();
        self.signal(host, Signal::STOP);
        eventually("the other one takes the address", async || monitor.added(self.floating(), stopped).is_some()).await;
        let taken = monitor.added(self.floating(), stopped).expect("just seen");
        let until = taken + window.as_nanos() as u64;
        eventually("the window is over", async || boot_ns() > until).await;
        self.signal(host, Signal::CONT);
        self.owner().await;
        (between(stopped, taken), watch.stop().two_owners_for.as_secs_f64() * 1e3)
    }

    /// Sends a signal to keepalived on a host: to all of it, and to nothing else.
    fn signal(&self, host: usize, what: Signal) {
        let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let all = self.network.processes(PAIR[host]);
        all.into_iter().filter(|pid| name(*pid).trim() == "keepalived").for_each(|pid| signal(pid, what));
    }
}
