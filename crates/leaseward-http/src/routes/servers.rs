//! Servers: define, start, stop, move, forget.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_failover::placement::{Load, candidates, choose};
use leaseward_failover::sane::{Misfit, misfit};
use leaseward_state::command::Condition;
use leaseward_state::policy::Pause;
use leaseward_state::server::ServerSpec;
use leaseward_state::{Command, Refusal, Reply, ServerName};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write, name, not_found};
use crate::history;
use crate::model::{BeginPause, History, Operation, Server, ServerFile, ServerList};
use crate::page::Page;
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::routes::operations::accepted;
use crate::routes::policy::from_now;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, put, remove))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(relocate))
        .routes(routes!(restart))
        .routes(routes!(failback))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(incidents))
        .merge(super::printed::routes())
}

/// How a server is defined.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Define {
    /// Also what no machine of the cluster could run, or what leaves no room for the loss of one.
    #[serde(default)]
    force: bool,
}

/// Lists servers.
#[utoipa::path(get, path = "/v1/servers", params(ListParams), responses((status = 200, body = ServerList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<ServerList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let all = page.state.servers().filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let (servers, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let items = servers.into_iter().map(|(name, server)| view::server(&page.state, name, server)).collect();
    Ok(At(page.revision, Json(ServerList { revision: page.revision.into(), items, next_page })))
}

/// Returns a server.
#[utoipa::path(
    get, path = "/v1/servers/{name}", params(("name" = String, Path)), responses((status = 200, body = Server))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let server: ServerName = name(&server)?;
    let state = api.read(&fresh).await?;
    let found = state.server(&server).ok_or_else(|| not_found("server", &server))?;
    let object = view::server(&state, &server, found);
    Ok(At(state.revision(), tagged(StatusCode::OK, found.version, object)))
}

fn shown(api: &Api, server: &ServerName, status: StatusCode) -> Result<At<Response>, Fault> {
    let state = api.here();
    let found = state.server(server).ok_or_else(|| not_found("server", server))?;
    Ok(At(state.revision(), tagged(status, found.version, view::server(&state, server, found))))
}

/// Defines a server, or replaces its specification. A running one goes on under the new one.
#[utoipa::path(
    put, path = "/v1/servers/{name}", params(("name" = String, Path), Define), request_body = ServerFile,
    responses((status = 200, body = Server), (status = 201, body = Server, description = "It is new"))
)]
async fn put(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(how): Params<Define>,
    write: Write,
    Body(file): Body<ServerFile>,
) -> Result<At<Response>, Fault> {
    let server: ServerName = name(&server)?;
    if file.name.as_ref().is_some_and(|name| name != server.as_str()) {
        return Err(problem::of(Code::Invalid, format!("`name` is not {server}, as the URL says")).into());
    }
    let spec = Box::new(file.to_spec()?);
    if !how.force {
        // What this node knows is enough: nothing is safer for it.
        can_work(&api.here(), &server, &spec)?;
    }
    let command = Command::PutServer { server: server.clone(), spec, if_version: write.version() };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    let is_new = api.here().server(&server).is_some_and(|found| found.created == revision);
    shown(&api, &server, if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// Refuses what no waiting could mend.
fn can_work(state: &leaseward_state::State, server: &ServerName, spec: &ServerSpec) -> Result<(), Fault> {
    match misfit(state, server, spec) {
        None => Ok(()),
        Some(why @ Misfit::Nowhere(_)) => Err(problem::of(Code::Nowhere, why.to_string()).into()),
        Some(why @ Misfit::NoSpare { .. }) => Err(problem::of(Code::NoSpare, why.to_string()).into()),
    }
}

/// Forgets a server that runs nowhere.
#[utoipa::path(delete, path = "/v1/servers/{name}", params(("name" = String, Path)), responses((status = 204)))]
async fn remove(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<StatusCode>, Fault> {
    let command = Command::RemoveServer { server: name(&server)?, if_version: write.version() };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}

/// Wants a server running. A failed one gets a new chance.
#[utoipa::path(
    post, path = "/v1/servers/{name}/start", params(("name" = String, Path)),
    responses((status = 202, body = Operation))
)]
async fn start(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    want(&api, &server, &write, leaseward_state::server::Wanted::Running).await
}

/// Wants a server stopped.
#[utoipa::path(
    post, path = "/v1/servers/{name}/stop", params(("name" = String, Path)),
    responses((status = 202, body = Operation))
)]
async fn stop(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    want(&api, &server, &write, leaseward_state::server::Wanted::Stopped).await
}

