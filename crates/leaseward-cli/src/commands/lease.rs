//! `leaseward lease …`

use leaseward_http::model::{AcquireLease, Duration, Lease, LeaseList, Renew, RenewOne, Renewed, Revoke, Wide};
use reqwest::Method;
use serde_json::Value;

use crate::args::LeaseCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, note, wide};
use crate::route::Route;
use crate::session::Session;

fn columns() -> Vec<Column> {
    vec![
        column("LEASE", |lease| field(lease, "name")),
        column("HOLDER", |lease| field(lease, "holder")),
        column("TOKEN", |lease| field(lease, "token")),
        column("TTL", |lease| field(lease, "ttl")),
        column("LEFT", |lease| field(lease, "remaining")),
        column("HELD SINCE", |lease| field(lease, "held_since")),
        column("WAITING", |lease| lease["waiting"].as_array().map_or(0, Vec::len).to_string()),
        wide("STATE", |lease| field(lease, "state")),
        wide("SESSION", |lease| field(lease, "session")),
        wide("META", |lease| field(lease, "meta")),
    ]
}

fn bad(what: &str, error: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::new("LW0104", format!("{what}: {error}"))
}

pub(crate) async fn run(session: &Session, command: LeaseCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    match command {
        LeaseCommand::Ls { prefix } => {
            let route = Route::from("/v1/leases").with("prefix", prefix.unwrap_or_default());
            session
                .show(|| async {
                    let leases: LeaseList = api.list(&route).await?;
                    printer::list(&session.output, &leases, &columns())
                })
                .await
        }
        LeaseCommand::Get { name } => {
            session
                .show(|| async {
                    let lease: Lease = api.get(Route::lease(&name)?).await?;
                    printer::object(&session.output, &lease, &columns())
                })
                .await
        }
        LeaseCommand::Acquire { name, holder, ttl, wait } => {
            let holder = holder.unwrap_or_else(|| format!("cli (pid {})", std::process::id()));
            let wait: Option<Duration> =
                wait.map(|wait| wait.parse()).transpose().map_err(|error| bad("--wait", error))?;
            let ttl = Some(ttl.parse().map_err(|error| bad("--ttl", error))?);
            let ask = AcquireLease { holder, ttl, wait, ..AcquireLease::default() };
            let asked = api.clone().and_waits(wait.unwrap_or_default().into());
            let lease: Lease = asked.call(Method::PUT, Route::lease(&name)?, Some(&ask)).await?;
            printer::object(&session.output, &lease, &columns())
        }
        LeaseCommand::Renew { session: id } => {
            let ask = Renew { sessions: vec![RenewOne { session: Wide(id), known: Wide(0) }] };
            let renewed: Renewed = api.call(Method::POST, "/v1/leases:renew", Some(&ask)).await?;
            match renewed.sessions.first() {
                Some(one) if one.alive => printer::object(
                    &session.output,
                    one,
                    &[column("SESSION", |one| field(one, "session")), column("ALIVE", |one| field(one, "alive"))],
                ),
                _ => Err(Diagnostic::new("LW0204", format!("session {id} is over"))),
            }
        }
        LeaseCommand::Release { name, token } => {
            let _: Value = api.call(Method::DELETE, Route::lease(&name)?.with("token", token), None::<&()>).await?;
            note!("✓ {name} released");
            Ok(())
        }
        LeaseCommand::Revoke { name } => {
            session.confirm(&format!("{name} is taken away from its holder."))?;
            let ask = Revoke { name: name.clone(), token: None };
            let _: Value = api.call(Method::POST, "/v1/leases:revoke", Some(&ask)).await?;
            note!("✓ {name} revoked");
            Ok(())
        }
    }
}
