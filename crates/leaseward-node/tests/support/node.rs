//! A supervisor in the test's own process, and its events in short words.

use std::time::Duration;

use leaseward_node::{Adopted, BootInstant, Error, Happened, NodeConfig, NodeEvent, StartOrder, Supervisor};
use leaseward_state::name::{MachineName, ServerName};
use leaseward_state::server::{RestartPolicy, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::{PATIENCE, Stage};

pub(crate) const TOKEN: FencingToken = FencingToken(7);

pub(crate) fn pay() -> ServerName {
    ServerName::new("pay-0").unwrap()
}

pub(crate) fn later() -> BootInstant {
    BootInstant::now() + Duration::from_secs(60)
}

pub(crate) fn config(stage: &Stage) -> NodeConfig {
    NodeConfig {
        run_dir: stage.path().join("run"),
        log_dir: stage.path().join("log"),
        shim_exe: stage.lab(),
        shim_arguments: vec!["shim".into()],
        machine: MachineName::new("m1").unwrap(),
        real_time: true,
        interfaces: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn spec(command: &[&str]) -> ServerSpec {
    ServerSpec {
        environment: [("COLOUR".to_owned(), "blue".to_owned())].into(),
        start_timeout_ms: 5_000,
        stop_grace_ms: 1_000,
        restart: RestartPolicy { in_place: 2, per_ms: 60_000, backoff_ms: vec![0, 20], ..RestartPolicy::default() },
        ..ServerSpec::new(command.iter().copied())
    }
}

pub(crate) fn shell(script: &str) -> ServerSpec {
    spec(&["sh", "-c", script])
}

pub(crate) fn order(spec: ServerSpec) -> StartOrder {
    StartOrder { server: pay(), spec, token: TOKEN, deadline: later(), clients: Vec::new() }
}

pub(crate) async fn supervise(stage: &Stage) -> (Supervisor, Vec<Adopted>, Receiver<NodeEvent>) {
    // The last one of this story may still be letting go of the directory.
    for _ in 0..1_000 {
        match Supervisor::open(config(stage)).await {
            Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays busy");
}

pub(crate) async fn next(events: &mut Receiver<NodeEvent>) -> (u32, Happened) {
    let event = timeout(PATIENCE, events.recv()).await.expect("an event in time").expect("a supervisor");
    assert_eq!((&event.server, event.token), (&pay(), TOKEN));
    (event.attempt, event.what)
}

/// Returns the events as short words, up to and with the first that `last` accepts.
pub(crate) async fn words(events: &mut Receiver<NodeEvent>, last: &str) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        let (attempt, what) = next(events).await;
        let word = match what {
            Happened::Started { .. } => "started".to_owned(),
            Happened::Ready { .. } => "ready".to_owned(),
            Happened::Unhealthy { .. } => "unhealthy".to_owned(),
            Happened::Exited { exit, restarts_in, .. } => match restarts_in {
                Some(wait) => format!("{exit}, again in {}", wait.as_millis()),
                None => exit.to_string(),
            },
            Happened::GaveUp { .. } => "gave up".to_owned(),
            Happened::DeadlinePassed { .. } => "deadline passed".to_owned(),
            Happened::HookFailed { step, outcome, .. } => format!("{} {outcome}", step.name()),
            Happened::Stuck { step, .. } => format!("stuck at {}", step.name()),
            other => panic!("{other:?}"),
        };
        words.push(format!("{attempt}: {word}"));
        if word == last {
            return words;
        }
    }
}

pub(crate) async fn log_line(supervisor: &Supervisor, start: &str) -> String {
    let find = async {
        loop {
            let lines = supervisor.logs(&pay(), 100).unwrap_or_default();
            match lines.into_iter().find(|line| line.starts_with(start)) {
                Some(line) => return line,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    timeout(PATIENCE, find).await.expect("the line in time")
}
