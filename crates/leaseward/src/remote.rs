//! Machines that are reached by the system's ssh.
//!
//! Two ways. With our program on the far machine, `far.rs` is an ordinary agent there whose connections to the voters
//! are carried through the ssh stream; `near.rs` runs ssh and opens them here. Without it, `control.rs` runs the
//! machine's session here and asks a control script there.
//!
//! To find your way: `sentinel.rs` (what a noisy login prints is skipped) → `frame.rs` (what goes over the stream) →
//! `mux.rs` (many connections over one stream) → `near.rs`, `far.rs`.
//!
//! Must stay true: carrying gives nobody a right. The far agent renews its own session through the stream, so losing
//! ssh means losing the lease, and its shims end its servers by the kernel's timers. A far side names voters by number
//! only: it cannot make the near side connect to anything else.

pub mod control;
pub mod far;
mod frame;
mod mux;
pub mod near;
mod sentinel;
pub mod ssh;

pub use leaseward_state::machine::MANAGER_LABEL;
