//! The watchdog: petted while all is well, and only then. A file stands in for the device and records the pets.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaseward_node::{BootInstant, Supervisor, Watchdog};
use leaseward_state::server::{Hook, HookStep, ServerSpec};
use support::node::{config, order, spec};
use support::{PATIENCE, Stage};

/// The shortest that a device takes.
const TIMEOUT: Duration = Duration::from_secs(1);

fn device(stage: &Stage) -> PathBuf {
    let path = stage.path().join("watchdog");
    fs::write(&path, b"").expect("made");
    path
}

fn pets(device: &Path) -> Vec<u8> {
    fs::read(device).expect("readable")
}

/// Whether it is petted within its time-out.
async fn is_petted(device: &Path) -> bool {
    let before = pets(device).len();
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < TIMEOUT {
        if pets(device).len() > before {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

#[tokio::test]
async fn it_is_petted_while_all_is_well_and_sleeps_when_nothing_is_armed() {
    let stage = Stage::new(None);
    let device = device(&stage);
    let watchdog = Watchdog::open(&device, TIMEOUT).expect("opened");
    assert_eq!(watchdog.timeout(), TIMEOUT);
    let (supervisor, ..) = Supervisor::open_with(config(&stage), Some(watchdog)).await.expect("opened");
    assert!(is_petted(&device).await && is_petted(&device).await);
    drop(supervisor);
    let begun = tokio::time::Instant::now();
    while pets(&device).last() != Some(&b'V') {
        assert!(begun.elapsed() < PATIENCE, "it does not sleep");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn it_is_not_petted_while_something_of_an_expired_server_stands() {
    let stage = Stage::new(None);
    let device = device(&stage);
    let watchdog = Watchdog::open(&device, TIMEOUT).expect("opened");
    let (supervisor, ..) = Supervisor::open_with(config(&stage), Some(watchdog)).await.expect("opened");
    // What surrounds it cannot be taken down until somebody says so.
    let (hook, go) = (stage.path().join("hook"), stage.path().join("go"));
    fs::write(&hook, format!("#!/bin/sh\ntest -e {} || exit 1\n", go.display())).expect("written");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("executable");
    let hook = Hook { command: vec![hook.to_str().expect("text").to_owned()], timeout_ms: 5_000 };
    let spec = ServerSpec { hooks: [(HookStep::PostStop, hook)].into(), ..spec(&["sleep", "1000"]) };
    let mut order = order(spec);
    order.deadline = BootInstant::now() + Duration::from_millis(700);
    supervisor.start(order).await.expect("started");
    assert!(is_petted(&device).await, "its time is not over");

    let begun = tokio::time::Instant::now();
    while is_petted(&device).await {
        assert!(begun.elapsed() < PATIENCE, "it is petted for ever");
    }
    fs::write(&go, b"").expect("written");
    let begun = tokio::time::Instant::now();
    while !is_petted(&device).await {
        assert!(begun.elapsed() < PATIENCE, "it is never petted again");
    }
}

#[tokio::test]
async fn an_agent_that_ends_beside_an_armed_server_does_not_let_it_sleep() {
    let stage = Stage::new(None);
    let device = device(&stage);
    let watchdog = Watchdog::open(&device, TIMEOUT).expect("opened");
    let (supervisor, ..) = Supervisor::open_with(config(&stage), Some(watchdog)).await.expect("opened");
    let mut order = order(spec(&["sleep", "1000"]));
    order.deadline = BootInstant::now() + Duration::from_secs(3);
    supervisor.start(order).await.expect("started");
    drop(supervisor);
    let begun = tokio::time::Instant::now();
    while is_petted(&device).await {
        assert!(begun.elapsed() < PATIENCE, "somebody pets it");
    }
    assert_ne!(pets(&device).last(), Some(&b'V'), "the machine is to be reset");
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    assert!(Watchdog::open(Path::new("/nonexistent/watchdog"), TIMEOUT).is_err());
}
