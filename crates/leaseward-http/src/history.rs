//! The interruptions of a server, phase by phase, from the ledger.
//!
//! Must stay true: every moment is one that an entry carries, or follows from one by a rule that its text names.

use leaseward_state::event::Recorded;
use leaseward_state::server::{FenceProof, ServerStatus, Wanted};
use leaseward_state::{Event, MachineName, ServerName, State, UnixMillis};

use crate::describe::{cause_word, describe, proof};
use crate::model::{Duration, History, Incident, Phase};

/// Returns the interruptions of a server that the ledger remembers, oldest first.
pub(crate) fn of(state: &State, name: &ServerName) -> History {
    let (mut items, mut open, mut at) = (Vec::new(), None::<Open>, None::<MachineName>);
    let mut is_wanted = true;
    // What others did while its machine was not heard, and nothing was lost yet.
    let mut early: Vec<&Recorded> = Vec::new();
    for recorded in state.ledger() {
        match &recorded.event {
            Event::MachineSuspected { machine, suspected } if Some(machine) == at.as_ref() => {
                early.clear();
                early.extend(suspected.then_some(recorded));
                continue;
            }
            Event::ServerPrepared { server, .. } if server == name && open.is_none() => {
                early.push(recorded);
                continue;
            }
            _ => {}
        }
        if recorded.event.kind() != "server" || recorded.event.subject() != name.as_str() {
            continue;
        }
        match &recorded.event {
            Event::ServerWanted { wanted, .. } => {
                is_wanted = *wanted == Wanted::Running;
                open = open.take().filter(|_| is_wanted);
            }
            Event::ServerRemoved { .. } => (open, is_wanted) = (None, true),
            _ if !is_wanted => {}
            event => {
                let mut incident = open.take().or_else(|| {
                    let mut begun = Open::begin(recorded, at.as_ref())?;
                    begun.take_early(&early);
                    Some(begun)
                });
                let ended = incident.as_mut().is_some_and(|incident| incident.take(recorded));
                match incident {
                    Some(incident) if ended => items.push(incident.close(name)),
                    other => open = other,
                }
                if let Event::ServerAssigned { machine, .. } = event {
                    early.clear();
                    at = Some(machine.clone());
                }
            }
        }
    }
    items.extend(open.map(|open| open.close(name)));
    History { server: name.to_string(), revision: state.revision().into(), items }
}

struct Open {
    incident: Incident,
    began: UnixMillis,
    /// When it stopped working.
    broken: Option<UnixMillis>,
    silent_ms: Option<u64>,
    decided: Option<UnixMillis>,
    grace_ms: u64,
}

impl Open {
    /// Returns the interruption that this event begins, if it begins one.
    fn begin(recorded: &Recorded, from: Option<&MachineName>) -> Option<Self> {
        let mut began = recorded.at;
        let mut silent = None;
        let cause = match &recorded.event {
            Event::ServerExpired { silent_ms, .. } => {
                began = UnixMillis(began.0.saturating_sub(*silent_ms));
                silent = Some(*silent_ms).filter(|silent| *silent > 0);
                "machine_lost"
            }
            Event::ServerMoving { cause, .. } => cause_word(*cause),
            Event::ServerReported { status: ServerStatus::Restarting { .. }, .. } => "crashed",
            Event::ServerReported { status: ServerStatus::Unhealthy { .. }, .. } => "unhealthy",
            Event::ServerReported { status: ServerStatus::Stopping, .. } | Event::ServerStopped { .. } => "stopped",
            _ => return None,
        };
        let incident = Incident {
            revision: recorded.revision.into(),
            cause: cause.to_owned(),
            from: from.map(ToString::to_string),
            to: None,
            began: began.into(),
            ended: None,
            out_of_service: None,
            bound: None,
            took: None,
            sentence: String::new(),
            phases: Vec::new(),
        };
        let broken = (!matches!(recorded.event, Event::ServerMoving { .. })).then_some(began);
        let mut open = Self { incident, began, broken, silent_ms: silent, decided: None, grace_ms: 0 };
        if let Some(silent) = silent {
            open.phase("last_renewal", began, format!("renewed here at the latest: its time to live is {silent} ms"));
        }
        Some(open)
    }

