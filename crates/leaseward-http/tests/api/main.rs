//! The API over real sockets, in front of real replicas.

#![expect(clippy::unwrap_used, reason = "a test may stop at any surprise")]

mod access;
mod care;
mod configs;
mod conventions;
mod document;
mod events;
mod explain;
mod harness;
mod leases;
mod nodes;
mod operations;
mod reads;
mod servers;
