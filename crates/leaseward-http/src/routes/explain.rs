//! Why something is as it is.

use axum::Json;
use axum::extract::{Path, State};
use leaseward_state::{LeaseName, ServerName, SetName};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Fresh, Nothing, Params, name, not_found};
use crate::model::Explanation;
use crate::routes::nodes::nodes;
use crate::{explain, suggest};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(object))
}

const KINDS: [&str; 4] = ["server", "lease", "node", "config"];

/// Says how a server, lease, node or config set is, and why. A node is explained by what it answers just now, also
/// without a leader; a lease that nobody has is explained as free.
#[utoipa::path(
    get, path = "/v1/explain/{kind}/{*name}",
    params(
        ("kind" = String, Path, description = "server, lease, node or config"),
        ("name" = String, Path, description = "May hold slashes")
    ),
    responses((status = 200, body = Explanation))
)]
async fn object(
    State(api): State<Api>,
    fresh: Fresh,
    Path((kind, what)): Path<(String, String)>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Json<Explanation>>, Fault> {
    let leader = api.leader_name();
    let explained = match kind.as_str() {
        "server" => {
            let server: ServerName = name(&what)?;
            let state = api.read(&fresh).await?;
            let found = state.server(&server).ok_or_else(|| not_found("server", &server))?;
            explain::server(&state, &server, found, leader.as_deref())
        }
        "lease" => {
            let lease: LeaseName = name(&what)?;
            explain::lease(&*api.read(&fresh).await?, &api.remaining(), &lease)
        }
        "config" => {
            let set: SetName = name(&what)?;
            explain::config(&*api.read(&fresh).await?, &set).ok_or_else(|| not_found("config", &set))?
        }
        "node" => {
            let state = api.read_here(&fresh.here())?;
            let all = nodes(&api).await;
            let found = all.iter().find(|node| node.name == what || node.id.to_string() == what);
            let found = found.ok_or_else(|| not_found("node", &what))?;
            explain::node(&state, &all, found, &api.shared.name, leader.as_deref())
        }
        other => return Err(suggest::unknown_word("kind of object", other, &KINDS).into()),
    };
    let revision = explained.revision.into();
    Ok(At(revision, Json(explained)))
}
