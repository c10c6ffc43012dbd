//! Attacks on the fence, with real processes: what `leaseward doctor --fence` and the tests run.
//!
//! A round starts an agent with a few servers that resist (threads, children, daemons, daemons that fork on and on),
//! kills or stops agent, shim and init, and reads from the victims' stamps when their last instruction ran.
//!
//! Must stay true: a round leaves no process behind, however it ends: what it started are this process's descendants,
//! and stay so when their parents die. Real-time priority is only what a shim takes for itself, until its deadline.
//! The attack on the network fence has namespaces of its own (`wires.rs`). Left out on purpose: the attacks that need
//! a watchdog, which would reset the machine, or a paused one. A machine is suspended (`suspend.rs`) only if its
//! operator says so.

mod agent;
pub(crate) mod cgroup;
mod fight;
mod namespace;
mod offspring;
mod round;
pub mod suspend;
mod verdict;
mod victim;
pub(crate) mod wires;

use std::ffi::OsString;
use std::process::ExitCode;

pub use cgroup::Cgroup;
pub use round::{Arena, Fault, Trial};
pub use verdict::{Cell, Verdict, verdict};

/// The word before the roles of [`main`] on a program's command line.
pub const WORD: &str = "attack";

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Spare,
    /// SIGSTOP.
    Stop,
    /// SIGKILL.
    Kill,
}

/// What is done beside that, before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// Every process of the server is sent SIGTERM, and ignores it.
    Terminate,
    /// The server forks on and on in several daemons.
    Swarm,
    /// Every process of the server is frozen in a cgroup.
    Freeze,
    /// The server has addresses behind the network fence, at which somebody else goes on to send and to receive.
    Packets,
    /// The same without the fence. Exists to show that the attack notices.
    PacketsUnfenced,
    /// The machine sleeps while the deadline passes.
    Suspend,
}

/// One attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attack {
    /// What it is called in a report.
    pub name: &'static str,
    /// What is done to the agent. While it is spared, it extends.
    pub agent: Deed,
    /// What is done to the shim.
    pub shim: Deed,
    /// What is done to the init of the server's namespace.
    pub init: Deed,
    /// What is done beside that.
    pub beside: Beside,
}

const fn attack(name: &'static str, agent: Deed, shim: Deed, init: Deed, beside: Beside) -> Attack {
    Attack { name, agent, shim, init, beside }
}

/// Every attack.
pub const MATRIX: [Attack; 11] = {
    use Beside::{Freeze, Nothing, Swarm, Terminate};
    use Deed::{Kill, Spare, Stop};
    [
        attack("agent killed", Kill, Spare, Spare, Nothing),
        attack("agent stopped", Stop, Spare, Spare, Nothing),
        attack("agent killed, shim stopped", Kill, Stop, Spare, Nothing),
        attack("agent killed, shim killed", Kill, Kill, Spare, Nothing),
        attack("agent stopped, shim stopped", Stop, Stop, Spare, Nothing),
        attack("agent stopped, shim killed", Stop, Kill, Spare, Nothing),
        attack("agent stopped, init stopped", Stop, Spare, Stop, Nothing),
        attack("agent killed, shim and init stopped", Kill, Stop, Stop, Nothing),
        attack("server ignores SIGTERM", Kill, Spare, Spare, Terminate),
        attack("daemons fork on and on", Kill, Stop, Spare, Swarm),
        attack("cgroup frozen", Kill, Stop, Spare, Freeze),
    ]
};

/// The attack on the network fence: what it stops are packets, whoever sends them.
pub const PACKETS: Attack = attack("packets of a fenced address", Deed::Stop, Deed::Stop, Deed::Spare, Beside::Packets);

/// The same where there is no fence: packets must be seen to cross.
pub const PACKETS_UNFENCED: Attack = Attack { beside: Beside::PacketsUnfenced, ..PACKETS };

/// The attack that puts the whole machine to sleep.
pub const SUSPENDED: Attack = attack("machine suspended", Deed::Stop, Deed::Spare, Deed::Spare, Beside::Suspend);

/// Plays a role: the code of the processes that a round starts. `arguments` are those after [`WORD`]; a program that
/// runs rounds must lead there from `main`, before it does anything else.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let arguments: Option<Vec<String>> = arguments.into_iter().map(|each| each.into_string().ok()).collect();
    let arguments = arguments.unwrap_or_default();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let played = match arguments.as_slice() {
        ["victim", stamps] => victim::main(stamps, victim::FULL),
        ["victim", stamps, kind] => victim::main(stamps, kind),
        ["part", stamps, part] => victim::part(stamps, part),
        ["agent", dir, count, ttl_ms, first_ms, kind, shim_arguments @ ..] => {
            agent::main(dir, count, (ttl_ms, first_ms), kind, shim_arguments)
        }
        other => Err(format!("there is no role {other:?}")),
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // To whoever waits for it to be ready.
            println!("{why}");
            ExitCode::FAILURE
        }
    }
}
