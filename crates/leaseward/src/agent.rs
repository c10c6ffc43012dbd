//! The agent of a machine: its session, its servers, its config sets.
//!
//! Must stay true: a server runs only under a renewal that a quorum confirmed for exactly its token; the shim, not the
//! agent, is what ends it in time. An agent that is started again in the same boot goes on with its session and adopts
//! the shims that live; otherwise it proves that nothing of an earlier run lives before it opens a new session.
//!
//! `serving.rs` is what it does while it has a session.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_node::{Adopted, NodeConfig, NodeEvent, StopMode, Supervisor, Watchdog, boot_id, fence};
use leaseward_raft::net::wire::Renewed;
use leaseward_state::command::{OpenMachine, ServerReport};
use leaseward_state::machine::MachineProfile;
use leaseward_state::server::{Certificate, FenceLevel};
use leaseward_state::session::Incarnation;
use leaseward_state::{Command, MachineName, Revision, ServerName, SessionId, SetName};
use leaseward_sync::member::{Member, MemberConfig, Wanted};
use leaseward_sync::secret::Keys;
use leaseward_sync::{BlobStore, Facts};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::Client;
use crate::clock::Moment;
use crate::error::{Error, Result};
use crate::keeper::Keeper;
use crate::limits::{REPORTS_WAITING_MAX, TTL};
use crate::opening;
use crate::questions;
use crate::readiness::Readiness;
use crate::resume::{self, Memory};
use crate::serving::{Ended, Serving};
use crate::source::FromVoters;

/// How long an agent waits for the proof that its servers are dead before it opens a new session without it.
const SWEEP_WITHIN: Duration = Duration::from_secs(10);

/// How an agent runs.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The machine.
    pub machine: MachineName,
    /// What the agent remembers.
    pub data: PathBuf,
    /// Sockets and proofs of running servers; best on a tmpfs. At most 78 bytes long.
    pub run_dir: PathBuf,
    /// Output of servers.
    pub log_dir: PathBuf,
    /// Where config sets live unless `targets` says otherwise.
    pub config_dir: PathBuf,
    /// Where single config sets live.
    pub targets: BTreeMap<SetName, PathBuf>,
    /// The program of the shim.
    pub shim_exe: PathBuf,
    /// Its first arguments.
    pub shim_arguments: Vec<OsString>,
    /// Whether shims may use real-time priority, where they are permitted to.
    pub real_time: bool,
    /// The session's time to live: after the machine's death its servers wait this long, and a grace.
    pub ttl: Duration,
    /// Free words for placement.
    pub labels: BTreeMap<String, String>,
    /// The weight of the servers that the machine can run; `None`: any.
    pub capacity: Option<u32>,
    /// Servers that it may start at the same time; 0: any.
    pub start_slots: u32,
    /// Whether the network fence is used: the kernel stops the packets of addresses whose time is over (level F3).
    pub network_fence: bool,
    /// A device that resets the machine when it is not petted (level F4), and its time-out.
    pub watchdog: Option<(PathBuf, Duration)>,
    /// Interfaces of floating addresses by subnet, such as `10.0.0.0/24`; others are found by their own subnets.
    pub interfaces: BTreeMap<String, String>,
    /// Where people reach the machine.
    pub address: String,
    /// The keys of encrypted config sets that this machine holds.
    pub keys: Keys,
    /// What load balancers are told.
    pub readiness: Arc<Readiness>,
    /// What the voter of this process holds, if there is one: what is there is not fetched.
    pub blobs: Option<Arc<BlobStore>>,
}

impl AgentConfig {
    /// Returns the settings of a machine whose agent keeps everything under `data`.
    #[must_use]
    pub fn new(machine: MachineName, data: impl Into<PathBuf>, shim_exe: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            machine,
            run_dir: data.join("run"),
            log_dir: data.join("log"),
            config_dir: data.join("config"),
            data,
            targets: BTreeMap::new(),
            shim_exe: shim_exe.into(),
            shim_arguments: vec!["shim".into()],
            real_time: true,
            ttl: TTL,
            labels: BTreeMap::new(),
            capacity: None,
            start_slots: start_slots(),
            network_fence: false,
            watchdog: None,
            interfaces: BTreeMap::new(),
            address: String::new(),
            keys: Keys::default(),
            readiness: Readiness::new(Vec::new(), false),
            blobs: None,
        }
    }
}

/// Returns the level with what an operator set up beside the shims.
fn with_more(level: FenceLevel, network_fence: bool, watchdog: bool) -> FenceLevel {
    match (level, network_fence, watchdog) {
        (FenceLevel::F2, true, true) => FenceLevel::F4,
        (FenceLevel::F2, true, false) => FenceLevel::F3,
        (level, ..) => level,
    }
}

/// A machine that can run many servers cannot start all of them at once (M25): as many as it has processors, and two at
/// least.
fn start_slots() -> u32 {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    u32::try_from(processors).unwrap_or(u32::MAX).max(2)
}

