//! What can be typed. Every flag is also an environment variable; every command's help ends with examples.

#[path = "args/backup.rs"]
mod backup;
#[path = "args/config.rs"]
mod config;
#[path = "args/machine.rs"]
mod machine;
#[path = "args/remote.rs"]
mod remote;
#[path = "args/server.rs"]
mod server;
#[path = "args/token.rs"]
mod token;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use leaseward_http::model::Time;

pub(crate) use self::backup::BackupCommand;
pub(crate) use self::config::{ConfigCommand, PublishArguments, PutArguments, RolloutAction};
pub(crate) use self::machine::{CordonArguments, MachineCommand, MaintenanceCommand, PolicyCommand};
pub(crate) use self::remote::{RemoteAgent, RemoteCommand, RemoteRun};
pub(crate) use self::server::ServerCommand;
pub(crate) use self::token::TokenCommand;

/// Exactly one, somewhere: leases with fencing tokens, failover of servers, versioned config on every machine.
#[derive(Debug, Parser)]
#[command(
    name = "leaseward",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  leaseward dev --exit-after-demo\n  leaseward status"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// API addresses, host:port or unix:/path, separated by commas. Default: the context, then the agent of this
    /// machine.
    #[arg(long, global = true, env = "LEASEWARD_ADDR")]
    pub(crate) addr: Option<String>,
    /// The cluster of this name in the contexts file.
    #[arg(long, global = true, env = "LEASEWARD_CONTEXT")]
    pub(crate) context: Option<String>,
    /// The file with the access token to ask with. Default: the context's.
    #[arg(long, global = true, value_name = "FILE", env = "LEASEWARD_TOKEN_FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// table, wide, json, jsonl, yaml, name, or field=.path.to.field
    #[arg(short = 'o', long, global = true, env = "LEASEWARD_OUTPUT", default_value = "table")]
    pub(crate) output: String,
    /// Shows every change until interrupted.
    #[arg(short, long, global = true)]
    pub(crate) watch: bool,
    /// How long an answer may take.
    #[arg(long, global = true, env = "LEASEWARD_TIMEOUT", default_value = "10s", value_parser = crate::duration::parse)]
    pub(crate) timeout: Duration,
    /// linearizable, leader or stale.
    #[arg(long, global = true, env = "LEASEWARD_CONSISTENCY", default_value = "linearizable")]
    pub(crate) consistency: String,
    /// Does not ask.
    #[arg(long, global = true, env = "LEASEWARD_YES")]
    pub(crate) yes: bool,
    /// Shows what would be asked of the cluster, and does nothing. Commands that cannot say what they would do refuse it:
    /// dev, agent, doctor, run, remote, man --dir, backup restore, context add, use and rm, config pull and key --create.
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Does not wait for the effect: of a server until it is so, of config until its members have it.
    #[arg(long, global = true, env = "LEASEWARD_NO_WAIT")]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts a cluster of processes on this machine, and shows a failover.
    #[command(after_help = "Examples:\n  leaseward dev\n  leaseward dev --exit-after-demo")]
    Dev(DevArguments),
    /// Runs the daemon.
    #[command(after_help = "Examples:\n  leaseward agent\n  leaseward agent --check --config leaseward.toml")]
    Agent(AgentArguments),
    /// Shows the cluster on one screen. Exits with 1 if it is degraded.
    #[command(after_help = "Examples:\n  leaseward status\n  leaseward status -o field=.leader")]
    Status,
    /// Checks this machine: clocks, disk, privileges; with --fence also that servers, and as root packets of their
    /// addresses, end at their deadlines. Exits with 1 if something failed.
    #[command(after_help = "Examples:\n  leaseward doctor\n  leaseward doctor --fence --trials 1 --budget 5m")]
    Doctor(DoctorArguments),
    /// Shows what happened.
    #[command(after_help = "Examples:\n  leaseward events --since 10m\n  leaseward events -f --for server/pay-1")]
    Events(EventsArguments),
    /// Explains an error code, or how something is and why.
    #[command(after_help = "Examples:\n  leaseward explain LW0412\n  leaseward explain server/pay-1")]
    Explain {
        /// LW0412, server/NAME, lease/NAME, node/NAME or config/SET
        what: String,
    },
    /// Says what would move where, and how long it would take, if machines died now.
    #[command(
        after_help = "Examples:\n  leaseward whatif machine m1 down\n  leaseward whatif machine m1,m2 down -o json"
    )]
    Whatif {
        /// machine NAME[,NAME…] down
        #[arg(required = true)]
        event: Vec<String>,
    },
    /// Waits until something is so.
    ///
    /// config/SET=synced: the newest version is live on every connected member that is not pinned. config/SET=synced@N: version N,
    /// or one that was published upon it, is. Both fail with LW0816 (exit 1) as soon as that version was taken back, by
    /// itself or by somebody: then members have older content, and nobody published that as new. @N fails as well if
    /// somebody brought back what was there before N. Plain `synced` goes on failing until the next version is published;
    /// to wait for what came back, name its version.
    #[command(
        after_help = "Examples:\n  leaseward wait server/pay-1=running\n  leaseward wait config/app=synced@1 --timeout 1m"
    )]
    Wait {
        /// server/NAME=PHASE, config/SET=synced[@VERSION], lease/NAME=free|held, cluster=healthy, op/ID
        condition: String,
    },
    /// Runs a command only while a lease is held.
    #[command(
        after_help = "Examples:\n  leaseward run --lease batch/nightly -- ./nightly.sh\n  leaseward run --lease x --ttl 10s --wait 5m -- sleep 1"
    )]
    Run(RunArguments),
    /// Leases.
    #[command(subcommand, after_help = "Examples:\n  leaseward lease ls\n  leaseward lease get batch/nightly -o yaml")]
    Lease(LeaseCommand),
    /// Servers.
    #[command(subcommand, after_help = "Examples:\n  leaseward server ls -o wide\n  leaseward server stop pay-1")]
    Server(ServerCommand),
    /// Machines.
    #[command(
        subcommand,
        after_help = "Examples:\n  leaseward machine ls -o wide\n  leaseward machine cordon m2 -m \"new disk\""
    )]
    Machine(MachineCommand),
    /// A time in which nothing is moved or restarted.
    #[command(
        subcommand,
        after_help = "Examples:\n  leaseward maintenance on -m \"new switches\" --for 2h\n  leaseward maintenance off"
    )]
    Maintenance(MaintenanceCommand),
    /// How carefully the master acts.
    #[command(subcommand, after_help = "Examples:\n  leaseward policy get\n  leaseward policy set concurrent_starts=4")]
    Policy(PolicyCommand),
    /// Nodes that store the log.
    #[command(subcommand, after_help = "Examples:\n  leaseward node ls\n  leaseward node transfer-leader --to n2")]
    Node(NodeCommand),
    /// Machines that are reached by ssh.
    #[command(
        subcommand,
        after_help = "Examples:\n  leaseward remote run --join 10.0.0.11:7421 --plain --machine pay --to root@10.0.0.21 --check\n  leaseward remote agent --check"
    )]
    Remote(RemoteCommand),
    /// Config sets.
    #[command(subcommand, after_help = "Examples:\n  leaseward config ls\n  leaseward config monitor app")]
    Config(ConfigCommand),
    /// The state and the content of the cluster in one file, and a cluster made of it again.
    #[command(
        subcommand,
        after_help = "Examples:\n  leaseward backup create wednesday.lwb\n  leaseward backup verify app.lwb"
    )]
    Backup(BackupCommand),
    /// Who may ask what. While there is no token, everybody who reaches the API may ask everything.
    #[command(
        subcommand,
        after_help = "Examples:\n  leaseward token ls\n  leaseward token create ops --role admin --dry-run"
    )]
    Token(TokenCommand),
    /// Clusters that this user knows.
    #[command(subcommand, after_help = "Examples:\n  leaseward context ls\n  leaseward context use prod")]
    Context(ContextCommand),
    /// Calls the API.
    #[command(after_help = "Examples:\n  leaseward api GET /v1/leases\n  leaseward api POST /v1/servers/pay-1/stop")]
    Api {
        /// GET, PUT, POST or DELETE.
        method: String,
        /// Such as /v1/leases.
        path: String,
        /// The JSON body.
        body: Option<String>,
    },
    /// Prints a completion script for a shell.
    #[command(after_help = "Examples:\n  leaseward completion bash > leaseward.bash\n  leaseward completion fish")]
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Prints the manual page of a command, or writes all of them into a directory.
    #[command(after_help = "Examples:\n  leaseward man server move\n  leaseward man --dir man1")]
    Man {
        /// The command; all of them together if none.
        command: Vec<String>,
        /// Writes a page for each command here.
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
    /// Prints this program's version, and those of the nodes if they are asked.
    #[command(after_help = "Examples:\n  leaseward version\n  leaseward version --check-cluster")]
    Version {
        /// Asks every node of the cluster. Exits with 1 if their versions differ from this one.
        #[arg(long)]
        check_cluster: bool,
    },
    /// The process around a server. Not for people.
    #[command(hide = true)]
    Shim {
        /// For the shim.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    },
}

/// A shell that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct DevArguments {
    /// Ends after the demo instead of waiting for Ctrl-C.
    #[arg(long)]
    pub(crate) exit_after_demo: bool,
    /// Starts the cluster only.
    #[arg(long)]
    pub(crate) no_demo: bool,
    /// Keeps the state here instead of in a temporary directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Voters and machines, each as many as this.
    #[arg(long, default_value_t = 3)]
    pub(crate) nodes: usize,
    /// The first of the ports that are used; 0: any free ones.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArguments {
    /// The settings file.
    #[arg(long, env = "LEASEWARD_CONFIG", default_value = "/etc/leaseward/leaseward.toml")]
    pub(crate) config: PathBuf,
    /// Checks the settings and ends.
    #[arg(long)]
    pub(crate) check: bool,
    /// Ends when the process that started it ends.
    #[arg(long, hide = true)]
    pub(crate) die_with_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    /// The directory whose disk is looked at. Default: that of --config, or of temporary files.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The settings of this machine's agent: their directory and watchdog are looked at.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The watchdog that is looked at. It is not opened: it might reset this machine.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) watchdog: Option<PathBuf>,
    /// Attacks servers that resist, on this machine, and counts who survives.
    #[arg(long)]
    pub(crate) fence: bool,
    /// How often each attack is tried.
    #[arg(
        long,
        value_name = "N",
        requires = "fence",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub(crate) trials: u32,
    /// Stops attacking after this time; exits with 1 if fewer trials were done by then.
    #[arg(long, value_name = "DURATION", requires = "fence", value_parser = crate::duration::parse)]
    pub(crate) budget: Option<Duration>,
    /// Also puts this machine to sleep for a few seconds, if it can, while servers' deadlines pass.
    #[arg(long, requires = "fence")]
    pub(crate) suspend: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArguments {
    /// Goes on showing them as they happen.
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only of this object: server/pay-1, lease/x, config/app; or of this kind: server.
    #[arg(long = "for", value_name = "OBJECT")]
    pub(crate) object: Option<String>,
    /// Only after this revision.
    #[arg(long)]
    pub(crate) after: Option<u64>,
    /// Only what happened since then: so long ago, such as 10m, or a time such as 2026-11-21T14:02:00Z
    #[arg(long, value_name = "TIME", value_parser = crate::moment::parse)]
    pub(crate) since: Option<Time>,
    /// Only what happened before then, given like --since
    #[arg(long, value_name = "TIME", value_parser = crate::moment::parse, conflicts_with = "follow")]
    pub(crate) until: Option<Time>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The lease.
    #[arg(long)]
    pub(crate) lease: String,
    /// After a crash of this machine others wait this long.
    #[arg(long, default_value = "3s", value_parser = crate::duration::parse)]
    pub(crate) ttl: Duration,
    /// Waits for the lease this long.
    #[arg(long, default_value = "0s", value_parser = crate::duration::parse)]
    pub(crate) wait: Duration,
    /// When the lease is being lost, the command has this long between SIGTERM and SIGKILL. Default: a quarter of
    /// --ttl.
    #[arg(long, value_parser = crate::duration::parse)]
    pub(crate) grace: Option<Duration>,
    /// The command.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Lists leases.
    #[command(after_help = "Examples:\n  leaseward lease ls\n  leaseward lease ls batch/ -w")]
    Ls {
        /// Only those whose names begin so.
        prefix: Option<String>,
    },
    /// Shows one lease.
    #[command(
        after_help = "Examples:\n  leaseward lease get batch/nightly\n  leaseward lease get batch/nightly -o field=.token"
    )]
    Get {
        /// The lease.
        name: String,
    },
    /// Takes a lease in a session of its own, and prints both. Renew the session, or it ends.
    #[command(
        after_help = "Examples:\n  leaseward lease acquire x --holder me --ttl 30s\n  leaseward lease acquire y --wait 1m -o field=.token"
    )]
    Acquire {
        /// The lease.
        name: String,
        /// Who holds it.
        #[arg(long)]
        holder: Option<String>,
        /// Time to live of the session.
        #[arg(long, default_value = "30s")]
        ttl: String,
        /// Waits this long.
        #[arg(long)]
        wait: Option<String>,
    },
    /// Renews a session.
    #[command(
        after_help = "Examples:\n  leaseward lease renew $(leaseward lease get batch/nightly -o field=.session)\n  leaseward lease renew $(leaseward lease acquire x -o field=.session)"
    )]
    Renew {
        /// The session.
        session: u64,
    },
    /// Gives a lease back.
    #[command(
        after_help = "Examples:\n  leaseward lease release x --token $(leaseward lease get x -o field=.token)\n  leaseward lease release y --token $(leaseward lease acquire y -o field=.token)"
    )]
    Release {
        /// The lease.
        name: String,
        /// The token under which it is held.
        #[arg(long)]
        token: u64,
    },
    /// Takes a lease away from its holder. The next one gets it after the holder's time to live.
    #[command(after_help = "Examples:\n  leaseward lease revoke x\n  leaseward lease revoke x --yes")]
    Revoke {
        /// The lease.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Lists nodes.
    #[command(after_help = "Examples:\n  leaseward node ls\n  leaseward node ls -o wide")]
    Ls,
    /// Makes a voter of a learner.
    #[command(after_help = "Examples:\n  leaseward node promote n3\n  leaseward node promote n3 --dry-run")]
    Promote {
        /// The node's id or name.
        node: String,
    },
    /// Makes a learner of a voter.
    #[command(after_help = "Examples:\n  leaseward node demote n3\n  leaseward node demote n3 --yes")]
    Demote {
        /// The node's id or name.
        node: String,
    },
    /// Removes a node from the cluster.
    #[command(after_help = "Examples:\n  leaseward node rm n3 --dry-run\n  leaseward node rm n3")]
    Rm {
        /// The node's id or name.
        node: String,
    },
    /// Makes another voter the leader.
    #[command(after_help = "Examples:\n  leaseward node transfer-leader\n  leaseward node transfer-leader --to n2")]
    TransferLeader {
        /// The node's id or name; the one that is furthest along if none.
        #[arg(long)]
        to: Option<String>,
    },
    /// Shows in which order to upgrade the nodes; or ends an upgrade.
    #[command(after_help = "Examples:\n  leaseward node upgrade\n  leaseward node upgrade --finish")]
    Upgrade {
        /// Every node runs the new release: what it brought may be used from now on, and no older release can come
        /// back.
        #[arg(long)]
        finish: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Lists contexts.
    #[command(after_help = "Examples:\n  leaseward context ls\n  leaseward context ls -o json")]
    Ls,
    /// Uses a context from now on.
    #[command(after_help = "Examples:\n  leaseward context use prod\n  leaseward context use dev")]
    Use {
        /// The context.
        name: String,
    },
    /// Adds a context.
    #[command(
        after_help = "Examples:\n  leaseward context add prod 10.0.0.11:7420\n  leaseward context add prod 10.0.0.11:7420 10.0.0.12:7420 10.0.0.13:7420"
    )]
    Add {
        /// The context.
        name: String,
        /// API addresses, host:port.
        #[arg(required = true)]
        api: Vec<String>,
    },
    /// Forgets a context.
    #[command(after_help = "Examples:\n  leaseward context rm prod\n  leaseward context rm dev")]
    Rm {
        /// The context.
        name: String,
    },
}
