//! `leaseward config …`

mod copies;
mod files;
mod keeping;
mod tarred;
mod together;

use leaseward_http::model::{ConfigSetList, ConfigVersion, ConfigVersionList, MemberSyncList, Rollback, RolloutView};
use reqwest::Method;
use serde_json::{Value, json};

use crate::args::ConfigCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, Output, column, field, note, wide};
use crate::route::Route;
use crate::session::{Session, person};

fn set_columns() -> Vec<Column> {
    vec![
        column("SET", |set| field(set, "name")),
        column("VERSION", |set| field(set, "version")),
        column("FILES", |set| field(set, "newest.files")),
        column("BYTES", |set| field(set, "newest.bytes")),
        column("IN SYNC", |set| format!("{}/{}", field(set, "in_sync"), field(set, "members"))),
        column("AUTHOR", |set| field(set, "newest.author")),
        column("AT", |set| field(set, "newest.at")),
        wide("MESSAGE", |set| field(set, "newest.message")),
    ]
}

pub(crate) fn version_columns() -> Vec<Column> {
    vec![
        column("VERSION", |version| field(version, "version")),
        column("PARENT", |version| field(version, "parent")),
        column("FILES", |version| field(version, "files")),
        column("BYTES", |version| field(version, "bytes")),
        column("AUTHOR", |version| field(version, "author")),
        column("AT", |version| field(version, "at")),
        column("MESSAGE", |version| field(version, "message")),
        wide("MANIFEST", |version| field(version, "manifest")),
    ]
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

fn rollout_line(rollout: &RolloutView) -> String {
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

/// Returns the exit code.
pub(crate) async fn run(session: &Session, command: ConfigCommand) -> Result<u8, Diagnostic> {
    let api = &session.api;
    match command {
        ConfigCommand::Ls => {
            session
                .show(|| async {
                    let sets: ConfigSetList = api.list("/v1/configs").await?;
                    printer::list(&session.output, &sets, &set_columns())
                })
                .await?;
        }
        ConfigCommand::Get { set, path, version, key } => files::get(session, &set, path, version, key).await?,
        ConfigCommand::Publish(arguments) => files::publish(session, arguments).await?,
        ConfigCommand::Put(arguments) => files::put(session, arguments).await?,
        ConfigCommand::Edit { set, path, message } => files::edit(session, &set, &path, message).await?,
        ConfigCommand::Diff { set, from, to } => return files::diff(session, &set, from, to).await,
        ConfigCommand::Pull { set, to, tar, version, key } => {
            copies::pull(session, &set, to, tar, version, key).await?;
        }
        ConfigCommand::Verify { set, dir, version } => return copies::verify(session, &set, &dir, version).await,
        ConfigCommand::History { set } => {
            session
                .show(|| async {
                    let versions: ConfigVersionList = api.list(Route::set(&set)?.then("versions")).await?;
                    printer::list(&session.output, &versions, &version_columns())
                })
                .await?;
        }
        ConfigCommand::Rollback { set, to, message } => {
            let route = Route::set(&set)?.then("rollback");
            session.confirm(&format!("{set} goes back to what version {to} says, on every member."))?;
            let ask = Rollback { to, author: person(), message };
            let version: ConfigVersion = api.call(Method::POST, route, Some(&ask)).await?;
            note!("✓ {set} v{} = v{to} (history is kept; nobody goes back in numbers)", version.version);
            printer::object(&session.output, &version, &version_columns())?;
        }
        ConfigCommand::Monitor { set } => {
            session
                .show(|| async {
                    let members: MemberSyncList = api.list(Route::set(&set)?.then("members")).await?;
                    if session.output == Output::Table {
                        note!("{set} v{}", members.version);
                        if let Some(rollout) = &members.rollout {
                            note!("{}", rollout_line(rollout));
                        }
                    }
                    printer::list(&session.output, &members, &member_columns())?;
                    if matches!(session.output, Output::Table | Output::Wide) && !members.programs.is_empty() {
                        printer::line("");
                        printer::list(&session.output, &json!({ "items": members.programs }), &program_columns())?;
                    }
                    Ok(())
                })
                .await?;
        }
        ConfigCommand::Policy { set, values, file } => keeping::policy(session, &set, &values, file).await?,
        ConfigCommand::Rollout { set, action } => keeping::rollout(session, &set, action).await?,
        ConfigCommand::Pin { set, machine, version, as_is: _, message } => {
            keeping::pin(session, &set, machine, version, message).await?;
        }
        ConfigCommand::Unpin { set, machine } => keeping::unpin(session, &set, machine).await?,
        ConfigCommand::Sync { set, machine } => keeping::sync(session, &set, machine).await?,
        ConfigCommand::Key { file, create } => keeping::key(&file, create)?,
        ConfigCommand::Rm { set } => {
            let route = Route::set(&set)?;
            session.confirm(&format!("{set} is forgotten; its files stay where they are."))?;
            let _: Value = api.call(Method::DELETE, route, None::<&()>).await?;
            note!("✓ {set} is forgotten");
        }
    }
    Ok(0)
}
