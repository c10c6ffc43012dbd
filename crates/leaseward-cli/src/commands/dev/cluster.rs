//! The processes of `leaseward dev`: settings files, agents, and their end.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use leaseward_http::model::{ClusterStatus, MachineList, ServerList};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::program;
use crate::api::Api;
use crate::diagnostic::Diagnostic;
use crate::route::Route;
use crate::target::Target;

/// The cluster must be up within this.
const UP_WITHIN: Duration = Duration::from_secs(30);

/// Longest directory of sockets, in bytes: with the machine's and the server's names it must fit a socket's address.
const RUN_DIR_BYTES_MAX: usize = 60;

/// One process.
struct Process {
    name: String,
    settings: PathBuf,
    child: Option<Child>,
}

/// A cluster of processes on this machine.
pub(super) struct DevCluster {
    dir: PathBuf,
    voters: Vec<Process>,
    machines: Vec<Process>,
    apis: Vec<String>,
    server_address: SocketAddr,
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new("LW0600", format!("{what}: {error}"))
}

/// Returns ports that nobody listens on now: from the first one on, or any.
fn ports(first: u16, count: usize) -> Result<Vec<u16>, Diagnostic> {
    if first != 0 {
        return Ok((first..).take(count).collect());
    }
    // All are held until all are found, so that none is found twice.
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<std::io::Result<_>>()
        .map_err(|error| failed("no free ports", error))?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()).map_err(|error| failed("a port", error)))
        .collect()
}

impl DevCluster {
    /// Writes the settings of every process.
    pub(super) fn new(dir: PathBuf, count: usize, first_port: u16) -> Result<Self, Diagnostic> {
        if count == 0 || count > 9 {
            return Err(Diagnostic::new("LW0104", "--nodes takes 1 to 9"));
        }
        fs::create_dir_all(dir.join("log")).map_err(|error| failed(dir.display(), error))?;
        let dir = dir.canonicalize().map_err(|error| failed(dir.display(), error))?;
        let ports = ports(first_port, count * 2 + 1)?;
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let peers: Vec<SocketAddr> = (0..count).map(|i| local(ports[i * 2 + 1])).collect();
        let mut cluster = Self {
            voters: Vec::new(),
            machines: Vec::new(),
            apis: (0..count).map(|i| local(ports[i * 2]).to_string()).collect(),
            server_address: SocketAddr::from((Ipv4Addr::new(127, 0, 77, 1), ports[count * 2])),
            dir,
        };
        for i in 0..count {
            let name = format!("n{}", i + 1);
            let join = if i == 0 { String::new() } else { format!("\"{}\"", peers[0]) };
            let text = format!(
                "[node]\nname = \"{name}\"\nrole = \"voter\"\nlisten = \"{}\"\npeer_listen = \"{}\"\ndata = \"{}\"\n\
                 [cluster]\njoin = [{join}]\n[machine]\nenabled = false\n[log]\nformat = \"text\"\n",
                cluster.apis[i],
                peers[i],
                cluster.dir.join(&name).display(),
            );
            let process = cluster.process(name, &text)?;
            cluster.voters.push(process);
        }
        let all: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
        for i in 0..count {
            let name = format!("m{}", i + 1);
            let text = format!(
                "[node]\nname = \"{name}\"\nrole = \"member\"\nlisten = \"127.0.0.1:0\"\ndata = \"{}\"\n\
                 [cluster]\njoin = [{}]\n[machine]\nrun_dir = \"{}\"\n[log]\nformat = \"text\"\n",
                cluster.dir.join(&name).display(),
                all.join(", "),
                cluster.run_dir(&name).display(),
            );
            let process = cluster.process(name, &text)?;
            cluster.machines.push(process);
        }
        Ok(cluster)
    }

    fn process(&self, name: String, text: &str) -> Result<Process, Diagnostic> {
        let settings = self.dir.join(format!("{name}.toml"));
        fs::write(&settings, text).map_err(|error| failed(settings.display(), error))?;
        Ok(Process { name, settings, child: None })
    }

