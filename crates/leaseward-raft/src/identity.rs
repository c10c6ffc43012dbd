//! Whose data directory this is: one cluster, one node, one process.
//!
//! Must stay true: a directory is used by one process at a time; it is written by no older version than its own; a
//! copy of it is noticed, because the anchor file remembers its own inode. What a copy may do is decided with the
//! peers (`recall.rs`). No identity is believed, whoever left it, before its name is durable. A cluster that was to begin here
//! begins at the next start if the first one ended too early, and never twice.

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

/// The file that says whose directory it is.
const FILE: &str = "identity";

/// The file that says that the cluster has yet to begin.
const BEGINNING: &str = "beginning";

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
    sync_names: SyncNames,
}

/// Makes the names in a directory durable. Another one in tests.
type SyncNames = fn(&Path) -> io::Result<()>;

impl DataDir {
    /// Opens a directory, made if need be, and keeps other processes out.
    ///
    /// # Errors
    /// [`IdentityError`]; nothing was changed then.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        Self::open_with(path, sync_names)
    }

    fn open_with(path: &Path, sync_names: SyncNames) -> Result<Self, IdentityError> {
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
        let identity_path = path.join(FILE);
        let identity = match fs::read(&identity_path) {
            Ok(bytes) => Some(
                codec::open(IDENTITY, &bytes)
                    .and_then(|bytes| codec::decode(IDENTITY.name, bytes))
                    .map_err(|error| IdentityError::Damaged { path: path.to_owned(), error })?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(&identity_path)(error)),
        };
        let opened = Self { path: path.to_owned(), identity, _lock: lock, sync_names };
        if opened.identity.is_some() {
            // Whoever wrote it may have died before it was durable, and what is voted from now on counts on it.
            opened.sync_all_names().map_err(io_error(path))?;
        }
        Ok(opened)
    }

    /// Returns whose directory it is, if it was ever somebody's.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Makes the directory somebody's. Durable when it returns.
    ///
    /// # Errors
    /// [`IdentityError::Io`]; it is nobody's then.
    pub fn claim(&mut self, cluster: u128, node: NodeId, generation: u16) -> Result<Identity, IdentityError> {
        let identity = self.write_claim(cluster, node, generation).map_err(|error| {
            // Nobody may find it and count on it: the next sync would prove nothing.
            fs::remove_file(self.path.join(FILE)).ok();
            IdentityError::Io { path: self.path.join(FILE), error }
        })?;
        self.identity = Some(identity.clone());
        Ok(identity)
    }

    /// The same for the first node of a cluster, which begins here ([`DataDir::is_beginning`]).
    ///
    /// # Errors
    /// As [`DataDir::claim`].
    pub fn begin(&mut self, cluster: u128, node: NodeId) -> Result<Identity, IdentityError> {
        let marked = File::create(self.path.join(BEGINNING)).and_then(|file| file.sync_all());
        marked.map_err(|error| IdentityError::Io { path: self.path.join(BEGINNING), error })?;
        // It makes both names durable.
        self.claim(cluster, node, 0)
    }

    fn write_claim(&self, cluster: u128, node: NodeId, generation: u16) -> io::Result<Identity> {
        let why = b"Remembers its own place, so that a copy of this directory is noticed.\n";
        write(&self.path, "anchor", why)?;
        let identity = Identity { cluster, node, generation, anchor: self.anchor()? };
        (self.sync_names)(&self.path)?;
        write(&self.path, FILE, &codec::seal(IDENTITY, &codec::encode(&identity)))?;
        self.sync_all_names()?;
        Ok(identity)
    }

    /// Makes the names in it durable, and its own, as far up as somebody may have made directories for it.
    fn sync_all_names(&self) -> io::Result<()> {
        (self.sync_names)(&self.path)?;
        let (own, device) = (fs::canonicalize(&self.path)?, fs::metadata(&self.path)?.dev());
        for above in own.ancestors().skip(1) {
            // Where a file system is mounted, its names end.
            if fs::metadata(above).is_ok_and(|meta| meta.dev() != device) {
                break;
            }
            match (self.sync_names)(above) {
                // Whoever may not read it has made nothing in it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                done => done?,
            }
        }
        Ok(())
    }

    /// Returns whether the cluster has yet to begin: no node has said anything in its name so far.
    #[must_use]
    pub fn is_beginning(&self) -> bool {
        self.identity.is_some() && self.path.join(BEGINNING).exists()
    }

    /// Says that the cluster has begun: what it committed is durable. Whoever loses that must not begin it again.
    ///
    /// # Errors
    /// What the operating system says; the next start says it again.
    pub fn has_begun(&self) -> io::Result<()> {
        match fs::remove_file(self.path.join(BEGINNING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => (self.sync_names)(&self.path),
        }
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

/// Writes a file of a directory, whole or not at all. Durable when it returns.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    write(dir, name, bytes)?;
    sync_names(dir)
}

/// The same, but for its name.
fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))
}

fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    thread_local! {
        /// How many syncs go well before one fails.
        static GOOD: Cell<usize> = const { Cell::new(usize::MAX) };
        static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
    }

    /// A sync that fails once, and says nothing of it later: as the kernel's does.
    fn failing(dir: &Path) -> io::Result<()> {
        SYNCED.with_borrow_mut(|synced| synced.push(dir.to_owned()));
        let good = GOOD.get();
        GOOD.set(good.checked_sub(1).unwrap_or(usize::MAX));
        if good == 0 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    #[test]
    fn an_identity_whose_name_is_not_durable_is_nobodys() {
        let base = tempfile::tempdir().unwrap();
        for good in 0.. {
            let dir = base.path().join(format!("{good}/above/data"));
            let mut opened = DataDir::open_with(&dir, failing).unwrap();
            GOOD.set(good);
            SYNCED.take();
            let claimed = opened.claim(1, 2, 0);
            drop(opened);
            let found = DataDir::open(&dir).unwrap().identity().map(|identity| identity.node);
            match claimed {
                Ok(_) => {
                    assert_eq!(found, Some(2));
                    let synced = SYNCED.take();
                    let own = fs::canonicalize(&dir).unwrap();
                    assert!(
                        good >= 3 && own.ancestors().take(3).all(|dir| synced.contains(&dir.to_owned())),
                        "{synced:?}"
                    );
                    break;
                }
                Err(_) => assert_eq!(found, None, "sync {good} failed, and the next process believes it"),
            }
        }
        GOOD.set(usize::MAX);
    }

    #[test]
    fn an_identity_that_somebody_left_is_believed_once_its_name_is_durable() {
        let dir = tempfile::tempdir().unwrap();
        DataDir::open(dir.path()).unwrap().claim(1, 2, 0).unwrap();
        GOOD.set(0);
        assert_eq!(DataDir::open_with(dir.path(), failing).unwrap_err().code(), "LW0600");
        GOOD.set(usize::MAX);
        assert!(DataDir::open_with(dir.path(), failing).unwrap().identity().is_some());
    }

    #[test]
    fn a_cluster_is_to_begin_until_it_has_begun() {
        let dir = tempfile::tempdir().unwrap();
        DataDir::open(dir.path()).unwrap().begin(1, 1).unwrap();
        let again = DataDir::open(dir.path()).unwrap();
        assert!(again.is_beginning());
        again.has_begun().unwrap();
        again.has_begun().unwrap();
        drop(again);
        assert!(!DataDir::open(dir.path()).unwrap().is_beginning());
        // Whoever joins one begins nothing.
        let other = tempfile::tempdir().unwrap();
        let mut joins = DataDir::open(other.path()).unwrap();
        joins.claim(1, 2, 0).unwrap();
        assert!(!joins.is_beginning());
    }
}
