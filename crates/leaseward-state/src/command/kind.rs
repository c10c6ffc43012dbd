//! What a command is called, and who may propose it.

use super::Command;

impl Command {
    /// Returns the command's name, for logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenSession { .. } => "open_session",
            Self::OpenMachine(_) => "open_machine",
            Self::EndSession { .. } => "end_session",
            Self::CloseSessions { .. } => "close_sessions",
            Self::Acquire(_) => "acquire",
            Self::Withdraw { .. } => "withdraw",
            Self::Release { .. } => "release",
            Self::Revoke { .. } => "revoke",
            Self::EndDelay { .. } => "end_delay",
            Self::Cordon { .. } => "cordon",
            Self::RemoveMachine { .. } => "remove_machine",
            Self::PutServer { .. } => "put_server",
            Self::RemoveServer { .. } => "remove_server",
            Self::SetWanted { .. } => "set_wanted",
            Self::Move { .. } => "move",
            Self::Assign(_) => "assign",
            Self::GiveUp { .. } => "give_up",
            Self::ReportServer { .. } => "report_server",
            Self::Publish { .. } => "publish",
            Self::RemoveSet { .. } => "remove_set",
            Self::ReportSync { .. } => "report_sync",
            Self::Atomic { .. } => "atomic",
            Self::Settle { .. } => "settle",
            Self::AcquireOpening { .. } => "acquire_opening",
            Self::RaiseFeatureLevel { .. } => "raise_feature_level",
            Self::Restart { .. } => "restart",
            Self::Pause { .. } => "pause",
            Self::ConfirmDead { .. } => "confirm_dead",
            Self::PutPolicy { .. } => "put_policy",
            Self::Relocate { .. } => "relocate",
            Self::Quarantine { .. } => "quarantine",
            Self::EndPauses { .. } => "end_pauses",
            Self::ProveDead { .. } => "prove_dead",
            Self::NoteVoters { .. } => "note_voters",
            Self::Suspect { .. } => "suspect",
            Self::Prepare { .. } => "prepare",
            Self::ReportPrepared { .. } => "report_prepared",
            Self::PutSet { .. } => "put_set",
            Self::PinSet { .. } => "pin_set",
            Self::Resync { .. } => "resync",
            Self::SteerRollout { .. } => "steer_rollout",
            Self::StepRollout { .. } => "step_rollout",
            Self::ReportProgram { .. } => "report_program",
            Self::ChangeToken { .. } => "change_token",
        }
    }

    /// Returns whether only a leader may propose it, for itself: such a command is never forwarded (rule R5).
    #[must_use]
    pub fn is_internal(&self) -> bool {
        match self {
            Self::CloseSessions { .. }
            | Self::EndDelay { .. }
            | Self::Assign(_)
            | Self::GiveUp { .. }
            | Self::Settle { .. }
            | Self::Relocate { .. }
            | Self::Quarantine { .. }
            | Self::EndPauses { .. }
            | Self::ProveDead { .. }
            | Self::NoteVoters { .. }
            | Self::Suspect { .. }
            | Self::Prepare { .. }
            | Self::StepRollout { .. }
            | Self::RaiseFeatureLevel { .. } => true,
            Self::Atomic { commands, .. } => commands.iter().any(Self::is_internal),
            _ => false,
        }
    }

    /// Returns whether programs and agents propose it, for themselves: sessions, leases, and what a machine or a program says
    /// of itself. Everything else is asked of the API by somebody who may.
    #[must_use]
    pub fn is_of_programs(&self) -> bool {
        match self {
            Self::OpenSession { .. }
            | Self::OpenMachine(_)
            | Self::EndSession { .. }
            | Self::Acquire(_)
            | Self::AcquireOpening { .. }
            | Self::Withdraw { .. }
            | Self::Release { .. }
            | Self::ReportServer { .. }
            | Self::ReportPrepared { .. }
            | Self::ReportSync { .. }
            | Self::ReportProgram { .. } => true,
            Self::Atomic { commands, .. } => commands.iter().all(Self::is_of_programs),
            _ => false,
        }
    }
}
