//! `leaseward machine …`

use leaseward_http::model::{ConfirmDead, Cordon, Machine, MachineList};
use reqwest::Method;
use serde_json::Value;

use crate::args::{CordonArguments, MachineCommand};
use crate::commands::operation;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, note, wide};
use crate::route::Route;
use crate::session::Session;

fn columns() -> Vec<Column> {
    vec![
        column("MACHINE", |machine| field(machine, "name")),
        column("STATE", |machine| {
            let connected = machine["connected"].as_bool().unwrap_or_default();
            match (connected, machine["cordoned"].is_null()) {
                (false, _) => "✖ gone".into(),
                (true, true) => "● connected".into(),
                (true, false) if machine["cordon"]["drains"] == true => "◐ draining".into(),
                (true, false) if machine["cordon"]["quarantine"] == true => "◐ quarantine".into(),
                (true, false) => "◐ cordoned".into(),
            }
        }),
        column("FENCE", |machine| field(machine, "fence")),
        column("SERVERS", |machine| field(machine, "servers")),
        column("SINCE", |machine| field(machine, "since")),
        wide("ADDRESS", |machine| field(machine, "address")),
        wide("LABELS", |machine| field(machine, "labels")),
        wide("VERSION", |machine| field(machine, "agent_version")),
        wide("CAPACITY", |machine| field(machine, "capacity")),
        wide("UNTIL", |machine| field(machine, "cordon.until")),
        wide("CORDONED", |machine| field(machine, "cordoned")),
    ]
}

pub(crate) async fn run(session: &Session, command: MachineCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    match command {
        MachineCommand::Ls => {
            session
                .show(|| async {
                    let machines: MachineList = api.list("/v1/machines").await?;
                    printer::list(&session.output, &machines, &columns())
                })
                .await
        }
        MachineCommand::Get { name } => {
            session
                .show(|| async {
                    let machine: Machine = api.get(Route::machine(&name)?).await?;
                    printer::object(&session.output, &machine, &columns())
                })
                .await
        }
        MachineCommand::Cordon(arguments) => cordon(session, arguments, false).await,
        MachineCommand::Quarantine(arguments) => cordon(session, arguments, true).await,
        MachineCommand::Drain(CordonArguments { name, message, lasting }) => {
            let ask = Cordon { reason: message, lasting: lasting.map(Into::into), quarantine: false };
            let what = format!("Every server leaves {name}, one after the other. Clients of each see a break.");
            operation::ask_first(session, Route::machine(&name)?.then("drain"), Some(&ask), &what).await
        }
        MachineCommand::Resume { name } => {
            let _: Value = api.call(Method::POST, Route::machine(&name)?.then("resume"), None::<&()>).await?;
            note!("✓ {name} takes servers again");
            Ok(())
        }
        MachineCommand::ConfirmDead { name, confirm } => {
            let route = Route::machine(&name)?.then("confirm-dead");
            let what = format!("If {name} is not off, its servers may run twice. Look at it, not at a monitor.");
            let confirm = session.typed(&what, &name, confirm)?;
            let ask = ConfirmDead { confirm, by: crate::session::person() };
            let _: Value = api.call(Method::POST, route, Some(&ask)).await?;
            note!("✓ {name} counts as dead: its servers may start elsewhere");
            Ok(())
        }
        MachineCommand::Rm { name } => {
            let route = Route::machine(&name)?;
            session.confirm(&format!("{name} is forgotten."))?;
            let _: Value = api.call(Method::DELETE, route, None::<&()>).await?;
            note!("✓ {name} is forgotten");
            Ok(())
        }
    }
}

async fn cordon(session: &Session, arguments: CordonArguments, quarantine: bool) -> Result<(), Diagnostic> {
    let CordonArguments { name, message, lasting } = arguments;
    let ask = Cordon { reason: message, lasting: lasting.map(Into::into), quarantine };
    let _: Value = session.api.call(Method::POST, Route::machine(&name)?.then("cordon"), Some(&ask)).await?;
    note!("✓ {name} is cordoned: nothing new is placed on it");
    Ok(())
}
