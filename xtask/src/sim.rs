//! Plays the simulation, optimised: `cargo xtask sim --seeds 100 --minutes 10`, `--seed 7 --scenario chaos --trace`.
//!
//! Left out on purpose: what the arguments mean (`tests/sim/src/main.rs`).

use crate::cargo;

/// Returns whether everything held.
pub(crate) fn run(arguments: &[String]) -> bool {
    let mut all = vec!["run", "--release", "--quiet", "--locked", "--package", "leaseward-sim", "--"];
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all, &[])
}
