//! Ours beside keepalived, in the same run: how long clients of an address wait after a power loss, and for how long
//! two hosts have the address when whoever minds it is stopped with SIGSTOP.
//!
//! Must stay true: both are seen by the same client, on networks that are made alike, with times that are alike: three
//! advertisements of keepalived's are about one time to live of ours.

mod vrrp;

use std::time::Duration;

use leaseward_tests::hosts::outage::Timing;
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::signal;
use leaseward_tests::stamps::boot_ns;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::clients::{changed, knocks, scene};
use super::{Effort, Scene, between, left_out, progress};
use crate::figures::millis;

/// After the takeover it is looked for so long how many hosts have the address; then who was stopped goes on.
const WINDOW: Duration = Duration::from_secs(3);

/// Trials are slow here, and differ little.
const TRIALS_MAX: usize = 10;

/// What is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Agent,
    AgentAndShim,
}

pub(crate) async fn keepalived() -> Value {
    let mut effort = Effort::wanted(5);
    effort.trials = effort.trials.min(TRIALS_MAX);
    if !leaseward_tests::is_root() {
        return left_out("needs root");
    }
    let quick = Effort { timing: Timing { profile: "fast", ttl: "600ms".to_owned() }, ..effort.clone() };
    let (mut pairs, mut overlaps, mut both) = (Vec::new(), 0, 0.0);
    for (advert_int, effort) in [("1", &effort), ("0.2", &quick)] {
        let theirs = vrrp::measure(advert_int, effort.trials, WINDOW).await;
        let ours = Ours::measure(effort).await;
        overlaps += ours.overlaps;
        both += ours.double_owned_ms();
        pairs.push(json!({ "keepalived": theirs, "ours": ours.line(effort) }));
    }
    json!({
        "trials": effort.trials, "window_ms": WINDOW.as_millis() as u64, "pairs": pairs,
        "goal": { "ours_double_owned_ms": 0.0 }, "met": { "ours_double_owned": both == 0.0 }, "overlaps": overlaps,
    })
}

/// What happened to us, in milliseconds.
#[derive(Default)]
struct Ours {
    gap: Vec<f64>,
    stopped_agent_gap: Vec<f64>,
    stopped_agent_both: Vec<f64>,
    stopped_shim_gap: Vec<f64>,
    stopped_shim_both: Vec<f64>,
    overlaps: usize,
}

impl Ours {
    async fn measure(effort: &Effort) -> Self {
        let mut scene = scene(effort).await.expect("we are root");
        let mut ours = Self::default();
        for trial in 0..effort.trials {
            ours.gap.push(lose_power(&mut scene).await);
            for what in [Stopped::Agent, Stopped::AgentAndShim] {
                let (gap, both) = stop(&scene, what).await;
                let (gaps, boths) = match what {
                    Stopped::Agent => (&mut ours.stopped_agent_gap, &mut ours.stopped_agent_both),
                    Stopped::AgentAndShim => (&mut ours.stopped_shim_gap, &mut ours.stopped_shim_both),
                };
                gaps.push(gap);
                boths.push(both);
                ours.overlaps += scene.count_overlaps();
            }
            let words =
                format!("{:.0} ms without an answer; two owners for {} ms", ours.gap[trial], ours.double_owned_ms());
            progress(&format!("ours, {}", effort.timing.ttl), trial, effort.trials, &words);
        }
        ours
    }

    fn double_owned_ms(&self) -> f64 {
        self.stopped_agent_both.iter().chain(&self.stopped_shim_both).sum()
    }

    fn line(&self, effort: &Effort) -> Value {
        json!({
            "ttl_ms": effort.ttl_ms(), "profile": effort.timing.profile,
            "power_loss_gap": millis(&self.gap),
            "stopped_agent": {
                "gap": millis(&self.stopped_agent_gap), "double_owned": millis(&self.stopped_agent_both),
            },
            "stopped_agent_and_shim": {
                "gap": millis(&self.stopped_shim_gap), "double_owned": millis(&self.stopped_shim_both),
            },
        })
    }
}

/// Takes the power from the server's host. Returns for how long nobody answered.
async fn lose_power(scene: &mut Scene) -> f64 {
    let host = scene.together().await;
    scene.hosts.lead((host + 1) % HOSTS.len()).await;
    let gap = {
        let knocks = knocks(scene).await;
        let old = knocks.newest().expect("it answers");
        scene.hosts.power_off(host);
        let (old, new) = changed(scene, &knocks, &old).await;
        between(old.at, new.at)
    };
    scene.restore(host).await;
    gap
}

/// Stops who minds the address, lets them go on after the window, and waits until all is well. Returns for how long
/// nobody answered, and for how long two hosts had the address.
async fn stop(scene: &Scene, what: Stopped) -> (f64, f64) {
    let host = scene.together().await;
    scene.hosts.lead((host + 1) % HOSTS.len()).await;
    let knocks = knocks(scene).await;
    let old = knocks.newest().expect("it answers");
    let mut newest_first: Vec<_> = HOSTS.to_vec();
    newest_first.retain(|other| *other != HOSTS[host]);
    newest_first.push(HOSTS[host]);
    let watch = scene.hosts.network().watch(&newest_first, scene.address(0));
    scene.hosts.signal_agent(host, Signal::STOP);
    if what == Stopped::AgentAndShim {
        scene.hosts.shims(host).into_iter().for_each(|shim| signal(shim, Signal::STOP));
    }
    let (old, new) = changed(scene, &knocks, &old).await;
    let gap = between(old.at, new.at);
    let until = new.at + WINDOW.as_nanos() as u64;
    scene.hosts.until("the window is over", async |_: &Hosts| boot_ns() > until).await;
    scene.hosts.shims(host).into_iter().for_each(|shim| signal(shim, Signal::CONT));
    scene.hosts.signal_agent(host, Signal::CONT);
    scene.until_whole().await;
    (gap, watch.stop().two_owners_for.as_secs_f64() * 1e3)
}
