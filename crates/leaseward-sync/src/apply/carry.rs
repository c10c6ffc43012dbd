//! Taking along what programs write themselves when a new tree takes the place of the old one.
//!
//! Must stay true: only ignored paths that the new version does not name are taken along; they keep their inodes, so a
//! program that has one open goes on writing to the same file. What a program did to its paths in the old tree after they
//! were taken along (put another file there, removed one, made one) is done in the new tree as well, unless the program
//! has been at the same path there since: its later word stands, and is not even replaced for a moment that it could miss.
//! What the file system will not link (protected files of other users, a file with too many names) is moved once the switch is
//! durable, and what cannot be moved either is said and stays in the old tree.
//! Left out on purpose: a death between the exchange and the end of this. Then the old tree, which is kept, has it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};

use leaseward_state::config::Manifest;
use rustix::fs::Stat;

use super::step::{Step, Steps};
use crate::dir::{Dir, Inode, Kind, Parents, is_shut, kind, link_target};
use crate::error::{Error, Result};
use crate::limits::{CARRY_PASSES_MAX, CARRY_SWAPS_MAX};
use crate::patterns::Patterns;

/// What the new tree got when a path was taken along: of a file, the one that the old tree had.
#[derive(Debug, Clone, Copy)]
struct Taken {
    to: Inode,
    directory: bool,
}

/// The trees, and a place beside them where nothing is that anybody reads: a name, free for us, on the same file system.
#[derive(Clone, Copy)]
pub(super) struct Trees<'a> {
    pub(super) from: &'a Dir,
    pub(super) to: &'a Dir,
    pub(super) aside: (&'a Dir, &'a str),
}

/// A path with its last part: names that are not UTF-8 may look alike as paths.
type Key = (String, OsString);

/// Which paths were taken along, and which ones the file system would not link.
#[derive(Debug, Default)]
pub(super) struct Carried {
    taken: BTreeMap<Key, Taken>,
    refused: BTreeSet<Key>,
}

impl Carried {
    /// Gives the new tree every ignored path of the old one that it does not have.
    pub(super) fn begin(trees: Trees<'_>, manifest: &Manifest, ignore: &Patterns, steps: &mut Steps) -> Result<Self> {
        let mut carried = Self::default();
        if !ignore.is_empty() {
            carried.take_all(trees, &named(manifest), ignore, steps)?;
        }
        Ok(carried)
    }

    /// Does in the new tree what programs did in the old one meanwhile, until that stands still.
    pub(super) fn follow(
        &mut self,
        trees: Trees<'_>,
        manifest: &Manifest,
        ignore: &Patterns,
        steps: &mut Steps,
    ) -> Result<()> {
        if ignore.is_empty() {
            return Ok(());
        }
        let named = named(manifest);
        self.refused.clear();
        for _ in 0..CARRY_PASSES_MAX {
            let removed = self.remove_gone(trees, steps)?;
            if !self.take_all(trees, &named, ignore, steps)? && !removed {
                break;
            }
        }
        Ok(())
    }

    /// Moves what could not be linked from the old tree to the new one. To be done when nothing takes the switch back any more:
    /// the old tree does not have it afterwards.
    pub(super) fn move_refused(&self, from: &Dir, to: &Dir) {
        let mut stay = self.refused.iter().filter_map(|key| {
            let moved = match self.taken.get(key) {
                Some(taken) => swap(from, to, key, taken.to),
                None => make_parents(from, to, &key.0).and_then(|()| {
                    Parents::new(from).of(&key.0)?.0.move_to(&key.1, Parents::new(to).of(&key.0)?.0, &key.1)
                }),
            };
            passed_over(moved.map(|()| true)).err().map(|error| (&key.0, error))
        });
        if let Some((path, error)) = stay.next() {
            let others = stay.count();
            tracing::warn!(tree = %from.path().display(), path, %error, others,
                "not taken along to the new version: it stays in the tree that was live before");
        }
    }

    /// Returns whether there was anything to do.
    fn take_all(
        &mut self,
        trees: Trees<'_>,
        named: &HashSet<&str>,
        ignore: &Patterns,
        steps: &mut Steps,
    ) -> Result<bool> {
        let mut busy = false;
        trees.from.roam_mount(&mut |path, dir, name, stat| {
            if named.contains(path) || !ignore.ignores(path) {
                return Ok(());
            }
            busy |= passed_over(self.take(trees, path, dir, name, stat, steps))?;
            Ok(())
        })?;
        Ok(busy)
    }

