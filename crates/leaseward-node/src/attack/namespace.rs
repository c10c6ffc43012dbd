//! Who lives in a server's PID namespace.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;

/// A PID namespace. While this is open its number is not given to another.
#[derive(Debug)]
pub(super) struct Namespace {
    identity: (u64, u64),
    _open: File,
}

impl Namespace {
    /// Returns the namespace of a process.
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        let open = File::open(format!("/proc/{pid}/ns/pid"))?;
        let found = open.metadata()?;
        Ok(Self { identity: (found.dev(), found.ino()), _open: open })
    }

    /// Returns its processes that are not over, in our own namespace's numbers.
    pub(super) fn processes(&self) -> Vec<u32> {
        let inside = |pid: &u32| {
            let found = fs::metadata(format!("/proc/{pid}/ns/pid"));
            found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
        };
        pids().filter(inside).filter(|pid| stat(*pid).is_some_and(|stat| stat.lives)).collect()
    }
}

/// What matters of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    /// Whether it is neither a zombie nor dead.
    pub(super) lives: bool,
}

/// Returns every process id there is.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns what the kernel says of a process, if there is one.
pub(super) fn stat(pid: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    Some(Stat { parent: fields.next()?.parse().ok()?, lives: !matches!(state, "Z" | "X") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_its_own_namespace_and_a_zombie_does_not_live() {
        let me = std::process::id();
        assert!(Namespace::of(me).unwrap().processes().contains(&me));
        assert_eq!(parse("7 (a) b (c)) Z 3 7"), Some(Stat { parent: 3, lives: false }));
        assert_eq!(parse("7 (x) S 1 7"), Some(Stat { parent: 1, lives: true }));
        assert_eq!(parse("nonsense"), None);
    }
}