/// An agent.
pub struct Agent {
    config: AgentConfig,
    client: Client,
    boot_id: String,
    /// Which run directory this is: one that was wiped is another one, and what it knew of servers is gone with it.
    run_mark: String,
    supervisor: Supervisor,
    events: mpsc::Receiver<NodeEvent>,
    profile: MachineProfile,
}

impl Agent {
    /// Opens the machine: adopts the servers that live, and finds out how surely it can stop them.
    ///
    /// # Errors
    /// [`Error::Start`], with a stable code.
    pub async fn open(config: AgentConfig, client: Client) -> Result<(Self, Vec<Adopted>)> {
        let failed = |code: &str, why: String| Error::Start { code: code.to_owned(), why };
        for dir in [&config.data, &config.run_dir, &config.log_dir, &config.config_dir] {
            fs::create_dir_all(dir).map_err(|error| failed("LW0600", format!("{}: {error}", dir.display())))?;
        }
        client.known().remember_in(config.data.join("cluster")).map_err(|error| failed("LW0600", error.to_string()))?;
        let boot_id = boot_id().map_err(|error| failed("LW0600", error.to_string()))?;
        let node = NodeConfig {
            run_dir: config.run_dir.clone(),
            log_dir: config.log_dir.clone(),
            shim_exe: config.shim_exe.clone(),
            shim_arguments: config.shim_arguments.clone(),
            machine: config.machine.clone(),
            real_time: config.real_time,
            interfaces: config.interfaces.clone(),
        };
        let watchdog = match &config.watchdog {
            None => None,
            Some((path, timeout)) => Some(
                Watchdog::open(path, *timeout)
                    .map_err(|error| failed("LW0343", format!("the watchdog {}: {error}", path.display())))?,
            ),
        };
        let watchdog_ms = watchdog.as_ref().and_then(|dog| u64::try_from(dog.timeout().as_millis()).ok());
        let (supervisor, adopted, events) =
            Supervisor::open_with(node, watchdog).await.map_err(|error| failed(error.code(), error.to_string()))?;
        let run_mark = resume::mark(&config.run_dir).map_err(|error| failed("LW0600", error.to_string()))?;
        let (real_time, network_fence) = (config.real_time, config.network_fence);
        let level = tokio::task::spawn_blocking(move || fence::level(real_time)).await.unwrap_or_default();
        if network_fence {
            leaseward_node::address::check_network_fence()
                .await
                .map_err(|error| failed(error.code(), error.to_string()))?;
        }
        let level = with_more(level, network_fence, watchdog_ms.is_some());
        let profile = MachineProfile {
            labels: config.labels.clone(),
            fence: level,
            address: config.address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            capacity: config.capacity,
            start_slots: config.start_slots,
            watchdog_ms,
        };
        info!(machine = %config.machine, fence = %profile.fence, adopted = adopted.len(), "agent is open");
        Ok((Self { config, client, boot_id, run_mark, supervisor, events, profile }, adopted))
    }

    /// Runs until `stop` is cancelled. Servers go on then, until their deadlines: the next agent adopts them.
    pub async fn run(mut self, mut adopted: Vec<Adopted>, stop: CancellationToken) {
        let (reports, report_queue) = mpsc::channel(REPORTS_WAITING_MAX);
        let reporter = tokio::spawn(report(self.client.clone(), report_queue));
        let (wanted, wanted_sets) = watch::channel(Wanted::new());
        let (sync_reports, mut synced) = mpsc::channel(64);
        let mut sync_config = MemberConfig::new(&self.config.config_dir, self.config.data.join("sync"));
        sync_config.targets = self.config.targets.clone();
        let (machine, log_dir) = (self.config.machine.clone(), self.config.log_dir.clone());
        let answering = tokio::spawn(questions::answer(self.client.another(), machine, log_dir, sync_config.clone()));
        let source = Arc::new(FromVoters::of(&self.client).beside(self.config.blobs.clone()));
        sync_config.facts = Facts { machine: self.config.machine.to_string(), labels: self.config.labels.clone() };
        sync_config.keys = self.config.keys.clone();
        let gate = Arc::clone(&self.config.readiness);
        let member = Member::spawn(sync_config, wanted_sets, source, gate, sync_reports);
        let mut told = BTreeMap::new();
        loop {
            let session = tokio::select! {
                session = self.session(&mut adopted, &reports) => session,
                () = stop.cancelled() => break,
            };
            let serving = Serving {
                config: &self.config,
                client: &self.client,
                supervisor: &self.supervisor,
                events: &mut self.events,
                reports: &reports,
                wanted: &wanted,
                synced: &mut synced,
                told: &mut told,
                keeper: session,
            };
            match serving.run(&adopted, &stop).await {
                Ended::Stopped => break,
                Ended::SessionOver => {
                    warn!(machine = %self.config.machine, "the session is over: every server here is stopped");
                    adopted = Vec::new();
                }
            }
        }
        member.stop().await;
        reporter.abort();
        answering.abort();
    }

    fn memory_path(&self) -> PathBuf {
        self.config.data.join("session.json")
    }

