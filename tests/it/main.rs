//! Stories with real processes, real disks, real sockets.

mod demo;
mod failover;
mod forgotten;