    fn take(
        &mut self,
        trees: Trees<'_>,
        path: &str,
        dir: &Dir,
        name: &OsStr,
        stat: &Stat,
        steps: &mut Steps,
    ) -> Result<bool> {
        let key = (path.to_owned(), name.to_owned());
        let directory = kind(stat) == Kind::Directory;
        let here = below(trees.to, path, |into| into.inode(name))?;
        let taken = match (self.taken.get(&key), here) {
            (None, None) => {
                make_parents(trees.from, trees.to, path)?;
                let mut parents = Parents::new(trees.to);
                let (into, part) = parents.of(path)?;
                if !make(into, part, path, dir, name, stat)? {
                    if matches!(kind(stat), Kind::File | Kind::Special) {
                        self.refused.insert(key);
                    }
                    return Ok(false);
                }
                into.inode(name)?
            }
            (Some(taken), Some(here)) if taken.to == here && is_other(*taken, trees, path, dir, name, stat)? => {
                match (taken.directory, directory) {
                    // What is in it is looked at path by path.
                    (true, true) => Some(taken.to),
                    (false, false) => {
                        let put = put_over(trees, path, dir, name, stat, taken.to, steps)?;
                        if put.is_none() {
                            self.refused.insert(key.clone());
                        }
                        put
                    }
                    // Removed first, by the next pass.
                    _ => return Ok(true),
                }
            }
            _ => return Ok(false),
        };
        let Some(to) = taken else { return Ok(false) };
        self.taken.insert(key, Taken { to, directory });
        Ok(true)
    }

    /// Removes what programs removed, what is below a directory first. Returns whether there was anything to do.
    fn remove_gone(&mut self, trees: Trees<'_>, steps: &mut Steps) -> Result<bool> {
        let gone = |(path, name): &Key, taken: &Taken| match below(trees.from, path, |dir| dir.stat(name)) {
            Ok(found) => Ok(found.is_none_or(|found| (kind(&found) == Kind::Directory) != taken.directory)),
            // Nobody can tell.
            Err(error) if is_shut(&error) => Ok(false),
            Err(error) => Err(error),
        };
        let mut all = Vec::new();
        for (key, taken) in self.taken.iter().rev() {
            if gone(key, taken)? {
                all.push((key.clone(), *taken));
            }
        }
        for (key, taken) in &all {
            passed_over(take_away(trees, &key.0, &key.1, *taken, steps).map(|()| true))?;
            self.taken.remove(key);
        }
        Ok(!all.is_empty())
    }
}

/// Returns whether what the old tree has is not what was taken along.
fn is_other(taken: Taken, trees: Trees<'_>, path: &str, dir: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
    match (kind(stat), taken.directory) {
        (Kind::Directory, directory) => Ok(!directory),
        // Made anew in the new tree; it may have become one, or have been one that is a file now.
        (Kind::Symlink, false) => {
            let wanted = link_target(dir, name)?;
            Ok(below(trees.to, path, |into| link_target(into, name).map(Some))
                .map_or(true, |found| found != Some(wanted)))
        }
        _ => Ok(dir.inode(name)?.is_some_and(|there| there != taken.to)),
    }
}

fn named(manifest: &Manifest) -> HashSet<&str> {
    manifest.entries.iter().map(|entry| entry.path.as_str()).collect()
}

/// The new version has a file where the program has a directory, or the other way round: the version wins. And what a
/// program takes away meanwhile is away.
fn passed_over(done: Result<bool>) -> Result<bool> {
    use std::io::ErrorKind::{AlreadyExists, NotADirectory, NotFound};
    match done {
        Err(Error::Io { source, .. }) if matches!(source.kind(), NotADirectory | AlreadyExists | NotFound) => Ok(false),
        done => done,
    }
}

/// Returns what is found in the directory of a path; nothing where there is none.
fn below<T>(tree: &Dir, path: &str, find: impl FnOnce(&Dir) -> Result<Option<T>>) -> Result<Option<T>> {
    match Parents::new(tree).of(path).and_then(|(dir, _)| find(dir)) {
        // A link stands in the way.
        Err(Error::IllegalTree { .. }) => Ok(None),
        Err(Error::Io { source, .. })
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        found => found,
    }
}

