//! Says how an object is and why: pure, from the state, its events and what the nodes answered.
//!
//! Must stay true: nothing is said that these do not show. What only the leader's clock knows (how much of a grace is
//! left) is not guessed; what a machine never reported is not made up.

use leaseward_failover::placement::{Choice, Load, choose};
use leaseward_state::lease::LeaseState;
use leaseward_state::server::{Cause, Expired, Placement, Readiness, Server, ServerStatus, Wanted};
use leaseward_state::session::Owner;
use leaseward_state::state::ConfigSet;
use leaseward_state::{LeaseName, ServerName, SetName, State};
use leaseward_sync::rollout::waits_for;

use crate::describe::{describe, proof};
use crate::limits::EXPLAINED_EVENTS;
use crate::model::{Duration, Explanation, Fact, Hint, MemberSync, Node, NodeRole, SyncPhase, Time};
use crate::view::{self, Remaining};

fn begin(state: &State, kind: &str, name: &str, sentence: String) -> Explanation {
    let concerns = |found: &(String, &'static str)| {
        (found.1 == kind && found.0 == name)
            || (found.1 == "lease" && kind == "server" && found.0 == format!("server/{name}"))
    };
    let mut events: Vec<_> = state
        .ledger()
        .rev()
        .filter(|recorded| concerns(&(recorded.event.subject(), recorded.event.kind())))
        .take(EXPLAINED_EVENTS)
        .map(describe)
        .collect();
    events.reverse();
    Explanation {
        name: format!("{kind}/{name}"),
        revision: state.revision().into(),
        sentence,
        because: Vec::new(),
        facts: Vec::new(),
        hints: Vec::new(),
        events,
    }
}

impl Explanation {
    fn because(&mut self, why: impl Into<String>) {
        self.because.push(why.into());
    }

    fn fact(&mut self, subject: impl ToString, text: impl Into<String>) {
        self.facts.push(Fact { subject: subject.to_string(), text: text.into() });
    }

    fn hint(&mut self, command: impl Into<String>, why: &str) {
        self.hints.push(Hint { command: command.into(), why: why.to_owned() });
    }
}

/// Explains a server: why it is where it is, or why it does not run.
pub(crate) fn server(state: &State, name: &ServerName, server: &Server, leader: Option<&str>) -> Explanation {
    let choice = choose(state, &Load::of(state), name, server);
    let mut says = begin(state, "server", name.as_str(), sentence(name, server, &choice));
    match &server.placement {
        Placement::Assigned(assignment) => {
            says.because(match assignment.cause {
                Cause::Started => "it was started, by an operator or for the first time",
                Cause::MachineLost => "the session of the machine where it ran before was not renewed in time",
                Cause::MachineRestarted => "the agent of its machine started again",
                Cause::Crashed => "it failed where it ran before",
                Cause::Moved => "an operator moved it",
                Cause::Restarted => "an operator restarted it",
                Cause::Drained => "the machine where it ran before was drained",
                Cause::FailedBack => "the first of its candidates was back for long enough",
                Cause::RolledBack => "it could not be started where it was moved to",
            });
            match &assignment.status {
                ServerStatus::Unhealthy { why, .. } => says.because(format!("its check says: {why}")),
                ServerStatus::Restarting { why } => says.because(format!("it ended: {why}")),
                ServerStatus::Stuck { why, .. } => says.because(why.as_str()),
                _ => {}
            }
            if assignment.restarts > 0 {
                says.because(format!("it was restarted in place {} times under this token", assignment.restarts));
            }
        }
        Placement::Unplaced { .. } if server.wanted == Wanted::Stopped => says.because("an operator wants it stopped"),
        Placement::Unplaced { .. } => unplaced(&mut says, &choice, leader),
        Placement::Expired(expired) => ended(&mut says, server, expired, leader),
        Placement::Failed { why } => says.because(why.as_str()),
    }
    suspicion(&mut says, state, server);
    if let Some(pause) = state.pause_of(server) {
        let until = pause.until.map_or_else(String::new, |until| format!(" until {}", Time::from(until)));
        says.because(format!("it is paused{until}, so it is neither restarted nor moved: {}", pause.why));
    }
    for failure in server.failures.iter().rev().take(EXPLAINED_EVENTS).rev() {
        let text = format!(
            "{} at {} under token {}, attempt {}: {}",
            if failure.machine_lost { "lost with the machine" } else { "failed" },
            Time::from(failure.at),
            failure.token,
            failure.attempt,
            failure.why
        );
        says.fact(&failure.machine, text);
    }
    places(&mut says, server, &choice);
    server_hints(&mut says, name, server, &choice);
    says
}

