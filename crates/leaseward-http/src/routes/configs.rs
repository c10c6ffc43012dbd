//! Config sets: what is published, what is in it, who has it.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body as Bytes, Bytes as Piece};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use leaseward_state::command::Condition;
use leaseward_state::config::{Chunk, ManifestNode, Version, check_path};
use leaseward_state::{Command, SetName, State as Clustered};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::Api;
use crate::ask::{Fresh, Nothing, Params, Write, name, not_found};
use crate::model::{ConfigSet, ConfigSetList, ConfigVersionList, ManifestListing, MemberSyncList, entries};
use crate::page::{Page, number_key};
use crate::problem::{self, Code};
use crate::routes::ListParams;
use crate::routes::publish::manifest;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, remove))
        .routes(routes!(versions))
        .routes(routes!(version))
        .routes(routes!(file))
        .routes(routes!(members))
}

/// Which sets.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SetParams {
    /// Only names that begin so.
    #[serde(default)]
    prefix: String,
    /// Objects on a page, 200 if not given, at most 1000.
    #[serde(default)]
    limit: Option<u32>,
    /// The `next_page` of the page before.
    #[serde(default)]
    page: Option<String>,
    /// Only those whose newest version is on its way to their members in steps.
    #[serde(default)]
    rolling: bool,
}

/// Lists config sets.
#[utoipa::path(get, path = "/v1/configs", params(SetParams), responses((status = 200, body = ConfigSetList)))]
async fn list(
    State(api): State<Api>,
    fresh: Fresh,
    Params(params): Params<SetParams>,
) -> Result<At<Json<ConfigSetList>>, Fault> {
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let all = page.state.sets().filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let all = all.filter(|(_, set)| !params.rolling || set.rollout.is_some());
    let (sets, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let items = sets.into_iter().map(|(name, set)| view::set(&page.state, name, set)).collect();
    Ok(At(page.revision, Json(ConfigSetList { revision: page.revision.into(), items, next_page })))
}

/// Returns a config set.
#[utoipa::path(
    get, path = "/v1/configs/{set}", params(("set" = String, Path)), responses((status = 200, body = ConfigSet))
)]
async fn get(
    State(api): State<Api>,
    fresh: Fresh,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    let state = api.read(&fresh).await?;
    let found = state.set(&set).ok_or_else(|| not_found("config", &set))?;
    Ok(At(state.revision(), tagged(StatusCode::OK, found.head, view::set(&state, &set, found))))
}

/// Forgets a set. Members leave its files alone.
#[utoipa::path(delete, path = "/v1/configs/{set}", params(("set" = String, Path)), responses((status = 204)))]
async fn remove(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
) -> Result<At<StatusCode>, Fault> {
    let set: SetName = name(&set)?;
    let conditions = write.version().map(|version| Condition::Set(set.clone(), version)).into_iter().collect();
    let (revision, _) = api.commit(&write, 0, conditions, Command::RemoveSet { set }).await?;
    Ok(At(revision, StatusCode::NO_CONTENT))
}

/// Lists the versions of a set that are kept, newest first.
#[utoipa::path(
    get, path = "/v1/configs/{set}/versions", params(("set" = String, Path), ListParams),
    responses((status = 200, body = ConfigVersionList))
)]
async fn versions(
    State(api): State<Api>,
    fresh: Fresh,
    Path(set): Path<String>,
    Params(params): Params<ListParams>,
) -> Result<At<Json<ConfigVersionList>>, Fault> {
    let set: SetName = name(&set)?;
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let found = page.state.set(&set).ok_or_else(|| not_found("config", &set))?;
    let all = found.versions.values().rev();
    let (versions, next_page) = page.take(&api, all, |version| number_key(u64::MAX - version.number));
    let items = versions.into_iter().map(|version| view::version(&set, version)).collect();
    Ok(At(page.revision, Json(ConfigVersionList { revision: page.revision.into(), items, next_page })))
}

/// Returns a version that is kept.
pub(crate) fn find<'a>(state: &'a Clustered, set: &SetName, number: u64) -> Result<&'a Version, Fault> {
    let found = state.set(set).ok_or_else(|| not_found("config", set))?;
    found.versions.get(&number).map(|version| &**version).ok_or_else(|| not_found("config", format!("{set} v{number}")))
}

