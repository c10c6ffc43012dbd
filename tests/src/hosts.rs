//! A cluster on hosts of its own: each has its addresses, its cable to a switch, its mounts, and one agent that votes
//! and runs servers; clients are on a host without one.
//!
//! Must stay true: it starts the `leaseward` binary as an operator would; what happens to a host happens to everything
//! on it; nothing is left of it when it is dropped, however the story ended. It needs root, and says so without.
//!
//! Left out on purpose: what hosts share here. They have one kernel; and one boot clock, one wall clock and one disk, unless they
//! are given their own.

pub mod clock;
pub mod delay;
pub mod disk;
pub mod filter;
pub mod knock;
pub mod monitor;
pub mod network;
pub mod outage;
pub mod probe;
pub mod watch;

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep};

use crate::{LABS, PATIENCE, binary, end_child, is_root, print_logs_of, signal};
use clock::WallClock;
use disk::Disk;
use network::Network;
use outage::Timing;
use probe::Probe;

/// The hosts with an agent, best candidate first.
pub const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// All that there may be, if a story wants more than [`HOSTS`].
pub const HOSTS_MAX: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];

/// The host without one.
pub const CLIENT: &str = "client";

/// Where each API listens; peers one above.
const API_PORT: u16 = 7420;

/// How long one look at the API may take.
const LOOK: Duration = Duration::from_secs(2);

/// How hosts are set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Hosts with an agent: the first so many of [`HOSTS_MAX`].
    pub count: usize,
    /// Hosts without one, besides [`CLIENT`].
    pub more_clients: Vec<&'static str>,
    /// How the cluster is timed.
    pub timing: Timing,
    /// The hosts whose agents use the network fence.
    pub fenced: &'static [usize],
    /// Each host has a disk of its own of so many bytes, which can be full, or stand still.
    pub disk_bytes: Option<u64>,
    /// What the boot clock of each host says when it is started, in seconds; the machine's own if not given.
    pub boot_clocks: Vec<i64>,
    /// Each host with an agent has a wall clock of its own.
    pub wall_clocks: bool,
    /// What runs on them; [`crate::binary`] if not given.
    pub binary: Option<PathBuf>,
    /// Whether the agents are started.
    pub with_agents: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            count: HOSTS.len(),
            more_clients: Vec::new(),
            timing: Timing::default(),
            fenced: &[],
            disk_bytes: None,
            boot_clocks: Vec::new(),
            wall_clocks: false,
            binary: None,
            with_agents: true,
        }
    }
}

/// Hosts with an agent each, three if nothing else is asked for, and one for clients.
#[derive(Debug)]
pub struct Hosts {
    // Before the disks, the directory and the turn: its processes use them all.
    network: Network,
    disks: Vec<Disk>,
    wall_clocks: Vec<WallClock>,
    names: Vec<&'static str>,
    clients: Vec<&'static str>,
    agents: Vec<Option<Child>>,
    is_reachable: Vec<bool>,
    binary: PathBuf,
    timing: Timing,
    fenced: &'static [usize],
    dir: TempDir,
    _turn: SemaphorePermit<'static>,
}

impl Hosts {
    /// Starts them, once fewer than two other labs run in this program, and waits until they are one cluster. Without
    /// root it says that the story is left out.
    ///
    /// # Panics
    /// If they are no cluster within [`PATIENCE`]; the logs of all agents are printed then.
    pub async fn start() -> Option<Self> {
        Self::timed(Timing::default()).await
    }

    /// The same, where the agents of some hosts use the network fence. Without `nft` it says that the story is left out.
    ///
    /// # Panics
    /// As [`Hosts::start`].
    pub async fn fenced(fenced: &'static [usize]) -> Option<Self> {
        if !is_installed("nft") {
            println!("left out: needs nft");
            return None;
        }
        Self::with(Timing::default(), fenced).await
    }

    /// The same, with other times.
    ///
    /// # Panics
    /// As [`Hosts::start`].
    pub async fn timed(timing: Timing) -> Option<Self> {
        Self::with(timing, &[]).await
    }

    async fn with(timing: Timing, fenced: &'static [usize]) -> Option<Self> {
        Self::set_up(Setup { timing, fenced, ..Setup::default() }).await
    }