fn sentence(name: &ServerName, server: &Server, choice: &Choice) -> String {
    match &server.placement {
        Placement::Assigned(at) if server.wanted == Wanted::Stopped => {
            format!("{name} is being stopped on {}, where it has token {}.", at.machine, at.token)
        }
        Placement::Assigned(at) => {
            let (machine, token, since) = (&at.machine, at.token, Time::from(at.at));
            match (&at.moving, &at.status) {
                (Some(to), _) if to.machine == *machine => format!("{name} is restarted on {machine}."),
                (Some(to), _) => {
                    format!("{name} moves from {machine} to {}: it stops first, and then starts there.", to.machine)
                }
                (None, ServerStatus::Ordered) => {
                    format!("{name} was given to {machine} at {since}, token {token}; {machine} has not reported yet.")
                }
                (None, ServerStatus::Starting { pid }) => {
                    format!("{name} starts on {machine}, token {token}: process {pid} has not passed its check yet.")
                }
                (None, ServerStatus::Running { .. }) => {
                    format!("{name} runs on {machine}, which has it since {since}, token {token}.")
                }
                (None, ServerStatus::Unhealthy { .. }) => {
                    format!("{name} is UNHEALTHY on {machine}, token {token}: its process lives, and its checks fail.")
                }
                (None, ServerStatus::Restarting { .. }) => {
                    format!("{name} ended on {machine}, token {token}, and is restarted there.")
                }
                (None, ServerStatus::Stopping) => format!("{name} stops on {machine}, token {token}."),
                (None, ServerStatus::Preparing { step }) => {
                    format!("{name} is being prepared on {machine}, token {token}: {step}.")
                }
                (None, ServerStatus::Stuck { step, .. }) => {
                    format!("{name} is dead and STUCK on {machine}, token {token}: {step}.")
                }
            }
        }
        Placement::Unplaced { .. } if server.wanted == Wanted::Stopped => format!("{name} is stopped."),
        Placement::Unplaced { .. } if choice.fit.is_empty() => {
            format!("{name} should run and runs NOWHERE: no machine may take it.")
        }
        Placement::Unplaced { .. } => format!("{name} should run and runs nowhere yet."),
        Placement::Expired(expired) if expired.fence.is_some() => {
            format!("{name} does not run: its copy on {} is dead.", expired.machine)
        }
        Placement::Expired(expired) => format!(
            "{name} WAITS: the session of {} is over, and the death of the copy there is not proven yet.",
            expired.machine
        ),
        Placement::Failed { .. } => format!("{name} is FAILED and will not be tried again until you act."),
    }
}

fn unplaced(says: &mut Explanation, choice: &Choice, leader: Option<&str>) {
    match (choice.fit.first(), leader) {
        (_, None) => says.because("the node that answers knows no leader, and only a leader places it"),
        (Some(first), Some(leader)) => says.because(format!("{leader} leads and places it; {first} is first")),
        (None, Some(_)) if choice.unfit.is_empty() => says.because("there is no machine"),
        (None, Some(_)) => {}
    }
}

fn ended(says: &mut Explanation, server: &Server, expired: &Expired, leader: Option<&str>) {
    says.because(match expired.cause {
        Cause::MachineRestarted => format!("the agent of {} started again", expired.machine),
        _ => format!("the session of {} ended at revision {}", expired.machine, expired.since),
    });
    if leader.is_none() {
        says.because("the node that answers knows no leader, and only a leader places it");
    }
    if let Some(how) = &expired.fence {
        return says.because(format!("the proof that the copy is dead: {}", proof(how)));
    }
    match server.spec.grace_ms.or(expired.earned.grace_ms(server.spec.requires_fence)) {
        Some(grace) => says.because(format!(
            "without a proof the leader waits {} from when it saw that the session was over, and takes that for one",
            Duration::from_millis(expired.wait_ms + grace)
        )),
        None => says.because(format!(
            "{} has fence level {}, which has no grace, and none is set: the agent there must come back and prove it",
            expired.machine, expired.earned.level
        )),
    }
}

