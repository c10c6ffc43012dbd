//! `leaseward server …`

use std::path::Path;

use leaseward_http::model::{Server, ServerFile, ServerList, ServerPhase};
use reqwest::Method;
use serde_json::Value;

use crate::args::ServerCommand;
use crate::commands::operation;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, wide};
use crate::session::Session;

fn columns() -> Vec<Column> {
    vec![
        column("SERVER", |server| field(server, "name")),
        column("STATE", |server| format!("{} {}", sign(&field(server, "phase")), field(server, "phase"))),
        column("MACHINE", |server| field(server, "machine")),
        column("TOKEN", |server| field(server, "token")),
        column("SINCE", |server| field(server, "since")),
        column("RESTARTS", |server| field(server, "restarts")),
        wide("WANTED", |server| field(server, "wanted")),
        wide("STATUS", |server| field(server, "status")),
        wide("CANDIDATES", |server| field(server, "spec.candidates")),
        wide("WORST CASE", |server| field(server, "worst_case")),
    ]
}

fn sign(phase: &str) -> &'static str {
    match phase {
        "running" => "●",
        "failed" | "unhealthy" => "✖",
        "stopped" => "○",
        _ => "◐",
    }
}

pub(crate) async fn run(session: &Session, command: ServerCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    match command {
        ServerCommand::Ls => {
            session
                .show(|| async {
                    let servers: ServerList = api.get("/v1/servers?limit=1000").await?;
                    printer::list(&session.output, &servers, &columns())
                })
                .await
        }
        ServerCommand::Get { name } => {
            session
                .show(|| async {
                    let server = get(session, &name).await?;
                    printer::object(&session.output, &server, &columns())
                })
                .await
        }
        ServerCommand::Apply { files } => {
            for file in &files {
                apply(session, file).await?;
            }
            Ok(())
        }
        ServerCommand::Start { name } => operation::ask(session, &format!("/v1/servers/{name}/start")).await,
        ServerCommand::Stop { name } => {
            session.confirm(&format!("{name} stops, and stays stopped until it is started."))?;
            operation::ask(session, &format!("/v1/servers/{name}/stop")).await
        }
        ServerCommand::Move { name, to } => {
            let server = get(session, &name).await?;
            let from = server.machine.unwrap_or_else(|| "nowhere".into());
            session.confirm(&format!("{name} stops on {from} and starts on {to}. Clients see a break."))?;
            operation::ask(session, &format!("/v1/servers/{name}/move?to={to}")).await
        }
        ServerCommand::Rm { name } => {
            session.confirm(&format!("{name} is forgotten."))?;
            let _: Value = api.call(Method::DELETE, &format!("/v1/servers/{name}"), None::<&()>).await?;
            eprintln!("✓ {name} is forgotten");
            Ok(())
        }
    }
}

async fn get(session: &Session, name: &str) -> Result<Server, Diagnostic> {
    session.api.get(&format!("/v1/servers/{name}")).await
}

async fn reach(session: &Session, name: &str, phases: &[ServerPhase]) -> Result<(), Diagnostic> {
    if session.global.no_wait {
        return Ok(());
    }
    let wanted = phases.iter().map(|phase| phase.as_str()).collect::<Vec<_>>().join(" or ");
    session
        .until(&format!("server/{name} is {wanted}"), || async {
            let server = get(session, name).await?;
            if server.phase == ServerPhase::Failed && !phases.contains(&ServerPhase::Failed) {
                return Err(Diagnostic::new("LW0301", format!("{name} failed: {}", server.status)).exit(1));
            }
            Ok(phases.contains(&server.phase))
        })
        .await?;
    eprintln!("✓ {name} is {wanted}");
    Ok(())
}

async fn apply(session: &Session, file: &Path) -> Result<(), Diagnostic> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Diagnostic::new("LW0100", format!("cannot read {}: {error}", file.display())))?;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, spec) = read(&text, &stem, &file.display().to_string())?;
    let path = format!("/v1/servers/{name}");
    let server: Server = session.api.call(Method::PUT, &path, Some(&spec)).await?;
    eprintln!("✓ {name} version {}", server.version);
    if server.wanted == leaseward_http::model::Wanted::Running {
        reach(session, &name, &[ServerPhase::Running]).await?;
    }
    Ok(())
}

/// A file may name its server; else its own name does.
fn read(text: &str, stem: &str, origin: &str) -> Result<(String, ServerFile), Diagnostic> {
    let mut table: toml::Table =
        toml::from_str(text).map_err(|error| Diagnostic::new("LW0104", format!("{origin}: {}", error.message())))?;
    let name = match table.remove("name") {
        Some(toml::Value::String(name)) => name,
        Some(_) => return Err(Diagnostic::new("LW0104", format!("{origin}: name must be a text"))),
        None => stem.to_owned(),
    };
    let rest = toml::to_string(&table).map_err(|error| Diagnostic::new("LW0104", format!("{origin}: {error}")))?;
    let spec = ServerFile::from_toml(&rest).map_err(|problem| {
        let diagnostic = Diagnostic::new(&problem.code, format!("{origin}: {}", problem.detail));
        if problem.hint.is_empty() { diagnostic } else { diagnostic.hint(problem.hint) }
    })?;
    Ok((name, spec))
}
