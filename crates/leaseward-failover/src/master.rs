//! The master: the loop on the leader that plans, proposes and invokes node managers.
//!
//! Must stay true: it acts only in a reign; everything it proposes carries the term of that reign, so what a deposed
//! master proposed too late is refused; it reacts to the state, so it may begin anywhere.

use std::sync::Arc;
use std::time::Duration;

use leaseward_state::command::Reply;
use leaseward_state::propose::Propose;
use leaseward_state::{Command, State, Term, UnixMillis};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::limits::{PLAN_AGAIN, PROPOSALS_AT_ONCE, PUBLISHED_WITHIN};
use crate::manager::NodeManager;
use crate::plan::{Observed, plan};

/// The master's clock: how long a reign lasts already. It must never run fast.
pub trait ReignClock: Send + 'static {
    /// Returns the time since some fixed moment.
    fn now(&self) -> Duration;

    /// Returns the wall clock: for what people gave a time of day.
    fn wall(&self) -> UnixMillis;
}

/// Runs the master of this node until the state is no longer published. Cancel safe.
///
/// `states` gives the newest state that this node has applied; `reign` the term in which this node leads and has
/// applied everything before it.
pub async fn run(
    propose: impl Propose,
    mut states: watch::Receiver<Arc<State>>,
    mut reign: watch::Receiver<Option<Term>>,
    managers: impl NodeManager,
    clock: impl ReignClock,
) {
    let mut observed = Observed::default();
    let mut reigned = None;
    loop {
        let term = *reign.borrow_and_update();
        let state = Arc::clone(&states.borrow_and_update());
        if term != reigned {
            // A new master counts every grace anew.
            observed = Observed::default();
            reigned = term;
        }
        let mut again = None;
        if let Some(term) = term {
            let now = clock.now();
            observed.look(&state, now, clock.wall());
            let planned = plan(&state, &observed, now, term);
            again = planned.again;
            if !planned.commands.is_empty() && !carry_out(&propose, &managers, &states, planned.commands).await {
                again = Some(PLAN_AGAIN);
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

/// Proposes everything at once. Returns false if something was not committed and should be planned again.
async fn carry_out(
    propose: &impl Propose,
    managers: &impl NodeManager,
    states: &watch::Receiver<Arc<State>>,
    commands: Vec<Command>,
) -> bool {
    // Its own, so that the loop still sees every change.
    let mut states = states.clone();
    let (mut all_committed, mut lags) = (true, false);
    let mut under_way = JoinSet::new();
    for command in commands.into_iter().take(PROPOSALS_AT_ONCE) {
        let propose = propose.clone();
        under_way.spawn(async move {
            let outcome = propose.propose_internal(command.clone().into()).await;
            (command, outcome)
        });
    }
    while let Some(Ok((command, outcome))) = under_way.join_next().await {
        match outcome {
            Ok(committed) => match committed.reply {
                Reply::Refused(refusal) => info!(command = command.name(), %refusal, "planned on an older state"),
                _ if lags => {}
                _ => {
                    // What is committed may reach the published state a moment later: the order is in it then.
                    let has_it = states.wait_for(|state| state.revision() >= committed.revision);
                    match timeout(PUBLISHED_WITHIN, has_it).await {
                        Ok(Ok(state)) => invoke(managers, &state, &command),
                        Ok(Err(_)) | Err(_) => lags = true,
                    }
                }
            },
            Err(error) => {
                all_committed = false;
                warn!(command = command.name(), %error, "not committed; planning again");
            }
        }
    }
    all_committed
}

fn invoke(managers: &impl NodeManager, state: &State, command: &Command) {
    let Command::Assign(assign) = command else { return };
    info!(
        server = %assign.server,
        machine = %assign.machine,
        cause = ?assign.cause,
        fence = ?assign.fence,
        "placed a server"
    );
    if let Some(order) = state.orders(&assign.machine).into_iter().find(|order| order.server == assign.server) {
        managers.order(&assign.machine, &order);
    }
}
