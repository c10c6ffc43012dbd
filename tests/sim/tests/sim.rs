//! What CI asks of the simulation: that it replays, that some seeds hold, and that each broken rule is noticed.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output};
use std::sync::Mutex;

use leaseward_sim::{mutant, scenario};
use serde_json::Value;

/// Seeds within which a broken rule must be noticed.
const NOTICED_WITHIN: u64 = 16;

fn sim(seed: u64, scenario: &str, broken: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leaseward-sim"));
    command.args(["--seed", &seed.to_string(), "--scenario", scenario]);
    if let Some(rule) = broken {
        command.args(["--break", rule]);
    }
    command.output().expect("it runs")
}

fn figures(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| {
        panic!("{error}, {}: {text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    })
}

/// Does all of the work on two threads, as CI has two processors. Returns what went wrong.
fn in_pairs<T: Send>(work: impl IntoIterator<Item = T>, each: impl Fn(T) -> Option<String> + Sync) -> Vec<String> {
    let work: Mutex<VecDeque<T>> = Mutex::new(work.into_iter().collect());
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(next) = work.lock().expect("no panic").pop_front() else { return };
                    if let Some(what) = each(next) {
                        wrong.lock().expect("no panic").push(what);
                    }
                }
            });
        }
    });
    wrong.into_inner().expect("no panic")
}

/// Returns what a run that failed came to: the end of what it said, and last its seed with the command that replays it, however it
/// ended.
fn told(seed: u64, scenario: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("replay it: ")).collect();
    let newest = lines[lines.len().saturating_sub(12)..].join("\n");
    let how = output.status;
    format!("{newest}\nseed {seed} of {scenario}, {how}: cargo xtask sim --seed {seed} --scenario {scenario} --trace")
}

fn holds(seed: u64, scenario: &str) -> Option<String> {
    let output = sim(seed, scenario, None);
    // At once, too: a test that is killed meanwhile says nothing in the end.
    let told = (!output.status.success()).then(|| told(seed, scenario, &output));
    told.iter().for_each(|told| eprintln!("{told}"));
    told
}

/// Puts together what went wrong, so that the last lines say what replays it, run by run.
fn all_told(wrong: &[String]) -> String {
    let again = wrong.iter().filter_map(|told| told.lines().last());
    format!("{}\n\n{} failed:\n{}", wrong.join("\n\n"), wrong.len(), again.collect::<Vec<_>>().join("\n"))
}

#[test]
fn whatever_fails_says_last_what_replays_it_however_it_ended() {
    let ended = |wait_status, said: &str| Output {
        status: ExitStatus::from_raw(wait_status),
        stdout: Vec::new(),
        stderr: said.as_bytes().to_vec(),
    };
    let violated = format!("{}seed 3 of calm: two believe\nreplay it: somehow\n", "an event\n".repeat(60));
    let runs = [
        (3, "calm", ended(1 << 8, &violated), "two believe"),
        (4, "chaos", ended(101 << 8, "thread 'main' panicked at openraft\n"), "panicked at openraft"),
        // Somebody killed it: it said nothing.
        (5, "crowd", ended(9, ""), "signal: 9"),
    ];
    let wrong: Vec<String> = runs.iter().map(|(seed, scenario, output, _)| told(*seed, scenario, output)).collect();
    let all = all_told(&wrong);
    let last: Vec<&str> = all.lines().rev().take(runs.len()).collect();
    for (i, (seed, scenario, _, why)) in runs.iter().enumerate() {
        let replay = format!("cargo xtask sim --seed {seed} --scenario {scenario} --trace");
        assert!(wrong[i].contains(why), "{}", wrong[i]);
        assert!(wrong[i].lines().last().is_some_and(|line| line.ends_with(&replay)), "{}", wrong[i]);
        assert!(last[runs.len() - 1 - i].ends_with(&replay), "{all}");
    }
}

#[test]
fn one_seed_is_one_trace() {
    for scenario in ["calm", "chaos"] {
        let trace = |seed| figures(&sim(seed, scenario, None))["trace"].clone();
        let first = trace(7);
        assert_eq!(trace(7), first, "{scenario}: the same seed again");
        assert_ne!(trace(8), first, "{scenario}: another seed");
    }
}

#[test]
fn these_seeds_hold_and_a_few_new_ones() {
    let new = RandomState::new().hash_one(std::process::id()) % 1_000_000_000;
    println!("new seeds from {new}");
    let aimed = scenario::ALL.iter().filter(|scenario| !["chaos", "crowd"].contains(&scenario.name));
    let mut work: Vec<(u64, &str)> = aimed.flat_map(|scenario| [(1, scenario.name), (new, scenario.name)]).collect();
    // They failed once.
    work.extend([3, 4, 15, 25, 32, 38, 645_095_702_901].map(|seed| (seed, "nobody-leads")));
    work.extend((2..=4).flat_map(|seed| [(seed, "broken-clocks"), (seed, "upgrade"), (seed, "stalled-leader")]));
    work.extend((1..=12).chain(new..new + 4).map(|seed| (seed, "chaos")));
    work.extend((1..=3).chain(new..new + 1).map(|seed| (seed, "crowd")));
    let wrong = in_pairs(work, |(seed, scenario)| holds(seed, scenario));
    assert!(wrong.is_empty(), "{}", all_told(&wrong));
}

#[test]
fn each_broken_rule_is_noticed() {
    let aims = |broken| scenario::ALL.iter().filter(move |scenario| scenario.notices.contains(&broken));
    // Each scenario by itself: what it says that it notices, it does.
    let all = mutant::ALL.iter().flat_map(|(rule, broken)| aims(*broken).map(move |scenario| (*rule, scenario.name)));
    let all: Vec<(&str, &str)> = all.collect();
    let unaimed = mutant::ALL.iter().map(|(rule, _)| *rule).filter(|rule| all.iter().all(|(of, _)| of != rule));
    assert_eq!(unaimed.collect::<Vec<_>>(), [""; 0], "no scenario is about these");
    let wrong = in_pairs(all, |(rule, scenario)| {
        for seed in 1..=NOTICED_WITHIN {
            let output = sim(seed, scenario, Some(rule));
            if !output.status.success() {
                println!("{rule}: seed {seed} of {scenario}: {}", figures(&output)["violation"]);
                return None;
            }
        }
        Some(format!("{scenario} did not notice within {NOTICED_WITHIN} seeds that {rule} is broken"))
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
