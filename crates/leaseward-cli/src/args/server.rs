//! `leaseward server …`

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Lists servers.
    #[command(after_help = "Examples:\n  leaseward server ls\n  leaseward server ls -o wide")]
    Ls,
    /// Shows one server.
    #[command(after_help = "Examples:\n  leaseward server get pay-1\n  leaseward server get pay-1 -o field=.machine")]
    Get {
        /// The server.
        name: String,
    },
    /// Defines servers from TOML files.
    #[command(
        after_help = "Examples:\n  leaseward server apply -f pay-1.toml\n  leaseward server apply -f pay-1.toml --dry-run"
    )]
    Apply {
        /// The file.
        #[arg(short, long = "file", required = true)]
        files: Vec<PathBuf>,
        /// Also what no machine of the cluster could run, or what leaves no room for the loss of one.
        #[arg(long)]
        force: bool,
    },
    /// Starts a server, also one that failed.
    #[command(after_help = "Examples:\n  leaseward server start pay-1\n  leaseward server start pay-1 --no-wait")]
    Start {
        /// The server.
        name: String,
    },
    /// Stops a server; it stays stopped.
    #[command(after_help = "Examples:\n  leaseward server stop pay-1\n  leaseward server stop pay-1 --yes")]
    Stop {
        /// The server.
        name: String,
    },
    /// Stops a server and starts it again on its machine.
    #[command(
        after_help = "Examples:\n  leaseward server restart pay-1 --dry-run\n  leaseward server restart pay-1 --yes"
    )]
    Restart {
        /// The server.
        name: String,
    },
    /// Moves a server to another machine. It goes back if it cannot be started there.
    #[command(
        after_help = "Examples:\n  leaseward server move pay-1 --to m2\n  leaseward server move pay-1 --to m2 --yes"
    )]
    Move {
        /// The server.
        name: String,
        /// The machine.
        #[arg(long)]
        to: String,
        /// It does not go back.
        #[arg(long)]
        no_rollback: bool,
    },
    /// Moves a server to the first of its candidates.
    #[command(
        after_help = "Examples:\n  leaseward server failback pay-1 --dry-run\n  leaseward server failback pay-1 --yes"
    )]
    Failback {
        /// The server.
        name: String,
    },
    /// Leaves a server as it is: it is neither restarted nor moved.
    #[command(
        after_help = "Examples:\n  leaseward server pause pay-1 -m \"looking at it\" --for 2h\n  leaseward server pause pay-1 -m \"looking at it\" --dry-run"
    )]
    Pause {
        /// The server.
        name: String,
        /// Why.
        #[arg(short, long)]
        message: String,
        /// The pause ends by itself after this.
        #[arg(long = "for", value_parser = crate::duration::parse)]
        lasting: Option<Duration>,
    },
    /// Ends the pause of a server.
    #[command(after_help = "Examples:\n  leaseward server resume pay-1\n  leaseward server resume pay-1 --dry-run")]
    Resume {
        /// The server.
        name: String,
    },
    /// Shows a server's interruptions, each phase by phase.
    #[command(after_help = "Examples:\n  leaseward server history pay-1\n  leaseward server history pay-1 -o json")]
    History {
        /// The server.
        name: String,
    },
    /// Shows what a server printed, from whichever machine has it.
    #[command(
        after_help = "Examples:\n  leaseward server logs pay-1 --lines 20\n  leaseward server logs pay-1 --machine m2"
    )]
    Logs {
        /// The server.
        name: String,
        /// The last so many lines.
        #[arg(long, default_value = "200")]
        lines: u32,
        /// What it printed on this machine; otherwise where it runs, or ran last.
        #[arg(long, conflicts_with = "here")]
        machine: Option<String>,
        /// Reads this machine's file, and asks no cluster.
        #[arg(long)]
        here: bool,
        /// The settings file of this machine's agent, for --here.
        #[arg(long, env = "LEASEWARD_CONFIG", default_value = "/etc/leaseward/leaseward.toml")]
        config: PathBuf,
    },
    /// Shows what applying a file would change. Exits with 1 if something would.
    #[command(
        after_help = "Examples:\n  leaseward server diff -f pay-1.toml\n  leaseward server diff -f pay-1.toml -o json"
    )]
    Diff {
        /// The file.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Forgets a stopped server.
    #[command(after_help = "Examples:\n  leaseward server rm pay-1\n  leaseward server rm pay-1 --dry-run")]
    Rm {
        /// The server.
        name: String,
    },
}
