//! `leaseward config …`

mod contents;
mod copies;
mod files;
mod keeping;
mod monitor;
mod sealing;
mod spread;
mod tarred;
mod together;

use leaseward_http::model::{ConfigSetList, ConfigVersion, ConfigVersionList, Rollback};
use reqwest::Method;
use serde_json::Value;

use crate::args::ConfigCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, note, wide};
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
            spread::everywhere(session, &set, version.version).await?;
        }
        ConfigCommand::Monitor { set } => monitor::run(session, &set).await?,
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