async fn want(
    api: &Api,
    server: &str,
    write: &Write,
    wanted: leaseward_state::server::Wanted,
) -> Result<At<Response>, Fault> {
    let server: ServerName = name(server)?;
    let conditions = write.version().map(|version| Condition::Server(server.clone(), version)).into_iter().collect();
    let (revision, _) = api.commit(write, 0, conditions, Command::SetWanted { server, wanted }).await?;
    accepted(api, revision)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct MoveParams {
    /// The machine.
    to: String,
    /// Whether it goes back if it cannot be started there. True if not given.
    #[serde(default)]
    rollback: Option<bool>,
}

/// Moves a server: it stops where it is, and then starts there.
#[utoipa::path(
    post, path = "/v1/servers/{name}/move", params(("name" = String, Path), MoveParams),
    responses((status = 202, body = Operation))
)]
async fn relocate(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(params): Params<MoveParams>,
    write: Write,
) -> Result<At<Response>, Fault> {
    let server: ServerName = name(&server)?;
    write.without_version()?;
    let command = Command::Move { server, to: name(&params.to)?, rollback: params.rollback.unwrap_or(true) };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    accepted(&api, revision)
}

/// Stops a server and starts it again on its machine, under a new token.
#[utoipa::path(
    post, path = "/v1/servers/{name}/restart", params(("name" = String, Path)),
    responses((status = 202, body = Operation))
)]
async fn restart(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    write.without_version()?;
    let command = Command::Restart { server: name(&server)? };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    accepted(&api, revision)
}

/// Moves a server to the first of its candidates that could take it now.
#[utoipa::path(
    post, path = "/v1/servers/{name}/failback", params(("name" = String, Path)),
    responses((status = 202, body = Operation))
)]
async fn failback(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    write.without_version()?;
    let server: ServerName = name(&server)?;
    let state = api.read_now().await?;
    // Sent again it is what was asked before, wherever it would go now.
    if let Some(kept) = api.kept(&write, 0, &state).filter(|kept| !matches!(kept.reply, Reply::Refused(_))) {
        return accepted(&api, kept.revision);
    }
    let found = state.server(&server).ok_or_else(|| not_found("server", &server))?;
    let in_use = |why| api.refused(&Refusal::InUse { kind: "server".into(), name: server.to_string(), why });
    let Some(candidates) = candidates(&state, found) else {
        return Err(in_use("it has no list of candidates, so no machine is the first one".into()));
    };
    let at = found.assignment().map(|at| &at.machine);
    let choice = choose(&state, &Load::of(&state), &server, found);
    let first = candidates.iter().find(|machine| Some(*machine) == at || choice.fit.contains(*machine));
    let Some(to) = first.cloned() else {
        let why = choice.unfit.iter().map(|(machine, why)| format!("{machine}: {why}")).collect::<Vec<_>>().join("; ");
        return Err(in_use(format!("no candidate could take it: {why}")));
    };
    let (revision, _) = api.commit(&write, 0, Vec::new(), Command::Move { server, to, rollback: true }).await?;
    accepted(&api, revision)
}

/// Leaves a server as it is: it is neither restarted nor moved. Its lease is renewed, and still fences it.
#[utoipa::path(
    post, path = "/v1/servers/{name}/pause", params(("name" = String, Path)), request_body = BeginPause,
    responses((status = 200, body = Server))
)]
async fn pause(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<BeginPause>,
) -> Result<At<Response>, Fault> {
    set_pause(&api, &server, &write, Some(Pause { why: body.reason, until: body.lasting.map(from_now) })).await
}

/// Ends the pause of a server.
#[utoipa::path(
    post, path = "/v1/servers/{name}/resume", params(("name" = String, Path)), responses((status = 200, body = Server))
)]
async fn resume(
    State(api): State<Api>,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    set_pause(&api, &server, &write, None).await
}

async fn set_pause(api: &Api, server: &str, write: &Write, pause: Option<Pause>) -> Result<At<Response>, Fault> {
    write.without_version()?;
    let server: ServerName = name(server)?;
    api.commit(write, 0, Vec::new(), Command::Pause { server: server.clone(), pause }).await?;
    shown(api, &server, StatusCode::OK)
}

/// Returns a server's interruptions that the ledger remembers, each phase by phase, against the computed worst case.
#[utoipa::path(
    get, path = "/v1/servers/{name}/history", params(("name" = String, Path)), responses((status = 200, body = History))
)]
async fn incidents(
    State(api): State<Api>,
    fresh: Fresh,
    Path(server): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Json<History>>, Fault> {
    let server: ServerName = name(&server)?;
    let state = api.read(&fresh).await?;
    state.server(&server).ok_or_else(|| not_found("server", &server))?;
    Ok(At(state.revision(), Json(history::of(&state, &server))))
}
