//! What the master should propose now. Pure: values in, decisions and the next time to look out.
//!
//! Must stay true: nothing is placed before the death of its last copy is proven, or its machine's session has been
//! over for the whole grace on this master's own clock, counted from when it saw that; a new master counts anew.

use std::collections::BTreeMap;
use std::time::Duration;

use leaseward_state::command::Assign;
use leaseward_state::server::{Cause, Expired, FenceProof, Placement, Server, Wanted};
use leaseward_state::{Command, FencingToken, ServerName, State, Term};

use crate::placement::choose;

/// What the master saw with its own clock, in its present reign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// When it first saw that an assignment was over.
    pub expired: BTreeMap<(ServerName, FencingToken), Duration>,
}

impl Observed {
    /// Notes what is new in the state, and forgets what is over.
    pub fn look(&mut self, state: &State, now: Duration) {
        let expired: BTreeMap<_, _> = state
            .servers()
            .filter_map(|(name, server)| match &server.placement {
                Placement::Expired(expired) => Some(((name.clone(), expired.token), now)),
                _ => None,
            })
            .collect();
        self.expired.retain(|key, _| expired.contains_key(key));
        for (key, now) in expired {
            self.expired.entry(key).or_insert(now);
        }
    }
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order: the most important servers first.
    pub commands: Vec<Command>,
    /// Look again after this, even if nothing changes.
    pub again: Option<Duration>,
    /// Why servers that should run are not placed, by name.
    pub waiting: BTreeMap<ServerName, String>,
}

/// Returns what to do now.
#[must_use]
pub fn plan(state: &State, observed: &Observed, now: Duration, term: Term) -> Plan {
    let mut plan = Plan::default();
    let mut servers: Vec<_> = state.servers().collect();
    // Higher priority first, then names, so that every member plans alike.
    servers.sort_by_key(|(name, server)| (-i64::from(server.spec.priority), (*name).clone()));
    for (name, server) in servers {
        let fence = match &server.placement {
            Placement::Unplaced { .. } => None,
            Placement::Expired(expired) => match fenced(observed, now, name, server, expired) {
                Fenced::Yes(proof) => Some(proof),
                Fenced::In(left) => {
                    plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
                    plan.waiting.insert(name.clone(), format!("grace: {} ms are left", left.as_millis()));
                    continue;
                }
                Fenced::Never => {
                    plan.waiting.insert(
                        name.clone(),
                        format!("the death of its copy on {} is not proven, and no grace is set", expired.machine),
                    );
                    continue;
                }
            },
            Placement::Assigned(_) | Placement::Failed { .. } => continue,
        };
        match server.wanted {
            Wanted::Running => place(state, &mut plan, name, server, fence, term),
            Wanted::Stopped => {
                if let Placement::Expired(expired) = &server.placement {
                    let (server, token) = (name.clone(), expired.token);
                    plan.commands.push(Command::Settle { server, token, fence, term });
                }
            }
        }
    }
    plan
}

enum Fenced {
    Yes(FenceProof),
    In(Duration),
    Never,
}

fn fenced(observed: &Observed, now: Duration, name: &ServerName, server: &Server, expired: &Expired) -> Fenced {
    if let Some(proof) = &expired.fence {
        return Fenced::Yes(proof.clone());
    }
    let Some(grace_ms) = server.spec.grace_ms.or(expired.level.grace_ms()) else { return Fenced::Never };
    // First the copy's own deadline, then the grace for the fence to have worked.
    let wait = Duration::from_millis(expired.wait_ms + grace_ms);
    let Some(seen) = observed.expired.get(&(name.clone(), expired.token)) else { return Fenced::In(wait) };
    let due = *seen + wait;
    if now >= due { Fenced::Yes(FenceProof::Grace(grace_ms)) } else { Fenced::In(due - now) }
}

fn place(state: &State, plan: &mut Plan, name: &ServerName, server: &Server, fence: Option<FenceProof>, term: Term) {
    if let Some(why) = exhausted(state, server) {
        if let Placement::Expired(expired) = &server.placement {
            plan.commands.push(Command::Settle { server: name.clone(), token: expired.token, fence, term });
        } else {
            plan.commands.push(Command::GiveUp { server: name.clone(), why, term });
        }
        return;
    }
    let choice = choose(state, name, server);
    let place = choice.fit.first().and_then(|machine| Some((machine, state.machine(machine)?.session?)));
    let Some((machine, session)) = place else {
        let reasons: Vec<_> = choice.unfit.iter().map(|(machine, why)| format!("{machine}: {why}")).collect();
        let why = if reasons.is_empty() { "there is no machine".to_owned() } else { reasons.join("; ") };
        plan.waiting.insert(name.clone(), why);
        return;
    };
    plan.commands.push(Command::Assign(Assign {
        server: name.clone(),
        machine: machine.clone(),
        session,
        after: server.last_token,
        fence,
        cause: cause(server),
        term,
    }));
}

/// Returns why a server has used up its budget of failures in the whole cluster, if it has.
fn exhausted(state: &State, server: &Server) -> Option<String> {
    let policy = &server.spec.restart;
    let window = state.now().0.saturating_sub(policy.cluster_per_ms);
    let recent: Vec<_> = server.failures.iter().filter(|failure| failure.at.0 >= window).collect();
    if recent.len() < policy.cluster as usize || policy.cluster == 0 {
        return None;
    }
    let last = recent.last()?;
    Some(format!("it failed {} times; last on {}: {}", recent.len(), last.machine, last.why))
}

fn cause(server: &Server) -> Cause {
    match &server.placement {
        Placement::Expired(expired) => expired.cause,
        Placement::Unplaced { target: Some(_) } => Cause::Moved,
        _ => match (server.last_token, server.failures.last()) {
            (Some(token), Some(failure)) if failure.token == token => Cause::Crashed,
            _ => Cause::Started,
        },
    }
}
