//! Chaos by command: see `docs/how-to/chaos.md`. Started by `cargo xtask chaos`, which builds what it needs first.
//!
//! Who is not root becomes root of a user namespace first, where that is allowed.
//!
//! It exits with 1 if anything was wrong, with 2 if the words were not understood. Stopped by a signal it leaves nothing
//! behind.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use leaseward_tests::chaos::nemesis::{NEMESES, Nemesis};
use leaseward_tests::chaos::peer::{compare, table};
use leaseward_tests::chaos::{Plan, WORKLOADS, left_out, run};
use leaseward_tests::is_root;
use leaseward_tests::stamps::boot_ns;
use tokio::signal::ctrl_c;
use tokio::signal::unix::{SignalKind, signal};

/// Where histories are kept if nothing else is said.
const OUT: &str = "target/chaos";

/// More things broken at a time leave no host that could be learned from.
const OVERLAP_MAX: usize = 5;

/// Says that this program is root of a user namespace already.
const INSIDE: &str = "LEASEWARD_CHAOS_INSIDE";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "--peer") {
        return peer(&words[1..]);
    }
    let mut plan = match plan(&words) {
        Ok(plan) => plan,
        Err(why) => {
            eprintln!("{why}\n\n{}", usage());
            return ExitCode::from(2);
        }
    };
    if !is_root() && std::env::var_os(INSIDE).is_none() {
        return inside(&words);
    }
    plan.nemeses.retain(|nemesis| {
        let why = left_out(*nemesis);
        why.iter().for_each(|why| println!("left out: {} needs {why}", nemesis.name()));
        why.is_none()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(unless_stopped(run(&plan))) {
        Some(Some(report)) => {
            print!("{report}");
            println!("{}", report.line());
            ExitCode::from(u8::from(!report.is_well()))
        }
        // It was said why it is left out.
        Some(None) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// Becomes root of a user namespace, with a network and mounts that nobody else sees, and starts again there.
fn inside(words: &[String]) -> ExitCode {
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--net", "--mount", "--"]);
        unshare
    };
    if !unshare().arg("true").status().is_ok_and(|status| status.success()) {
        println!("left out: needs root, or user namespaces");
        return ExitCode::SUCCESS;
    }
    let me = std::env::current_exe().expect("a program knows where it is");
    // Network namespaces are named below `/run`.
    let then = "mount -t tmpfs none /run && exec \"$0\" \"$@\"";
    let error = unshare().args(["sh", "-c", then]).arg(me).args(words).env(INSIDE, "1").exec();
    eprintln!("unshare: {error}");
    ExitCode::FAILURE
}

/// Does something, until a signal asks us to stop: then all of it is gone when this returns.
async fn unless_stopped<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened to");
    tokio::select! {
        done = work => return Some(done),
        _ = terminate.recv() => {}
        _ = ctrl_c() => {}
    }
    eprintln!("stopped by a signal");
    None
}

/// Compares with a peer: `--peer etcd [STALLS] [--out DIR]`.
fn peer(words: &[String]) -> ExitCode {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (stalls, out) = match words[..] {
        ["etcd"] => (Ok(3), OUT),
        ["etcd", "--stalls", stalls] => (stalls.parse(), OUT),
        ["etcd", "--out", out] => (Ok(3), out),
        ["etcd", "--stalls", stalls, "--out", out] => (stalls.parse(), out),
        _ => (Ok(0), OUT),
    };
    let Ok(stalls @ 1..) = stalls else {
        eprintln!("{}", usage());
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let Some(rows) = runtime.block_on(unless_stopped(compare(stalls, Path::new(out)))) else {
        return ExitCode::FAILURE;
    };
    print!("{}", table(&rows));
    rows.iter().for_each(|row| println!("{}", row.line()));
    // The last one is ours.
    ExitCode::from(u8::from(rows.last().is_some_and(|row| !row.is_well())))
}

fn usage() -> String {
    format!(
        "cargo xtask chaos [--nemesis LIST] [--workload LIST] [--for 60s] [--seed N] [--hosts 5] [--overlap 1]\n\
         \x20                 [--out DIR] [--previous BINARY | --from-commit COMMIT]\n\
         cargo xtask chaos --peer etcd [--stalls 3] [--out DIR]\n\
         nemeses:   all, or some of {}\n\
         workloads: all, or some of {}",
        NEMESES.map(|(name, _)| name).join(","),
        WORKLOADS.map(|(name, _)| name).join(",")
    )
}

fn chosen<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<Vec<T>, String> {
    if text == "all" {
        return Ok(known.iter().map(|(_, one)| *one).collect());
    }
    let find = |name: &str| known.iter().find(|(known, _)| *known == name).map(|(_, one)| *one);
    text.split(',').map(|name| find(name.trim()).ok_or_else(|| format!("nobody knows `{name}`"))).collect()
}

fn plan(words: &[String]) -> Result<Plan, String> {
    let mut plan = Plan {
        hosts: 5,
        // Another one each time, and said, so that the run can be repeated.
        seed: boot_ns() / 1_000_000,
        lasting: Duration::from_secs(60),
        nemeses: NEMESES.map(|(_, nemesis)| nemesis).to_vec(),
        overlap: 1,
        workloads: WORKLOADS.map(|(_, workload)| workload).to_vec(),
        out: PathBuf::from(OUT),
        previous: None,
        command: String::new(),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        let wrong = |why: &str| format!("{word} {value}: {why}");
        match word.as_str() {
            "--nemesis" => plan.nemeses = chosen(value, &NEMESES)?,
            "--overlap" => match value.parse() {
                Ok(overlap @ 1..=OVERLAP_MAX) => plan.overlap = overlap,
                _ => return Err(wrong(&format!("a number up to {OVERLAP_MAX}"))),
            },
            "--workload" => plan.workloads = chosen(value, &WORKLOADS)?,
            "--for" => {
                let lasting = value.parse::<leaseward_http::model::Duration>().map_err(|_| wrong("such as 10m"))?;
                plan.lasting = lasting.into();
            }
            "--seed" => plan.seed = value.parse().map_err(|_| wrong("a number"))?,
            "--hosts" => match value.parse() {
                Ok(hosts @ (3 | 5)) => plan.hosts = hosts,
                _ => return Err(wrong("3 or 5")),
            },
            "--out" => plan.out = PathBuf::from(value),
            "--previous" => plan.previous = Some(PathBuf::from(value)),
            _ => return Err(format!("`{word}` is not understood")),
        }
    }
    if plan.previous.is_none() && plan.nemeses.contains(&Nemesis::Upgrade) {
        println!("left out: upgrade needs --previous BINARY, or --from-commit COMMIT of `cargo xtask chaos`");
        plan.nemeses.retain(|nemesis| *nemesis != Nemesis::Upgrade);
    }
    plan.command = again(&plan);
    Ok(plan)
}

fn again(plan: &Plan) -> String {
    let nemeses: Vec<&str> = plan.nemeses.iter().map(|nemesis| nemesis.name()).collect();
    let name = |workload| WORKLOADS.iter().find(|(_, known)| known == workload).map_or("?", |(name, _)| name);
    let workloads: Vec<&str> = plan.workloads.iter().map(name).collect();
    let previous = plan.previous.as_ref().map(|path| format!(" --previous {}", path.display()));
    format!(
        "cargo xtask chaos --nemesis {} --workload {} --for {}s --seed {} --hosts {} --overlap {}{}",
        nemeses.join(","),
        workloads.join(","),
        plan.lasting.as_secs(),
        plan.seed,
        plan.hosts,
        plan.overlap,
        previous.unwrap_or_default()
    )
}
