//! What a server printed: its machine is asked, and only that.

use axum::Json;
use axum::extract::{Path, State};
use leaseward_raft::limits::PRINTED_WITHIN;
use leaseward_raft::net::wire::{About, Told};
use leaseward_state::{MachineName, ServerName};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Fresh, Params, name, not_found};
use crate::limits::LINES_USUAL;
use crate::model::ServerOutput;
use crate::problem::{self, Code};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(printed))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// The machine; if not given, the one on which it runs, or ran last.
    #[serde(default)]
    machine: Option<String>,
    /// The last so many lines; 200 if not given. There are at most 256 KiB of them.
    #[serde(default)]
    lines: Option<u32>,
}

/// Returns the last lines that a server printed. The agent of the machine looks them up: while it does not answer,
/// nobody can.
#[utoipa::path(
    get, path = "/v1/servers/{name}/logs", params(("name" = String, Path), Which),
    responses((status = 200, body = ServerOutput))
)]
async fn printed(
    State(api): State<Api>,
    fresh: Fresh,
    Path(server): Path<String>,
    Params(which): Params<Which>,
) -> Result<At<Json<ServerOutput>>, Fault> {
    let server: ServerName = name(&server)?;
    let state = api.read(&fresh).await?;
    let found = state.server(&server).ok_or_else(|| not_found("server", &server))?;
    let machine: MachineName = match &which.machine {
        Some(machine) => name(machine)?,
        None => {
            let at = found.assignment().map(|at| at.machine.clone()).or_else(|| found.last_machine.clone());
            at.ok_or_else(|| problem::of(Code::NotFound, format!("{server} has not run anywhere yet")))?
        }
    };
    let at = state.machine(&machine).ok_or_else(|| not_found("machine", &machine))?;
    let unheard = |why: String| problem::of(Code::Unheard, format!("{machine} has what {server} printed, and {why}"));
    if at.session.is_none() {
        return Err(unheard("its agent is not connected".into()).into());
    }
    let lines = which.lines.unwrap_or(LINES_USUAL);
    match api.replica.told(machine.clone(), About::Printed { server: server.clone(), lines }).await {
        Some(Told::Lines(lines)) => {
            let output = ServerOutput { server: server.to_string(), machine: machine.to_string(), lines };
            Ok(At(state.revision(), Json(output)))
        }
        Some(Told::NotHere | Told::Tree(_) | Told::Pieces(_)) => {
            Err(problem::of(Code::NotFound, format!("{server} printed nothing on {machine}")).into())
        }
        Some(Told::Failed { code, why }) => Err(problem::with_code(&code, format!("{machine}: {why}")).into()),
        None => Err(unheard(format!("its agent did not answer within {} s", PRINTED_WITHIN.as_secs())).into()),
    }
}
