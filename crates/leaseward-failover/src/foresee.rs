//! What would come of something: the same plan on a copy of the state, with machines that do as they are told.
//!
//! Must stay true: nothing is guessed: how long a step takes is what it took the last time, or is not said; how long
//! the master waits for a proof is the rule. Left out on purpose: what else may happen meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use leaseward_state::command::ServerReport;
use leaseward_state::order::Action;
use leaseward_state::server::{Cause, Certificate, Exit, Placement, Server, ServerStatus, Wanted};
use leaseward_state::{Command, Entry, Event, MachineName, Reply, ServerName, State, Term, UnixMillis};

use crate::limits::FORESEEN_ROUNDS_MAX;
use crate::plan::{Observed, plan};

/// What would become of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// The server.
    pub server: ServerName,
    /// Where it is now.
    pub from: Option<MachineName>,
    /// Where it would be.
    pub to: Option<MachineName>,
    /// From its first moment out of service until the next copy may be started, in milliseconds, at most; `None` if
    /// only a person could end the wait.
    pub wait_ms: Option<u64>,
    /// How long it would take to start, in milliseconds, as it did the last time; `None` if it never did.
    pub start_ms: Option<u64>,
    /// Why it would not run, if so.
    pub why_not: Option<String>,
}

impl Foreseen {
    /// Returns how long it would be out of service, in milliseconds, as far as that is known.
    #[must_use]
    pub fn gap_ms(&self) -> Option<u64> {
        Some(self.wait_ms? + self.start_ms?)
    }
}

/// Returns what would become of every server that would not stay as it is, if `command` were committed now, or why it
/// would be refused.
///
/// # Errors
/// The refusal, in its reply.
pub fn foresee(state: &State, command: &Command) -> Result<Vec<Foreseen>, Reply> {
    let mut copy = Copy::of(state);
    match copy.apply(command.clone()) {
        refused @ Reply::Refused(_) => Err(refused),
        _ => Ok(copy.settle(state)),
    }
}

/// Returns what would become of every server that would not stay as it is, if these machines died now without a word.
#[must_use]
pub fn foresee_deaths(state: &State, machines: &[MachineName]) -> Vec<Foreseen> {
    let mut copy = Copy::of(state);
    let sessions = machines.iter().filter_map(|machine| state.machine(machine)?.session).collect();
    copy.apply(Command::CloseSessions { sessions, term: TERM });
    copy.settle(state)
}

/// The leader's commands of the copy carry it.
const TERM: Term = Term(u64::MAX);

struct Copy {
    state: State,
    waits: BTreeMap<ServerName, Option<u64>>,
    why_not: BTreeMap<ServerName, String>,
}

impl Copy {
    fn of(state: &State) -> Self {
        Self { state: state.clone(), waits: BTreeMap::new(), why_not: BTreeMap::new() }
    }

    fn apply(&mut self, command: Command) -> Reply {
        let (revision, at, elapsed) = (self.state.revision().next(), self.state.now(), self.state.elapsed());
        self.state.apply(&Entry { revision, term: TERM, at, elapsed, request: command.into() }).reply
    }

    /// Lets the master and the machines do their work until nothing changes any more.
    fn settle(mut self, before: &State) -> Vec<Foreseen> {
        for _ in 0..FORESEEN_ROUNDS_MAX {
            let mut changed = self.machines_obey(before);
            // Every wait is over: how long it was is counted, not waited for.
            let mut observed = Observed::default();
            observed.look(&self.state, Duration::ZERO, self.state.now());
            let late = Duration::from_secs(366 * 86_400);
            let planned = plan(&self.state, &observed, late, TERM);
            self.why_not = planned.waiting;
            for command in planned.commands {
                if is_brought_by_time(&command) {
                    continue;
                }
                changed = !matches!(self.apply(command), Reply::Refused(_)) || changed;
            }
            if !changed {
                break;
            }
        }
        let names = before.servers().map(|(name, _)| name).chain(self.state.servers().map(|(name, _)| name));
        let names: std::collections::BTreeSet<_> = names.cloned().collect();
        names.into_iter().filter_map(|name| self.difference(before, &name)).collect()
    }

