//! `leaseward wait`: a barrier for scripts.

use leaseward_http::model::{ClusterStatus, Health, MemberSyncList, Server, SyncPhase};
use serde_json::Value;

use crate::commands::operation;
use crate::diagnostic::Diagnostic;
use crate::route::Route;
use crate::session::Session;

pub(crate) async fn run(session: &Session, condition: &str) -> Result<(), Diagnostic> {
    if let Some(id) = condition.strip_prefix("op/") {
        let id = id.parse().map_err(|_| {
            Diagnostic::new("LW0104", format!("`{condition}` is not an operation"))
                .hint("op/57, as --no-wait prints it")
        })?;
        return operation::follow(session, id).await;
    }
    let bad = || {
        Diagnostic::new("LW0104", format!("`{condition}` is not a condition"))
            .hint("server/NAME=running, config/SET=synced, lease/NAME=free, lease/NAME=held, cluster=healthy, op/ID")
    };
    let (object, state) = condition.split_once('=').ok_or_else(bad)?;
    let (kind, name) = object.split_once('/').unwrap_or((object, ""));
    let route = match (kind, state) {
        ("server", _) => Route::server(name)?,
        ("config", "synced") => Route::set(name)?.then("members"),
        ("lease", "free" | "held") => Route::lease(name)?,
        ("cluster", "healthy") => Route::from("/v1/cluster"),
        _ => return Err(bad()),
    };
    session.until(condition, || holds(session, &route, kind, state)).await
}

async fn holds(session: &Session, route: &Route, kind: &str, state: &str) -> Result<bool, Diagnostic> {
    let api = &session.api;
    match kind {
        "server" => {
            let server = absent(api.get::<Server>(route).await)?;
            Ok(server.is_some_and(|server| server.phase.as_str() == state))
        }
        "config" => {
            let members = absent(api.list::<MemberSyncList>(route).await)?;
            // Members that are gone catch up when they come back, and pinned ones when they are let go; a barrier cannot
            // wait for them.
            Ok(members.is_some_and(|members| {
                let live: Vec<_> = members.items.iter().filter(|member| member.connected && !member.pinned).collect();
                !live.is_empty()
                    && live.iter().all(|member| member.phase == SyncPhase::Applied && member.applied == members.version)
            }))
        }
        "lease" => Ok(absent(api.get::<Value>(route).await)?.is_some() == (state == "held")),
        _ => Ok(api.get::<ClusterStatus>(route).await?.health == Health::Ok),
    }
}

fn absent<T>(answer: Result<T, Diagnostic>) -> Result<Option<T>, Diagnostic> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.code == "LW0404" => Ok(None),
        Err(error) => Err(error),
    }
}
