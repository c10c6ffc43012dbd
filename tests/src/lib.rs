//! A cluster of real processes on loopback, for tests and benches.
//!
//! Must stay true: it starts the `leaseward` binary as an operator would; everything it started is dead when it is
//! dropped; it waits for conditions, with a bound, and never for time to pass.

pub mod chaos;
pub mod execs;
pub mod history;
pub mod hosts;
pub mod relay;
pub mod stamps;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use leaseward::client::Client;
use leaseward_raft::net::transport::Transport;
use relay::Relay;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

/// Whatever is waited for must come within this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// So many labs at a time: each has up to a dozen processes, and two cores should carry them without being late.
static LABS: Semaphore = Semaphore::const_new(2);

/// Where relays listen, on the ports of the voters behind them. All of 127/8 is this machine.
const RELAYS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

/// How a lab is set up.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Nodes that may vote. An odd number of them does.
    pub voters: usize,
    /// So many of them, the last ones, are witnesses.
    pub witnesses: usize,
    /// Machines that run servers.
    pub machines: usize,
    /// `default`, `fast` or `wan`.
    pub profile: &'static str,
    /// Time to live of machines' sessions.
    pub ttl: &'static str,
    /// Log filter of all processes.
    pub log: &'static str,
    /// Where the last voter keeps its data, if not beside the others'.
    pub last_voter_data: Option<PathBuf>,
    /// Whether everybody is told to reach the voters through relays ([`Lab::relays`]). The first machine is told
    /// nothing else, the others know the voters' own addresses too.
    pub relayed: bool,
    /// More lines of each machine's `[machine]` section.
    pub machine_settings: Vec<String>,
    /// More lines of every voter's settings, after its `[log]` section.
    pub voter_settings: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            voters: 3,
            witnesses: 0,
            machines: 0,
            profile: "fast",
            ttl: "1s",
            log: "info",
            last_voter_data: None,
            relayed: false,
            machine_settings: Vec::new(),
            voter_settings: "",
        }
    }
}

/// A process of the lab.
#[derive(Debug)]
struct Process {
    name: String,
    settings: PathBuf,
    child: Option<Child>,
}

/// A cluster of real processes.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    binary: PathBuf,
    voters: Vec<Process>,
    machines: Vec<Process>,
    voter_data: Vec<PathBuf>,
    apis: Vec<SocketAddr>,
    peers: Vec<SocketAddr>,
    relays: Vec<Relay>,
    http: reqwest::Client,
    _turn: SemaphorePermit<'static>,
}

/// Returns the `leaseward` binary of the profile that this program was built with.
///
/// # Panics
/// If it is not built yet: `cargo test --workspace` and `cargo build` build it.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LEASEWARD_BIN") {
        return PathBuf::from(path);
    }
    let me = std::env::current_exe().expect("a program knows where it is");
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("leaseward")).find(|path| path.is_file());
    found.expect("the leaseward binary is not built: run `cargo build -p leaseward-cli` with the same profile first")
}

/// Returns the server that tells on itself, beside this program.
///
/// # Panics
/// If it is not built yet.
#[must_use]
pub fn victim() -> PathBuf {
    let me = std::env::current_exe().expect("a program knows where it is");
    let found = me.ancestors().skip(1).take(2).map(|dir| dir.join("leaseward-victim")).find(|path| path.is_file());
    found.expect("leaseward-victim is not built: run `cargo build -p leaseward-tests` with the same profile first")
}

