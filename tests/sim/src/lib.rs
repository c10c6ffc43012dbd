//! The whole cluster in one thread, on simulated hosts: one seed decides everything.
//!
//! The voters are the real ones: openraft, the log on a disk that loses and tears what was not synced, the wire, the
//! sessions, the master. Clients are the real library. Agents, their fence and what leases guard are models.
//!
//! To find your way: `host.rs` and `net.rs` are the machines, `world.rs` steps them; `voter.rs`, `client.rs` and `agent.rs`
//! run on them; `stage.rs` puts a cluster together, `judge.rs` looks on; `scenario.rs` and `chaos.rs` are what is played.

pub mod agent;
pub mod chaos;
pub mod client;
pub mod clocks;
pub mod entropy;
pub mod host;
pub mod judge;
pub mod mutant;
pub mod net;
pub mod scenario;
pub mod stage;
pub mod trace;
pub mod voter;
pub mod world;
