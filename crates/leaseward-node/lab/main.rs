//! What the tests run as real processes: a shim, an agent that hosts a supervisor, a guard, and a victim.
//!
//! The agent under attack and its victims are the crate's own (`attack`). Part of no package.

mod address;
mod agent;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let mode = arguments.next().unwrap_or_default();
    let rest: Vec<OsString> = arguments.collect();
    if mode == "shim" {
        return leaseward_node::shim::main(rest);
    }
    if mode == leaseward_node::attack::WORD {
        return leaseward_node::attack::main(rest);
    }
    let rest: Vec<String> = rest.into_iter().map(|a| a.into_string().expect("test arguments are UTF-8")).collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (mode.to_str().unwrap_or_default(), rest.as_slice()) {
        ("story", [dir]) => agent::story(dir),
        ("serve", [dir]) => agent::serve(dir),
        ("guard", [dir, ttl_ms]) => agent::guard(dir, ttl_ms),
        ("run", command) => return agent::run_guarded(command),
        ("address", [dir, interfaces @ ..]) => address::converse(dir, interfaces),
        ("echo", [ip, port]) => address::echo(ip, port),
        ("level", []) => println!("{}", leaseward_node::fence::level(true)),
        other => panic!("the lab does not know {other:?}"),
    }
    ExitCode::SUCCESS
}
