//! The points of an apply between which a machine may die. Tests die at each of them.
//!
//! Must stay true: outside of tests this does nothing.

use crate::error::Result;

/// What is about to be done to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    WriteState,
    RemoveTree,
    MakeRoot,
    MakeDirectory,
    MakeLink,
    LinkFile,
    CreateFile,
    WriteChunk,
    FinishFile,
    SyncTree,
    RetirePrevious,
    Check,
    Stamp,
    SaveRecord,
    Switch,
    Carry,
    SyncParent,
    KeepPrevious,
    DropRecords,
}

/// Where tests stop the work.
#[derive(Default)]
pub(crate) struct Steps {
    #[cfg(test)]
    pub(crate) hook: Option<Box<dyn FnMut(Step) -> bool + Send>>,
    /// As on a file system that has no hard links.
    #[cfg(test)]
    pub(crate) no_links: bool,
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steps")
    }
}

impl Steps {
    /// Called before each operation on the disk.
    #[cfg(test)]
    pub(crate) fn before(&mut self, step: Step) -> Result<()> {
        let alive = self.hook.as_mut().is_none_or(|hook| hook(step));
        if alive { Ok(()) } else { Err(crate::Error::Killed) }
    }

    /// Returns whether the file system may be asked for a hard link.
    #[cfg(test)]
    pub(crate) fn can_link(&self) -> bool {
        !self.no_links
    }

    /// Returns whether the file system may be asked for a hard link.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests refuse it here")]
    pub(crate) fn can_link(&self) -> bool {
        true
    }

    /// Called before each operation on the disk.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests stop the work here")]
    pub(crate) fn before(&mut self, _step: Step) -> Result<()> {
        Ok(())
    }
}
