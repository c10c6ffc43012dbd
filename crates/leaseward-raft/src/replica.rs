//! A node: everything of this crate put together, and the handle that the rest of the house holds.
//!
//! Must stay true: the consensus core starts only after the peers have said that this data directory did not go back
//! in time (`recall.rs`); a core that is gone takes the process with it, because its metrics would still say that
//! all is well.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use leaseward_state::{Revision, Term};
use openraft::error::{InitializeError, RaftError};
use openraft::{Config, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::autopilot;
use crate::background;
use crate::blobs::Blobs;
use crate::clock::{GrantClock, KernelClock};
use crate::cluster_time::ClusterTime;
use crate::confirm::{Confirmer, Rounds, is_quorum};
use crate::election::{Elections, Heard};
use crate::housekeeping;
use crate::identity::{DataDir, Identity, IdentityError};
use crate::join;
use crate::last_word::{Ballots, LastWord};
use crate::life::Life;
use crate::limits::{APPEND_BYTES_MAX, DISK_WAIT_MIN, ENTRIES_KEPT, FRAME_BYTES_MAX, RECALL_MISSED_AFTER, SILENT_MAX};
use crate::log_store::LogStore;
use crate::machine::Published;
use crate::net::connection::CallError;
use crate::net::links::Links;
use crate::net::listener;
use crate::net::wire::{Answer, Ask, Hello, NodeStatus, PROTOCOL, Purpose};
use crate::network::Network;
use crate::open::{self, Opened};
use crate::proposer::Batcher;
use crate::questions::Questions;
use crate::random;
use crate::recall::Memory;
use crate::reign;
use crate::serve::Server;
use crate::sessions::Sessions;
use crate::settings::Settings;
use crate::snapshot::Snapshots;
use crate::types::{NodeId, NodeInfo, Raft};
use crate::wal::WalError;

/// How a data directory without an identity gets one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It begins a new cluster.
    Bootstrap,
    /// It joins the cluster that one of these addresses belongs to.
    Join {
        /// Peer addresses, `host:port`.
        addresses: Vec<String>,
        /// Whether it takes the place of the node of its name, whose disk is gone.
        replace: bool,
    },
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The operating system refused.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        error: std::io::Error,
    },
    /// The cluster does not let it in.
    #[error("{code}: {why}")]
    Refused {
        /// The stable code.
        code: String,
        /// The reason.
        why: String,
    },
    /// openraft does not start.
    #[error("the consensus core does not start: {0}")]
    Core(String),
}

impl StartError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Identity(error) => error.code(),
            Self::Log(WalError::Newer(_)) => "LW0601",
            Self::Log(WalError::Foreign { .. }) => "LW0603",
            Self::Log(WalError::Io(error)) | Self::Io { error, .. }
                if error.kind() == std::io::ErrorKind::StorageFull =>
            {
                "LW0605"
            }
            Self::Log(WalError::Rotten { .. } | WalError::Hole(_)) => "LW0604",
            Self::Log(WalError::Io(_)) | Self::Io { .. } => "LW0600",
            Self::Refused { code, .. } => code,
            Self::Core(_) => "LW0607",
        }
    }
}

/// A node of a cluster. Clones share it.
#[derive(Clone)]
pub struct Replica {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) identity: Identity,
    pub(crate) instance: u128,
    pub(crate) links: Links,
    pub(crate) memory: Arc<Memory>,
    pub(crate) heard: Arc<Heard>,
    pub(crate) snapshots: Snapshots,
    pub(crate) blobs: OnceLock<Arc<dyn Blobs>>,
    /// The revision up to which the content of config versions is here.
    pub(crate) content_complete: std::sync::atomic::AtomicU64,
    pub(crate) core: OnceLock<Core>,
    pub(crate) quarantined: Mutex<Option<String>>,
    pub(crate) disk_full: AtomicBool,
    pub(crate) sequence: std::sync::atomic::AtomicU64,
    /// What people ask machines that speak with this node.
    pub(crate) questions: Questions,
    published: watch::Receiver<Published>,
    core_started: watch::Sender<bool>,
    /// Everything that runs for this node; it ends with the handle.
    tasks: Mutex<JoinSet<()>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Kept for its lock on the directory.
    data: Mutex<Option<DataDir>>,
}

