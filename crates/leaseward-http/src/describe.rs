//! What happened, in words for people and in data for programs.

use leaseward_state::Event;
use leaseward_state::config::SyncState;
use leaseward_state::event::Recorded;
use leaseward_state::lease::GrantEnd;
use leaseward_state::server::{Cause, FenceProof};
use leaseward_state::session::{Owner, SessionEnd};
use serde_json::{Value, json};

use crate::model::EventRecord;
use crate::view;

/// Returns an event as the API shows it.
#[must_use]
pub fn describe(recorded: &Recorded) -> EventRecord {
    let (text, data) = match &recorded.event {
        Event::SessionOpened { .. } | Event::SessionEnded { .. } => of_session(&recorded.event),
        Event::LeaseGranted { .. } | Event::LeaseEnded { .. } | Event::LeaseQueued { .. } => of_lease(&recorded.event),
        Event::SetPublished { .. } | Event::SetRemoved { .. } | Event::SyncReported { .. } => of_set(&recorded.event),
        Event::MachineCordoned { machine, reason } => (
            reason
                .as_ref()
                .map_or_else(|| format!("{machine} takes servers again"), |why| format!("{machine} cordoned: {why}")),
            json!({ "event": "cordoned", "reason": reason }),
        ),
        Event::MachineRemoved { machine } => (format!("{machine} forgotten"), json!({ "event": "removed" })),
        Event::FeatureLevelRaised { level } => {
            (format!("the feature level is {level}"), json!({ "event": "feature_level_raised", "level": level }))
        }
        other => of_server(other),
    };
    EventRecord {
        revision: recorded.revision.into(),
        part: recorded.part,
        at: recorded.at.into(),
        kind: recorded.event.kind().to_owned(),
        subject: recorded.event.subject(),
        text,
        data,
    }
}

fn owner(owner: &Owner) -> String {
    match owner {
        Owner::Machine(machine) => format!("machine {machine}"),
        Owner::Client(name) => format!("client {name}"),
    }
}

fn of_session(event: &Event) -> (String, Value) {
    match event {
        Event::SessionOpened { session, owner: whose } => (
            format!("session {session} of {} opened", owner(whose)),
            json!({ "event": "opened", "owner": whose.name() }),
        ),
        Event::SessionEnded { session, owner: whose, why } => {
            let (word, text) = match why {
                SessionEnd::Ended => ("ended", "ended by its owner"),
                SessionEnd::Expired => ("expired", "not renewed in time"),
                SessionEnd::Superseded => ("superseded", "superseded by a new run of its agent"),
            };
            let text = format!("session {session} of {}: {text}", owner(whose));
            (text, json!({ "event": "ended", "owner": whose.name(), "why": word }))
        }
        _ => Default::default(),
    }
}

fn of_lease(event: &Event) -> (String, Value) {
    match event {
        Event::LeaseGranted { lease, token, session, holder } => (
            format!("{lease} granted to {holder}, token {token}"),
            json!({
                "event": "granted", "token": token.to_string(), "session": session.to_string(), "holder": holder,
            }),
        ),
        Event::LeaseEnded { lease, token, why } => {
            let why = match why {
                GrantEnd::Released => "released",
                GrantEnd::Expired => "expired",
                GrantEnd::Revoked => "revoked",
                GrantEnd::Superseded => "superseded",
            };
            let text = format!("{lease} {why}, token {token} is over");
            (text, json!({ "event": "ended", "token": token.to_string(), "why": why }))
        }
        Event::LeaseQueued { lease, holder } => {
            (format!("{holder} waits for {lease}"), json!({ "event": "queued", "holder": holder }))
        }
        _ => Default::default(),
    }
}

