//! What a switch of single files will do, as it is written down before the first step; and which version is live.
//!
//! Must stay true: what was written is read by later programs; a file that is torn, or a line that cannot be read, counts as
//! none.

use leaseward_state::config::Manifest;

use crate::dir::Dir;
use crate::error::Result;
use crate::manifest::{decode, encode};

/// One step of a switch. Each may be taken twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Op {
    /// A directory is there, with this mode.
    Directory(String, u32),
    /// The staged file of this number stands at the path.
    Put(u64, String),
    /// The file or link is gone.
    Remove(String),
    /// The directory is gone, if nobody else has something in it.
    RemoveDirectory(String),
}

impl Op {
    /// Returns the path that it is about.
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Directory(path, _) | Self::Put(_, path) | Self::Remove(path) | Self::RemoveDirectory(path) => path,
        }
    }
}

pub(super) fn encode_version(version: u64, manifest: &Manifest) -> Vec<u8> {
    let mut bytes = version.to_le_bytes().to_vec();
    bytes.extend(encode(manifest));
    bytes
}

pub(super) fn journal(begun: &Begun) -> Vec<u8> {
    let tree = encode(&begun.manifest);
    let mut bytes = begun.version.to_le_bytes().to_vec();
    bytes.extend((tree.len() as u64).to_le_bytes());
    bytes.extend(tree);
    for op in &begun.ops {
        // A path holds no NUL byte.
        let text = match op {
            Op::Directory(path, mode) => format!("d{mode} {path}\0"),
            Op::Put(number, path) => format!("p{number} {path}\0"),
            Op::Remove(path) => format!("r {path}\0"),
            Op::RemoveDirectory(path) => format!("x {path}\0"),
        };
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// A switch as it was written down before its first step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    pub(super) version: u64,
    pub(super) manifest: Manifest,
    pub(super) ops: Vec<Op>,
}

/// Reads a journal.
pub(super) fn read_journal(dir: &Dir, name: &str) -> Option<Begun> {
    let bytes = read(dir, name)?;
    let (head, rest) = bytes.split_at_checked(16)?;
    let version = u64::from_le_bytes(head[..8].try_into().ok()?);
    let length = usize::try_from(u64::from_le_bytes(head[8..].try_into().ok()?)).ok()?;
    let (manifest, ops) = rest.split_at_checked(length)?;
    let mut ops = ops.split(|byte| *byte == 0).filter(|op| !op.is_empty());
    let ops = ops.try_fold(Vec::new(), |mut all, op| {
        all.push(decode_op(std::str::from_utf8(op).ok()?)?);
        Some(all)
    })?;
    Some(Begun { version, manifest: decode(manifest).ok()?, ops })
}

fn decode_op(text: &str) -> Option<Op> {
    let (head, path) = text.split_once(' ')?;
    let path = path.to_owned();
    Some(match head.split_at_checked(1)? {
        ("d", mode) => Op::Directory(path, mode.parse().ok()?),
        ("p", number) => Op::Put(number.parse().ok()?, path),
        ("r", "") => Op::Remove(path),
        ("x", "") => Op::RemoveDirectory(path),
        _ => return None,
    })
}

pub(super) fn write_durably(dir: &Dir, name: &str, body: &[u8]) -> Result<()> {
    dir.write_durably(name, &[body, &crc32c::crc32c(body).to_le_bytes()])
}

fn read(dir: &Dir, name: &str) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(dir.path().join(name)).ok()?;
    let body = bytes.len().checked_sub(4)?;
    let crc = bytes.split_off(body);
    (crc == crc32c::crc32c(&bytes).to_le_bytes()).then_some(bytes)
}

pub(super) fn read_version(dir: &Dir, name: &str) -> Option<(u64, Manifest)> {
    let bytes = read(dir, name)?;
    let (version, manifest) = bytes.split_at_checked(8)?;
    Some((u64::from_le_bytes(version.try_into().ok()?), decode(manifest).ok()?))
}
