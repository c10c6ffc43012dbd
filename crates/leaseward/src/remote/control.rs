//! A machine without our program: a control script there, asked by ssh; the machine's session is kept here.
//!
//! To find your way: `question.rs` (what is asked, how the answer is told from noise) → `ask.rs` (runs ssh) →
//! `tend.rs` (the life of one server under one token) → `manage.rs` (session, orders, reports) → `memory.rs` (what may
//! live there).
//!
//! Must stay true: this is level F0. Nothing ends a server at its deadline: it is asked to end, if ssh still reaches
//! it. So no answer is *unknown*, never *dead*: only a script that said that nothing runs makes a report that frees the
//! lease, and without it the master waits for the operator's grace. No certificate is ever made here: that
//! is the kernel's word, and here is only a script's.
//!
//! Left out on purpose: health checks, addresses, mounts, hooks and config sets. The script's `status` is the check.

mod ask;
mod manage;
mod memory;
mod question;
mod tend;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use leaseward_state::MachineName;

use crate::remote::ssh::Ssh;

/// A machine with a control script.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The machine.
    pub machine: MachineName,
    /// How it is reached.
    pub ssh: Ssh,
    /// The script there: called as `CONTROL start|stop|kill|status SERVER [COMMAND…]`.
    pub control: String,
    /// What is remembered here; keep it.
    pub data: PathBuf,
    /// The session's time to live. Once ssh has not answered for this long, the session is not renewed any more.
    pub ttl: Duration,
    /// From one look at a server to the next.
    pub poll: Duration,
    /// Free words for placement; `manager=ssh` is added.
    pub labels: BTreeMap<String, String>,
    /// The weight of the servers that the machine can run; `None`: any.
    pub capacity: Option<u32>,
    /// Servers that it may start at the same time; 0: any.
    pub start_slots: u32,
}

pub use manage::run;
