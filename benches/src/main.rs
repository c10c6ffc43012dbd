//! What it costs: one JSON line per measurement, on three real voter processes on loopback, or on hosts of their own.
//!
//! `cargo build --release && cargo run --release -p leaseward-benches -- all`, or `failover`, or one of the names below.
//! The machine's own speed is measured in the same run (`fdatasync_us`), because only ratios travel. It exits with 1 if
//! two copies of a server ever overlapped, or a soak found something that grew; stopped by a signal it leaves nothing behind.

mod failover;
mod figures;
mod floor;
mod leases;
mod load;
mod members;
mod outage;
mod publish;
mod soak;
mod sync;

use std::process::ExitCode;

use serde_json::json;

/// A measurement: prints its line.
type Bench = fn(&tokio::runtime::Runtime) -> serde_json::Value;

/// What `all` measures, on loopback.
const ALL: &[(&str, Bench)] = &[
    ("floor", |_| floor::fdatasync()),
    ("commit-latency", |runtime| runtime.block_on(leases::commit_latency())),
    ("acquire-rate", |runtime| runtime.block_on(leases::acquire_rate())),
    ("renewal-rate", |runtime| runtime.block_on(leases::renewal_rate())),
    ("expiry-overshoot", |runtime| runtime.block_on(leases::expiry_overshoot())),
    ("leader-kill", |runtime| runtime.block_on(outage::leader_kill())),
    ("publish-to-applied", |runtime| runtime.block_on(publish::publish_to_applied())),
];

/// What `failover` measures, on hosts: minutes each, and as root.
const FAILOVER: &[(&str, Bench)] = &[
    ("power-loss", |runtime| failover::on_hosts(runtime, failover::power_loss())),
    ("power-loss-leader", |runtime| failover::on_hosts(runtime, failover::power_loss_leader())),
    ("crash-in-place", |runtime| failover::on_hosts(runtime, failover::crash_in_place())),
    ("moved-gap", |runtime| failover::on_hosts(runtime, failover::moved_gap())),
    ("keepalived", |runtime| failover::on_hosts(runtime, failover::keepalived())),
];

/// Config sync against rsync, on hosts: a minute or two, and as root.
const SYNC: &[(&str, Bench)] = &[("sync", |runtime| failover::on_hosts(runtime, sync::sync()))];

/// Thousands of members, ten thousand sessions, on loopback: a minute each. And a soak, which takes as long as it is told.
const LONG: &[(&str, Bench)] = &[
    ("members", |runtime| runtime.block_on(members::members())),
    ("load", |runtime| runtime.block_on(load::load())),
    ("soak", |runtime| runtime.block_on(soak::soak())),
];

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let chosen: Vec<_> = match wanted.as_str() {
        "all" => ALL.iter().collect(),
        "failover" => FAILOVER.iter().collect(),
        name => ALL.iter().chain(FAILOVER).chain(SYNC).chain(LONG).filter(|(known, _)| *known == name).collect(),
    };
    if chosen.is_empty() {
        let names: Vec<_> = ALL.iter().chain(FAILOVER).chain(SYNC).chain(LONG).map(|(name, _)| *name).collect();
        eprintln!("no such bench; there are: all failover {}", names.join(" "));
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut is_bad = false;
    for (name, bench) in chosen {
        let mut line = bench(&runtime);
        is_bad |= line["overlaps"].as_u64().unwrap_or(0) > 0 || line["failed"] == true;
        line["bench"] = json!(name);
        println!("{line}");
        if line["left_out"] == failover::STOPPED {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::from(u8::from(is_bad))
}
