//! A disk of a host's own, which can be full, stand still, and lose what it acknowledged.
//!
//! Must stay true: it is a file system of its own, so that what happens to it happens to nobody else; in a loop device, and of memory
//! for whoever is root of a user namespace only: that one can be full, and no more. A disk that stands still is let go whatever
//! happens: a process that waits for it cannot be killed: a process of its own thaws it once this one is gone, or after two minutes.
//! A disk that lies goes back to what its device had at one moment, the whole of it: nothing is torn, and every `fsync` since then was for nothing.
//!
//! Left out on purpose: a device that loses some of its writes and keeps later ones. The simulation's disk does that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::Instant;

use crate::{PATIENCE, owns_machine};

/// What takes all the room while a disk is full.
const FILLER: &str = "filler";

/// Thaws the disk `$0` when its standard input ends: when whoever froze it says so, or is gone.
const GUARD: &str = "trap '' INT TERM HUP; timeout 120 cat; fsfreeze -u \"$0\" 2>/dev/null; exit 0";

/// A disk that is mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
    /// The file behind the device, if there is one.
    image: Option<PathBuf>,
    /// What the device will have after the next power loss, if it lies.
    kept: Option<PathBuf>,
    guard: Option<Child>,
}

impl Disk {
    /// Makes a disk of so many bytes in a file, and mounts it.
    ///
    /// # Panics
    /// If that cannot be: it needs root, and loop devices unless it is a user namespace's.
    #[must_use]
    pub fn mount(image: &Path, at: &Path, bytes: u64) -> Self {
        let mut disk = Self { at: at.to_owned(), image: None, kept: None, guard: None };
        if owns_machine() {
            File::create(image).and_then(|file| file.set_len(bytes)).expect("room for a disk");
            // Whole at once: the kernel would go on with it while somebody measures, or freezes it.
            let now = ["-E", "lazy_itable_init=0,lazy_journal_init=0"];
            run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(now).arg(image));
            disk.image = Some(image.to_owned());
            disk.mount_image();
        } else {
            let size = format!("size={bytes}");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at));
        }
        disk
    }

    fn mount_image(&self) {
        let image = self.image.as_ref().expect("it is a device");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.at));
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

    /// Keeps what the device has now. From now on every sync is acknowledged, and lost with the power ([`Disk::go_back`]).
    ///
    /// # Panics
    /// If it cannot: it needs a device.
    pub fn begin_to_lie(&mut self) {
        let image = self.image.clone().expect("it is a device");
        let kept = image.with_extension("kept");
        // The copy is of one moment.
        self.freeze();
        run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&image).arg(&kept));
        self.thaw();
        self.kept = Some(kept);
    }

    /// Goes back to what was kept, and returns the new device. Nobody else may have it mounted any more.
    ///
    /// # Panics
    /// If somebody uses it for longer than [`PATIENCE`].
    pub fn go_back(&mut self) -> String {
        let (image, kept) = (self.image.clone().expect("it is a device"), self.kept.take().expect("it lies"));
        let deadline = Instant::now() + PATIENCE;
        // Somebody may be reading.
        while !Command::new("umount").arg(&self.at).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        {
            assert!(Instant::now() < deadline, "never: nobody uses {}", self.at.display());
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::rename(&kept, &image).expect("in one directory");
        self.mount_image();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        device(&table, &self.at).expect("it is mounted")
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

/// Returns the newest device that a mount table has at `at`.
fn device(table: &str, at: &Path) -> Option<String> {
    let is_there = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == at);
    let line = table.lines().rfind(is_there)?;
    line.split_once(" - ")?.1.split(' ').nth(1).map(str::to_owned)
}

fn run(command: &mut Command) {
    let output = command.output().expect("it is installed");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_the_one_that_was_mounted_last() {
        let table = "1 0 7:0 / /a rw shared:1 - ext4 /dev/loop0 rw\n2 0 7:1 / /b rw - ext4 /dev/loop1 rw\n\
                     3 0 7:2 / /a rw - ext4 /dev/loop2 rw\n";
        assert_eq!(device(table, Path::new("/a")).as_deref(), Some("/dev/loop2"));
        assert_eq!(device(table, Path::new("/c")), None);
    }
}
