//! Agrees on entries: openraft, the log on disk, the wire, membership, leadership, session timekeeping.
//!
//! This crate alone knows openraft, sled and bincode. It knows nothing of servers, and nothing of files on members.
//!
//! To find your way: an entry's life is `proposer.rs` (gathered, forwarded) → `log_store.rs` and `wal/` (durable) →
//! `machine.rs` (applied, published). A renewal's life is `sessions.rs` → `confirm.rs`. A leader's death is
//! `election.rs`. Who votes at all is `autopilot.rs`. Everything is put together in `replica.rs`.

mod autopilot;
mod background;
mod blobs;
pub mod clock;
mod cluster_time;
pub mod codec;
pub mod confirm;
pub mod disk;
pub mod election;
pub mod forward;
mod housekeeping;
pub mod identity;
mod join;
pub mod last_word;
pub mod life;
pub mod limits;
pub mod log_store;
pub mod machine;
mod members;
pub mod net;
mod network;
mod open;
pub mod proposer;
mod questions;
pub mod random;
pub mod recall;
mod reign;
pub mod replica;
pub mod restore;
pub mod rules;
mod serve;
pub mod sessions;
pub mod settings;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod sled_store;
pub mod snapshot;
pub mod store;
pub mod stored;
pub mod types;
mod upgrade;
pub mod wal;

pub use blobs::{Blobs, Frames, Later};
pub use forward::Internal;
pub use machine::Published;
pub use replica::{Replica, Start, StartError};
pub use serve::machine_view;
pub use settings::{Settings, Timing};
pub use types::{NodeId, NodeInfo, Standing};

/// Targets of log lines in which openraft says of each attempt to reach a dead peer that it failed, dozens of times a second.
/// What ends the core is said elsewhere.
pub const REPETITIONS: [&str; 2] = ["openraft::replication", "openraft::engine::handler::replication_handler"];
