//! A voter: a replica, its content store, and the master that runs while it leads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use leaseward_failover::manager::NodeManager;
use leaseward_failover::master::{self, ReignClock};
use leaseward_raft::clock::{GrantClock, KernelClock, Reading};
use leaseward_raft::{Replica, Settings, Start};
use leaseward_state::order::Order;
use leaseward_state::server::{Placement, ServerStatus};
use leaseward_state::{MachineName, State, UnixMillis};
use leaseward_sync::BlobStore;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use crate::content::QuorumContent;
use crate::error::{Error, Result};
use crate::limits::PROMISED_FOR;
use crate::{adopt, fence_hook, rollouts};

/// A voter of a cluster.
pub struct Voter {
    replica: Replica,
    content: QuorumContent,
    /// Ends with the voter.
    _tasks: JoinSet<()>,
}

impl Voter {
    /// Starts a voter. Returns once it listens ([`Replica::ready`] says when it takes part).
    ///
    /// # Errors
    /// [`Error::Start`], with a stable code.
    pub async fn start(settings: Settings, start: Start) -> Result<Self> {
        Self::start_keeping(settings, start, PROMISED_FOR).await
    }

    /// As [`Voter::start`]; content that no version names stays for `content_kept` (and less than twice as long). A
    /// publication that takes longer may have to send again what it sent first.
    ///
    /// # Errors
    /// [`Error::Start`], with a stable code.
    pub async fn start_keeping(settings: Settings, start: Start, content_kept: Duration) -> Result<Self> {
        let store = open_store(&settings.data.join("blobs"))?;
        let settings_data = settings.data.clone();
        let replica = Replica::start(settings, start)
            .await
            .map_err(|error| Error::Start { code: error.code().to_owned(), why: error.to_string() })?;
        let fences = settings_data.join("fence");
        std::fs::create_dir_all(&fences).map_err(|error| Error::Start {
            code: "LW0600".to_owned(),
            why: format!("{}: {error}", fences.display()),
        })?;
        let content = QuorumContent::new(replica.clone(), store).keeping(content_kept);
        replica.serve_blobs(Arc::new(content.local()));
        let mut tasks = JoinSet::new();
        tasks.spawn(content.clone().catch_up());
        tasks.spawn(run_master(replica.clone(), content.clone(), fences));
        Ok(Self { replica, content, _tasks: tasks })
    }

    /// Returns the replica.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Returns the content seen from this voter.
    #[must_use]
    pub fn content(&self) -> &QuorumContent {
        &self.content
    }

    /// Stops the voter. What is acknowledged is durable already.
    pub async fn stop(&self) {
        self.replica.stop().await;
    }
}

fn open_store(dir: &Path) -> Result<Arc<BlobStore>> {
    let opened = BlobStore::open(dir);
    opened.map(Arc::new).map_err(|error| Error::Start { code: error.code().to_owned(), why: error.to_string() })
}

async fn run_master(replica: Replica, content: QuorumContent, fences: PathBuf) {
    replica.ready().await;
    let Some(reign) = replica.reign() else { return };
    let mut published = replica.published();
    let (publish, states) = watch::channel(Arc::clone(&published.borrow_and_update().state));
    let managers = Agents { states: states.clone() };
    let follow = async move {
        while published.changed().await.is_ok() {
            publish.send_replace(Arc::clone(&published.borrow_and_update().state));
        }
    };
    let clock = MasterClock { start: KernelClock.now() };
    tokio::select! {
        () = follow => {}
        () = fence_hook::run(replica.internal(), states.clone(), reign.clone(), replica.status().name, fences) => {}
        () = adopt::run(replica.clone(), content, states.clone(), reign.clone()) => {}
        () = rollouts::run(replica.internal(), states.clone(), reign.clone()) => {}
        () = master::run(replica.internal(), states, reign, managers, clock) => {}
    }
}

/// The master's clock: as slow as the leader's (rule R3), so that no grace is cut short.
struct MasterClock {
    start: Reading,
}

impl ReignClock for MasterClock {
    fn now(&self) -> Duration {
        KernelClock.now().since(self.start)
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(leaseward_raft::clock::wall_millis())
    }
}

/// Our agents as node managers. An agent finds the order in its view of the state, which any voter sends it the
/// moment it is committed; here it is watched whether the order is taken.
struct Agents {
    states: watch::Receiver<Arc<State>>,
}

impl NodeManager for Agents {
    fn order(&self, machine: &MachineName, order: &Order) {
        let (mut states, machine, order) = (self.states.clone(), machine.clone(), order.clone());
        tokio::spawn(async move {
            let taken = states.wait_for(|state| !is_waiting(state, &order));
            if tokio::time::timeout(leaseward_failover::limits::ORDER_TAKEN_WITHIN, taken).await.is_err() {
                warn!(%machine, server = %order.server, token = %order.token, "LW0330: the agent has not taken its order yet");
            }
        });
    }
}

fn is_waiting(state: &State, order: &Order) -> bool {
    state.server(&order.server).is_some_and(|server| match &server.placement {
        Placement::Assigned(assignment) => {
            assignment.token == order.token && assignment.status == ServerStatus::Ordered
        }
        _ => false,
    })
}
