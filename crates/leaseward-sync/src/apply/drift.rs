//! Comparing a directory with what should be in it.
//!
//! Must stay true: a file whose inode looks exactly as it did when its content was proven is the same; every other one
//! is read and hashed. Without stamps every file is. Ignored paths are no difference. Whatever somebody puts there is a
//! difference, and keeps nobody from seeing the others.
//! Extended attributes are read at each look where the version has them: a stamp does not vouch for them.
//! Left out on purpose: owners where the set names none, as a manifest does not hold them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::ErrorKind;

use leaseward_state::config::{Manifest, ManifestNode, Xattrs};
use rustix::fs::Stat;

use super::Owner;
use super::record::Stamp;
use crate::dir::{Dir, Kind, hash_file, kind, link_target};
use crate::error::{Error, Result};
use crate::limits::DRIFTS_MAX;
use crate::patterns::Patterns;
use crate::xattr;

/// One difference between a directory and its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// Relative to the target directory; empty for the directory itself.
    pub path: String,
    /// What is different.
    pub kind: DriftKind,
    /// The user whose file it is now; `None` if it is gone.
    pub owner: Option<u32>,
    /// When it was changed last, in milliseconds of wall-clock time; `None` if it is gone.
    pub at: Option<u64>,
}

impl Drift {
    pub(crate) fn of(path: &str, kind: DriftKind) -> Self {
        Self { path: path.to_owned(), kind, owner: None, at: None }
    }

    pub(crate) fn found(path: &str, kind: DriftKind, stat: &Stat) -> Self {
        let at = stat.st_ctime.saturating_mul(1000).saturating_add(stat.st_ctime_nsec as i64 / 1_000_000);
        Self { path: path.to_owned(), kind, owner: Some(stat.st_uid), at: u64::try_from(at).ok() }
    }
}

/// How a path differs from its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftKind {
    /// It is gone.
    Missing,
    /// It is not of the version.
    Extra,
    /// Its content, link target or kind is another.
    Content,
    /// Its permission bits are others.
    Mode,
    /// It belongs to another user or group than the set says.
    Owner,
    /// Its extended attributes are others.
    Xattr,
}

impl DriftKind {
    /// Returns it as people read it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Xattr => "xattr",
        }
    }
}

/// Returns how `root` differs from `manifest` where everything is to belong to `owner`, by ascending path, at most
/// [`DRIFTS_MAX`] differences.
/// `stamps` say how the inodes looked when their content was proven; what is proven again is noted there.
pub(crate) fn compare(
    root: &Dir,
    manifest: &Manifest,
    ignore: &Patterns,
    owner: Option<Owner>,
    mut stamps: Option<&mut [Stamp]>,
) -> Result<Vec<Drift>> {
    let mut wanted: BTreeMap<&str, (usize, &ManifestNode)> =
        manifest.entries.iter().enumerate().map(|(i, entry)| (entry.path.as_str(), (i, &entry.node))).collect();
    let mut drifts = Vec::new();
    root.roam(&mut |path, dir, name, stat| {
        let known = wanted.remove(path);
        if ignore.ignores(path) {
            return Ok(());
        }
        let kind = match known {
            None => Some(DriftKind::Extra),
            Some((i, node)) => {
                let proven = stamps.as_deref_mut().map(|stamps| &mut stamps[i]);
                match differs(node, (manifest.xattrs_of(path), owner), (dir, name), stat, proven) {
                    // It went away, or became something else, while it was looked at.
                    Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Some(DriftKind::Missing),
                    // An ordinary user may not read what he may not read any more.
                    Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                        Some(DriftKind::Mode)
                    }
                    found => found?,
                }
            }
        };
        if let Some(kind) = kind
            && drifts.len() < DRIFTS_MAX
        {
            drifts.push(Drift::found(path, kind, stat));
        }
        Ok(())
    })?;
    let gone = wanted.keys().filter(|path| !ignore.ignores(path));
    drifts.extend(gone.map(|path| Drift::of(path, DriftKind::Missing)));
    drifts.sort_unstable();
    drifts.truncate(DRIFTS_MAX);
    Ok(drifts)
}

pub(crate) fn differs(
    node: &ManifestNode,
    (xattrs, owner): (Option<&Xattrs>, Option<Owner>),
    (dir, name): (&Dir, &OsStr),
    stat: &Stat,
    proven: Option<&mut Stamp>,
) -> Result<Option<DriftKind>> {
    let (same, mode) = match node {
        ManifestNode::Directory { mode } => (kind(stat) == Kind::Directory, Some(*mode)),
        ManifestNode::Symlink { target } => (kind(stat) == Kind::Symlink && link_target(dir, name)? == *target, None),
        ManifestNode::File { mode, size, digest, .. } => {
            let now = Stamp::of(stat);
            let known = proven.as_ref().is_some_and(|stamp| **stamp == now) && kind(stat) == Kind::File;
            let same = known
                || (kind(stat) == Kind::File
                    && stat.st_size as u64 == *size
                    && hash_file(&mut dir.file(name)?, &dir.path().join(name))? == *digest);
            // A stamp proves something only if no later edit can bear it: the clock of the file system has passed it.
            if let Some(stamp) = proven
                && same
                && !known
                && now.is_old_enough()
            {
                *stamp = now;
            }
            (same, Some(*mode))
        }
    };
    Ok(match mode {
        _ if !same => Some(DriftKind::Content),
        Some(mode) if stat.st_mode & 0o7777 != mode => Some(DriftKind::Mode),
        Some(_) if owner.is_some_and(|owner| (stat.st_uid, stat.st_gid) != (owner.user, owner.group)) => {
            Some(DriftKind::Owner)
        }
        _ => match xattrs.filter(|_| kind(stat) == Kind::File) {
            Some(xattrs) if xattr::read(&dir.file(name)?, &dir.path().join(name))? != *xattrs => Some(DriftKind::Xattr),
            _ => None,
        },
    })
}
