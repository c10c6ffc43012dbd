//! `leaseward config …`

use std::io::{Write, stdout};
use std::path::Path;

use leaseward_http::model::{
    ConfigSet, ConfigSetList, ConfigVersion, ConfigVersionList, ManifestListing, MemberSyncList, Rollback,
};
use reqwest::Method;
use serde_json::Value;

use crate::args::ConfigCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, Output, column, field, wide};
use crate::publish::Prepared;
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

fn version_columns() -> Vec<Column> {
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
        column("WHY", |member| field(member, "why")),
        wide("AT", |member| field(member, "at")),
    ]
}

fn sign(phase: &str) -> &'static str {
    match phase {
        "applied" => "●",
        "rejected" | "drifted" => "✖",
        "disabled" => "○",
        _ => "◐",
    }
}

pub(crate) async fn run(session: &Session, command: ConfigCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    match command {
        ConfigCommand::Ls => {
            session
                .show(|| async {
                    let sets: ConfigSetList = api.get("/v1/configs?limit=1000").await?;
                    printer::list(&session.output, &sets, &set_columns())
                })
                .await
        }
        ConfigCommand::Get { set, path, version } => get(session, &set, path, version).await,
        ConfigCommand::Publish { set, from, message, if_version } => {
            publish(session, &set, &from, message, if_version).await
        }
        ConfigCommand::History { set } => {
            session
                .show(|| async {
                    let versions: ConfigVersionList =
                        api.get(&format!("/v1/configs/{set}/versions?limit=1000")).await?;
                    printer::list(&session.output, &versions, &version_columns())
                })
                .await
        }
        ConfigCommand::Rollback { set, to, message } => {
            session.confirm(&format!("{set} goes back to what version {to} says, on every member."))?;
            let ask = Rollback { to, author: person(), message };
            let version: ConfigVersion =
                api.call(Method::POST, &format!("/v1/configs/{set}/rollback"), Some(&ask)).await?;
            eprintln!("✓ {set} v{} = v{to} (history is kept; nobody goes back in numbers)", version.version);
            printer::object(&session.output, &version, &version_columns())
        }
        ConfigCommand::Monitor { set } => {
            session
                .show(|| async {
                    let members: MemberSyncList = api.get(&format!("/v1/configs/{set}/members?limit=1000")).await?;
                    if session.output == Output::Table {
                        eprintln!("{set} v{}", members.version);
                    }
                    printer::list(&session.output, &members, &member_columns())
                })
                .await
        }
        ConfigCommand::Rm { set } => {
            session.confirm(&format!("{set} is forgotten; its files stay where they are."))?;
            let _: Value = api.call(Method::DELETE, &format!("/v1/configs/{set}"), None::<&()>).await?;
            eprintln!("✓ {set} is forgotten");
            Ok(())
        }
    }
}

async fn get(session: &Session, set: &str, path: Option<String>, version: Option<u64>) -> Result<(), Diagnostic> {
    let version = match version {
        Some(version) => version,
        None => session.api.get::<ConfigSet>(&format!("/v1/configs/{set}")).await?.version,
    };
    match path {
        Some(path) => {
            let bytes = session.api.get_bytes(&format!("/v1/configs/{set}/versions/{version}/files/{path}")).await?;
            stdout().write_all(&bytes).ok();
            Ok(())
        }
        None => {
            let listing: ManifestListing = session.api.get(&format!("/v1/configs/{set}/versions/{version}")).await?;
            let columns = [
                column("PATH", |entry| field(entry, "path")),
                column("KIND", |entry| field(entry, "kind")),
                column("MODE", |entry| field(entry, "mode")),
                column("SIZE", |entry| field(entry, "size")),
                wide("DIGEST", |entry| field(entry, "digest")),
            ];
            match session.output {
                Output::Table | Output::Wide | Output::Name => {
                    printer::list(&session.output, &serde_json::json!({ "items": listing.entries }), &columns)
                }
                _ => printer::object(&session.output, &listing, &columns),
            }
        }
    }
}

async fn publish(
    session: &Session,
    set: &str,
    from: &Path,
    message: String,
    if_version: Option<u64>,
) -> Result<(), Diagnostic> {
    let prepared = Prepared::of(&session.api, from).await?;
    eprintln!("{set}: {}", prepared.summary());
    prepared.send(&session.api).await?;
    let version = prepared.commit(&session.api, set, if_version, person(), message).await?;
    eprintln!("✓ {set} v{}", version.version);
    printer::object(&session.output, &version, &version_columns())
}
