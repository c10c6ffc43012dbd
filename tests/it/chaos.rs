//! A short run of chaos with a seed of its own, so that what the long ones are made of cannot rot. `cargo xtask chaos` is the
//! long one.

use std::path::PathBuf;
use std::time::Duration;

use leaseward_tests::chaos::nemesis::Nemesis;
use leaseward_tests::chaos::{Plan, WORKLOADS, run};

/// The budget of a gate.
const LASTING: Duration = Duration::from_secs(25);

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
