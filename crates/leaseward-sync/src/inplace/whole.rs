//! A version of single files as a whole tree, for those who want to see it before it is live; and a set that was kept as whole
//! trees, or is from now on.
//!
//! Must stay true: nothing here replaces or removes a file of the set, and no content is copied; what was known to be live is
//! known under the other layout, too, so that files which somebody changed by hand meanwhile are drift and not somebody else's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use leaseward_state::config::ManifestNode;

use super::journal::{Op, encode_version, read_version, write_durably};
use super::{InPlace, LIVE, PREVIOUS, STAGE};
use crate::SetDirs;
use crate::apply::Applier;
use crate::dir::{Dir, Parents};
use crate::error::{Error, Result};
use crate::patterns::Patterns;

/// Where a version stands as a whole, below the stage.
const WHOLE: &str = "whole";

impl InPlace {
    /// Makes a tree of what is staged: new files by another name, and links to those that stay where they are.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`], [`Error::Changed`] if nothing is staged.
    pub(crate) fn staged_tree(&self) -> Result<PathBuf> {
        let Some(ready) = &self.ready else { return Err(Error::Changed { path: self.target.clone() }) };
        let stage = self.root()?.child(STAGE)?;
        stage.remove_tree(WHOLE)?;
        let whole = stage.mkdir(WHOLE)?;
        let put: BTreeMap<&str, u64> = ready
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Put(number, path) => Some((path.as_str(), *number)),
                _ => None,
            })
            .collect();
        let mut parents = Parents::new(&whole);
        for entry in &ready.manifest.entries {
            let (dir, name) = parents.of(&entry.path)?;
            match &entry.node {
                ManifestNode::Directory { .. } => drop(dir.mkdir(name)?),
                ManifestNode::Symlink { target } => dir.symlink(target, name)?,
                ManifestNode::File { .. } => match put.get(entry.path.as_str()) {
                    Some(number) if dir.hard_link(name, &stage, number.to_string())? => {}
                    Some(_) => return Err(Error::Changed { path: stage.path().to_owned() }),
                    None => {
                        let there = self.target.join(&entry.path);
                        let text = there.to_str().ok_or_else(|| Error::illegal(&there, "its name is not UTF-8"))?;
                        dir.symlink(text, name)?;
                    }
                },
            }
        }
        Ok(whole.path().to_owned())
    }
}

/// Opens a set that is kept as single files from now on, whatever it was before.
///
/// # Errors
/// As [`InPlace::open`].
pub(crate) fn open_files(dirs: &SetDirs) -> Result<InPlace> {
    if Applier::was_here(dirs) {
        match Applier::open(dirs) {
            Ok(applier) => from_tree(applier, dirs)?,
            Err(error @ Error::Busy { .. }) => return Err(error),
            // Somebody else's directory, or none, stands there now.
            Err(error) => tracing::info!(%error, "what was kept as a whole tree is not known any more"),
        }
    }
    InPlace::open(dirs)
}

fn from_tree(applier: Applier, dirs: &SetDirs) -> Result<()> {
    let state_dir = Dir::open(&dirs.state_dir)?;
    // Programs that did not know this left what they knew of a tree beside newer versions.
    let known = read_version(&state_dir, LIVE).map_or(0, |(version, _)| version);
    if let (Some(live), Some(manifest)) = (applier.live(), applier.live_manifest())
        && live.version > known
    {
        write_durably(&state_dir, LIVE, &encode_version(live.version, &manifest))?;
    }
    applier.hand_over()
}

/// Opens a set that is kept as whole trees from now on, whatever it was before.
///
/// # Errors
/// As [`Applier::open`].
pub(crate) fn open_tree(dirs: &SetDirs, ignore: &Patterns) -> Result<Applier> {
    if !dirs.state_dir.join(LIVE).exists() {
        return Applier::open(dirs);
    }
    // An interrupted switch is played to its end. What one left that could not be is changed by hand, for whole trees.
    let mut files = InPlace::open(dirs)?;
    let live = files.live.clone();
    files.clear_stage()?;
    files.forget_halves()?;
    drop(files);
    let mut applier = Applier::open(dirs)?;
    if let Some((version, manifest)) = live {
        applier.take_over(version, manifest, ignore)?;
    }
    let state_dir = Dir::open(&dirs.state_dir)?;
    for name in [LIVE, PREVIOUS] {
        state_dir.unlink(name)?;
    }
    state_dir.sync()?;
    Ok(applier)
}
