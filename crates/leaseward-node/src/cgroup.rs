//! Cgroups (v2): one for a server that may use only so much, and one for a hook that may have to be killed whole.
//!
//! Must stay true: limits are in force before the server's first instruction, or it is not started. Only the server
//! is in its cgroup: shim and init stay outside, so that no limit keeps a deadline from being kept. Left out on
//! purpose: v1 hierarchies, and moving ourselves out of the way: the unit's `DelegateSubgroup=` does that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use leaseward_state::server::ResourceLimits;

use crate::attack::cgroup::{mounted, own};

/// The period over which the kernel counts processor time, in microseconds: its own default.
const CPU_PERIOD_US: u64 = 100_000;

/// Returns what is written where to put limits in force; the first element is the controller that it needs.
fn settings(limits: &ResourceLimits) -> Vec<(&'static str, &'static str, String)> {
    let mut all = Vec::new();
    if let Some(bytes) = limits.memory_bytes {
        all.push(("memory", "memory.max", bytes.to_string()));
        // Half a server is worse than none.
        all.push(("memory", "memory.oom.group", "1".to_owned()));
    }
    if let Some(percent) = limits.cpu_percent {
        let quota = u64::from(percent) * CPU_PERIOD_US / 100;
        all.push(("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}")));
    }
    if let Some(processes) = limits.processes {
        all.push(("pids", "pids.max", processes.to_string()));
    }
    all
}

/// Makes a server's cgroup with its limits in force, or puts them in force again; `None` if there are none.
///
/// # Errors
/// Why this machine cannot enforce them.
pub(crate) fn limit(server: &str, limits: &ResourceLimits) -> Result<Option<PathBuf>, String> {
    let settings = settings(limits);
    if settings.is_empty() {
        return Ok(None);
    }
    let needed: Vec<&str> = settings.iter().map(|(controller, ..)| *controller).collect();
    let parent = parent(&needed)?;
    let path = parent.join(format!("leaseward-server-{server}"));
    make(&path).map_err(|e| format!("make the cgroup {}: {e}", path.display()))?;
    for (_, file, value) in settings {
        let file = path.join(file);
        fs::write(&file, &value).map_err(|e| format!("write `{value}` to {}: {e}", file.display()))?;
    }
    Ok(Some(path))
}

/// Removes a server's cgroup, if it has one. Its last process may be about to be reaped.
pub(crate) async fn remove(server: &str) {
    let Ok((root, own)) = here() else { return };
    for parent in [Some(own.as_path()), own.parent()].into_iter().flatten().filter(|path| path.starts_with(&root)) {
        let path = parent.join(format!("leaseward-server-{server}"));
        for _ in 0..50 {
            match fs::remove_dir(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                _ => break,
            }
        }
    }
}

/// Makes a cgroup for one hook. Needs no controller.
pub(crate) fn make_for_hook() -> Result<PathBuf, String> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let n = MADE.fetch_add(1, Ordering::Relaxed);
    let path = here()?.1.join(format!("leaseward-hook-{}-{n}", std::process::id()));
    make(&path).map_err(|e| format!("make the cgroup {}: {e}", path.display()))?;
    if path.join("cgroup.kill").exists() {
        return Ok(path);
    }
    let _ = fs::remove_dir(&path);
    Err("this kernel kills no cgroup".to_owned())
}

/// Returns who is in a cgroup.
pub(crate) fn members(path: &Path) -> Vec<u32> {
    let procs = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    procs.lines().filter_map(|pid| pid.parse().ok()).collect()
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Returns the root of the unified hierarchy, and where in it this process is.
fn here() -> Result<(PathBuf, PathBuf), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"));
    let root = mounted(&read("/proc/self/mounts")?).ok_or("no cgroup v2 hierarchy is mounted")?;
    let cgroups = read("/proc/self/cgroup")?;
    let own = own(&cgroups).ok_or("this process is in no cgroup v2")?;
    let own = root.join(own.trim_start_matches('/'));
    Ok((root, own))
}

/// Returns a cgroup whose children have the controllers: our own, or the one that ours is in.
fn parent(needed: &[&str]) -> Result<PathBuf, String> {
    let (root, own) = here()?;
    let above = own.parent().filter(|above| above.starts_with(&root)).map(Path::to_owned);
    let mut whys = Vec::new();
    for parent in [Some(own), above].into_iter().flatten() {
        match enable(&parent, needed) {
            Ok(()) => return Ok(parent),
            Err(why) => whys.push(why),
        }
    }
    let advice = "run the agent as root, under systemd with Delegate=yes and DelegateSubgroup=agent";
    Err(format!("this machine cannot enforce resource limits: {}; {advice}", whys.join("; ")))
}

fn enable(parent: &Path, needed: &[&str]) -> Result<(), String> {
    let words = |file: &str| {
        let text = fs::read_to_string(parent.join(file)).unwrap_or_default();
        text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (there, enabled) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    for controller in needed {
        if enabled.iter().any(|enabled| enabled == controller) {
            continue;
        }
        if !there.iter().any(|there| there == controller) {
            return Err(format!("{} has no controller `{controller}`", parent.display()));
        }
        fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}"))
            .map_err(|e| format!("enable `{controller}` in {}: {e}", parent.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let limits = ResourceLimits { memory_bytes: Some(1 << 20), cpu_percent: Some(150), processes: Some(7) };
        let written: Vec<_> = settings(&limits).into_iter().map(|(_, file, value)| format!("{file}={value}")).collect();
        assert_eq!(written, ["memory.max=1048576", "memory.oom.group=1", "cpu.max=150000 100000", "pids.max=7"]);
        assert_eq!(limit("pay-0", &ResourceLimits::default()), Ok(None));
    }

    #[test]
    fn a_controller_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::write(dir.path().join("cgroup.subtree_control"), "memory\n").unwrap();
        assert_eq!(enable(dir.path(), &["memory"]), Ok(()));
        let why = enable(dir.path(), &["memory", "pids"]).unwrap_err();
        assert!(why.contains("no controller `pids`"), "{why}");
    }
}
