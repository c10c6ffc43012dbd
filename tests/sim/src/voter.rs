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
use leaseward_state::order::Order;
use leaseward_state::{MachineName, UnixMillis};
use tokio::sync::watch;

use crate::host::{Host, Program};
use crate::mutant::Mutant;

/// The replicas that run, by host.
pub type Replicas = Arc<Mutex<BTreeMap<usize, Replica>>>;

/// Returns the settings of a voter.
#[must_use]
pub fn settings(host: &Arc<Host>) -> Settings {
    let dying = Arc::downgrade(host);
    Settings {
        timing: Timing::fast(),
        transport: Transport::PlainAnywhere,
        segment_bytes: 64 << 10,
        snapshot_after_bytes: 48 << 10,
        log_bytes_kept: 24 << 10,
        free_bytes_min: 0,
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
pub fn program(first: Option<SocketAddr>, replace: bool, replicas: Replicas, mutant: Option<Mutant>) -> Program {
    Arc::new(move |host| {
        let start = match first {
            None => Start::Bootstrap,
            Some(address) => Start::Join { addresses: vec![address.to_string()], replace },
        };
        Box::pin(run(host, start, Arc::clone(&replicas), mutant))
    })
}

async fn run(host: Arc<Host>, start: Start, replicas: Replicas, mutant: Option<Mutant>) {
    let replica = match Replica::start(settings(&host), start).await {
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
