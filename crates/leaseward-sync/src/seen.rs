//! What a publisher has read before, so that it reads only what changed since.
//!
//! Must stay true: a file is not read again only if its inode looks as it did then, and had been left alone for longer than
//! any tick of a file system's clock: an edit moves ctime, and nobody can put that back. Whoever loses this file, or whose
//! file is damaged, reads everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use leaseward_state::config::{Manifest, ManifestNode};
use rustix::fs::Stat;

use crate::apply::{Record, Stamp};
use crate::error::{Result, at};
use crate::limits::SEEN_FILES_MAX;

/// What was read of one directory.
#[derive(Debug, Default)]
pub(crate) struct Seen(Option<Record>);

impl Seen {
    /// Returns what the file at `path` says; nothing if there is none, or it is damaged.
    pub(crate) fn load(path: &Path) -> Self {
        let record = std::fs::read(path).ok().and_then(|bytes| Record::decode(&bytes));
        Self(record.map(|(record, _)| record))
    }

    /// Returns what a file holds, if it is known to be as it was.
    pub(crate) fn of(&self, path: &str, stat: &Stat) -> Option<ManifestNode> {
        let record = self.0.as_ref()?;
        let at = record.manifest.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        let (stamp, node) = (record.stamps.get(at)?, &record.manifest.entries[at].node);
        let ManifestNode::File { mode, .. } = node else { return None };
        let same = *stamp != Stamp::default() && *stamp == Stamp::of(stat) && *mode == stat.st_mode & 0o7777;
        same.then(|| node.clone())
    }
}

/// Notes what was read of a directory: how each entry looked before that, if its look proves something.
pub(crate) fn remember(path: &Path, manifest: &Arc<Manifest>, looked: &[Stamp]) -> Result<()> {
    let record = Record { stamps: looked.to_vec(), manifest: Arc::clone(manifest) };
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above).map_err(at("make directory", above))?;
    }
    // Several may publish at a time.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    std::fs::write(&temporary, record.encode()).map_err(at("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(at("name", path))?;
    path.parent().map_or(Ok(()), forget_oldest)
}

/// Keeps the files of the directories that were published last.
fn forget_oldest(dir: &Path) -> Result<()> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .map_err(at("list", dir))?
        .flatten()
        .filter_map(|file| Some((file.metadata().ok()?.modified().ok()?, file.path())))
        .collect();
    files.sort_unstable();
    let over = files.len().saturating_sub(SEEN_FILES_MAX);
    for (_, path) in &files[..over] {
        // Another publisher may have been faster.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
