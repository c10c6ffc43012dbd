//! Publishing: a version is committed only when everything it names is durable on a quorum.
//!
//! Must stay true: no committed manifest names a blob that a quorum does not hold; a rollback is a new version.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_state::command::PublishSet;
use leaseward_state::config::{Digest, Manifest, ManifestNode};
use leaseward_state::{Command, SetName};
use leaseward_sync::manifest::decode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::{Api, ContentError};
use crate::ask::{Body, Nothing, Params, Write, name, not_found};
use crate::model::{ConfigVersion, Publish, Rollback};
use crate::problem::{self, Code};
use crate::routes::configs::find;
use crate::view;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(publish)).routes(routes!(rollback))
}

/// Publishes a version of a set. Its blobs were put before.
#[utoipa::path(
    post, path = "/v1/configs/{set}/publish", params(("set" = String, Path)), request_body = Publish,
    responses((status = 201, body = ConfigVersion))
)]
async fn publish(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Publish>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    let parent = match (body.parent, write.version()) {
        (Some(said), Some(tag)) if said != tag => {
            let detail = format!("`parent` is {said}, and the headers say {tag}");
            return Err(problem::of(Code::Invalid, detail).into());
        }
        (said, tag) => said.or(tag),
    };
    let publish = checked(&api, set, parent, digest(&body.manifest)?).await?;
    commit(&api, &write, publish, body.author, body.message).await
}

/// Publishes an old version again, as a new one: nobody goes back in numbers.
#[utoipa::path(
    post, path = "/v1/configs/{set}/rollback", params(("set" = String, Path)), request_body = Rollback,
    responses((status = 201, body = ConfigVersion))
)]
async fn rollback(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<Rollback>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    let state = api.read_now().await?;
    let manifest = find(&state, &set, body.to)?.manifest;
    let publish = checked(&api, set, write.version(), manifest).await?;
    let message = if body.message.is_empty() { format!("back to v{}", body.to) } else { body.message };
    commit(&api, &write, publish, body.author, message).await
}

async fn commit(
    api: &Api,
    write: &Write,
    publish: PublishSet,
    author: String,
    message: String,
) -> Result<At<Response>, Fault> {
    let set = publish.set.clone();
    let command = Command::Publish { sets: vec![publish], author, message };
    let (revision, reply) = api.commit(write, 0, Vec::new(), command).await?;
    let leaseward_state::Reply::Versions(versions) = reply else {
        return Err(problem::with_code("LW0607", "no version was published").into());
    };
    let state = api.here();
    let number = versions.first().map_or(0, |(_, number)| *number);
    let version = find(&state, &set, number).map_err(|_| not_found("config", &set))?;
    Ok(At(revision, tagged(StatusCode::CREATED, number, view::version(&set, version))))
}

/// Returns the command's part for a manifest after everything that it names was found durable.
pub(crate) async fn checked(api: &Api, set: SetName, parent: Option<u64>, digest: Digest) -> Result<PublishSet, Fault> {
    let tree = manifest(api, digest).await?;
    let named = blobs(&tree, digest);
    let all = named.len();
    let missing = api.content.missing(named).await.map_err(content)?;
    if !missing.is_empty() {
        let first: Vec<_> = missing.iter().take(3).map(ToString::to_string).collect();
        let detail = format!(
            "{} of {all} blobs of config/{set} are not on a quorum of voters, first: {}",
            missing.len(),
            first.join(", ")
        );
        return Err(problem::of(Code::BlobMissing, detail).into());
    }
    let (files, bytes) = tree.totals();
    Ok(PublishSet { set, parent, manifest: digest, files, bytes })
}

/// Returns every blob that a version needs, each once.
fn blobs(tree: &Manifest, manifest: Digest) -> Vec<Digest> {
    let mut named = BTreeSet::from([manifest]);
    for entry in &tree.entries {
        if let ManifestNode::File { chunks, .. } = &entry.node {
            named.extend(chunks.iter().map(|chunk| chunk.digest));
        }
    }
    named.into_iter().collect()
}

/// Fetches and decodes a manifest.
pub(crate) async fn manifest(api: &Api, digest: Digest) -> Result<Manifest, Fault> {
    let found = api.content.get(digest).await.map_err(content)?;
    let bytes = found.ok_or_else(|| problem::of(Code::BlobMissing, format!("the manifest {digest} is not here")))?;
    decode(&bytes).map_err(|error| problem::with_code(error.code(), error.to_string()).into())
}

/// Returns the fault for what the content store says.
pub(crate) fn content(error: ContentError) -> Fault {
    problem::with_code(&error.code, error.why).into()
}

/// Returns the name of a blob.
pub(crate) fn digest(text: &str) -> Result<Digest, Fault> {
    Digest::parse(text)
        .ok_or_else(|| problem::of(Code::Invalid, "a blob's name is its blake3 hash in 64 hexadecimal digits").into())
}
