//! Operations: what somebody asked for that takes a while, and how far it is.
//!
//! Must stay true: made from the ledger and the state alone, so that every node tells the same, a new leader goes on
//! telling it, and nothing is stored twice. An operation is named by the revision of the entry that asked for it, and
//! forgotten with that entry's events.

use leaseward_state::event::Recorded;
use leaseward_state::server::{Cause, Placement, ServerStatus, Wanted};
use leaseward_state::{Event, MachineName, Revision, ServerName, State, UnixMillis};

use crate::describe::describe;
use crate::model::{Duration, Operation, OperationPhase, OperationStep};

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked<'a> {
    Start(&'a ServerName),
    Stop(&'a ServerName),
    Move(&'a ServerName, &'a MachineName),
    Restart(&'a ServerName, &'a MachineName),
    Drain(&'a MachineName),
}

/// How an operation ended, and why if that is not plain.
type Ended = (OperationPhase, String);

impl<'a> Asked<'a> {
    fn of(event: &'a Event) -> Option<Self> {
        match event {
            Event::ServerWanted { server, wanted: Wanted::Running } => Some(Self::Start(server)),
            Event::ServerWanted { server, wanted: Wanted::Stopped } => Some(Self::Stop(server)),
            Event::ServerMoving { server, to, cause: Cause::Moved } => Some(Self::Move(server, to)),
            Event::ServerMoving { server, to, cause: Cause::Restarted } => Some(Self::Restart(server, to)),
            Event::MachineCordoned { machine, cordon: Some(cordon) } if cordon.drains => Some(Self::Drain(machine)),
            _ => None,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Stop(_) => "stop",
            Self::Move(..) => "move",
            Self::Restart(..) => "restart",
            Self::Drain(_) => "drain",
        }
    }

    fn server(self) -> Option<&'a ServerName> {
        match self {
            Self::Start(server) | Self::Stop(server) | Self::Move(server, _) | Self::Restart(server, _) => Some(server),
            Self::Drain(_) => None,
        }
    }

    /// What should be so in the end.
    fn goal(self) -> String {
        match self {
            Self::Start(server) => format!("{server} runs"),
            Self::Stop(server) => format!("{server} is stopped"),
            Self::Move(server, to) => format!("{server} runs on {to}"),
            Self::Restart(server, to) => format!("{server} runs again on {to}"),
            Self::Drain(machine) => format!("{machine} runs no server"),
        }
    }
}

/// Returns an operation, if the ledger remembers it. An entry that asked for several things is named by the first.
pub(crate) fn find(state: &State, id: Revision) -> Option<Operation> {
    let before = Revision(id.0.checked_sub(1)?);
    let mut events = state.events_after(before)?.take_while(|recorded| recorded.revision == id);
    let (request, asked) = events.find_map(|recorded| Some((recorded, Asked::of(&recorded.event)?)))?;
    let mut story = Story { steps: vec![step(request)], ..Story::default() };
    for recorded in state.events_after(id)? {
        if story.end.is_some() {
            break;
        }
        match asked.server() {
            Some(server) => story.of_server(asked, server, id, recorded),
            None => story.of_drain(asked, recorded),
        }
    }
    // It may have been so all the time, or have become so without a word of its own.
    if story.end.is_none() && is_so(state, asked) {
        story.end = Some((OperationPhase::Done, String::new()));
    }
    let (phase, why) = story.end.unwrap_or((OperationPhase::Running, String::new()));
    let ended = story.end_at.or((phase != OperationPhase::Running).then_some(request.at));
    Some(Operation {
        id: id.into(),
        verb: asked.verb().to_owned(),
        subject: format!("{}/{}", request.event.kind(), request.event.subject()),
        to: match asked {
            Asked::Move(_, to) => Some(to.to_string()),
            _ => None,
        },
        phase,
        sentence: match phase {
            OperationPhase::Running => format!("not yet: {}", asked.goal()),
            OperationPhase::Done => asked.goal(),
            OperationPhase::Failed | OperationPhase::Superseded => format!("not so: {}: {why}", asked.goal()),
        },
        asked: request.at.into(),
        ended: ended.map(Into::into),
        out_of_service: between(story.break_began, story.worked_at),
        steps: story.steps,
    })
}

/// Returns whether an operation goes on. What is as it was asked to be is not looked at any further.
pub(crate) fn runs(state: &State, id: Revision) -> bool {
    let Some(kept) = id.0.checked_sub(1).and_then(|before| state.events_after(Revision(before))) else { return false };
    let asked = kept.take_while(|recorded| recorded.revision == id).find_map(|recorded| Asked::of(&recorded.event));
    asked.is_some_and(|asked| !is_so(state, asked))
        && find(state, id).is_some_and(|operation| operation.phase == OperationPhase::Running)
}

/// Returns the ids of all operations that the ledger remembers, ascending.
pub(crate) fn ids(state: &State) -> impl Iterator<Item = Revision> {
    let mut last = Revision(0);
    state.ledger().filter(|recorded| Asked::of(&recorded.event).is_some()).filter_map(move |recorded| {
        let is_new = recorded.revision != last;
        last = recorded.revision;
        is_new.then_some(last)
    })
}

/// What happened since.
#[derive(Default)]
struct Story {
    steps: Vec<OperationStep>,
    end: Option<Ended>,
    end_at: Option<UnixMillis>,
    break_began: Option<UnixMillis>,
    worked_at: Option<UnixMillis>,
    leaving: Vec<ServerName>,
}

impl Story {
    fn ends(&mut self, recorded: &Recorded, end: Ended) {
        (self.end, self.end_at) = (Some(end), Some(recorded.at));
    }

    fn of_server(&mut self, asked: Asked<'_>, server: &ServerName, id: Revision, recorded: &Recorded) {
        let event = &recorded.event;
        if event.kind() != "server" || event.subject() != server.as_str() {
            return;
        }
        if let Some(other) = Asked::of(event) {
            if other != asked {
                self.ends(recorded, (OperationPhase::Superseded, format!("superseded by op/{}", recorded.revision)));
            }
            return;
        }
        self.steps.push(step(recorded));
        if begins_break(event) && self.break_began.is_none() {
            self.break_began = Some(recorded.at);
        }
        if let Some(end) = ended(asked, id, event) {
            self.ends(recorded, end);
            self.worked_at = works(event).map(|_| recorded.at);
        }
    }

    /// The servers that the master moves off the machine, whatever becomes of them.
    fn of_drain(&mut self, asked: Asked<'_>, recorded: &Recorded) {
        let Asked::Drain(machine) = asked else { return };
        match &recorded.event {
            Event::MachineCordoned { machine: other, .. }
                if other == machine && Asked::of(&recorded.event) != Some(asked) =>
            {
                self.ends(
                    recorded,
                    (OperationPhase::Superseded, "it takes servers again, or is cordoned otherwise".into()),
                );
            }
            Event::ServerMoving { server, cause: Cause::Drained, .. } => {
                self.leaving.push(server.clone());
                self.steps.push(step(recorded));
            }
            event
                if event.kind() == "server" && self.leaving.iter().any(|server| server.as_str() == event.subject()) =>
            {
                self.steps.push(step(recorded));
                self.end_at = Some(recorded.at);
            }
            _ => {}
        }
    }
}

fn ended(asked: Asked<'_>, id: Revision, event: &Event) -> Option<Ended> {
    let done = || Some((OperationPhase::Done, String::new()));
    let failed = |why: String| Some((OperationPhase::Failed, why));
    match (asked, event) {
        (Asked::Stop(_), Event::ServerStopped { .. } | Event::ServerRemoved { .. }) => done(),
        (Asked::Start(_), event) if works(event).is_some() => done(),
        (Asked::Move(_, to) | Asked::Restart(_, to), event) if works(event).is_some_and(|at| at.1 > id) => {
            match works(event) {
                Some((machine, _)) if machine != to => failed(format!("it runs on {machine}")),
                _ => done(),
            }
        }
        (Asked::Stop(_), _) => None,
        (_, Event::ServerFailed { why, .. }) => failed(why.clone()),
        (_, Event::ServerRemoved { .. }) => failed("it was forgotten".into()),
        _ => None,
    }
}

/// Returns where a server works by now, and since which grant, if this is the news.
fn works(event: &Event) -> Option<(&MachineName, Revision)> {
    match event {
        Event::ServerReported { machine, token, status: ServerStatus::Running { .. }, .. } => {
            Some((machine, token.revision()))
        }
        _ => None,
    }
}

/// Whether clients can no longer rely on a server from here on.
fn begins_break(event: &Event) -> bool {
    matches!(
        event,
        Event::ServerReported { status: ServerStatus::Stopping | ServerStatus::Restarting { .. }, .. }
            | Event::ServerStopped { .. }
            | Event::ServerExpired { .. }
    )
}

fn is_so(state: &State, asked: Asked<'_>) -> bool {
    let placement = |server: &ServerName| state.server(server).map(|found| &found.placement);
    let runs = |server: &ServerName| match placement(server) {
        Some(Placement::Assigned(at)) if matches!(at.status, ServerStatus::Running { .. }) && at.moving.is_none() => {
            Some(at.machine.clone())
        }
        _ => None,
    };
    match asked {
        Asked::Start(server) => runs(server).is_some(),
        Asked::Stop(server) => {
            matches!(placement(server), None | Some(Placement::Unplaced { .. } | Placement::Failed { .. }))
        }
        Asked::Move(server, to) | Asked::Restart(server, to) => runs(server).as_ref() == Some(to),
        Asked::Drain(machine) => !state.servers().any(|(_, server)| match &server.placement {
            Placement::Assigned(at) => at.machine == *machine || (at.cause == Cause::Drained && !at.ready),
            Placement::Expired(expired) => expired.machine == *machine,
            Placement::Unplaced { next } => next.as_ref().is_some_and(|next| next.cause == Cause::Drained),
            Placement::Failed { .. } => false,
        }),
    }
}

fn step(recorded: &Recorded) -> OperationStep {
    let shown = describe(recorded);
    OperationStep { revision: shown.revision, at: shown.at, text: shown.text }
}

fn between(from: Option<UnixMillis>, to: Option<UnixMillis>) -> Option<Duration> {
    Some(Duration::from_millis(to?.0.saturating_sub(from?.0)))
}
