//! One seed, in this process. Prints one JSON line, and what went wrong.

use std::process::ExitCode;
use std::time::Duration;

use leaseward_sim::clocks::SECOND;
use leaseward_sim::entropy;
use leaseward_sim::mutant::Mutant;
use leaseward_sim::scenario::Scenario;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::Wanted;

/// Lines of the trace that are shown with a violation.
const SHOWN: usize = 60;

pub(super) fn play(seed: u64, wanted: &Wanted) -> ExitCode {
    assert!(entropy::is_taken_away(), "the standard library still draws from the operating system");
    let name = wanted.scenario.as_deref().unwrap_or("chaos");
    let Some(scenario) = Scenario::named(name) else {
        eprintln!("there is no scenario {name}");
        return ExitCode::from(2);
    };
    let mutant = wanted.broken.as_deref().map(|rule| Mutant::named(rule).ok_or(rule));
    let mutant = match mutant.transpose() {
        Ok(mutant) => mutant,
        Err(rule) => {
            eprintln!("there is no rule {rule}");
            return ExitCode::from(2);
        }
    };
    let stage = scenario.play(seed, mutant, wanted.trace);
    // Of the processor, so that it says the same on a busy machine.
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = Duration::new(used.tv_sec as u64, used.tv_nsec as u32).as_secs_f64();
    let violation = stage.judge.violation();
    let steps: u64 = stage.world.machines.iter().map(|machine| machine.steps).sum();
    if let Some(what) = &violation {
        if !wanted.trace {
            for line in stage.world.trace.newest(SHOWN) {
                eprintln!("{line}");
            }
        }
        let broken = wanted.broken.as_ref().map(|rule| format!(" --break {rule}")).unwrap_or_default();
        eprintln!("seed {seed} of {name}: {what}");
        eprintln!("replay it: cargo xtask sim --seed {seed} --scenario {name}{broken} --trace");
    }
    let figures = json!({
        "scenario": name,
        "seed": seed,
        "trace": format!("{:016x}", stage.world.trace.hash()),
        "events": stage.world.trace.events(),
        "steps": steps,
        "simulated_s": stage.world.now as f64 / SECOND as f64,
        "cpu_s": used,
        "counts": stage.judge.counts(),
        "violation": violation,
    });
    println!("{figures}");
    // The hosts are dropped with their tasks, which takes as long as the run: nothing is left to learn from it.
    let failed = violation.is_some();
    std::mem::forget(stage.world.machines);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
