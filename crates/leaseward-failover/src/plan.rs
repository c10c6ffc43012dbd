//! What the master should propose now. Pure: values in, decisions and the next time to look out.
//!
//! Must stay true: nothing is placed before the death of its last copy is proven, or its machine's session has been
//! over for the whole grace on this master's own clock, counted from when it saw that; a new master counts anew.
//! Brakes only make it wait longer. `care.rs` is what it does for servers that run.

mod care;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaseward_state::command::Assign;
use leaseward_state::server::{Cause, Expired, FenceProof, Placement, Server, Wanted};
use leaseward_state::{Command, FencingToken, MachineName, ServerName, State, Term, UnixMillis};

use crate::limits::BRAKE_WINDOW;
use crate::placement::{Load, choose};

/// What the master saw with its own clock, in its present reign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// When it first saw that an assignment was over.
    pub expired: BTreeMap<(ServerName, FencingToken), Duration>,
    /// Since when a server could return to the first of its candidates.
    pub could_return: BTreeMap<ServerName, (MachineName, Duration)>,
    /// Its wall clock: for what people gave a time of day.
    pub wall: UnixMillis,
}

impl Observed {
    /// Notes what is new in the state, and forgets what is over.
    pub fn look(&mut self, state: &State, now: Duration, wall: UnixMillis) {
        // The state's own time may be ahead, if the leader before had a faster wall clock.
        self.wall = wall.max(state.now());
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
        care::look(self, state, now);
    }
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order: the most important servers first.
    pub commands: Vec<Command>,
    /// Look again after this, even if nothing changes.
    pub again: Option<Duration>,
    /// Why servers that should run are not placed, or not moved, by name.
    pub waiting: BTreeMap<ServerName, String>,
}

impl Plan {
    fn look_again(&mut self, after: Duration) {
        self.again = Some(self.again.map_or(after, |again| again.min(after)));
    }
}

