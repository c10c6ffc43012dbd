//! Chaos: the real binary on hosts of its own, broken by a schedule, while clients work and write down what they are told.
//!
//! To find your way: `nemesis.rs` says what is broken when (pure, from one seed), `faults.rs` breaks and mends it, `net.rs` adds up what
//! several faults do to one line, `wall.rs` says what happens to a wall clock, `ends.rs` why an agent may end by itself; the workloads are `registers.rs`, `publishes.rs`, `lockset.rs`, `servers.rs`; `watchers.rs` hear of everything; `judge` of
//! [`crate::history`] says whether it can have been so, and `report.rs` says it to people. `peer.rs` does the lock-set to
//! etcd.
//!
//! Must stay true: the schedule depends on the seed alone, what it does to whom is in the history with its times; all faults
//! end before the cluster has to be well again; nothing is left of a run, however it ended. Root of a user namespace has all of
//! it but what needs devices ([`left_out`]); without any root it says that it is left out.

mod clients;
mod ends;
mod eye;
mod faults;
mod lockset;
pub mod nemesis;
mod net;
pub mod peer;
mod publishes;
mod registers;
pub mod report;
mod servers;
mod wall;
mod watchers;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use leaseward::client::Client;
use leaseward_raft::net::transport::Transport;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep};

use crate::history::judge::{Expected, judge};
use crate::history::{History, Record};
use crate::hosts::{CLIENT, Hosts, Setup, is_installed};
use crate::owns_machine;
use crate::stamps::boot_ns;
use clients::Api;
use faults::Faults;
use nemesis::{Nemesis, schedule};
use report::Report;

/// The second host of clients. It can be cut off.
pub const OTHER_CLIENT: &str = "client2";

/// Bytes of a host's disk: enough for a log that is full of a run, and quickly filled up.
const DISK_BYTES: u64 = 640 << 20;

/// After the last fault the cluster must be well again within this.
pub const HEALED_WITHIN: Duration = Duration::from_secs(60);

/// So long clients go on after the last fault: whatever was held up arrives.
const CALM: Duration = Duration::from_secs(3);

/// Time to live of leases here.
const TTL: Duration = Duration::from_secs(1);

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Reads, compare-and-set and transactions on two config sets, and watchers of them.
    Registers,
    /// Versions of a tree under idempotency keys, and readers of each member's disk.
    Publishes,
    /// Jepsen's lock-set: the resource does not look at tokens.
    Unguarded,
    /// The same with careless clients and a resource that refuses smaller tokens.
    Guarded,
    /// Servers that stamp the time while they execute.
    Servers,
}

/// All of them, by name.
pub const WORKLOADS: [(&str, Workload); 5] = [
    ("registers", Workload::Registers),
    ("publishes", Workload::Publishes),
    ("unguarded", Workload::Unguarded),
    ("guarded", Workload::Guarded),
    ("servers", Workload::Servers),
];

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Hosts with an agent each: three to five.
    pub hosts: usize,
    /// Decides the schedule.
    pub seed: u64,
    /// So long something is broken again and again.
    pub lasting: Duration,
    /// What breaks.
    pub nemeses: Vec<Nemesis>,
    /// So many things are broken at a time.
    pub overlap: usize,
    /// What clients do.
    pub workloads: Vec<Workload>,
    /// Where the history and, of a run with anomalies, the logs are kept.
    pub out: PathBuf,
    /// The binary to begin with, if the agents are upgraded meanwhile.
    pub previous: Option<PathBuf>,
    /// The command that repeats the run.
    pub command: String,
}

/// What clients share.
#[derive(Debug, Clone)]
struct Scene {
    history: History,
    apis: Vec<std::net::SocketAddr>,
    peers: Vec<String>,
    seed: u64,
    clients: Arc<AtomicU32>,
    /// Clients that still write what watchers must see.
    writing: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
}