    /// Every machine does what it is ordered to: starts succeed, stops prove the death.
    fn machines_obey(&mut self, before: &State) -> bool {
        let machines: Vec<_> = self
            .state
            .machines()
            .filter(|(_, machine)| machine.session.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        let mut changed = false;
        for machine in machines {
            for order in self.state.orders(&machine) {
                let report = match order.action {
                    Action::Prepare { .. } => continue,
                    Action::Run { .. } if self.is_up(&order.server) => continue,
                    Action::Run { .. } => {
                        ServerReport::Status { status: ServerStatus::Running { pid: 0 }, restarts: 0 }
                    }
                    Action::Stop { grace_ms } => {
                        let took = last_stop_ms(before, &order.server).unwrap_or(grace_ms);
                        self.waits.insert(order.server.clone(), Some(took));
                        self.dead(&order)
                    }
                    Action::Kill => {
                        self.waits.insert(order.server.clone(), Some(0));
                        self.dead(&order)
                    }
                };
                let command = Command::ReportServer { server: order.server, token: order.token, report };
                changed = !matches!(self.apply(command), Reply::Refused(_)) || changed;
            }
        }
        // Those whose machine is gone wait for its last breath and the grace.
        let expired: Vec<_> = self
            .state
            .servers()
            .filter_map(|(name, server)| match &server.placement {
                Placement::Expired(expired) => Some((name.clone(), expired.clone(), server.spec.clone())),
                _ => None,
            })
            .collect();
        for (name, expired, spec) in expired {
            let ttl = before
                .machine(&expired.machine)
                .and_then(|machine| before.session(machine.session?))
                .map_or(0, |session| session.ttl_ms + session.ttl_ms.div_ceil(500));
            let grace = spec.grace_ms.or(expired.earned.grace_ms(spec.requires_fence));
            let wait = if expired.fence.is_some() { Some(0) } else { grace.map(|grace| ttl + grace) };
            self.waits.entry(name).or_insert(wait);
        }
        changed
    }

    fn dead(&self, order: &leaseward_state::order::Order) -> ServerReport {
        let certificate =
            Certificate { token: order.token, boot_id: String::new(), proven_at_boottime_ns: 0, exit: Exit::Code(0) };
        ServerReport::Dead { certificate, failure: None }
    }

    fn is_up(&self, name: &ServerName) -> bool {
        self.state.server(name).is_some_and(is_up)
    }

    fn difference(&self, before: &State, name: &ServerName) -> Option<Foreseen> {
        let (old, new) = (before.server(name), self.state.server(name));
        let place = |server: Option<&Server>| Some(server?.assignment()?.machine.clone());
        let token = |server: Option<&Server>| Some(server?.assignment()?.token);
        if old.is_some() && token(old) == token(new) && new.is_some_and(|new| is_up(new) || token(Some(new)).is_none())
        {
            return None;
        }
        let wanted = new.is_some_and(|new| new.wanted == Wanted::Running);
        let to = place(new);
        Some(Foreseen {
            server: name.clone(),
            from: place(old),
            wait_ms: self.waits.get(name).copied().unwrap_or(Some(0)),
            start_ms: last_start_ms(before, name),
            why_not: match (&to, wanted) {
                (None, true) => {
                    let failed = new.and_then(|new| match &new.placement {
                        Placement::Failed { why } => Some(why.clone()),
                        _ => None,
                    });
                    failed.or_else(|| self.why_not.get(name).cloned()).or_else(|| Some("it is not placed".to_owned()))
                }
                _ => None,
            },
            to,
        })
    }
}

/// What comes by itself, sooner or later, does not come of what is looked at.
fn is_brought_by_time(command: &Command) -> bool {
    match command {
        Command::EndPauses { .. } | Command::Quarantine { .. } => true,
        Command::Relocate { to, .. } => to.cause == Cause::FailedBack,
        _ => false,
    }
}

fn is_up(server: &Server) -> bool {
    server.assignment().is_some_and(|at| matches!(at.status, ServerStatus::Running { .. }) && at.moving.is_none())
}

/// Returns how long the last orderly stop of a server took, if the ledger remembers one.
#[must_use]
pub fn last_stop_ms(state: &State, name: &ServerName) -> Option<u64> {
    let mut began: Option<UnixMillis> = None;
    let mut took = None;
    for recorded in state.ledger() {
        match &recorded.event {
            Event::ServerReported { server, status: ServerStatus::Stopping, .. } if server == name => {
                began = Some(recorded.at);
            }
            Event::ServerStopped { server, .. } if server == name => {
                took = began.take().map(|began| recorded.at.0.saturating_sub(began.0)).or(took);
            }
            _ => {}
        }
    }
    took
}

/// Returns how long the last start of a server took, from its grant to its first good check, if the ledger remembers
/// one.
#[must_use]
pub fn last_start_ms(state: &State, name: &ServerName) -> Option<u64> {
    let mut began: Option<UnixMillis> = None;
    let mut took = None;
    for recorded in state.ledger() {
        match &recorded.event {
            Event::ServerAssigned { server, .. } if server == name => began = Some(recorded.at),
            Event::ServerReported { server, status: ServerStatus::Running { .. }, .. } if server == name => {
                took = began.take().map(|began| recorded.at.0.saturating_sub(began.0)).or(took);
            }
            _ => {}
        }
    }
    took
}
