//! The API over real sockets, in front of real replicas.

mod configs;
mod document;
mod events;
mod harness;
mod leases;
mod nodes;
mod servers;
