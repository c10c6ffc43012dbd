//! The leader's loop that brings new versions of config sets to their members, step by step.
//!
//! Must stay true: it acts only in a reign, and what it proposes carries the term of that reign; it reacts to the state,
//! so the next leader goes on where this one stopped. What must have proven itself for a while is counted anew by a new
//! leader: that is never too short.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaseward_state::config::rollout::RolloutStep;
use leaseward_state::propose::Propose;
use leaseward_state::{Command, Revision, SetName, State, Term};
use leaseward_sync::rollout::{Next, is_quiet, next};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// A step that was not committed is planned again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// Since when each rollout is quiet after which of its steps.
type Quiet = BTreeMap<SetName, (Revision, Instant)>;

/// Runs until the state is no longer published. Cancel safe.
pub(crate) async fn run(
    propose: impl Propose,
    mut states: watch::Receiver<Arc<State>>,
    mut reign: watch::Receiver<Option<Term>>,
) {
    let mut quiet = Quiet::new();
    let mut reigned = None;
    loop {
        let term = *reign.borrow_and_update();
        let state = Arc::clone(&states.borrow_and_update());
        if term != reigned {
            quiet.clear();
            reigned = term;
        }
        let mut again = None;
        if let Some(term) = term {
            let (steps, wait) = plan(&state, &mut quiet, Instant::now());
            again = wait;
            for (set, version, step) in steps {
                let words = words(&step);
                let command = Command::StepRollout { set: set.clone(), version, step, term };
                match propose.propose_internal(command.into()).await {
                    Ok(_) => info!(%set, version, step = words, "rollout"),
                    Err(error) => {
                        warn!(%set, version, %error, "a step of a rollout is not committed; it is planned again");
                        again = Some(AGAIN);
                    }
                }
            }
        }
        let wake = again.map(|again| Instant::now() + again);
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = reign.changed() => if changed.is_err() { return },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

fn words(step: &RolloutStep) -> &'static str {
    match step {
        RolloutStep::Release(_) => "release",
        RolloutStep::Halt(_) => "halt",
        RolloutStep::RollBack(_) => "roll back",
        RolloutStep::Finish => "finish",
    }
}

/// Returns the steps to take now, and when to look again if nothing changes.
fn plan(state: &State, quiet: &mut Quiet, now: Instant) -> (Vec<(SetName, u64, RolloutStep)>, Option<Duration>) {
    let mut steps = Vec::new();
    let mut again: Option<Duration> = None;
    quiet.retain(|name, _| state.set(name).is_some_and(|set| set.rollout.is_some()));
    for (name, set) in state.sets() {
        let Some(rollout) = &set.rollout else { continue };
        let since = if is_quiet(state, name, set, rollout) {
            let since = quiet.entry(name.clone()).or_insert((rollout.stepped, now));
            if since.0 != rollout.stepped {
                *since = (rollout.stepped, now);
            }
            Some(now.duration_since(since.1))
        } else {
            quiet.remove(name);
            None
        };
        match next(state, name, set, rollout, since) {
            Next::Step(step) => steps.push((name.clone(), rollout.version, step)),
            Next::Wait(Some(wait)) => again = Some(again.map_or(wait, |again| again.min(wait))),
            Next::Wait(None) => {}
        }
    }
    (steps, again)
}
