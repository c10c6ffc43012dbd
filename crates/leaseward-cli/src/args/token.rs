//! `leaseward token …`

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a token and shows it, once. The first one is an administrator's: from then on nobody is answered without one.
    #[command(
        after_help = "Examples:\n  leaseward token create ops --role admin --dry-run\n  leaseward token create ci --role publisher:app --ttl 30d --dry-run"
    )]
    Create {
        /// The token's name.
        name: String,
        /// viewer, operator, publisher:SET, publisher:BEGINNING*, holder:PREFIX or admin; several times for several.
        #[arg(long, required = true)]
        role: Vec<String>,
        /// It ends by itself after this time.
        #[arg(long, value_parser = crate::duration::parse)]
        ttl: Option<Duration>,
        /// Writes it into this new file, for its owner alone, instead of showing it.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Lists tokens: who may do what. Their secrets are nowhere.
    #[command(after_help = "Examples:\n  leaseward token ls\n  leaseward token ls -o json")]
    Ls,
    /// Takes a token back. After the last one everybody may ask everything again.
    #[command(
        after_help = "Examples:\n  leaseward token revoke ci --dry-run\n  leaseward token revoke ci --dry-run --yes"
    )]
    Revoke {
        /// The token.
        name: String,
    },
}
