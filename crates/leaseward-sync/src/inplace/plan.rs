//! What a version takes: which of its paths are to be made anew, which of the old ones go, and all of it staged.
//!
//! Must stay true: what is replaced or removed was proven to be ours, which is what the live version has at the path, or one
//! whose switch was not ended; new files are whole and durable before the journal is written; what lies in the way of a file
//! goes before it comes. Whatever is mounted where a file is to be put or removed is found before the journal is written.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use leaseward_state::config::{Digest, Manifest, ManifestEntry, ManifestNode};
use rustix::fs::Mode;

use super::journal::Op;
use super::stood::Stood;
use super::{Back, InPlace, Ready, difference};
use crate::apply::DriftKind;
use crate::dir::{Dir, Parents, give, is_shut};
use crate::error::{Error, Result, at};
use crate::limits::{RENDERED_BYTES_MAX, SYNC_EACH_MAX};
use crate::xattr;
use crate::{Applied, BlobStore, digest_of};

impl InPlace {
    /// Returns what may be ours at a path: of the live version, and of those whose switch was not ended.
    fn known<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a ManifestEntry, &'a Manifest)> {
        let live = self.live.iter().map(|(_, manifest)| manifest);
        live.chain(self.halves.iter().map(|half| &half.manifest)).filter_map(move |manifest| {
            let at = manifest.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
            Some((&manifest.entries[at], manifest))
        })
    }

    /// Returns whether the live version has something at a path, whatever stands there now.
    fn is_in_live(&self, path: &str) -> bool {
        let is_there =
            |manifest: &Manifest| manifest.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).is_ok();
        self.live.as_ref().is_some_and(|(_, manifest)| is_there(manifest))
    }

    /// Returns whether what stands at a path has the content that one of ours has there.
    fn is_ours(&self, root: &Dir, path: &str) -> Result<bool> {
        for (entry, manifest) in self.known(path) {
            if !matches!(difference(root, entry, manifest, None)?, Some(DriftKind::Missing | DriftKind::Content)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the entries that are not on the disk as they should be. A file in the way that is not ours is refused, and so is
    /// one that would have to go to another file system.
    pub(super) fn changed<'a>(&self, root: &Dir, manifest: &'a Manifest) -> Result<Vec<&'a ManifestEntry>> {
        let mut changed = Vec::new();
        for entry in &manifest.entries {
            let not_ours = || Err(Error::TargetNotOurs { path: self.target.join(&entry.path) });
            match difference(root, entry, manifest, self.owner)? {
                // It stands there by a name that may not be durable: it is made anew.
                None if self.doubted.contains(&entry.path) => {}
                None => continue,
                Some(DriftKind::Missing) => {}
                Some(DriftKind::Content) if self.is_in_the_way(root, entry)? => return not_ours(),
                Some(_) if self.is_in_live(&entry.path) || self.is_ours(root, &entry.path)? => {}
                // A directory that was there before keeps its mode and owner.
                Some(DriftKind::Mode | DriftKind::Owner) if matches!(entry.node, ManifestNode::Directory { .. }) => {
                    continue;
                }
                Some(_) => return not_ours(),
            }
            if !matches!(entry.node, ManifestNode::Directory { .. }) {
                root.refuse_across(&entry.path)?;
            }
            changed.push(entry);
        }
        Ok(changed)
    }

    /// Returns whether a directory in which somebody has something stands where a file of the version belongs.
    fn is_in_the_way(&self, root: &Dir, entry: &ManifestEntry) -> Result<bool> {
        if matches!(entry.node, ManifestNode::Directory { .. }) {
            return Ok(false);
        }
        let found = match root.child(&entry.path) {
            Err(error) if is_shut(&error) => return Ok(false),
            found => found?,
        };
        let mut is_in_the_way = false;
        found.roam(&mut |path, _, _, _| {
            is_in_the_way = is_in_the_way || !self.is_ours(root, &format!("{}/{path}", entry.path))?;
            Ok(())
        })?;
        Ok(is_in_the_way)
    }

    pub(super) fn stage_into(
        &mut self,
        root: &Dir,
        stage: &Dir,
        version: u64,
        manifest: &Manifest,
        source: &mut dyn FnMut(Digest) -> Result<Vec<u8>>,
        cache: &BlobStore,
    ) -> Result<Ready> {
        let old = self.live.iter().map(|(_, live)| live).chain(self.halves.iter().map(|half| &half.manifest));
        let old: BTreeSet<&str> = old.flat_map(|tree| &tree.entries).map(|entry| entry.path.as_str()).collect();
        let paths = manifest.entries.iter().map(|entry| entry.path.as_str()).chain(old.iter().copied());
        // Before any of it is read.
        let stood = Stood::look(root, paths.filter(|path| !self.ignore.ignores(path)))?;
        let mut by_hand = Vec::new();
        let mut puts = Vec::new();
        let mut done = Applied::default();
        let mut back = Back::default();
        let changed = self.changed(root, manifest)?;
        let each = changed.len() <= SYNC_EACH_MAX;
        for entry in changed {
            let number = puts.len() as u64;
            let name = number.to_string();
            match &entry.node {
                ManifestNode::Directory { mode } => {
                    self.remember(root, &entry.path, cache, &mut back)?;
                    by_hand.extend(self.changed_by_hand(root, &entry.path)?);
                    puts.push(Op::Directory(entry.path.clone(), *mode));
                    continue;
                }
                ManifestNode::Symlink { target } => stage.symlink(target, &name)?,
                ManifestNode::File { mode, digest, chunks, .. } => {
                    let path = stage.path().join(&name);
                    let mut file = stage.create(&name)?;
                    let mut hasher = blake3::Hasher::new();
                    for chunk in chunks {
                        let bytes = source(chunk.digest)?;
                        hasher.update(&bytes);
                        file.write_all(&bytes).map_err(at("write", &path))?;
                        done.bytes += bytes.len() as u64;
                    }
                    if hasher.finalize().as_bytes() != &digest.0 {
                        let why = "its content has another name or length";
                        return Err(Error::BlobCorrupt { path: PathBuf::from("the source"), digest: *digest, why });
                    }
                    if let Some(owner) = self.owner {
                        give(&file, owner.user, owner.group, &path)?;
                    }
                    if let Some(xattrs) = manifest.xattrs_of(&entry.path) {
                        xattr::write(&file, xattrs, &path)?;
                    }
                    rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode)).map_err(at("set the mode of", &path))?;
                    if each {
                        file.sync_all().map_err(at("sync", &path))?;
                    }
                    done.written += 1;
                }
            }
            self.remember(root, &entry.path, cache, &mut back)?;
            by_hand.extend(self.changed_by_hand(root, &entry.path)?);
            puts.push(Op::Put(number, entry.path.clone()));
        }
        let wanted: BTreeMap<&str, &ManifestNode> =
            manifest.entries.iter().map(|entry| (entry.path.as_str(), &entry.node)).collect();
        // What stands below a file to be goes first, the rest when everything new is there.
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for path in old.iter().rev().filter(|path| !wanted.contains_key(**path)) {
            let Some(op) = self.removal(root, path)? else { continue };
            if let Op::Remove(path) = &op {
                self.remember(root, path, cache, &mut back)?;
            }
            let mut above = path.match_indices('/').filter_map(|(end, _)| wanted.get(&path[..end]));
            let is_below_a_file = above.any(|node| !matches!(node, ManifestNode::Directory { .. }));
            if is_below_a_file { first.push(op) } else { last.push(op) }
        }
        if each {
            stage.sync()?;
            // Its own name: what is put is looked for by it.
            root.sync()?;
        } else {
            stage.sync_file_system()?;
        }
        done.linked = manifest.totals().0.saturating_sub(done.written);
        self.back = back;
        let ops = [first, puts, last].concat();
        Ok(Ready { version, manifest: manifest.clone(), ops, done, stood, by_hand })
    }

    /// Returns how a path goes that the version does not have, if what stands there is ours.
    fn removal(&self, root: &Dir, path: &str) -> Result<Option<Op>> {
        let mut is_missing = true;
        for (entry, manifest) in self.known(path) {
            match (&entry.node, difference(root, entry, manifest, None)?) {
                (_, Some(DriftKind::Missing)) => {}
                (_, Some(DriftKind::Content)) => is_missing = false,
                (ManifestNode::Directory { .. }, _) => return Ok(Some(Op::RemoveDirectory(path.to_owned()))),
                _ => return Ok(Some(Op::Remove(path.to_owned()))),
            }
        }
        // Removed by a switch that was not ended, and by a name that may not be durable.
        if is_missing && self.doubted.contains(path) {
            return Ok(Some(Op::Remove(path.to_owned())));
        }
        if !is_missing {
            tracing::warn!(path, "no longer in the set, changed by hand: left alone");
        }
        Ok(None)
    }

    /// Returns the path if something else stands there than the live version has, and whether that has it for its owner alone.
    fn changed_by_hand(&self, root: &Dir, path: &str) -> Result<Option<(String, bool)>> {
        if self.ignore.ignores(path) || !self.is_in_live(path) || self.is_ours(root, path)? {
            return Ok(None);
        }
        let private =
            |entry: &ManifestEntry| matches!(entry.node, ManifestNode::File { mode, .. } if mode & 0o077 == 0);
        let is_private = self.known(path).any(|(entry, _)| private(entry));
        for (entry, manifest) in self.known(path) {
            if difference(root, entry, manifest, None)? == Some(DriftKind::Content) {
                return Ok(Some((path.to_owned(), is_private)));
            }
        }
        Ok(None)
    }

    /// Keeps the chunks of a file that will be replaced: in the cache, or in memory if it may be a secret, as those are for
    /// their owner alone. Those of one version fit there.
    fn remember(&self, root: &Dir, path: &str, cache: &BlobStore, back: &mut Back) -> Result<()> {
        let old = self.live.iter().flat_map(|(_, manifest)| &manifest.entries).find(|entry| entry.path == path);
        let Some(ManifestNode::File { mode, chunks, .. }) = old.map(|entry| &entry.node) else { return Ok(()) };
        let Ok(mut file) = root.file(path) else { return Ok(()) };
        if !file.metadata().is_ok_and(|meta| meta.is_file()) {
            return Ok(());
        }
        let mut offset = 0;
        for chunk in chunks {
            let bytes = crate::dir::read_piece(&mut file, offset, chunk.size, Path::new(path))?;
            offset += u64::from(chunk.size);
            if digest_of(&bytes) != chunk.digest {
                continue;
            }
            if mode & 0o077 != 0 {
                cache.put(chunk.digest, &bytes)?;
            } else if back.bytes + u64::from(chunk.size) <= RENDERED_BYTES_MAX {
                back.bytes += u64::from(chunk.size);
                back.chunks.insert(chunk.digest, bytes);
            }
        }
        Ok(())
    }
}

/// # Errors
/// [`Error::OtherFileSystem`] with the first path that could not be replaced or removed: the steps before it would have been taken.
pub(super) fn refuse_mounts(root: &Dir, ops: &[Op]) -> Result<()> {
    for op in ops {
        match op {
            Op::Put(_, path) => root.refuse_across(path)?,
            Op::Remove(path) => match Parents::new(root).of(path) {
                // What is on another file system can be removed there; what is mounted at this very place cannot.
                Ok((above, name)) => above.refuse_across(name)?,
                Err(error) if is_shut(&error) => {}
                Err(error) => return Err(error),
            },
            Op::Directory(..) | Op::RemoveDirectory(_) => {}
        }
    }
    Ok(())
}
