//! What must be written, linked and fetched to turn the trees on this disk into another version.
//!
//! Must stay true: [`plan`] is pure and plans alike for equal inputs; a file is linked only if its content, mode and
//! attributes are proven equal, and at most once, so that no two paths of a tree share an inode.
//! Left out on purpose: reflinks. They would keep the previous version from in-place edits; on ext4 there are none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use leaseward_state::config::{Chunk, Digest, Manifest, ManifestEntry, ManifestNode, Xattrs};

use super::record::{Record, Stamp};
use super::{Needs, Owner};
use crate::dir::{Dir, Kind, Parents, hash_file, kind};
use crate::error::Result;
use crate::limits::BLOCK_BYTES;
use crate::space::Space;
use crate::tables::{DigestMap, DigestSet};
use crate::xattr;

/// A file of a tree that stands on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Which of the trees.
    pub(crate) tree: usize,
    /// Its entry in the manifest of that tree.
    pub(crate) entry: usize,
}

/// What to do for one entry of the new manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Directory,
    Symlink,
    Link(Origin),
    Write,
}

/// A tree on the disk that may lend files.
#[derive(Debug)]
pub(crate) struct Lender {
    pub(crate) root: Dir,
    pub(crate) record: Arc<Record>,
    /// For each entry: the stamp with which its content was proven, if it was.
    pub(crate) proven: Vec<Option<Stamp>>,
    /// For each entry: whether that was proven earlier, and whoever relies on it looks whether it still is so.
    pub(crate) assumed: Vec<bool>,
}

/// Everything an apply will do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// One for each entry of the new manifest.
    pub(crate) actions: Vec<Action>,
    /// Chunks of files that must be written and that stand in a proven file: which, and at what offset.
    pub(crate) chunks: DigestMap<(Origin, u64)>,
    /// Chunks that must come from elsewhere.
    pub(crate) fetch: BTreeMap<Digest, u32>,
    /// What the new tree takes on the disk.
    pub(crate) need: Space,
}

impl Plan {
    pub(crate) fn needs(&self) -> Needs {
        let fetch = self.fetch.iter().map(|(digest, size)| Chunk { digest: *digest, size: *size }).collect();
        Needs { fetch, space: self.need }
    }
}

impl Lender {
    pub(crate) fn new(root: Dir, record: Arc<Record>) -> Self {
        let (proven, assumed) = (vec![None; record.manifest.entries.len()], vec![false; record.manifest.entries.len()]);
        Self { root, record, proven, assumed }
    }

    /// Returns whether anything of it was not looked at.
    pub(crate) fn assumes(&self) -> bool {
        self.assumed.contains(&true)
    }

    /// Takes the files of `staying` for what the record says they are, without a look, where they looked the same in the tree
    /// that was begun (`begun`).
    pub(crate) fn assume(&mut self, staying: &[Option<usize>], begun: &[Stamp]) {
        for old in staying.iter().flatten().copied() {
            let stamp = self.record.stamps[old];
            if stamp != Stamp::default() && begun[old] == stamp {
                (self.proven[old], self.assumed[old]) = (Some(stamp), true);
            }
        }
    }

    /// Proves the content of every file that could give something and is not proven yet: those that stay where they are, as
    /// [`staying`] says, and those that hold something of `wanted`. Errors mean "not proven".
    pub(crate) fn prove(&mut self, staying: &[Option<usize>], wanted: &DigestSet, owner: Option<Owner>) {
        let mut parents = Parents::new(&self.root);
        let mut stays = vec![false; self.record.manifest.entries.len()];
        for old in staying.iter().flatten() {
            stays[*old] = true;
        }
        for (i, entry) in self.record.manifest.entries.iter().enumerate() {
            if self.proven[i].is_some() {
                continue;
            }
            let ManifestNode::File { digest, mode, chunks, .. } = &entry.node else { continue };
            let lends = || wanted.contains(digest) || chunks.iter().any(|chunk| wanted.contains(&chunk.digest));
            if stays[i] || lends() {
                let looks = (*mode, owner, self.record.manifest.xattrs_of(&entry.path));
                let stamp = &self.record.stamps[i];
                self.proven[i] = prove_file(&mut parents, &entry.path, looks, *digest, stamp).ok().flatten();
            }
        }
    }

