//! `--dry-run`: which commands can say what they would do.
//!
//! Must stay true: with it nothing is done. What acts anywhere but through the API, where `api.rs` holds it back, either
//! says itself what it would do or is refused here.

use crate::args::{
    BackupCommand, Command, ConfigCommand, ContextCommand, RemoteAgent, RemoteCommand, RemoteRun, TokenCommand,
};
use crate::commands::run::OWN_ERROR;
use crate::diagnostic::Diagnostic;

/// Refuses a command that would act all the same.
pub(crate) fn check(command: &Command) -> Result<(), Diagnostic> {
    let Some(what) = acts(command) else { return Ok(()) };
    let refused = Diagnostic::new("LW0104", format!("{what} cannot say what it would do"))
        .hint(format!("leaseward {what} …      without --dry-run"));
    Err(if matches!(command, Command::Run(_)) { refused.exit(OWN_ERROR) } else { refused })
}

/// Returns what a command is called that acts although it was told to do nothing.
fn acts(command: &Command) -> Option<&'static str> {
    Some(match command {
        Command::Dev(_) => "dev",
        Command::Agent(agent) if !agent.check => "agent",
        // It writes to the disk that it looks at.
        Command::Doctor(_) => "doctor",
        Command::Run(_) => "run",
        Command::Man { dir: Some(_), .. } => "man --dir",
        Command::Remote(RemoteCommand::Run(RemoteRun { check: false, .. })) => "remote run",
        Command::Remote(RemoteCommand::Agent(RemoteAgent { check: false, .. })) => "remote agent",
        Command::Backup(BackupCommand::Restore { .. }) => "backup restore",
        Command::Context(ContextCommand::Add { .. }) => "context add",
        Command::Context(ContextCommand::Use { .. }) => "context use",
        Command::Context(ContextCommand::Rm { .. }) => "context rm",
        Command::Config(ConfigCommand::Pull { .. }) => "config pull",
        Command::Config(ConfigCommand::Key { create: true, .. }) => "config key --create",
        // They only look, or say themselves what they would do.
        Command::Agent(_)
        | Command::Man { .. }
        | Command::Remote(_)
        | Command::Context(ContextCommand::Ls)
        | Command::Backup(BackupCommand::Create { .. } | BackupCommand::Verify { .. })
        | Command::Token(TokenCommand::Create { .. } | TokenCommand::Ls | TokenCommand::Revoke { .. })
        | Command::Config(
            ConfigCommand::Ls
            | ConfigCommand::Get { .. }
            | ConfigCommand::Publish(_)
            | ConfigCommand::Put(_)
            | ConfigCommand::Edit { .. }
            | ConfigCommand::Diff { .. }
            | ConfigCommand::Verify { .. }
            | ConfigCommand::History { .. }
            | ConfigCommand::Rollback { .. }
            | ConfigCommand::Monitor { .. }
            | ConfigCommand::Policy { .. }
            | ConfigCommand::Rollout { .. }
            | ConfigCommand::Pin { .. }
            | ConfigCommand::Unpin { .. }
            | ConfigCommand::Sync { .. }
            | ConfigCommand::Key { .. }
            | ConfigCommand::Rm { .. },
        )
        | Command::Status
        | Command::Events(_)
        | Command::Explain { .. }
        | Command::Whatif { .. }
        | Command::Wait { .. }
        | Command::Completion { .. }
        | Command::Version { .. }
        | Command::Shim { .. }
        // Everything of these goes through the API.
        | Command::Lease(_)
        | Command::Server(_)
        | Command::Machine(_)
        | Command::Maintenance(_)
        | Command::Policy(_)
        | Command::Node(_)
        | Command::Api { .. } => return None,
    })
}
