//! Stories with real processes, real disks, real sockets.

mod backup;
mod bad_input;
mod care;
mod chaos;
mod config;
mod config_edits;
mod console;
mod crash;
mod demo;
mod failover;
mod forgotten;
mod heir;
mod hosts;
mod leases;
mod links;
mod machines;
mod output;
mod power_cut;
mod program;
mod replay;
mod run;
mod silent;
mod ssh;
mod story;
mod sync;
mod voters;