/// Its machine is not heard: since when, and who makes ready.
fn suspicion(says: &mut Explanation, state: &State, server: &Server) {
    let Some(at) = server.assignment() else { return };
    if let Some(since) = state.machine(&at.machine).and_then(|machine| machine.suspected) {
        says.because(format!(
            "{} is not heard since two renewals before {}; it keeps its right until its time is over",
            at.machine,
            Time::from(since)
        ));
    }
    match server.heir().map(|heir| (&heir.machine, &heir.readiness)) {
        Some((heir, Readiness::Preparing)) => says.because(format!("{heir} makes ready to take it over")),
        Some((heir, Readiness::Ready)) => says.because(format!("{heir} is ready to take it over")),
        Some((heir, Readiness::Lacking(what))) => says.because(format!("{heir} could not take it over: {what}")),
        None => {}
    }
}

/// What each machine is to the server.
fn places(says: &mut Explanation, server: &Server, choice: &Choice) {
    let runs_at = match &server.placement {
        Placement::Assigned(assignment) => Some(&assignment.machine),
        _ => None,
    };
    for machine in choice.fit.iter().filter(|machine| Some(*machine) != runs_at) {
        if !choice.unfit.contains_key(machine) {
            says.fact(machine, "could take it");
        }
    }
    for (machine, why) in choice.unfit.iter().filter(|(machine, _)| Some(*machine) != runs_at) {
        says.fact(machine, format!("may not take it: {why}"));
    }
}

fn server_hints(says: &mut Explanation, name: &ServerName, server: &Server, choice: &Choice) {
    match &server.placement {
        Placement::Failed { .. } => {
            says.hint(format!("leaseward server start {name}"), "forget its failures, try again");
        }
        Placement::Unplaced { .. } if server.wanted == Wanted::Stopped => {
            says.hint(format!("leaseward server start {name}"), "start it");
        }
        Placement::Unplaced { .. } => {
            for (machine, why) in &choice.unfit {
                if matches!(why, leaseward_failover::placement::Unfit::Cordoned(_)) {
                    says.hint(format!("leaseward machine resume {machine}"), "let it take servers again");
                }
            }
            says.hint("leaseward machine ls -o wide", "see the machines");
        }
        Placement::Expired(expired) => {
            says.hint(format!("leaseward machine get {}", expired.machine), "see whether its agent is back");
        }
        Placement::Assigned(_) => {}
    }
    says.hint(format!("leaseward events --for server/{name}"), "see what happened to it");
}

/// Explains a lease: who has it, who waits, and why nobody may have it.
pub(crate) fn lease(state: &State, remaining: &Remaining, name: &LeaseName) -> Explanation {
    let Some(found) = state.lease(name) else {
        let mut says = begin(state, "lease", name.as_str(), format!("{name} is free."));
        says.because("nobody holds it, nobody waits for it, and no delay runs");
        return says;
    };
    let shown = view::lease(state, remaining, name, found);
    let holder = shown.holder.clone().unwrap_or_default();
    let mut says = match &found.state {
        LeaseState::Held(grant) => {
            let since = Time::from(grant.at);
            let sentence = format!("{name} is held by {holder} since {since}, token {}.", grant.token);
            let mut says = begin(state, "lease", name.as_str(), sentence);
            if let Some(session) = state.session(grant.session) {
                let whose = match &session.owner {
                    Owner::Machine(machine) => format!("machine {machine}"),
                    Owner::Client(client) => format!("client {client}"),
                };
                let ttl = Duration::from_millis(session.ttl_ms);
                says.because(format!("session {} of {whose} is open; its time to live is {ttl}", session.id));
            }
            if let Some(left) = shown.remaining {
                says.because(format!("unless it is renewed, the leader ends the session in {left}"));
            }
            says
        }
        LeaseState::Delayed { token, delay_ms } => {
            let sentence = format!("{name} is held by nobody, and nobody may have it yet.");
            let mut says = begin(state, "lease", name.as_str(), sentence);
            says.because(format!("the grant with token {token} ended without being given back"));
            match delay_ms {
                0 => says.because("it is a server's: the copy that ran under it must be proven dead first"),
                delay => says.because(format!(
                    "the leader waits {} before the next one may have it",
                    Duration::from_millis(*delay)
                )),
            }
            says
        }
    };
    for (i, waiter) in found.waiters.iter().enumerate() {
        let text = format!("waits since revision {}, place {} in the queue", waiter.queued, i + 1);
        says.fact(&waiter.holder, text);
    }
    match name.as_str().strip_prefix("server/") {
        Some(server) => says.hint(format!("leaseward explain server/{server}"), "see the server that it belongs to"),
        None if found.grant().is_some() => {
            says.hint(
                format!("leaseward lease revoke {name}"),
                "take it away; the next one gets it after its holder's time",
            );
        }
        None => {}
    }
    says
}

