//! The stories of the state, as golden scripts: what is asked, what is answered, what happens.
//!
//! Each file of `scripts/` is one story. After an intended change: `UPDATE_GOLDENFILES=1 cargo test -p leaseward-state`,
//! and read the difference. Every step checks the invariants.

mod script;

use script::Story;

fn run(name: &str) {
    let path = format!("{}/tests/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
    goldenscript::run(&mut Story::default(), path).expect("the script runs");
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_script_is_run() {
            let known = [$(stringify!($name),)* "machine_memory"];
            let dir = format!("{}/tests/scripts", env!("CARGO_MANIFEST_DIR"));
            for entry in std::fs::read_dir(dir).expect("a directory") {
                let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
                assert!(known.contains(&name.as_str()), "nobody runs {name}");
            }
        }
    };
}

stories!(
    lease_acquire,
    lease_expiry,
    lease_delay,
    lease_revoke,
    idempotency,
    stale_token,
    own_term,
    machine_life,
    server_care,
    server_heir,
    server_life,
    server_death,
    server_failures,
    config_program,
    config_publish,
    config_quota,
    config_rollout,
    config_set,
    config_turns,
    config_back,
    config_back_before,
    atomic,
    ledger,
    bounds,
    generation,
);

/// As the documents name it.
#[test]
fn whoever_does_not_remember_the_last_run_takes_nothing_over() {
    run("machine_memory");
}
