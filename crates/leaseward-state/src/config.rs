//! Config sets: versioned trees of files, named by content.
//!
//! Must stay true: versions of a set only grow, a version never changes, and a committed version names only blobs
//! that a quorum of voters holds durably, or whose making it holds durably: the version's delta, and what that builds on.
//! The publisher proves it before it proposes; the state cannot look.
//! Left out on purpose: the bytes themselves (`leaseward-sync`), and everything about a member's disk.

pub mod delta;
pub mod program;
pub mod rollout;
pub mod spec;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{PATH_BYTES_MAX, PATH_PART_BYTES_MAX};
use crate::token::{Revision, UnixMillis};

/// The blake3 hash of some bytes: their name in the content store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Returns the digest that `text` writes in hexadecimal, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return None;
        }
        let (mut out, mut seen) = ([0; 32], 0);
        for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            let (high, low) = (HALVES[usize::from(pair[0])], HALVES[usize::from(pair[1])]);
            seen |= high | low;
            *byte = high << 4 | low;
        }
        (seen < NO_HALF).then_some(Self(out))
    }

    /// Returns the lower-case hexadecimal digits, as they are written everywhere.
    #[must_use]
    pub fn hex(self) -> DigestHex {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&PAIRS[usize::from(byte)]);
        }
        DigestHex(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex().as_str())
    }
}

/// In [`HALVES`]: no hexadecimal digit.
const NO_HALF: u8 = 16;

/// What each byte stands for as a hexadecimal digit, in either case. A manifest has a digest for each file and chunk, and is
/// read by everybody: without a question for each digit.
const HALVES: [u8; 256] = {
    let (mut halves, mut half) = ([NO_HALF; 256], 0);
    while half < 16 {
        halves[b"0123456789abcdef"[half] as usize] = half as u8;
        halves[b"0123456789ABCDEF"[half] as usize] = half as u8;
        half += 1;
    }
    halves
};

