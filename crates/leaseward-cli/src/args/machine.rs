//! `leaseward machine …`, and how carefully the master acts.

use std::time::Duration;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Lists machines.
    #[command(after_help = "Examples:\n  leaseward machine ls\n  leaseward machine ls -o wide")]
    Ls,
    /// Shows one machine.
    #[command(after_help = "Examples:\n  leaseward machine get m1\n  leaseward machine get m1 -o field=.servers")]
    Get {
        /// The machine.
        name: String,
    },
    /// Keeps new servers away from a machine.
    #[command(
        after_help = "Examples:\n  leaseward machine cordon m2 -m \"new disk\"\n  leaseward machine cordon m2 -m \"new disk\" --dry-run"
    )]
    Cordon(CordonArguments),
    /// Moves every server off a machine, one after the other, and keeps new ones away.
    #[command(
        after_help = "Examples:\n  leaseward machine drain m2 -m firmware --for 2h --yes\n  leaseward machine drain m2 -m firmware --dry-run"
    )]
    Drain(CordonArguments),
    /// Keeps new servers away from a machine that is not to be trusted.
    #[command(
        after_help = "Examples:\n  leaseward machine quarantine m2 -m \"flapping\" --for 2h\n  leaseward machine quarantine m2 -m \"flapping\" --dry-run"
    )]
    Quarantine(CordonArguments),
    /// Lets servers come to a machine again: ends its cordon, drain or quarantine, and trusts it.
    #[command(
        alias = "uncordon",
        after_help = "Examples:\n  leaseward machine resume m2\n  leaseward machine resume m2 --dry-run"
    )]
    Resume {
        /// The machine.
        name: String,
    },
    /// Says that a lost machine is off: its servers may start elsewhere. If it is not off, they may run twice.
    #[command(
        after_help = "Examples:\n  leaseward machine confirm-dead m3 --confirm m3 --dry-run\n  leaseward machine confirm-dead m3 --confirm m3"
    )]
    ConfirmDead {
        /// The machine.
        name: String,
        /// Its name once more, where nobody can be asked.
        #[arg(long)]
        confirm: Option<String>,
    },
    /// Forgets a machine that is gone.
    #[command(after_help = "Examples:\n  leaseward machine rm m3 --dry-run\n  leaseward machine rm m3")]
    Rm {
        /// The machine.
        name: String,
    },
}

/// A machine that is to get nothing new.
#[derive(Debug, Args)]
pub(crate) struct CordonArguments {
    /// The machine.
    pub(crate) name: String,
    /// Why.
    #[arg(short, long)]
    pub(crate) message: String,
    /// It ends by itself after this.
    #[arg(long = "for", value_parser = crate::duration::parse)]
    pub(crate) lasting: Option<Duration>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MaintenanceCommand {
    /// Nothing is moved or restarted until it ends. Leases and fences go on.
    #[command(
        after_help = "Examples:\n  leaseward maintenance on -m \"new switches\" --for 2h\n  leaseward maintenance on -m \"new switches\" --dry-run"
    )]
    On {
        /// Why.
        #[arg(short, long)]
        message: String,
        /// It ends by itself after this.
        #[arg(long = "for", value_parser = crate::duration::parse)]
        lasting: Option<Duration>,
    },
    /// Ends it.
    #[command(after_help = "Examples:\n  leaseward maintenance off\n  leaseward maintenance off --dry-run")]
    Off,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Shows how carefully the master acts.
    #[command(after_help = "Examples:\n  leaseward policy get\n  leaseward policy get -o yaml")]
    Get,
    /// Changes some of it.
    #[command(
        after_help = "Examples:\n  leaseward policy set concurrent_starts=4 brake=5s\n  leaseward policy set candidates=m1,m2 --dry-run"
    )]
    Set {
        /// KEY=VALUE, as `policy get -o yaml` shows them.
        #[arg(required = true)]
        values: Vec<String>,
    },
}
