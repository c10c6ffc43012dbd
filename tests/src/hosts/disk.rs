//! A disk of a host's own: a file system in a file, which can be full, and can stand still.
//!
//! Must stay true: whatever becomes of this program, no disk stands still for good, as what waits for one cannot even be
//! killed: a process of its own thaws it once this one is gone, or after two minutes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// What takes all the room while a disk is full.
const FILLER: &str = "filler";

/// Thaws the disk `$0` when its standard input ends: when whoever froze it says so, or is gone.
const GUARD: &str = "trap '' INT TERM HUP; timeout 120 cat; fsfreeze -u \"$0\" 2>/dev/null; exit 0";

/// A disk that is mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    guard: Option<Child>,
}

impl Disk {
    /// Makes a disk of so many bytes in a file, and mounts it.
    ///
    /// # Panics
    /// If that cannot be: it needs root and loop devices.
    #[must_use]
    pub fn mount(image: &Path, at: &Path, bytes: u64) -> Self {
        File::create(image).and_then(|file| file.set_len(bytes)).expect("room for a disk");
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image));
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at));
        Self { at: at.to_owned(), guard: None }
    }

    /// Makes it stand still: whoever writes or syncs waits. It returns once what was written before is on the disk.
    ///
    /// # Panics
    /// If it cannot.
    pub fn freeze(&mut self) {
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD]).arg(&self.at).stdin(Stdio::piped()).stdout(Stdio::null());
        self.guard = Some(guard.spawn().expect("a guard"));
        run(Command::new("fsfreeze").arg("-f").arg(&self.at));
    }

    /// Lets it go on, if it stands still.
    pub fn thaw(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            // The guard does it when its input ends.
            drop(guard.stdin.take());
            guard.wait().ok();
        }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let Ok(file) = File::create(self.at.join(FILLER)) else { return };
        let Ok(room) = statvfs(&self.at) else { return };
        let (mut from, mut step) = (0, room.f_bavail * room.f_frsize);
        // What the file system needs for itself is not known before.
        while step >= room.f_frsize {
            match fallocate(&file, FallocateFlags::empty(), from, step) {
                Ok(()) => from += step,
                Err(_) => step /= 2,
            }
        }
    }

    /// Gives the room back.
    pub fn empty(&self) {
        fs::remove_file(self.at.join(FILLER)).ok();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        Command::new("umount").arg("-l").arg(&self.at).status().ok();
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
