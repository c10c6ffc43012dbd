//! Repeated looks at one server: starting, ready, ailing, hung.
//!
//! Must stay true: a server is ready from its first good look; it is hung after `misses` bad ones in a row, or when
//! no look was good within `start_timeout_ms`. The verdict is pure; the loop around it only waits and looks.

use std::time::Duration;

use leaseward_state::server::HealthCheck;
use tokio::time::{Instant, sleep, timeout};

use crate::limits::STARTING_PAUSE;
use crate::probe::{self, Scene};

/// What a look means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its first good look, or the first after bad ones.
    Good,
    /// As before.
    Same,
    /// The first bad look after a good one.
    Ailing(String),
    /// It must be killed.
    Hung(String),
}

/// What has been seen so far.
#[derive(Debug)]
pub(crate) struct Patient {
    misses_max: u32,
    start_timeout: Duration,
    ready: bool,
    misses: u32,
}

impl Patient {
    pub(crate) fn new(check: &HealthCheck, start_timeout: Duration) -> Self {
        Self { misses_max: check.misses.max(1), start_timeout, ready: false, misses: 0 }
    }

    /// Takes in one look, at `age` since its start.
    pub(crate) fn saw(&mut self, look: Result<(), String>, age: Duration) -> Verdict {
        match look {
            Ok(()) => {
                let news = !self.ready || self.misses > 0;
                (self.ready, self.misses) = (true, 0);
                if news { Verdict::Good } else { Verdict::Same }
            }
            Err(why) if !self.ready => {
                if age < self.start_timeout {
                    return Verdict::Same;
                }
                Verdict::Hung(format!("not ready within {} ms: {why}", self.start_timeout.as_millis()))
            }
            Err(why) => {
                self.misses += 1;
                match self.misses {
                    n if n >= self.misses_max => Verdict::Hung(format!("{n} bad checks in a row: {why}")),
                    1 => Verdict::Ailing(why),
                    _ => Verdict::Same,
                }
            }
        }
    }
}

/// Looks again and again until `told` says enough, or it is hung. `told` gets the look and its meaning.
pub(crate) async fn watch(
    check: HealthCheck,
    start_timeout: Duration,
    scene: Scene,
    mut told: impl AsyncFnMut(Result<(), String>, Verdict) -> bool,
) {
    let began = Instant::now();
    let mut patient = Patient::new(&check, start_timeout);
    let interval = Duration::from_millis(check.interval_ms.max(1));
    // A server that is starting is looked at more often: nobody should be out of service for an interval's sake.
    let mut pause = STARTING_PAUSE.min(interval);
    loop {
        let limit = Duration::from_millis(check.timeout_ms.max(1));
        let look = timeout(limit, probe::look(&check.probe, &scene)).await;
        let look = look.unwrap_or_else(|_| Err(format!("no answer within {} ms", limit.as_millis())));
        let verdict = patient.saw(look.clone(), began.elapsed());
        let hung = matches!(verdict, Verdict::Hung(_));
        if !told(look, verdict).await || hung {
            return;
        }
        pause = if patient.ready { interval } else { (pause * 2).min(interval) };
        sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use leaseward_state::server::Probe;

    use super::*;

    #[test]
    fn it_is_ready_once_ailing_at_the_first_miss_and_hung_at_the_last() {
        let check = HealthCheck { probe: Probe::Process, interval_ms: 1, timeout_ms: 1, misses: 3 };
        let mut patient = Patient::new(&check, Duration::from_secs(1));
        let bad = || Err("no".to_owned());
        let early = Duration::ZERO;
        assert_eq!(patient.saw(bad(), early), Verdict::Same);
        assert_eq!(patient.saw(Ok(()), early), Verdict::Good);
        assert_eq!(patient.saw(Ok(()), early), Verdict::Same);
        assert_eq!(patient.saw(bad(), early), Verdict::Ailing("no".to_owned()));
        assert_eq!(patient.saw(bad(), early), Verdict::Same);
        assert_eq!(patient.saw(Ok(()), early), Verdict::Good);
        assert_eq!(patient.saw(bad(), early), Verdict::Ailing("no".to_owned()));
        assert_eq!(patient.saw(bad(), early), Verdict::Same);
        assert!(matches!(patient.saw(bad(), early), Verdict::Hung(_)));
        let mut late = Patient::new(&check, Duration::from_secs(1));
        assert!(matches!(late.saw(bad(), Duration::from_secs(1)), Verdict::Hung(_)));
    }
}
