//! Stories with real processes, real disks, real sockets.

mod bad_input;
mod care;
mod crash;
mod demo;
mod failover;
mod forgotten;
mod heir;
mod hosts;
mod leases;
mod links;
mod run;
mod ssh;
mod story;
mod sync;
mod voters;
