//! A server crashes and is started again where it was: from SIGKILL of its main process until its program is executed, and
//! until that has loaded its libraries and stamps.
//!
//! It has run for a moment, as most servers have: the shims that wait for orders are back. One that crashes within half a
//! second of another start may have to wait for a new shim, 4 ms more.

use leaseward_node::limits::SPARE_SHIMS;
use leaseward_tests::hosts::{HOSTS, Hosts};
use leaseward_tests::signal;
use leaseward_tests::stamps::boot_ns;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Effort, Scene, Wish, between, left_out, progress};
use crate::figures::{at_share, millis};

/// Half of them are back within so many milliseconds.
const GOAL_P50_MS: f64 = 5.0;

/// Restarted at once, as often as it takes.
const RESTART: &str = "in_place = 100000\nbackoff = [\"0s\"]";

pub(crate) async fn crash_in_place() -> Value {
    let effort = Effort::wanted(50);
    let Some(mut scene) = Scene::start(&effort).await else { return left_out("needs root") };
    scene.add("crashing", &Wish { settings: RESTART, ..Wish::default() }).await;
    let (mut took, mut to_stamp, mut overlaps) = (Vec::new(), Vec::new(), 0);
    let mut dead = 0;
    for trial in 0..effort.trials {
        let running = async |hosts: &Hosts| {
            let server = hosts.get("/v1/servers/crashing")?;
            let pid = server["pid"].as_u64().filter(|pid| server["phase"] == "running" && *pid != dead)?;
            u32::try_from(pid).ok()
        };
        let pid = scene.hosts.until_some("it runs", running).await;
        let stocked = async |hosts: &Hosts| (0..HOSTS.len()).all(|host| hosts.waiting_shims(host) == SPARE_SHIMS);
        scene.hosts.until("shims wait for orders", stocked).await;
        scene.servers[0].stamps.clear();
        let stamps = &scene.servers[0].stamps;
        let (token, life) = scene.hosts.until_some("it stamps", async |_| stamps.tail()).await;
        let killed = boot_ns();
        signal(pid, Signal::KILL);
        let new = async |_: &_| stamps.tail().is_some_and(|(_, newest)| newest != life);
        scene.hosts.until("it stamps again", new).await;
        let next = stamps.newest().expect("it stamped");
        assert_eq!(next.token, token, "it was not restarted in place");
        let exec = scene.servers[0].execs.first_after(killed).expect("it stamped, so it was executed");
        let ms = between(killed, exec);
        to_stamp.push(between(killed, next.first));
        progress("crash-in-place", trial, effort.trials, &format!("{ms:.1} ms"));
        took.push(ms);
        overlaps += stamps.overlaps();
        dead = u64::from(pid);
    }
    let p50 = at_share(&took, 0.5);
    json!({
        "trials": effort.trials, "kill_to_exec": millis(&took), "kill_to_first_stamp": millis(&to_stamp),
        "goal": { "p50_ms": GOAL_P50_MS },
        "met": { "p50": p50 <= GOAL_P50_MS }, "overlaps": overlaps,
    })
}
