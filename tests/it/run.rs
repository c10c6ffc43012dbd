//! `leaseward run`: a command runs only while its lease is held, with everything that it started.

use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use leaseward_node::fence;
use leaseward_state::server::FenceLevel;
use leaseward_tests::stamps::{Stamps, boot_ns};
use leaseward_tests::{Lab, Plan, eventually, signal};
use rustix::process::Signal;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(2);

fn victim() -> &'static str {
    env!("CARGO_BIN_EXE_leaseward-victim")
}

/// A `leaseward run` that is killed with the test.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Run {
    fn start(lab: &Lab, flags: &[&str], command: &[&str]) -> Self {
        let words = [&["run", "--lease", "batch/nightly", "--ttl", "2s"], flags, &["--"], command].concat();
        let mut run = lab.command(&words);
        Self(run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"))
    }

    fn signal(&self, what: Signal) {
        signal(self.0.id(), what);
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the run ends", || {
            status = self.0.try_wait().expect("it can be waited for");
            std::future::ready(status.is_some())
        })
        .await;
        status.expect("it ended")
    }

    async fn code(&mut self) -> i32 {
        self.ended().await.code().expect("not killed")
    }
}

async fn lab() -> (Lab, Stamps) {
    let lab = Lab::start(Plan::default()).await;
    let stamps = Stamps::at(&lab.dir().join("stamps"));
    (lab, stamps)
}

/// Waits until somebody stamps under a token greater than this, with so many processes. Returns the token.
async fn stamped(stamps: &Stamps, beyond: u64, processes: usize) -> u64 {
    let mut token = 0;
    eventually("the command stamps", || {
        let life = stamps.after(beyond).filter(|life| life.processes >= processes);
        token = life.as_ref().map_or(0, |life| life.token);
        std::future::ready(life.is_some())
    })
    .await;
    token
}

/// Waits until somebody waits for the lease.
async fn waited_for(lab: &Lab) {
    let waiting = async |lab: &Lab| {
        let lease: serde_json::Value = lab.get("/v1/leases/batch%2Fnightly").await?;
        lease["waiting"].as_array().map(Vec::len)
    };
    lab.until("somebody waits for the lease", waiting, 1).await;
}

/// Returns whether every process of a command can be ended; says so if not.
fn ends_trees() -> bool {
    let ends = fence::level(true) > FenceLevel::F0;
    if !ends {
        println!("left out: this system has no PID namespaces for us, so a daemon can escape");
    }
    ends
}

#[tokio::test]
async fn its_exit_code_is_the_commands_or_says_why_there_was_none() {
    let (lab, stamps) = lab().await;
    // Often: the end of a short command may be told together with its beginning.
    for code in (0..12).chain([120]) {
        assert_eq!(Run::start(&lab, &[], &[victim(), "exit", &code.to_string()]).code().await, code);
    }
    assert_eq!(Run::start(&lab, &[], &["/nowhere/to/be/found"]).code().await, 127);

    let file = stamps.path().to_str().expect("text").to_owned();
    let mut first = Run::start(&lab, &[], &[victim(), "stamp", &file, "--for", "1500"]);
    let token = stamped(&stamps, 0, 1).await;
    let lease: serde_json::Value = lab.get("/v1/leases/batch%2Fnightly").await.expect("it is held");
    assert_eq!(lease["token"], token.to_string(), "LEASEWARD_TOKEN is the lease's token");
    let refused = lab.cli(&["run", "--lease", "batch/nightly", "--", victim(), "exit", "0"]);
    assert_eq!(refused.status.code(), Some(76));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("LW0202"), "{refused:?}");

    let mut second = Run::start(&lab, &["--wait", "20s"], &[victim(), "stamp", &file, "--for", "50"]);
    assert_eq!(first.code().await, 0);
    let ended = Instant::now();
    assert_eq!(second.code().await, 0);
    assert!(ended.elapsed() < TTL, "a lease given back is granted at once, not when it would have expired");
    assert_eq!(stamps.exclusive().len(), 2);
}

#[tokio::test]
async fn its_whole_tree_is_dead_before_the_lease_can_be_regranted_if_nobody_answers() {
    if !ends_trees() {
        return;
    }
    let (lab, stamps) = lab().await;
    let file = stamps.path().to_str().expect("text").to_owned();
    let mut run = Run::start(&lab, &[], &[victim(), "stamp", &file, "--ignore-term", "--daemon"]);
    stamped(&stamps, 0, 2).await;
    for voter in 0..3 {
        lab.signal_voter(voter, Signal::STOP);
    }
    // Whatever was answered was sent before now.
    let stopped = boot_ns();
    assert_eq!(run.code().await, 75, "the lease is lost");
    let life = stamps.newest().expect("it lived");
    let outlived = Duration::from_nanos(life.last.saturating_sub(stopped));
    println!("voters stopped: the last process executed until {outlived:?} after; {TTL:?} are allowed");
    assert!(outlived < TTL);
}

/// What is done to a `leaseward run` in the next story.
async fn after_the_guard_is(what: Signal) {
    if !ends_trees() {
        return;
    }
    let (lab, stamps) = lab().await;
    let file = stamps.path().to_str().expect("text").to_owned();
    let mut first = Run::start(&lab, &[], &[victim(), "stamp", &file, "--ignore-term", "--daemon"]);
    let token = stamped(&stamps, 0, 2).await;
    let mut second = Run::start(&lab, &["--wait", "30s"], &[victim(), "stamp", &file, "--for", "300"]);
    waited_for(&lab).await;
    let hit = boot_ns();
    first.signal(what);
    stamped(&stamps, token, 1).await;
    assert_eq!(second.code().await, 0);
    let lives = stamps.exclusive();
    assert_eq!(lives.len(), 2, "{lives:?}");
    let waited = Duration::from_nanos(lives[1].first - hit);
    println!("run got {what:?}: the next one runs after {waited:?}");
    assert!(waited < TTL + Duration::from_secs(2), "{waited:?}");
    if what == Signal::STOP {
        first.signal(Signal::CONT);
        assert_eq!(first.code().await, 75, "it wakes up and knows that its lease is lost");
    }
}

#[tokio::test]
async fn a_killed_run_leaves_nothing_that_executes_under_the_next_token() {
    after_the_guard_is(Signal::KILL).await;
}

#[tokio::test]
async fn a_stopped_run_leaves_nothing_that_executes_under_the_next_token() {
    after_the_guard_is(Signal::STOP).await;
}
