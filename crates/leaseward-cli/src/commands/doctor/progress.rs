//! How far the attacks are, on standard error: one line that changes on a terminal, else a line now and then.

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use tokio::time::Instant;

use crate::printer::note;

/// What one trial takes on an idle machine with two processors; refined as soon as there are some.
const TRIAL: Duration = Duration::from_millis(190);

/// Fewer trials are over before anybody wonders, and are not announced.
const MANY: usize = 100;

/// Where no terminal shows it: a line for each tenth of the way.
const LINES: usize = 10;

/// What was done of what was planned.
#[derive(Debug)]
pub(super) struct Progress {
    planned: usize,
    done: usize,
    begun: Instant,
    is_terminal: bool,
}

impl Progress {
    /// Says what is planned and how long it may take.
    pub(super) fn start(attacks: usize, trials: usize) -> Self {
        let planned = attacks * trials;
        let progress = Self { planned, done: 0, begun: Instant::now(), is_terminal: stderr().is_terminal() };
        if progress.is_told() {
            let takes = words(TRIAL * u32::try_from(planned).unwrap_or(u32::MAX));
            note!("{attacks} attacks, {trials} trials of each: about {takes}; Ctrl-C ends it and leaves nothing");
        }
        progress
    }

    /// Counts trials.
    pub(super) fn advance(&mut self, trials: usize) {
        let tenth = |done: usize| done * LINES / self.planned.max(1);
        let before = tenth(self.done);
        self.done += trials;
        if !self.is_told() || (!self.is_terminal && tenth(self.done) == before) {
            return;
        }
        let text = text(self.done, self.planned, self.begun.elapsed());
        if !self.is_terminal {
            note!("{text}");
            return;
        }
        // Back to the line's start, and nothing left of a longer one.
        let end = if self.done >= self.planned { "\n" } else { "" };
        write!(stderr(), "\r{text}\x1b[K{end}").ok();
    }

    /// Plans for fewer trials.
    pub(super) fn leave_out(&mut self, trials: usize) {
        self.planned = self.planned.saturating_sub(trials);
    }

    /// Says something on a line of its own.
    pub(super) fn say(&self, line: &str) {
        if self.is_terminal && self.is_told() {
            write!(stderr(), "\r\x1b[K").ok();
        }
        note!("{line}");
    }

    fn is_told(&self) -> bool {
        self.is_terminal || self.planned >= MANY
    }
}

fn text(done: usize, planned: usize, elapsed: Duration) -> String {
    let left = elapsed.mul_f64(planned.saturating_sub(done) as f64 / done.max(1) as f64);
    format!("{done} of {planned} trials after {}, about {} left", words(elapsed), words(left))
}

/// Returns a duration as people say it.
fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds => format!("{} min", (seconds + 30) / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_by_what_it_took() {
        let text = |done, seconds| text(done, 1_200, Duration::from_secs(seconds));
        assert_eq!(text(120, 30), "120 of 1200 trials after 30 s, about 5 min left");
        assert_eq!(text(1_200, 300), "1200 of 1200 trials after 5 min, about 0 s left");
    }
}
