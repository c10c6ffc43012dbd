//! The `leaseward` binary: daemon and command line.
//!
//! To find your way: `args.rs` lists what can be typed, `commands/` has a file for each command, `settings.rs` reads
//! the daemon's file, `api.rs`, `route.rs` and `printer.rs` are what every client command uses. Everything that lasts is in the
//! library.

// A reader that has gone away would make a panic of them, and a terminal obeys whatever they print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod args;
mod commands;
mod content;
mod demo_server;
mod diagnostic;
mod dry_run;
mod duration;
mod moment;
mod printer;
mod publish;
mod route;
mod session;
mod settings;
mod target;
mod telemetry;
mod unfinished;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use reqwest::Method;
use serde_json::Value;

use crate::args::{Arguments, BackupCommand, Command};
use crate::diagnostic::Diagnostic;
use crate::printer::note;
use crate::route::Route;
use crate::session::Session;
use crate::settings::Settings;
use crate::target::Target;

fn main() -> ExitCode {
    // The shim first: it must stay a process of one thread, with nothing of ours in it.
    let mut raw = std::env::args_os().skip(1);
    match raw.next() {
        Some(first) if first == "shim" => return leaseward_node::shim::main(raw.collect::<Vec<OsString>>()),
        Some(first) if first == leaseward_node::attack::WORD => return leaseward_node::attack::main(raw.collect()),
        Some(first) if first == "demo-server" => return demo_server::main(raw.collect()),
        _ => {}
    }
    let arguments = Arguments::parse();
    let mut runtime = match arguments.command {
        // Children die with the thread that started them, so that thread must be the main one.
        Command::Dev(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note!("error LW0600: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let outcome = runtime.block_on(run(arguments));
    // Work on other threads, such as a name that is being looked up, must not hold us back.
    runtime.shutdown_background();
    outcome.unwrap_or_else(|diagnostic| {
        if diagnostic.code.is_empty() {
            if !diagnostic.what().is_empty() {
                note!("{}", diagnostic.what());
            }
        } else {
            note!("{diagnostic}");
        }
        ExitCode::from(diagnostic.exit_code())
    })
}

async fn run(arguments: Arguments) -> Result<ExitCode, Diagnostic> {
    let Arguments { global, command } = arguments;
    let ok = |()| ExitCode::SUCCESS;
    if global.dry_run {
        dry_run::check(&command)?;
    }
    match command {
        Command::Agent(agent) => {
            if agent.die_with_parent {
                commands::agent::die_with_parent();
            }
            let settings = Settings::read(&agent.config)?;
            if agent.check {
                printer::line(&format!("{} is valid", agent.config.display()));
                return Ok(ExitCode::SUCCESS);
            }
            commands::agent::run(settings).await.map(ok)
        }
        Command::Dev(dev) => commands::dev::run(dev).await.map(ok),
        Command::Doctor(doctor) => {
            commands::doctor::run(&printer::Output::parse(&global.output)?, doctor).await.map(ExitCode::from)
        }
        Command::Explain { what } if !what.contains('/') => commands::explain::page(&what).map(ok),
        Command::Completion { shell } => {
            commands::manual::completion(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { command, dir } => commands::manual::man(&command, dir.as_deref()).map(ok),
        Command::Version { check_cluster: false } => {
            printer::line(&format!("leaseward {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
        Command::Backup(command) if !matches!(command, BackupCommand::Create { .. }) => {
            commands::backup::offline(&printer::Output::parse(&global.output)?, command).await.map(ok)
        }
        Command::Remote(remote) => commands::remote::run(remote).await.map(ok),
        Command::Run(run) => {
            let target = Target::resolve(&global).map_err(|error| error.exit(125))?;
            commands::run::run(&target, run).await
        }
        Command::Context(context) => {
            commands::context::run(&printer::Output::parse(&global.output)?, global.token_file, context).map(ok)
        }
        command => client(&Session::new(global)?, command).await,
    }
}

async fn client(session: &Session, command: Command) -> Result<ExitCode, Diagnostic> {
    let ok = |()| ExitCode::SUCCESS;
    match command {
        Command::Status => commands::status::run(session).await.map(ExitCode::from),
        Command::Events(events) => commands::events::run(session, events).await.map(ok),
        Command::Wait { condition } => commands::wait::run(session, &condition).await.map(ok),
        Command::Lease(lease) => commands::lease::run(session, lease).await.map(ok),
        Command::Server(server) => commands::server::run(session, server).await.map(ok),
        Command::Machine(machine) => commands::machine::run(session, machine).await.map(ok),
        Command::Maintenance(maintenance) => commands::policy::maintenance(session, maintenance).await.map(ok),
        Command::Policy(policy) => commands::policy::run(session, policy).await.map(ok),
        Command::Whatif { event } => commands::whatif::run(session, &event).await.map(ok),
        Command::Backup(BackupCommand::Create { file, force }) => {
            commands::backup::create(&session.api, &session.output, &file, force).await.map(ok)
        }
        Command::Token(token) => commands::token::run(session, token).await.map(ok),
        Command::Node(node) => commands::node::run(session, node).await.map(ok),
        Command::Config(config) => commands::config::run(session, config).await.map(ExitCode::from),
        Command::Api { method, path, body } => call(session, &method, &path, body.as_deref()).await.map(ok),
        Command::Explain { what } => commands::explain::object(session, &what).await.map(ok),
        Command::Version { .. } => commands::version::run(session).await.map(ExitCode::from),
        Command::Agent(_)
        | Command::Backup(_)
        | Command::Completion { .. }
        | Command::Dev(_)
        | Command::Doctor(_)
        | Command::Man { .. }
        | Command::Remote(_)
        | Command::Run(_)
        | Command::Context(_)
        | Command::Shim { .. } => Ok(ExitCode::from(2)),
    }
}

/// A raw call of the API.
async fn call(session: &Session, method: &str, path: &str, body: Option<&str>) -> Result<(), Diagnostic> {
    let bad = |what: String| Diagnostic::new("LW0104", what);
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).map_err(|error| bad(error.to_string()))?;
    let body: Option<Value> =
        body.map(serde_json::from_str).transpose().map_err(|error| bad(format!("the body is no JSON: {error}")))?;
    let answer: Value = session.api.call(method, Route::typed(path)?, body.as_ref()).await?;
    printer::document_line(&serde_json::to_string_pretty(&answer).map_err(|error| bad(error.to_string()))?);
    Ok(())
}
