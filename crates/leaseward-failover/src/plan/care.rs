//! What the master does for servers that run, and for machines: drain, fail back, quarantine, end what was to end.
//!
//! Must stay true: a server that runs is moved only if another machine could take it now, one at a time off each
//! machine, and never while it is paused.

use std::time::Duration;

use leaseward_state::machine::{Cordon, Machine};
use leaseward_state::server::{Assignment, Cause, Destination, Failback, Heir, Placement, Readiness, Server, Wanted};
use leaseward_state::{Command, MachineName, ServerName, State, Term, UnixMillis};

use super::{Observed, Plan};
use crate::limits::{CLOCK_AGAIN, QUARANTINED_PERCENT_MAX};
use crate::placement::{Load, candidates, choose};

/// Notes since when servers could return.
pub(super) fn look(observed: &mut Observed, state: &State, now: Duration) {
    let load = Load::of(state);
    let could: Vec<_> = state
        .servers()
        .filter(|(_, server)| matches!(server.spec.failback, Failback::AutoAfter(_)))
        .filter_map(|(name, server)| Some((name.clone(), better_place(state, &load, name, server)?)))
        .collect();
    observed.could_return.retain(|name, (machine, _)| could.iter().any(|(other, to)| other == name && to == machine));
    for (name, machine) in could {
        observed.could_return.entry(name).or_insert((machine, now));
    }
}

/// Returns the machine that comes before the server's own in its list and could take it now.
#[must_use]
pub(super) fn better_place(state: &State, load: &Load, name: &ServerName, server: &Server) -> Option<MachineName> {
    let assignment = server.assignment().filter(|assignment| assignment.ready && assignment.moving.is_none())?;
    let list = candidates(state, server)?;
    let first = list.first().filter(|first| **first != assignment.machine)?;
    // Where it failed lately it does not go without need: each try would cost it a piece of its budget.
    let window = state.now().0.saturating_sub(server.spec.restart.cluster_per_ms);
    if server
        .failures
        .iter()
        .any(|failure| failure.machine == *first && failure.at.0 >= window && !failure.machine_lost)
    {
        return None;
    }
    choose(state, load, name, server).fit.contains(first).then(|| first.clone())
}

/// Ends cordons, pauses and maintenance whose time is over.
pub(super) fn ends(state: &State, observed: &Observed, plan: &mut Plan, term: Term) {
    let cordons = state.machines().filter_map(|(_, machine)| machine.cordoned.as_ref()?.until);
    let pauses = state.servers().filter_map(|(_, server)| server.paused.as_ref()?.until);
    let all = cordons.chain(pauses).chain(state.policy().maintenance.as_ref().and_then(|pause| pause.until));
    let Some(next) = all.min() else { return };
    match next.0.checked_sub(observed.wall.0).filter(|left| *left > 0) {
        // A wall clock may be set: it is looked at again and again.
        Some(left) => plan.look_again(Duration::from_millis(left).min(CLOCK_AGAIN)),
        None => plan.commands.push(Command::EndPauses { term }),
    }
}

/// Keeps new servers away from machines that were lost too often.
pub(super) fn quarantine(state: &State, observed: &Observed, plan: &mut Plan, term: Term) {
    let policy = state.policy();
    if policy.quarantine_losses == 0 {
        return;
    }
    let window = observed.wall.0.saturating_sub(policy.quarantine_window_ms);
    let losses = |machine: &Machine| machine.losses.iter().filter(|at| at.0 >= window).count();
    let is_quarantined = |machine: &Machine| machine.cordoned.as_ref().is_some_and(|cordon| cordon.quarantine);
    let all = state.machines().count();
    let mut quarantined = state.machines().filter(|(_, machine)| is_quarantined(machine)).count();
    for (name, machine) in state.machines() {
        let times = losses(machine);
        if machine.cordoned.is_some() || times < policy.quarantine_losses as usize {
            continue;
        }
        // Where many machines are lost, the fault is elsewhere, and the rest is needed.
        if (quarantined + 1) * 100 > all * QUARANTINED_PERCENT_MAX {
            continue;
        }
        quarantined += 1;
        let cordon = Cordon {
            why: format!("quarantine: lost {times} times within {} min", policy.quarantine_window_ms / 60_000),
            drains: false,
            quarantine: true,
            until: Some(UnixMillis(observed.wall.0 + policy.quarantine_ms)),
        };
        plan.commands.push(Command::Quarantine { machine: name.clone(), cordon, term });
    }
}

