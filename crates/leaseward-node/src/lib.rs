//! This machine: start servers, watch them, and end them by the kernel when their lease is over.
//!
//! Every server runs under a *shim*, a process of one thread that arms a kernel timer on itself
//! (`CLOCK_BOOTTIME`, absolute, `SIGKILL`) before it forks anything. The server lives in a PID namespace whose init
//! dies with the shim, and with that init dies every process of the server. So at the deadline the server ends with
//! nobody's help: not the agent's, not the shim's own code.
//!
//! Must stay true:
//! - a server's first instruction runs after its deadline is armed, and none runs after the deadline (plus the
//!   grace of the machine's [`fence::level`]);
//! - a deadline only moves forward, and only for the token and the boot it was given for;
//! - a [`leaseward_state::server::Certificate`] is made only from the kernel's word that the namespace's init is
//!   gone;
//! - shims outlive the agent; a new agent finds them by their sockets and goes on.
//!
//! Left out on purpose: other machines and placement (`leaseward-failover`); what outlives a process, such as dirty
//! pages and queued packets; a paused virtual machine, whose clock stands still with its servers; a server that asks
//! a system daemon outside its namespace to run something for it, or that runs as the agent's own user and turns on
//! its shim's socket. Servers that are not trusted get a user of their own.

pub mod address;
pub mod attack;
mod cgroup;
pub mod checkup;
pub mod clock;
pub mod error;
pub mod fence;
mod files;
pub mod guarded;
mod health;
pub mod hook;
mod kernel;
mod launch;
pub mod limits;
mod link;
mod log_room;
mod mount;
mod probe;
mod process;
mod protocol;
mod restart;
pub mod shim;
mod spares;
mod state_file;
pub mod supervisor;
mod surroundings;
pub mod watchdog;

pub use clock::{BootInstant, boot_id};
pub use error::Error;
pub use files::live_shims;
pub use guarded::{GuardOrder, Guarded};
pub use hook::HookOutcome;
pub use supervisor::{Adopted, Happened, NodeConfig, NodeEvent, StartOrder, StopMode, Supervisor, logs};
pub use watchdog::Watchdog;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
