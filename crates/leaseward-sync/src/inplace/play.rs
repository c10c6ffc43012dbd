//! The steps of a switch, taken one after the other; also by whoever opens the set after a death, from the first one on.
//!
//! Must stay true: each step may be taken twice; at the end every name and every mode is durable; a staged file that is not
//! there counts as put only where its content stands; a journal that is read from the disk is played only with files that are
//! staged for it. Directories that their owner may not write to are his to write to while
//! this lasts.

use std::collections::{BTreeMap, BTreeSet};

use leaseward_state::config::{Manifest, ManifestEntry, ManifestNode};
use rustix::fs::AtFlags;

use super::journal::Op;
use super::{STAGE, difference};
use crate::apply::{DriftKind, Owner, differs};
use crate::dir::{Dir, Kind, Parents, kind};
use crate::error::{Error, Result, at};
use crate::limits::SYNC_EACH_MAX;

/// What the owner of a directory needs to change what is in it.
const CHANGEABLE: u32 = 0o700;

/// A switch that is under way.
pub(super) struct Play<'a> {
    root: &'a Dir,
    manifest: &'a Manifest,
    before: Option<&'a Manifest>,
    owner: Option<Owner>,
    /// Directories and the modes that they have in the end.
    modes: BTreeMap<String, u32>,
    /// Directories in which something was changed.
    touched: BTreeSet<String>,
}

impl<'a> Play<'a> {
    /// `before`: the version that was live, if one was.
    pub(super) fn new(
        root: &'a Dir,
        manifest: &'a Manifest,
        before: Option<&'a Manifest>,
        owner: Option<Owner>,
    ) -> Self {
        Self { root, manifest, before, owner, modes: BTreeMap::new(), touched: BTreeSet::new() }
    }

    /// Takes every step and makes them durable.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Changed`] if neither a staged file nor its content in its place is there.
    pub(super) fn run(mut self, ops: &[Op]) -> Result<()> {
        for op in ops {
            for (end, _) in op.path().match_indices('/') {
                self.open_up(&op.path()[..end])?;
            }
            self.take(op)?;
        }
        self.settle()
    }

    /// Looks whether every staged file that is still there is of this version.
    ///
    /// # Errors
    /// [`Error::Changed`] with the first that is of another one; [`Error::Io`].
    pub(super) fn prove(&self, ops: &[Op]) -> Result<()> {
        let stage = match self.root.child(STAGE) {
            Err(error) if is_gone(&error) => return Ok(()),
            found => found?,
        };
        for op in ops {
            let Op::Put(number, path) = op else { continue };
            let name = number.to_string();
            let Some(stat) = stage.stat(&name)? else { continue };
            let is_ours = match self.entry(path) {
                Some(entry) => {
                    let looks = (self.manifest.xattrs_of(path), self.owner);
                    differs(&entry.node, looks, (&stage, name.as_ref()), &stat, None)?.is_none()
                }
                None => false,
            };
            if !is_ours {
                return Err(Error::Changed { path: stage.path().join(name) });
            }
        }
        Ok(())
    }

