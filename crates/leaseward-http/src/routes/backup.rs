//! A backup: the state and the content of the cluster, as a stream.
//!
//! Must stay true: a stream that breaks off is no backup; whoever takes it looks for its end. Nothing here knows what is
//! in it.

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Nothing, Params};
use crate::routes::publish::content;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(create))
}

/// Returns a backup of the cluster as it is now: its state, and the content of every kept version of its config sets. It
/// is made while it is sent; only one that ends as a backup does is whole (`leaseward backup verify`).
#[utoipa::path(
    get, path = "/v1/backup", responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"))
)]
async fn create(State(api): State<Api>, Params(Nothing {}): Params<Nothing>) -> Result<At<Response>, Fault> {
    let backup = api.content.backup().await.map_err(content)?;
    let pieces = unfold(backup.pieces, async |mut pieces| Some((pieces.recv().await?, pieces)));
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok(At(backup.revision, (headers, Body::from_stream(pieces)).into_response()))
}