    /// Returns how a file that was proven looks now, at `path` of a tree that has the same inode there, if it still is what it
    /// was. Reads it only if it looks otherwise. Errors mean "not proven".
    pub(crate) fn prove_again(
        &self,
        entry: usize,
        parents: &mut Parents<'_>,
        path: &str,
        owner: Option<Owner>,
    ) -> Option<Stamp> {
        let proven = self.proven[entry]?;
        let found = &self.record.manifest.entries[entry];
        let ManifestNode::File { digest, mode, .. } = &found.node else { return None };
        let looks = (*mode, owner, self.record.manifest.xattrs_of(&found.path));
        let now = prove_file(parents, path, looks, *digest, &proven).ok().flatten()?;
        (now.inode == proven.inode).then_some(now)
    }
}

/// Returns for each entry of `new` the file of `old` that it may stay: the one at its path, if content, mode and attributes
/// are the same. Both are sorted, so this is one walk along them, without a table of what thousands of files are called.
pub(crate) fn staying(new: &Manifest, old: &Manifest) -> Vec<Option<usize>> {
    let mut at = 0;
    let mut find = |entry: &ManifestEntry| {
        while old.entries.get(at).is_some_and(|found| found.path < entry.path) {
            at += 1;
        }
        let found = old.entries.get(at).filter(|found| found.path == entry.path)?;
        let same = match (&entry.node, &found.node) {
            (
                ManifestNode::File { mode, digest, .. },
                ManifestNode::File { mode: old_mode, digest: old_digest, .. },
            ) => (mode, digest) == (old_mode, old_digest),
            _ => false,
        };
        (same && new.xattrs_of(&entry.path) == old.xattrs_of(&entry.path)).then_some(at)
    };
    new.entries.iter().map(&mut find).collect()
}

fn prove_file(
    parents: &mut Parents<'_>,
    path: &str,
    (mode, owner, xattrs): (u32, Option<Owner>, Option<&Xattrs>),
    digest: Digest,
    stamp: &Stamp,
) -> Result<Option<Stamp>> {
    let (dir, name) = parents.of(path)?;
    let Some(stat) = dir.stat(name)? else { return Ok(None) };
    if kind(&stat) != Kind::File || stat.st_mode & 0o7777 != mode {
        return Ok(None);
    }
    // A file that is to belong to somebody else needs an inode of its own.
    if owner.is_some_and(|owner| (stat.st_uid, stat.st_gid) != (owner.user, owner.group)) {
        return Ok(None);
    }
    if let Some(xattrs) = xattrs
        && xattr::read(&dir.file(name)?, &dir.path().join(name))? != *xattrs
    {
        return Ok(None);
    }
    let now = Stamp::of(&stat);
    if now == *stamp {
        return Ok(Some(now));
    }
    // Linked, unlinked or edited since: only the content can tell.
    let mut file = dir.file(name)?;
    let same = hash_file(&mut file, &dir.path().join(name))? == digest;
    let after = rustix::fs::fstat(&file).map_err(crate::error::at("look at", dir.path().join(name)))?;
    Ok((same && Stamp::of(&after) == now).then_some(now))
}

/// Returns the digests of files and chunks in `manifest` that are not where `is_found` says.
pub(crate) fn unmet(manifest: &Manifest, is_found: impl Fn(usize) -> bool) -> DigestSet {
    let mut wanted = DigestSet::default();
    for (i, entry) in manifest.entries.iter().enumerate() {
        let ManifestNode::File { digest, chunks, .. } = &entry.node else { continue };
        if !is_found(i) {
            wanted.insert(*digest);
            wanted.extend(chunks.iter().map(|chunk| chunk.digest));
        }
    }
    wanted
}

impl Plan {
    /// Returns the digests of files and chunks in `manifest` that this plan could not link.
    pub(crate) fn unmet(&self, manifest: &Manifest) -> DigestSet {
        unmet(manifest, |entry| self.actions[entry] != Action::Write)
    }
}

