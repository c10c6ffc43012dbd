//! Building a tree next to the live one: links for what is proven equal, fresh inodes for everything else.
//!
//! Must stay true: the live tree is only read; every byte written was hashed; a file's mode and attributes are set on a
//! fresh inode and never on a shared one; nothing is created outside the new root, whoever swaps directories meanwhile.

use std::io::Write as _;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use leaseward_state::config::{Chunk, Digest, Manifest, ManifestNode, Xattrs};
use rustix::fs::Mode;

use super::Owner;
use super::ahead::{Ahead, Kept};
use super::plan::{Action, Lender, Origin, Plan};
use super::record::{Expected, Record, Stamp};
use super::step::{Step, Steps};
use crate::digest_of;
use crate::dir::{Dir, Parents, read_piece};
use crate::error::{Error, Result, at};
use crate::limits::{SYNC_EACH_MAX, UNSYNCED_MAX};
use crate::xattr;

/// Where chunks come from that no file on this disk has.
pub(crate) type Source<'a> = dyn FnMut(Digest) -> Result<Given> + 'a;

/// The plain bytes of a chunk.
#[derive(Debug)]
pub(crate) enum Given {
    /// They were verified.
    Proven(Arc<Vec<u8>>),
    /// Somebody says so.
    Claimed(Vec<u8>),
}

impl Deref for Given {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Proven(bytes) => bytes,
            Self::Claimed(bytes) => bytes,
        }
    }
}

/// What one build did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Files that were reused as they stand.
    pub linked: u64,
    /// Files that were written.
    pub written: u64,
    /// Bytes that were written.
    pub bytes: u64,
}

pub(crate) struct Build<'a> {
    pub(crate) root: &'a Dir,
    /// The directory that the root stands in.
    pub(crate) parent: &'a Dir,
    /// Where the record of the tree goes, and under which name.
    pub(crate) state_dir: &'a Dir,
    pub(crate) record: &'a str,
    pub(crate) lenders: &'a [Lender],
    pub(crate) plan: &'a Plan,
    /// What of it stands there already.
    pub(crate) ahead: Option<&'a Ahead>,
    pub(crate) owner: Option<Owner>,
    pub(crate) steps: &'a mut Steps,
    pub(crate) source: &'a mut Source<'a>,
    pub(crate) done: Applied,
    /// Files and directories that were written and are synced together, once everything is: then the journal of the file
    /// system is written about once, and not for each of them. `None` if the whole file system is synced.
    pub(crate) unsynced: Option<Vec<(OwnedFd, PathBuf)>>,
}