    /// The same, set up otherwise.
    ///
    /// # Panics
    /// As [`Hosts::start`].
    pub async fn set_up(setup: Setup) -> Option<Self> {
        if !is_root() {
            println!("left out: needs root");
            return None;
        }
        let turn = LABS.acquire().await.expect("it is never closed");
        // Short: the sockets below it have short names.
        let dir = tempfile::Builder::new().prefix("lw").tempdir().expect("a directory");
        // Servers may run as somebody else.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own directory");
        let names = HOSTS_MAX[..setup.count].to_vec();
        let mut hosts = Self {
            network: Network::new(),
            disks: Vec::new(),
            wall_clocks: Vec::new(),
            clients: [&[CLIENT], &setup.more_clients[..]].concat(),
            agents: names.iter().map(|_| None).collect(),
            is_reachable: vec![true; names.len()],
            names,
            binary: setup.binary.unwrap_or_else(binary),
            timing: setup.timing,
            fenced: setup.fenced,
            dir,
            _turn: turn,
        };
        for name in ["log", "host"] {
            fs::create_dir(hosts.dir.path().join(name)).expect("a directory");
        }
        for name in hosts.names.clone() {
            if let Some(bytes) = setup.disk_bytes {
                let at = hosts.dir.path().join(name);
                fs::create_dir(&at).expect("a directory");
                hosts.disks.push(Disk::mount(&hosts.dir.path().join(format!("{name}.img")), &at, bytes));
            }
            let etc = setup.wall_clocks.then(|| hosts.dir.path().join(format!("{name}.etc")));
            hosts.wall_clocks.extend(etc.as_deref().map(WallClock::make));
            hosts.add(name, etc.as_deref());
        }
        for (name, seconds) in hosts.names.clone().into_iter().zip(&setup.boot_clocks) {
            hosts.network.set_boot_clock(name, *seconds);
        }
        for name in hosts.clients.clone() {
            hosts.add_host(name);
        }
        if !setup.with_agents {
            return Some(hosts);
        }
        for host in 0..hosts.names.len() {
            fs::write(hosts.settings(host), hosts.settings_text(host, false)).expect("the settings are written");
            hosts.start_agent(host);
        }
        let voters = async |hosts: &Self| hosts.cluster()?["voters"].as_array().map(Vec::len);
        hosts.until("all vote", async |hosts| voters(hosts).await == Some(hosts.names.len())).await;
        hosts.until_connected(hosts.names.len() as u64).await;
        Some(hosts)
    }

    /// Adds a host to the network, without an agent.
    pub fn add_host(&mut self, name: &str) {
        self.add(name, None);
    }

    fn add(&mut self, name: &str, etc: Option<&Path>) {
        let own = self.dir.path().join(name);
        // It is there if it is a disk.
        fs::create_dir_all(&own).expect("a directory");
        let at = self.own_dir();
        self.network.add(name, &own, &at, etc);
    }

