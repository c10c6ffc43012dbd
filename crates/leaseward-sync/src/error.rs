//! What can go wrong with a config set on this machine, so that a caller can act on it.
//!
//! Must stay true: after any of these errors the live tree is still the old version, whole.
//! Left out on purpose: how to show them; `Display` is one line for an operator and names the path.

use std::path::PathBuf;

use leaseward_state::config::{BadPath, Digest};

use crate::space::Space;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done with a config set or a blob.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or would fall below the free space that must stay. Nothing half-written was left.
    #[error("no space left for {}: {free} bytes free, {floor} must stay free", path.display())]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// Free bytes at that moment; 0 if the kernel said so.
        free: u64,
        /// Bytes that must stay free.
        floor: u64,
    },
    /// The store or the source does not hold this blob.
    #[error("blob {digest} is missing")]
    BlobMissing {
        /// Its name.
        digest: Digest,
    },
    /// Bytes do not match their name. They were not used.
    #[error("{} does not hold the content {digest}: {why}", path.display())]
    BlobCorrupt {
        /// The damaged file, or where the bytes came from.
        path: PathBuf,
        /// What it should be.
        digest: Digest,
        /// What was found instead.
        why: &'static str,
    },
    /// The new version does not fit next to the old one. Nothing was written.
    #[error("the version needs {need} next to the old one, and only {free} can be used")]
    NotEnoughSpace {
        /// What the new version takes.
        need: Space,
        /// What may be taken, after the reserve.
        free: Space,
    },
    /// A path, mode or kind of file that may not be in a config set, or a path that leads out of it.
    #[error("{} cannot be in a config set: {why}", path.display())]
    IllegalTree {
        /// The offending path.
        path: PathBuf,
        /// The rule it breaks.
        why: String,
    },
    /// Something that the set asks for, or that it needs on this machine, cannot be used as it is: a template, a key, an owner, a
    /// pattern.
    #[error("{what}: {why}")]
    Unusable {
        /// The path in the set, or what was given, and as what.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The target directory holds files that Leaseward did not put there.
    #[error(
        "{} was not made by Leaseward: move it away, empty it, or publish its content first", path.display()
    )]
    TargetNotOurs {
        /// The target.
        path: PathBuf,
    },
    /// Something is mounted inside the set's directory. Nothing was moved, replaced or removed there.
    #[error(
        "{} is on another file system than the set's directory, and cannot be switched or removed with it: unmount it, or name another target",
        path.display()
    )]
    OtherFileSystem {
        /// Where it is mounted, or what lies on it.
        path: PathBuf,
    },
    /// These bytes are not a manifest.
    #[error("not a manifest: line {line}: {why}")]
    BadManifest {
        /// The line, from 1; 0 if it concerns the whole.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// These bytes do not make the version that they should. They were not used.
    #[error("the delta cannot be used: {why}")]
    BadDelta {
        /// What is wrong with it.
        why: String,
    },
    /// The set's check refused the version on this machine. The old one is live.
    #[error("its check refused it: {why}")]
    CheckFailed {
        /// What the check said.
        why: String,
    },
    /// The version was live and its reload failed; the old one is live again, if there was one.
    #[error("its reload failed: {why}")]
    ReloadFailed {
        /// What the reload said.
        why: String,
        /// Whether the version is live all the same, as it was before: files were put right, and are to be loaded.
        stays: bool,
    },
    /// The version has extended attributes, and the file system keeps none.
    #[error("{}: its file system keeps no extended attributes, and the version has some", path.display())]
    NoXattrs {
        /// The file that should have had them.
        path: PathBuf,
    },
    /// A file changed while it was read or linked. Trying again may succeed.
    #[error("{} changed while it was read: try again when nobody writes there", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Something is larger than its bound.
    #[error("{what} is {size}, the limit is {limit}")]
    TooLarge {
        /// What it is, with its unit.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// Another process works on this set.
    #[error("another process holds {}", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Its answer.
        source: std::io::Error,
    },
    /// A test killed the work at this point.
    #[cfg(test)]
    #[error("killed by a test")]
    Killed,
}

impl Error {
    /// Returns the stable code of this error for answers and manuals.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "LW0604",
            Self::DiskFull { .. } => "LW0605",
            Self::BlobMissing { .. } => "LW0801",
            Self::BlobCorrupt { .. } => "LW0802",
            Self::NotEnoughSpace { .. } => "LW0803",
            Self::IllegalTree { .. } | Self::Unusable { .. } => "LW0804",
            Self::TargetNotOurs { .. } | Self::OtherFileSystem { .. } => "LW0805",
            Self::BadManifest { .. } => "LW0806",
            Self::Changed { .. } => "LW0807",
            Self::TooLarge { .. } => "LW0808",
            Self::Busy { .. } => "LW0809",
            Self::BadDelta { .. } => "LW0810",
            Self::CheckFailed { .. } => "LW0811",
            Self::ReloadFailed { .. } => "LW0812",
            Self::NoXattrs { .. } => "LW0813",
            #[cfg(test)]
            Self::Killed => "LW0000",
        }
    }

    /// Returns whether the same call may succeed later without anybody changing the version.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::IllegalTree { .. } | Self::Unusable { .. } | Self::BadManifest { .. } | Self::TooLarge { .. } => {
                false
            }
            Self::ReloadFailed { stays, .. } => *stays,
            Self::DiskFull { .. }
            | Self::BlobMissing { .. }
            | Self::BlobCorrupt { .. }
            | Self::BadDelta { .. }
            | Self::CheckFailed { .. }
            | Self::NotEnoughSpace { .. }
            | Self::TargetNotOurs { .. }
            | Self::OtherFileSystem { .. }
            | Self::NoXattrs { .. }
            | Self::Changed { .. }
            | Self::Busy { .. }
            | Self::Io { .. } => true,
            #[cfg(test)]
            Self::Killed => true,
        }
    }

    /// Returns an [`Error::IllegalTree`].
    pub(crate) fn illegal(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::IllegalTree { path: path.into(), why: why.into() }
    }

    /// Returns an [`Error::Unusable`].
    pub(crate) fn unusable(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unusable { what: what.into(), why: why.into() }
    }

    /// Returns the error for what the kernel said about `path`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: impl Into<std::io::Error>) -> Self {
        let (path, source) = (path.into(), source.into());
        match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Self::DiskFull { path, free: 0, floor: 0 },
            Some(rustix::io::Errno::LOOP) => Self::illegal(path, "a symbolic link stands in the way"),
            _ => Self::Io { doing, path, source },
        }
    }
}

impl From<BadPath> for Error {
    fn from(bad: BadPath) -> Self {
        Self::illegal(bad.path, bad.why)
    }
}

/// Returns a closure for `map_err` that says what was being done to which path.
pub(crate) fn at<E: Into<std::io::Error>>(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Error {
    let path = path.into();
    move |source| Error::io(doing, path, source)
}