/// Returns whether this process is root. What needs privileges says clearly that it is left out.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns whether this process is root of the machine, and not only of a user namespace: it has loop devices and may set clocks.
#[must_use]
pub fn owns_machine() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Returns a port that nobody listens on: from below the range that the kernel hands out, so that nobody else gets it.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 11_000 + (std::process::id() % 20_000) as u16;
    loop {
        let port = 10_000 + (start - 10_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 22_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

impl Lab {
    /// Starts a lab, once fewer than two others run in this program, and waits until it is one cluster.
    ///
    /// # Panics
    /// If it is not within [`PATIENCE`]; the logs of all processes are printed then.
    pub async fn start(plan: Plan) -> Self {
        let turn = LABS.acquire().await.expect("it is never closed");
        // Short: the sockets below it have short names.
        let dir = tempfile::Builder::new().prefix("lw").tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("log")).expect("a directory");
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(1))
            .build()
            .expect("a plain client");
        let mut lab = Self {
            binary: binary(),
            voters: Vec::new(),
            machines: Vec::new(),
            voter_data: Vec::new(),
            apis: (0..plan.voters).map(|_| local()).collect(),
            peers: (0..plan.voters).map(|_| local()).collect(),
            relays: Vec::new(),
            http,
            dir,
            _turn: turn,
        };
        lab.voter_data = (1..=plan.voters).map(|i| lab.dir.path().join(format!("n{i}"))).collect();
        if let (Some(last), Some(data)) = (lab.voter_data.last_mut(), &plan.last_voter_data) {
            last.clone_from(data);
        }
        if plan.relayed {
            for peer in &lab.peers {
                lab.relays.push(Relay::start(SocketAddr::new(RELAYS, peer.port()), *peer).await);
            }
        }
        for i in 0..plan.voters {
            lab.add_voter(&plan, i);
        }
        for i in 0..plan.machines {
            lab.add_machine(&plan, i);
        }
        for i in 0..plan.voters {
            lab.start_voter(i);
        }
        for i in 0..plan.machines {
            lab.start_machine(i);
        }
        let nodes = async |lab: &Self| {
            let status = lab.status().await?;
            let count = |what: &str| status[what].as_array().map(Vec::len);
            Some((count("voters")?, count("learners")?))
        };
        let voters = if plan.voters.is_multiple_of(2) { plan.voters - 1 } else { plan.voters };
        lab.until("an odd number of nodes votes", nodes, (voters, plan.voters - voters)).await;
        let connected = async |lab: &Self| lab.status().await?["machines"]["connected"].as_u64();
        if plan.machines > 0 {
            lab.until("all machines are connected", connected, plan.machines as u64).await;
        }
        lab
    }

    fn add_voter(&mut self, plan: &Plan, i: usize) {
        let name = format!("n{}", i + 1);
        let join = if i == 0 { String::new() } else { format!("\"{}\"", self.peers[0]) };
        let role = if i + plan.witnesses >= plan.voters { "witness" } else { "voter" };
        let advertise = if plan.relayed { format!("advertise = \"{RELAYS}\"\n") } else { String::new() };
        let text = format!(
            "[node]\nname = \"{name}\"\nrole = \"{role}\"\nlisten = \"{}\"\npeer_listen = \"{}\"\ndata = \"{}\"\n{advertise}[cluster]\njoin = [{join}]\n\
             [timing]\nprofile = \"{}\"\n[machine]\nenabled = false\n[log]\nformat = \"text\"\nlevel = \"{}\"\n{}",
            self.apis[i],
            self.peers[i],
            self.voter_data(i).display(),
            plan.profile,
            plan.log,
            plan.voter_settings,
        );
        let process = self.process(name, &text);
        self.voters.push(process);
    }

    fn add_machine(&mut self, plan: &Plan, i: usize) {
        let name = format!("m{}", i + 1);
        let through_relay = plan.relayed && i == 0;
        let address = |peer: &SocketAddr| if through_relay { SocketAddr::new(RELAYS, peer.port()) } else { *peer };
        let join: Vec<String> = self.peers.iter().map(|peer| format!("\"{}\"", address(peer))).collect();
        let text = format!(
            "[node]\nname = \"{name}\"\nrole = \"member\"\ndata = \"{}\"\n[cluster]\njoin = [{}]\n\
             [timing]\nlease_ttl = \"{}\"\n[machine]\nrun_dir = \"{}\"\n{}\n[log]\nformat = \"text\"\nlevel = \"{}\"\n",
            self.dir.path().join(&name).display(),
            join.join(", "),
            plan.ttl,
            self.run_dir(i).display(),
            plan.machine_settings.get(i).map_or("", String::as_str),
            plan.log,
        );
        let process = self.process(name, &text);
        self.machines.push(process);
    }

    fn process(&self, name: String, text: &str) -> Process {
        let settings = self.dir.path().join(format!("{name}.toml"));
        fs::write(&settings, text).expect("the settings are written");
        Process { name, settings, child: None }
    }

    /// Returns where everything is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the data directory of a voter.
    #[must_use]
    pub fn voter_data(&self, i: usize) -> PathBuf {
        self.voter_data[i].clone()
    }

    /// Returns where a machine keeps a config set.
    #[must_use]
    pub fn set_dir(&self, machine: usize, set: &str) -> PathBuf {
        self.dir.path().join(format!("m{}", machine + 1)).join("agent").join("config").join(set)
    }

    fn run_dir(&self, machine: usize) -> PathBuf {
        self.dir.path().join("run").join(format!("m{}", machine + 1))
    }

    fn spawn(binary: &Path, dir: &Path, process: &mut Process) {
        let log = dir.join("log").join(format!("{}.log", process.name));
        let log = File::options().create(true).append(true).open(log).expect("a log");
        let child = Command::new(binary)
            .args(["agent", "--config"])
            .arg(&process.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        process.child = Some(child);
    }

    /// Starts a voter.
    pub fn start_voter(&mut self, i: usize) {
        Self::spawn(&self.binary, self.dir.path(), &mut self.voters[i]);
    }

    /// Starts a machine's agent.
    pub fn start_machine(&mut self, i: usize) {
        Self::spawn(&self.binary, self.dir.path(), &mut self.machines[i]);
    }

    /// Kills a voter with SIGKILL.
    pub fn kill_voter(&mut self, i: usize) {
        end(&mut self.voters[i]);
    }

    /// Kills a machine's agent with SIGKILL. Its servers live on until their deadline.
    pub fn kill_agent(&mut self, i: usize) {
        end(&mut self.machines[i]);
    }

    /// Kills a machine: its agent and every server on it, at once.
    pub fn kill_machine(&mut self, i: usize) {
        let shims = self.shims(i);
        end(&mut self.machines[i]);
        for shim in shims {
            signal(shim, Signal::KILL);
        }
    }

    /// Returns the process ids of the living shims of a machine.
    #[must_use]
    pub fn shims(&self, machine: usize) -> Vec<u32> {
        leaseward_node::live_shims(&self.run_dir(machine))
    }

    /// Sends a signal to a voter.
    pub fn signal_voter(&self, i: usize, what: Signal) {
        signal(self.voter_pid(i), what);
    }

    /// Sends a signal to a machine's agent.
    pub fn signal_agent(&self, i: usize, what: Signal) {
        signal(self.machines[i].child.as_ref().expect("it runs").id(), what);
    }

    /// Returns the process id of a voter.
    #[must_use]
    pub fn voter_pid(&self, i: usize) -> u32 {
        self.voters[i].child.as_ref().expect("it runs").id()
    }

    /// Returns whether a voter's process lives.
    pub fn voter_lives(&mut self, i: usize) -> bool {
        self.voters[i].child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Returns the settings file of a voter.
    #[must_use]
    pub fn voter_settings(&self, i: usize) -> &Path {
        &self.voters[i].settings
    }

    /// Returns the address of a voter's API.
    #[must_use]
    pub fn api(&self, i: usize) -> SocketAddr {
        self.apis[i]
    }

    /// Returns the address where a voter talks with peers.
    #[must_use]
    pub fn peer(&self, i: usize) -> SocketAddr {
        self.peers[i]
    }

    /// Returns the relays in front of the voters, if the plan wants them.
    #[must_use]
    pub fn relays(&self) -> &[Relay] {
        &self.relays
    }

    /// Returns a client of the framed protocol.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.peers.iter().map(ToString::to_string).collect(), Transport::PlainLoopback)
    }

    /// Asks the API of the first voter that answers. Returns the HTTP status and the body.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        for address in &self.apis {
            let mut request =
                self.http.request(method.clone(), format!("http://{address}{path}")).timeout(Duration::from_secs(12));
            if let Some(body) = body {
                request = request.json(body);
            }
            let Ok(response) = request.send().await else { continue };
            let status = response.status().as_u16();
            let body = response.json().await.unwrap_or(Value::Null);
            if status != 503 {
                return Some((status, body));
            }
        }
        None
    }

    /// Returns an object of the API.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        let (status, body) = self.call(Method::GET, path, None).await?;
        if status == 200 { serde_json::from_value(body).ok() } else { None }
    }

    /// Returns an object as one voter shows it; the others are not asked.
    pub async fn get_at(&self, voter: usize, path: &str) -> Option<Value> {
        let url = format!("http://{}{path}", self.apis[voter]);
        let response = self.http.get(url).timeout(Duration::from_secs(12)).send().await.ok()?;
        if response.status().as_u16() == 200 { response.json().await.ok() } else { None }
    }

    /// Returns all items of a list of one voter, page after page.
    pub async fn list_at(&self, voter: usize, path: &str) -> Option<Vec<Value>> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut page = String::new();
        loop {
            let mut list = self.get_at(voter, &format!("{path}{separator}limit=1000{page}")).await?;
            items.append(list["items"].as_array_mut()?);
            match list["next_page"].as_str() {
                Some(next) => page = format!("&page={next}"),
                None => return Some(items),
            }
        }
    }

    /// Returns the cluster's status.
    pub async fn status(&self) -> Option<Value> {
        self.get("/v1/cluster").await
    }

    /// Returns the voter that leads.
    pub async fn leader(&self) -> usize {
        let name = self.until_some("somebody leads", async |lab| {
            let status = lab.status().await?;
            status["leader"].as_str().map(str::to_owned)
        });
        let name = name.await;
        self.voters.iter().position(|voter| voter.name == name).expect("the leader is one of ours")
    }

    /// Runs the command line against this lab.
    #[must_use]
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    /// Runs the command line, which asks nothing back. Returns its exit code and what it said, on both ways.
    ///
    /// # Panics
    /// If the binary does not start.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let output = self.cli(&[words, &["--yes"]].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs the command line, which must succeed. Returns what it said.
    ///
    /// # Panics
    /// If it does not.
    pub fn works(&self, words: &[&str]) -> String {
        let (code, said, why) = self.run(words);
        assert_eq!(code, Some(0), "{words:?}: {why}");
        said
    }

    /// Returns a command of the command line against this lab, not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.shell()(arguments)
    }

    /// Returns what makes such commands, without the lab.
    pub fn shell(&self) -> impl Fn(&[&str]) -> Command + Send + use<> {
        let addresses = self.apis.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (binary, cache) = (self.binary.clone(), self.dir().join("cache"));
        move |arguments| {
            let mut command = Command::new(&binary);
            // What a publisher remembers is the lab's own.
            command.env("LEASEWARD_ADDR", &addresses).env("XDG_CACHE_HOME", &cache);
            command.args(arguments).stdin(Stdio::null());
            command
        }
    }

    /// Waits until `look` returns `wanted`.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub async fn until<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        look: impl AsyncFn(&Self) -> Option<T>,
        wanted: T,
    ) {
        self.until_some(what, async |lab| look(lab).await.filter(|found| *found == wanted)).await;
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
            if Instant::now() > deadline {
                self.print_logs();
                panic!("never: {what}");
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Prints the logs of all processes.
    pub fn print_logs(&self) {
        print_logs_of(&self.dir.path().join("log"));
    }
}

/// Prints the end of each log in a directory.
pub fn print_logs_of(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        println!("--- {}", entry.path().display());
        for line in &lines[lines.len().saturating_sub(60)..] {
            println!("{line}");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for i in 0..self.machines.len() {
            self.kill_machine(i);
        }
        for voter in &mut self.voters {
            end(voter);
        }
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

fn end(process: &mut Process) {
    if let Some(mut child) = process.child.take() {
        end_child(&mut child);
    }
}

fn end_child(child: &mut Child) {
    child.kill().ok();
    child.wait().ok();
}

/// Sends a signal to a process.
pub fn signal(pid: u32, what: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, what).ok();
    }
}

/// Waits until `holds`, with a bound.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
