//! `cargo xtask fuzz [--for SECONDS] [TARGET…]`: libFuzzer on each target of `tests/fuzzing`, for so long each.
//!
//! It needs a nightly compiler and `cargo install cargo-fuzz`, and begins with the gate's seeds. What it finds stands in `tests/fuzzing/corpus/TARGET/`, for
//! the gate to look at from then on; what it learned on the way is kept out of the repository.

use std::fs;
use std::path::Path;
use std::process::Command;

/// For each target, if nothing else is said.
const SECONDS: &str = "60";

/// Whoever needs more for a few kilobytes of input is wrong.
const MEMORY_MAX: &str = "-rss_limit_mb=1024";

/// Runs the targets one after the other; returns whether none of them fell.
pub(crate) fn run(root: &Path, arguments: impl Iterator<Item = String>) -> bool {
    let dir = root.join("tests/fuzzing");
    let (mut seconds, mut wanted) = (SECONDS.to_owned(), Vec::new());
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--for" => seconds = arguments.next().unwrap_or_default(),
            _ => wanted.push(argument),
        }
    }
    if seconds.parse::<u64>().is_err() {
        eprintln!("cargo xtask fuzz [--for SECONDS] [TARGET…]");
        return false;
    }
    if wanted.is_empty() {
        wanted = names_in(&dir.join("corpus"));
    }
    let mut held = true;
    for target in &wanted {
        println!("== fuzz {target}: {seconds} s");
        held &= one(&dir, target, &seconds);
    }
    held
}

fn one(dir: &Path, target: &str, seconds: &str) -> bool {
    let (corpus, learned) = (dir.join("corpus").join(target), dir.join("libfuzzer/target/learned").join(target));
    if let Err(error) = fs::create_dir_all(&learned) {
        eprintln!("make {}: {error}", learned.display());
        return false;
    }
    let mut seeds = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    seeds.args(["run", "--quiet", "--locked", "-p", "leaseward-fuzz", "--bin", "seeds", "--", target]).arg(&learned);
    if !seeds.current_dir(dir).status().is_ok_and(|status| status.success()) {
        return false;
    }
    let mut command = Command::new("cargo");
    // This directory's toolchain would win over the argument.
    command.env_remove("RUSTUP_TOOLCHAIN").env("LEASEWARD_FUZZ_TARGET", target).current_dir(dir);
    command.args(["+nightly", "fuzz", "run", "--fuzz-dir"]).arg(dir.join("libfuzzer")).arg("target");
    command.args([&learned, &corpus]).arg("--").arg(format!("-max_total_time={seconds}")).arg(MEMORY_MAX);
    command.arg(format!("-artifact_prefix={}/", corpus.display()));
    command.status().is_ok_and(|status| status.success())
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
