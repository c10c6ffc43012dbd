//! A set on this disk, whichever way it is kept: as whole trees, or file by file.

use std::path::PathBuf;
use std::sync::Arc;

use leaseward_state::config::spec::Layout;
use leaseward_state::config::{Digest, Manifest};

use super::cache::Cache;
use crate::apply::{Applied, Applier, Drift, Live, Needs, Owner, SetDirs, Source};
use crate::error::{Error, Result};
use crate::inplace::whole;
use crate::patterns::Patterns;
use crate::{InPlace, Scanned};

/// A set that is open.
#[derive(Debug)]
pub(crate) enum Disk {
    Tree(Box<Applier>),
    Files(Box<InPlace>),
}

impl Disk {
    /// `ignore`: what programs write themselves.
    pub(crate) fn open(dirs: &SetDirs, layout: Layout, ignore: &Patterns, reserve: u64) -> Result<Self> {
        Ok(match layout {
            Layout::Tree => Self::Tree(Box::new(whole::open_tree(dirs, ignore)?.with_reserve(reserve))),
            Layout::Files => Self::Files(Box::new(whole::open_files(dirs)?.with_reserve(reserve))),
        })
    }

    pub(crate) fn layout(&self) -> Layout {
        match self {
            Self::Tree(_) => Layout::Tree,
            Self::Files(_) => Layout::Files,
        }
    }

    pub(crate) fn keep(&mut self, ignore: Patterns, owner: Option<Owner>) {
        match self {
            Self::Tree(disk) => disk.keep(ignore, owner),
            Self::Files(disk) => disk.keep(ignore, owner),
        }
    }

    pub(crate) fn live(&self) -> Option<Live> {
        match self {
            Self::Tree(disk) => disk.live(),
            Self::Files(disk) => disk.live(),
        }
    }

    pub(crate) fn target(&self) -> PathBuf {
        match self {
            Self::Tree(disk) => disk.target(),
            Self::Files(disk) => disk.target().to_owned(),
        }
    }

    /// Returns what is live, to be read from.
    pub(crate) fn live_tree(&self) -> Result<Option<Scanned>> {
        match self {
            Self::Tree(disk) => disk.live_tree(),
            Self::Files(disk) => disk.live_tree(),
        }
    }

    /// Returns the version that is live with its manifest.
    pub(crate) fn whole(&self) -> Option<(Live, Arc<Manifest>)> {
        let manifest = match self {
            Self::Tree(disk) => disk.live_manifest(),
            Self::Files(disk) => disk.live_manifest().map(Arc::new),
        };
        self.live().zip(manifest)
    }

    /// As [`Self::whole`]; of single files also what was live before a switch that could not be ended.
    pub(crate) fn last_whole(&self) -> Option<(Live, Arc<Manifest>)> {
        match self {
            Self::Tree(_) => self.whole(),
            Self::Files(disk) => disk.last_whole().map(|(live, manifest)| (live, Arc::new(manifest))),
        }
    }

    pub(crate) fn previous_manifest(&self) -> Option<(Live, Arc<Manifest>)> {
        match self {
            Self::Tree(disk) => disk.previous_manifest(),
            Self::Files(disk) => disk.previous_manifest().map(|(live, manifest)| (live, Arc::new(manifest))),
        }
    }

    /// Returns what a version takes: a checked manifest with its name. `is_held`: what need not be fetched.
    pub(crate) fn needs(
        &mut self,
        name: Digest,
        manifest: &Manifest,
        is_held: &dyn Fn(Digest) -> bool,
    ) -> Result<Needs> {
        match self {
            Self::Tree(disk) => disk.plan_for(name, manifest, is_held),
            Self::Files(disk) => disk.needs(manifest),
        }
    }

    /// Returns what somebody changed by hand. `deep`: every file is read.
    pub(crate) fn drifts(&mut self, deep: bool) -> Result<Vec<Drift>> {
        match self {
            Self::Tree(disk) if deep => disk.verify(),
            Self::Tree(disk) => disk.scan(),
            Self::Files(disk) => disk.verify(),
        }
    }

    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        match self {
            Self::Tree(disk) => disk.directories(),
            Self::Files(disk) => disk.directories(),
        }
    }

    /// Puts a version beside the live one: a checked manifest with its name.
    pub(crate) fn stage(
        &mut self,
        wanted: Live,
        manifest: &Arc<Manifest>,
        source: &mut Source<'_>,
        cache: &Cache,
    ) -> Result<()> {
        match self {
            Self::Tree(disk) => disk.stage_known(wanted, manifest, source),
            Self::Files(disk) => {
                let mut source = |digest| source(digest).map(|given| given.to_vec());
                disk.stage(wanted.version, manifest, &mut source, cache.files())
            }
        }
    }

    pub(crate) fn staged(&self) -> Option<Live> {
        match self {
            Self::Tree(disk) => disk.staged().map(|(live, _)| live),
            Self::Files(disk) => disk.staged(),
        }
    }

    /// Returns a directory that holds what is staged as a whole.
    pub(crate) fn staged_tree(&self) -> Result<PathBuf> {
        match self {
            Self::Tree(disk) => {
                disk.staged().map(|(_, path)| path).ok_or_else(|| Error::Changed { path: self.target() })
            }
            Self::Files(disk) => disk.staged_tree(),
        }
    }

    /// Returns whether the whole version can be shown to a program in place of the target: others have no files there.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Tree(_))
    }

    pub(crate) fn switch(&mut self) -> Result<Applied> {
        match self {
            Self::Tree(disk) => disk.switch(),
            Self::Files(disk) => disk.switch(),
        }
    }

    /// Does what the last switch left to be done.
    pub(crate) fn finish(&mut self) -> Result<()> {
        match self {
            Self::Tree(disk) => disk.finish(),
            Self::Files(disk) => {
                disk.finish();
                Ok(())
            }
        }
    }

    /// Forgets what is staged, unless it is this version.
    pub(crate) fn unstage_other(&mut self, version: u64) -> Result<()> {
        if self.staged().is_some_and(|staged| staged.version != version) { self.unstage() } else { Ok(()) }
    }

    pub(crate) fn unstage(&mut self) -> Result<()> {
        match self {
            Self::Tree(disk) => disk.unstage(),
            Self::Files(disk) => disk.unstage(),
        }
    }
}
