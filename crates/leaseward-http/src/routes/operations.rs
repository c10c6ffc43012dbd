//! Operations: how far something is that was asked for.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use leaseward_state::Revision;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Fresh, Nothing, Params, not_found};
use crate::model::{Operation, OperationList, Wide};
use crate::operation;
use crate::page::{Page, number_key};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

/// The answer to a write that begins an operation: 202, the operation as it stands, and where to ask for it again.
pub(crate) fn accepted(api: &Api, id: Revision) -> Result<At<Response>, Fault> {
    let state = api.here();
    let operation = operation::find(&state, id).ok_or_else(|| not_found("operation", id))?;
    let place = [(header::LOCATION, format!("/v1/operations/{id}"))];
    Ok(At(state.revision(), (StatusCode::ACCEPTED, place, Json(operation)).into_response()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OperationParams {
    /// Objects on a page, 200 if not given, at most 1000.
    #[serde(default)]
    limit: Option<u32>,
    /// The `next_page` of the page before.
    #[serde(default)]
    page: Option<String>,
    /// Only those that go on.
    #[serde(default)]
    running: bool,
}

/// Lists the operations that the ledger remembers.
#[utoipa::path(
    get, path = "/v1/operations", params(OperationParams), responses((status = 200, body = OperationList))
)]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<OperationParams>,
) -> Result<At<Json<OperationList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let asked = operation::ids(&page.state).filter(|id| !params.running || operation::runs(&page.state, *id));
    let (ids, next_page) = page.take(&api, asked, |id| number_key(id.0));
    let items = ids.into_iter().filter_map(|id| operation::find(&page.state, id)).collect();
    Ok(At(page.revision, Json(OperationList { revision: page.revision.into(), items, next_page })))
}

/// Returns an operation.
#[utoipa::path(
    get, path = "/v1/operations/{id}", params(("id" = String, Path)), responses((status = 200, body = Operation))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(id): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Json<Operation>>, Fault> {
    let state = api.read(&fresh).await?;
    let found = id.parse::<Wide>().ok().and_then(|id| operation::find(&state, id.into()));
    let found = found.ok_or_else(|| not_found("operation", &id))?;
    Ok(At(state.revision(), Json(found)))
}