/// Makes `part` in `into` like `name` in `dir`. Returns whether it could be made.
fn make(into: &Dir, part: &str, path: &str, dir: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
    match kind(stat) {
        // Programs give their files any name. Of directories and links with such names nothing is known below.
        Kind::Directory | Kind::Symlink if name.to_str().is_none() => {
            tracing::warn!(path, "not taken along to the new version: its name is not UTF-8");
            Ok(false)
        }
        Kind::Directory => like(&into.mkdir(part)?, stat).map(|()| true),
        Kind::Symlink => into.symlink(&link_target(dir, name)?, part).map(|()| true),
        Kind::File | Kind::Special => into.hard_link(name, dir, name),
    }
}

/// Puts what the old tree has at `path` over `old` in the new one. Returns what was put there; none if nothing could be.
fn put_over(
    trees: Trees<'_>,
    path: &str,
    dir: &Dir,
    name: &OsStr,
    stat: &Stat,
    old: Inode,
    steps: &mut Steps,
) -> Result<Option<Inode>> {
    let (beside, spare) = trees.aside;
    steps.before(Step::Carry)?;
    beside.remove_tree(spare)?;
    let made = match kind(stat) {
        Kind::Symlink => beside.symlink(&link_target(dir, name)?, spare).map(|()| true)?,
        _ => beside.hard_link(spare, dir, name)?,
    };
    let Some(ours) = beside.inode(spare)?.filter(|_| made) else { return Ok(None) };
    let mut parents = Parents::new(trees.to);
    let (into, _) = parents.of(path)?;
    let (mut in_hand, mut expected) = (ours, old);
    for _ in 0..CARRY_SWAPS_MAX {
        steps.before(Step::Carry)?;
        into.exchange_with(name, beside, spare)?;
        let Some(out) = beside.inode(spare)?.filter(|out| *out != expected) else { break };
        // The program has put a newer one there just now: back with it.
        (in_hand, expected) = (out, in_hand);
    }
    steps.before(Step::Carry)?;
    beside.remove_tree(spare)?;
    Ok(Some(ours))
}

/// Exchanges what both trees have at a path, unless a program has put something there in the new one since `old` was taken along.
fn swap(from: &Dir, to: &Dir, (path, name): &Key, old: Inode) -> Result<()> {
    let (mut theirs, mut ours) = (Parents::new(from), Parents::new(to));
    let ((dir, _), (into, _)) = (theirs.of(path)?, ours.of(path)?);
    if into.inode(name)? != Some(old) {
        return Ok(());
    }
    into.exchange_with(name, dir, name)?;
    if dir.inode(name)? == Some(old) {
        return Ok(());
    }
    into.exchange_with(name, dir, name)
}

/// Takes `path` away from the new tree, if it is still what was taken along.
fn take_away(trees: Trees<'_>, path: &str, name: &OsStr, taken: Taken, steps: &mut Steps) -> Result<()> {
    let mut parents = Parents::new(trees.to);
    let (into, _) = parents.of(path)?;
    if into.inode(name)? != Some(taken.to) {
        return Ok(());
    }
    steps.before(Step::Carry)?;
    if taken.directory {
        return into.remove_empty(name).map(drop);
    }
    let (beside, spare) = trees.aside;
    beside.remove_tree(spare)?;
    into.move_to(name, beside, spare)?;
    if beside.inode(spare)?.is_some_and(|found| found != taken.to) {
        // The program has put a newer one there just now. One that is there again is newer still.
        match beside.move_to(spare, into, name) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
    }
    steps.before(Step::Carry)?;
    beside.remove_tree(spare)
}

/// Makes the directories above `path` as they are in `from`, where they are missing.
fn make_parents(from: &Dir, to: &Dir, path: &str) -> Result<()> {
    for (end, _) in path.match_indices('/') {
        let above = &path[..end];
        let mut parents = Parents::new(to);
        let (into, part) = parents.of(above)?;
        if into.stat(part)?.is_none() {
            like(&into.mkdir(part)?, &from.child(above)?.own_stat()?)?;
        }
    }
    Ok(())
}

fn like(made: &Dir, stat: &Stat) -> Result<()> {
    let (owner, group) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    // Only root may give a directory away; others keep their own, and give it to a group of theirs.
    let _ = rustix::fs::fchown(made, Some(owner), Some(group)).or_else(|_| rustix::fs::fchown(made, None, Some(group)));
    let mode = stat.st_mode & 0o7777;
    // What is made in it would be given to another group than before.
    let is_of_group = made.own_stat()?.st_gid == stat.st_gid;
    made.set_mode(if is_of_group { mode } else { mode & !0o2000 })
}
