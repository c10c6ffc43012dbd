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
    /// Returns the sum of at least one trial.
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
        None => because(FenceLevel::F2, "it needs a network fence, which is the operator's to set up".into()),
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
    fn a_cell_sums_up_its_trials() {
        let trial = |survivors, epsilon_ms| Trial { survivors, epsilon_ms, real_time: true };
        let cell = Cell::of("x", &[trial(0, 3.0), trial(2, -1.0), trial(0, 0.5)]);
        assert_eq!((cell.trials, cell.survivors), (3, 2));
        assert_eq!((cell.epsilon_p50_ms, cell.epsilon_max_ms), (0.5, 3.0));
    }
}
