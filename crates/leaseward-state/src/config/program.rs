//! Programs that follow a file of a config set in their memory, and how far they are.
//!
//! Must stay true: a report lives as long as the session under which it was made, and no longer than the set; a session
//! has one. Programs are no members: no rollout waits for one, and nobody counts them among the machines.

use serde::{Deserialize, Serialize};

use crate::name::SetName;
use crate::state::State;
use crate::token::{Revision, SessionId, UnixMillis};

/// What a program says of the file that it follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// The set.
    pub set: SetName,
    /// The path of the file in it.
    pub file: String,
    /// The version that it works with; 0 if none.
    pub applied: u64,
    /// The version that it refused since, if it did.
    pub rejected: Option<RejectedVersion>,
}

/// A version that a program does not work with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedVersion {
    /// Its number.
    pub version: u64,
    /// Why, for the operator.
    pub why: String,
}

/// How far a program is, as it said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramSync {
    /// What it said.
    pub report: ProgramReport,
    /// Which of its reports that was.
    pub step: u64,
    /// The entry that reported it.
    pub reported: Revision,
    /// When it was reported, by the proposer's clock.
    pub at: UnixMillis,
}

impl State {
    /// Returns the programs that say how far they are, by ascending sessions.
    pub fn programs(&self) -> impl Iterator<Item = (SessionId, &ProgramSync)> {
        self.programs.iter().map(|(session, found)| (*session, &**found))
    }

    /// Returns the programs that follow a file of a set, by ascending sessions.
    pub fn programs_of<'a>(&'a self, set: &'a SetName) -> impl Iterator<Item = (SessionId, &'a ProgramSync)> {
        self.programs().filter(move |(_, sync)| sync.report.set == *set)
    }
}
