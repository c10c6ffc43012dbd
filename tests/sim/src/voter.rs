//! A voter on a simulated host: the real replica, and the real master beside it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leaseward_failover::manager::NodeManager;
use leaseward_failover::master::{self, ReignClock};
use leaseward_raft::clock::{GrantClock, KernelClock, Reading};
use leaseward_raft::net::transport::Transport;
use leaseward_raft::{Replica, Settings, Start, Timing};
use leaseward_state::apply::feature::FEATURE_LEVEL;
use leaseward_state::order::Order;
use leaseward_state::{MachineName, UnixMillis};
use tokio::sync::watch;

use crate::host::{Host, Program};
use crate::mutant::Mutant;

/// The replicas that run, by host.
pub type Replicas = Arc<Mutex<BTreeMap<usize, Replica>>>;

/// The feature level that the release on each host reads.
pub type Levels = Arc<Mutex<BTreeMap<usize, u32>>>;

/// Returns the settings of a voter whose release reads this feature level.
#[must_use]
pub fn settings(host: &Arc<Host>, feature_level: u32) -> Settings {
    let dying = Arc::downgrade(host);
    Settings {
        timing: Timing::fast(),
        transport: Transport::PlainAnywhere,
        segment_bytes: 64 << 10,
        snapshot_after_bytes: 48 << 10,
        log_bytes_kept: 24 << 10,
        free_bytes_min: 0,
        feature_level,
        fatal: Arc::new(move |why| {
            if let Some(host) = dying.upgrade() {
                host.die(why);
            }
        }),
        ..Settings::new(host.name(), host.data(), host.address())
    }
}

/// Returns the program of a voter that begins a cluster, or joins that of `first`.
#[must_use]
pub fn program(
    first: Option<SocketAddr>,
    replace: bool,
    replicas: Replicas,
    levels: Levels,
    mutant: Option<Mutant>,
) -> Program {
    Arc::new(move |host| {
        let start = match first {
            None => Start::Bootstrap,
            Some(address) => Start::Join { addresses: vec![address.to_string()], replace },
        };
        let level = levels.lock().expect("no holder of this lock panics").get(&host.id()).copied();
        Box::pin(run(host, start, level.unwrap_or(FEATURE_LEVEL), Arc::clone(&replicas), mutant))
    })
}

async fn run(host: Arc<Host>, start: Start, level: u32, replicas: Replicas, mutant: Option<Mutant>) {
    let replica = match Replica::start(settings(&host, level), start).await {
        Ok(replica) => replica,
        Err(error) => return host.die(&format!("{}: {error}", error.code())),
    };
    replicas.lock().expect("no holder of this lock panics").insert(host.id(), replica.clone());
    replica.ready().await;
    let Some(reign) = replica.reign() else { return };
    let mut published = replica.published();
    let (publish, states) = watch::channel(Arc::clone(&published.borrow_and_update().state));
    let internal = replica.internal();
    drop(replica);
    let follow = async move {
        while published.changed().await.is_ok() {
            publish.send_replace(Arc::clone(&published.borrow_and_update().state));
        }
    };
    let clock = MasterClock { start: KernelClock.now(), fast: mutant == Some(Mutant::Grace) };
    tokio::select! {
        biased;
        () = follow => {}
        () = master::run(internal, states, reign, Hints, clock) => {}
    }
}

/// As the master's own clock in a real voter.
struct MasterClock {
    start: Reading,
    /// A mutant: it says that every grace is over.
    fast: bool,
}

impl ReignClock for MasterClock {
    fn now(&self) -> Duration {
        KernelClock.now().since(self.start) * if self.fast { 1_000 } else { 1 }
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(leaseward_raft::clock::wall_millis())
    }
}

/// Agents find their orders in their views.
struct Hints;

impl NodeManager for Hints {
    fn order(&self, _: &MachineName, _: &Order) {}
}
