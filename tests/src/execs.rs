//! Who was executed when: the kernel says when a program's file is opened, and nobody opens it but to execute it.
//!
//! Must stay true: the clock is read by the thread that the kernel wakes, so a moment is late rather than early. What the
//! program does first, such as loading its libraries, comes after it.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use crate::stamps::boot_ns;

/// A program that is watched.
#[derive(Debug)]
pub struct Watched {
    program: PathBuf,
    opened: Arc<Mutex<Vec<u64>>>,
}

impl Watched {
    /// Copies a program to `to` and watches the copy.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn copy(program: &Path, to: &Path) -> io::Result<Self> {
        fs::copy(program, to)?;
        let watch = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&watch, to, WatchFlags::OPEN)?;
        let opened = Arc::<Mutex<Vec<u64>>>::default();
        let seen = Arc::downgrade(&opened);
        std::thread::Builder::new().name("execs".into()).spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = Reader::new(watch, &mut buffer);
            while events.next().is_ok() {
                let now = boot_ns();
                let Some(seen) = seen.upgrade() else { return };
                seen.lock().expect("no holder of this lock panics").push(now);
            }
        })?;
        Ok(Self { program: to.to_owned(), opened })
    }

    /// Returns the copy.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns when it was first executed after a moment, both in nanoseconds of the boot clock.
    #[must_use]
    pub fn first_after(&self, moment: u64) -> Option<u64> {
        let opened = self.opened.lock().expect("no holder of this lock panics");
        opened.iter().copied().find(|at| *at > moment)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    #[test]
    fn an_execution_is_seen_between_its_order_and_its_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let watched = Watched::copy(Path::new("/bin/true"), &dir.path().join("program")).expect("watched");
        let before = boot_ns();
        assert!(Command::new(watched.program()).status().expect("it executes").success());
        let after = boot_ns();
        let give_up = Instant::now() + Duration::from_secs(10);
        let at = loop {
            if let Some(at) = watched.first_after(before) {
                break at;
            }
            assert!(Instant::now() < give_up, "nobody saw it");
            std::thread::yield_now();
        };
        assert!(at > before && at < after + 1_000_000_000, "{before} {at} {after}");
        assert_eq!(watched.first_after(at.max(after)), None);
    }
}
