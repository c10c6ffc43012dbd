//! What the tests run as real processes: a shim, an agent that hosts a supervisor, a guard, and a victim.
//!
//! Must stay true: a victim resists all that a process may resist: it ignores polite signals, starts threads,
//! children and daemons that leave its session and fork on and on. Every part of it stamps the boot clock into its
//! slot of a file, so that its last instruction is on record. Part of no package.

mod agent;
mod victim;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    if mode == "shim" {
        return leaseward_node::shim::main(rest);
    }
    let rest: Vec<String> = rest.into_iter().map(|a| a.into_string().expect("test arguments are UTF-8")).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (mode.to_str().unwrap_or_default(), rest.as_slice()) {
        ("victim", [stamps]) => victim::main(stamps),
        ("victim-part", [stamps, slot]) => victim::part(stamps, slot),
        ("agent", [dir, count, ttl_ms, mutant]) => agent::host(dir, count, ttl_ms, mutant),
        ("story", [dir]) => agent::story(dir),
        ("guard", [dir, ttl_ms]) => agent::guard(dir, ttl_ms),
        ("run", command) => return agent::run_guarded(command),
        ("level", []) => println!("{}", leaseward_node::fence::level(true)),
        other => panic!("the lab does not know {other:?}"),
    }
    ExitCode::SUCCESS
}