/// The two hexadecimal digits of each byte.
const PAIRS: [[u8; 2]; 256] = {
    let (mut pairs, mut byte) = ([[0; 2]; 256], 0);
    while byte < 256 {
        pairs[byte] = [b"0123456789abcdef"[byte >> 4], b"0123456789abcdef"[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The 64 digits of a digest. A manifest has one for each file and chunk, so they are made without the machinery of
/// formatting.
#[derive(Debug, Clone, Copy)]
pub struct DigestHex([u8; 64]);

impl DigestHex {
    /// Returns the digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only digits were put there.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Everything that one version of a set puts on a disk, in ascending order of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Ascending paths, so that equal trees have equal bytes.
    pub entries: Vec<ManifestEntry>,
    /// The extended attributes of files that have some, by path; `None`: members leave attributes alone.
    pub xattrs: Option<BTreeMap<String, Xattrs>>,
}

/// Extended attributes of one file: names that begin with `user.`, and their values.
pub type Xattrs = BTreeMap<String, Vec<u8>>;

static NO_XATTRS: Xattrs = Xattrs::new();

/// One path of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// Relative to the target directory, with `/` between the parts.
    pub path: String,
    /// What is there.
    pub node: ManifestNode,
}

/// What a path of a tree is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ManifestNode {
    /// A directory with its permission bits.
    Directory {
        /// Permission bits, without type.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, without type.
        mode: u32,
        /// Its length in bytes.
        size: u64,
        /// The hash of its whole content.
        digest: Digest,
        /// The blobs that make it up, in order.
        chunks: Vec<Chunk>,
    },
    /// A symbolic link that stays inside the tree.
    Symlink {
        /// What it points to, as written.
        target: String,
    },
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The hash of its plain bytes.
    pub digest: Digest,
    /// Its plain length in bytes.
    pub size: u32,
}

/// Why a path may not stand in a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{path}` cannot be in a config set: {why}")]
pub struct BadPath {
    /// What was given.
    pub path: String,
    /// The rule it breaks.
    pub why: &'static str,
}

/// Returns whether `path` stays inside the target directory when it is written there.
///
/// # Errors
/// [`BadPath`] for an empty or absolute path, an empty part, `.`, `..`, a NUL byte, or overlong parts.
pub fn check_path(path: &str) -> Result<(), BadPath> {
    let refuse = |why| Err(BadPath { path: path.chars().take(256).collect(), why });
    if path.is_empty() {
        return refuse("it is empty");
    }
    if path.len() > PATH_BYTES_MAX {
        return refuse("it is longer than 4095 bytes");
    }
    if path.starts_with('/') {
        return refuse("it is absolute");
    }
    if path.contains('\0') {
        return refuse("it holds a NUL byte");
    }
    for part in path.split('/') {
        match part {
            "" => return refuse("a part of it is empty"),
            "." | ".." => return refuse("`.` and `..` lead out of the tree"),
            _ if part.len() > PATH_PART_BYTES_MAX => return refuse("a part is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

/// Returns whether a link at `path` with this `target` stays inside the tree.
///
/// # Errors
/// [`BadPath`] if the target is absolute, empty, or climbs above the top of the tree.
pub fn check_link(path: &str, target: &str) -> Result<(), BadPath> {
    let refuse = |why| Err(BadPath { path: path.to_owned(), why });
    if target.is_empty() || target.starts_with('/') || target.contains('\0') || target.len() > PATH_BYTES_MAX {
        return refuse("its link target must be relative and not empty");
    }
    let mut depth = path.split('/').count() - 1;
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if depth == 0 => return refuse("its link target leads out of the tree"),
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    Ok(())
}

impl Manifest {
    /// Returns whether every path is legal, in ascending order, named once and below a directory of the tree.
    ///
    /// # Errors
    /// [`BadPath`] with the first path that is not.
    pub fn check(&self) -> Result<(), BadPath> {
        let mut directories = std::collections::BTreeSet::new();
        let mut last: Option<&str> = None;
        for entry in &self.entries {
            let path = entry.path.as_str();
            check_path(path)?;
            let refuse = |why| Err(BadPath { path: path.to_owned(), why });
            if last.is_some_and(|last| last >= path) {
                return refuse("paths must ascend and stand once");
            }
            last = Some(path);
            if let Some((parent, _)) = path.rsplit_once('/')
                && !directories.contains(parent)
            {
                return refuse("its directory is not in the tree");
            }
            match &entry.node {
                ManifestNode::Directory { mode } => {
                    directories.insert(path);
                    if mode & !0o777 != 0 {
                        return refuse("only permission bits are kept: no setuid, setgid or sticky bit");
                    }
                }
                ManifestNode::File { mode, size, chunks, .. } => {
                    if mode & !0o777 != 0 {
                        return refuse("only permission bits are kept: no setuid, setgid or sticky bit");
                    }
                    if chunks.iter().map(|chunk| u64::from(chunk.size)).sum::<u64>() != *size {
                        return refuse("its chunks do not add up to its size");
                    }
                }
                ManifestNode::Symlink { target } => check_link(path, target)?,
            }
        }
        Ok(())
    }

    /// Returns which attributes the file at `path` should have, and no others; `None` if they are left alone.
    #[must_use]
    pub fn xattrs_of(&self, path: &str) -> Option<&Xattrs> {
        self.xattrs.as_ref().map(|all| all.get(path).unwrap_or(&NO_XATTRS))
    }

    /// Returns the pieces of all files, in the order of the paths. Files of equal content name the same ones.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + Clone {
        let files = self.entries.iter().flat_map(|entry| match &entry.node {
            ManifestNode::File { chunks, .. } => chunks.as_slice(),
            _ => &[],
        });
        files.copied()
    }

    /// Returns the names of the pieces of all files, each once.
    #[must_use]
    pub fn chunk_names(&self) -> BTreeSet<Digest> {
        self.chunks().map(|chunk| chunk.digest).collect()
    }

    /// Returns the number of regular files and their bytes together.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.entries.iter().fold((0, 0), |(files, bytes), entry| match &entry.node {
            ManifestNode::File { size, .. } => (files + 1, bytes + size),
            _ => (files, bytes),
        })
    }
}

/// One committed version of a set. It never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Counts the versions of the set, from 1.
    pub number: u64,
    /// The version it was made from; 0 if none.
    pub parent: u64,
    /// The blob that holds its encoded [`Manifest`].
    pub manifest: Digest,
    /// Regular files in it.
    pub files: u64,
    /// Bytes of the regular files.
    pub bytes: u64,
    /// Who made it.
    pub author: String,
    /// Why.
    pub message: String,
    /// When, by the proposer's clock.
    pub at: UnixMillis,
    /// The entry that committed it.
    pub revision: Revision,
    /// What makes it out of an older version, if that is small. It is dropped with the version.
    pub delta: Option<delta::InlineDelta>,
}

/// How far a member is with a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSync {
    /// The newest version that is live on its disk; 0 if none.
    pub applied: u64,
    /// What it is doing.
    pub state: SyncState,
    /// The entry that reported it.
    pub reported: Revision,
    /// When it was reported, by the proposer's clock.
    pub at: UnixMillis,
}

