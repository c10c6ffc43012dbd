//! `leaseward server …`

use std::collections::BTreeSet;
use std::path::Path;

use leaseward::ServerName;
use leaseward_http::model::{BeginPause, History, Server, ServerFile, ServerList, ServerOutput, ServerPhase};
use reqwest::Method;
use serde_json::Value;

use crate::args::ServerCommand;
use crate::commands::agent::agent_config;
use crate::commands::operation;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, Output, column, content_line, field, line, note, wide};
use crate::route::Route;
use crate::session::Session;
use crate::settings::Settings;

fn columns() -> Vec<Column> {
    vec![
        column("SERVER", |server| field(server, "name")),
        column("STATE", |server| format!("{} {}", sign(&field(server, "phase")), field(server, "phase"))),
        column("MACHINE", |server| field(server, "machine")),
        column("TOKEN", |server| field(server, "token")),
        column("SINCE", |server| field(server, "since")),
        column("RESTARTS", |server| field(server, "restarts")),
        wide("WANTED", |server| field(server, "wanted")),
        wide("PAUSED", |server| field(server, "paused.reason")),
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
                    let servers: ServerList = api.list("/v1/servers").await?;
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
        ServerCommand::Apply { files, force } => {
            for file in &files {
                apply(session, file, force).await?;
            }
            Ok(())
        }
        ServerCommand::Logs { name, lines, here: true, config, .. } => logs_here(&name, lines, &config),
        ServerCommand::Logs { name, lines, machine, .. } => logs(session, &name, lines, machine.as_deref()).await,
        ServerCommand::Diff { file } => diff(session, &file).await,
        ServerCommand::History { name } => history(session, &name).await,
        ServerCommand::Start { name } => operation::ask(session, to(&name, "start")?, NOTHING).await,
        ServerCommand::Stop { name } => {
            let what = format!("{name} stops, and stays stopped until it is started.");
            operation::ask_first(session, to(&name, "stop")?, NOTHING, &what).await
        }
        ServerCommand::Restart { name } => {
            let what = format!("{name} stops and starts again. Clients see a break.");
            operation::ask_first(session, to(&name, "restart")?, NOTHING, &what).await
        }
        ServerCommand::Move { name, to: machine, no_rollback } => {
            let route = to(&name, "move")?.with("to", &machine).with("rollback", !no_rollback);
            let what = format!("{name} stops where it is and starts on {machine}. Clients see a break.");
            operation::ask_first(session, route, NOTHING, &what).await
        }
        ServerCommand::Failback { name } => {
            let what = format!("{name} moves to the first of its candidates. Clients see a break.");
            operation::ask_first(session, to(&name, "failback")?, NOTHING, &what).await
        }
        ServerCommand::Pause { name, message, lasting } => {
            let ask = BeginPause { reason: message, lasting: lasting.map(Into::into) };
            let _: Value = api.call(Method::POST, to(&name, "pause")?, Some(&ask)).await?;
            note!("✓ {name} is neither restarted nor moved");
            Ok(())
        }
        ServerCommand::Resume { name } => {
            let _: Value = api.call(Method::POST, to(&name, "resume")?, NOTHING).await?;
            note!("✓ {name} is restarted and moved again as it needs");
            Ok(())
        }
        ServerCommand::Rm { name } => {
            let route = Route::server(&name)?;
            session.confirm(&format!("{name} is forgotten."))?;
            let _: Value = api.call(Method::DELETE, route, None::<&()>).await?;
            note!("✓ {name} is forgotten");
            Ok(())
        }
    }
}

const NOTHING: Option<&()> = None;

fn to(name: &str, verb: &str) -> Result<Route, Diagnostic> {
    Ok(Route::server(name)?.then(verb))
}

/// Shows what a server printed, as the machine says that has it.
async fn logs(session: &Session, name: &str, lines: u32, machine: Option<&str>) -> Result<(), Diagnostic> {
    let route = to(name, "logs")?.with("lines", lines);
    let route = machine.into_iter().fold(route, |route, machine| route.with("machine", machine));
    let output: ServerOutput = session.api.get(route).await?;
    output.lines.iter().for_each(|text| content_line(text));
    Ok(())
}