/// Returns what to do now.
#[must_use]
pub fn plan(state: &State, observed: &Observed, now: Duration, term: Term) -> Plan {
    let mut plan = Plan::default();
    let mut load = Load::of(state);
    care::ends(state, observed, &mut plan, term);
    care::quarantine(state, observed, &mut plan, term);
    let brake = brake(state, observed, now);
    let mut servers: Vec<_> = state.servers().collect();
    // Higher priority first, then names, so that every member plans alike.
    servers.sort_by_key(|(name, server)| (-i64::from(server.spec.priority), (*name).clone()));
    for (name, server) in servers {
        let fence = match &server.placement {
            Placement::Unplaced { .. } => None,
            Placement::Expired(expired) => match fenced(observed, now, name, server, expired) {
                Fenced::Yes(proof) => Some(proof),
                Fenced::In(left) => {
                    plan.look_again(left);
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
            Placement::Assigned(assignment) => {
                care::of_assigned(state, observed, &mut load, &mut plan, name, server, assignment, now, term);
                continue;
            }
            Placement::Failed { .. } => continue,
        };
        match server.wanted {
            Wanted::Running => {
                if let Some(pause) = state.pause_of(server) {
                    plan.waiting.insert(name.clone(), format!("paused: {}", pause.why));
                    continue;
                }
                if let (Some((why, left)), Placement::Expired(_)) = (&brake, &server.placement) {
                    plan.look_again(*left);
                    plan.waiting.insert(name.clone(), why.clone());
                    continue;
                }
                place(state, &mut load, &mut plan, name, server, fence, term);
            }
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
    let Some(grace_ms) = server.spec.grace_ms.or(expired.earned.grace_ms(server.spec.requires_fence)) else {
        return Fenced::Never;
    };
    // First the copy's own deadline, then the grace for the fence to have worked.
    let wait = Duration::from_millis(expired.wait_ms + grace_ms);
    let Some(seen) = observed.expired.get(&(name.clone(), expired.token)) else { return Fenced::In(wait) };
    let due = *seen + wait;
    if now >= due { Fenced::Yes(FenceProof::Grace(grace_ms)) } else { Fenced::In(due - now) }
}

/// Many machines that are lost at once are more likely a fault of the network than of the machines: what is moved now
/// may be moved for nothing. So the master waits once for them to come back.
fn brake(state: &State, observed: &Observed, now: Duration) -> Option<(String, Duration)> {
    let policy = state.policy();
    let mut lost: BTreeMap<&MachineName, Duration> = BTreeMap::new();
    for ((name, token), seen) in &observed.expired {
        if let Some(Placement::Expired(expired)) = state.server(name).map(|server| &server.placement)
            && expired.token == *token
            && expired.cause == Cause::MachineLost
            && state.machine(&expired.machine).is_some_and(|machine| machine.session.is_none())
        {
            lost.entry(&expired.machine).or_insert(*seen);
        }
    }
    let newest = *lost.values().max()?;
    let together: BTreeSet<_> =
        lost.iter().filter(|(_, seen)| newest.saturating_sub(**seen) <= BRAKE_WINDOW).map(|(name, _)| *name).collect();
    let all = state.machines().count();
    if together.len() <= 2.max(all * policy.brake_percent as usize / 100) {
        return None;
    }
    let left = (newest + Duration::from_millis(policy.brake_ms)).checked_sub(now).filter(|left| !left.is_zero())?;
    let count = together.len();
    Some((format!("{count} of {all} machines were lost at once: {} ms for them to come back", left.as_millis()), left))
}

fn place(
    state: &State,
    load: &mut Load,
    plan: &mut Plan,
    name: &ServerName,
    server: &Server,
    fence: Option<FenceProof>,
    term: Term,
) {
    if let Some(why) = exhausted(state, server).or_else(|| poison(state, server)) {
        if let Placement::Expired(expired) = &server.placement {
            plan.commands.push(Command::Settle { server: name.clone(), token: expired.token, fence, term });
        } else {
            plan.commands.push(Command::GiveUp { server: name.clone(), why, term });
        }
        return;
    }
    let most = state.policy().concurrent_starts;
    if most > 0 && load.starting_besides(name) >= most {
        plan.waiting.insert(name.clone(), format!("{most} servers are on their way up, as many as may be at a time"));
        return;
    }
    let choice = choose(state, load, name, server);
    let place = choice.fit.first().and_then(|machine| Some((machine, state.machine(machine)?.session?)));
    let Some((machine, session)) = place else {
        let reasons: Vec<_> = choice.unfit.iter().map(|(machine, why)| format!("{machine}: {why}")).collect();
        let why = if reasons.is_empty() { "there is no machine".to_owned() } else { reasons.join("; ") };
        plan.waiting.insert(name.clone(), why);
        return;
    };
    load.give(machine, name, server);
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
    let recent: Vec<_> =
        server.failures.iter().filter(|failure| failure.at.0 >= window && !failure.machine_lost).collect();
    if recent.len() < policy.cluster as usize || policy.cluster == 0 {
        return None;
    }
    let last = recent.last()?;
    Some(format!("it failed {} times; last on {}: {}", recent.len(), last.machine, last.why))
}

/// Returns why a server counts as poison: machine after machine was lost soon after it was placed there.
fn poison(state: &State, server: &Server) -> Option<String> {
    let most = state.policy().poison_after as usize;
    let window = state.now().0.saturating_sub(server.spec.restart.cluster_per_ms);
    let recent = server.failures.iter().rev().take_while(|failure| failure.at.0 >= window);
    let in_a_row: Vec<_> = recent.take_while(|failure| failure.machine_lost).collect();
    let machines: BTreeSet<_> = in_a_row.iter().map(|failure| failure.machine.as_str()).collect();
    if most == 0 || machines.len() < most {
        return None;
    }
    let machines: Vec<_> = machines.into_iter().collect();
    Some(format!("poison: {} were lost one after the other, each soon after it was placed there", machines.join(", ")))
}

fn cause(server: &Server) -> Cause {
    match &server.placement {
        Placement::Expired(expired) => expired.cause,
        Placement::Unplaced { next: Some(next) } => next.cause,
        _ => match (server.last_token, server.failures.last()) {
            (Some(token), Some(failure)) if failure.token == token => Cause::Crashed,
            _ => Cause::Started,
        },
    }
}