    fn settings(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("{}.toml", self.names[host]))
    }

    /// Returns the settings of a host: the first one has nobody to join, unless it takes the place of one that was lost.
    fn settings_text(&self, host: usize, replace: bool) -> String {
        let (name, address) = (self.names[host], self.address(host));
        let others = (0..self.names.len()).filter(|other| (replace || host != 0) && *other != host);
        let join: Vec<String> = others.map(|other| format!("\"{}:{}\"", self.address(other), API_PORT + 1)).collect();
        let join = join.join(", ");
        let Timing { profile, ttl } = &self.timing;
        let network_fence = self.fenced.contains(&host);
        let own = self.own_dir();
        let own = own.display();
        format!(
            "[node]\nname = \"{name}\"\nlisten = \"{address}:{API_PORT}\"\npeer_listen = \"{address}:{}\"\n\
             advertise = \"{address}\"\ndata = \"{own}/data\"\n[cluster]\njoin = [{join}]\nreplace = {replace}\n\
             [timing]\nprofile = \"{profile}\"\nlease_ttl = \"{ttl}\"\n\
             [machine]\nrun_dir = \"{own}/run\"\nconfig_dir = \"{own}/sets\"\n\
             network_fence = {network_fence}\n[tls]\nplain = true\n[log]\nformat = \"text\"\nlevel = \"info\"\n",
            API_PORT + 1
        )
    }

    /// Returns the hosts with an agent.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Returns the IPv4 address of a host.
    #[must_use]
    pub fn address(&self, host: usize) -> IpAddr {
        self.network.v4(1 + host as u8)
    }

    /// Returns the API of each host.
    #[must_use]
    pub fn all_apis(&self) -> Vec<SocketAddr> {
        (0..self.names.len()).map(|host| SocketAddr::new(self.address(host), API_PORT)).collect()
    }

    /// Returns where each host talks with peers.
    #[must_use]
    pub fn all_peers(&self) -> Vec<String> {
        (0..self.names.len()).map(|host| format!("{}:{}", self.address(host), API_PORT + 1)).collect()
    }

    /// Returns the disk of a host.
    ///
    /// # Panics
    /// If the hosts have none of their own.
    pub fn disk(&mut self, host: usize) -> &mut Disk {
        &mut self.disks[host]
    }

    /// Returns the wall clock of a host.
    ///
    /// # Panics
    /// If the hosts have none of their own.
    pub fn wall_clock(&mut self, host: usize) -> &mut WallClock {
        &mut self.wall_clocks[host]
    }

    /// Runs another binary from the next start of an agent on.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Returns whether the agent of a host lives.
    pub fn agent_lives(&mut self, host: usize) -> bool {
        self.agents[host].as_mut().is_some_and(|agent| matches!(agent.try_wait(), Ok(None)))
    }

    /// Returns whether nobody has killed or ended the agent of a host.
    #[must_use]
    pub fn should_live(&self, host: usize) -> bool {
        self.agents[host].is_some()
    }

    /// Takes everything of ours from the disk of a host. Its agent must be dead. Config sets are only put aside: somebody may
    /// be reading them, who must not see how they go.
    ///
    /// # Panics
    /// If they cannot be put aside.
    pub fn wipe(&mut self, host: usize) {
        let own = self.dir.path().join(self.names[host]);
        for name in ["data", "run"] {
            fs::remove_dir_all(own.join(name)).ok();
        }
        outage::put_aside(&own, "sets");
    }

    /// Returns where everything is, for all hosts.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the directory that each host has for itself.
    #[must_use]
    pub fn own_dir(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// Returns the network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the network, to change what hosts are started with.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Returns the IPv4 address that follows a story's server.
    #[must_use]
    pub fn floating(&self) -> IpAddr {
        self.network.v4(100)
    }

    /// Returns the IPv6 address that follows a story's server.
    #[must_use]
    pub fn floating_v6(&self) -> IpAddr {
        self.network.v6(100)
    }

    /// Returns the hosts that have an address, of those that a client can reach.
    #[must_use]
    pub fn who_has(&self, address: IpAddr) -> Vec<usize> {
        let reachable = (0..self.names.len()).filter(|host| self.is_reachable[*host]);
        reachable.filter(|host| self.network.has(self.names[*host], address)).collect()
    }

    /// Starts the agent of a host.
    pub fn start_agent(&mut self, host: usize) {
        let log = self.dir.path().join("log").join(format!("{}.log", self.names[host]));
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let mut command = self.network.command(self.names[host], &self.binary);
        command.args(["agent", "--config"]).arg(self.settings(host)).stdout(Stdio::null()).stderr(log);
        self.agents[host] = Some(command.spawn().expect("the binary starts"));
    }

    /// Kills the agent of a host with SIGKILL, and nothing else.
    pub fn kill_agent(&mut self, host: usize) {
        if let Some(mut agent) = self.agents[host].take() {
            end_child(&mut agent);
        }
    }

    /// Sends a signal to the agent of a host and to the shims of its servers.
    ///
    /// # Panics
    /// If it has no agent.
    pub fn signal_all(&self, host: usize, what: Signal) {
        signal(self.agents[host].as_ref().expect("it has an agent").id(), what);
        for shim in leaseward_node::live_shims(&self.dir.path().join(self.names[host]).join("run")) {
            signal(shim, what);
        }
    }

    /// Returns how many shims wait for an order on a host.
    #[must_use]
    pub fn waiting_shims(&self, host: usize) -> usize {
        let Some(agent) = &self.agents[host] else { return 0 };
        let parent = format!("PPid:\t{}\n", agent.id());
        let is_one = |entry: &fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("(waits for an order)")
                && fs::read_to_string(entry.path().join("status")).is_ok_and(|status| status.contains(&parent))
        };
        fs::read_dir("/proc").into_iter().flatten().flatten().filter(is_one).count()
    }

    /// Pulls the cable of a host. Everything on it goes on.
    pub fn cut_off(&mut self, host: usize) {
        self.is_reachable[host] = false;
        self.network.set_cable(self.names[host], false);
    }

    /// Puts the cable back.
    pub fn plug_in(&mut self, host: usize) {
        self.network.set_cable(self.names[host], true);
        self.is_reachable[host] = true;
    }

    /// Takes the power from a host: it is off the network, and nothing on it executes any more.
    pub fn power_off(&mut self, host: usize) {
        self.cut_off(host);
        self.network.kill_all(self.names[host]);
        self.kill_agent(host);
    }

    /// Starts to ask who answers at an address, on the host of the clients.
    #[must_use]
    pub fn probe(&self, to: SocketAddr) -> Probe {
        self.network.within(CLIENT, || Probe::start(to))
    }

    /// Returns a command of a client's, not started yet.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        self.network.command(CLIENT, Path::new(program))
    }

    /// Runs the command line on the host of the clients.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_command(arguments).output().expect("the binary starts")
    }

    /// Returns the same, not started yet.
    #[must_use]
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let apis: Vec<String> = self.apis().iter().map(ToString::to_string).collect();
        let mut command = self.network.command(CLIENT, &self.binary);
        command.env("XDG_CACHE_HOME", self.dir().join("cache"));
        command.env("LEASEWARD_ADDR", apis.join(",")).args(arguments);
        command
    }

    /// Runs what must succeed. Returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.cli(&[arguments, &["--yes", "--timeout", "30s"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Returns an object of the API, as the first agent shows it that answers.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Value> {
        let text = self.apis().into_iter().find_map(|api| self.fetch(&format!("http://{api}{path}")))?;
        serde_json::from_str(&text).ok()
    }

    /// Returns a page, as a client gets it.
    #[must_use]
    pub fn fetch(&self, url: &str) -> Option<String> {
        self.network.within(CLIENT, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let http = reqwest::Client::builder().no_proxy().timeout(LOOK).build().expect("a plain client");
                let response = http.get(url).send().await.ok()?;
                if response.status() == StatusCode::OK { response.text().await.ok() } else { None }
            })
        })
    }

    /// Returns the cluster's status, as the first agent shows it that knows a leader; else as any does.
    #[must_use]
    pub fn cluster(&self) -> Option<Value> {
        let mut any = None;
        for api in self.apis() {
            let text = self.fetch(&format!("http://{api}/v1/cluster"));
            let shown = text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            if shown.as_ref().is_some_and(|cluster| cluster["leader"].is_string()) {
                return shown;
            }
            any = any.or(shown);
        }
        any
    }

    /// Returns a server once it has this phase.
    pub async fn phase(&self, server: &str, phase: &str) -> Value {
        let look =
            async |hosts: &Self| hosts.get(&format!("/v1/servers/{server}")).filter(|server| server["phase"] == phase);
        self.until_some(&format!("{server} is {phase}"), look).await
    }

    /// Makes a host the leader.
    pub async fn lead(&self, host: usize) {
        let leads = |hosts: &Self| hosts.cluster().is_some_and(|cluster| cluster["leader"] == hosts.names[host]);
        self.until(&format!("{} leads", self.names[host]), async |hosts| {
            leads(hosts) || {
                hosts.cli(&["node", "transfer-leader", "--to", self.names[host], "--yes"]);
                leads(hosts)
            }
        })
        .await;
    }

    /// Waits until so many machines are connected.
    pub async fn until_connected(&self, wanted: u64) {
        let connected = |hosts: &Self| hosts.cluster()?["machines"]["connected"].as_u64();
        self.until(&format!("{wanted} are connected"), async |hosts| connected(hosts) == Some(wanted)).await;
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it is not within [`PATIENCE`].
    pub async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        self.until_some(what, async |hosts| holds(hosts).await.then_some(())).await;
    }

    /// Waits until `look` returns something.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn until_some<T>(&self, what: &str, look: impl AsyncFn(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self).await {
                return found;
            }
            assert!(Instant::now() < deadline, "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the APIs that a client can reach.
    fn apis(&self) -> Vec<SocketAddr> {
        let reachable = (0..self.names.len()).filter(|host| self.is_reachable[*host]);
        reachable.map(|host| SocketAddr::new(self.network.v4(1 + host as u8), API_PORT)).collect()
    }
}

/// Returns whether a program is there that only root needs.
#[must_use]
pub fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Nobody dies who waits for a disk that stands still.
        self.disks.iter_mut().for_each(Disk::thaw);
        for name in self.names.iter().chain(&self.clients) {
            self.network.kill_all(name);
        }
        for host in 0..self.names.len() {
            self.kill_agent(host);
        }
        if std::thread::panicking() {
            print_logs_of(&self.dir.path().join("log"));
        }
    }
}