    /// Returns the session of this machine: the one of an earlier run in this boot, or a new one.
    async fn session(&self, adopted: &mut Vec<Adopted>, reports: &mpsc::Sender<Command>) -> Keeper {
        let memory = Memory::load(&self.memory_path(), &self.boot_id)
            .filter(|memory| memory.is_of(&self.config.run_dir, &self.run_mark));
        if let Some(memory) = &memory
            && memory.ttl_ms == self.config.ttl.as_millis() as u64
            && let Some(keeper) = self.resume(memory.session()).await
        {
            info!(machine = %self.config.machine, session = %keeper.session(), servers = adopted.len(), "session goes on");
            return keeper;
        }
        let certificates = self.sweep(adopted).await;
        // Without a memory of this boot there may be servers that we cannot find: their proofs may be gone with it.
        let swept = certificates.is_some() && memory.as_ref().is_some_and(Memory::had_session);
        let incarnation = self.incarnation(memory.as_ref());
        let open = OpenMachine {
            machine: self.config.machine.clone(),
            incarnation: incarnation.clone(),
            profile: self.profile.clone(),
            swept,
            ttl_ms: self.config.ttl.as_millis() as u64,
        };
        let (session, sent) = opening::open(&self.client, open).await;
        if let Err(error) = self.remember(session, &incarnation) {
            warn!(%error, "cannot remember the session; a restart of the agent will end it");
        }
        for (server, certificate) in certificates.into_iter().flatten() {
            let token = certificate.token;
            let report = ServerReport::Dead { certificate, failure: None };
            reports.send(Command::ReportServer { server, token, report }).await.ok();
        }
        info!(machine = %self.config.machine, %session, swept, "session opened");
        Keeper::start(self.client.clone(), session, self.config.ttl, sent)
    }

    async fn resume(&self, session: SessionId) -> Option<Keeper> {
        loop {
            let sent = Moment::now();
            let renewal = leaseward_raft::net::wire::Renewal { session, known: Revision(0) };
            match self.client.renew(vec![renewal], Duration::from_secs(1)).await {
                Ok(Some(answers)) => {
                    return match answers.first() {
                        Some(Renewed::Alive { .. }) => {
                            Some(Keeper::start(self.client.clone(), session, self.config.ttl, sent))
                        }
                        _ => None,
                    };
                }
                Ok(None) | Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Returns how this run calls itself, which is on disk first: if it dies before it hears of its session, the next run follows
    /// it all the same.
    fn incarnation(&self, memory: Option<&Memory>) -> Incarnation {
        let mut incarnation = Incarnation { boot_id: self.boot_id.clone(), instance: Memory::next_instance(memory) };
        let before = memory.map_or(SessionId(0), Memory::session);
        if let Err(error) = self.remember(before, &incarnation) {
            warn!(%error, "cannot remember who asks for a session: it is had once the one before it is over");
            // The next run would give itself the same name.
            incarnation.instance = Memory::next_instance(None);
        }
        incarnation
    }

    fn remember(&self, session: SessionId, incarnation: &Incarnation) -> io::Result<()> {
        let memory = Memory {
            session: session.0,
            boot_id: incarnation.boot_id.clone(),
            instance: format!("{:032x}", incarnation.instance),
            ttl_ms: self.config.ttl.as_millis() as u64,
            run_dir: self.config.run_dir.clone(),
            run_mark: Some(self.run_mark.clone()),
        };
        memory.save(&self.memory_path())
    }

    /// Ends every server of an earlier run. Returns the proofs, or `None` if one did not come in time.
    async fn sweep(&self, adopted: &mut Vec<Adopted>) -> Option<Vec<(ServerName, Certificate)>> {
        adopted.clear();
        let living = self.supervisor.status().await.ok()?;
        let mut proofs = Vec::new();
        for server in living {
            let stop = self.supervisor.stop(&server.server, server.token, StopMode::Force);
            match timeout(SWEEP_WITHIN, stop).await {
                Ok(Ok(certificate)) => proofs.push((server.server, certificate)),
                Ok(Err(leaseward_node::Error::NotHere { .. })) => {}
                Ok(Err(error)) => {
                    warn!(server = %server.server, %error, "its death is not proven");
                    return None;
                }
                Err(_) => {
                    warn!(server = %server.server, "its death is not proven in time");
                    return None;
                }
            }
        }
        Some(proofs)
    }
}

/// Sends reports in order, each until it has an answer.
pub(crate) async fn report(client: Client, mut queue: mpsc::Receiver<Command>) {
    while let Some(command) = queue.recv().await {
        loop {
            match client.write(command.clone()).await {
                Ok(_) => break,
                Err(Error::Refused(refusal)) => {
                    debug!(command = command.name(), %refusal, "a report came too late");
                    break;
                }
                Err(error) if error.is_retryable() => warn!(%error, "a report is not delivered yet"),
                Err(error) => {
                    warn!(%error, "a report is not accepted");
                    break;
                }
            }
        }
    }
}