pub(crate) struct Core {
    pub(crate) raft: Raft,
    pub(crate) log: LogStore,
    pub(crate) confirmer: Confirmer,
    pub(crate) batcher: Batcher,
    pub(crate) sessions: Sessions,
    pub(crate) reign: watch::Receiver<Option<Term>>,
    pub(crate) elections: Elections,
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Replica {
    /// Starts a node. Returns once it listens; it takes part when its peers have said that it may
    /// ([`Replica::ready`]).
    ///
    /// # Errors
    /// [`StartError`], with a stable code.
    pub async fn start(settings: Settings, start: Start) -> Result<Self, StartError> {
        Self::start_with_clock(settings, start, Box::new(KernelClock)).await
    }

    /// As [`Replica::start`], with a clock of the caller's for the sessions' deadlines.
    ///
    /// # Errors
    /// [`StartError`], with a stable code.
    pub async fn start_with_clock(
        settings: Settings,
        start: Start,
        clock: Box<dyn GrantClock>,
    ) -> Result<Self, StartError> {
        let mut data = DataDir::open(&settings.data)?;
        let instance = random::unique();
        let identity = match data.identity() {
            Some(identity) => identity.clone(),
            None => match &start {
                Start::Bootstrap => data.begin(Life::first(random::unique()).id(), 1)?,
                Start::Join { addresses, replace } => {
                    let joined = join::ask(&settings, addresses, *replace, instance).await?;
                    data.claim(joined.cluster, joined.node, Life::of(joined.cluster).generation().0)?
                }
            },
        };
        let bootstrap = data.is_beginning();
        if !data.is_in_place() {
            warn!(dir = %settings.data.display(), "this data directory was copied or moved; asking the peers about it");
        }
        let listener = settings
            .transport
            .listen(settings.listen)
            .await
            .map_err(|error| StartError::Io { what: format!("cannot listen on {}", settings.listen), error })?;
        let snapshots = Snapshots::open(&data.join("snapshots"), identity.cluster)
            .map_err(|error| StartError::Io { what: "cannot open the snapshots".into(), error })?;
        let clock: Arc<dyn GrantClock> = Arc::from(clock);
        let word = LastWord::on(Arc::clone(&clock));
        let (opened, published, keeper) = open::stores(&settings, &data, &identity, &snapshots, word).await?;

        let memory = Memory::open(data.path(), identity.cluster);
        let links = Links::new(settings.transport, identity.cluster, identity.node, instance);
        let (core_started, _) = watch::channel(false);
        let shared = Arc::new(Shared {
            settings,
            identity,
            instance,
            links,
            memory: Arc::new(memory),
            heard: Arc::default(),
            snapshots,
            blobs: OnceLock::new(),
            content_complete: std::sync::atomic::AtomicU64::new(0),
            core: OnceLock::new(),
            quarantined: Mutex::new(None),
            disk_full: AtomicBool::new(false),
            sequence: std::sync::atomic::AtomicU64::new(1),
            questions: Questions::default(),
            published,
            core_started,
            tasks: Mutex::new(JoinSet::new()),
            keeper: Mutex::new(keeper),
            data: Mutex::new(Some(data)),
        });
        let server = Arc::new(Server(Arc::downgrade(&shared)));
        shared.spawn(listener::run(listener, server));
        let replica = Self { shared: Arc::clone(&shared) };
        let weak = Arc::downgrade(&shared);
        shared.spawn(async move {
            let Some(shared) = weak.upgrade() else { return };
            if shared.recall(&opened).await {
                shared.start_core(opened, clock, bootstrap).await;
            } else {
                // Where it came first, its peers would take it for the node, and not the one that it is a copy of.
                shared.links.close().await;
            }
        });
        Ok(replica)
    }

    /// Gives the node the blobs that it serves. Only the first call counts.
    pub fn serve_blobs(&self, blobs: Arc<dyn Blobs>) {
        self.shared.blobs.set(blobs).ok();
    }

    /// Says that the content of every config version up to this revision is in the store of this node: it may vote.
    pub fn has_content_of(&self, revision: Revision) {
        self.shared.content_complete.store(revision.0, Ordering::Relaxed);
    }

    /// Waits until the node takes part in its cluster. Cancel safe. Waits forever on a quarantined node.
    pub async fn ready(&self) {
        let mut started = self.shared.core_started.subscribe();
        started.wait_for(|started| *started).await.ok();
    }

    /// Returns this node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.identity.node
    }

