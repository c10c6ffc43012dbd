//! The fence under attack: whatever is killed or stopped, nothing of a server runs after its deadline.
//!
//! Every cell starts servers that resist (threads, children, daemons, daemons that fork on and on), attacks agent,
//! shim and init, and reads from the victims' stamps when their last instruction ran. As an ordinary user what needs
//! root is left out, and says so; as root everything runs, also as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::time::Duration;

use leaseward_node::BootInstant;
use rustix::process::Signal;
use support::{NOBODY, PATIENCE, Stage, alone, is_root, open, signal, wait_for_end};

/// Servers under one agent in one cell.
const SERVERS: usize = 3;

/// Extended every fifth of it.
const TTL_MS: &str = "400";

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Attack {
    Spare,
    Stop,
    Kill,
}
use Attack::{Kill, Spare, Stop};

impl Attack {
    fn on(self, pid: u32) {
        match self {
            Spare => {}
            Stop => signal(pid, Signal::STOP),
            Kill => signal(pid, Signal::KILL),
        }
    }
}

/// Agent, shim, init.
const MATRIX: [(Attack, Attack, Attack); 8] = [
    (Kill, Spare, Spare),
    (Kill, Stop, Spare),
    (Kill, Kill, Spare),
    (Stop, Spare, Spare),
    (Stop, Stop, Spare),
    (Stop, Kill, Spare),
    (Stop, Spare, Stop),
    (Kill, Stop, Stop),
];

/// One cell; returns by how much the last instruction of each server missed its deadline, in milliseconds.
fn cell(user: Option<u32>, (agent, shim, init): (Attack, Attack, Attack)) -> Vec<f64> {
    let stage = Stage::new(user);
    let dir = stage.path().to_str().unwrap();
    let mut player = stage.play(&["agent", dir, &SERVERS.to_string(), TTL_MS, ""]);
    player.wait_until_ready();
    for n in 0..SERVERS {
        stage.stamps_of_all(n);
    }
    agent.on(player.pid());
    let mut reference = Vec::new();
    for n in 0..SERVERS {
        let status = stage.ask_shim(&format!("pay-{n}"));
        let process = open(status.init);
        assert_eq!(status.real_time, is_root() && user.is_none(), "real-time class of the shim");
        init.on(status.init);
        let killed_at = BootInstant::now();
        shim.on(status.shim);
        // The shim's death is the server's.
        let over_at = if shim == Kill { killed_at.min(status.deadline) } else { status.deadline };
        reference.push((over_at, process));
    }
    let mut epsilon = Vec::new();
    for (n, (over_at, process)) in reference.iter().enumerate() {
        let proven = wait_for_end(process, PATIENCE).expect("the kernel's proof");
        assert!(proven >= *over_at, "server {n} ended before its deadline");
        assert_eq!(stage.survivors(n), 0, "parts of server {n} survived {agent:?} {shim:?} {init:?}");
        let last = stage.stamps(n).into_iter().max().unwrap();
        epsilon.push((last as f64 - over_at.0 as f64) / 1e6);
    }
    signal(player.pid(), Signal::CONT);
    epsilon
}

fn matrix(level: &str, user: Option<u32>, cells: &[(Attack, Attack, Attack)], epsilon_max: Duration) {
    let mut worst = f64::MIN;
    for attacks in cells {
        let epsilon = cell(user, *attacks);
        let max = epsilon.iter().copied().fold(f64::MIN, f64::max);
        println!("{level}: agent, shim, init {attacks:?}: epsilon ms {epsilon:.2?}");
        worst = worst.max(max);
    }
    println!("{level}: worst epsilon {worst:.2} ms of {} ms allowed", epsilon_max.as_millis());
    assert!(worst <= epsilon_max.as_secs_f64() * 1e3, "{level}: an instruction ran {worst} ms after its deadline");
}

#[test]
fn as_root_nothing_survives_its_deadline_by_a_tenth_of_a_second() {
    let _alone = alone();
    if !is_root() {
        println!("LEFT OUT: level F2 needs root");
        return;
    }
    matrix("F2", None, &MATRIX, Duration::from_millis(100));
}

#[test]
fn as_an_ordinary_user_nothing_survives_its_deadline_by_two_seconds() {
    let _alone = alone();
    let user = is_root().then_some(NOBODY);
    let level = Stage::new(user).play(&["level"]).line();
    if level == "F0" {
        println!("LEFT OUT: level F1 needs user namespaces for ordinary users; this machine grants none");
        return;
    }
    matrix("F1", user, &MATRIX, Duration::from_secs(2));
}

#[test]
fn a_shim_without_the_kernels_timer_lets_its_server_survive() {
    let _alone = alone();
    if !cfg!(debug_assertions) {
        println!("LEFT OUT: the mutant exists in debug builds only");
        return;
    }
    // The same attacks as above must notice: a stopped guard guards nothing.
    let stage = Stage::new(None);
    let mut player = stage.play(&["agent", stage.path().to_str().unwrap(), "1", TTL_MS, "mutant"]);
    player.wait_until_ready();
    stage.stamps_of_all(0);
    signal(player.pid(), Signal::STOP);
    let status = stage.ask_shim("pay-0");
    let process = open(status.init);
    signal(status.shim, Signal::STOP);
    let after = status.deadline.saturating_since(BootInstant::now()) + Duration::from_millis(200);
    assert_eq!(wait_for_end(&process, after), None, "the mutant's server ended at its deadline all the same");
    assert!(stage.survivors(0) >= 3);
    // And going on, it ends by its own loop.
    signal(status.shim, Signal::CONT);
    wait_for_end(&process, PATIENCE).expect("the mutant's own guard");
    assert_eq!(stage.survivors(0), 0);
}
