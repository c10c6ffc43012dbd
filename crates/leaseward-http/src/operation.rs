//! Operations: what somebody asked for that takes a while, and how far it is.
//!
//! Must stay true: made from the ledger and the state alone, so that every node tells the same, a new leader goes on
//! telling it, and nothing is stored twice. An operation is named by the revision of the entry that asked for it, and
//! forgotten with that entry's events.

use leaseward_state::event::Recorded;
use leaseward_state::server::{Placement, ServerStatus, Wanted};
use leaseward_state::{Event, MachineName, Revision, ServerName, State, UnixMillis};

use crate::describe::describe;
use crate::model::{Duration, Operation, OperationPhase, OperationStep};

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb<'a> {
    Start,
    Stop,
    Move(&'a MachineName),
}

impl Verb<'_> {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Move(_) => "move",
        }
    }
}

/// How an operation ended, and why if that is not plain.
type Ended = (OperationPhase, String);

fn asked(event: &Event) -> Option<(&ServerName, Verb<'_>)> {
    match event {
        Event::ServerWanted { server, wanted: Wanted::Running } => Some((server, Verb::Start)),
        Event::ServerWanted { server, wanted: Wanted::Stopped } => Some((server, Verb::Stop)),
        Event::ServerMoving { server, to } => Some((server, Verb::Move(to))),
        _ => None,
    }
}

/// Returns an operation, if the ledger remembers it. An entry that asked for several things is named by the first.
pub(crate) fn find(state: &State, id: Revision) -> Option<Operation> {
    let before = Revision(id.0.checked_sub(1)?);
    let mut events = state.events_after(before)?.take_while(|recorded| recorded.revision == id);
    let (recorded, (server, verb)) = events.find_map(|recorded| Some((recorded, asked(&recorded.event)?)))?;
    Some(follow(state, recorded, server, verb))
}

/// Returns the ids of all operations that the ledger remembers, ascending.
pub(crate) fn ids(state: &State) -> impl Iterator<Item = Revision> {
    let mut last = Revision(0);
    state.ledger().filter(|recorded| asked(&recorded.event).is_some()).filter_map(move |recorded| {
        let is_new = recorded.revision != last;
        last = recorded.revision;
        is_new.then_some(last)
    })
}

fn follow(state: &State, request: &Recorded, server: &ServerName, verb: Verb<'_>) -> Operation {
    let later = state.events_after(request.revision).into_iter().flatten();
    let later = later.filter(|found| found.event.kind() == "server" && found.event.subject() == server.as_str());
    let mut steps = vec![step(request)];
    let mut break_began = None;
    let (mut end, mut end_at, mut worked_at) = (None, None, None);
    for found in later {
        if let Some((_, other)) = asked(&found.event) {
            if other == verb {
                continue;
            }
            end = Some((OperationPhase::Superseded, format!("superseded by op/{}", found.revision)));
            end_at = Some(found.at);
            break;
        }
        steps.push(step(found));
        if begins_break(&found.event) && break_began.is_none() {
            break_began = Some(found.at);
        }
        end = ended(verb, &found.event);
        if end.is_some() {
            end_at = Some(found.at);
            worked_at = works(&found.event).map(|_| found.at);
            break;
        }
    }
    // It may have been so all the time, or have become so without a word of its own.
    if end.is_none() && is_so(state, server, verb) {
        end = Some((OperationPhase::Done, String::new()));
    }
    let (phase, why) = end.unwrap_or((OperationPhase::Running, String::new()));
    Operation {
        id: request.revision.into(),
        verb: verb.word().to_owned(),
        server: server.to_string(),
        to: match verb {
            Verb::Move(to) => Some(to.to_string()),
            Verb::Start | Verb::Stop => None,
        },
        phase,
        sentence: sentence(server, verb, phase, &why),
        asked: request.at.into(),
        ended: end_at.or((phase != OperationPhase::Running).then_some(request.at)).map(Into::into),
        out_of_service: between(break_began, worked_at),
        steps,
    }
}

fn ended(verb: Verb<'_>, event: &Event) -> Option<Ended> {
    let done = || Some((OperationPhase::Done, String::new()));
    let failed = |why: String| Some((OperationPhase::Failed, why));
    match (verb, event) {
        (Verb::Stop, Event::ServerStopped { .. } | Event::ServerRemoved { .. }) => done(),
        (Verb::Start, event) if works(event).is_some() => done(),
        (Verb::Move(to), event) => match (works(event), event) {
            (Some(machine), _) if machine == to => done(),
            (Some(machine), _) => failed(format!("it runs on {machine}")),
            (None, Event::ServerFailed { why, .. }) => failed(why.clone()),
            (None, Event::ServerRemoved { .. }) => failed("it was forgotten".into()),
            _ => None,
        },
        (Verb::Start, Event::ServerFailed { why, .. }) => failed(why.clone()),
        (Verb::Start, Event::ServerRemoved { .. }) => failed("it was forgotten".into()),
        _ => None,
    }
}

/// Returns where a server works by now, if this is the news.
fn works(event: &Event) -> Option<&MachineName> {
    match event {
        Event::ServerReported { machine, status: ServerStatus::Running { .. }, .. } => Some(machine),
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

fn is_so(state: &State, server: &ServerName, verb: Verb<'_>) -> bool {
    let Some(found) = state.server(server) else { return verb == Verb::Stop };
    match (verb, &found.placement) {
        (Verb::Stop, Placement::Unplaced { .. } | Placement::Failed { .. }) => true,
        (Verb::Start, Placement::Assigned(at)) => {
            matches!(at.status, ServerStatus::Running { .. }) && at.moving_to.is_none()
        }
        (Verb::Move(to), Placement::Assigned(at)) => {
            matches!(at.status, ServerStatus::Running { .. }) && at.moving_to.is_none() && at.machine == *to
        }
        _ => false,
    }
}

fn sentence(server: &ServerName, verb: Verb<'_>, phase: OperationPhase, why: &str) -> String {
    let goal = match verb {
        Verb::Start => format!("{server} runs"),
        Verb::Stop => format!("{server} is stopped"),
        Verb::Move(to) => format!("{server} runs on {to}"),
    };
    match phase {
        OperationPhase::Running => format!("not yet: {goal}"),
        OperationPhase::Done => goal,
        OperationPhase::Failed => format!("not so: {goal}: {why}"),
        OperationPhase::Superseded => format!("not so: {goal}: {why}"),
    }
}

fn step(recorded: &Recorded) -> OperationStep {
    let shown = describe(recorded);
    OperationStep { revision: shown.revision, at: shown.at, text: shown.text }
}

fn between(from: Option<UnixMillis>, to: Option<UnixMillis>) -> Option<Duration> {
    Some(Duration::from_millis(to?.0.saturating_sub(from?.0)))
}
