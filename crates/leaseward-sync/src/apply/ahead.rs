//! The next tree, begun before anybody wants one: a copy of the live tree made of links, so that an apply costs what changes
//! and not what stays.
//!
//! Must stay true: it stands where the next tree is built, so a death leaves nothing that is not cleaned up anyway. A file of
//! it is kept only if it is the very inode that the plan would link there; everything else is made as without it. It is
//! durable when it is complete, so what an apply leaves alone need not be synced again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use leaseward_state::config::{Manifest, ManifestNode};

use super::Applier;
use super::build::finish_directory;
use super::plan::{Action, Lender, Plan};
use super::record::{Stamp, look};
use super::slot::{RootId, Standing, root_id};
use super::step::{Step, Steps};
use crate::dir::{Dir, Parents};
#[cfg(test)]
use crate::error::Error;
use crate::error::Result;

/// A tree of links next to the live one.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// The live tree that it is a copy of.
    live: Standing,
    root: RootId,
    manifest: Arc<Manifest>,
    /// How each file that is in it looked.
    stamps: Vec<Stamp>,
}

/// What of a tree that was begun stays.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// For each entry of the new manifest: whether it stands there already.
    stands: Vec<bool>,
    /// Directories that stand there and whose names change. The root is not among them: it always counts as changed.
    changed: HashSet<String>,
}

impl Kept {
    /// Returns whether an entry of the new manifest stands there already.
    pub(crate) fn stands(&self, entry: usize) -> bool {
        self.stands.get(entry).copied().unwrap_or(false)
    }

    /// Returns whether a directory that stands there needs no more work.
    pub(crate) fn is_done(&self, entry: usize, path: &str) -> bool {
        self.stands(entry) && !self.changed.contains(path)
    }

    /// Returns how many files and directories are not as they stood.
    pub(crate) fn fresh(&self, actions: &[Action]) -> usize {
        let made = |(entry, action): (usize, &Action)| {
            matches!(action, Action::Write | Action::Directory) && !self.stands(entry)
        };
        actions.iter().enumerate().filter(|each| made(*each)).count() + self.changed.len()
    }
}

fn above(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

/// What is done to the tree that was begun.
struct Clearing<'a> {
    root: &'a Dir,
    steps: &'a mut Steps,
    /// The modes of its directories, by path.
    modes: HashMap<&'a str, u32>,
    changed: HashSet<String>,
}

impl Clearing<'_> {
    /// Notes that names in the directory of `path` change, and lets us change them.
    fn touch(&mut self, path: &str) -> Result<()> {
        let dir = above(path);
        let Some(mode) = self.modes.get(dir) else { return Ok(()) };
        if self.changed.insert(dir.to_owned()) && mode & 0o700 != 0o700 {
            self.root.child(dir)?.set_mode(0o700)?;
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        self.touch(path)?;
        self.steps.before(Step::RemoveTree)?;
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        match dir {
            "" => self.root.remove_tree(name),
            dir => self.root.child(dir)?.remove_tree(name),
        }
    }
}

impl Ahead {
    /// Takes away from the tree at `root` what the new version has not, or not so.
    pub(crate) fn clear(
        &self,
        root: &Dir,
        manifest: &Manifest,
        plan: &Plan,
        lenders: &[Lender],
        steps: &mut Steps,
    ) -> Result<Kept> {
        let new: HashMap<&str, usize> =
            manifest.entries.iter().enumerate().map(|(i, entry)| (entry.path.as_str(), i)).collect();
        let modes = self.manifest.entries.iter().filter_map(|entry| match entry.node {
            ManifestNode::Directory { mode } => Some((entry.path.as_str(), mode)),
            _ => None,
        });
        let mut clearing = Clearing { root, steps, modes: modes.collect(), changed: HashSet::new() };
        let mut stands = vec![false; manifest.entries.len()];
        // Backwards, so that a directory is empty of what is ours when its turn comes.
        for (i, entry) in self.manifest.entries.iter().enumerate().rev() {
            let is_file = matches!(entry.node, ManifestNode::File { .. });
            if is_file && self.stamps[i] == Stamp::default() {
                // It was never put there.
                continue;
            }
            let at = new.get(entry.path.as_str()).copied();
            let stays = at.is_some_and(|at| match (plan.actions[at], &entry.node) {
                (Action::Link(origin), ManifestNode::File { .. }) => {
                    let proven = lenders[origin.tree].proven[origin.entry];
                    proven.is_some_and(|proven| proven.same_data(&self.stamps[i]))
                }
                (Action::Symlink, node) => manifest.entries[at].node == *node,
                // Whatever its mode: what is in it may stay.
                (Action::Directory, ManifestNode::Directory { .. }) => true,
                _ => false,
            });
            match at.filter(|_| stays) {
                Some(at) => {
                    stands[at] = true;
                    if manifest.entries[at].node != entry.node {
                        clearing.changed.insert(entry.path.clone());
                    }
                }
                None => clearing.remove(&entry.path)?,
            }
        }
        for (entry, _) in manifest.entries.iter().zip(&stands).filter(|(_, stands)| !**stands) {
            clearing.touch(&entry.path)?;
        }
        Ok(Kept { stands, changed: clearing.changed })
    }
}

