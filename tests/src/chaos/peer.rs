//! The lock-set beside a peer: three nodes, each with a disk of its own; the leader's disk stands still for longer than a
//! lease lives. The same workers, times and faults on the same machine, first with etcd, then with us.
//!
//! Must stay true: etcd is treated better than its own clients treat it: its holders count from the sending of a keepalive
//! that was answered, not from its answer; and they keep their own lease alive at the node that they began with, as long as
//! that one answers. Whoever is to hold when the disk stops is somebody who speaks with the leader, in both.

mod etcd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use super::lockset::{self, Ours, Worker};
use super::{Over, Scene, missing};
use crate::history::judge::{Expected, counts, holds, judge};
use crate::history::{History, Record, lease, op};
use crate::hosts::outage::Timing;
use crate::hosts::{CLIENT, Hosts, Setup};
use crate::stamps::boot_ns;
use etcd::Etcd;

/// Time to live of leases: the least that etcd gives with its usual timing.
const TTL: Duration = Duration::from_secs(2);

/// So long the leader's disk stands still.
const STALL: Duration = Duration::from_secs(20);

/// So long whoever holds then works under its lock: until others could long have had it, and shorter than the stall.
const LONG: Duration = Duration::from_secs(15);

/// Otherwise up to so long.
const SHORT: Duration = Duration::from_millis(150);

/// Somebody has to hold, or to lead, within this.
const SOON: Duration = Duration::from_secs(30);

/// Bytes of a node's disk.
const DISK_BYTES: u64 = 512 << 20;

/// A lock service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    Etcd,
    Leaseward,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Leaseward => "leaseward",
        }
    }
}

/// What came of one service.
#[derive(Debug, Clone)]
pub struct Row {
    /// The service, with its version.
    pub service: String,
    /// How often the leader's disk stood still.
    pub stalls: usize,
    /// In how many of them there were two holders at one time.
    pub with_two_holders: usize,
    /// For how long, all in all.
    pub two_holders_for: Duration,
    /// Elements that were acknowledged, without and with a resource that looks at tokens.
    pub acknowledged: [usize; 2],
    /// How many of them were lost.
    pub lost: [usize; 2],
    /// Where the history is.
    pub history: PathBuf,
}

impl Row {
    /// Returns it as one line of JSON.
    #[must_use]
    pub fn line(&self) -> Value {
        let of = |numbers: [usize; 2]| json!({ "unguarded": numbers[0], "guarded": numbers[1] });
        json!({
            "lock_set": self.service,
            "stalls": self.stalls,
            "with_two_holders": self.with_two_holders,
            "two_holders_ms": u64::try_from(self.two_holders_for.as_millis()).unwrap_or(u64::MAX),
            "acknowledged": of(self.acknowledged),
            "lost": of(self.lost),
            "history": self.history,
        })
    }

    /// Returns whether nothing was lost and nobody held what another one held.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.with_two_holders == 0 && self.two_holders_for.is_zero() && self.lost == [0, 0]
    }
}

/// Compares. The last row is ours. Without etcd there is only that one; without root none.
///
/// # Panics
/// If a cluster cannot be started.
pub async fn compare(stalls: usize, out: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(missing) = missing() {
        println!("left out: needs {missing}");
        return rows;
    }
    std::fs::create_dir_all(out).expect("a directory for the histories");
    match etcd::version() {
        Some(version) => rows.extend(row(Service::Etcd, version, stalls, out).await),
        None => println!("left out: etcd is not installed (etcd-server)"),
    }
    let version = format!("leaseward {}", env!("CARGO_PKG_VERSION"));
    rows.extend(row(Service::Leaseward, version, stalls, out).await);
    rows
}

/// Returns the rows as a table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| | stalls | with two holders | two holders for | acknowledged, lost (unguarded) | acknowledged, lost (guarded) |\n\
         |---|---|---|---|---|---|\n",
    );
    for row in rows {
        let Row { service, stalls, with_two_holders, two_holders_for, acknowledged, lost, .. } = row;
        let line = format!(
            "| {service} | {stalls} | {with_two_holders} | {:.1} s | {}, **{}** | {}, **{}** |\n",
            two_holders_for.as_secs_f64(),
            acknowledged[0],
            lost[0],
            acknowledged[1],
            lost[1]
        );
        table.push_str(&line);
    }
    table
}