/// Explains a node by how it and the others answered just now.
pub(crate) fn node(state: &State, nodes: &[Node], node: &Node, asked_by: &str, leader: Option<&str>) -> Explanation {
    let name = &node.name;
    let role = match node.role {
        NodeRole::Leader => "leads",
        NodeRole::Voter => "votes",
        NodeRole::Standby => "stands by: it has everything, and votes once that makes their number odd or one is lost",
        NodeRole::Learner => "learns only: it stores the log and never votes",
    };
    let sentence = match (&node.quarantined, node.up) {
        (Some(_), _) => format!("{name} runs and takes NO PART."),
        (None, true) => format!("{name} is up and {role}."),
        (None, false) => format!("{name} does NOT ANSWER."),
    };
    let mut says = begin(state, "node", name, sentence);
    match &node.quarantined {
        Some(why) => says.because(why.as_str()),
        None if !node.up => says.because(format!("{asked_by} asked it at {} just now", node.peer_address)),
        None => {}
    }
    match node.lag {
        Some(0) => says.because("it has every entry of the leader's log"),
        Some(lag) => says.because(format!("it lacks {lag} entries of the leader's log")),
        None => {}
    }
    let votes = |node: &Node| matches!(node.role, NodeRole::Leader | NodeRole::Voter);
    let voters: Vec<_> = nodes.iter().filter(|node| votes(node)).collect();
    let (all, up) = (voters.len(), voters.iter().filter(|node| node.up).count());
    says.because(format!("{up} of {all} voters answer; {} are needed to commit anything", all / 2 + 1));
    if leader.is_none() {
        says.because(format!("{asked_by} knows no leader"));
    }
    for other in nodes.iter().filter(|other| other.id != node.id) {
        let state = if other.up { "answers" } else { "does not answer" };
        let role = match other.role {
            NodeRole::Leader => "leads",
            NodeRole::Voter => "votes",
            NodeRole::Standby => "stands by",
            NodeRole::Learner => "learns only",
        };
        says.fact(&other.name, format!("{role}, {state}"));
    }
    if !node.up {
        says.hint(format!("leaseward node rm {name}"), "if it will not come back");
    }
    if !node.up && votes(node) {
        says.because(format!(
            "after {} of silence it votes no more: a standby takes its place, or the others go on alone",
            Duration::from_millis(state.policy().voter_silence_ms)
        ));
    }
    if node.quarantined.is_some() {
        says.hint("leaseward explain LW0603", "see how it takes part again");
    }
    says.hint("leaseward node ls -o wide", "see all nodes");
    says
}

