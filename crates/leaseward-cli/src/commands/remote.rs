//! `leaseward remote`: machines that are reached by ssh.

mod far;
mod near;
mod settings;

use crate::args::RemoteCommand;
use crate::diagnostic::Diagnostic;

/// Runs until it is interrupted, or, at the far end, until the stream is over.
pub(crate) async fn run(command: RemoteCommand) -> Result<(), Diagnostic> {
    match command {
        RemoteCommand::Run(run) => near::run(run).await,
        RemoteCommand::Agent(agent) => far::run(agent).await,
    }
}
