//! A server that does not want to die.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use leaseward_node::BootInstant;
use nix::sys::signal::SigSet;

/// Main process, thread, child, daemon, daemon that forks on and on.
const PARTS: u64 = 5;

/// Starts every part and becomes the first.
pub(crate) fn main(stamps: &str) {
    stubborn();
    for part in ["child", "daemon", "hopper"] {
        spawn(stamps, part);
    }
    let file = stamps.to_owned();
    std::thread::spawn(move || stamp_forever(&file, 1));
    stamp_forever(stamps, 0);
}

/// Runs one part in a process of its own.
pub(crate) fn part(stamps: &str, part: &str) {
    stubborn();
    match part {
        "child" => stamp_forever(stamps, 2),
        // Leaves the session, and its parent with it.
        "daemon" => {
            let _ = nix::unistd::setsid();
            spawn(stamps, "orphan");
        }
        "orphan" => {
            let _ = nix::unistd::setsid();
            stamp_forever(stamps, 3);
        }
        // Never the same process for long.
        "hopper" => {
            let _ = nix::unistd::setsid();
            stamp(&open(stamps), 4);
            spawn(stamps, "hopper");
        }
        other => panic!("a victim has no part {other}"),
    }
}

fn stubborn() {
    SigSet::all().thread_set_mask().expect("signals can be blocked");
    // Whoever dies with its parent would not need a fence.
    nix::sys::prctl::set_pdeathsig(None).expect("it can be cleared");
}

fn spawn(stamps: &str, part: &str) {
    let me = std::env::current_exe().expect("the lab has a path");
    let mut command = Command::new(me);
    command.args(["victim-part", stamps, part]).stdin(Stdio::null());
    // The hopper goes on until the kernel refuses; what it leaves behind is init's to reap.
    let _child = command.spawn();
}

fn open(stamps: &str) -> File {
    File::options().write(true).create(true).truncate(false).open(stamps).expect("stamps can be written")
}

fn stamp(file: &File, slot: u64) {
    debug_assert!(slot < PARTS);
    let _ = file.write_all_at(&BootInstant::now().0.to_le_bytes(), slot * 8);
}

fn stamp_forever(stamps: &str, slot: u64) {
    let file = open(stamps);
    loop {
        stamp(&file, slot);
        std::thread::sleep(Duration::from_micros(200));
    }
}
