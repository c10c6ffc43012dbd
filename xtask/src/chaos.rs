//! Chaos: builds the binary that is to be broken and the one that breaks it, and starts that one.

use std::process::Command;

use crate::{cargo, previous, root};

/// Builds, and passes the words on. `--debug` among them builds without optimisation, `--from-commit COMMIT` builds that commit
/// too, for agents to begin with. Returns whether all was well.
pub(crate) fn chaos(words: &[String]) -> bool {
    let mut passed = Vec::new();
    let (mut profile, mut from) = ("release", None);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--debug" => profile = "debug",
            "--from-commit" => {
                let Some(commit) = words.next() else {
                    eprintln!("--from-commit needs a commit, such as HEAD~1");
                    return false;
                };
                from = Some(commit);
            }
            _ => passed.push(word),
        }
    }
    let mut build = vec!["build", "--locked", "--bins", "-p", "leaseward-cli", "-p", "leaseward-tests"];
    if profile == "release" {
        build.push("--release");
    }
    if !cargo(&build, &[]) {
        return false;
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let mut chaos = Command::new(target.join(profile).join("leaseward-chaos"));
    chaos.args(passed);
    if let Some(commit) = from {
        match previous::binary(&root(), &target, commit, profile) {
            Ok(binary) => chaos.arg("--previous").arg(binary),
            Err(why) => {
                eprintln!("{why}");
                return false;
            }
        };
    }
    chaos.status().is_ok_and(|status| status.success())
}
