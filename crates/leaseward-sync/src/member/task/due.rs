//! That a reload is due: noted before a version is live, forgotten when its reload is done.
//!
//! Must stay true: a death between the two leaves the note, so that no program goes on with its old config on a machine that
//! is said to have the new one. A reload may be done twice; it is never left out. The note says which version was loaded
//! before: that is the way back, and no other one is; it stands there whole, whenever it is written anew. Stored form: empty (nobody said it), or its number and manifest.

use std::path::PathBuf;

use leaseward_state::config::Digest;

use crate::apply::{Live, SetDirs};
use crate::dir::Dir;
use crate::error::{Result, at};

const NAME: &str = "reload-due";

pub(super) struct Due {
    state_dir: PathBuf,
}

impl Due {
    pub(super) fn of(dirs: &SetDirs) -> Self {
        Self { state_dir: dirs.state_dir.clone() }
    }

    fn path(&self) -> PathBuf {
        self.state_dir.join(NAME)
    }

    pub(super) fn is_noted(&self) -> bool {
        self.path().exists()
    }

    /// Returns the version that was live before, as it was noted.
    pub(super) fn before(&self) -> Option<Live> {
        let text = std::fs::read_to_string(self.path()).ok()?;
        let (version, manifest) = text.trim().split_once(' ')?;
        Some(Live { version: version.parse().ok()?, manifest: Digest::parse(manifest)? })
    }

    /// Notes it, durably. A death or a full disk meanwhile leaves what was noted before.
    pub(super) fn note(&self, before: Option<Live>) -> Result<()> {
        let text = before.map_or_else(String::new, |live| format!("{} {}\n", live.version, live.manifest));
        Dir::open(&self.state_dir)?.write_durably(NAME, &[text.as_bytes()])
    }

    /// Forgets it. Lost in a power cut, this costs another reload.
    pub(super) fn forget(&self) -> Result<()> {
        match std::fs::remove_file(self.path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at("remove", self.path())(error)),
            _ => Ok(()),
        }
    }
}
