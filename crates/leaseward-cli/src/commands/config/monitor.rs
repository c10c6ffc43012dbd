//! `leaseward config monitor`: how far each member is.
//!
//! Must stay true: what goes on without an event (bytes that come, a program that runs) is shown anew each second with
//! `--watch`; lines for programs name a member when something about it is new, and not again.

use std::cell::RefCell;
use std::collections::BTreeMap;

use leaseward_http::model::{Duration, MemberSync, MemberSyncList, RolloutView, SyncPhase};
use serde_json::{Value, json};

use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, Output, column, field, note, wide};
use crate::route::Route;
use crate::session::{Moves, Session};

pub(super) async fn run(session: &Session, set: &str) -> Result<(), Diagnostic> {
    let said = RefCell::new(Said::default());
    session
        .show_moving(|| async {
            let mut members: MemberSyncList = session.api.list(Route::set(set)?.then("members")).await?;
            let moves = members.items.iter().any(goes_on);
            if session.output == Output::JsonLines {
                members.items.retain(|member| said.borrow_mut().is_news(member));
            }
            show(session, set, &members)?;
            Ok(if moves { Moves::ByItself } else { Moves::WithEvents })
        })
        .await
}

fn show(session: &Session, set: &str, members: &MemberSyncList) -> Result<(), Diagnostic> {
    if session.output == Output::Table {
        note!("{set} v{}", members.version);
        if let Some(rollout) = &members.rollout {
            note!("{}", rollout_line(rollout));
        }
    }
    printer::list(&session.output, members, &member_columns())?;
    if matches!(session.output, Output::Table | Output::Wide) && !members.programs.is_empty() {
        printer::line("");
        printer::list(&session.output, &json!({ "items": members.programs }), &program_columns())?;
    }
    Ok(())
}

/// Returns whether a member does something that goes on without an event.
fn goes_on(member: &MemberSync) -> bool {
    member.phase == SyncPhase::Fetching || member.running.is_some()
}

/// What was said of each member last.
#[derive(Default)]
struct Said(BTreeMap<String, MemberSync>);

impl Said {
    /// Returns whether anything is new about a member but how late it is.
    fn is_news(&mut self, member: &MemberSync) -> bool {
        let mut now = MemberSync { eta: None, ..member.clone() };
        if let Some(running) = &mut now.running {
            running.lasting = Duration::from_millis(0);
        }
        self.0.insert(now.machine.clone(), now.clone()) != Some(now)
    }
}

fn member_columns() -> Vec<Column> {
    vec![
        column("MEMBER", |member| field(member, "machine")),
        column("STATE", |member| format!("{} {}", sign(&field(member, "phase")), field(member, "phase"))),
        column("APPLIED", |member| field(member, "applied")),
        column("CONNECTED", |member| field(member, "connected")),
        column("WHY", why),
        wide("WANTED", |member| field(member, "wanted")),
        wide("PINNED", |member| field(member, "pinned")),
        wide("AT", |member| field(member, "at")),
    ]
}

fn program_columns() -> Vec<Column> {
    vec![
        column("PROGRAM", |program| field(program, "name")),
        column("STATE", |program| format!("{} {}", sign(&field(program, "phase")), field(program, "phase"))),
        column("APPLIED", |program| field(program, "applied")),
        column("FILE", |program| field(program, "file")),
        column("WHY", |program| match program["version"].as_u64() {
            Some(version) => format!("v{version}: {}", field(program, "why")),
            None => "-".into(),
        }),
        wide("SESSION", |program| field(program, "session")),
        wide("AT", |program| field(program, "at")),
    ]
}

/// What a member says, what runs there, or how far its fetch is; and where an operator keeps it.
fn why(member: &Value) -> String {
    let says = says(member);
    let Some(pin) = member["pin"].as_object() else { return says };
    let at = pin.get("version").and_then(Value::as_u64).map_or_else(|| "as it is".to_owned(), |at| format!("at v{at}"));
    let word = |key: &str| pin.get(key).and_then(Value::as_str).filter(|word| !word.is_empty());
    let by = word("by").map_or_else(String::new, |by| format!(" by {by}"));
    let why = word("why").map_or_else(String::new, |why| format!(": {why}"));
    let says = if says == "-" || says.is_empty() { String::new() } else { format!("; {says}") };
    format!("kept {at}{by}{why}{says}")
}

fn says(member: &Value) -> String {
    if let Some(running) = member["running"].as_object() {
        let word = |key: &str| running.get(key).and_then(Value::as_str).unwrap_or_default();
        let (what, lasting, timeout) = (word("what"), word("lasting"), word("timeout"));
        return format!(
            "{what}ing v{} for {lasting} ({timeout} at most): {}",
            field(member, "version"),
            word("command")
        );
    }
    match (member["done"].as_u64(), member["total"].as_u64()) {
        (Some(done), Some(total)) if total > 0 => {
            let eta = field(member, "eta");
            let eta = if eta.is_empty() { String::new() } else { format!(", {eta} left") };
            format!("{done} of {total} bytes ({} %){eta}", done * 100 / total)
        }
        _ => field(member, "why"),
    }
}

fn sign(phase: &str) -> &'static str {
    match phase {
        "applied" => "●",
        "rejected" | "drifted" => "✖",
        "disabled" => "○",
        _ => "◐",
    }
}

pub(super) fn rollout_line(rollout: &RolloutView) -> String {
    let halted = rollout.halted.as_ref().map_or_else(String::new, |why| format!("; it stands still: {why}"));
    let failed = match rollout.failed.len() {
        0 => String::new(),
        failed => format!(", {failed} refused it"),
    };
    format!(
        "v{} goes round: the turn of {} of {}{failed}{halted}",
        rollout.version,
        rollout.released.len(),
        rollout.members
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(more: Value) -> MemberSync {
        let mut member = json!({ "machine": "m1", "connected": true, "applied": 1, "phase": "behind", "at": null });
        member.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(member).unwrap()
    }

    fn runs(lasting: &str) -> MemberSync {
        let since = "2026-01-01T00:00:00Z";
        member(json!({ "running": {
            "what": "check", "command": "true", "since": since, "lasting": lasting, "timeout": "1m",
        } }))
    }

    #[test]
    fn what_is_new_is_said_once() {
        let mut said = Said::default();
        let fetches = |done, eta| member(json!({ "phase": "fetching", "done": done, "total": 9, "eta": eta }));
        for (member, is_news) in [
            (member(json!({})), true),
            (member(json!({})), false),
            (member(json!({ "machine": "m2" })), true),
            (fetches(1, "8s"), true),
            (fetches(1, "7s"), false),
            (fetches(2, "7s"), true),
            (runs("1s"), true),
            (runs("2s"), false),
            (member(json!({})), true),
        ] {
            assert_eq!(said.is_news(&member), is_news, "{member:?}");
        }
        assert!(goes_on(&runs("1s")) && goes_on(&fetches(1, "8s")) && !goes_on(&member(json!({}))));
    }
}
