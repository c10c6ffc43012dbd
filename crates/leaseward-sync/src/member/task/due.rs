//! That a reload is due: noted before a version is live, forgotten when its reload is done.
//!
//! Must stay true: a death between the two leaves the note, so that no program goes on with its old config on a machine that
//! is said to have the new one. A reload may be done twice; it is never left out. The note says which version was loaded
//! before: that is the way back, and no other one is. Stored form: empty (nobody said it), or its number and manifest.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use leaseward_state::config::Digest;

use crate::apply::{Live, SetDirs};
use crate::error::{Result, at};

pub(super) struct Due(PathBuf);

impl Due {
    pub(super) fn of(dirs: &SetDirs) -> Self {
        Self(dirs.state_dir.join("reload-due"))
    }

    pub(super) fn is_noted(&self) -> bool {
        self.0.exists()
    }

    /// Returns the version that was live before, as it was noted.
    pub(super) fn before(&self) -> Option<Live> {
        let text = std::fs::read_to_string(&self.0).ok()?;
        let (version, manifest) = text.trim().split_once(' ')?;
        Some(Live { version: version.parse().ok()?, manifest: Digest::parse(manifest)? })
    }

    /// Notes it, durably.
    pub(super) fn note(&self, before: Option<Live>) -> Result<()> {
        let text = before.map_or_else(String::new, |live| format!("{} {}\n", live.version, live.manifest));
        let mut file = File::create(&self.0).map_err(at("create", &self.0))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("write", &self.0))?;
        let above = self.0.parent().unwrap_or(&self.0);
        File::open(above).and_then(|above| above.sync_all()).map_err(at("sync", above))
    }

    /// Forgets it. Lost in a power cut, this costs another reload.
    pub(super) fn forget(&self) -> Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at("remove", &self.0)(error)),
            _ => Ok(()),
        }
    }
}
