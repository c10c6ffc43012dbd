//! Thousands of members of one config set, on three real voter processes: from `publish` to everybody's report.
//!
//! Must stay true: a member says on the wire what an agent says: it opens its machine's session, renews it, waits at a
//! voter for its view and looks whether that voter is heard, fetches the delta from a voter on a connection of its own,
//! and reports fetching, on disk and applied, each once the report before is committed. Only its disk is left out, and
//! what an agent has waiting for questions. Members are here in one process, so they and the voters share this machine.
//! `LEASEWARD_MEMBERS` says how many.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leaseward::client::Client;
use leaseward::clock::Moment;
use leaseward::keeper::Keeper;
use leaseward_raft::net::transport::Transport;
use leaseward_raft::net::wire::{Answer, Ask, VersionOrder};
use leaseward_raft::random;
use leaseward_state::command::OpenMachine;
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::machine::MachineProfile;
use leaseward_state::session::Incarnation;
use leaseward_state::{Command, MachineName, Reply, Revision, SetName};
use leaseward_tests::{Lab, Plan};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::figures::millis;

pub(crate) const SET: &str = "app";
const TTL: Duration = Duration::from_secs(3);
const ROUNDS: u64 = 6;

/// How long nothing is published, to see what members at rest cost.
const REST: Duration = Duration::from_secs(5);

/// Whatever is waited for must come within this.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the members have done.
#[derive(Default)]
pub(crate) struct Tally {
    opened: AtomicU64,
    pub(crate) over: AtomicU64,
    /// Members by the version that they have reported as applied.
    applied: watch::Sender<BTreeMap<u64, u64>>,
}

pub(crate) struct Member {
    pub(crate) name: MachineName,
    pub(crate) speaks: Client,
    pub(crate) looks: Client,
    pub(crate) fetches: Client,
    pub(crate) tally: Arc<Tally>,
}

impl Member {
    pub(crate) async fn run(self) {
        let sent = Moment::now();
        let open = OpenMachine {
            machine: self.name.clone(),
            incarnation: Incarnation { boot_id: "bench".into(), instance: random::unique() },
            profile: MachineProfile::default(),
            swept: true,
            ttl_ms: TTL.as_millis() as u64,
        };
        let session = loop {
            match self.speaks.write(Command::OpenMachine(open.clone())).await {
                Ok(Reply::Session(session)) => break session,
                _ => sleep(Duration::from_millis(100)).await,
            }
        };
        self.tally.opened.fetch_add(1, Ordering::Relaxed);
        let keeper = Keeper::start(self.speaks.clone(), session, TTL, sent);
        let mut standing = keeper.standing();
        let over = async {
            standing.wait_for(|standing| standing.over).await.ok();
            self.tally.over.fetch_add(1, Ordering::Relaxed);
        };
        let heard = async {
            loop {
                sleep(TTL / 4).await;
                self.looks.status().await.ok();
            }
        };
        tokio::select! {
            () = over => {}
            () = heard => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&self) {
        let set = SetName::new(SET).expect("a name");
        let mut known = Revision(0);
        let mut live: Option<VersionOrder> = None;
        loop {
            let Ok(view) = self.looks.view(&self.name, known).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            if view.revision <= known {
                continue;
            }
            known = view.revision;
            let wanted = view.sets.get(&set).and_then(|order| order.live);
            let Some(wanted) = wanted.filter(|wanted| live.is_none_or(|live| live.number != wanted.number)) else {
                continue;
            };
            let before = live.map_or(0, |live| live.number);
            let number = wanted.number;
            let fetching = SyncState::Fetching { version: number, done: 0, total: 0, elapsed_ms: 0 };
            self.report(&set, before, fetching).await;
            self.fetch(&set, live.map(|live| live.manifest), wanted.manifest).await;
            self.report(&set, before, SyncState::OnDisk { version: number }).await;
            self.report(&set, number, SyncState::Applied).await;
            live = Some(wanted);
            self.tally.applied.send_modify(|applied| *applied.entry(number).or_default() += 1);
        }
    }

    async fn fetch(&self, set: &SetName, base: Option<Digest>, next: Digest) {
        let within = Duration::from_secs(5);
        if let Some(base) = base {
            let ask = Ask::Delta { set: set.clone(), base, next };
            if matches!(self.fetches.ask(&ask, within).await, Ok(Answer::Delta(Some(_)))) {
                return;
            }
        }
        self.fetches.ask(&Ask::GetFrames(vec![next]), within).await.ok();
    }

    async fn report(&self, set: &SetName, applied: u64, state: SyncState) {
        let sets = vec![(set.clone(), applied, state)];
        let command = Command::ReportSync { machine: self.name.clone(), sets };
        while self.speaks.write(command.clone()).await.is_err() {}
    }
}

/// Lets this process, and the voters that it starts, have as many connections as the machine allows.
pub(crate) fn enough_files() {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).expect("files may be open");
}