impl Applier {
    /// Begins the next tree, if the live one is large enough that it pays, and notes in `stamps` how its files look
    /// then. Without it the next apply takes longer, and nothing else.
    pub(super) fn begin_next(
        &mut self,
        live: Standing,
        root: &Dir,
        manifest: &Arc<Manifest>,
        stamps: &mut [Stamp],
    ) -> Result<()> {
        let files = manifest.entries.iter().filter(|entry| matches!(entry.node, ManifestNode::File { .. }));
        if files.count() < self.ahead_from {
            return Ok(());
        }
        match self.link_all(live, root, manifest, stamps) {
            Ok(ahead) => self.ahead = Some(ahead),
            #[cfg(test)]
            Err(Error::Killed) => return Err(Error::Killed),
            Err(error) => {
                tracing::info!(target = %self.names.live, %error, "the next tree is not begun ahead");
                self.parent.remove_tree(&self.names.next)?;
            }
        }
        Ok(())
    }

    fn link_all(
        &mut self,
        live: Standing,
        root: &Dir,
        manifest: &Arc<Manifest>,
        stamps: &mut [Stamp],
    ) -> Result<Ahead> {
        let next = self.make_root(true)?;
        let (mut to, mut from) = (Parents::new(&next), Parents::new(root));
        let mut linked = vec![Stamp::default(); stamps.len()];
        for (i, entry) in manifest.entries.iter().enumerate() {
            let (dir, name) = to.of(&entry.path)?;
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
                    // A link moves ctime: what looked otherwise just before was touched by somebody else.
                    if stamps[i] == Stamp::default() || look(&mut from, &entry.path) != stamps[i] {
                        stamps[i] = Stamp::default();
                        continue;
                    }
                    let (here, here_name) = from.of(&entry.path)?;
                    self.steps.before(Step::LinkFile)?;
                    if !self.steps.can_link() || !dir.hard_link(name, here, here_name)? {
                        continue;
                    }
                    let after = dir.stat(name)?.as_ref().map_or_else(Stamp::default, Stamp::of);
                    stamps[i] = if after.same_data(&stamps[i]) { after } else { Stamp::default() };
                    linked[i] = after;
                }
            }
        }
        for entry in manifest.entries.iter().rev() {
            if let ManifestNode::Directory { mode } = entry.node {
                finish_directory(&next, &entry.path, mode, self.owner)?;
            }
        }
        self.steps.before(Step::SyncTree)?;
        next.sync_file_system()?;
        let found = root_id(&self.parent, &self.names.next)?.ok_or_else(|| self.changed(&self.names.next))?;
        Ok(Ahead { live, root: found, manifest: Arc::clone(manifest), stamps: linked })
    }

    /// Returns how the files of the tree that was begun looked, if it still is what it was made as.
    pub(super) fn begun(&self) -> Result<Option<&[Stamp]>> {
        let Some(ahead) = &self.ahead else { return Ok(None) };
        Ok(self.is_copy_of_live(ahead)?.then_some(&ahead.stamps))
    }

    /// Returns what was begun, if it still is what it was made as: a copy of what is live.
    pub(super) fn take_ahead(&mut self) -> Result<Option<Ahead>> {
        let Some(ahead) = self.ahead.take() else { return Ok(None) };
        Ok(self.is_copy_of_live(&ahead)?.then_some(ahead))
    }

    fn is_copy_of_live(&self, ahead: &Ahead) -> Result<bool> {
        Ok(self.slots.state().live == Some(ahead.live)
            && self.target_is_ours()?
            && root_id(&self.parent, &self.names.next)? == Some(ahead.root))
    }
}
