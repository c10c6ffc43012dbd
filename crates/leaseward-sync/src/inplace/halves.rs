//! Switches that were begun and could not be ended: a step was refused by the disk, or a staged file was not there any more.
//!
//! Must stay true: while a journal stands nothing staged is touched, for whoever opens the set next plays it with what is
//! staged; before something else is staged the journal is a half, durably, and is played by nobody. Halves are forgotten once
//! a version is wholly there.

use super::journal::{Begun, journal, read_journal, write_durably};
use super::{InPlace, JOURNAL, STAGE};
use crate::error::Result;
use crate::limits::HALVES_MAX;

/// What a half is named, with a number that grows.
const HALF: &str = "half.";

impl InPlace {
    /// Returns the numbers of the halves on the disk, in ascending order.
    fn numbers(&self) -> Result<Vec<u64>> {
        let names = self.state_dir.names()?;
        let number = |name: &std::ffi::OsString| name.to_str()?.strip_prefix(HALF)?.parse().ok();
        let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads what an earlier run left. One that cannot be read is none: what it may have put counts as somebody else's.
    pub(super) fn read_halves(&mut self) -> Result<()> {
        for number in self.numbers()? {
            if let Some(begun) = read_journal(&self.state_dir, &format!("{HALF}{number}")) {
                self.take_for_half(begun);
            }
        }
        Ok(())
    }

    fn take_for_half(&mut self, begun: Begun) {
        self.doubted.extend(begun.ops.iter().map(|op| op.path().to_owned()));
        self.halves.push(begun);
    }

    /// Takes the journal for one that could not be played.
    pub(super) fn doubt(&mut self, begun: Begun) {
        self.take_for_half(begun);
        self.is_journaled = true;
    }

    /// Removes what is staged, after nobody will look for it any more.
    pub(super) fn clear_stage(&mut self) -> Result<()> {
        if let Some(newest) = self.halves.last().filter(|_| self.is_journaled) {
            let numbers = self.numbers()?;
            // Written anew: the journal may be gone, if what failed was to make that durable.
            let half = format!("{HALF}{}", numbers.last().map_or(0, |last| last + 1));
            write_durably(&self.state_dir, &half, &journal(newest))?;
            // Who tries for days leaves the same behind each time.
            let surplus = (numbers.len() + 1).saturating_sub(HALVES_MAX);
            for number in &numbers[..surplus] {
                self.state_dir.unlink(format!("{HALF}{number}"))?;
            }
            self.state_dir.unlink(JOURNAL)?;
            self.state_dir.sync()?;
            self.halves.drain(..self.halves.len().saturating_sub(HALVES_MAX));
            self.is_journaled = false;
        }
        self.root()?.remove_tree(STAGE)
    }

    /// Forgets all of them, and the journal: a version is wholly there.
    pub(super) fn forget_halves(&mut self) -> Result<()> {
        for number in self.numbers()? {
            self.state_dir.unlink(format!("{HALF}{number}"))?;
        }
        // Last: without it nobody would know of the halves that are left.
        self.state_dir.unlink(JOURNAL)?;
        self.state_dir.sync()?;
        self.halves.clear();
        self.doubted.clear();
        self.is_journaled = false;
        Ok(())
    }
}