/// A file that somebody changed by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftedPath {
    /// Relative to the set's directory.
    pub path: String,
    /// What is different: `missing`, `extra`, `content`, `mode`, `xattr`.
    pub what: String,
    /// The user whose file it is now.
    pub owner: Option<u32>,
    /// When it was changed last, by the member's clock.
    pub at: Option<UnixMillis>,
}

impl fmt::Display for DriftedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "the whole directory" } else { &self.path };
        write!(f, "{path} ({}", self.what)?;
        if let Some(owner) = self.owner {
            write!(f, ", of user {owner}")?;
        }
        f.write_str(")")
    }
}

/// What a member is doing with a set, in the words of the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncState {
    /// It knows of a newer version than it has.
    Behind,
    /// It fetches what it lacks.
    Fetching {
        /// The version it fetches.
        version: u64,
        /// Bytes that came so far.
        done: u64,
        /// Bytes that it lacked when it began; 0 while it does not know.
        total: u64,
        /// Since it began, in milliseconds.
        elapsed_ms: u64,
    },
    /// The version is whole on its disk and not yet live.
    OnDisk {
        /// The version that is on disk.
        version: u64,
    },
    /// The version it has is the one it knows of.
    Applied,
    /// It refused a version and keeps the old one.
    Rejected {
        /// The version it refused.
        version: u64,
        /// Why, for the operator.
        why: String,
    },
    /// Somebody changed its files by hand.
    Drifted {
        /// Which, the first few.
        paths: Vec<DriftedPath>,
        /// How many there are.
        all: u64,
    },
    /// It leaves the load balancer before it applies.
    Draining,
    /// An operator took it out.
    Disabled,
    /// A program of the set runs, and takes its time.
    Running {
        /// The version that it is about.
        version: u64,
        /// Which of the set's programs.
        step: SetStep,
        /// The program and its arguments.
        command: String,
        /// Since it was started, in milliseconds.
        elapsed_ms: u64,
        /// It is killed after so many milliseconds.
        timeout_ms: u64,
    },
}

/// A program of a set. Grows at the end only: it is stored by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetStep {
    /// It looks at the whole version before that is live.
    Check,
    /// It has the version loaded once it is live.
    Reload,
}

impl SyncState {
    /// Returns whether `other` differs in nothing but how many bytes came.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fetching { version: mine, .. }, Self::Fetching { version: theirs, .. }) => mine == theirs,
            (mine, theirs) => mine == theirs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused() {
        for bad in ["", "/etc/passwd", "..", "a/../../b", "a//b", "./a", "a/.", "a\0b", &"x/".repeat(3000)] {
            assert!(check_path(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(check_path("conf.d/00-base.conf").is_ok());
        assert!(check_link("a/b", "../c").is_ok());
        for (path, target) in [("a", "../c"), ("a/b", "../../c"), ("a", "/etc"), ("a/b", "x/../../../c")] {
            assert!(check_link(path, target).is_err(), "{path} -> {target} was accepted");
        }
    }

    #[test]
    fn a_digest_reads_what_it_writes() {
        let digest = Digest([0xa5; 32]);
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        assert_eq!(Digest::parse("zz"), None);
        let digest = Digest(std::array::from_fn(|i| (i * 77) as u8));
        assert_eq!(digest.to_string(), digest.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
        assert_eq!(Digest::parse(&digest.to_string().to_uppercase()), Some(digest));
        for at in 0..64 {
            for byte in 0..128u8 {
                let mut text = digest.to_string().into_bytes();
                text[at] = byte;
                let text = String::from_utf8(text).unwrap();
                assert_eq!(Digest::parse(&text).is_some(), byte.is_ascii_hexdigit(), "{text}");
            }
        }
    }
}