    /// Returns the cluster.
    #[must_use]
    pub fn cluster(&self) -> u128 {
        self.shared.identity.cluster
    }

    /// Returns the state of this node as it goes on. It may be behind the leader's.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<Published> {
        self.shared.published.clone()
    }

    /// Returns the term in which this node leads and has applied everything before it, as it goes on.
    #[must_use]
    pub fn reign(&self) -> Option<watch::Receiver<Option<Term>>> {
        Some(self.shared.core.get()?.reign.clone())
    }

    /// Returns the leader that this node knows of, if any.
    #[must_use]
    pub fn leader(&self) -> Option<(NodeId, NodeInfo)> {
        self.shared.leader()
    }

    /// Returns how long ago this node heard its leader; on the leader, how long ago a quorum last followed it. `None`
    /// if neither ever was so in this run. What this node has heard of may still be on its way into its state.
    #[must_use]
    pub fn heard_leader_ago(&self) -> Option<Duration> {
        let core = self.shared.core.get()?;
        let metrics = core.raft.metrics();
        let metrics = metrics.borrow();
        if metrics.current_leader == Some(self.shared.identity.node) {
            return metrics.millis_since_quorum_ack.map(Duration::from_millis);
        }
        self.shared.heard.ago()
    }

    /// Returns the sessions' timekeeper.
    #[must_use]
    pub fn sessions(&self) -> Option<&Sessions> {
        Some(&self.shared.core.get()?.sessions)
    }

    /// Returns how this node is.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.shared.status()
    }

    /// Returns how long ago each follower was heard, if this node leads: its replication positions.
    #[must_use]
    pub fn replication(&self) -> Vec<(NodeId, Option<u64>)> {
        let Some(core) = self.shared.core.get() else { return Vec::new() };
        let metrics = core.raft.metrics();
        let metrics = metrics.borrow();
        metrics
            .replication
            .as_ref()
            .map(|all| all.iter().map(|(id, at)| (*id, at.as_ref().map(|at| at.index))).collect())
            .unwrap_or_default()
    }

    /// Answers a question as if a client of this node had asked it.
    pub async fn ask_self(&self, ask: Ask) -> Answer {
        let hello = Hello {
            protocol: PROTOCOL,
            cluster: Some(self.shared.identity.cluster),
            node: None,
            instance: self.shared.instance,
            purpose: Purpose::Client,
        };
        Arc::clone(&self.shared).answer(&hello, ask).await
    }

    /// Asks another node of the cluster.
    ///
    /// # Errors
    /// [`CallError`]; the question may have been heard.
    pub async fn ask(&self, node: NodeId, purpose: Purpose, ask: &Ask, within: Duration) -> Result<Answer, CallError> {
        let address = self
            .status()
            .membership
            .nodes
            .get(&node)
            .map(|info| info.peer_address.clone())
            .ok_or_else(|| CallError::Broken(format!("there is no node {node}")))?;
        self.shared.links.call(node, &address, purpose, ask, within).await
    }

    /// Stops the node. What is acknowledged is durable already; this only saves the others a timeout. When it
    /// returns, the data directory may be opened again.
    pub async fn stop(&self) {
        self.shared.tasks.lock().expect("no holder of this lock panics").abort_all();
        let Some(core) = self.shared.core.get() else { return };
        self.shared.memory.as_leader(&core.raft);
        core.raft.shutdown().await.ok();
        let (log, shared) = (core.log.clone(), Arc::clone(&self.shared));
        let close = move || {
            shared.memory.close();
            log.writer().close();
            let keeper = shared.keeper.lock().expect("no holder of this lock panics").take();
            if let Some(keeper) = keeper {
                keeper.join().ok();
            }
            shared.data.lock().expect("no holder of this lock panics").take();
        };
        background::blocking(close).await.ok();
    }
}

