//! Taking along what programs write themselves when a new tree takes the place of the old one.
//!
//! Must stay true: only ignored paths that the new version does not name are taken along; they keep their inodes, so a
//! program that has one open goes on writing to the same file.

use std::collections::HashSet;
use std::ffi::OsStr;

use leaseward_state::config::Manifest;
use rustix::fs::Stat;

use crate::dir::{Dir, Kind, Parents, kind, link_target};
use crate::error::{Error, Result};
use crate::patterns::Patterns;

/// Gives `to` every ignored path of `from` that it does not have.
pub(super) fn carry(from: &Dir, to: &Dir, manifest: &Manifest, ignore: &Patterns) -> Result<()> {
    if ignore.is_empty() {
        return Ok(());
    }
    let named: HashSet<&str> = manifest.entries.iter().map(|entry| entry.path.as_str()).collect();
    from.roam(&mut |path, dir, name, stat| {
        if named.contains(path) || !ignore.ignores(path) {
            return Ok(());
        }
        match take(from, to, path, dir, name, stat) {
            // The new version has a file where the program has a directory, or the other way round: the version wins.
            Err(Error::Io { source, .. })
                if matches!(
                    source.kind(),
                    std::io::ErrorKind::NotADirectory
                        | std::io::ErrorKind::AlreadyExists
                        | std::io::ErrorKind::NotFound
                ) =>
            {
                Ok(())
            }
            done => done,
        }
    })
}

fn take(from: &Dir, to: &Dir, path: &str, dir: &Dir, name: &OsStr, stat: &Stat) -> Result<()> {
    make_parents(from, to, path)?;
    let mut parents = Parents::new(to);
    let (into, part) = parents.of(path)?;
    if into.stat(name)?.is_some() {
        return Ok(());
    }
    match kind(stat) {
        // Programs give their files any name. Of directories and links with such names nothing is known below.
        Kind::Directory | Kind::Symlink if name.to_str().is_none() => {
            tracing::warn!(path, "not taken along to the new version: its name is not UTF-8");
            Ok(())
        }
        Kind::Directory => like(&into.mkdir(part)?, stat),
        Kind::Symlink => into.symlink(&link_target(dir, name)?, part),
        Kind::File | Kind::Special => into.hard_link(name, dir, name).map(drop),
    }
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
    // Only root may give a directory away; others keep their own.
    let _ = rustix::fs::fchown(made, Some(owner), Some(group));
    made.set_mode(stat.st_mode & 0o777)
}
