//! `run`: a command keeps its caller's terminal and dies with its lease, whatever happens to the caller.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use leaseward_node::BootInstant;
use rustix::process::Signal;
use support::{PATIENCE, Player, Stage, alone, is_root, open, signal, wait_for, wait_for_end};

/// The victim's main process, found by its parents: caller, shim, init, victim.
fn init_of(player: &Player) -> u32 {
    let child = |pid: u32| {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_ascii_whitespace().next()?.parse().ok()
    };
    let shim = || {
        // Any of the caller's threads may have started it.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", player.pid())).ok()?;
        tasks.flatten().find_map(|task| {
            let children = std::fs::read_to_string(task.path().join("children")).ok()?;
            children.split_ascii_whitespace().next()?.parse::<u32>().ok()
        })
    };
    wait_for("shim and init", PATIENCE, || child(shim()?))
}

#[test]
fn whatever_happens_to_the_caller_the_command_dies_with_its_lease() {
    let _alone = alone();
    for attack in [Signal::KILL, Signal::STOP] {
        let stage = Stage::new(None);
        let mut player = stage.play(&["guard", stage.path().to_str().unwrap(), "500"]);
        player.wait_until_ready();
        stage.stamps_of_all(0);
        let process = open(init_of(&player));
        signal(player.pid(), attack);
        let text = std::fs::read_to_string(stage.path().join("deadline")).unwrap();
        let deadline = BootInstant(text.parse().unwrap());
        wait_for_end(&process, PATIENCE).expect("the kernel's proof");
        assert_eq!(stage.survivors(0), 0, "{attack:?}");
        let last = stage.stamps(0).into_iter().max().unwrap();
        let epsilon = (last as f64 - deadline.0 as f64) / 1e6;
        println!("run, caller {attack:?}: epsilon ms {epsilon:.2}");
        assert!(epsilon <= if is_root() { 100.0 } else { 2_000.0 });
        signal(player.pid(), Signal::CONT);
    }
}

#[test]
fn a_polite_command_ends_at_once_when_its_caller_is_killed() {
    let _alone = alone();
    let stage = Stage::new(None);
    let mark = stage.path().join("asked");
    // The caller's first deadline is twenty seconds away.
    let script = format!("trap 'echo asked > {}; exit 0' TERM; echo up; while :; do sleep 0.05; done", mark.display());
    let mut player = stage.play(&["run", "sh", "-c", &script]);
    assert_eq!(player.line(), "up");
    let process = open(init_of(&player));
    player.kill();
    wait_for_end(&process, Duration::from_secs(5)).expect("its end");
    assert!(mark.exists(), "it was not asked");
}

#[test]
fn it_reads_and_writes_what_its_caller_does_and_its_code_comes_back() {
    let _alone = alone();
    let stage = Stage::new(None);
    let script = "cat; echo $GREETING $LEASEWARD_TOKEN $LEASEWARD_LEASE; exit 3";
    let mut run = Command::new(stage.lab());
    run.args(["run", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut run = run.spawn().unwrap();
    run.stdin.take().unwrap().write_all(b"from outside\n").unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "from outside\nhello 7 batch/nightly\n");
    assert_eq!(output.status.code(), Some(3));
}
