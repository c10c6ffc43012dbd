//! Backups: the state and the content of a cluster in one file, and a cluster made of it again.
//!
//! Must stay true: a file holds one moment of the cluster, every blob that a kept version of that moment names, and a
//! hash over all of it; what cannot be read whole is not restored. A restored cluster is a new life of the old one
//! (`leaseward-raft/life.rs`, `leaseward-state/apply/anew.rs`).
//! Left out on purpose: the servers' own data, keys of encrypted sets, settings of machines, and when backups are made.
//!
//! `format.rs` is the file, `create.rs` writes it, `check.rs` reads it, `restore.rs` makes a data directory of it.

mod check;
mod create;
mod format;
mod restore;

pub use check::{Contents, verify};
pub use create::Backup;
pub use format::{BackupError, Head};
pub use restore::{Restored, restore};

#[cfg(test)]
mod tests;
