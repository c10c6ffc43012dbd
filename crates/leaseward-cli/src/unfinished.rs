//! What is being made beside the place where it belongs.
//!
//! Must stay true: under its own name it is whole, or it is not there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;

/// A file or a directory that is gone unless it got its name.
#[derive(Debug)]
pub(crate) struct Unfinished(PathBuf);

impl Unfinished {
    /// Returns where something is made that gets this name.
    pub(crate) fn beside(place: &Path) -> Result<Self, Diagnostic> {
        let name = place.file_name().ok_or_else(|| {
            Diagnostic::new("LW0104", format!("{} is no name of a file or a directory", place.display()))
        })?;
        Ok(Self(place.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()))))
    }

    /// Returns where something is made that goes into this directory.
    pub(crate) fn within(dir: &Path) -> Self {
        Self(dir.join(format!(".{}.tmp", std::process::id())))
    }

    /// Returns where it is made.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After it got its name nothing is there. What cannot be removed is seen by its name.
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir_all(&self.0));
    }
}
