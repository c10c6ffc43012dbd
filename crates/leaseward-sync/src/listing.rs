//! Everything that stands below a directory, looked at by several threads: who publishes waits for this.
//!
//! Must stay true: the same tree gives the same list and the same error, whichever thread was faster; as a walk, it follows
//! no link and goes no deeper than a tree may be. Bounded: so many paths, threads, and one open directory for each of them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::Stat;

use crate::dir::{Dir, Kind, kind};
use crate::error::{Error, Result};
use crate::limits::{DEPTH_MAX, ENTRIES_MAX, SCAN_THREADS_MAX};

/// What is left to be looked at, and what was found.
#[derive(Default)]
struct Shared {
    /// Directories with their depths. Not open: there may be more than a process can hold.
    waiting: Vec<(String, usize)>,
    /// Threads that may still add some.
    busy: usize,
    found: Vec<(String, Stat)>,
    /// The failure in the directory with the smallest path.
    failed: Option<(String, Error)>,
}

/// Says whether a path counts.
type IsPart<'a> = dyn Fn(&str) -> bool + Sync + 'a;

struct Listing<'a> {
    root: &'a Dir,
    is_part: &'a IsPart<'a>,
    most: usize,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// Returns the paths below `root` that `is_part` says count, in ascending order, each with how it looks.
///
/// # Errors
/// [`Error::IllegalTree`] for names that are not UTF-8 and trees that are too deep, [`Error::TooLarge`],
/// [`Error::Changed`], [`Error::Io`].
pub(crate) fn list(root: &Dir, is_part: &IsPart<'_>) -> Result<Vec<(String, Stat)>> {
    list_at_most(ENTRIES_MAX, root, is_part)
}

fn list_at_most(most: usize, root: &Dir, is_part: &IsPart<'_>) -> Result<Vec<(String, Stat)>> {
    let shared = Mutex::new(Shared { waiting: vec![(String::new(), 0)], ..Shared::default() });
    let listing = Listing { root, is_part, most, shared, changed: Condvar::new() };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(SCAN_THREADS_MAX);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| listing.work());
        }
        listing.work();
    });
    let Shared { mut found, failed, .. } = listing.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    // First, as whoever finds it leaves the rest alone.
    if found.len() > most {
        return Err(Error::TooLarge { what: "paths of a set", size: most as u64 + 1, limit: most as u64 });
    }
    if let Some((_, error)) = failed {
        return Err(error);
    }
    // Ascending whole paths: `a-b` stands between `a` and `a/b`.
    found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

impl Listing<'_> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at directories until none is left.
    fn work(&self) {
        loop {
            let mut shared = self.shared();
            let (path, depth) = loop {
                match shared.waiting.pop() {
                    Some(next) => break next,
                    None if shared.busy == 0 => return,
                    None => shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner),
                }
            };
            shared.busy += 1;
            drop(shared);
            let (mut found, mut below) = (Vec::new(), Vec::new());
            let done = look(self, &path, depth, &mut found, &mut below);
            let mut shared = self.shared();
            shared.busy -= 1;
            shared.found.append(&mut found);
            match done {
                _ if shared.found.len() > self.most => shared.waiting.clear(),
                // Also after a failure: there may be one in a smaller directory, or too much.
                Ok(()) => shared.waiting.append(&mut below),
                Err(error) if shared.failed.as_ref().is_none_or(|(first, _)| path < *first) => {
                    shared.failed = Some((path, error));
                }
                Err(_) => {}
            }
            drop(shared);
            self.changed.notify_all();
        }
    }
}

/// Lists one directory.
fn look(
    Listing { root, is_part, .. }: &Listing<'_>,
    above: &str,
    depth: usize,
    found: &mut Vec<(String, Stat)>,
    below: &mut Vec<(String, usize)>,
) -> Result<()> {
    let opened = if above.is_empty() { None } else { Some(root.child(above)?) };
    let dir = opened.as_ref().unwrap_or(root);
    for name in dir.names()? {
        let part = name.to_str().ok_or_else(|| Error::illegal(dir.path().join(&name), "its name is not UTF-8"))?;
        let path = if above.is_empty() { part.to_owned() } else { format!("{above}/{part}") };
        let stat = dir.stat(&name)?.ok_or_else(|| Error::Changed { path: dir.path().join(&name) })?;
        if kind(&stat) == Kind::Directory {
            if depth + 1 >= DEPTH_MAX {
                let why = format!("it is more than {DEPTH_MAX} directories deep");
                return Err(Error::illegal(dir.path().join(&name), why));
            }
            below.push((path.clone(), depth + 1));
        }
        if is_part(&path) {
            found.push((path, stat));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
