//! A cgroup (v2) of our own, to freeze processes in.
//!
//! Must stay true: it is removed when dropped; whoever is in it by then is thawed first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A directory in the unified hierarchy, below this process's own.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one.
    ///
    /// # Errors
    /// Why this process cannot have one, in words.
    pub fn make() -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"));
        let root = mounted(&read("/proc/self/mounts")?).ok_or("no cgroup v2 hierarchy is mounted")?;
        let cgroups = read("/proc/self/cgroup")?;
        let own = own(&cgroups).ok_or("this process is in no cgroup v2")?;
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let parent = root.join(own.trim_start_matches('/'));
        let path = parent.join(format!("leaseward-doctor-{}-{n}", std::process::id()));
        fs::create_dir(&path).map_err(|e| format!("make a cgroup in {}: {e}", parent.display()))?;
        let made = Self { path };
        if made.path.join("cgroup.freeze").exists() { Ok(made) } else { Err("this kernel freezes no cgroup".into()) }
    }

    /// Moves processes into it. Those that are over are passed by.
    pub(super) fn take(&self, pids: &[u32]) -> io::Result<()> {
        for pid in pids {
            match fs::write(self.path.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Freezes it; the kernel does it a moment later.
    pub(super) fn freeze(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.freeze"), "1")
    }

    /// Returns whether everybody in it is frozen.
    pub(super) fn is_frozen(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "frozen 1")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.freeze"), "0");
        // The last of its processes may be about to be reaped.
        for _ in 0..500 {
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => return,
            }
        }
    }
}

/// Returns where the unified hierarchy is mounted.
pub(crate) fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| Path::new(path).to_owned())
    })
}

/// Returns where in it this process is.
pub(crate) fn own(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_among_others() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(own("4:memory:/x\n0::/user.slice\n"), Some("/user.slice"));
        assert_eq!(own("4:memory:/x\n"), None);
    }
}
