//! Blobs: pieces of content by their hash. Put what the node lacks, then publish there: that makes them durable.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use leaseward_sync::{digest_of, frame};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::Fault;
use crate::api::Api;
use crate::ask::{Body, Nothing, Params, Write, bytes, not_found};
use crate::limits::{BLOB_BYTES_MAX, FRAMES_BYTES_MAX, NAMES_BYTES_MAX};
use crate::model::MissingBlobs;
use crate::problem::{self, Code};
use crate::routes::publish::{content, digest};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    let names = OpenApiRouter::new().routes(routes!(missing)).layer(DefaultBodyLimit::max(NAMES_BYTES_MAX));
    let blobs = OpenApiRouter::new().routes(routes!(put, get)).layer(DefaultBodyLimit::max(BLOB_BYTES_MAX));
    let frames = OpenApiRouter::new().routes(routes!(put_many)).layer(DefaultBodyLimit::max(FRAMES_BYTES_MAX));
    names.merge(blobs).merge(frames)
}

/// Returns those blobs that this node lacks. What it has, it keeps for an hour at least.
#[utoipa::path(
    post, path = "/v1/blobs/missing", request_body = MissingBlobs, responses((status = 200, body = MissingBlobs))
)]
async fn missing(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<MissingBlobs>,
) -> Result<Json<MissingBlobs>, Fault> {
    write.without_condition()?;
    let digests = body.digests.iter().map(|text| digest(text)).collect::<Result<_, _>>()?;
    let missing = api.content.lacking(digests).await.map_err(content)?;
    Ok(Json(MissingBlobs { digests: missing.iter().map(ToString::to_string).collect() }))
}

/// Keeps a blob on this node. It becomes durable with the version that names it. Putting it again is harmless.
#[utoipa::path(
    put, path = "/v1/blobs/{digest}", params(("digest" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses((status = 204))
)]
async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Fault> {
    write.without_condition()?;
    let digest = digest(&name)?;
    let plain = bytes(body)?;
    if digest_of(&plain) != digest {
        let detail = format!("the {} bytes that came have another hash than {digest}", plain.len());
        return Err(problem::of(Code::BlobCorrupt, detail).into());
    }
    let frame = frame::pack(&plain).map_err(|error| problem::with_code(error.code(), error.to_string()))?;
    api.content.keep(vec![(digest, frame.into())]).await.map_err(content)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keeps several blobs on this node, as `PUT` does one. The body is each one's hash (32 bytes), the length of its stored
/// form (4 bytes, the lowest first) and its stored form, one blob after the other.
#[utoipa::path(
    post, path = "/v1/blobs", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204))
)]
async fn put_many(
    State(api): State<Api>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Fault> {
    write.without_condition()?;
    let joined = bytes(body)?;
    let frames = frame::split(&joined)
        .ok_or_else(|| problem::of(Code::Unreadable, "the body is not a run of blobs with their names and lengths"))?;
    let frames = frames.into_iter().map(|(digest, frame)| (digest, joined.slice_ref(frame))).collect();
    api.content.keep(frames).await.map_err(content)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Returns a blob.
#[utoipa::path(
    get, path = "/v1/blobs/{digest}", params(("digest" = String, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"))
)]
async fn get(
    State(api): State<Api>,
    Path(name): Path<String>,
    Params(Nothing {}): Params<Nothing>,
) -> Result<Response, Fault> {
    let digest = digest(&name)?;
    let plain = api.content.get(digest).await.map_err(content)?.ok_or_else(|| not_found("blob", digest))?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::ETAG, format!("\"{digest}\"")),
        (header::CACHE_CONTROL, "immutable, max-age=31536000".to_owned()),
    ];
    Ok((headers, plain).into_response())
}
