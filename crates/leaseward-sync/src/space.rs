//! How much room a file system has, and whether something fits.
//!
//! Must stay true: a file system that does not count inodes (btrfs) never fails for lack of them here.

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Error, Result, at};
use crate::limits::RESERVE_ONE_IN;

/// Room on a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes, whole blocks.
    pub bytes: u64,
    /// Inodes: one for each file, directory and link.
    pub inodes: u64,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes and {} inodes", self.bytes, self.inodes)
    }
}

/// Returns what an ordinary writer may still take on the file system of `fd`, after `reserve` bytes, which count
/// for at most a twentieth of the file system.
pub(crate) fn free(fd: impl AsFd, path: &Path, reserve: u64) -> Result<Space> {
    let stat = rustix::fs::fstatvfs(fd).map_err(at("ask for free space", path))?;
    let reserve = reserve.min(stat.f_blocks.saturating_mul(stat.f_frsize) / RESERVE_ONE_IN);
    let bytes = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(reserve);
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Space { bytes, inodes })
}

/// Returns an error unless `need` fits into `free`.
pub(crate) fn fits(need: Space, free: Space) -> Result<()> {
    if need.bytes > free.bytes || need.inodes > free.inodes {
        return Err(Error::NotEnoughSpace { need, free });
    }
    Ok(())
}
