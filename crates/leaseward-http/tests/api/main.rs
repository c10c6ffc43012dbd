//! The API over real sockets, in front of real replicas.

#![expect(clippy::unwrap_used, reason = "a test may stop at any surprise")]

mod configs;
mod document;
mod events;
mod harness;
mod leases;
mod nodes;
mod servers;
