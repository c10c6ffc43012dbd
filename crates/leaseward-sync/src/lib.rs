//! This machine's copy of each config set: fetch, verify, switch, report. And the content store of the voters.
//!
//! Must stay true: a program that opens a set's directory once sees one version only; a kill or a power cut at any
//! moment leaves the old or the new version whole; no byte reaches a disk or a peer that does not match its name;
//! nothing is ever written outside the target directory.
//! Left out on purpose: who decided which version is wanted, how bytes travel between machines, and reload
//! hooks.

mod apply;
pub mod delta;
mod dir;
mod error;
#[cfg(test)]
mod few_files;
pub mod frame;
mod inplace;
pub mod limits;
mod listing;
pub mod manifest;
pub mod member;
mod mounts;
mod owner;
pub mod patterns;
mod program;
mod render;
pub mod rollout;
pub mod secret;
mod seen;
mod space;
mod store;
mod tables;
mod tree;
mod xattr;

pub use apply::{Applied, Applier, Drift, DriftKind, Live, Needs, Owner, SetDirs};
pub use error::{Error, Result};
pub use inplace::InPlace;
pub use render::Facts;
pub use render::secrets_fit;
pub use space::Space;
pub use store::{BlobStore, stored};
pub use tables::{DigestMap, DigestSet};
pub use tree::{Scanned, pieces, scan, scan_again, scan_some};
pub use xattr::{copy_xattrs, write_xattrs};

use leaseward_state::config::Digest;

/// Returns the name of the manifest of an empty tree: what a set's first version builds on.
#[must_use]
pub fn empty_tree() -> Digest {
    digest_of(&manifest::encode(&leaseward_state::config::Manifest::default()))
}

/// Returns the name of `bytes` in the content store: their blake3 hash.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}
