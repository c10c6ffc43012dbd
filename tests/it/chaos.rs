//! A short run of chaos with a seed of its own, so that what the long ones are made of cannot rot. `cargo xtask chaos` is the
//! long one.

use std::path::PathBuf;
use std::time::Duration;

use leaseward_tests::chaos::nemesis::Nemesis;
use leaseward_tests::chaos::{Plan, WORKLOADS, missing, run};
use leaseward_tests::hosts::{HOSTS, Hosts, Setup};
use tokio::time::Instant;

/// The budget of a gate.
const LASTING: Duration = Duration::from_secs(25);

/// A disk that is slow for a second is only slow; then there is an election; a question that was asked too early is over
/// after two.
const REPLACED_WITHIN: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_run_finds_nothing() {
    let out = tempfile::tempdir().expect("a directory");
    let plan = Plan {
        hosts: 3,
        seed: 20,
        lasting: LASTING,
        nemeses: vec![
            Nemesis::Partition,
            Nemesis::Isolate,
            Nemesis::OneWay,
            Nemesis::Clients,
            Nemesis::Pause,
            Nemesis::Kill,
            Nemesis::Power,
            Nemesis::DiskStall,
        ],
        workloads: WORKLOADS.map(|(_, workload)| workload).to_vec(),
        out: PathBuf::from(out.path()),
        previous: None,
        command: "this test".to_owned(),
    };
    let Some(report) = run(&plan).await else { return };
    println!("{report}");
    assert!(report.is_well(), "{report}");
    for kind in ["write", "read", "once", "event", "disk", "hold", "add", "effect", "life"] {
        let ok = report.operations.get(kind).map_or(0, |counts| counts[0]);
        assert!(ok > 0, "no {kind} went well, so nothing was looked at");
    }
    assert!(report.faults.len() >= 6, "{:?}", report.faults);
}

/// Nobody leads for as long as a leader's disk stands still and the others believe that it does. They must not believe it:
/// nothing would be granted and nothing moved, for as long as a disk hangs.
#[tokio::test]
async fn a_leader_whose_disk_stands_still_is_replaced_while_it_does() {
    if let Some(missing) = missing() {
        println!("left out: needs {missing}");
        return;
    }
    let Some(mut hosts) = Hosts::set_up(Setup { disk_bytes: Some(512 << 20), ..Setup::default() }).await else {
        return;
    };
    let leader = |hosts: &Hosts| {
        let name = hosts.cluster()?["leader"].as_str()?.to_owned();
        HOSTS.iter().position(|host| *host == name)
    };
    let old = hosts.until_some("somebody leads", async |hosts| leader(hosts)).await;
    let others = hosts.all_apis().into_iter().enumerate().filter(|(host, _)| *host != old);
    let others: Vec<String> = others.map(|(_, api)| api.to_string()).collect();
    hosts.disk(old).freeze();
    let stands_still = Instant::now();
    // Whoever asks the others: what the old leader was asked waits for its disk.
    let words = ["policy", "set", "poison_after=0", "--yes", "--timeout", "2s", "--addr", &others.join(",")];
    let written = async |hosts: &Hosts| hosts.cli(&words).status.success();
    hosts.until("a write goes through", written).await;
    let after = stands_still.elapsed();
    println!("disk of the leader stands still: a write went through after {after:?}");
    let new = hosts.until_some("somebody else leads", async |hosts| leader(hosts).filter(|new| *new != old)).await;
    assert!(after < REPLACED_WITHIN, "{after:?}");
    hosts.disk(old).thaw();
    hosts.until_connected(HOSTS.len() as u64).await;
    println!("{} led, now {}", HOSTS[old], HOSTS[new]);
}
