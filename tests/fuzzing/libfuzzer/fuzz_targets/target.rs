//! One binary for all targets: `LEASEWARD_FUZZ_TARGET` says which.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<String> =
    LazyLock::new(|| std::env::var("LEASEWARD_FUZZ_TARGET").expect("LEASEWARD_FUZZ_TARGET names a target"));

fuzz_target!(|bytes: &[u8]| leaseward_fuzz::run(&TARGET, bytes));
