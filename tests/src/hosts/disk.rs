//! A disk of a host's own, which can be full, stand still, and lose what it acknowledged.
//!
//! Must stay true: it is a file system of its own, so that what happens to it happens to nobody else; in a loop device, and of memory
//! for whoever is root of a user namespace only: that one can be full, and no more. A disk that stands still is let go whatever
//! happens: a process that waits for it cannot be killed: a process of its own thaws it once this one is gone, or after two minutes.
//! A disk that lies goes back to what its device had at one moment, the whole of it: nothing is torn, and every `fsync` since then was for nothing.
//! An honest one that loses its power has what was synced, and of what was only written some pages and not others ([`Disk::lose_power`]).
//!
//! Left out on purpose: a device that loses some of what it acknowledged and keeps later writes. The simulation's disk does that.

use std::fs::{self, File};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};
use tokio::time::Instant;

use crate::{PATIENCE, owns_machine};

/// What takes all the room while a disk is full.
const FILLER: &str = "filler";

/// Thaws the disk `$0` when its standard input ends: when whoever froze it says so, or is gone.
const GUARD: &str = "trap '' INT TERM HUP; timeout 120 cat; fsfreeze -u \"$0\" 2>/dev/null; exit 0";

/// What the kernel writes or loses as one.
const PAGE: u64 = 4 << 10;

/// So many pages beside each other share their fate at most when the power fails.
const RUN_PAGES_MAX: u64 = 16;

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

    /// Keeps what its device would have if the power failed now: all that was synced, and what the kernel has written besides. A
    /// seed says which pages of its files the kernel is told to write first; the others are lost, unless it has written them already. Nobody may
    /// write on it any more. Returns false if there is no device, so that nothing is lost.
    ///
    /// # Panics
    /// If it cannot.
    pub fn lose_power(&mut self, seed: u64) -> bool {
        let Some(image) = self.image.clone() else { return false };
        let mut random = SmallRng::seed_from_u64(seed);
        write_some(&self.at, &mut random);
        let kept = image.with_extension("kept");
        // Not frozen before: that would sync all of it.
        run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&image).arg(&kept));
        self.kept = Some(kept);
        true
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

/// Has the kernel begin to write some pages of each file, in no order, and not what it knows of the file itself.
fn write_some(dir: &Path, random: &mut SmallRng) {
    let mut entries: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    // The same order each time.
    entries.sort();
    for path in entries {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            write_some(&path, random);
        } else if meta.is_file()
            && let Ok(file) = File::open(&path)
        {
            let mut at = 0;
            while at < meta.len() {
                let run = PAGE * random.gen_range(1..=RUN_PAGES_MAX);
                if random.gen_bool(0.5) {
                    // What is dirty there is written.
                    fadvise(&file, at, NonZeroU64::new(run), Advice::DontNeed).ok();
                }
                at += run;
            }
        }
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
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn the_device_is_the_one_that_was_mounted_last() {
        let table = "1 0 7:0 / /a rw shared:1 - ext4 /dev/loop0 rw\n2 0 7:1 / /b rw - ext4 /dev/loop1 rw\n\
                     3 0 7:2 / /a rw - ext4 /dev/loop2 rw\n";
        assert_eq!(device(table, Path::new("/a")).as_deref(), Some("/dev/loop2"));
        assert_eq!(device(table, Path::new("/c")), None);
    }

    #[test]
    fn what_was_synced_survives_the_power_and_of_what_was_not_some_pages_do() {
        if !owns_machine() || !Path::new("/dev/loop-control").exists() {
            println!("left out: needs root of the machine, and loop devices");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("at");
        fs::create_dir(&at).unwrap();
        let mut disk = Disk::mount(&dir.path().join("disk.img"), &at, 64 << 20);
        let log = at.join("log");
        let (pages, page) = (2_048, PAGE as usize);
        for (name, byte) in [("synced", 1), ("log", 0)] {
            fs::write(at.join(name), vec![byte; pages * page]).unwrap();
            File::open(at.join(name)).unwrap().sync_all().unwrap();
        }
        // In its place, as a log is written.
        File::options().write(true).open(&log).unwrap().write_all_at(&vec![1; pages * page], 0).unwrap();
        assert!(disk.lose_power(7));
        disk.go_back();
        let written = |name| fs::read(at.join(name)).unwrap().chunks(page).filter(|page| page[0] == 1).count();
        let kept = written("log");
        println!("{kept} of {pages} pages that were not synced are there");
        assert_eq!(written("synced"), pages);
        assert!((1..pages).contains(&kept), "{kept} of {pages} pages that were not synced are there");
    }
}
