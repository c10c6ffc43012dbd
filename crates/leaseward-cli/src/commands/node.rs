//! `leaseward node …`

use leaseward_http::model::{Node, NodeList, NodeRole, Transfer};
use reqwest::Method;
use serde_json::Value;

use crate::api::Api;
use crate::args::NodeCommand;
use crate::diagnostic::Diagnostic;
use crate::printer::{self, Column, column, field, note, wide};
use crate::route::Route;
use crate::session::Session;

pub(crate) fn columns() -> Vec<Column> {
    vec![
        column("NODE", |node| field(node, "name")),
        column("ID", |node| field(node, "id")),
        column("ROLE", |node| match node["witness"].as_bool() {
            Some(true) => format!("{} (witness)", field(node, "role")),
            _ => field(node, "role"),
        }),
        column("STATE", |node| match node["up"].as_bool() {
            Some(true) => "● up".into(),
            _ => "✖ down".into(),
        }),
        column("LAG", |node| field(node, "lag")),
        column("VERSION", |node| field(node, "version")),
        wide("READS LEVEL", |node| field(node, "feature_level")),
        wide("APPLIED", |node| field(node, "applied")),
        wide("PEERS AT", |node| field(node, "peer_address")),
        wide("API AT", |node| field(node, "api_address")),
        wide("ANSWERED IN", |node| field(node, "answered_in")),
    ]
}

pub(crate) async fn run(session: &Session, command: NodeCommand) -> Result<(), Diagnostic> {
    let api = &session.api;
    let done = |what: String| {
        note!("✓ {what}");
        Ok(())
    };
    match command {
        NodeCommand::Ls => {
            session
                .show(|| async {
                    let nodes: NodeList = api.list("/v1/nodes").await?;
                    printer::list(&session.output, &nodes, &columns())
                })
                .await
        }
        NodeCommand::Promote { node } => {
            let id = id(api, &node).await?;
            let _: Value = api.call(Method::POST, node_route(id).then("promote"), None::<&()>).await?;
            done(format!("{node} may vote, and does as soon as that makes an odd number of voters"))
        }
        NodeCommand::Demote { node } => {
            session.confirm(&format!("{node} does not vote any more."))?;
            let id = id(api, &node).await?;
            let _: Value = api.call(Method::POST, node_route(id).then("demote"), None::<&()>).await?;
            done(format!("{node} does not vote any more; so that their number is odd, another one may stand by now"))
        }
        NodeCommand::Rm { node } => {
            session.confirm(&format!("{node} is removed from the cluster."))?;
            let id = id(api, &node).await?;
            let _: Value = api.call(Method::DELETE, node_route(id), None::<&()>).await?;
            done(format!("{node} is no longer part of the cluster"))
        }
        NodeCommand::TransferLeader { to } => {
            let to = match to {
                Some(node) => Some(id(api, &node).await?),
                None => None,
            };
            let _: Value = api.call(Method::POST, "/v1/cluster/transfer-leader", Some(&Transfer { to })).await?;
            done("another voter leads".into())
        }
        NodeCommand::Upgrade { finish: false } => {
            let mut nodes: NodeList = api.list("/v1/nodes").await?;
            // Whoever matters least goes first: one election at most.
            nodes.items.sort_by_key(|node| match node.role {
                NodeRole::Learner | NodeRole::Standby => 0,
                NodeRole::Voter => 1,
                NodeRole::Leader => 2,
            });
            note!(
                "One node after the other, in this order, each up again before the next one; the leader after \
                 `leaseward node transfer-leader`. Then `leaseward node upgrade --finish`."
            );
            printer::list(&session.output, &nodes, &columns())
        }
        NodeCommand::Upgrade { finish: true } => {
            session.confirm("No node can go back to an older release afterwards.")?;
            let _: Value = api.call(Method::POST, "/v1/cluster/finish-upgrade", None::<&()>).await?;
            done("every node can read what this release brought".into())
        }
    }
}

fn node_route(id: u64) -> Route {
    Route::from("/v1/nodes").then(id)
}

/// Returns the id of a node that was named.
async fn id(api: &Api, node: &str) -> Result<u64, Diagnostic> {
    if let Ok(id) = node.parse() {
        return Ok(id);
    }
    let of = |nodes: Vec<Node>| nodes.into_iter().find(|known| known.name == node).map(|known| known.id);
    if let Some(id) = of(api.nodes().await?) {
        return Ok(id);
    }
    // Whoever was asked may be behind, or no part of the cluster any more: after a read as new as now it knows, or says so.
    let _: Value = api.get("/v1/leases?limit=1").await?;
    of(api.nodes().await?).ok_or_else(|| Diagnostic::new("LW0404", format!("node/{node} does not exist")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;
    use crate::target::Target;

    /// Asks a node that knows nobody before it has caught up for the ids of two.
    async fn asked(node: &str) -> Result<u64, Diagnostic> {
        let current = Arc::new(AtomicBool::new(false));
        let (seen, caught_up) = (Arc::clone(&current), Arc::clone(&current));
        let list = async move || {
            let known = json!({ "id": 7, "name": "h4", "role": "voter", "witness": false, "up": true,
                                "peer_address": "", "api_address": "" });
            let items = if seen.load(Ordering::Relaxed) { vec![known] } else { Vec::new() };
            Json(json!({ "revision": "1", "items": items }))
        };
        let read = async move || {
            caught_up.store(true, Ordering::Relaxed);
            Json(json!({ "revision": "1", "items": [] }))
        };
        let router = Router::new().route("/v1/nodes", get(list)).route("/v1/leases", get(read));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        let api = Api::new(&Target { api: vec![address], token: None, timeout: Duration::from_secs(10) });
        let found = id(&api, node).await;
        server.abort();
        found
    }

    #[tokio::test]
    async fn a_node_that_is_behind_is_not_believed_that_another_one_does_not_exist() {
        assert_eq!(asked("h4").await.expect("it is known after all"), 7);
        assert_eq!(asked("h5").await.expect_err("nobody is called so").code, "LW0404");
    }
}
