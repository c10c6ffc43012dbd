//! What happens to a host's wall clock, and whether its agent has seen it.
//!
//! Must stay true: pure. A fault whose agent goes on by the old clock breaks nothing, so a run that has such a one is not well.

use super::nemesis::Fault;
use crate::hosts::clock::machine_seconds;

/// An agent says whole seconds, and its answer is on its way for a moment.
const INEXACT_SECONDS: f64 = 3.0;

/// How a node says what its wall clock says.
const GAUGE: &str = "leaseward_wall_clock_seconds ";

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// So far the clock is ahead of the machine's from its beginning on.
    pub(super) seconds: i64,
    /// So many millionths faster it goes from there.
    pub(super) rate: i64,
    /// Whether somebody sets it right in the end, as time synchronisation does.
    pub(super) is_set_right: bool,
}

/// Returns what a fault does: two minutes to almost five hours, forwards or back; then it is set right, or stays so, or goes up to
/// five in a hundred faster or slower and is set right.
pub(super) fn step(fault: &Fault) -> Step {
    let strength = i64::from(fault.strength);
    let (way, steers) = if fault.order[0].is_multiple_of(2) { (1, -1) } else { (-1, 1) };
    let rate = if fault.strength % 3 == 2 { steers * strength * 2_000 } else { 0 };
    Step { seconds: way * strength * strength * 30, rate, is_set_right: fault.strength % 3 != 1 }
}

/// Returns by how many seconds a node is ahead of the machine, as its metrics say. `None`: it does not say, as older ones do not.
pub(super) fn ahead(metrics: &str) -> Option<f64> {
    let said = metrics.lines().find_map(|line| line.strip_prefix(GAUGE))?;
    let said: f64 = said.trim().parse().ok()?;
    Some(said + 0.5 - machine_seconds())
}

/// Returns whether what a node says fits to its host's clock.
pub(super) fn is_seen(said: f64, ahead: f64) -> bool {
    (said - ahead).abs() < INEXACT_SECONDS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::chaos::nemesis::{Nemesis, schedule};

    #[test]
    fn clocks_go_both_ways_by_minutes_and_by_hours_and_some_stay_wrong_and_some_drift() {
        let faults = schedule(7, &[Nemesis::WallClock], 5, Duration::from_secs(600), 1);
        let steps: Vec<Step> = faults.iter().map(step).collect();
        assert!(steps.iter().all(|step| (120..5 * 3_600).contains(&step.seconds.abs())), "{steps:?}");
        for (what, is_so) in [
            ("an hour ahead", (|step| step.seconds > 3_600) as fn(&Step) -> bool),
            ("an hour behind", |step| step.seconds < -3_600),
            ("minutes ahead", |step| (0..1_800).contains(&step.seconds)),
            ("stays", |step| !step.is_set_right),
            ("is set right", |step| step.is_set_right && step.rate == 0),
            ("goes faster", |step| step.rate > 4_000),
            ("goes slower", |step| step.rate < -4_000),
        ] {
            assert!(steps.iter().any(is_so), "{what}: never");
        }
    }

    #[test]
    fn a_node_that_does_not_see_its_clock_is_told_from_one_that_does() {
        let now = machine_seconds();
        let page = |seconds: f64| format!("# TYPE x gauge\nx 1\n{GAUGE}{}\n", (now + seconds) as u64);
        let said = |seconds| ahead(&page(seconds)).expect("it says");
        assert!(is_seen(said(3_600.0), 3_600.0) && is_seen(said(-120.0), -120.0) && is_seen(said(0.0), 0.0));
        assert!(!is_seen(said(0.0), 120.0) && !is_seen(said(0.0), -120.0));
        assert_eq!(ahead("x 1\n"), None, "an older node");
    }
}