    /// Starts everything and waits until it is one cluster.
    pub(super) async fn start(&mut self, began: Instant) -> Result<(), Diagnostic> {
        for process in self.voters.iter_mut().chain(&mut self.machines) {
            process.start(&self.dir)?;
        }
        let count = self.voters.len();
        let api = self.api();
        let deadline = Instant::now() + UP_WITHIN;
        let status = loop {
            match api.get::<ClusterStatus>("/v1/cluster").await {
                Ok(status) if status.voters.len() == count && status.leader.is_some() => break status,
                _ if Instant::now() > deadline => return Err(self.not_up()),
                _ => sleep(Duration::from_millis(20)).await,
            }
        };
        let leader = status.leader.unwrap_or_default();
        show!(
            "✓ {count} voters, leader {leader}, term {}                                    {:.1} s",
            status.term,
            began.elapsed().as_secs_f64()
        );
        loop {
            let machines = api.list::<MachineList>("/v1/machines").await;
            match machines {
                Ok(machines) if machines.items.iter().filter(|machine| machine.connected).count() == count => {
                    let fence =
                        machines.items.first().map(|machine| format!("{:?}", machine.fence)).unwrap_or_default();
                    show!(
                        "✓ {count} machines ({}), fence level {fence}                       {:.1} s",
                        machines.items.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>().join(" "),
                        began.elapsed().as_secs_f64()
                    );
                    return Ok(());
                }
                _ if Instant::now() > deadline => return Err(self.not_up()),
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn not_up(&self) -> Diagnostic {
        Diagnostic::new("LW0501", format!("the cluster was not up within {UP_WITHIN:?}"))
            .hint(format!("look into {}", self.dir.join("log").display()))
    }

    /// Returns a client of the API.
    pub(super) fn api(&self) -> Api {
        Api::new(&Target { api: self.apis.clone(), token: None, timeout: Duration::from_secs(10) })
    }

    /// Returns the addresses of the APIs.
    pub(super) fn apis(&self) -> Vec<String> {
        self.apis.clone()
    }

    /// Returns where the demo's server answers, wherever it runs.
    pub(super) fn server_address(&self) -> SocketAddr {
        self.server_address
    }

    /// Returns where everything is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns where a machine's config sets are; `{machine}` stands for its name.
    pub(super) fn sets_of(&self, machine: &str) -> PathBuf {
        self.dir.join(machine).join("agent").join("config")
    }

    fn run_dir(&self, machine: &str) -> PathBuf {
        // Sockets have short names, whatever the directory's own.
        let base = self.dir.join("run");
        let base = if base.as_os_str().len() > RUN_DIR_BYTES_MAX {
            std::env::temp_dir().join(format!("leaseward-run-{}", std::process::id()))
        } else {
            base
        };
        base.join(machine)
    }

    /// Kills a machine: its agent and everything that runs on it, at once.
    pub(super) fn kill_machine(&mut self, machine: &str) -> Result<(), Diagnostic> {
        let shims = leaseward_node::live_shims(&self.run_dir(machine));
        let process = self.machines.iter_mut().find(|process| process.name == machine);
        let process = process.ok_or_else(|| Diagnostic::new("LW0404", format!("there is no machine {machine}")))?;
        process.kill();
        for shim in shims {
            if let Some(pid) = i32::try_from(shim).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        Ok(())
    }

    /// Starts a machine's agent again.
    pub(super) fn start_machine(&mut self, machine: &str) -> Result<(), Diagnostic> {
        let dir = self.dir.clone();
        match self.machines.iter_mut().find(|process| process.name == machine) {
            Some(process) => process.start(&dir),
            None => Err(Diagnostic::new("LW0404", format!("there is no machine {machine}"))),
        }
    }

    /// Stops the servers, then everything else.
    pub(super) async fn stop(&mut self) {
        let api = self.api();
        let all = tokio::time::timeout(Duration::from_secs(2), api.list::<ServerList>("/v1/servers")).await;
        if let Ok(Ok(servers)) = all {
            for server in servers.items {
                if let Ok(route) = Route::server(&server.name) {
                    api.call::<Value>(Method::POST, route.then("stop"), None::<&()>).await.ok();
                }
            }
        }
        let machines: Vec<String> = self.machines.iter().map(|process| process.name.clone()).collect();
        let deadline = Instant::now() + Duration::from_secs(3);
        let living = |cluster: &Self| {
            machines.iter().any(|machine| !leaseward_node::live_shims(&cluster.run_dir(machine)).is_empty())
        };
        while living(self) && Instant::now() < deadline {
            sleep(Duration::from_millis(20)).await;
        }
        for machine in machines {
            self.kill_machine(&machine).ok();
        }
        for voter in &mut self.voters {
            voter.kill();
        }
    }

    /// Removes everything that was stored.
    pub(super) fn remove(&self) {
        fs::remove_dir_all(&self.dir).ok();
        fs::remove_dir_all(self.run_dir("")).ok();
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        for process in self.voters.iter_mut().chain(&mut self.machines) {
            process.kill();
        }
    }
}

impl Process {
    fn start(&mut self, dir: &Path) -> Result<(), Diagnostic> {
        let log = dir.join("log").join(format!("{}.log", self.name));
        let log = File::options().create(true).append(true).open(&log).map_err(|error| failed(log.display(), error))?;
        let child = Command::new(program())
            .args(["agent", "--die-with-parent", "--config"])
            .arg(&self.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| failed("cannot start an agent", error))?;
        self.child = Some(child);
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
