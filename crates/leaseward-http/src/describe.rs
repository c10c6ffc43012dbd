//! What happened, in words for people and in data for programs.

use leaseward_state::Event;
use leaseward_state::config::{SetStep, SyncState};
use leaseward_state::event::{Recorded, RolloutChange};
use leaseward_state::lease::GrantEnd;
use leaseward_state::server::{Cause, FenceProof, Readiness};
use leaseward_state::session::{Owner, SessionEnd};
use serde_json::{Value, json};

use crate::model::{EventRecord, Time};
use crate::view;

/// Returns an event as the API shows it.
#[must_use]
pub fn describe(recorded: &Recorded) -> EventRecord {
    let (text, data) = match &recorded.event {
        Event::SessionOpened { .. } | Event::SessionEnded { .. } => of_session(&recorded.event),
        Event::LeaseGranted { .. } | Event::LeaseEnded { .. } | Event::LeaseQueued { .. } => of_lease(&recorded.event),
        Event::SetPublished { .. }
        | Event::SetRemoved { .. }
        | Event::SyncReported { .. }
        | Event::SetDefined { .. }
        | Event::SetPinned { .. }
        | Event::RolloutChanged { .. }
        | Event::ProgramReported { .. } => of_set(&recorded.event),
        Event::MachineCordoned { .. }
        | Event::MachineRemoved { .. }
        | Event::MachineConfirmedDead { .. }
        | Event::MachineSuspected { .. } => of_machine(&recorded.event),
        Event::PolicyChanged { version } => {
            (format!("the policy is v{version}"), json!({ "event": "policy_changed", "version": version }))
        }
        Event::VotersChanged { voters, why } => (
            format!("{why}: {} vote{} now", voters.join(", "), if voters.len() == 1 { "s" } else { "" }),
            json!({ "event": "voters_changed", "voters": voters, "why": why }),
        ),
        Event::Restored { from, generation } => (
            format!("restored from a backup of revision {from}"),
            json!({ "event": "restored", "from": from.0, "generation": generation.0 }),
        ),
        Event::TokenChanged { token, roles, by } => {
            let roles: Vec<String> = roles.iter().map(ToString::to_string).collect();
            let text = match roles.is_empty() {
                true => format!("{token} is revoked, by {by}"),
                false => format!("{token} may do as {} from now on, by {by}", roles.join(", ")),
            };
            (text, json!({ "event": "token_changed", "token": token.as_str(), "roles": roles, "by": by }))
        }
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

fn of_machine(event: &Event) -> (String, Value) {
    match event {
        Event::MachineCordoned { machine, cordon: None } => {
            (format!("{machine} takes servers again"), json!({ "event": "cordoned", "reason": null }))
        }
        Event::MachineCordoned { machine, cordon: Some(cordon) } => {
            let word = match (cordon.drains, cordon.quarantine) {
                (true, _) => "drained",
                (false, true) => "in quarantine",
                (false, false) => "cordoned",
            };
            let until = cordon.until.map(Time::from);
            let end = until.map_or_else(String::new, |until| format!(", until {until}"));
            (
                format!("{machine} {word}: {}{end}", cordon.why),
                json!({
                    "event": "cordoned", "reason": cordon.why, "drains": cordon.drains, "quarantine": cordon.quarantine,
                    "until": until,
                }),
            )
        }
        Event::MachineSuspected { machine, suspected: true } => (
            format!("{machine} was not heard for two renewals: others make ready for its servers"),
            json!({ "event": "suspected", "suspected": true }),
        ),
        Event::MachineSuspected { machine, suspected: false } => {
            (format!("{machine} is heard again"), json!({ "event": "suspected", "suspected": false }))
        }
        Event::MachineRemoved { machine } => (format!("{machine} forgotten"), json!({ "event": "removed" })),
        Event::MachineConfirmedDead { machine, by } => {
            (format!("{by} has seen that {machine} is off"), json!({ "event": "confirmed_dead", "by": by }))
        }
        _ => Default::default(),
    }
}

/// Returns why a server was placed or is moved, as one word.
pub(crate) fn cause_word(cause: Cause) -> &'static str {
    match cause {
        Cause::Started => "started",
        Cause::MachineLost => "machine_lost",
        Cause::MachineRestarted => "machine_restarted",
        Cause::Crashed => "crashed",
        Cause::Moved => "moved",
        Cause::Restarted => "restarted",
        Cause::Drained => "drained",
        Cause::FailedBack => "failed_back",
        Cause::RolledBack => "rolled_back",
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
                SyncState::Fetching { version, .. } => ("fetching", format!(" v{version}")),
                SyncState::OnDisk { version } => ("on_disk", format!(" v{version}")),
                SyncState::Applied => ("applied", String::new()),
                SyncState::Rejected { version, why } => ("rejected", format!(" v{version}: {why}")),
                SyncState::Drifted { paths, all } => ("drifted", format!(": {}", view::drifted(paths, *all))),
                SyncState::Draining => ("draining", String::new()),
                SyncState::Disabled => ("disabled", String::new()),
                SyncState::Running { version, step, command, .. } => match step {
                    SetStep::Check => ("checking", format!(" v{version}: {command}")),
                    SetStep::Reload => ("reloading", format!(" v{version}: {command}")),
                },
            };
            let text = format!("{set} on {machine}: v{applied} is live, {}{more}", word.replace('_', " "));
            let machine = machine.as_str();
            (text, json!({ "event": "synced", "machine": machine, "applied": applied, "phase": word }))
        }
        Event::ProgramReported { session, name, report } => {
            let (set, file, applied) = (&report.set, &report.file, report.applied);
            let (word, more) = match &report.rejected {
                None => ("applied", String::new()),
                Some(rejected) => ("rejected", format!(", rejected v{}: {}", rejected.version, rejected.why)),
            };
            (
                format!("{set}: program {name} works with v{applied} of {file}{more}"),
                json!({
                    "event": "program", "program": name, "session": session.to_string(), "file": file,
                    "applied": applied, "phase": word,
                }),
            )
        }
        Event::SetDefined { set, version } => (
            format!("{set} is kept in another way: policy v{version}"),
            json!({ "event": "defined", "version": version }),
        ),
        Event::SetPinned { set, machine, pin } => {
            let who = machine.as_ref().map_or("every member".to_owned(), ToString::to_string);
            let machine = machine.as_ref().map(ToString::to_string);
            match pin {
                None => (format!("{set} goes on for {who}"), json!({ "event": "unpinned", "machine": machine })),
                Some(pin) => {
                    let place = pin.version.map_or("what it has".to_owned(), |version| format!("v{version}"));
                    (
                        format!("{set}: {} keeps {who} at {place}: {}", pin.by, pin.why),
                        json!({ "event": "pinned", "machine": machine, "version": pin.version, "by": pin.by, "why": pin.why }),
                    )
                }
            }
        }
        Event::RolloutChanged { set, version, change } => {
            let (word, text, more) = match change {
                RolloutChange::Begun => ("begun", "begins to go round".to_owned(), json!(null)),
                RolloutChange::Released(machines) => {
                    let names: Vec<String> = machines.iter().map(ToString::to_string).collect();
                    ("released", format!("is the turn of {}", names.join(", ")), json!(names))
                }
                RolloutChange::Halted(why) => ("halted", format!("stands still: {why}"), json!(why)),
                RolloutChange::Resumed(by) => ("resumed", format!("goes on: {by}"), json!(by)),
                RolloutChange::RolledBack(why) => ("rolled_back", format!("is taken back: {why}"), json!(why)),
                RolloutChange::Finished => ("finished", "went round".to_owned(), json!(null)),
            };
            (
                format!("{set} v{version} {text}"),
                json!({ "event": "rollout", "version": version, "change": word, "more": more }),
            )
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
            let cause = cause_word(*cause);
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
        Event::ServerExpired { server, machine, token, silent_ms } => (
            format!("{server}: the lease of {machine} is over, token {token}"),
            json!({
                "event": "expired", "machine": machine.as_str(), "token": token.to_string(), "silent_ms": silent_ms,
            }),
        ),
        Event::ServerFenced { server, token, proof: how } => (
            format!("{server}: its copy under token {token} is dead: {}", proof(how)),
            json!({ "event": "fenced", "token": token.to_string(), "proof": proof(how) }),
        ),
        Event::ServerStopped { server, machine, token, why } => (
            format!("{server} ended on {machine}: {why}"),
            json!({ "event": "stopped", "machine": machine.as_str(), "token": token.to_string(), "why": why }),
        ),
        Event::ServerMoving { server, to, cause } => {
            let text = match cause {
                Cause::Restarted => format!("{server} is restarted on {to}"),
                Cause::Drained => format!("{server} leaves its machine, which is drained, for {to}"),
                Cause::FailedBack => format!("{server} returns to {to}"),
                _ => format!("{server} moves to {to}"),
            };
            (text, json!({ "event": "moving", "to": to.as_str(), "cause": cause_word(*cause) }))
        }
        Event::ServerPaused { server, pause: None } => {
            (format!("{server} goes on"), json!({ "event": "paused", "reason": null }))
        }
        Event::ServerPaused { server, pause: Some(pause) } => {
            let until = pause.until.map(Time::from);
            let end = until.map_or_else(String::new, |until| format!(", until {until}"));
            (
                format!("{server} paused: {}{end}", pause.why),
                json!({ "event": "paused", "reason": pause.why, "until": until }),
            )
        }
        Event::ServerPrepared { server, machine, readiness } => {
            let text = match readiness {
                Readiness::Preparing => format!("{machine} makes ready for {server}, in case"),
                Readiness::Ready => format!("{machine} is ready for {server}"),
                Readiness::Lacking(what) => format!("{machine} could not take {server}: {what}"),
            };
            let (word, lacking) = view::readiness(readiness);
            let machine = machine.as_str();
            (text, json!({ "event": "prepared", "machine": machine, "readiness": word, "lacking": lacking }))
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
        FenceProof::Hook(node) => format!("its fence hook on {node} succeeded"),
        FenceProof::Operator(who) => format!("an operator said so: {who}"),
    }
}
