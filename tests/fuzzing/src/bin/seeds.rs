//! `seeds TARGET DIRECTORY`: writes what a target begins with, a file each, for a fuzzer that wants files.

use std::path::PathBuf;
use std::process::ExitCode;

use leaseward_fuzz::TARGETS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, dir] = arguments.as_slice() else {
        eprintln!("seeds TARGET DIRECTORY");
        return ExitCode::from(2);
    };
    let Some(target) = TARGETS.iter().find(|known| known.name == target) else {
        eprintln!("there is no target {target}");
        return ExitCode::from(2);
    };
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let file = PathBuf::from(dir).join(format!("seed-{number}"));
        if let Err(error) = std::fs::write(&file, seed) {
            eprintln!("write {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
