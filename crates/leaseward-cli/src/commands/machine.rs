//! `leaseward machine …`

use leaseward_http::model::{Cordon, Machine, MachineList};
use reqwest::Method;
use serde_json::Value;

use crate::args::MachineCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, wide};
use crate::session::Session;

fn columns() -> Vec<Column> {
    vec![
        column("MACHINE", |machine| field(machine, "name")),
        column("STATE", |machine| {
            let connected = machine["connected"].as_bool().unwrap_or_default();
            match (connected, machine["cordoned"].is_null()) {
                (false, _) => "✖ gone".into(),
                (true, true) => "● connected".into(),
                (true, false) => "◐ cordoned".into(),
            }
        }),
        column("FENCE", |machine| field(machine, "fence")),
        column("SERVERS", |machine| field(machine, "servers")),
        column("SINCE", |machine| field(machine, "since")),
        wide("ADDRESS", |machine| field(machine, "address")),
        wide("LABELS", |machine| field(machine, "labels")),
        wide("VERSION", |machine| field(machine, "agent_version")),
        wide("CORDONED", |machine| field(machine, "cordoned")),
    ]
}

pub(crate) async fn run(session: &Session, command: MachineCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    match command {
        MachineCommand::Ls => {
            session
                .show(|| async {
                    let machines: MachineList = api.get("/v1/machines?limit=1000").await?;
                    printer::list(&session.output, &machines, &columns())
                })
                .await
        }
        MachineCommand::Get { name } => {
            session
                .show(|| async {
                    let machine: Machine = api.get(&format!("/v1/machines/{name}")).await?;
                    printer::object(&session.output, &machine, &columns())
                })
                .await
        }
        MachineCommand::Cordon { name, message } => {
            let ask = Cordon { reason: message };
            let _: Value = api.call(Method::POST, &format!("/v1/machines/{name}/cordon"), Some(&ask)).await?;
            eprintln!("✓ {name} is cordoned: nothing new is placed on it");
            Ok(())
        }
        MachineCommand::Uncordon { name } => {
            let _: Value = api.call(Method::POST, &format!("/v1/machines/{name}/uncordon"), None::<&()>).await?;
            eprintln!("✓ {name} takes servers again");
            Ok(())
        }
        MachineCommand::Rm { name } => {
            session.confirm(&format!("{name} is forgotten."))?;
            let _: Value = api.call(Method::DELETE, &format!("/v1/machines/{name}"), None::<&()>).await?;
            eprintln!("✓ {name} is forgotten");
            Ok(())
        }
    }
}