impl Shared {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().expect("no holder of this lock panics").spawn(task);
    }

    pub(crate) fn info(&self) -> NodeInfo {
        NodeInfo {
            name: self.settings.name.clone(),
            peer_address: self.settings.advertise.clone(),
            api_address: self.settings.api_address.clone(),
            standing: self.settings.standing,
            replaces: None,
        }
    }

    /// Asks the peers what they remember. Returns false if this node must take no part.
    async fn recall(&self, opened: &Opened) -> bool {
        let me = self.identity.node;
        let others: BTreeSet<NodeId> =
            opened.membership.voters.iter().flatten().copied().filter(|id| *id != me).collect();
        let last_index = opened.log.last().map_or(0, |last| last.index);
        let mut answered = BTreeSet::from([me]);
        let is_voter = opened.membership.voters.iter().flatten().any(|id| *id == me);
        // Somebody does not know yet whether another process is this node: its word is waited for.
        let mut unclear: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let (begun, mut said) = (Instant::now(), false);
        loop {
            let enough = if is_voter {
                is_quorum(&opened.membership, &answered)
            } else {
                others.is_empty() || answered.len() > 1
            };
            unclear.retain(|_, said| said.elapsed() < SILENT_MAX);
            if enough && unclear.is_empty() {
                return true;
            }
            if begun.elapsed() >= RECALL_MISSED_AFTER && !std::mem::replace(&mut said, true) {
                let missed: Vec<_> = others.difference(&answered).collect();
                warn!(
                    ?missed,
                    "waits for voters that it knows: it votes once a majority of them has said what they remember of it. \
                     If they were replaced for good meanwhile, start it with an empty data directory and `--replace`"
                );
            }
            for id in &others {
                let Some(node) = opened.membership.nodes.get(id) else { continue };
                let ask = Ask::Recall { node: me, last_index };
                let within = Duration::from_millis(300);
                match self.links.call(*id, &node.peer_address, Purpose::Control, &ask, within).await {
                    Ok(Answer::Recalled { acknowledged }) => {
                        if let Some(acknowledged) = acknowledged.filter(|index| *index > last_index) {
                            self.quarantine(format!(
                                "node {me} acknowledged entry {acknowledged}, and its log ends at {last_index}: this \
                                 data directory was restored from a backup, copied, or lost writes"
                            ));
                            return false;
                        }
                        answered.insert(*id);
                        unclear.remove(id);
                    }
                    Err(CallError::Refused { code, why }) if code == "LW0603" || code == "LW0602" => {
                        self.quarantine(why);
                        return false;
                    }
                    Err(CallError::Refused { code, .. }) if code == "LW0613" => {
                        unclear.insert(*id, Instant::now());
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            if !unclear.is_empty() || answered.len() == 1 {
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn quarantine(&self, why: String) {
        error!(
            why,
            "LW0603: this node takes no part. Move its data directory away and start it again with \
             `--replace`: it joins under a new id and copies everything from the others"
        );
        *self.quarantined.lock().expect("no holder of this lock panics") = Some(why);
    }

    /// Returns why this node is kept out of its cluster, if it is.
    pub(crate) fn quarantined(&self) -> Option<String> {
        self.quarantined.lock().expect("no holder of this lock panics").clone()
    }

    async fn start_core(self: Arc<Self>, opened: Opened, clock: Arc<dyn GrantClock>, bootstrap: bool) {
        let Opened { log, machine, .. } = opened;
        let heartbeat = self.settings.timing.heartbeat.as_millis() as u64;
        let config = Config {
            cluster_name: "leaseward".into(),
            heartbeat_interval: heartbeat,
            // Our own elections decide when to campaign (election.rs). For the core these two only say how long a
            // follower protects its leader: as long as a heartbeat takes.
            election_timeout_min: heartbeat + 1,
            election_timeout_max: heartbeat + 2,
            enable_elect: false,
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            install_snapshot_timeout: 60_000,
            max_payload_entries: 1_024,
            ..Config::default()
        };
        const { assert!(APPEND_BYTES_MAX < FRAME_BYTES_MAX, "an append fits a frame") };
        let config = match config.validate() {
            Ok(config) => Arc::new(config),
            Err(error) => return (self.settings.fatal)(&format!("openraft refuses its configuration: {error}")),
        };
        let ballots = Ballots::of(log.word().clone());
        let network = Network { links: self.links.clone(), ballots: ballots.clone() };
        let raft = match Raft::new(self.identity.node, config, network, log.clone(), machine).await {
            Ok(raft) => raft,
            Err(error) => return (self.settings.fatal)(&format!("the consensus core does not start: {error}")),
        };
        if bootstrap {
            let members = BTreeMap::from([(self.identity.node, self.info())]);
            match raft.initialize(members).await {
                Ok(()) => {}
                // It has begun, and its process ended before that was said.
                Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return (self.settings.fatal)(&format!("the cluster cannot begin: {error}")),
            }
        }
        let confirmer = Confirmer::start(Rounds {
            node: self.identity.node,
            raft: raft.clone(),
            log: log.clone(),
            patience: self.settings.timing.election_max.max(DISK_WAIT_MIN),
            links: self.links.clone(),
            memory: Arc::clone(&self.memory),
        });
        let (reign_sender, reign) = watch::channel(None);
        let batcher = Batcher::start(raft.clone(), ClusterTime::new(self.published.clone()));
        let elections = Elections {
            node: self.identity.node,
            raft: raft.clone(),
            log: log.clone(),
            links: self.links.clone(),
            heard: Arc::clone(&self.heard),
            timing: self.settings.timing,
            started: Instant::now(),
        };
        let replica = Replica { shared: Arc::clone(&self) };
        let (published, reigns) = (self.published.clone(), reign.clone());
        let sessions =
            Sessions::start(Box::new(clock), confirmer.clone(), ballots, published, reigns, replica.internal());
        if bootstrap {
            self.spawn(Self::begins(Arc::downgrade(&self), reign.clone()));
        }
        self.spawn(reign::follow(raft.clone(), reign_sender));
        self.spawn(elections.clone().run());
        self.spawn(autopilot::run(Arc::downgrade(&self)));
        self.spawn(housekeeping::watchdog(raft.clone(), self.settings.fatal.clone()));
        let core =
            Core { raft, log, confirmer, batcher, sessions, reign, elections, changing: tokio::sync::Mutex::new(()) };
        if self.core.set(core).is_err() {
            return;
        }
        self.core_started.send_replace(true);
        info!(node = self.identity.node, "takes part");
        let weak = Arc::downgrade(&self);
        drop(self);
        housekeeping::run(weak).await;
    }

    /// Waits until this node leads the cluster that begins with it: its first entries are durable.
    async fn begins(shared: Weak<Self>, mut reign: watch::Receiver<Option<Term>>) {
        if reign.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let Some(shared) = shared.upgrade() else { return };
        let said =
            shared.data.lock().expect("no holder of this lock panics").as_ref().map_or(Ok(()), DataDir::has_begun);
        if let Err(error) = said {
            warn!(%error, "the cluster has begun, and it cannot be said in the data directory");
        }
    }

    pub(crate) fn status(&self) -> NodeStatus {
        let published = self.published.borrow();
        let mut status = NodeStatus {
            node: self.identity.node,
            name: self.settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            term: 0,
            leader: None,
            last_index: 0,
            applied_index: published.applied.position.map_or(0, |position| position.index),
            revision: published.state.revision(),
            snapshot_index: 0,
            quarantined: self.quarantined(),
            membership: published.applied.membership.membership.clone(),
            log_syncs: 0,
            feature_level: self.settings.feature_level,
            content_complete: match self.blobs.get() {
                Some(_) => Revision(self.content_complete.load(Ordering::Relaxed)),
                // Whoever keeps no content lacks none.
                None => published.state.revision(),
            },
        };
        if let Some(core) = self.core.get() {
            let metrics = core.raft.metrics();
            let metrics = metrics.borrow();
            status.term = metrics.current_term;
            status.leader = metrics.current_leader;
            status.last_index = metrics.last_log_index.unwrap_or_default();
            status.snapshot_index = metrics.snapshot.map_or(0, |at| at.index);
            status.membership = metrics.membership_config.membership().into();
            status.log_syncs = core.log.writer().stats().syncs.load(Ordering::Relaxed);
        }
        status
    }

    pub(crate) fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }
}
