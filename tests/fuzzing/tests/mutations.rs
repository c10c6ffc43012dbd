//! The targets in the gate: all that was ever found (`corpus/`), and seeded changes of what they begin with.
//!
//! A fuzzer with coverage finds more: `cargo xtask fuzz`. What it finds goes to `corpus/`, and is looked at here from then on.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use leaseward_fuzz::TARGETS;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Changes of each target's seeds.
const CHANGES: u64 = 10_000;

/// Changes where each one is a file.
const CHANGES_IN_FILES: u64 = 400;

/// Numbers that lengths and counts are seldom ready for.
const NUMBERS: [u64; 6] = [0, 1, 0x7f, 0xffff, 0xffff_ffff, u64::MAX];

/// Changes bytes here and there: flips, cuts, pieces of another seed, and numbers that are too large.
fn change(seeds: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let mut bytes = seeds[random.gen_range(0..seeds.len())].clone();
    for _ in 0..random.gen_range(1..6) {
        let at = random.gen_range(0..=bytes.len());
        match random.gen_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.gen_range(0..8),
            1 => bytes.truncate(at),
            2 => {
                let other = &seeds[random.gen_range(0..seeds.len())];
                let piece = random.gen_range(0..=other.len().min(64));
                let from = random.gen_range(0..=other.len() - piece);
                bytes.splice(at..at, other[from..from + piece].iter().copied());
            }
            3 => {
                let number = NUMBERS[random.gen_range(0..NUMBERS.len())].to_le_bytes();
                let size = [1, 2, 4, 8][random.gen_range(0..4_usize)].min(bytes.len() - at);
                bytes[at..at + size].copy_from_slice(&number[..size]);
            }
            _ => bytes.insert(at, random.r#gen()),
        }
    }
    bytes
}

/// Returns whether the target read anything in these bytes.
fn must_hold(name: &str, run: fn(&[u8]) -> bool, bytes: &[u8], whence: &str) -> bool {
    let read = catch_unwind(|| run(bytes));
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    read.unwrap_or_else(|_| panic!("target {name}, {whence}, fell over these bytes: {hex}"))
}

#[test]
fn every_seed_is_read_and_no_change_of_it_makes_a_target_fall() {
    let seed = std::env::var("LEASEWARD_SEED").ok().map_or(4_711, |text| text.parse().expect("a number"));
    println!("seed {seed}");
    for target in TARGETS {
        let seeds = (target.seeds)();
        let read = seeds.iter().filter(|bytes| must_hold(target.name, target.run, bytes, "a seed")).count();
        assert!(read > 0, "nothing that {} begins with is read as anything", target.name);
        let mut random = SmallRng::seed_from_u64(seed);
        let changes = if matches!(target.name, "snapshots" | "backups") { CHANGES_IN_FILES } else { CHANGES };
        for number in 0..changes {
            let bytes = change(&seeds, &mut random);
            must_hold(target.name, target.run, &bytes, &format!("change {number} of seed {seed}"));
        }
    }
}

#[test]
fn what_was_found_once_is_looked_at_for_ever() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut looked_at = 0;
    for target in TARGETS {
        let files = fs::read_dir(corpus.join(target.name)).into_iter().flatten().flatten();
        for file in files {
            let bytes = fs::read(file.path()).expect("readable");
            must_hold(target.name, target.run, &bytes, &file.path().display().to_string());
            looked_at += 1;
        }
    }
    assert!(looked_at > 0, "the corpus is empty");
}
