//! One process for each set.
//!
//! Must stay true: the lock ends with the process, and with the applier at once. The second needs an explicit unlock:
//! a child that this process is just starting holds copies of its files until it runs its own program.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result, at};

#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock at `path` or says that somebody else has it.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let file = File::options().create(true).truncate(false).write(true).open(path).map_err(at("open", path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy { path: path.to_owned() }),
            Err(error) => Err(Error::io("lock", path, error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It ends with the file at the latest.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_file_in_a_child_that_is_starting_does_not_keep_the_lock() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        let _copy = lock.0.try_clone().unwrap();
        assert!(matches!(Lock::take(&path), Err(Error::Busy { .. })));
        drop(lock);
        Lock::take(&path).unwrap();
    }
}
