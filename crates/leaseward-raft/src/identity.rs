//! Whose data directory this is: one cluster, one node, one process.
//!
//! Must stay true: a directory is used by one process at a time; it is written by no older version than its own; a
//! copy of it is noticed, because the anchor file remembers its own inode. What a copy may do is decided with the
//! peers (`recall.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Kind};
use crate::types::NodeId;

/// The format of data directories that this build writes.
const FORMAT: u32 = 1;

const IDENTITY: Kind = Kind { name: "identity", code: 0x10, version: 1, max: 4 << 10 };

/// Whose directory it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: u128,
    /// The node; fresh for each directory.
    pub node: NodeId,
    /// How often the cluster was restored from a backup.
    pub generation: u16,
    /// Where the anchor file was when the directory was made: device and inode.
    pub anchor: (u64, u64),
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The operating system refused.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// It was written by a newer version.
    #[error("{path} has format {found}; this version of leaseward reads formats up to {FORMAT}")]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// Another process uses it.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// Its identity cannot be read.
    #[error("{path} holds no readable identity: {error}")]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        error: CodecError,
    },
}

impl IdentityError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => "LW0605",
            Self::Io { .. } => "LW0600",
            Self::Newer { .. } => "LW0601",
            Self::Locked(_) => "LW0606",
            Self::Damaged { .. } => "LW0604",
        }
    }
}

/// A data directory that this process alone uses.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    identity: Option<Identity>,
    _lock: File,
}

impl DataDir {
    /// Opens a directory, made if need be, and keeps other processes out.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing was changed then.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |error| IdentityError::Io { path, error }
        };
        fs::create_dir_all(path).map_err(io_error(path))?;
        let lock_path = path.join("LOCK");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io_error(&lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(IdentityError::Locked(path.to_owned()));
        }
        check_format(path)?;
        let identity_path = path.join("identity");
        let identity = match fs::read(&identity_path) {
            Ok(bytes) => Some(
                codec::open(IDENTITY, &bytes)
                    .and_then(|bytes| codec::decode(IDENTITY.name, bytes))
                    .map_err(|error| IdentityError::Damaged { path: path.to_owned(), error })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(&identity_path)(error)),
        };
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    /// Returns whose directory it is, if it was ever somebody's.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Makes the directory somebody's. Durable when it returns.
    ///
    /// # Errors
    /// [`IdentityError::Io`].
    pub fn claim(&mut self, cluster: u128, node: NodeId, generation: u16) -> Result<Identity, IdentityError> {
        let io_error = |error| IdentityError::Io { path: self.path.join("identity"), error };
        write_durably(&self.path, "anchor", b"Remembers its own place, so that a copy of this directory is noticed.\n")
            .map_err(io_error)?;
        let anchor = self.anchor().map_err(io_error)?;
        let identity = Identity { cluster, node, generation, anchor };
        write_durably(&self.path, "identity", &codec::seal(IDENTITY, &codec::encode(&identity))).map_err(io_error)?;
        self.identity = Some(identity.clone());
        Ok(identity)
    }

    /// Returns whether the directory lies where it was made: false after it was copied or restored.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        let here = self.anchor().ok();
        self.identity.as_ref().is_none_or(|identity| Some(identity.anchor) == here)
    }

    fn anchor(&self) -> io::Result<(u64, u64)> {
        let meta = fs::metadata(self.path.join("anchor"))?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Returns the path of a part of it.
    #[must_use]
    pub fn join(&self, part: &str) -> PathBuf {
        self.path.join(part)
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_format(path: &Path) -> Result<(), IdentityError> {
    let file = path.join("VERSION");
    let io_error = |error| IdentityError::Io { path: file.clone(), error };
    match fs::read_to_string(&file) {
        Ok(found) if found.trim().parse::<u32>().is_ok_and(|found| found <= FORMAT) => Ok(()),
        Ok(found) => Err(IdentityError::Newer { path: path.to_owned(), found: found.trim().to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_durably(path, "VERSION", format!("{FORMAT}\n").as_bytes()).map_err(io_error)
        }
        Err(error) => Err(io_error(error)),
    }
}

/// Writes a file of a directory, whole or not at all.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}
