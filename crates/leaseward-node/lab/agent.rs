//! Processes that host the crate's own API, to be killed and stopped by the tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use leaseward_node::supervisor::Happened;
use leaseward_node::{BootInstant, Error, GuardOrder, Guarded, NodeConfig, StartOrder, StopMode, Supervisor};
use leaseward_state::name::{LeaseName, MachineName, ServerName};
use leaseward_state::server::{Exit, RestartPolicy, ServerSpec};
use leaseward_state::token::FencingToken;
use tokio::time::{interval, timeout};

/// How long one step of a story may take on a bad day.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts a victim, extends it, stops it, and shows the certificate.
pub(crate) fn story(dir: &str) {
    run(async {
        let (supervisor, _, mut events) = Supervisor::open(config(Path::new(dir))).await.expect("open");
        let stamps = format!("{dir}/stamps-0");
        let deadline = BootInstant::now() + PATIENCE;
        let spec = spec([me().to_str().expect("UTF-8"), "attack", "victim", &stamps]);
        let order = StartOrder { server: server(0), spec, token: FencingToken(7), deadline, clients: Vec::new() };
        supervisor.start(order).await.expect("start");
        let event = timeout(PATIENCE, events.recv()).await.expect("in time").expect("an event");
        assert!(matches!(event.what, Happened::Started { .. }), "{event:?}");
        supervisor.extend(&server(0), FencingToken(7), deadline + PATIENCE).await.expect("extend");
        // Once it stamps, it ignores what is polite.
        while std::fs::read(&stamps).unwrap_or_default().len() < 40 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let grace = Duration::from_millis(100);
        let name = server(0);
        let stop = supervisor.stop(&name, FencingToken(7), StopMode::Graceful { grace });
        let certificate = timeout(PATIENCE, stop).await.expect("in time").expect("stop");
        println!("level {}", leaseward_node::fence::level(true));
        println!("certificate {} {}", certificate.token, certificate.exit);
    });
}

/// Starts the server whose specification is in `spec.json`, and waits to be killed. Says `ready` once it executes.
pub(crate) fn serve(dir: &str) {
    run(async {
        let (supervisor, _, _events) = loop {
            // The one before may still be letting go of the directory.
            match Supervisor::open(config(Path::new(dir))).await {
                Err(Error::Busy { .. }) => tokio::time::sleep(Duration::from_millis(1)).await,
                opened => break opened.expect("open"),
            }
        };
        let spec = std::fs::read(format!("{dir}/spec.json")).expect("a specification");
        let spec = serde_json::from_slice(&spec).expect("a specification");
        let deadline = BootInstant::now() + PATIENCE;
        let order = StartOrder { server: server(0), spec, token: FencingToken(7), deadline, clients: Vec::new() };
        supervisor.start(order).await.expect("start");
        println!("ready");
        std::future::pending::<()>().await;
    });
}

/// Runs a command under a lease as `leaseward run` does, and ends with its code.
pub(crate) fn run_guarded(command: &[&str]) -> ExitCode {
    let mut code = 0;
    run(async {
        let mut order = guard_order(command, BootInstant::now() + PATIENCE);
        order.environment.push(("GREETING".into(), "hello".into()));
        let guarded = Guarded::spawn(order).await.expect("spawn");
        code = match guarded.wait().await.expect("wait").exit {
            Exit::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
            other => panic!("{other}"),
        };
    });
    ExitCode::from(code)
}

/// Runs a victim under a lease and extends it until it is killed. Says `ready` once it executes.
pub(crate) fn guard(dir: &str, ttl_ms: &str) {
    let ttl = Duration::from_millis(ttl_ms.parse().expect("a number"));
    run(async {
        let stamps = format!("{dir}/stamps-0");
        let command = [me().to_str().expect("UTF-8"), "attack", "victim", &stamps].map(str::to_owned);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let note = |deadline: BootInstant| {
            std::fs::write(format!("{dir}/deadline.new"), deadline.0.to_string()).expect("write");
            std::fs::rename(format!("{dir}/deadline.new"), format!("{dir}/deadline")).expect("rename");
        };
        let deadline = BootInstant::now() + ttl;
        // Whoever waits for `ready` may kill us before the first extension.
        note(deadline);
        let guarded = Guarded::spawn(guard_order(&command, deadline)).await.expect("spawn");
        println!("ready");
        let mut ticks = interval(ttl / 5);
        loop {
            ticks.tick().await;
            let deadline = BootInstant::now() + ttl;
            // Before it is sent: it may be in force from now on.
            note(deadline);
            let _ = guarded.extend(deadline).await;
        }
    });
}

fn guard_order(command: &[&str], deadline: BootInstant) -> GuardOrder {
    GuardOrder {
        shim_exe: me(),
        shim_arguments: vec!["shim".into()],
        command: command.iter().map(Into::into).collect(),
        environment: Vec::new(),
        machine: None,
        lease: LeaseName::new("batch/nightly").expect("a name"),
        token: FencingToken(7),
        deadline,
        real_time: true,
    }
}

fn run(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(story);
}

fn me() -> PathBuf {
    std::env::current_exe().expect("the lab has a path")
}

fn server(n: usize) -> ServerName {
    ServerName::new(format!("pay-{n}")).expect("a name")
}

fn config(dir: &Path) -> NodeConfig {
    NodeConfig {
        run_dir: dir.join("run"),
        log_dir: dir.join("log"),
        shim_exe: me(),
        shim_arguments: vec!["shim".into()],
        machine: MachineName::new("m1").expect("a name"),
        real_time: true,
        interfaces: std::collections::BTreeMap::new(),
    }
}

fn spec<'a>(command: impl IntoIterator<Item = &'a str>) -> ServerSpec {
    ServerSpec {
        start_timeout_ms: 5_000,
        stop_grace_ms: 100,
        restart: RestartPolicy { in_place: 0, ..RestartPolicy::default() },
        ..ServerSpec::new(command)
    }
}