/// Returns what to do for `manifest`, given trees with their proven files. Earlier lenders are preferred.
pub(crate) fn plan(manifest: &Manifest, lenders: &[Lender]) -> Plan {
    let mut used = HashSet::new();
    let node = |entry: &ManifestEntry| match &entry.node {
        ManifestNode::Directory { .. } => Action::Directory,
        ManifestNode::Symlink { .. } => Action::Symlink,
        ManifestNode::File { .. } => Action::Write,
    };
    let actions = manifest.entries.iter().map(node).collect();
    let mut plan = Plan { actions, need: Space { bytes: BLOCK_BYTES, inodes: 1 }, ..Plan::default() };
    // First the same path, then what is left: a renamed file must not take what another path keeps.
    for (tree, lender) in lenders.iter().enumerate() {
        for (action, old) in plan.actions.iter_mut().zip(staying(manifest, &lender.record.manifest)) {
            if *action == Action::Write
                && let Some(entry) = old
                && let Some(stamp) = lender.proven[entry]
                && used.insert(stamp.inode)
            {
                *action = Action::Link(Origin { tree, entry });
            }
        }
    }
    let shelf = Shelf::new(lenders, &plan.unmet(manifest));
    for (entry, action) in manifest.entries.iter().zip(&mut plan.actions) {
        let ManifestNode::File { mode, digest, .. } = &entry.node else { continue };
        if *action == Action::Write {
            let mut others = shelf.with_content((*digest, *mode, manifest.xattrs_of(&entry.path)));
            if let Some((origin, _)) = others.find(|(_, inode)| used.insert(*inode)) {
                *action = Action::Link(origin);
            }
        }
    }
    plan.chunks = shelf.chunks(&plan.unmet(manifest));
    count(manifest, &mut plan);
    plan
}

fn count(manifest: &Manifest, plan: &mut Plan) {
    for (entry, action) in manifest.entries.iter().zip(&plan.actions) {
        if matches!(action, Action::Link(_)) {
            continue;
        }
        plan.need.inodes += 1;
        let ManifestNode::File { size, chunks, .. } = &entry.node else {
            plan.need.bytes += BLOCK_BYTES;
            continue;
        };
        plan.need.bytes += size.next_multiple_of(BLOCK_BYTES);
        for Chunk { digest, size } in chunks {
            if !plan.chunks.contains_key(digest) {
                plan.fetch.insert(*digest, *size);
            }
        }
    }
}

/// The proven files of all lenders that hold something of what is wanted.
struct Shelf<'a> {
    lenders: &'a [Lender],
    /// With their inodes: the previous tree shares most of them with the live one.
    contents: HashMap<Look<'a>, Vec<(Origin, u64)>>,
}

/// What two files must have in common to be one inode: content, mode and attributes. Where attributes are left alone,
/// nobody knows which ones a file has, so it is not lent to a version that keeps them.
type Look<'a> = (Digest, u32, Option<&'a Xattrs>);

impl<'a> Shelf<'a> {
    fn new(lenders: &'a [Lender], wanted: &DigestSet) -> Self {
        let mut shelf = Self { lenders, contents: HashMap::new() };
        for (tree, lender) in lenders.iter().enumerate() {
            for (entry, found) in lender.record.manifest.entries.iter().enumerate() {
                let ManifestNode::File { mode, digest, .. } = &found.node else { continue };
                let Some(stamp) = lender.proven[entry] else { continue };
                if wanted.contains(digest) {
                    let look = (*digest, *mode, lender.record.manifest.xattrs_of(&found.path));
                    shelf.contents.entry(look).or_default().push((Origin { tree, entry }, stamp.inode));
                }
            }
        }
        shelf
    }

    fn with_content(&self, look: Look<'a>) -> impl Iterator<Item = (Origin, u64)> + '_ {
        self.contents.get(&look).into_iter().flatten().copied()
    }

    fn chunks(&self, wanted: &DigestSet) -> DigestMap<(Origin, u64)> {
        let mut chunks = DigestMap::default();
        for (tree, lender) in self.lenders.iter().enumerate() {
            for (entry, found) in lender.record.manifest.entries.iter().enumerate() {
                let ManifestNode::File { chunks: pieces, .. } = &found.node else { continue };
                if lender.proven[entry].is_none() {
                    continue;
                }
                let mut offset = 0;
                for piece in pieces {
                    if wanted.contains(&piece.digest) {
                        chunks.entry(piece.digest).or_insert((Origin { tree, entry }, offset));
                    }
                    offset += u64::from(piece.size);
                }
            }
        }
        chunks
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