fn of_set(event: &Event) -> (String, Value) {
    match event {
        Event::SetPublished { set, version, author, message } => (
            format!("{set} v{version} published by {author}: {message}"),
            json!({ "event": "published", "version": version, "author": author, "message": message }),
        ),
        Event::SetRemoved { set } => (format!("{set} forgotten"), json!({ "event": "removed" })),
        Event::SyncReported { machine, set, applied, state } => {
            let (word, more) = match state {
                SyncState::Behind => ("behind", String::new()),
                SyncState::Fetching { version } => ("fetching", format!(" v{version}")),
                SyncState::OnDisk { version } => ("on_disk", format!(" v{version}")),
                SyncState::Applied => ("applied", String::new()),
                SyncState::Rejected { version, why } => ("rejected", format!(" v{version}: {why}")),
                SyncState::Drifted { paths } => ("drifted", format!(": {}", paths.join(", "))),
                SyncState::Draining => ("draining", String::new()),
                SyncState::Disabled => ("disabled", String::new()),
            };
            let text = format!("{set} on {machine}: v{applied} is live, {}{more}", word.replace('_', " "));
            let machine = machine.as_str();
            (text, json!({ "event": "synced", "machine": machine, "applied": applied, "phase": word }))
        }
        _ => Default::default(),
    }
}

fn of_server(event: &Event) -> (String, Value) {
    match event {
        Event::ServerDefined { server, version } => {
            (format!("{server} v{version} defined"), json!({ "event": "defined", "version": version }))
        }
        Event::ServerRemoved { server } => (format!("{server} forgotten"), json!({ "event": "removed" })),
        Event::ServerWanted { server, wanted } => {
            let wanted = format!("{wanted:?}").to_lowercase();
            (format!("{server} is wanted {wanted}"), json!({ "event": "wanted", "wanted": wanted }))
        }
        Event::ServerAssigned { server, machine, token, cause, fence } => {
            let cause = match cause {
                Cause::Started => "started",
                Cause::MachineLost => "machine_lost",
                Cause::MachineRestarted => "machine_restarted",
                Cause::Crashed => "crashed",
                Cause::Moved => "moved",
            };
            (
                format!("{server} given to {machine}, token {token} ({})", cause.replace('_', " ")),
                json!({
                    "event": "assigned", "machine": machine.as_str(), "token": token.to_string(), "cause": cause,
                    "fence": fence.as_ref().map(proof),
                }),
            )
        }
        Event::ServerReported { server, machine, token, status } => {
            let (words, pid) = view::status(status);
            (
                format!("{server} on {machine}: {words}"),
                json!({
                    "event": "reported", "machine": machine.as_str(), "token": token.to_string(), "status": words,
                    "pid": pid,
                }),
            )
        }
        Event::ServerExpired { server, machine, token } => (
            format!("{server}: the lease of {machine} is over, token {token}"),
            json!({ "event": "expired", "machine": machine.as_str(), "token": token.to_string() }),
        ),
        Event::ServerFenced { server, token, proof: how } => (
            format!("{server}: its copy under token {token} is dead: {}", proof(how)),
            json!({ "event": "fenced", "token": token.to_string(), "proof": proof(how) }),
        ),
        Event::ServerStopped { server, machine, token, why } => (
            format!("{server} ended on {machine}: {why}"),
            json!({ "event": "stopped", "machine": machine.as_str(), "token": token.to_string(), "why": why }),
        ),
        Event::ServerMoving { server, to } => {
            (format!("{server} moves to {to}"), json!({ "event": "moving", "to": to.as_str() }))
        }
        Event::ServerFailed { server, why } => {
            (format!("{server} is given up: {why}"), json!({ "event": "failed", "why": why }))
        }
        _ => Default::default(),
    }
}

/// Returns in words how a death is known.
pub(crate) fn proof(proof: &FenceProof) -> String {
    match proof {
        FenceProof::Certificate(certificate) => format!("certificate: {}", certificate.exit),
        FenceProof::Rebooted => "its machine booted again".into(),
        FenceProof::Swept => "its machine was swept".into(),
        FenceProof::Grace(ms) => format!("{ms} ms of grace passed"),
        FenceProof::Operator(who) => format!("an operator said so: {who}"),
    }
}
