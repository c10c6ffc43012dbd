//! Servers and the machines that die under them: one copy executes, and soon again after every kind of death.
//!
//! The witness is `leaseward-victim`, which stamps the boot clock and its token while it executes. In every story no
//! two lives of a server overlap, whether under two tokens or under one.

use std::fs;
use std::time::Duration;

use leaseward_tests::relay::{Link, Who};
use leaseward_tests::stamps::boot_ns;
use leaseward_tests::{Lab, Plan, signal};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::story::{GRACE_AND_START, NAME, Story, TTL, after, machine_of, token_of, victim};

#[tokio::test]
async fn a_machine_dies_and_its_server_goes_elsewhere() {
    let Some(mut story) = Story::start(&[], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    let killed = boot_ns();
    story.lab.kill_machine(here);
    let new = story.next_life(old.token).await;
    after("machine killed", killed, &new, TTL + GRACE_AND_START);
    assert_ne!(story.machine().await, here);
    story.stamps.exclusive();
}

#[tokio::test]
async fn an_agent_dies_for_good_and_the_kernel_ends_its_server_in_time() {
    let Some(mut story) = Story::start(&["--ignore-term", "--daemon"], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    let killed = boot_ns();
    story.lab.kill_agent(here);
    let new = story.next_life(old.token).await;
    after("agent killed", killed, &new, TTL + GRACE_AND_START);
    assert_ne!(story.machine().await, here);
    let lives = story.stamps.exclusive();
    assert!(lives[0].last > killed, "it should have outlived its agent");
    assert!(lives[0].last < killed + TTL.as_nanos() as u64, "it outlived its deadline");
    assert_eq!(lives[0].processes, 2, "its daemon never stamped: {lives:?}");
}

#[tokio::test]
async fn an_agent_that_comes_back_at_once_adopts_its_server() {
    let Some(mut story) = Story::start(&[], "").await else { return };
    let before = story.phase("running").await;
    let here = machine_of(&before);
    let old = story.newest().await;
    story.lab.kill_agent(here);
    story.lab.start_machine(here);
    story.lives_beyond(&old, boot_ns() + 3 * TTL.as_nanos() as u64).await;
    let now = story.phase("running").await;
    assert_eq!((&now["pid"], &now["token"], &now["machine"]), (&before["pid"], &before["token"], &before["machine"]));
    assert_eq!(story.stamps.exclusive().len(), 1, "it was started again");
}

/// With it went every trace of what runs: who finds nothing there must not say that nothing is.
#[tokio::test]
async fn an_agent_whose_run_directory_was_wiped_vouches_for_nothing() {
    let Some(mut story) = Story::start(&["--ignore-term"], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    let killed = boot_ns();
    story.lab.kill_agent(here);
    fs::remove_dir_all(story.path(&format!("run/m{}", here + 1))).expect("removed");
    story.lab.start_machine(here);
    let new = story.other_life(&old).await;
    story.lives_beyond(&new, new.first + TTL.as_nanos() as u64).await;
    let lives = story.stamps.exclusive();
    assert!(lives[0].last > killed, "it should have outlived its agent");
    assert!(new.token > old.token, "it was started twice under one token");
}

#[tokio::test]
async fn an_agent_that_stands_still_loses_its_server_first() {
    let Some(story) = Story::start(&["--ignore-term"], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    let stopped = boot_ns();
    story.lab.signal_agent(here, Signal::STOP);
    let new = story.next_life(old.token).await;
    after("agent stopped", stopped, &new, TTL + GRACE_AND_START);
    story.lives_beyond(&new, stopped + 5 * TTL.as_nanos() as u64).await;
    story.lab.signal_agent(here, Signal::CONT);
    let woke = boot_ns();
    let connected = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
    story.lab.until("all machines are connected", connected, 3).await;
    story.lives_beyond(&new, woke + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 2, "the sleeper moved something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_cut_off_and_its_server_is_dead_before_it_runs_elsewhere() {
    for link in [Link::Silent, Link::Broken] {
        let Some(story) = Story::planned(Plan { relayed: true, ..Plan::default() }).await else { return };
        story.apply(&["--ignore-term", "--daemon"], "candidates = [\"m1\", \"m2\", \"m3\"]");
        let old = story.next_life(0).await;
        assert_eq!(story.machine().await, 0, "the one behind the relays");
        let every = |link| story.lab.relays().iter().for_each(|relay| relay.set(Who::Client, link));
        let cut = boot_ns();
        every(link);
        let new = story.next_life(old.token).await;
        after(&format!("machine cut off ({link:?})"), cut, &new, TTL + GRACE_AND_START);
        assert_ne!(story.machine().await, 0);
        let lives = story.stamps.exclusive();
        assert!(lives[0].last > cut, "it should have run on for a while");
        assert!(lives[0].last < cut + TTL.as_nanos() as u64, "it outlived its deadline");
        assert_eq!(lives[0].processes, 2, "its daemon never stamped: {lives:?}");

        // Back on the network, it starts nothing by itself.
        every(Link::Open);
        let healed = boot_ns();
        let connected = async |lab: &Lab| lab.status().await?["machines"]["connected"].as_u64();
        story.lab.until("all machines are connected", connected, 3).await;
        story.lives_beyond(&new, healed + TTL.as_nanos() as u64).await;
        assert_eq!(story.stamps.exclusive().len(), 2, "the one that came back moved something");
    }
}

#[tokio::test]
async fn a_shim_or_a_server_dies_and_is_started_again_in_place() {
    let Some(story) = Story::start(&["--daemon"], "[restart]\nin_place = 5\nbackoff = [\"0s\"]").await else { return };
    let before = story.phase("running").await;
    let here = machine_of(&before);
    let old = story.newest().await;

    let killed = boot_ns();
    for shim in story.lab.shims(here) {
        signal(shim, Signal::KILL);
    }
    let second = story.other_life(&old).await;
    after("shim killed", killed, &second, TTL);
    let restarted = async |lab: &Lab| {
        let server: Value = lab.get(&format!("/v1/servers/{NAME}")).await?;
        (server["phase"] == "running" && server["pid"] != before["pid"]).then_some(server)
    };
    let now = story.lab.until_some("it runs again", restarted).await;
    assert_eq!((&now["token"], &now["machine"]), (&before["token"], &before["machine"]));

    let killed = boot_ns();
    signal(now["pid"].as_u64().expect("a process") as u32, Signal::KILL);
    let third = story.other_life(&second).await;
    after("server killed", killed, &third, TTL);
    assert_eq!((third.token, second.token), (old.token, old.token));
    assert_eq!(story.stamps.exclusive().len(), 3);
}

#[tokio::test]
async fn a_shim_stands_still_and_its_agent_dies() {
    let Some(mut story) = Story::start(&["--ignore-term", "--daemon"], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    for shim in story.lab.shims(here) {
        signal(shim, Signal::STOP);
    }
    let killed = boot_ns();
    story.lab.kill_agent(here);
    let new = story.next_life(old.token).await;
    after("shim stopped, agent killed", killed, &new, TTL + GRACE_AND_START);
    story.stamps.exclusive();
}

#[tokio::test]
async fn the_leader_dies_with_the_machine() {
    let Some(mut story) = Story::start(&[], "").await else { return };
    let here = story.machine().await;
    let old = story.newest().await;
    let leader = story.lab.leader().await;
    let killed = boot_ns();
    story.lab.kill_voter(leader);
    story.lab.kill_machine(here);
    let new = story.next_life(old.token).await;
    after("leader and machine killed", killed, &new, TTL + Duration::from_secs(4));
    assert_ne!(story.machine().await, here);
    story.stamps.exclusive();
}

#[tokio::test]
async fn a_server_that_always_crashes_is_restarted_then_moved_then_failed() {
    let Some(story) = Story::lab().await else { return };
    let crash = story.path("crash");
    fs::write(&crash, "").expect("written");
    let crash_if = ["--crash-if", crash.to_str().expect("text")];
    let settings = "candidates = [\"m1\", \"m2\"]\n[restart]\nin_place = 1\ncluster = 4\nbackoff = [\"0s\"]";
    story.define(&crash_if, settings, &["--no-wait"]);
    let failed = story.phase("failed").await;
    let lives = story.stamps.exclusive();
    assert_eq!(lives.len(), 4, "once, once more, and both again elsewhere: {lives:?}");
    assert_eq!(lives[0].token, lives[1].token);
    assert!(lives[1].token < lives[2].token);
    assert_eq!(lives[2].token, lives[3].token);
    let failures = failed["failures"].as_array().expect("a list");
    let machines: Vec<_> = failures.iter().map(|failure| failure["machine"].as_str().expect("a name")).collect();
    assert_eq!(machines, ["m1", "m1", "m2", "m2"], "{failed}");

    fs::remove_file(&crash).expect("removed");
    assert_eq!(story.operate(&["server", "start", NAME]), 0);
    let new = story.next_life(lives[3].token).await;
    story.lives_beyond(&new, new.first + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 5);
}

#[tokio::test]
async fn an_operator_stops_starts_and_moves() {
    let settings = "candidates = [\"m2\", \"m3\", \"m1\"]";
    let Some(mut story) = Story::start(&["--ignore-term"], settings).await else { return };
    assert_eq!(story.machine().await, 1, "its first candidate");

    assert_eq!(story.operate(&["server", "stop", NAME]), 0);
    assert_eq!(story.server().await["phase"], "stopped");
    let stopped = story.newest().await;
    assert_eq!(story.operate(&["server", "start", NAME]), 0);
    let started = story.next_life(stopped.token).await;

    assert_eq!(story.operate(&["server", "move", NAME, "--to", "m1"]), 0);
    assert_eq!(story.machine().await, 0);
    let moved = story.next_life(started.token).await;

    assert_eq!(story.operate(&["server", "stop", "nobody"]), 3, "there is no such server");
    assert_ne!(story.operate(&["server", "move", NAME, "--to", "m9"]), 0, "there is no such machine");
    assert_eq!(story.newest().await.first, moved.first, "what was refused did something");

    // The best candidate is cordoned: the next one is taken.
    assert_eq!(story.operate(&["machine", "cordon", "m2", "-m", "its fan is loud"]), 0);
    story.lab.kill_machine(0);
    story.next_life(moved.token).await;
    assert_eq!(story.machine().await, 2, "not the cordoned one");
    let lives = story.stamps.exclusive();
    assert_eq!(lives.len(), 4, "{lives:?}");
}

#[tokio::test]
async fn a_hung_server_is_started_again() {
    let Some(story) = Story::lab().await else { return };
    let hang = story.path("hang");
    let check = format!(
        "[restart]\nbackoff = [\"0s\"]\n[check]\ntype = \"command\"\ncommand = [{:?}, \"absent\", {:?}]\n\
         interval = \"100ms\"\ntimeout = \"1s\"\nmisses = 3",
        victim(),
        hang.to_str().expect("text")
    );
    story.apply(&["--ignore-term"], &check);
    let old = story.next_life(0).await;
    let token = token_of(&story.phase("running").await);
    fs::write(&hang, "").expect("written");
    let new = story.other_life(&old).await;
    fs::remove_file(&hang).expect("removed");
    let now = story.phase("running").await;
    assert_eq!((new.token, token_of(&now)), (token, token), "it was not restarted in place");
    story.lives_beyond(&new, new.first + TTL.as_nanos() as u64).await;
    assert_eq!(story.stamps.exclusive().len(), 2);
    let (status, _) = story.lab.call(Method::GET, &format!("/v1/servers/{NAME}"), None).await.expect("an answer");
    assert_eq!(status, 200);
}
