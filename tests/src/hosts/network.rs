//! A network of its own for one story: hosts in namespaces, each with one cable to one switch.
//!
//! Must stay true: nothing of it is left when it is dropped, and nothing outside it can be reached from inside. A host
//! has its own addresses, ports, mount table and directory, and clocks if it is given some; it shares the kernel with others.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::Instant;

use super::clock::ahead;
use super::monitor::Monitor;
use super::watch::Watch;
use crate::{PATIENCE, end_child, signal};

/// Every host's one interface.
pub(super) const LINK: &str = "eth0";

/// Where the cables meet; no host.
const SWITCH: &str = "switch";

/// Namespaces with a bridge between them.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    number: u8,
    hosts: Vec<Host>,
}

/// A host that is on the network.
#[derive(Debug)]
pub(super) struct Host {
    name: String,
    /// Keeps the host's mount table alive, and does nothing else.
    keeper: Child,
    /// By how many seconds its boot clock is ahead of the machine's, if it has one of its own.
    pub(super) clock_ahead: Option<i64>,
}

impl Network {
    /// Makes a switch without hosts.
    ///
    /// # Panics
    /// If namespaces cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static MADE: AtomicU8 = AtomicU8::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self { prefix: format!("lw{}-{number}", std::process::id()), number, hosts: Vec::new() };
        ip(&["netns", "add", &network.space(SWITCH)]);
        let switch = network.space(SWITCH);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        network
    }

    /// Adds a host. Within it `own` is seen at `at`, so that all hosts may be told the same paths; and over `/etc` what is in `etc`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn add(&mut self, name: &str, own: &Path, at: &Path, etc: Option<&Path>) {
        let (space, switch) = (self.space(name), self.space(SWITCH));
        ip(&["netns", "add", &space]);
        // The directory is what shows that all is mounted.
        let keep = "{ [ -z \"$2\" ] || mount -t overlay -o lowerdir=\"$2\":/etc none /etc; } && mount --bind \"$0\" \"$1\" && exec sleep infinity";
        let keeper = Command::new("ip")
            .args(["netns", "exec", &space, "sh", "-c", keep])
            .args([own, at, etc.unwrap_or(Path::new(""))])
            .stdin(Stdio::null())
            .spawn()
            .expect("a host is kept");
        let place = 1 + self.hosts.len() as u8;
        self.hosts.push(Host { name: name.to_owned(), keeper, clock_ahead: None });
        ip(&["-n", &switch, "link", "add", "name", name, "type", "veth", "peer", "name", LINK, "netns", &space]);
        ip(&["-n", &switch, "link", "set", "dev", name, "master", "br0", "up"]);
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        ip(&["-n", &space, "link", "set", LINK, "up"]);
        ip(&["-n", &space, "addr", "add", &format!("{}/24", self.v4(place)), "dev", LINK]);
        ip(&["-n", &space, "addr", "add", &format!("{}/64", self.v6(place)), "dev", LINK, "nodad"]);
        let deadline = Instant::now() + PATIENCE;
        while !self.is_mounted(name, at) {
            assert!(Instant::now() < deadline, "never: host {name} has its directory");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns an IPv4 address of this network.
    #[must_use]
    pub fn v4(&self, place: u8) -> IpAddr {
        Ipv4Addr::new(10, 77, self.number, place).into()
    }

    /// Returns an IPv6 address of this network.
    #[must_use]
    pub fn v6(&self, place: u8) -> IpAddr {
        Ipv6Addr::new(0xfd77, u16::from(self.number), 0, 0, 0, 0, 0, u16::from(place)).into()
    }

    /// Returns a command that runs a program on a host, not started yet.
    #[must_use]
    pub fn command(&self, host: &str, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        let Host { keeper, clock_ahead, .. } = self.host(host);
        command.args(["--target", &keeper.id().to_string(), "--net", "--mount", "--"]);
        command.args(clock_ahead.map(ahead).unwrap_or_default()).arg(program).stdin(Stdio::null());
        command
    }

    /// Returns a command that changes what a host has mounted.
    pub(super) fn mounts(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let keeper = self.host(host).keeper.id().to_string();
        command.args(["--target", &keeper, "--mount", "--", program]).stdin(Stdio::null());
        command
    }

    /// Returns all hosts.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.name.as_str())
    }

    /// Runs `work` in a host's network. What it opens stays there.
    ///
    /// # Panics
    /// If `work` does.
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = self.open(host);
        let enter = || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            work()
        };
        std::thread::scope(|scope| scope.spawn(enter).join().expect("the work is done"))
    }

    /// Starts a thread in a host's network. What it opens stays there, and so do threads that it starts.
    ///
    /// # Panics
    /// If the host cannot be entered.
    pub fn spawn<T: Send + 'static>(&self, host: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let space = self.open(host);
        std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            work()
        })
    }

    /// Starts to look which of these hosts have an address. It may move from the last of them to the first only.
    #[must_use]
    pub fn watch(&self, hosts: &[&str], address: IpAddr) -> Watch {
        Watch::start(hosts.iter().map(|host| self.open(host)).collect(), address)
    }

    /// Starts to listen for addresses that are added to a host.
    #[must_use]
    pub fn monitor(&self, host: &str) -> Monitor {
        Monitor::start(self, host)
    }

    fn open(&self, host: &str) -> File {
        File::open(Path::new("/run/netns").join(self.space(host))).expect("the host is there")
    }

    /// Pulls a host's cable, or puts it back.
    pub fn set_cable(&self, host: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&["-n", &self.space(SWITCH), "link", "set", "dev", host, state]);
    }

    /// Returns whether a host has an address.
    #[must_use]
    pub fn has(&self, host: &str, address: IpAddr) -> bool {
        let shown = ip(&["-n", &self.space(host), "-o", "addr", "show"]);
        shown.lines().any(|line| line.contains(&format!(" {address}/")))
    }

    /// Adds an address to a host by hand.
    pub fn add_address(&self, host: &str, address: IpAddr) {
        ip(&["-n", &self.space(host), "addr", "add", &with_prefix(address), "dev", LINK]);
    }

    /// Adds an address to a host by hand, which its kernel takes away after so long, and up to a second more.
    pub fn lend_address(&self, host: &str, address: IpAddr, seconds: u32) {
        let (address, seconds) = (with_prefix(address), seconds.to_string());
        let lifetime = ["valid_lft", &seconds, "preferred_lft", "0"];
        ip(&[&["-n", &self.space(host), "addr", "add", &address, "dev", LINK], &lifetime[..]].concat());
    }

    /// Keeps the kernel of a host from taking an address away.
    pub fn keep_address(&self, host: &str, address: IpAddr) {
        let lifetime = ["valid_lft", "forever", "preferred_lft", "forever"];
        let address = with_prefix(address);
        ip(&[&["-n", &self.space(host), "addr", "change", &address, "dev", LINK], &lifetime[..]].concat());
    }

    /// Removes an address from a host by hand.
    pub fn remove_address(&self, host: &str, address: IpAddr) {
        ip(&["-n", &self.space(host), "addr", "del", &with_prefix(address), "dev", LINK]);
    }

    /// Removes every address of a host but these, and those that its kernel makes up.
    pub fn keep_only(&self, host: &str, kept: &[IpAddr]) {
        let space = self.space(host);
        let shown = ip(&["-n", &space, "-o", "addr", "show", "dev", LINK]);
        for found in
            shown.lines().filter(|line| !line.contains("scope link")).filter_map(|line| line.split_whitespace().nth(3))
        {
            let is_kept = kept.iter().any(|address| found.split('/').next() == Some(&address.to_string()));
            if !is_kept {
                // Its time may be over in this moment.
                Command::new("ip")
                    .args(["-n", &space, "addr", "del", found, "dev", LINK])
                    .stderr(Stdio::null())
                    .status()
                    .ok();
            }
        }
    }

    /// Returns the MAC address of a host.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn mac(&self, host: &str) -> String {
        let shown = ip(&["-n", &self.space(host), "-o", "link", "show", LINK]);
        let (_, rest) = shown.split_once("link/ether ").expect("a cable has two ends with a MAC each");
        rest[..17].to_owned()
    }

    /// Returns whether something is mounted at `at`, as a host sees it.
    #[must_use]
    pub fn is_mounted(&self, host: &str, at: &Path) -> bool {
        let table = fs::read_to_string(self.mount_table(host)).unwrap_or_default();
        is_mounted(&table, at)
    }

    /// Returns the file in which a host's mount table can be read.
    #[must_use]
    pub fn mount_table(&self, host: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/mountinfo", self.host(host).keeper.id()))
    }

    /// Kills everything that runs on a host, however it was started.
    ///
    /// # Panics
    /// If something cannot be killed.
    pub fn kill_all(&self, host: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.processes(host);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "never: everything on {host} is dead; left are {left:?}");
            left.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the living processes of a host.
    #[must_use]
    pub fn processes(&self, host: &str) -> Vec<u32> {
        let keeper = self.host(host).keeper.id();
        let listed = ip(&["netns", "pids", &self.space(host)]);
        let pids = listed.lines().filter_map(|line| line.trim().parse::<u32>().ok());
        pids.filter(|pid| *pid != keeper && !is_zombie(*pid)).collect()
    }

    pub(super) fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).expect("a host of this network")
    }

    pub(super) fn host_mut(&mut self, name: &str) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.name == name).expect("a host of this network")
    }

    pub(super) fn switch(&self) -> String {
        self.space(SWITCH)
    }

    pub(super) fn space(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            self.kill_all(&host.name);
        }
        let mut spaces = vec![self.space(SWITCH)];
        spaces.extend(self.hosts.iter().map(|host| self.space(&host.name)));
        for host in &mut self.hosts {
            end_child(&mut host.keeper);
        }
        for space in spaces {
            Command::new("ip").args(["netns", "del", &space]).status().ok();
        }
    }
}

/// Returns whether a mount table has something at `at`.
#[must_use]
pub fn is_mounted(table: &str, at: &Path) -> bool {
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at))
}

fn with_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// One that its parent did not ask about yet executes nothing any more.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

pub(super) fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {why}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
