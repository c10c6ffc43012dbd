//! What it costs: one JSON line per measurement, on three real voter processes on loopback.
//!
//! `cargo build --release && cargo run --release -p leaseward-benches -- all`, or one of the names below instead of
//! `all`. The machine's own speed is measured in the same run (`fdatasync_us`), because only ratios travel.

mod figures;
mod floor;
mod leases;
mod outage;
mod publish;

use serde_json::json;

/// A measurement: prints its line.
type Bench = fn(&tokio::runtime::Runtime) -> serde_json::Value;

/// All measurements, by name.
const BENCHES: &[(&str, Bench)] = &[
    ("floor", |_| floor::fdatasync()),
    ("commit-latency", |runtime| runtime.block_on(leases::commit_latency())),
    ("acquire-rate", |runtime| runtime.block_on(leases::acquire_rate())),
    ("renewal-rate", |runtime| runtime.block_on(leases::renewal_rate())),
    ("expiry-overshoot", |runtime| runtime.block_on(leases::expiry_overshoot())),
    ("leader-kill", |runtime| runtime.block_on(outage::leader_kill())),
    ("publish-to-applied", |runtime| runtime.block_on(publish::publish_to_applied())),
];

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut found = false;
    for (name, bench) in BENCHES {
        if wanted == "all" || wanted == *name {
            found = true;
            let mut line = bench(&runtime);
            line["bench"] = json!(name);
            println!("{line}");
        }
    }
    if !found {
        let names: Vec<_> = BENCHES.iter().map(|(name, _)| *name).collect();
        eprintln!("no such bench; there are: all {}", names.join(" "));
        std::process::exit(2);
    }
}
