//! The gate.
//!
//! `cargo xtask check` changes nothing and is what CI runs; `cargo xtask fix` changes what can be changed by itself;
//! `cargo xtask tidy` looks at the source tree alone. `cargo xtask fuzz` has a fuzzer look for bytes that make a reader fall,
//! `cargo xtask sim` plays simulations, `cargo xtask chaos` breaks a real cluster (`docs/how-to/test.md`).

mod chaos;
mod claims;
mod dependencies;
mod fuzz;
mod previous;
mod sim;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let done = match wanted.as_str() {
        "check" => check(),
        "fix" => fix(),
        "chaos" => chaos::chaos(&std::env::args().skip(2).collect::<Vec<_>>()),
        "fuzz" => fuzz::run(&root(), std::env::args().skip(2)),
        "sim" => sim::run(&std::env::args().skip(2).collect::<Vec<_>>()),
        "tidy" => step("tidy", || report("tidy", &[tidy::problems(&root()), claims::problems(&root())].concat())),
        _ => {
            eprintln!("cargo xtask check | fix | tidy | fuzz | sim | chaos");
            return ExitCode::from(2);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn root() -> PathBuf {
    // As it is now: what was built may have been built elsewhere, by a checkout that shared its target directory.
    let mine = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&mine).parent().expect("xtask lies in the workspace").to_owned()
}

/// Everything that must hold. Quick and cheap steps first.
fn check() -> bool {
    step("format", || cargo(&["fmt", "--all", "--check"], &[]))
        && step("tidy", || report("tidy", &[tidy::problems(&root()), claims::problems(&root())].concat()))
        && step("dependencies", || report("dependencies", &dependencies::problems(&root())))
        && step("features", || report("features", &sim::shipped()))
        && step("clippy", || {
            cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])
        })
        && step("advisories", advisories)
        // The README's second command.
        && step("tests", || cargo(&["test", "--workspace", "--locked"], &[]))
        && step("docs", || {
            cargo(&["doc", "--workspace", "--no-deps", "--locked"], &[("RUSTDOCFLAGS", "-D warnings")])
        })
}

/// Known holes in what we depend on. Licences, bans and sources are looked at by `dependencies.rs` in any case.
fn advisories() -> bool {
    let installed = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        println!("cargo-deny is not installed: known vulnerabilities are not looked up");
        return true;
    }
    cargo(&["deny", "--all-features", "check", "advisories"], &[])
}

fn fix() -> bool {
    cargo(&["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"], &[])
        && cargo(&["fmt", "--all"], &[])
}

fn step(name: &str, run: impl FnOnce() -> bool) -> bool {
    println!("== {name}");
    #[expect(clippy::disallowed_methods, reason = "a stopwatch for people; nothing depends on it")]
    let began = Instant::now();
    let passed = run();
    println!("== {name}: {} after {:.0} s", if passed { "ok" } else { "FAILED" }, began.elapsed().as_secs_f64());
    passed
}

fn report(name: &str, problems: &[String]) -> bool {
    for problem in problems {
        eprintln!("{name}: {problem}");
    }
    problems.is_empty()
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> bool {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    command.args(arguments).current_dir(root()).envs(environment.iter().copied());
    // A gate that rewrites what it compares with finds nothing.
    command.env_remove("UPDATE_GOLDENFILES").env_remove("UPDATE_EXPECT");
    command.status().is_ok_and(|status| status.success())
}
