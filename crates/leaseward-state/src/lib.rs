//! What a committed entry means.
//!
//! [`State`] is a value: entries go in, replies and events come out ([`State::apply`]). It knows sessions, leases,
//! machines, servers and config sets, and nothing of clocks, disks, networks or randomness: the same entries make
//! the same state on every member, byte for byte.
//!
//! Must stay true: `apply` never fails (a refusal is a [`Reply`]), one entry is one revision, and
//! [`State::check_invariants`] holds after each.
//!
//! To find your way: `command.rs` lists what can be asked, `state.rs` takes an entry apart, and each object has a
//! file with its data (`lease.rs`) and one with its rules (`apply/lease.rs`).

pub mod access;
pub mod apply;
pub mod command;
pub mod config;
pub mod diff;
pub mod event;
pub mod invariants;
pub mod lease;
pub mod limits;
pub mod machine;
pub mod name;
pub mod order;
pub mod policy;
pub mod propose;
pub mod record;
pub mod refusal;
pub mod server;
pub mod session;
pub mod state;
pub mod token;

pub use command::{Command, Entry, Reply, Request};
pub use event::Event;
pub use name::{BadName, LeaseName, MachineName, ServerName, SetName, TokenName};
pub use refusal::Refusal;
pub use state::{Applied, State};
pub use token::{ClusterMillis, FencingToken, Generation, RequestKey, Revision, SessionId, Term, UnixMillis};
