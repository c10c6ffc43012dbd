//! Exclusive leases with fencing tokens, failover of servers, versioned config on every machine's disk: the library
//! that a host program embeds, and that the `leaseward` binary is made of.
//!
//! To find your way: [`Cluster`] is what a program holds. A lease's life is `client.rs` (asks any node) →
//! `keeper.rs` (renews a session and knows until when it may be believed) → `lease.rs` (what the program holds).
//! A config file that a program follows is `config_watch.rs`.
//! A machine's life is `agent.rs` (session, orders, config sets). A voter's life is `voter.rs`.
//! Machines that are reached by ssh are in `remote.rs`.
//!
//! Must stay true: a holder stops believing before anybody else can get its lease, by its own clock, whether or not
//! the network answers. This crate reads no environment and installs no log subscriber.

mod adopt;
pub mod agent;
pub mod backup;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod config_watch;
mod content;
mod error;
mod fence_hook;
pub mod keeper;
mod known;
pub mod lease;
pub mod limits;
mod opening;
mod questions;
pub mod readiness;
pub mod remote;
mod resume;
mod rollouts;
mod serving;
mod source;
pub mod voter;

pub use agent::{Agent, AgentConfig};
pub use cluster::{Builder, Cluster, LeaseRequest};
pub use config_watch::{ConfigVersion, ConfigWatch};
pub use content::{QuorumContent, Ready};
pub use error::{Error, LeaseLost, LostReason, Result};
pub use lease::Lease;
pub use leaseward_state::{FencingToken, LeaseName, MachineName, ServerName, SetName};
