//! `leaseward remote`: machines that are reached by ssh.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum RemoteCommand {
    /// Keeps machines in the cluster by ssh, until it is interrupted. It runs where the voters can be reached.
    #[command(
        after_help = "Examples:\n  leaseward remote run --join 10.0.0.11:7421 --plain --machine pay --to root@10.0.0.21 --check\n  leaseward remote run --join 10.0.0.11:7421 --plain --machine old --to ops@10.0.0.22 --control /usr/local/sbin/control --check"
    )]
    Run(RemoteRun),
    /// The agent at the far end of ssh: its connections go through standard input and output. For authorized_keys.
    #[command(
        after_help = "Examples:\n  leaseward remote agent --check\n  leaseward remote agent --check --config leaseward.toml"
    )]
    Agent(RemoteAgent),
}

#[derive(Debug, Args)]
pub(crate) struct RemoteRun {
    /// A file with all of this, for many machines: docs/how-to/ssh.md shows one.
    #[arg(long, env = "LEASEWARD_REMOTE_CONFIG", conflicts_with_all = ["join", "machine", "to", "control"])]
    pub(crate) config: Option<PathBuf>,
    /// Checks the settings and ends.
    #[arg(long)]
    pub(crate) check: bool,
    /// Peer addresses of voters, separated by commas.
    #[arg(long, env = "LEASEWARD_JOIN", value_delimiter = ',')]
    pub(crate) join: Vec<String>,
    /// Unencrypted connections may leave this machine. Only on a network that you trust.
    #[arg(long, env = "LEASEWARD_PLAIN")]
    pub(crate) plain: bool,
    /// The machine.
    #[arg(long, env = "LEASEWARD_MACHINE")]
    pub(crate) machine: Option<String>,
    /// Where ssh finds it, such as leaseward@10.0.0.21.
    #[arg(long, env = "LEASEWARD_TO", value_name = "DESTINATION")]
    pub(crate) to: Option<String>,
    /// An option for ssh, such as -i; may be given again.
    #[arg(long, env = "LEASEWARD_SSH_OPTION", allow_hyphen_values = true)]
    pub(crate) ssh_option: Vec<String>,
    /// A control script there, where our program is not. Level F0: see docs/how-to/ssh.md.
    #[arg(long, env = "LEASEWARD_CONTROL", value_name = "PATH")]
    pub(crate) control: Option<String>,
    /// With --control: time to live of the machine's session.
    #[arg(long, env = "LEASEWARD_TTL", default_value = "3s", value_parser = crate::duration::parse)]
    pub(crate) ttl: Duration,
    /// With --control: from one look at a server to the next.
    #[arg(long, env = "LEASEWARD_POLL", default_value = "1s", value_parser = crate::duration::parse)]
    pub(crate) poll: Duration,
    /// With --control: what must be remembered about the machine.
    #[arg(long, env = "LEASEWARD_REMOTE_DATA", default_value = "/var/lib/leaseward/remote")]
    pub(crate) data: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RemoteAgent {
    /// The settings file, if it is there: of the sections [node], [timing], [machine] and [log]. The near side names
    /// the machine and the voters.
    #[arg(long, env = "LEASEWARD_CONFIG", default_value = "/etc/leaseward/leaseward.toml")]
    pub(crate) config: PathBuf,
    /// Checks the settings and ends.
    #[arg(long)]
    pub(crate) check: bool,
}
