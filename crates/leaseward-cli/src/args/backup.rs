//! `leaseward backup …`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Writes the state and the content of the cluster into one file, which only its owner can read. Verify it: a backup
    /// that nobody read is a hope.
    #[command(
        after_help = "Examples:\n  leaseward backup create monday.lwb\n  leaseward backup create tuesday.lwb -o json"
    )]
    Create {
        /// The file. It must not be there.
        file: PathBuf,
        /// Replaces a file that is there, once the new one is whole.
        #[arg(long)]
        force: bool,
    },
    /// Reads a backup to its end, and shows what is in it. Exits with 1 if it is not whole.
    #[command(
        after_help = "Examples:\n  leaseward backup verify app.lwb\n  leaseward backup verify app.lwb -o field=.versions"
    )]
    Verify {
        /// The file.
        file: PathBuf,
    },
    /// Makes the data directory of the first voter of a new life of the cluster. Stop the old one first, everywhere.
    #[command(
        after_help = "Examples:\n  leaseward backup restore app.lwb --to restored\n  leaseward backup restore app.lwb --to restored-too --wait 6s"
    )]
    Restore {
        /// The file.
        file: PathBuf,
        /// The directory: `node.data` of the voter's settings. It must be empty.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Waits at least this long, until no server of the old cluster can run. By itself it waits as the backup says; a
        /// machine that came later with a longer `timing.lease_ttl`, or a server with a longer `grace`, is not in it.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = crate::duration::parse)]
        wait: Duration,
    },
}
