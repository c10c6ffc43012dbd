//! Comparing a directory with what should be in it.
//!
//! Must stay true: every file is read and hashed, so nothing that an inode claims is believed.
//! Left out on purpose: owners and extended attributes, which a manifest does not hold.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use leaseward_state::config::{Manifest, ManifestNode};
use rustix::fs::Stat;

use crate::dir::{Dir, Kind, hash_file, kind, link_target};
use crate::error::Result;
use crate::limits::DRIFTS_MAX;

/// One difference between a directory and its version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// Relative to the target directory; empty for the directory itself.
    pub path: String,
    /// What is different.
    pub kind: DriftKind,
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
}

/// Returns how `root` differs from `manifest`, by ascending path, at most [`DRIFTS_MAX`] differences.
pub(crate) fn compare(root: &Dir, manifest: &Manifest) -> Result<Vec<Drift>> {
    let mut wanted: BTreeMap<&str, &ManifestNode> =
        manifest.entries.iter().map(|entry| (entry.path.as_str(), &entry.node)).collect();
    let mut drifts = Vec::new();
    root.walk(&mut |path, dir, name, stat| {
        let kind = match wanted.remove(path) {
            Some(node) => differs(node, dir, name, stat)?,
            None => Some(DriftKind::Extra),
        };
        if let Some(kind) = kind
            && drifts.len() < DRIFTS_MAX
        {
            drifts.push(Drift { path: path.to_owned(), kind });
        }
        Ok(())
    })?;
    drifts.extend(wanted.keys().map(|path| Drift { path: (*path).to_owned(), kind: DriftKind::Missing }));
    drifts.sort_unstable();
    drifts.truncate(DRIFTS_MAX);
    Ok(drifts)
}

fn differs(node: &ManifestNode, dir: &Dir, name: &OsStr, stat: &Stat) -> Result<Option<DriftKind>> {
    let (same, mode) = match node {
        ManifestNode::Directory { mode } => (kind(stat) == Kind::Directory, Some(*mode)),
        ManifestNode::Symlink { target } => (kind(stat) == Kind::Symlink && link_target(dir, name)? == *target, None),
        ManifestNode::File { mode, size, digest, .. } => {
            let same = kind(stat) == Kind::File
                && stat.st_size as u64 == *size
                && hash_file(&mut dir.file(name)?, &dir.path().join(name))? == *digest;
            (same, Some(*mode))
        }
    };
    Ok(match mode {
        _ if !same => Some(DriftKind::Content),
        Some(mode) if stat.st_mode & 0o7777 != mode => Some(DriftKind::Mode),
        _ => None,
    })
}
