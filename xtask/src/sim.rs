//! Plays the simulation, optimised: `cargo xtask sim --seeds 100 --minutes 10`, `--seed 7 --scenario chaos --trace`.
//!
//! Must stay true: no binary that ships has what the simulation needs. Left out on purpose: what the arguments mean (`tests/sim/src/main.rs`).

use std::process::Command;

use crate::{cargo, root};

/// Features of our crates that no shipped binary has.
const NOT_SHIPPED: &[&str] = &["simulation", "mutants"];

/// Returns whether everything held.
pub(crate) fn run(arguments: &[String]) -> bool {
    let mut all = vec!["run", "--release", "--quiet", "--locked", "--package", "leaseward-sim", "--"];
    all.extend(arguments.iter().map(String::as_str));
    cargo(&all, &[])
}

/// Returns which features for tests alone are in the binary that ships.
pub(crate) fn shipped() -> Vec<String> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["tree", "--locked", "--package", "leaseward-cli", "--edges", "normal,features", "--prefix", "none"])
        .current_dir(root())
        .output();
    match output {
        Ok(output) if output.status.success() => named_in(&String::from_utf8_lossy(&output.stdout)),
        _ => vec!["cargo tree fails".into()],
    }
}

fn named_in(tree: &str) -> Vec<String> {
    let has = |feature: &&&str| tree.lines().any(|line| line.contains(&format!("feature \"{feature}\"")));
    NOT_SHIPPED.iter().filter(has).map(|feature| format!("the binary has the feature {feature}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_for_tests_is_found_and_none_ships() {
        assert_eq!(named_in("leaseward-raft feature \"mutants\"\nserde feature \"rc\"").len(), 1);
        assert_eq!(shipped(), Vec::<String>::new());
    }
}
