//! Where each server should run.
//!
//! [`plan::plan`] decides with values: the state, what the master saw with its own clock, and the time. [`master::run`]
//! is the loop on the leader that proposes what was planned and invokes node managers. Neither knows processes,
//! addresses or Raft.
//!
//! Must stay true: whatever the plan says, `leaseward-state` only carries it out if nothing changed meanwhile; so a
//! deposed master's plan is harmless, and the policy may change between versions.

pub mod foresee;
pub mod limits;
pub mod manager;
pub mod master;
pub mod placement;
pub mod plan;
pub mod sane;
