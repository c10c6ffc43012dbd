//! Fence hooks: on the leader's node, for copies whose death is not proven.
//!
//! Must stay true: a proof is proposed only after the hook of exactly that copy succeeded in this reign, and under this
//! reign's term. A hook may run twice, also on two nodes: it gets the same operation id, and switching off what is off
//! is no harm. Left out on purpose: the grace, which goes on meanwhile; whichever is first counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use leaseward_node::hook::run_fence;
use leaseward_state::propose::Propose;
use leaseward_state::server::{FenceProof, Hook, HookStep, Placement};
use leaseward_state::{Command, FencingToken, MachineName, ServerName, State, Term};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

/// A hook that failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// A copy whose death a hook is to prove.
#[derive(Debug, Clone)]
struct Lost {
    server: ServerName,
    token: FencingToken,
    machine: MachineName,
    address: String,
    hook: Hook,
}

/// Runs fence hooks while this node leads, until the state is no longer published. `dir` keeps what hooks print.
/// Cancel safe.
pub(crate) async fn run(
    propose: impl Propose,
    mut states: watch::Receiver<Arc<State>>,
    mut reign: watch::Receiver<Option<Term>>,
    name: String,
    dir: PathBuf,
) {
    let mut running: JoinSet<(ServerName, FencingToken)> = JoinSet::new();
    // When each may be tried (again); `None` while it runs.
    let mut next: BTreeMap<(ServerName, FencingToken), Option<Instant>> = BTreeMap::new();
    let mut reigned = None;
    loop {
        let term = *reign.borrow_and_update();
        let state = Arc::clone(&states.borrow_and_update());
        if term != reigned {
            (running, next, reigned) = (JoinSet::new(), BTreeMap::new(), term);
        }
        let lost = if term.is_some() { lost(&state) } else { Vec::new() };
        next.retain(|key, _| lost.iter().any(|lost| (&lost.server, &lost.token) == (&key.0, &key.1)));
        for (lost, term) in lost.into_iter().zip(std::iter::repeat(term)) {
            let (Some(term), now) = (term, Instant::now()) else { continue };
            let due = next.entry((lost.server.clone(), lost.token)).or_insert(Some(now));
            if due.is_some_and(|at| at <= now) {
                *due = None;
                running.spawn(fence(propose.clone(), lost, term, name.clone(), dir.clone()));
            }
        }
        let wake = next.values().flatten().min().copied();
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = reign.changed() => if changed.is_err() { return },
            Some(done) = running.join_next() => if let Ok(key) = done {
                // If the proof is in the state it is not asked for again.
                next.insert(key, Some(Instant::now() + AGAIN));
            },
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

fn lost(state: &State) -> Vec<Lost> {
    let of = |(name, server): (&ServerName, &leaseward_state::server::Server)| match &server.placement {
        Placement::Expired(expired) if expired.fence.is_none() => Some(Lost {
            server: name.clone(),
            token: expired.token,
            machine: expired.machine.clone(),
            address: state.machine(&expired.machine).map_or_else(String::new, |known| known.profile.address.clone()),
            hook: server.spec.hooks.get(&HookStep::Fence)?.clone(),
        }),
        _ => None,
    };
    state.servers().filter_map(of).collect()
}

async fn fence(
    propose: impl Propose,
    lost: Lost,
    term: Term,
    name: String,
    dir: PathBuf,
) -> (ServerName, FencingToken) {
    let Lost { server, token, machine, address, hook } = lost;
    let environment = [
        ("LEASEWARD_SERVER", server.to_string()),
        ("LEASEWARD_MACHINE", machine.to_string()),
        ("LEASEWARD_MACHINE_ADDRESS", address),
        ("LEASEWARD_TOKEN", token.to_string()),
        ("LEASEWARD_STEP", HookStep::Fence.name().to_owned()),
        ("LEASEWARD_OPERATION_ID", format!("{server}:{token}:fence")),
    ];
    let environment = environment.map(|(key, value)| (key.to_owned(), value)).into();
    warn!(%server, %machine, %token, "running the fence hook of a lost copy");
    match run_fence(&server, &hook, environment, &dir).await {
        Err(why) => warn!(%server, %machine, why, "the fence hook proved nothing; trying again"),
        Ok(()) => {
            info!(%server, %machine, %token, "the fence hook succeeded");
            let proof = FenceProof::Hook(name);
            let command = Command::ProveDead { server: server.clone(), token, proof, term };
            if let Err(error) = propose.propose_internal(command.into()).await {
                warn!(%server, %error, "the proof is not committed; trying again");
            }
        }
    }
    (server, token)
}