impl Scene {
    /// Returns a number that no other client has.
    fn next_client(&self) -> u32 {
        self.clients.fetch_add(1, Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Returns whether nobody writes any more: who looks now sees the end.
    fn is_written(&self) -> bool {
        self.is_over() && self.writing.load(Ordering::Acquire) == 0
    }

    /// Lets a client write until it has ended.
    fn writes<W: Future<Output = ()>>(&self, work: W) -> impl Future<Output = ()> + use<W> {
        let writing = Arc::clone(&self.writing);
        writing.fetch_add(1, Ordering::AcqRel);
        async move {
            work.await;
            writing.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Returns a client of the HTTP API that begins at this node.
    fn api(&self, first: usize) -> Api {
        Api::new(self.apis.clone(), first)
    }

    /// Returns a client of the library that begins at this node.
    fn client(&self, first: usize) -> Client {
        let mut peers = self.peers.clone();
        let count = peers.len();
        peers.rotate_left(first % count);
        Client::new(peers, Transport::PlainAnywhere)
    }
}

/// Runs a story. `None`: it is left out, and said why.
///
/// # Panics
/// If the cluster cannot be started; whatever is wrong later is in the report.
pub async fn run(plan: &Plan) -> Option<Report> {
    if let Some(missing) = missing() {
        println!("left out: needs {missing}");
        return None;
    }
    std::fs::create_dir_all(&plan.out).expect("a directory for the history");
    let mut setup = Setup { count: plan.hosts, more_clients: vec![OTHER_CLIENT], ..Setup::default() };
    setup.disk_bytes = Some(DISK_BYTES);
    setup.wall_clocks = true;
    setup.boot_clocks = (0..plan.hosts).map(|host| boot_clock(plan.seed, host)).collect();
    let newer = crate::binary();
    setup.binary = plan.previous.clone();
    let mut hosts = Hosts::set_up(setup).await?;
    hosts.set_binary(newer);
    let history = History::create(&plan.out.join(format!("history-{}.jsonl", plan.seed))).expect("a history");
    let is_over = Arc::<AtomicBool>::default();
    let scene = Scene {
        history: history.clone(),
        apis: hosts.all_apis(),
        peers: hosts.all_peers(),
        seed: plan.seed,
        clients: Arc::new(AtomicU32::new(1)),
        writing: Arc::default(),
        is_over: Arc::clone(&is_over),
    };
    // Whatever happens to this future, clients must not outlive the hosts.
    let _over = Over(Arc::clone(&is_over));
    prepare(&hosts, plan);
    let servers = plan.workloads.contains(&Workload::Servers).then(|| servers::define(&hosts));
    let readers = plan.workloads.contains(&Workload::Publishes).then(|| publishes::readers(&scene, &hosts));
    let resources = lockset::resources();
    let threads = [CLIENT, OTHER_CLIENT].map(|host| clients_of(&scene, plan, &hosts, host, &resources));

    let faults = Faults::new(&mut hosts, history.clone());
    let planned = schedule(plan.seed, &plan.nemeses, plan.hosts, plan.lasting, plan.overlap);
    faults.play(&planned, plan.lasting, plan.overlap).await;
    let mut ends = faults.ends.take();
    let (clocks_seen, blind) = (faults.clocks_seen.get(), faults.blind.take());
    sleep(CALM).await;
    let head = plan.workloads.contains(&Workload::Publishes).then_some(publishes::SET);
    // Nothing new is published, so that everybody can arrive at the newest.
    is_over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("clients do not panic");
    }
    let healing = Instant::now();
    let sick = faults::until_well(&mut hosts, servers.as_deref(), head, &mut ends).await;
    let healed_after = healing.elapsed();
    if let Some(readers) = readers {
        readers.stop();
    }
    for server in servers.iter().flatten() {
        server.write_down(&history);
    }
    lockset::write_down(&resources, &history);

    let records = history.records();
    let expected = Expected {
        members: if head.is_some() { hosts.names().iter().map(ToString::to_string).collect() } else { Vec::new() },
        healed: head.map(str::to_owned),
    };
    let mut report = Report::of(plan, &records, judge(&records, &expected));
    report.history = history.path().to_owned();
    let (expected, wrong) = ends.all();
    report.sick = [sick, blind, wrong].concat();
    report.clocks_seen = clocks_seen;
    report.healed_after = healed_after;
    report.ended_by_themselves = expected;
    if !report.is_well() {
        report.keep_logs(&hosts.dir().join("log"));
    }
    Some(report)
}

/// Returns what is not there that hosts are broken with.
#[must_use]
pub fn missing() -> Option<&'static str> {
    if !crate::is_root() {
        return Some("root, if only of a user namespace");
    }
    if owns_machine() && !Path::new("/dev/loop-control").exists() {
        return Some("loop devices");
    }
    ["nft", "tc", "fsfreeze", "mkfs.ext4"].into_iter().find(|program| !is_installed(program))
}

/// Returns why something cannot be broken here, though hosts can be made.
#[must_use]
pub fn left_out(nemesis: Nemesis) -> Option<&'static str> {
    let needs = match nemesis {
        Nemesis::Latency => "root of the machine: device nodes of a macvtap",
        Nemesis::DiskStall | Nemesis::LostFsync => "root of the machine: loop devices",
        _ => return None,
    };
    (!owns_machine()).then_some(needs)
}

/// Returns what a host's boot clock says when it boots, in seconds: anything from a moment to four months, for machines are of different ages.
fn boot_clock(seed: u64, host: usize) -> i64 {
    let mut random = SmallRng::seed_from_u64(seed ^ (host as u64) << 56);
    if random.gen_bool(0.5) { random.gen_range(5..300) } else { random.gen_range(300..10_000_000) }
}

/// Ends the clients of a run that is not let finish.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A run of losses must make nobody distrust a machine: that would be another story.
fn prepare(hosts: &Hosts, plan: &Plan) {
    hosts.must(&["policy", "set", "quarantine_losses=0", "poison_after=0", "brake=0s", "voter_silence=20s"]);
    for set in registers::SETS.iter().chain([&publishes::SET]) {
        let kept = "keep_versions=1000";
        match *set == publishes::SET {
            true => hosts.must(&["config", "policy", set, kept]),
            // Nobody's disk has these: they are registers.
            false => hosts.must(&["config", "policy", set, "members={ nobody = \"x\" }", kept]),
        };
    }
    let start = Record::begun("start", 0, "harness", &plan.command, boot_ns());
    println!("cluster of {} is up; {}", hosts.names().len(), json!({ "seed": plan.seed, "at": start.invoke }));
}

/// Starts the clients of one host, each a task of one thread: they go on until the run is over.
fn clients_of(
    scene: &Scene,
    plan: &Plan,
    hosts: &Hosts,
    host: &'static str,
    resources: &lockset::Resources,
) -> JoinHandle<()> {
    let (scene, workloads, resources) = (scene.clone(), plan.workloads.clone(), resources.clone());
    let first = if host == CLIENT { 0 } else { 1 };
    hosts.network().spawn(host, move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let local = LocalSet::new();
        for workload in workloads {
            match workload {
                Workload::Registers => {
                    local.spawn_local(watchers::watch(scene.clone(), host, first));
                    for i in 0..3 {
                        local.spawn_local(scene.writes(registers::work(scene.clone(), host, first + i)));
                    }
                }
                Workload::Publishes => {
                    local.spawn_local(scene.writes(publishes::publish(scene.clone(), host, first)));
                    if first == 0 {
                        local.spawn_local(watchers::watch(scene.clone(), "publishes", 2));
                    }
                }
                Workload::Unguarded | Workload::Guarded => {
                    let guarded = workload == Workload::Guarded;
                    for i in 0..2 {
                        let service = lockset::Ours::new(scene.client(first + 2 * i), TTL);
                        let worker = lockset::Worker::new(&scene, &resources, guarded, host, TTL);
                        local.spawn_local(worker.work(service));
                    }
                }
                Workload::Servers => {}
            }
        }
        runtime.block_on(local);
    })
}