impl Build<'_> {
    /// Builds the tree, durable when this returns, and returns how each file looked when its content was known.
    pub(crate) fn run(&mut self, manifest: &Arc<Manifest>) -> Result<Expected> {
        let kept = match self.ahead {
            Some(ahead) => ahead.clear(self.root, manifest, self.plan, self.lenders, self.steps)?,
            None => Kept::default(),
        };
        self.unsynced = (kept.fresh(&self.plan.actions) < SYNC_EACH_MAX).then(Vec::new);
        let mut expected = vec![Stamp::default(); manifest.entries.len()];
        let mut stood = vec![false; manifest.entries.len()];
        let mut parents = Parents::new(self.root);
        let lenders = self.lenders;
        let mut from: Vec<Parents<'_>> = lenders.iter().map(|lender| Parents::new(&lender.root)).collect();
        for (i, entry) in manifest.entries.iter().enumerate() {
            if kept.stands(i) {
                stood[i] = true;
                if let Action::Link(origin) = self.plan.actions[i] {
                    let lender = &lenders[origin.tree];
                    // What is not as it was any more is found by the look before the switch.
                    let proven = match lender.assumed[origin.entry] {
                        true => lender.proven[origin.entry],
                        false => lender.prove_again(origin.entry, &mut parents, &entry.path, self.owner),
                    };
                    expected[i] = proven.unwrap_or_default();
                    self.done.linked += 1;
                }
                continue;
            }
            let (dir, name) = parents.of(&entry.path)?;
            match &entry.node {
                ManifestNode::Directory { .. } => {
                    self.steps.before(Step::MakeDirectory)?;
                    dir.mkdir(name)?;
                }
                ManifestNode::Symlink { target } => {
                    self.steps.before(Step::MakeLink)?;
                    dir.symlink(target, name)?;
                }
                ManifestNode::File { .. } => {
                    let (linked, twin) = match self.plan.actions[i] {
                        // Only what stands there already is looked at closely enough in the end.
                        Action::Link(origin) if lenders[origin.tree].assumed[origin.entry] => {
                            return Err(Error::Changed { path: dir.path().join(name) });
                        }
                        Action::Link(origin) => (self.link(dir, name, origin, &mut from[origin.tree])?, Some(origin)),
                        _ => (None, None),
                    };
                    let xattrs = manifest.xattrs_of(&entry.path);
                    stood[i] = linked.is_some();
                    expected[i] = linked.map_or_else(|| self.write(dir, name, (&entry.node, xattrs), twin), Ok)?;
                }
            }
        }
        self.finish_directories(manifest, &kept)?;
        self.steps.before(Step::SaveRecord)?;
        self.save_record(&Record::unproven(Arc::clone(manifest)))?;
        self.steps.before(Step::SyncTree)?;
        if let Some(unsynced) = self.unsynced.take() {
            for (file, path) in unsynced {
                rustix::fs::fsync(file).map_err(at("sync", path))?;
            }
            self.root.sync()?;
            self.steps.before(Step::SyncParent)?;
            self.parent.sync()?;
        } else {
            self.root.sync_file_system()?;
        }
        Ok(Expected { stamps: expected, stood })
    }

    /// Writes the record of the tree; durable when the tree is.
    fn save_record(&mut self, record: &Record) -> Result<()> {
        // The record of a tree that stands is never replaced by one that is not whole yet. And the sync of a file system is
        // for what is on it.
        let alone = self.state_dir.stat(self.record)?.is_some()
            || self.unsynced.is_none() && !self.root.is_on_device_of(self.state_dir)?;
        if alone {
            return record.save(self.state_dir, self.record);
        }
        let file = record.put(self.state_dir, self.record)?;
        if let Some(unsynced) = &mut self.unsynced {
            unsynced.push((file.into(), self.state_dir.path().join(self.record)));
            unsynced.push((self.state_dir.fd()?, self.state_dir.path().to_owned()));
        }
        Ok(())
    }

    /// Notes that something of the tree must be synced. Where nothing can be linked, more is written than was planned, and
    /// so many files cannot be kept open: then the whole file system is synced.
    fn is_written(&mut self, file: impl FnOnce() -> Result<OwnedFd>, path: &Path) -> Result<()> {
        match &mut self.unsynced {
            Some(unsynced) if unsynced.len() >= UNSYNCED_MAX => self.unsynced = None,
            Some(unsynced) => unsynced.push((file()?, path.to_owned())),
            None => {}
        }
        Ok(())
    }

    /// Links the proven file at `origin` and returns how it looks then. `None` if it cannot be linked or is no longer what was
    /// proven: the plan may be old, and to link moves what would tell it.
    fn link(&mut self, dir: &Dir, name: &str, origin: Origin, from: &mut Parents<'_>) -> Result<Option<Stamp>> {
        let lender = &self.lenders[origin.tree];
        let path = &lender.record.manifest.entries[origin.entry].path;
        let Some(proven) = lender.prove_again(origin.entry, from, path, self.owner) else { return Ok(None) };
        let Ok((from, from_name)) = from.of(path) else { return Ok(None) };
        self.steps.before(Step::LinkFile)?;
        if !self.steps.can_link() || !dir.hard_link(name, from, from_name)? {
            return Ok(None);
        }
        if let Some(linked) = dir.stat(name)?.as_ref().map(Stamp::of).filter(|linked| linked.same_data(&proven)) {
            self.done.linked += 1;
            return Ok(Some(linked));
        }
        dir.unlink(name)?;
        Ok(None)
    }

    /// Writes a file. `twin`: one with the same content, which could not be linked.
    fn write(
        &mut self,
        dir: &Dir,
        name: &str,
        (node, xattrs): (&ManifestNode, Option<&Xattrs>),
        twin: Option<Origin>,
    ) -> Result<Stamp> {
        let ManifestNode::File { mode, digest, chunks, .. } = node else { unreachable!("only files are written") };
        let path = dir.path().join(name);
        self.steps.before(Step::CreateFile)?;
        let mut file = dir.create(name)?;
        let mut hasher = blake3::Hasher::new();
        let mut offset = 0;
        for chunk in chunks {
            let bytes = self.chunk(*chunk, twin.map(|twin| (twin, offset)))?;
            offset += u64::from(chunk.size);
            self.steps.before(Step::WriteChunk)?;
            file.write_all(&bytes).map_err(at("write", &path))?;
            if chunks.len() > 1 {
                hasher.update(&bytes);
            }
            self.done.bytes += bytes.len() as u64;
        }
        // A single chunk bears the name of the file, and was verified as such.
        if chunks.len() > 1 && hasher.finalize().as_bytes() != &digest.0 {
            return Err(Error::illegal(path, "its chunks are not its content"));
        }
        self.steps.before(Step::FinishFile)?;
        if let Some(owner) = self.owner {
            crate::dir::give(&file, owner.user, owner.group, &path)?;
        }
        if let Some(xattrs) = xattrs {
            xattr::write(&file, xattrs, &path)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode)).map_err(at("set the mode of", &path))?;
        self.done.written += 1;
        let stamp = Stamp::of(&rustix::fs::fstat(&file).map_err(at("look at", &path))?);
        if self.unsynced.is_none() {
            crate::dir::begin_to_sync(&file);
        }
        self.is_written(|| Ok(file.into()), &path)?;
        Ok(stamp)
    }

    /// Returns the verified bytes of a chunk, from this disk if possible: where the plan found it, or where it is in a twin
    /// of the file.
    fn chunk(&mut self, chunk: Chunk, twin: Option<(Origin, u64)>) -> Result<Given> {
        for (origin, offset) in self.plan.chunks.get(&chunk.digest).copied().into_iter().chain(twin) {
            if let Ok(bytes) = self.lent(origin, offset, chunk)
                && digest_of(&bytes) == chunk.digest
            {
                return Ok(Given::Claimed(bytes));
            }
        }
        let bytes = (self.source)(chunk.digest)?;
        let is_proven = matches!(bytes, Given::Proven(_)) || digest_of(&bytes) == chunk.digest;
        if bytes.len() != chunk.size as usize || !is_proven {
            let (path, why) = (PathBuf::from("the source"), "its content has another name or length");
            return Err(Error::BlobCorrupt { path, digest: chunk.digest, why });
        }
        Ok(bytes)
    }

    fn lent(&self, origin: Origin, offset: u64, chunk: Chunk) -> Result<Vec<u8>> {
        let lender = &self.lenders[origin.tree];
        let relative = &lender.record.manifest.entries[origin.entry].path;
        let mut file = lender.root.file(relative)?;
        read_piece(&mut file, offset, chunk.size, Path::new(relative))
    }

    /// Gives directories their modes, the deepest first, since a mode may forbid to go on below.
    fn finish_directories(&mut self, manifest: &Manifest, kept: &Kept) -> Result<()> {
        for (i, entry) in manifest.entries.iter().enumerate().rev() {
            let ManifestNode::Directory { mode } = &entry.node else { continue };
            if kept.is_done(i, &entry.path) {
                continue;
            }
            let dir = finish_directory(self.root, &entry.path, *mode, self.owner)?;
            self.is_written(|| dir.fd(), dir.path())?;
        }
        Ok(())
    }
}

/// Gives a directory its owner and its mode.
pub(crate) fn finish_directory(root: &Dir, path: &str, mode: u32, owner: Option<Owner>) -> Result<Dir> {
    let dir = root.child(path)?;
    if let Some(owner) = owner {
        dir.give_to(owner.user, owner.group)?;
    }
    dir.set_mode(mode)?;
    Ok(dir)
}
