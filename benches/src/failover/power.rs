//! Power loss of a machine with servers: how long after the first instant at which the rules allow it they execute
//! elsewhere.
//!
//! Must stay true: the last renewal is read from the leader's own clock, the bound from the ledger's timeline, and the
//! execution from the kernel. Doubts count against us: a question's time belongs to what is measured. When the program has
//! loaded its libraries and stamps for the first time is told, too.

use leaseward_http::model::{History, Incident};
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::stamps::boot_ns;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::{Effort, Renewals, Scene, Wish, between, left_out, progress};
use crate::figures::{at_share, millis};
use crate::floor;

/// Servers on the machine; the latter half with an address each.
const SERVERS: usize = 4;

/// What is allowed over the bound, in milliseconds, if somebody else leads.
const GOAL_P50_MS: f64 = 15.0;
const GOAL_P99_MS: f64 = 60.0;

/// What the leader's own death may cost more.
const LEADER_MORE_MS: f64 = 300.0;

/// From the last renewal to execution, in times to live.
const GOAL_RATIO: f64 = 1.05;

/// All trials, in milliseconds.
#[derive(Default)]
struct Found {
    over: Vec<f64>,
    over_at_first_stamp: Vec<f64>,
    over_bare: Vec<f64>,
    over_with_address: Vec<f64>,
    ratio: Vec<f64>,
    expired_late: Vec<f64>,
    decided_late: Vec<f64>,
    decided_to_exec: Vec<f64>,
    bound_ms: u64,
    overlaps: usize,
}

/// The machine that is lost is not the leader's.
pub(crate) async fn power_loss() -> Value {
    measure("power-loss", false).await
}

/// The machine that is lost leads.
pub(crate) async fn power_loss_leader() -> Value {
    measure("power-loss-leader", true).await
}

async fn measure(what: &str, leads: bool) -> Value {
    let effort = Effort::wanted(50);
    let Some(mut scene) = Scene::start(&effort).await else { return left_out("needs root") };
    for place in 0..SERVERS {
        let address = (place >= SERVERS / 2).then_some(place as u8);
        scene.add(&format!("s{place}"), &Wish { address, ..Wish::default() }).await;
    }
    let mut found = Found::default();
    for trial in 0..effort.trials {
        let share = 0.85 * (trial as f64 + 0.5) / effort.trials as f64;
        let worst = lose_power(&mut scene, &effort, leads, share, &mut found).await;
        progress(what, trial, effort.trials, &format!("the slowest server {worst:.1} ms over the bound"));
    }
    found.line(&effort, leads)
}

/// One power loss, so long after the machine's last renewal. Returns how late the slowest server was.
async fn lose_power(scene: &mut Scene, effort: &Effort, leads: bool, share: f64, found: &mut Found) -> f64 {
    let host = scene.together().await;
    let leader = if leads { host } else { (host + 1) % HOSTS.len() };
    scene.hosts.lead(leader).await;
    found.overlaps += scene.count_overlaps();
    let renewals = scene.hosts.until_some("its session", async |hosts| Renewals::of(hosts, host, leader)).await;
    let before = renewals.until_renewed_ago(&scene.hosts, effort.ttl_ms(), share).await;
    let old = scene.tokens();
    let cut = boot_ns();
    scene.hosts.power_off(host);
    // A renewal may have come between the question and the cut.
    let deadline = if leads { before } else { renewals.deadline(&scene.hosts).unwrap_or(before).max(before) };
    let renewed = deadline - effort.ttl_ms() * 1_000_000;
    scene.until_elsewhere(&old).await;
    let mut worst = f64::MIN;
    for (server, old) in scene.servers.iter().zip(&old) {
        let stamped = server.stamps.lives().into_iter().find(|life| life.token != *old).expect("it stamped").first;
        let exec = server.execs.first_after(cut).expect("it stamped, so it was executed");
        let incident = incident(scene, &server.name, host).await;
        let bound = incident.bound.expect("the rules bound it").millis();
        let over = between(renewed, exec) - bound as f64;
        let has_address = incident.phases.iter().any(|phase| phase.name == "address");
        if has_address { &mut found.over_with_address } else { &mut found.over_bare }.push(over);
        found.over.push(over);
        found.over_at_first_stamp.push(between(renewed, stamped) - bound as f64);
        found.ratio.push(between(renewed, exec) / effort.ttl_ms() as f64);
        found.phases(&incident, deadline, renewed + bound * 1_000_000, exec);
        found.bound_ms = bound;
        worst = worst.max(over);
    }
    found.overlaps += scene.count_overlaps();
    scene.restore(host).await;
    worst
}

/// Returns the interruption that began with the loss of this host, once the ledger has all of it.
async fn incident(scene: &Scene, name: &str, host: usize) -> Incident {
    let look = async |hosts: &Hosts| {
        let history: History = serde_json::from_value(hosts.get(&format!("/v1/servers/{name}/history"))?).ok()?;
        let newest = history.items.into_iter().next_back()?;
        (newest.from.as_deref() == Some(HOSTS[host]) && newest.ended.is_some()).then_some(newest)
    };
    scene.hosts.until_some("its timeline is whole", look).await
}

impl Found {
    /// Takes in where the time went. The ledger's moments are of the wall clock, in whole milliseconds.
    fn phases(&mut self, incident: &Incident, deadline: u64, allowed: u64, exec: u64) {
        let at = |name: &str| {
            incident.phases.iter().find(|phase| phase.name == name).map(|phase| on_boot_clock(phase.at.unix_millis()))
        };
        if let Some(expired) = at("expired") {
            self.expired_late.push(between(deadline, expired));
        }
        if let Some(decided) = at("decided") {
            self.decided_late.push(between(allowed, decided));
            self.decided_to_exec.push(between(decided, exec));
        }
    }

    fn line(self, effort: &Effort, leads: bool) -> Value {
        let more = if leads { LEADER_MORE_MS } else { 0.0 };
        let goal = [GOAL_P50_MS + more, GOAL_P99_MS + more, GOAL_RATIO + more / effort.ttl_ms() as f64];
        let (p50, p99) = (at_share(&self.over, 0.5), at_share(&self.over, 0.99));
        let [ratio, ratio_p99] = [0.5, 0.99].map(|share| (at_share(&self.ratio, share) * 1e4).round() / 1e4);
        json!({
            "trials": effort.trials, "servers": SERVERS, "ttl_ms": effort.ttl_ms(), "bound_ms": self.bound_ms,
            "over_bound": millis(&self.over),
            "over_bound_at_first_stamp": millis(&self.over_at_first_stamp),
            "over_bound_without_address": millis(&self.over_bare),
            "over_bound_with_address": millis(&self.over_with_address),
            "ratio": { "p50": ratio, "p99": ratio_p99 },
            "phases": {
                "expired_after_deadline": millis(&self.expired_late),
                "decided_after_bound": millis(&self.decided_late),
                "decided_to_exec": millis(&self.decided_to_exec),
            },
            "goal": { "p50_ms": goal[0], "p99_ms": goal[1], "ratio_p50": goal[2] },
            "met": { "p50": p50 <= goal[0], "p99": p99 <= goal[1], "ratio_p50": ratio <= goal[2] },
            "overlaps": self.overlaps, "floor": floor::fdatasync(),
        })
    }
}

fn on_boot_clock(unix_ms: i64) -> u64 {
    let wall = clock_gettime(ClockId::Realtime);
    let wall_ns = wall.tv_sec * 1_000_000_000 + wall.tv_nsec;
    (boot_ns().cast_signed() - (wall_ns - unix_ms * 1_000_000)).cast_unsigned()
}
