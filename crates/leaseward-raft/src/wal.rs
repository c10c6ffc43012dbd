//! The log on disk: entries, votes and markers in one ordered stream of records.
//!
//! Must stay true: nothing is acknowledged before `fdatasync` returned; a vote is never reordered with entries; a
//! torn tail is cut only where nothing written later is valid, everything else is bit rot and is refused by name;
//! an error of a sync is fatal, because the kernel may have dropped the pages. Left out on purpose: what entries
//! mean, and openraft (`log_store.rs`).

mod format;
mod segments;
mod writer;

pub use format::{Record, RecordKind};
pub use segments::{Place, Recovered, Wal, WalError, WalIdentity};
pub use writer::{Writer, WriterStats};
