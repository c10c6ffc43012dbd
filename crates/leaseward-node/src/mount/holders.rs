//! Who keeps a mount busy: a look at every process, for a person to read.
//!
//! Must stay true: nothing is decided by it but what is said; except that a mount which another mount namespace still
//! has is not gone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use leaseward_state::server::Mount;

use super::{Identity, Mounted, is_from, parse, table};
use crate::hook::processes;
use crate::limits::HOLDERS_NAMED_MAX;

/// Returns who holds the mount at `point` busy, in words; empty if nobody was seen. Blocks for a look at every
/// process.
pub(crate) fn holders(point: &Path) -> String {
    let inside = |path: &Path| path.starts_with(point);
    let mut found = Vec::new();
    for pid in processes() {
        let dir = Path::new("/proc").join(pid.to_string());
        let link = |name: &str| fs::read_link(dir.join(name)).is_ok_and(|target| inside(&target));
        let files = || {
            let mut open = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
            open.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| inside(&target)))
        };
        let mapped = || {
            let maps = fs::read_to_string(dir.join("maps")).unwrap_or_default();
            maps.lines().any(|line| line.find('/').is_some_and(|at| inside(Path::new(&line[at..]))))
        };
        if link("cwd") || link("root") || link("exe") || files() || mapped() {
            found.push(format!("{pid} ({})", name(pid)));
        }
    }
    let more = found.len().saturating_sub(HOLDERS_NAMED_MAX);
    found.truncate(HOLDERS_NAMED_MAX);
    let mut said = if found.is_empty() { String::new() } else { format!("held by process {}", found.join(", ")) };
    if more > 0 {
        said.push_str(&format!(" and {more} more"));
    }
    for below in table().unwrap_or_default().iter().filter(|other| inside(&other.point) && other.point != point) {
        said.push_str(&format!("; {} is mounted below it", below.point.display()));
    }
    said.trim_start_matches("; ").to_owned()
}

/// Returns a process in whose mount namespace `mount` is still mounted at one of `points`, in words: what it asks for, or what
/// was `seen` of it. Blocks for a look at every process.
pub(crate) fn mounted_elsewhere(mount: &Mount, seen: Option<&Identity>, points: &[PathBuf]) -> Option<String> {
    // What a bind mount shows is mounted in its own right.
    if mount.options.iter().any(|option| option == "bind" || option == "rbind") {
        return None;
    }
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let mut looked = BTreeSet::from([namespace("self")?]);
    for pid in processes() {
        let Some(namespace) = namespace(&pid.to_string()) else { continue };
        if !looked.insert(namespace) {
            continue;
        }
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/mountinfo")) else { continue };
        // Sources alone are alike in many containers.
        let same = |found: &Mounted| seen.is_some_and(|seen| found.has_number_of(seen)) || is_from(found, mount);
        if parse(&text).iter().any(|found| points.contains(&found.point) && same(found)) {
            return Some(format!("still mounted in the mount namespace of process {pid} ({})", name(pid)));
        }
    }
    None
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}
