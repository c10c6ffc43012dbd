//! `leaseward config …`: what is on every machine's disk.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Lists config sets.
    #[command(after_help = "Examples:\n  leaseward config ls\n  leaseward config ls -o wide")]
    Ls,
    /// Shows one config set with its files, or one file of it.
    #[command(after_help = "Examples:\n  leaseward config get app\n  leaseward config get app limits.toml --version 1")]
    Get {
        /// The set.
        set: String,
        /// A file of it.
        path: Option<String>,
        /// The version; the newest if none.
        #[arg(long)]
        version: Option<u64>,
        /// The key of an encrypted set: shows the plain file.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Publishes a directory, a tar file or what stands on a member's disk as the next version of a set.
    #[command(
        after_help = "Examples:\n  leaseward config publish app --from ./etc/app -m \"raise limits\"\n  leaseward config publish app --from-member m1 -m \"what was changed by hand\""
    )]
    Publish(PublishArguments),
    /// Changes one file of a set, or many of them at once: one new version.
    #[command(
        after_help = "Examples:\n  leaseward config put app limits.toml --from ./etc/app/limits.toml\n  leaseward config put app new.toml --text \"max = 1\" --if-version 2"
    )]
    Put(PutArguments),
    /// Opens a file of a set in an editor ($VISUAL, $EDITOR) and publishes what was written.
    ///
    /// Nobody else can edit the same set so meanwhile: it takes the lease config-edit/SET.
    #[command(
        after_help = "Examples:\n  leaseward config edit app limits.toml\n  leaseward config edit app limits.toml -m \"raise limits\""
    )]
    Edit {
        /// The set.
        set: String,
        /// The file.
        path: String,
        /// Why.
        #[arg(short, long, default_value = "")]
        message: String,
    },
    /// Shows what two versions differ in. Exits with 1 if they do.
    #[command(after_help = "Examples:\n  leaseward config diff app 1 1\n  leaseward config diff app 2 2 -o json")]
    Diff {
        /// The set.
        set: String,
        /// The older version; 0: nothing.
        from: u64,
        /// The newer version; the newest if none.
        to: Option<u64>,
    },
    /// Writes a version of a set into a directory or a tar file.
    #[command(
        after_help = "Examples:\n  leaseward config pull app --to ./pulled\n  leaseward config pull app --tar app.tar --version 1"
    )]
    Pull {
        /// The set.
        set: String,
        /// The directory; it must not exist, or be empty.
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        /// The tar file.
        #[arg(long, value_name = "FILE", conflicts_with = "to")]
        tar: Option<PathBuf>,
        /// The version; the newest if none.
        #[arg(long)]
        version: Option<u64>,
        /// The key of an encrypted set: writes plain files.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
    },
    /// Says whether a directory holds exactly a version of a set. Exits with 1 if it does not.
    #[command(
        after_help = "Examples:\n  leaseward config verify app --dir ./etc/app\n  leaseward config verify app --dir ./etc/app --version 1"
    )]
    Verify {
        /// The set.
        set: String,
        /// The directory.
        #[arg(long)]
        dir: PathBuf,
        /// The version; the newest if none.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Lists the versions of a set.
    #[command(after_help = "Examples:\n  leaseward config history app\n  leaseward config history app -o json")]
    History {
        /// The set.
        set: String,
    },
    /// Makes an older version the newest one, under a new number.
    #[command(
        after_help = "Examples:\n  leaseward config rollback app --to 1 -m \"license\"\n  leaseward config rollback app --to 1 --dry-run"
    )]
    Rollback {
        /// The set.
        set: String,
        /// The older version.
        #[arg(long)]
        to: u64,
        /// Why.
        #[arg(short, long, default_value = "")]
        message: String,
    },
    /// Shows how far every member is.
    #[command(after_help = "Examples:\n  leaseward config monitor app\n  leaseward config monitor app -w")]
    Monitor {
        /// The set.
        set: String,
    },
    /// Shows or sets how a set is kept on its members: checks, reloads, drift, rollout, templates.
    ///
    /// Keys are those that it shows, such as drift=repair, rollout.canaries=1, check.command='["nginx","-t"]'.
    #[command(
        after_help = "Examples:\n  leaseward config policy app\n  leaseward config policy app drift=repair rollout.canaries=1"
    )]
    Policy {
        /// The set.
        set: String,
        /// What to set; the rest stays as it is.
        #[arg(value_name = "KEY=VALUE")]
        values: Vec<String>,
        /// Replaces the whole policy by this TOML file.
        #[arg(short, long, conflicts_with = "values")]
        file: Option<PathBuf>,
    },
    /// Shows the rollout of a set's newest version, or says what becomes of it.
    #[command(after_help = "Examples:\n  leaseward config rollout app\n  leaseward config rollout app show -o json")]
    Rollout {
        /// The set.
        set: String,
        /// What becomes of it.
        #[arg(value_enum, default_value = "show")]
        action: RolloutAction,
    },
    /// Keeps a member of a set, or all of them, at a version.
    #[command(
        after_help = "Examples:\n  leaseward config pin app --machine m3 --version 1 -m \"old hardware\"\n  leaseward config pin app --machine m3 --as-is -m maintenance"
    )]
    Pin {
        /// The set.
        set: String,
        /// The member; all of them if none.
        #[arg(long)]
        machine: Option<String>,
        /// The version.
        #[arg(long, required_unless_present = "as_is")]
        version: Option<u64>,
        /// What is there stays there, and nothing is touched or repaired.
        #[arg(long, conflicts_with = "version")]
        as_is: bool,
        /// Why.
        #[arg(short, long, default_value = "")]
        message: String,
    },
    /// Lets a member of a set, or all of them, go on to the newest version.
    #[command(after_help = "Examples:\n  leaseward config unpin app --machine m3\n  leaseward config unpin app")]
    Unpin {
        /// The set.
        set: String,
        /// The member; what was said of all of them if none.
        #[arg(long)]
        machine: Option<String>,
    },
    /// Has members look at every file, put right what is wrong, and try again what they refused.
    #[command(
        after_help = "Examples:\n  leaseward config sync app\n  leaseward config sync app --machine m1 --machine m2"
    )]
    Sync {
        /// The set.
        set: String,
        /// The members; all of them if none.
        #[arg(long)]
        machine: Vec<String>,
    },
    /// Makes a key for encrypted sets, or shows what a key is called.
    #[command(after_help = "Examples:\n  leaseward config key new.key --create\n  leaseward config key app.key")]
    Key {
        /// The file.
        file: PathBuf,
        /// Makes it.
        #[arg(long)]
        create: bool,
    },
    /// Forgets a set. Its files stay where they are.
    #[command(after_help = "Examples:\n  leaseward config rm app\n  leaseward config rm app --dry-run")]
    Rm {
        /// The set.
        set: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PublishArguments {
    /// The set.
    pub(crate) set: String,
    /// The directory.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["tar", "from_member"])]
    pub(crate) from: Option<PathBuf>,
    /// The tar file.
    #[arg(long, value_name = "FILE", conflicts_with = "from")]
    pub(crate) tar: Option<PathBuf>,
    /// What stands on this member's disk now, changed by hand or not.
    #[arg(long, value_name = "MACHINE", conflicts_with_all = ["from", "tar", "key"])]
    pub(crate) from_member: Option<String>,
    /// Publishes this directory in another set with it: all of them, or none. SET@VERSION=DIR: only if that is its newest version.
    #[arg(long, value_name = "SET=DIR", requires = "from", conflicts_with_all = ["tar", "from_member"])]
    pub(crate) also: Vec<String>,
    /// Encrypts every file with this key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Why.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Only if this is the newest version; 0: only if the set is new.
    #[arg(long)]
    pub(crate) if_version: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    /// The set.
    pub(crate) set: String,
    /// The file of the set.
    #[arg(required_unless_present = "batch")]
    pub(crate) path: Option<String>,
    /// What it says from now on: a file here; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// What it says from now on.
    #[arg(long, conflicts_with = "from")]
    pub(crate) text: Option<String>,
    /// It goes away, with everything below it.
    #[arg(long, conflicts_with_all = ["from", "text"])]
    pub(crate) remove: bool,
    /// Its permission bits, octal.
    #[arg(long)]
    pub(crate) mode: Option<String>,
    /// Many changes at once: a file with one JSON object a line, {"path": …, "content": …} or {"path": …, "remove": true}.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["path", "from", "text", "remove", "mode"])]
    pub(crate) batch: Option<PathBuf>,
    /// Encrypts what it says with the key of the set.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Why.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// Only if this is the newest version; 0: only if the set is new.
    #[arg(long)]
    pub(crate) if_version: Option<u64>,
}

/// What becomes of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RolloutAction {
    /// Shows it.
    Show,
    /// It stands still.
    Halt,
    /// It goes on; members that failed so far are passed over.
    Resume,
    /// Everybody goes back.
    Abort,
    /// Everybody gets the version now.
    Finish,
}