/// Its machine is not heard: whoever would get the server makes ready, while the old copy's time runs out.
fn prepare(
    state: &State,
    load: &mut Load,
    plan: &mut Plan,
    name: &ServerName,
    server: &Server,
    assignment: &Assignment,
    term: Term,
) {
    if !server.spec.migrates {
        return;
    }
    let choice = choose(state, load, name, server);
    let known = server.heir();
    let stays = |heir: &Heir| heir.readiness != Readiness::Preparing || choice.fit.contains(&heir.machine);
    if known.is_some_and(stays) {
        return;
    }
    let Some(machine) = choice.fit.first().filter(|machine| **machine != assignment.machine) else { return };
    load.give(machine, name, server);
    let (server, token, machine) = (name.clone(), assignment.token, machine.clone());
    plan.commands.push(Command::Prepare { server, token, machine, term });
}

/// Moves a server that runs, if it should be elsewhere.
#[expect(clippy::too_many_arguments, reason = "the whole of what a plan looks at")]
pub(super) fn of_assigned(
    state: &State,
    observed: &Observed,
    load: &mut Load,
    plan: &mut Plan,
    name: &ServerName,
    server: &Server,
    assignment: &Assignment,
    now: Duration,
    term: Term,
) {
    if server.wanted != Wanted::Running || assignment.moving.is_some() || state.pause_of(server).is_some() {
        return;
    }
    if state.machine(&assignment.machine).is_some_and(|machine| machine.suspected.is_some()) {
        prepare(state, load, plan, name, server, assignment, term);
        return;
    }
    let relocate = |machine: MachineName, cause: Cause| {
        let to = Destination {
            machine,
            cause,
            back_to: Some(assignment.machine.clone()).filter(|_| cause == Cause::FailedBack),
        };
        Command::Relocate { server: name.clone(), token: assignment.token, to, term }
    };
    let draining = state.machine(&assignment.machine).and_then(|machine| machine.cordoned.as_ref());
    if let Some(cordon) = draining.filter(|cordon| cordon.drains) {
        let under_way = is_leaving(state, &assignment.machine) || plan_moves_from(state, plan, &assignment.machine);
        let choice = choose(state, load, name, server);
        match choice.fit.first() {
            _ if !server.spec.migrates => {
                plan.waiting.insert(name.clone(), "it does not migrate by itself: move or stop it".into());
            }
            _ if under_way => {
                plan.waiting.insert(name.clone(), format!("another one leaves {} first", assignment.machine));
            }
            Some(to) => {
                load.give(to, name, server);
                plan.commands.push(relocate(to.clone(), Cause::Drained));
            }
            None => {
                let reasons: Vec<_> = choice.unfit.iter().map(|(machine, why)| format!("{machine}: {why}")).collect();
                let why = format!("stays on {} ({}): {}", assignment.machine, cordon.why, reasons.join("; "));
                plan.waiting.insert(name.clone(), why);
            }
        }
        return;
    }
    let Failback::AutoAfter(stable_ms) = server.spec.failback else { return };
    let Some((to, since)) = observed.could_return.get(name) else { return };
    let due = *since + Duration::from_millis(stable_ms);
    if now >= due {
        load.give(to, name, server);
        plan.commands.push(relocate(to.clone(), Cause::FailedBack));
    } else {
        plan.look_again(due - now);
    }
}

/// Whether a server is on its way off a draining machine: it stops there, or is not up elsewhere yet.
fn is_leaving(state: &State, machine: &MachineName) -> bool {
    state.servers().any(|(_, server)| match &server.placement {
        Placement::Assigned(at) if at.machine == *machine => at.moving.is_some(),
        Placement::Assigned(at) => at.cause == Cause::Drained && !at.ready,
        Placement::Unplaced { next: Some(next) } => {
            next.cause == Cause::Drained && server.last_machine.as_ref() == Some(machine)
        }
        _ => false,
    })
}

fn plan_moves_from(state: &State, plan: &Plan, machine: &MachineName) -> bool {
    plan.commands.iter().any(|command| match command {
        Command::Relocate { server, .. } => {
            let at = state.server(server).and_then(Server::assignment);
            at.is_some_and(|at| at.machine == *machine)
        }
        _ => false,
    })
}
