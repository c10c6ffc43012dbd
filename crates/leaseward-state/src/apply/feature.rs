//! The feature level: what every node of the cluster can read.
//!
//! Must stay true: a command that came with a level is refused below it, by whoever proposes it and by the log, so
//! that a node of an older release never meets an entry that it cannot read. The level only rises, by an entry that
//! the leader proposes after it has asked every node.

use super::Outcome;
use crate::command::{Command, Reply};
use crate::event::Event;
use crate::record::RecordKey;
use crate::refusal::Refusal;
use crate::state::State;

/// The level that this build can read. A new cluster begins with it.
pub const FEATURE_LEVEL: u32 = 3;

/// From this level on an agent's session is superseded, and its sweep believed, by those that come after the last one only
/// ([`crate::session::Incarnation::follows`]). Earlier releases drew their instances by lot.
pub(super) const INCARNATIONS_COUNTED: u32 = 2;

/// From this level on the oldest answers go first when there are too many. Those that would have been kept for the shortest time went
/// before: each day's `Idempotency-Key`s left no room for what clients repeat by themselves.
pub(crate) const OLDEST_ANSWERS_GO: u32 = 2;

/// From this level on a version that is live everywhere is what the next one goes back to, also if it was still to prove itself
/// ([`State::is_live_everywhere`]). Earlier releases went back to what was before both.
pub(super) const LIVE_IS_GOOD: u32 = 2;

/// From this level on the members of a set that is removed hear of it. Earlier releases left them with it until something else
/// changed: they went on putting its files right.
pub(super) const REMOVALS_ARE_HEARD: u32 = 3;

impl Command {
    /// Returns the feature level that this command came with.
    #[must_use]
    pub fn feature_level(&self) -> u32 {
        match self {
            Self::AcquireOpening { .. } | Self::ChangeToken { .. } => 1,
            Self::Atomic { commands, .. } => commands.iter().map(Self::feature_level).max().unwrap_or(0),
            _ => 0,
        }
    }
}

impl State {
    pub(super) fn check_feature_level(&self, command: &Command) -> Result<(), Refusal> {
        let needs = command.feature_level();
        if needs <= self.feature_level {
            return Ok(());
        }
        Err(Refusal::FeatureLevel { needs, level: self.feature_level })
    }

    pub(super) fn raise_feature_level(&mut self, to: u32, events: &mut Vec<Event>) -> Outcome {
        if to < self.feature_level {
            return Err(Refusal::Outdated(format!("the feature level is {} already", self.feature_level)));
        }
        if to > self.feature_level {
            self.feature_level = to;
            self.touched.insert(RecordKey::Meta);
            events.push(Event::FeatureLevelRaised { level: to });
        }
        Ok(Reply::Done)
    }
}