/// Runs one service through so many stalls.
async fn row(service: Service, version: String, stalls: usize, out: &Path) -> Option<Row> {
    let setup = Setup {
        timing: Timing { profile: "default", ttl: "3s".to_owned() },
        disk_bytes: Some(DISK_BYTES),
        with_agents: service == Service::Leaseward,
        ..Setup::default()
    };
    let mut hosts = Hosts::set_up(setup).await?;
    let _etcd = match service {
        Service::Etcd => Some(Etcd::start(&hosts).await),
        Service::Leaseward => None,
    };
    let history = History::create(&out.join(format!("lock-set-{}.jsonl", service.name()))).expect("a history");
    let is_over = Arc::<AtomicBool>::default();
    let _over = Over(Arc::clone(&is_over));
    let scene = Scene {
        history: history.clone(),
        apis: hosts.all_apis(),
        peers: hosts.all_peers(),
        seed: 1,
        clients: Arc::new(AtomicU32::new(1)),
        writing: Arc::default(),
        is_over: Arc::clone(&is_over),
    };
    let resources = lockset::resources();
    let mut holding = Vec::new();
    let mut workers = Vec::new();
    for node in 0..hosts.names().len() {
        for guarded in [false, true] {
            let worker = Worker::new(&scene, &resources, guarded, hosts.names()[node], TTL).working(SHORT, LONG);
            holding.push((node, guarded, Arc::clone(&worker.is_slow), Arc::clone(&worker.is_holding)));
            workers.push((node, worker));
        }
    }
    let (of_thread, endpoints) = (scene.clone(), etcd::endpoints(&hosts));
    let thread = hosts.network().spawn(CLIENT, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        for (node, worker) in workers {
            match service {
                Service::Etcd => {
                    local.spawn_local(worker.work(etcd::Locks::new(endpoints.clone(), node, TTL)));
                }
                Service::Leaseward => {
                    local.spawn_local(worker.work(Ours::new(of_thread.client(node), TTL)));
                }
            }
        }
        runtime.block_on(local);
    });

    let mut times = Vec::new();
    for stall in 0..stalls {
        let leader = leader(service, &hosts).await;
        let of_leader = holding.iter().filter(|(node, ..)| *node == leader);
        of_leader.clone().for_each(|(_, _, is_slow, _)| is_slow.store(true, Ordering::Relaxed));
        let (_, _, _, is_holding) = of_leader.clone().find(|(_, guarded, ..)| !guarded).expect("each node has both");
        until("a client of the leader holds", || is_holding.load(Ordering::Relaxed)).await;
        let record = Record::begun(op::FAULT, 0, hosts.names()[leader], "disk-stall", boot_ns());
        println!("{}: stall {} of {stalls}, at {}", service.name(), stall + 1, hosts.names()[leader]);
        hosts.disk(leader).freeze();
        sleep(STALL).await;
        hosts.disk(leader).thaw();
        holding.iter().for_each(|(_, _, is_slow, _)| is_slow.store(false, Ordering::Relaxed));
        let record = record.done(boot_ns(), json!({}));
        times.push((record.invoke, record.ret.unwrap_or(u64::MAX)));
        history.add(record);
        // Each resource takes something again before the next stall.
        for guarded in [false, true] {
            let name = lockset::name(guarded);
            let before = added(&history, name);
            until("elements are added again", || added(&history, name) > before + 5).await;
        }
    }
    is_over.store(true, Ordering::Relaxed);
    thread.join().expect("clients do not panic");
    lockset::write_down(&resources, &history);
    Some(judged(version, &history, &times))
}

fn judged(service: String, history: &History, stalls: &[(u64, u64)]) -> Row {
    let records = history.records();
    println!("{service}: {:?}", counts(&records));
    for anomaly in judge(&records, &Expected::default()).iter().take(4) {
        println!("  {}: {}", anomaly.checker, anomaly.what);
    }
    let held = holds(&records);
    let during = |(from, to): &&(u64, u64)| {
        // A hold that began in a stall, or went on into it, may end after it.
        let some: Vec<_> = held.iter().filter(|hold| hold.to >= *from && hold.from <= *to).cloned().collect();
        lease::overlap_ns(&some) > 0
    };
    let of = |guarded: bool| {
        let name = lockset::name(guarded);
        let is_last = |record: &&Record| record.op == op::FINAL && record.object == name;
        let last = records.iter().find(is_last).map(|record| record.output["elements"].clone()).unwrap_or_default();
        let last: Vec<u64> = serde_json::from_value(last).unwrap_or_default();
        let ok = |record: &&Record| {
            record.op == op::ADD && record.object == name && record.outcome == crate::history::Outcome::Ok
        };
        let ok: Vec<u64> = records.iter().filter(ok).filter_map(|record| record.input["element"].as_u64()).collect();
        let lost = ok.iter().filter(|element| !last.contains(element)).count();
        (ok.len(), lost)
    };
    let (unguarded, guarded) = (of(false), of(true));
    Row {
        service,
        stalls: stalls.len(),
        with_two_holders: stalls.iter().filter(during).count(),
        two_holders_for: Duration::from_nanos(lease::overlap_ns(&held)),
        acknowledged: [unguarded.0, guarded.0],
        lost: [unguarded.1, guarded.1],
        history: history.path().to_owned(),
    }
}

fn added(history: &History, name: &str) -> usize {
    let records = history.records();
    let ok = |record: &&Record| record.outcome == crate::history::Outcome::Ok;
    records.iter().filter(|record| record.op == op::ADD && record.object == name).filter(ok).count()
}

async fn leader(service: Service, hosts: &Hosts) -> usize {
    let deadline = Instant::now() + SOON;
    loop {
        let found = match service {
            Service::Etcd => etcd::leader(hosts),
            Service::Leaseward => hosts.cluster().and_then(|cluster| {
                let name = cluster["leader"].as_str()?.to_owned();
                hosts.names().iter().position(|known| *known == name)
            }),
        };
        if let Some(found) = found {
            return found;
        }
        assert!(Instant::now() < deadline, "never: somebody leads");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + 2 * SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