/// Publishes to thousands of members, again and again.
pub(crate) async fn members() -> Value {
    let count: u64 =
        std::env::var("LEASEWARD_MEMBERS").map_or(2_000, |text| text.parse().expect("LEASEWARD_MEMBERS is a number"));
    enough_files();
    let lab = Lab::start(Plan { profile: "default", ttl: "3s", log: "warn", ..Plan::default() }).await;
    let (applied, mut heard) = watch::channel(BTreeMap::new());
    let tally = Arc::new(Tally { applied, ..Tally::default() });
    let mut running = JoinSet::new();
    let began = Instant::now();
    for i in 0..count {
        let addresses: Vec<String> = (0..3).map(|k| lab.peer((i as usize + k) % 3).to_string()).collect();
        let speaks = Client::new(addresses, Transport::PlainLoopback);
        let member = Member {
            name: MachineName::new(format!("s{i:05}")).expect("a name"),
            looks: speaks.another(),
            fetches: speaks.another(),
            speaks,
            tally: Arc::clone(&tally),
        };
        running.spawn(member.run());
    }
    let opened = async {
        while tally.opened.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let opened = timeout(PATIENCE, opened).await.is_ok();
    let opening_ms = began.elapsed().as_millis() as u64;

    let source = tempfile::tempdir().expect("a directory");
    let (mut took, mut busy) = (Vec::new(), Vec::new());
    let mut late = 0;
    for round in 1..=ROUNDS {
        fs::write(source.path().join("limits.toml"), format!("limit = {round}\n")).expect("written");
        let spent = cpu_ms(&lab);
        let began = Instant::now();
        let published =
            lab.cli(&["config", "publish", SET, "--no-wait", "--from", &source.path().display().to_string()]);
        assert!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        let all = heard.wait_for(|applied| applied.get(&round).is_some_and(|members| *members == count));
        if timeout(PATIENCE, all).await.is_err() {
            late += count - heard.borrow().get(&round).copied().unwrap_or(0);
        }
        // The first one is fetched whole.
        if round > 1 {
            took.push(began.elapsed().as_secs_f64() * 1_000.0);
            busy.push((cpu_ms(&lab) - spent) as f64);
        }
    }
    let spent = cpu_ms(&lab);
    sleep(REST).await;
    let rest = (cpu_ms(&lab) - spent) as f64 / REST.as_millis() as f64;
    json!({
        "members": count,
        "all_opened": opened,
        "opening_ms": opening_ms,
        "publish_to_all_reported": millis(&took),
        "voters_cpu_each_publish": millis(&busy),
        "voters_cpu_at_rest_cores": (rest * 1_000.0).round() / 1_000.0,
        "voters_rss_mb": (0..3).map(|voter| rss_mb(&lab, voter)).collect::<Vec<_>>(),
        "sessions_over": tally.over.load(Ordering::Relaxed),
        "never_reported": late,
    })
}

/// Returns the processor time of all voters together, in milliseconds.
fn cpu_ms(lab: &Lab) -> u64 {
    (0..3).map(|voter| cpu_ms_of(lab, voter)).sum()
}

/// Returns the processor time of a voter's process, in milliseconds.
pub(crate) fn cpu_ms_of(lab: &Lab, voter: usize) -> u64 {
    let tick_ms = 1_000 / rustix::param::clock_ticks_per_second().max(1);
    let stat = fs::read_to_string(format!("/proc/{}/stat", lab.voter_pid(voter))).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).to_owned();
    fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * tick_ms
}

pub(crate) fn rss_mb(lab: &Lab, voter: usize) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", lab.voter_pid(voter))).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1_024
}
