//! Chaos: builds the binary that is to be broken and the one that breaks it, and starts that one.

use std::process::Command;

use crate::{cargo, root};

/// Builds, and passes the words on. `--debug` among them builds without optimisation. Returns whether all was well.
pub(crate) fn chaos(words: &[String]) -> bool {
    let debug = words.iter().any(|word| word == "--debug");
    let profile: &[&str] = if debug { &[] } else { &["--release"] };
    let build = [&["build", "--locked", "--bins", "-p", "leaseward-cli", "-p", "leaseward-tests"], profile].concat();
    if !cargo(&build, &[]) {
        return false;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut chaos = Command::new(target.join(if debug { "debug" } else { "release" }).join("leaseward-chaos"));
    chaos.args(words.iter().filter(|word| *word != "--debug"));
    chaos.status().is_ok_and(|status| status.success())
}
