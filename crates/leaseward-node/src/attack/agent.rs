//! A small agent: a supervisor whose servers are victims, extended until somebody stops it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use leaseward_state::name::{MachineName, ServerName};
use leaseward_state::server::{Announce, FloatingAddress, RestartPolicy, ServerSpec};
use leaseward_state::token::FencingToken;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tokio::time::{MissedTickBehavior, interval};

use super::WORD;
use super::victim::{FENCED, FLOATING};
use super::wires;
use crate::clock::BootInstant;
use crate::supervisor::{NodeConfig, StartOrder, Supervisor};

/// Every round is a directory of its own.
const TOKEN: FencingToken = FencingToken(7);

/// The name of a round's n-th server.
pub(super) fn server(n: usize) -> Result<ServerName, String> {
    ServerName::new(format!("pay-{n}")).map_err(|e| e.to_string())
}

/// Starts `count` victims and extends them until it is killed. Says `ready` once all execute.
pub(super) fn main(
    dir: &str,
    count: &str,
    (ttl_ms, first_ms): (&str, &str),
    kind: &str,
    shim_arguments: &[&str],
) -> Result<(), String> {
    // Whoever started it may die too; then the deadlines end the rest.
    prctl::set_pdeathsig(Some(Signal::SIGKILL)).map_err(|e| format!("die with the parent: {e}"))?;
    let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text}: {e}"));
    let time = |text: &str| number(text).map(|ms| Duration::from_millis(ms.max(5).into()));
    let (count, ttl) = (number(count)?, time(ttl_ms)?);
    let first = ttl.max(time(first_ms)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|e| format!("start: {e}"))?.block_on(host(
        Path::new(dir),
        count,
        (ttl, first),
        kind,
        shim_arguments,
    ))
}

async fn host(
    dir: &Path,
    count: u32,
    (ttl, first): (Duration, Duration),
    kind: &str,
    shim_arguments: &[&str],
) -> Result<(), String> {
    let me = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    let program = me.to_str().ok_or("the path of this program is not UTF-8")?;
    let config = NodeConfig {
        run_dir: dir.join("run"),
        log_dir: dir.join("log"),
        shim_exe: me.clone(),
        shim_arguments: ["shim"].iter().chain(shim_arguments).map(Into::into).collect(),
        machine: MachineName::new("m1").map_err(|e| e.to_string())?,
        real_time: true,
        interfaces: BTreeMap::new(),
    };
    let (supervisor, adopted, _events) = Supervisor::open(config).await.map_err(|e| e.to_string())?;
    for server in adopted {
        println!("adopted {} {}", server.server, server.token);
    }
    let extender = supervisor.clone();
    let held: BTreeMap<_, _> = (0..count as usize).map(|n| Ok((server(n)?, TOKEN))).collect::<Result<_, String>>()?;
    let extend = tokio::spawn(async move {
        let mut ticks = interval(ttl / 5);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let _ = extender.extend_all(held.clone(), BootInstant::now() + ttl).await;
        }
    });
    for n in 0..count as usize {
        let stamps = dir.join(format!("stamps-{n}")).display().to_string();
        let command = [program, WORD, "victim", &stamps, kind].map(str::to_owned);
        let order = StartOrder {
            server: server(n)?,
            spec: ServerSpec { addresses: addresses(n, kind), ..spec(command.into()) },
            token: TOKEN,
            deadline: BootInstant::now() + first,
            clients: Vec::new(),
        };
        supervisor.start(order).await.map_err(|e| e.to_string())?;
    }
    println!("ready");
    extend.await.map_err(|e| e.to_string())
}

/// Returns the addresses of the n-th server, behind the network fence or not; most kinds have none.
fn addresses(n: usize, kind: &str) -> Vec<FloatingAddress> {
    if ![FENCED, FLOATING].contains(&kind) {
        return Vec::new();
    }
    let floating = |ip: IpAddr| FloatingAddress {
        ip: ip.to_string(),
        interface: None,
        announce: Announce::BeforeStart,
        tickle: false,
        network_fence: kind == FENCED,
    };
    wires::floating(n).map(floating).into()
}

fn spec(command: Vec<String>) -> ServerSpec {
    ServerSpec {
        start_timeout_ms: 5_000,
        stop_grace_ms: 100,
        restart: RestartPolicy { in_place: 0, ..RestartPolicy::default() },
        ..ServerSpec::new(command)
    }
}
