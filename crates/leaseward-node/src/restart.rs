//! What follows the end of a server that should run. Pure.
//!
//! Must stay true: within any window of `per_ms` there are at most `in_place` restarts.

use std::time::Duration;

use leaseward_state::server::RestartPolicy;

use crate::clock::BootInstant;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Restart after this wait.
    Restart(Duration),
    /// Let somebody else decide.
    GiveUp,
}

/// Decides from the restarts so far, oldest first; forgets those that left the window.
pub(crate) fn next(policy: &RestartPolicy, restarts: &mut Vec<BootInstant>, now: BootInstant) -> Next {
    let window = Duration::from_millis(policy.per_ms);
    restarts.retain(|at| now.saturating_since(*at) < window);
    if restarts.len() >= policy.in_place as usize {
        return Next::GiveUp;
    }
    let wait = policy.backoff_ms.get(restarts.len()).or(policy.backoff_ms.last()).copied().unwrap_or(0);
    restarts.push(now);
    Next::Restart(Duration::from_millis(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_in_a_sliding_window() {
        let policy = RestartPolicy { in_place: 2, per_ms: 1_000, backoff_ms: vec![0, 50], ..RestartPolicy::default() };
        let at = |ms: u64| BootInstant(ms * 1_000_000);
        let mut restarts = Vec::new();
        assert_eq!(next(&policy, &mut restarts, at(0)), Next::Restart(Duration::ZERO));
        assert_eq!(next(&policy, &mut restarts, at(600)), Next::Restart(Duration::from_millis(50)));
        assert_eq!(next(&policy, &mut restarts, at(999)), Next::GiveUp);
        assert_eq!(next(&policy, &mut restarts, at(1_000)), Next::Restart(Duration::from_millis(50)));
        let never = RestartPolicy { in_place: 0, ..policy };
        assert_eq!(next(&never, &mut Vec::new(), at(0)), Next::GiveUp);
    }
}