/// Explains a config set: who has its newest version, and why others do not.
pub(crate) fn config(state: &State, name: &SetName) -> Option<Explanation> {
    let set = state.set(name)?;
    let members: Vec<MemberSync> =
        state.members_of(set).map(|(at, machine)| view::member(state, name, set, at, machine)).collect();
    let applied =
        members.iter().filter(|member| member.applied == set.head && member.phase == SyncPhase::Applied).count();
    let sentence = match (applied, members.len()) {
        _ if set.head == 0 => format!("{name} has no version yet."),
        (_, 0) => format!("{name} v{} has no members: no machine has the labels it asks for.", set.head),
        (applied, all) if applied == all => format!("{name} v{} is live on all {all} members.", set.head),
        (applied, all) => format!("{name} v{} is live on {applied} of {all} members.", set.head),
    };
    let mut says = begin(state, "config", name.as_str(), sentence);
    if let Some(newest) = set.newest() {
        let message = if newest.message.is_empty() { String::new() } else { format!(" (\"{}\")", newest.message) };
        says.because(format!("{} published v{} at {}{message}", newest.author, newest.number, Time::from(newest.at)));
    }
    if let Some(rollout) = &set.rollout {
        let (turn, all) = (rollout.released.len(), members.len());
        says.because(format!("v{} goes round: it was the turn of {turn} of {all} members so far", rollout.version));
        if let Some(why) = &rollout.halted {
            says.because(format!("it stands still: {why}"));
            says.hint(format!("leaseward config rollout {name} resume"), "pass over the members that failed");
            says.hint(format!("leaseward config rollout {name} abort"), "take everybody back");
        } else {
            for machine in waits_for(state, name, set, rollout) {
                if state.machine(&machine).is_some_and(|machine| machine.session.is_some()) {
                    says.because(format!("it waits for {machine}"));
                } else {
                    says.because(format!("its canary {machine} was lost after its turn, so nobody follows it"));
                    says.hint(format!("leaseward config rollout {name} finish"), "go on without it");
                    says.hint(format!("leaseward config rollout {name} abort"), "take everybody back");
                }
            }
        }
    }
    for (machine, pin) in &set.pins {
        let who = machine.as_ref().map_or("every member".to_owned(), ToString::to_string);
        let place = pin.version.map_or("what it has".to_owned(), |version| format!("v{version}"));
        says.because(format!("{} keeps {who} at {place}: {}", pin.by, pin.why));
    }
    for member in members.iter().filter(|member| member.phase != SyncPhase::Applied) {
        says.fact(&member.machine, member_text(member));
    }
    for (session, sync) in state.programs_of(name) {
        let program = view::program(state, set, session, sync);
        if let (Some(version), Some(why)) = (program.version, &program.why) {
            says.fact(&program.name, format!("a program, works with v{}; rejected v{version}: {why}", program.applied));
        }
    }
    if let Some(good) = accepted_before(set, &members) {
        says.hint(format!("leaseward config rollback {name} --to {good}"), "go back to what was accepted before");
    }
    says.hint(format!("leaseward config monitor {name}"), "see every member");
    Some(says)
}

/// Returns the newest version that members who refuse one have live instead, if it can be brought back: none in between was
/// accepted by them.
fn accepted_before(set: &ConfigSet, members: &[MemberSync]) -> Option<u64> {
    let refusing = members.iter().filter(|member| member.phase == SyncPhase::Rejected);
    let is_good =
        |version: &u64| *version < set.head && set.versions.contains_key(version) && !set.bad.contains_key(version);
    refusing.map(|member| member.applied).filter(is_good).max()
}

fn member_text(member: &MemberSync) -> String {
    let version = member.version.map_or_else(String::new, |version| format!(" v{version}"));
    let gone = if member.connected { "" } else { "; its agent is not connected" };
    let applied = match member.applied {
        0 => "none is live".to_owned(),
        applied => format!("v{applied} is live"),
    };
    if let Some(running) = &member.running {
        let (what, command, timeout) = (&running.what, &running.command, running.timeout);
        return format!(
            "runs the {what} of{version} for {} by now ({timeout} at most): {command}; {applied}{gone}",
            running.lasting
        );
    }
    let text = match member.phase {
        SyncPhase::Behind if member.at.is_none() => "never reported".to_owned(),
        SyncPhase::Behind => "is behind".into(),
        SyncPhase::Fetching => format!("fetches{version}"),
        SyncPhase::OnDisk => format!("has{version} on disk and not yet live"),
        SyncPhase::Applied => "applied".into(),
        SyncPhase::Rejected => format!("rejected{version}: {}", member.why.as_deref().unwrap_or("it did not say why")),
        SyncPhase::Drifted => format!("was changed by hand: {}", member.why.as_deref().unwrap_or_default()),
        SyncPhase::Draining => "leaves the load balancer first".into(),
        SyncPhase::Disabled => "an operator took it out".into(),
    };
    format!("{text}; {applied}{gone}")
}