fn number(text: &str) -> Result<u64, Fault> {
    text.strip_prefix('v')
        .unwrap_or(text)
        .parse()
        .map_err(|_| problem::of(Code::Invalid, "a version is a number, such as 42").into())
}

/// Returns a version with everything in it.
#[utoipa::path(
    get, path = "/v1/configs/{set}/versions/{n}", params(("set" = String, Path), ("n" = u64, Path)),
    responses((status = 200, body = ManifestListing))
)]
async fn version(
    State(api): State<Api>,
    fresh: Fresh,
    Path((set, n)): Path<(String, String)>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let (set, n): (SetName, u64) = (name(&set)?, number(&n)?);
    let state = api.read(&fresh).await?;
    let version = find(&state, &set, n)?;
    let manifest = manifest(&api, version.manifest).await?;
    let entries = entries(&manifest);
    let listing = ManifestListing { version: view::version(&set, version), entries };
    Ok(At(state.revision(), tagged(StatusCode::OK, n, listing)))
}

/// Returns the bytes of a file.
#[utoipa::path(
    get, path = "/v1/configs/{set}/versions/{n}/files/{*path}",
    params(("set" = String, Path), ("n" = u64, Path), ("path" = String, Path, description = "May hold slashes")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"))
)]
async fn file(
    State(api): State<Api>,
    fresh: Fresh,
    Path((set, n, path)): Path<(String, String, String)>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<At<Response>, Fault> {
    let (set, n): (SetName, u64) = (name(&set)?, number(&n)?);
    check_path(&path).map_err(|bad| problem::of(Code::Path, bad.to_string()))?;
    let state = api.read(&fresh).await?;
    let manifest = manifest(&api, find(&state, &set, n)?.manifest).await?;
    let found = manifest.entries.iter().find(|entry| entry.path == path).map(|entry| &entry.node);
    let Some(ManifestNode::File { size, digest, chunks, .. }) = found else {
        return Err(not_found("config", format!("{set} v{n}: {path}")));
    };
    // What is missing is said before the first byte, as far as it can be known.
    let first = match chunks.first() {
        Some(chunk) => Some(
            chunk_of(&api, *chunk)
                .await
                .map_err(|error| Fault::from(problem::of(Code::BlobMissing, error.to_string())))?,
        ),
        None => None,
    };
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::ETAG, format!("\"{digest}\"")),
    ];
    let rest: Vec<Chunk> = chunks.iter().skip(1).copied().collect();
    let api = api.clone();
    let rest = stream::iter(rest).then(move |chunk| {
        let api = api.clone();
        async move { chunk_of(&api, chunk).await }
    });
    let body = stream::iter(first.map(Ok)).chain(rest);
    Ok(At(state.revision(), (headers, Bytes::from_stream(body)).into_response()))
}

async fn chunk_of(api: &Api, chunk: Chunk) -> io::Result<Piece> {
    let found = Arc::clone(&api.content).get(chunk.digest).await.map_err(io::Error::other)?;
    found.map(Piece::from).ok_or_else(|| io::Error::other(format!("blob {} is missing", chunk.digest)))
}

/// How far each member is: the sync monitor.
#[utoipa::path(
    get, path = "/v1/configs/{set}/members", params(("set" = String, Path), ListParams),
    responses((status = 200, body = MemberSyncList))
)]
async fn members(
    State(api): State<Api>,
    fresh: Fresh,
    Path(set): Path<String>,
    Params(params): Params<ListParams>,
) -> Result<At<Json<MemberSyncList>>, Fault> {
    let set: SetName = name(&set)?;
    let page = Page::open(&api, &fresh, params.limit, params.page.as_deref()).await?;
    let found = page.state.set(&set).ok_or_else(|| not_found("config", &set))?;
    let (head, rollout) = (found.head, view::set(&page.state, &set, found).rollout);
    let all = page.state.members_of(found).filter(|(name, _)| name.as_str().starts_with(&params.prefix));
    let programs = match params.page {
        None => page.state.programs_of(&set).map(|(at, sync)| view::program(&page.state, found, at, sync)).collect(),
        Some(_) => Vec::new(),
    };
    let (machines, next_page) = page.take(&api, all, |(name, _)| name.to_string());
    let items =
        machines.into_iter().map(|(name, machine)| view::member(&page.state, &set, found, name, machine)).collect();
    Ok(At(
        page.revision,
        Json(MemberSyncList { revision: page.revision.into(), version: head, rollout, items, programs, next_page }),
    ))
}
