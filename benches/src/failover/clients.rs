//! What clients notice of a planned move and of a takeover after power loss.
//!
//! Must stay true: a gap is between two answers that came, from the last of the old copy to the first of the new one.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::thread::JoinHandle;

use leaseward_tests::PATIENCE;
use leaseward_tests::hosts::knock::Knocks;
use leaseward_tests::hosts::monitor::Monitor;
use leaseward_tests::hosts::probe::{Answer, greeting};
use leaseward_tests::hosts::{CLIENT, HOSTS};
use leaseward_tests::stamps::boot_ns;
use serde_json::{Value, json};

use super::{Effort, Scene, Wish, between, left_out, progress};
use crate::figures::{at_share, millis};

/// From the address on its new host to a client's first answer.
const GOAL_ANSWER_MS: f64 = 20.0;

/// From the address on its new host to the end of an old connection on which nobody says anything.
const GOAL_RESET_MS: f64 = 100.0;

/// An agent looks every three seconds who is connected, and tells the cluster.
const CLIENTS_KNOWN_AFTER_NS: u64 = 4_000_000_000;

/// So many answers make a server that works.
const STEADY: usize = 50;

/// The name of the server.
const NAME: &str = "moving";

/// What clients noticed of changes of one kind, in milliseconds.
#[derive(Default)]
pub(super) struct Noticed {
    pub(super) gap: Vec<f64>,
    address_to_sign: Vec<f64>,
    address_to_answer: Vec<f64>,
    idle_reset: Vec<f64>,
    /// Idle clients who did not notice, or otherwise than by a reset.
    idle_otherwise: usize,
}

/// Starts hosts with one server whose clients are looked at; `None` without root.
pub(super) async fn scene(effort: &Effort) -> Option<Scene> {
    let mut scene = Scene::start(effort).await?;
    scene.add(NAME, &Wish { address: Some(0), greets: true, ..Wish::default() }).await;
    Some(scene)
}

pub(crate) async fn moved_gap() -> Value {
    let effort = Effort::wanted(20);
    let Some(mut scene) = scene(&effort).await else { return left_out("needs root") };
    let (mut planned, mut lost, mut overlaps) = (Noticed::default(), Noticed::default(), 0);
    for trial in 0..effort.trials {
        move_it(&scene, &mut planned).await;
        overlaps += scene.count_overlaps();
        let host = lose_power(&mut scene, &mut lost).await;
        overlaps += scene.count_overlaps();
        scene.restore(host).await;
        let last = |all: &[f64]| all.last().copied().unwrap_or(f64::NAN);
        let words = format!(
            "planned {:.1} ms without an answer; power loss {:.1} ms, of which {:.1} ms with the address",
            last(&planned.gap),
            last(&lost.gap),
            last(&lost.address_to_answer)
        );
        progress("moved-gap", trial, effort.trials, &words);
    }
    let answer = at_share(&lost.address_to_answer, 0.5);
    let reset = at_share(&lost.idle_reset, 1.0);
    json!({
        "trials": effort.trials, "ttl_ms": effort.ttl_ms(),
        "planned_move": planned.line(), "power_loss": lost.line(),
        "goal": { "address_to_answer_p50_ms": GOAL_ANSWER_MS, "idle_client_reset_max_ms": GOAL_RESET_MS },
        "met": {
            "address_to_answer_p50": answer <= GOAL_ANSWER_MS,
            "idle_client_reset_max": reset <= GOAL_RESET_MS && lost.idle_otherwise == 0,
        },
        "overlaps": overlaps,
    })
}

impl Noticed {
    fn line(&self) -> Value {
        json!({
            "gap": millis(&self.gap),
            "address_to_first_sign": millis(&self.address_to_sign),
            "address_to_answer": millis(&self.address_to_answer),
            "idle_client_reset_after_address": millis(&self.idle_reset),
            "idle_clients_that_noticed_otherwise": self.idle_otherwise,
        })
    }

