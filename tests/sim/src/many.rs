//! Many seeds, each in a process of its own, as many at a time as there are processors. One JSON line in the end.

use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use leaseward_sim::scenario;
use serde_json::{Value, json};

use super::Wanted;

struct Run {
    child: Child,
    seed: u64,
    scenario: String,
}

pub(super) fn play(wanted: &Wanted) -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "a budget for people; nothing depends on it")]
    let began = Instant::now();
    let minutes = wanted.minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0));
    let seeds = wanted.seeds.unwrap_or(if minutes.is_some() { u64::MAX } else { 20 });
    let first = wanted.from.unwrap_or_else(new_seed);
    let names: Vec<&str> = match &wanted.scenario {
        Some(name) => vec![name.as_str()],
        None => scenario::ALL.iter().map(|scenario| scenario.name).collect(),
    };
    println!("seeds from {first}: {}", names.join(", "));
    let at_once = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut all = (first..first.saturating_add(seeds)).flat_map(|seed| names.iter().map(move |name| (seed, *name)));
    let mut running: Vec<Run> = Vec::new();
    let (mut runs, mut failed, mut steps, mut simulated, mut busy) = (0_u64, Vec::new(), 0_u64, 0.0, 0.0);
    loop {
        let in_time = minutes.is_none_or(|minutes| began.elapsed() < minutes);
        while running.len() < at_once && in_time {
            let Some((seed, name)) = all.next() else { break };
            match start(wanted, seed, name) {
                Ok(child) => running.push(Run { child, seed, scenario: name.to_owned() }),
                Err(error) => {
                    eprintln!("cannot start a run: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
        if running.is_empty() {
            break;
        }
        let Run { child, seed, scenario } = running.remove(0);
        let Ok(output) = child.wait_with_output() else { continue };
        runs += 1;
        let figures: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        steps += figures["steps"].as_u64().unwrap_or_default();
        simulated += figures["simulated_s"].as_f64().unwrap_or_default();
        busy += figures["cpu_s"].as_f64().unwrap_or_default();
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stderr));
            failed.push(format!("{scenario} {seed}"));
        }
    }
    let figures = json!({
        "runs": runs,
        "failed": failed,
        "first_seed": first,
        "steps": steps,
        "simulated_hours": simulated / 3_600.0,
        "simulated_s_per_cpu_s": if busy > 0.0 { simulated / busy } else { 0.0 },
        "took_s": began.elapsed().as_secs_f64(),
    });
    println!("{figures}");
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns a seed that was hardly ever played before.
fn new_seed() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    since.map_or(1, |since| u64::from(since.subsec_nanos()) * 1_000 + since.as_secs() % 1_000)
}

fn start(wanted: &Wanted, seed: u64, scenario: &str) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &seed.to_string(), "--scenario", scenario]);
    if let Some(rule) = &wanted.broken {
        command.args(["--break", rule]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}
