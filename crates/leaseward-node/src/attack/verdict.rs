//! What a machine earns by what its attacks have shown. Pure.
//!
//! Must stay true: a level is earned only if nothing survived and no last instruction ran after that level's grace.

use leaseward_state::server::FenceLevel;
use serde::Serialize;

use super::Trial;

/// What one attack did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cell {
    /// The attack.
    pub attack: String,
    /// How many servers it was tried on.
    pub trials: usize,
    /// How many processes of them ran on after the deadline.
    pub survivors: usize,
    /// By how many milliseconds the last instruction missed the deadline, in the middle of all trials; below zero: it
    /// was not running when the deadline came.
    pub epsilon_p50_ms: f64,
    /// The same in the worst trial.
    pub epsilon_max_ms: f64,
}

impl Cell {
    /// Returns the sum of some trials.
    #[must_use]
    pub fn of(attack: &str, trials: &[Trial]) -> Self {
        let mut epsilon: Vec<f64> = trials.iter().map(|trial| trial.epsilon_ms).collect();
        epsilon.sort_by(f64::total_cmp);
        let rounded = |ms: Option<&f64>| (ms.copied().unwrap_or_default() * 1e3).round() / 1e3;
        Self {
            attack: attack.to_owned(),
            trials: trials.len(),
            survivors: trials.iter().map(|trial| trial.survivors).sum(),
            epsilon_p50_ms: rounded(epsilon.get(epsilon.len() / 2)),
            epsilon_max_ms: rounded(epsilon.last()),
        }
    }
}

/// The level that is earned, and why it is not the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The level.
    pub level: FenceLevel,
    /// Why not the next one.
    pub why_not_next: String,
}

/// Returns what a machine earns whose privileges allow `allowed`.
#[must_use]
pub fn verdict(allowed: FenceLevel, cells: &[Cell]) -> Verdict {
    let because = |level, why_not_next: String| Verdict { level, why_not_next };
    if let Some(cell) = cells.iter().find(|cell| cell.survivors > 0) {
        return because(FenceLevel::F0, format!("{} survived: {}", cell.survivors, cell.attack));
    }
    let worst = cells.iter().max_by(|a, b| a.epsilon_max_ms.total_cmp(&b.epsilon_max_ms));
    let late = |level: FenceLevel| {
        let grace = level.grace_ms()?;
        let cell = worst.filter(|cell| cell.epsilon_max_ms > grace as f64)?;
        let (ms, attack) = (cell.epsilon_max_ms, &cell.attack);
        Some(format!("an instruction ran {ms:.0} ms after its deadline ({attack}), {level} allows {grace} ms"))
    };
    if allowed == FenceLevel::F0 {
        return because(
            FenceLevel::F0,
            "this user gets no PID namespace, neither by privilege nor in a user namespace".into(),
        );
    }
    if let Some(why) = late(FenceLevel::F1) {
        return because(FenceLevel::F0, why);
    }
    if allowed == FenceLevel::F1 {
        let why = "it needs a PID namespace by privilege, SCHED_FIFO and locked memory: run as root";
        return because(FenceLevel::F1, why.into());
    }
    match late(FenceLevel::F2) {
        Some(why) => because(FenceLevel::F1, why),
        None => because(FenceLevel::F2, "F3 needs a network fence, which was not attacked".into()),
    }
}

impl Verdict {
    /// Adds what the attack on the network fence has shown, or why there was none.
    #[must_use]
    pub fn with_packets(self, packets: Result<&Cell, &str>) -> Self {
        if self.level != FenceLevel::F2 {
            return self;
        }
        let stays = |why_not_next| Self { level: FenceLevel::F2, why_not_next };
        let allowed = FenceLevel::F3.grace_ms().unwrap_or_default();
        match packets {
            Err(why) => stays(format!("the network fence of F3 was not measured: {why}")),
            Ok(cell) if cell.trials == 0 => stays("the network fence of F3 was not measured: no trial was done".into()),
            Ok(cell) if cell.survivors > 0 => {
                stays(format!("{} ways through the network fence stayed open", cell.survivors))
            }
            Ok(cell) if cell.epsilon_max_ms > allowed as f64 => stays(format!(
                "a packet crossed the network fence {:.0} ms after its deadline, F3 allows {allowed} ms",
                cell.epsilon_max_ms
            )),
            Ok(_) => Self { level: FenceLevel::F3, why_not_next: "F4 needs a watchdog, which was not measured".into() },
        }
    }

    /// Says what is known of the watchdog of F4, which no attack can earn.
    #[must_use]
    pub fn with_watchdog(mut self, fact: &str) -> Self {
        if self.level == FenceLevel::F3 {
            self.why_not_next = format!("F4 was not measured: {fact}");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(survivors: usize, epsilon_max_ms: f64) -> Cell {
        Cell { attack: "x".into(), trials: 1, survivors, epsilon_p50_ms: 0.0, epsilon_max_ms }
    }

    #[test]
    fn a_level_is_earned_by_privilege_and_by_what_was_seen() {
        use FenceLevel::{F0, F1, F2};
        let level = |allowed, cells: &[Cell]| verdict(allowed, cells).level;
        assert_eq!(level(F2, &[cell(0, 0.6), cell(0, -3.0)]), F2);
        assert_eq!(level(F2, &[cell(0, 0.6), cell(0, 100.5)]), F1, "too late for F2");
        assert_eq!(level(F1, &[cell(0, 0.6)]), F1);
        assert_eq!(level(F1, &[cell(0, 2_000.1)]), F0, "too late for any grace");
        assert_eq!(level(F2, &[cell(0, 0.6), cell(1, 0.0)]), F0, "a survivor");
        assert_eq!(level(F0, &[]), F0);
    }

    #[test]
    fn packets_earn_one_level_more_and_a_watchdog_none() {
        use FenceLevel::{F1, F2, F3};
        let measured = |allowed, packets: Result<&Cell, &str>| {
            verdict(allowed, &[cell(0, 0.6)]).with_packets(packets).with_watchdog("a look")
        };
        assert_eq!(measured(F2, Ok(&cell(0, 99.0))).level, F3);
        assert_eq!(measured(F2, Ok(&cell(0, 99.0))).why_not_next, "F4 was not measured: a look");
        for packets in [Ok(&cell(1, 0.0)), Ok(&cell(0, 100.5)), Ok(&Cell::of("x", &[])), Err("no nft")] {
            let verdict = measured(F2, packets);
            assert_eq!(verdict.level, F2, "{verdict:?}");
        }
        assert!(measured(F2, Err("no nft")).why_not_next.ends_with("no nft"));
        assert_eq!(measured(F1, Ok(&cell(0, 0.0))).level, F1, "it is F2 and a fence");
    }

    #[test]
    fn a_cell_sums_up_its_trials() {
        let trial = |survivors, epsilon_ms| Trial { survivors, epsilon_ms, real_time: true };
        let cell = Cell::of("x", &[trial(0, 3.0), trial(2, -1.0), trial(0, 0.5)]);
        assert_eq!((cell.trials, cell.survivors), (3, 2));
        assert_eq!((cell.epsilon_p50_ms, cell.epsilon_max_ms), (0.5, 3.0));
    }
}