/// Shows what a server printed here.
fn logs_here(name: &str, lines: u32, config: &Path) -> Result<(), Diagnostic> {
    let agent = agent_config(&Settings::read(config)?)?;
    let server = ServerName::new(name).map_err(|error| Diagnostic::new("LW0101", error.to_string()))?;
    match leaseward_node::logs(&agent.log_dir, &server, usize::try_from(lines).unwrap_or(usize::MAX)) {
        Ok(printed) => {
            printed.iter().for_each(|text| content_line(text));
            Ok(())
        }
        Err(leaseward_node::Error::NotHere { .. }) => {
            Err(Diagnostic::new("LW0404", format!("{name} printed nothing on {}", agent.machine))
                .hint(format!("leaseward server logs {name}      asks the machine that has it")))
        }
        Err(error) => Err(Diagnostic::new(error.code(), error.to_string())),
    }
}

/// Shows each key that a file would change. Ends with 1 if there is one.
async fn diff(session: &Session, file: &Path) -> Result<(), Diagnostic> {
    let (name, spec) = open(file)?;
    let wanted = spec.to_spec().map_err(|problem| Diagnostic::new(&problem.code, problem.detail))?;
    let new = serde_json::to_value(ServerFile::from_spec(&name, &wanted)).unwrap_or_default();
    let old = match get(session, &name).await {
        Ok(server) => serde_json::to_value(server.spec).unwrap_or_default(),
        Err(error) if error.code == "LW0404" => Value::Null,
        Err(error) => return Err(error),
    };
    let keys: BTreeSet<_> =
        [&old, &new].iter().filter_map(|spec| spec.as_object()).flat_map(|spec| spec.keys()).collect();
    let changed = keys.into_iter().filter(|key| old.get(key) != new.get(key));
    let changed: Vec<Value> =
        changed.map(|key| serde_json::json!({ "key": key, "old": old.get(key), "new": new.get(key) })).collect();
    let columns = [
        column("KEY", |change| field(change, "key")),
        column("NOW", |change| change["old"].to_string()),
        column("THEN", |change| change["new"].to_string()),
    ];
    if changed.is_empty() {
        note!("{name} is as {} says", file.display());
        return Ok(());
    }
    printer::list(&session.output, &serde_json::json!({ "items": changed }), &columns)?;
    Err(Diagnostic::new("", "").exit(1))
}

async fn history(session: &Session, name: &str) -> Result<(), Diagnostic> {
    session
        .show(|| async {
            let history: History = session.api.get(to(name, "history")?).await?;
            match session.output {
                Output::Table | Output::Wide => {
                    story(&history).iter().for_each(|text| line(text));
                    Ok(())
                }
                _ => printer::object(&session.output, &history, &[column("SERVER", |of| field(of, "server"))]),
            }
        })
        .await
}

/// Returns the interruptions of a server as people read them.
fn story(history: &History) -> Vec<String> {
    let mut lines = Vec::new();
    if history.items.is_empty() {
        lines.push(format!("{} was not interrupted, as far as the ledger goes back", history.server));
    }
    for incident in &history.items {
        lines.push(format!("{}  {}", incident.began, incident.sentence));
        for phase in &incident.phases {
            lines.push(format!("  +{:<9} {:<13} {}", phase.after.to_string(), phase.name, phase.text));
        }
    }
    lines
}

async fn get(session: &Session, name: &str) -> Result<Server, Diagnostic> {
    session.api.get(Route::server(name)?).await
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
    note!("✓ {name} is {wanted}");
    Ok(())
}

async fn apply(session: &Session, file: &Path, force: bool) -> Result<(), Diagnostic> {
    let (name, spec) = open(file)?;
    let route = Route::server(&name)?;
    let route = if force { route.with("force", true) } else { route };
    let server: Server = session.api.call(Method::PUT, route, Some(&spec)).await?;
    note!("✓ {name} version {}", server.version);
    if server.wanted == leaseward_http::model::Wanted::Running {
        reach(session, &name, &[ServerPhase::Running]).await?;
    }
    Ok(())
}

fn open(file: &Path) -> Result<(String, ServerFile), Diagnostic> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Diagnostic::new("LW0100", format!("cannot read {}: {error}", file.display())))?;
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    read(&text, &stem, &file.display().to_string())
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
