//! A server that does not want to die.
//!
//! Must stay true: it resists all that a process may resist: it ignores polite signals, starts threads, children and
//! daemons that leave its session and fork on and on. Every part of it stamps the boot clock into its slot of a file,
//! so that its last instruction is on record.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;

use super::WORD;
use crate::clock::BootInstant;

/// Main process, thread, child, daemon, daemon that forks on and on.
pub(super) const FULL: &str = "full";
/// The same with several that fork on and on.
pub(super) const SWARM: &str = "swarm";
/// The same without any: who is there stays.
pub(super) const STEADY: &str = "steady";
/// The same, with addresses behind the network fence.
pub(super) const FENCED: &str = "fenced";
/// The same without the fence.
pub(super) const FLOATING: &str = "floating";

/// Returns how many parts of a victim stamp.
pub(super) fn slots(kind: &str) -> usize {
    if [STEADY, FENCED, FLOATING].contains(&kind) { 4 } else { 5 }
}

/// Starts every part and becomes the first. Does not return.
pub(super) fn main(stamps: &str, kind: &str) -> Result<(), String> {
    stubborn()?;
    let hoppers = match kind {
        STEADY | FENCED | FLOATING => 0,
        SWARM => 3,
        _ => 1,
    };
    for part in ["child", "daemon"].into_iter().chain((0..hoppers).map(|_| "hopper")) {
        spawn(stamps, part)?;
    }
    let file = open(stamps)?;
    std::thread::spawn(move || stamp_forever(&file, 1));
    stamp_forever(&open(stamps)?, 0)
}

/// Runs one part in a process of its own.
pub(super) fn part(stamps: &str, part: &str) -> Result<(), String> {
    stubborn()?;
    match part {
        "child" => stamp_forever(&open(stamps)?, 2),
        // Leaves the session, and its parent with it.
        "daemon" => {
            let _ = nix::unistd::setsid();
            spawn(stamps, "orphan")
        }
        "orphan" => {
            let _ = nix::unistd::setsid();
            stamp_forever(&open(stamps)?, 3)
        }
        // Never the same process for long.
        "hopper" => {
            let _ = nix::unistd::setsid();
            stamp(&open(stamps)?, 4);
            spawn(stamps, "hopper")
        }
        other => Err(format!("a victim has no part {other}")),
    }
}

fn stubborn() -> Result<(), String> {
    SigSet::all().thread_set_mask().map_err(|e| format!("block signals: {e}"))?;
    // Whoever dies with its parent would not need a fence.
    nix::sys::prctl::set_pdeathsig(None).map_err(|e| format!("outlive the parent: {e}"))
}

/// Starts a part. It may go on until the kernel refuses; what it leaves behind is init's to reap.
fn spawn(stamps: &str, part: &str) -> Result<(), String> {
    let me = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    let mut command = Command::new(me);
    command.args([WORD, "part", stamps, part]).stdin(Stdio::null());
    command.spawn().map(drop).map_err(|e| format!("start a part: {e}"))
}

fn open(stamps: &str) -> Result<File, String> {
    let file = File::options().write(true).create(true).truncate(false).open(stamps);
    file.map_err(|e| format!("open {stamps}: {e}"))
}

fn stamp(file: &File, slot: u64) {
    let _ = file.write_all_at(&BootInstant::now().0.to_le_bytes(), slot * 8);
}

fn stamp_forever(file: &File, slot: u64) -> ! {
    loop {
        stamp(file, slot);
        std::thread::sleep(Duration::from_micros(200));
    }
}