    fn entry(&self, path: &str) -> Option<&'a ManifestEntry> {
        let at = self.manifest.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
        Some(&self.manifest.entries[at])
    }

    fn take(&mut self, op: &Op) -> Result<()> {
        let path = op.path();
        let mut parents = Parents::new(self.root);
        let (dir, name) = match parents.of(path) {
            // Gone by an earlier step that was taken before a death, or for a file that stands there now.
            Err(error) if matches!(op, Op::Remove(_) | Op::RemoveDirectory(_)) && is_gone(&error) => return Ok(()),
            found => found?,
        };
        self.touched.insert(path.rsplit_once('/').map_or("", |(above, _)| above).to_owned());
        match op {
            Op::Directory(_, mode) => {
                match dir.stat(name)? {
                    Some(stat) if kind(&stat) == Kind::Directory => {}
                    Some(_) => {
                        dir.unlink(name)?;
                        dir.mkdir(name)?;
                    }
                    None => drop(dir.mkdir(name)?),
                }
                let made = dir.child(name)?;
                if let Some(owner) = self.owner {
                    made.give_to(owner.user, owner.group)?;
                }
                made.set_mode(mode | CHANGEABLE)?;
                self.modes.insert(path.to_owned(), *mode);
                self.touched.insert(path.to_owned());
            }
            Op::Put(number, _) => {
                let from = number.to_string();
                let stage = match self.root.child(STAGE) {
                    Err(error) if is_gone(&error) => None,
                    found => Some(found?),
                };
                match stage {
                    Some(stage) if stage.stat(&from)?.is_some() => {
                        // An empty directory may stand there: a file does not take its place by itself.
                        let _ = rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
                        rustix::fs::renameat(&stage, &from, dir, name).map_err(at("replace", dir.path().join(name)))?;
                    }
                    _ if self.stands(path)? => {}
                    _ => return Err(Error::Changed { path: self.root.path().join(path) }),
                }
            }
            Op::Remove(_) => dir.unlink(name)?,
            Op::RemoveDirectory(_) => {
                // Somebody else has something in it: it stays.
                let _ = rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
            }
        }
        Ok(())
    }

    /// Returns whether the version's content stands at a path.
    fn stands(&self, path: &str) -> Result<bool> {
        let Some(entry) = self.entry(path) else { return Ok(false) };
        let found = difference(self.root, entry, self.manifest, None)?;
        Ok(!matches!(found, Some(DriftKind::Missing | DriftKind::Content)))
    }

    /// Lets the owner change what is in a directory, if it is as a version has it, or was opened up before a death.
    fn open_up(&mut self, path: &str) -> Result<()> {
        let trees = [Some(self.manifest), self.before];
        let Some(mode) = trees.into_iter().flatten().find_map(|tree| mode_of(tree, path)) else { return Ok(()) };
        if mode & CHANGEABLE == CHANGEABLE || self.modes.contains_key(path) {
            return Ok(());
        }
        let dir = match self.root.child(path) {
            Err(error) if is_gone(&error) => return Ok(()),
            found => found?,
        };
        let now = dir.own_stat()?.st_mode & 0o7777;
        if now == mode || now == mode | CHANGEABLE {
            dir.set_mode(mode | CHANGEABLE)?;
            self.modes.insert(path.to_owned(), mode);
            self.touched.insert(path.to_owned());
        }
        Ok(())
    }

    /// Gives directories their modes and makes everything durable. The deepest first: a mode may forbid to go on below.
    fn settle(self) -> Result<()> {
        let each = self.touched.len() <= SYNC_EACH_MAX;
        for path in self.touched.iter().rev() {
            let dir = match path.as_str() {
                "" => None,
                path => match self.root.child(path) {
                    Err(error) if is_gone(&error) => continue,
                    found => Some(found?),
                },
            };
            let dir = dir.as_ref().unwrap_or(self.root);
            if let Some(mode) = self.modes.get(path) {
                dir.set_mode(*mode)?;
            }
            if each {
                dir.sync()?;
            }
        }
        if each { Ok(()) } else { self.root.sync_file_system() }
    }
}

/// Returns whether a directory is not there: a step before may have removed it, or put a file or a link in its place.
fn is_gone(error: &Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match error {
        Error::IllegalTree { .. } => true,
        Error::Io { source, .. } => matches!(source.kind(), NotFound | NotADirectory),
        _ => false,
    }
}

fn mode_of(tree: &Manifest, path: &str) -> Option<u32> {
    let at = tree.entries.binary_search_by(|entry| entry.path.as_str().cmp(path)).ok()?;
    match tree.entries[at].node {
        ManifestNode::Directory { mode } => Some(mode),
        _ => None,
    }
}