    /// Takes in one change, whose new owner greeted first with this.
    async fn take(&mut self, scene: &Scene, watching: Watching, since: u64, old: &Answer, new: &Answer) {
        let host = HOSTS.iter().position(|host| new.machine == *host).expect("one of ours");
        let monitor = &watching.monitors[host];
        let added = async |_: &_| monitor.added(scene.address(0), since);
        let added = scene.hosts.until_some("its address was added", added).await;
        let sign = async |_: &_| watching.knocks.first_sign(added);
        let sign = scene.hosts.until_some("a sign", sign).await;
        self.gap.push(between(old.at, new.at));
        self.address_to_sign.push(between(added, sign));
        self.address_to_answer.push(between(added, new.at));
        match watching.idle.join().expect("it only reads") {
            (at, Some(ErrorKind::ConnectionReset)) => self.idle_reset.push(between(added, at)),
            (_, _) => self.idle_otherwise += 1,
        }
    }
}

/// Everybody who looks.
struct Watching {
    knocks: Knocks,
    /// Says when the connection ended, and how.
    idle: JoinHandle<(u64, Option<ErrorKind>)>,
    monitors: Vec<Monitor>,
}

impl Watching {
    /// Starts to look, and waits until the server is known to work and to have clients.
    async fn start(scene: &Scene) -> Self {
        let (network, to) = (scene.hosts.network(), scene.greeter());
        let mut idle = network.within(CLIENT, || TcpStream::connect_timeout(&to, PATIENCE)).expect("it is there");
        greeting(&idle, PATIENCE).expect("it greets");
        let connected = boot_ns();
        let idle = std::thread::spawn(move || {
            let error = idle.read(&mut [0]).err().map(|error| error.kind());
            (boot_ns(), error)
        });
        let monitors = HOSTS.iter().map(|host| network.monitor(host)).collect();
        let knocks = knocks(scene).await;
        let known = async |_: &_| knocks.newest().is_some_and(|answer| answer.at > connected + CLIENTS_KNOWN_AFTER_NS);
        scene.hosts.until("its clients are known", known).await;
        Self { knocks, idle, monitors }
    }
}

/// Starts to knock and waits until it is answered steadily.
pub(super) async fn knocks(scene: &Scene) -> Knocks {
    let to = scene.greeter();
    let knocks = scene.hosts.network().within(CLIENT, || Knocks::start(to));
    scene.hosts.until("it answers steadily", async |_| knocks.count() >= STEADY).await;
    knocks
}

/// Returns the last answer of the copy that this one belongs to, and the first one of the next copy.
pub(super) async fn changed(scene: &Scene, knocks: &Knocks, old: &Answer) -> (Answer, Answer) {
    let new = scene.hosts.until_some("another copy answers", async |_| knocks.other_than(old.token)).await;
    (knocks.last(old.token).expect("it answered"), new)
}

async fn move_it(scene: &Scene, noticed: &mut Noticed) {
    let host = scene.together().await;
    let watching = Watching::start(scene).await;
    let old = watching.knocks.newest().expect("it answers");
    let since = boot_ns();
    scene.hosts.must(&["server", "move", NAME, "--to", HOSTS[(host + 1) % HOSTS.len()]]);
    let (old, new) = changed(scene, &watching.knocks, &old).await;
    noticed.take(scene, watching, since, &old, &new).await;
}

/// Takes the power from the server's host, which does not lead. Returns it.
async fn lose_power(scene: &mut Scene, noticed: &mut Noticed) -> usize {
    let host = scene.together().await;
    scene.hosts.lead((host + 1) % HOSTS.len()).await;
    let watching = Watching::start(scene).await;
    let old = watching.knocks.newest().expect("it answers");
    let since = boot_ns();
    scene.hosts.power_off(host);
    let (old, new) = changed(scene, &watching.knocks, &old).await;
    noticed.take(scene, watching, since, &old, &new).await;
    host
}
