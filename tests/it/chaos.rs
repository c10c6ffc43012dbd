//! A short run of chaos with a seed of its own, and one as an ordinary user, so that what the long ones are made of cannot rot.
//! `cargo xtask chaos` is the long one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use leaseward_tests::chaos::nemesis::Nemesis;
use leaseward_tests::chaos::{Plan, WORKLOADS, missing, run};
use leaseward_tests::hosts::{HOSTS, Hosts, Setup, clock};
use leaseward_tests::{binary, is_root, print_logs_of, victim};
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
        seed: 14,
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
            Nemesis::Narrow,
            Nemesis::Latency,
            Nemesis::LostFsync,
            Nemesis::WallClock,
        ],
        overlap: 2,
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
    // What mending delays comes after the end; the first half of the schedule is never so late.
    assert!(report.faults.len() >= 6, "{:?}", report.faults);
    assert!(report.faults.contains_key("lost-fsync"), "{:?}", report.faults);
    assert!(report.clocks_seen > 0, "no wall clock was stepped: {:?}", report.faults);
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

/// Nothing of it needs root but devices: an ordinary user is root of a namespace of his own.
#[test]
fn an_ordinary_user_breaks_what_needs_no_devices() {
    let dir = tempfile::tempdir().expect("a directory");
    let may = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("our own");
    may(dir.path());
    // Where the build is, others may not look.
    let chaos = dir.path().join("leaseward-chaos");
    let built = PathBuf::from(env!("CARGO_BIN_EXE_leaseward-chaos"));
    for (from, to) in [
        (built, chaos.clone()),
        (binary(), dir.path().join("leaseward")),
        (victim(), dir.path().join("leaseward-victim")),
        (clock::library(), dir.path().join(clock::LIBRARY)),
    ] {
        fs::copy(from, &to).expect("copied");
        may(&to);
    }
    let mut program = Command::new(if is_root() { "setpriv" } else { "env" });
    if is_root() {
        program.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    program.arg(chaos).current_dir(dir.path()).env_remove("LEASEWARD_BIN");
    program.args(["--nemesis", "partition,power,disk-full,pause-host,wall-clock,latency,lost-fsync", "--overlap", "2"]);
    program.args(["--hosts", "3", "--for", "8s", "--seed", "3355", "--out"]).arg(dir.path().join("out"));
    let output = program.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        print_logs_of(&dir.path().join("out/history-3355.logs"));
    }
    assert!(output.status.success(), "it was not well");
    if said.contains("left out: needs root") {
        return;
    }
    for nemesis in ["latency", "lost-fsync"] {
        assert!(
            said.contains(&format!("left out: {nemesis} needs root of the machine")),
            "{nemesis} should be left out"
        );
    }
    for done in ["well again", "partition 1", "power 1", "disk-full 1", "wall-clock 1", "clocks seen"] {
        assert!(said.contains(done), "no word of {done}");
    }
}