    /// Takes in what came before it was lost, and while it was feared to be.
    fn take_early(&mut self, early: &[&Recorded]) {
        if self.silent_ms.is_none() {
            return;
        }
        for recorded in early {
            let name = match &recorded.event {
                Event::ServerPrepared { .. } => "prepared",
                _ => "suspect",
            };
            self.phase(name, recorded.at, describe(recorded).text);
        }
    }

    fn phase(&mut self, name: &str, at: UnixMillis, text: String) {
        let after = Duration::from_millis(at.0.saturating_sub(self.began.0));
        self.incident.phases.push(Phase { name: name.to_owned(), at: at.into(), after, text });
    }

    /// Takes in what happened next. Returns whether the interruption is over.
    fn take(&mut self, recorded: &Recorded) -> bool {
        let (at, text) = (recorded.at, describe(recorded).text);
        match &recorded.event {
            Event::ServerExpired { .. } => self.phase("expired", at, text),
            Event::ServerMoving { .. } => self.phase("asked", at, text),
            Event::ServerPrepared { .. } => self.phase("prepared", at, text),
            Event::ServerFenced { .. } => self.phase("fenced", at, text),
            Event::ServerStopped { .. } => {
                self.broken.get_or_insert(at);
                self.phase("stopped", at, text);
            }
            Event::ServerAssigned { machine, fence, .. } => {
                if let Some(how @ FenceProof::Grace(ms)) = fence {
                    self.grace_ms = *ms;
                    self.phase("fenced", at, format!("its copy is dead: {}", proof(how)));
                }
                self.decided.get_or_insert(at);
                self.incident.to = Some(machine.to_string());
                self.phase("decided", at, text);
            }
            Event::ServerFailed { .. } => {
                self.phase("failed", at, text);
                return true;
            }
            Event::ServerReported { status, .. } => return self.take_report(at, text, status),
            _ => {}
        }
        false
    }

    fn take_report(&mut self, at: UnixMillis, text: String, status: &ServerStatus) -> bool {
        let name = match status {
            ServerStatus::Ordered => return false,
            ServerStatus::Restarting { .. } => "crashed",
            ServerStatus::Unhealthy { .. } => "unhealthy",
            ServerStatus::Stopping => {
                self.broken.get_or_insert(at);
                "stopping"
            }
            ServerStatus::Stuck { .. } => "stuck",
            ServerStatus::Preparing { step } => {
                self.phase(step, at, text);
                return false;
            }
            ServerStatus::Starting { .. } => "exec",
            ServerStatus::Running { .. } => {
                // Before it stops, it still works.
                let Some(broken) = self.broken else { return false };
                self.phase("ready", at, text);
                self.incident.ended = Some(at.into());
                self.incident.out_of_service = Some(Duration::from_millis(at.0.saturating_sub(broken.0)));
                return true;
            }
        };
        self.phase(name, at, text);
        false
    }

    fn close(mut self, name: &ServerName) -> Incident {
        if let Some(silent) = self.silent_ms {
            self.incident.bound = Some(Duration::from_millis(silent + silent.div_ceil(500) + self.grace_ms));
            let took = self.decided.map(|decided| decided.0.saturating_sub(self.began.0));
            self.incident.took = took.map(Duration::from_millis);
        }
        let incident = &mut self.incident;
        let cause = incident.cause.replace('_', " ");
        let way = match (&incident.from, &incident.to) {
            (Some(from), Some(to)) if from != to => format!(" from {from} to {to}"),
            (_, Some(to)) => format!(" on {to}"),
            (Some(from), None) => format!(" on {from}"),
            (None, None) => String::new(),
        };
        let bound = match (incident.took, incident.bound) {
            (Some(took), Some(bound)) => format!("; placed {took} after the last sign of life, {bound} by the rules"),
            _ => String::new(),
        };
        incident.sentence = match incident.out_of_service {
            Some(gap) => format!("{name}{way}: {cause}; out of service {gap} at most{bound}"),
            None => format!("{name}{way}: {cause}; it does not work again yet{bound}"),
        };
        self.incident
    }
}
