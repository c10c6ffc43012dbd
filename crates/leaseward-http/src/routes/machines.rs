//! Machines: list, cordon, drain, vouch for a death, forget.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_state::command::Condition;
use leaseward_state::machine::Cordon;
use leaseward_state::{Command, MachineName, Revision};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write, name, not_found};
use crate::model::{self, ConfirmDead, Machine, MachineList, Operation};
use crate::page::Page;
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::routes::operations::accepted;
use crate::routes::policy::from_now;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, remove))
        .routes(routes!(cordon))
        .routes(routes!(resume))
        .routes(routes!(drain))
        .routes(routes!(confirm_dead))
}

/// Lists machines.
#[utoipa::path(get, path = "/v1/machines", params(ListParams), responses((status = 200, body = MachineList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<ListParams>,
) -> Result<At<Json<MachineList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let all = page.state.machines().filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let (machines, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let items = machines.into_iter().map(|(name, machine)| view::machine(&page.state, name, machine)).collect();
    Ok(At(page.revision, Json(MachineList { revision: page.revision.into(), items, next_page })))
}

/// Returns a machine.
#[utoipa::path(
    get, path = "/v1/machines/{name}", params(("name" = String, Path)), responses((status = 200, body = Machine))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let machine: MachineName = name(&machine)?;
    let state = api.read(&fresh).await?;
    let found = state.machine(&machine).ok_or_else(|| not_found("machine", &machine))?;
    let object = view::machine(&state, &machine, found);
    Ok(At(state.revision(), tagged(StatusCode::OK, found.modified.0, object)))
}

/// Forgets a machine whose agent is gone.
#[utoipa::path(delete, path = "/v1/machines/{name}", params(("name" = String, Path)), responses((status = 204)))]
async fn remove(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<StatusCode>, Fault> {
    write.without_condition()?;
    let command = Command::RemoveMachine { machine: name(&machine)? };
    let (revision, _) = api.commit(&write, 0, Vec::new(), command).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}

/// Keeps new servers away from a machine. Those that run there go on.
#[utoipa::path(
    post, path = "/v1/machines/{name}/cordon", params(("name" = String, Path)), request_body = model::Cordon,
    responses((status = 200, body = Machine))
)]
async fn cordon(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<model::Cordon>,
) -> Result<At<Response>, Fault> {
    let quarantine = body.quarantine;
    set_cordon(&api, &machine, &write, Some(of(body, false, quarantine))).await?;
    shown(&api, &machine)
}

fn of(body: model::Cordon, drains: bool, quarantine: bool) -> Cordon {
    Cordon { why: body.reason, drains, quarantine, until: body.lasting.map(from_now) }
}

/// Moves every server off a machine, one after the other, and keeps new ones away.
#[utoipa::path(
    post, path = "/v1/machines/{name}/drain", params(("name" = String, Path)), request_body = model::Cordon,
    responses((status = 202, body = Operation))
)]
async fn drain(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<model::Cordon>,
) -> Result<At<Response>, Fault> {
    let revision = set_cordon(&api, &machine, &write, Some(of(body, true, false))).await?;
    accepted(&api, revision)
}

/// Lets servers come to a machine again: ends its cordon, drain or quarantine, and forgets its losses.
#[utoipa::path(
    post, path = "/v1/machines/{name}/resume", params(("name" = String, Path)),
    responses((status = 200, body = Machine))
)]
async fn resume(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<Response>, Fault> {
    set_cordon(&api, &machine, &write, None).await?;
    shown(&api, &machine)
}

/// Vouches for the death of a machine that is lost: every copy on it counts as dead. If it is not off, a server may
/// run twice; so the name is typed once more, and who says so is kept.
#[utoipa::path(
    post, path = "/v1/machines/{name}/confirm-dead", params(("name" = String, Path)), request_body = ConfirmDead,
    responses((status = 200, body = Machine))
)]
async fn confirm_dead(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<ConfirmDead>,
) -> Result<At<Response>, Fault> {
    write.without_version()?;
    if body.confirm != machine {
        let detail = format!("`confirm` is \"{}\", not \"{machine}\": nothing was done", body.confirm);
        return Err(problem::of(Code::Invalid, detail).into());
    }
    let command = Command::ConfirmDead { machine: name(&machine)?, by: body.by };
    api.commit(&write, 0, Vec::new(), command).await?;
    shown(&api, &machine)
}

async fn set_cordon(api: &Api, machine: &str, write: &Write, cordon: Option<Cordon>) -> Result<Revision, Fault> {
    let machine: MachineName = name(machine)?;
    let condition = |version| Condition::Machine(machine.clone(), Revision(version));
    let conditions = write.version().map(condition).into_iter().collect();
    let (revision, _) = api.commit(write, 0, conditions, Command::Cordon { machine, cordon }).await?;
    Ok(revision)
}

fn shown(api: &Api, machine: &str) -> Result<At<Response>, Fault> {
    let machine: MachineName = name(machine)?;
    let state = api.here();
    let found = state.machine(&machine).ok_or_else(|| not_found("machine", &machine))?;
    Ok(At(state.revision(), tagged(StatusCode::OK, found.modified.0, view::machine(&state, &machine, found))))
}
