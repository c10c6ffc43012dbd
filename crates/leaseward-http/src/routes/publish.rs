//! Publishing: a version is committed only when everything it names is durable on a quorum, or in the very entry.
//!
//! Must stay true: no committed manifest names a blob that a quorum does not hold, or hold what it is made of; a delta is
//! committed upon the version that it was made for, and made anew when somebody else was faster; a rollback is a new
//! version; nothing plain is committed in a set whose files are encrypted.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use leaseward_state::command::PublishSet;
use leaseward_state::config::{Digest, Manifest, ManifestNode, Version};
use leaseward_state::{Command, Reply, Revision, SetName, State as Clustered};
use leaseward_sync::manifest::decode;
use leaseward_sync::secret::is_sealed;
use leaseward_sync::secrets_fit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault, tagged};
use crate::api::{Api, Base, ContentError, Ready};
use crate::ask::{Body, Nothing, Params, Write, is_here, name};
use crate::limits::PUBLISH_TRIES;
use crate::model::{ConfigVersion, Publish, PublishSize, Rollback};
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
    let manifest = digest(&body.manifest)?;
    if write.dry_run {
        return Err(tried(&api, &write, set, parent, manifest, body.size).await);
    }
    commit(&api, &write, &set, parent, manifest, body.author, body.message).await
}

/// Returns what would come of a version whose content need not be here, or why it would be refused.
async fn tried(
    api: &Api,
    write: &Write,
    set: SetName,
    parent: Option<u64>,
    digest: Digest,
    size: Option<PublishSize>,
) -> Fault {
    let (files, bytes) = match size {
        Some(size) => (size.files, size.bytes),
        None => match manifest(api, digest).await {
            Ok(manifest) => manifest.totals(),
            Err(fault) => return fault,
        },
    };
    let publish = PublishSet { set, parent, manifest: digest, files, bytes, delta: None };
    let command = Command::Publish { sets: vec![publish], author: String::new(), message: String::new() };
    match api.commit(write, 0, Vec::new(), command).await {
        Err(fault) => fault,
        Ok(_) => problem::with_code("LW0607", "a dry run was committed").into(),
    }
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
    if let Some(answer) = again(&api, &write, &state, &set) {
        return answer;
    }
    let manifest = find(&state, &set, body.to)?.manifest;
    let message = if body.message.is_empty() { format!("back to v{}", body.to) } else { body.message };
    commit(&api, &write, &set, write.version(), manifest, body.author, message).await
}

/// Returns the answer to a request that is sent again under its key: the version that it made. What it would be refused for now
/// is its own doing.
pub(crate) fn again(api: &Api, write: &Write, state: &Clustered, set: &SetName) -> Option<Result<At<Response>, Fault>> {
    let (revision, number) = (0..=PUBLISH_TRIES).find_map(|step| {
        let answer = api.kept(write, step, state)?;
        let replies = match &answer.reply {
            Reply::Atomic(replies) => replies,
            reply => std::slice::from_ref(reply),
        };
        replies.iter().find_map(|reply| match reply {
            Reply::Versions(versions) => Some((answer.revision, versions.first()?.1)),
            _ => None,
        })
    })?;
    Some(made(state, set, number, revision))
}

fn made(state: &Clustered, set: &SetName, number: u64, revision: Revision) -> Result<At<Response>, Fault> {
    let version = published(state, set, number, revision)?;
    Ok(At(revision, tagged(StatusCode::CREATED, number, view::version(set, version))))
}

pub(crate) async fn commit(
    api: &Api,
    write: &Write,
    set: &SetName,
    parent: Option<u64>,
    manifest: Digest,
    author: String,
    message: String,
) -> Result<At<Response>, Fault> {
    // Before anything of it is put anywhere else: what is refused stays with whom it was sent to, and goes with the next
    // collection.
    sealed(api, &api.here(), set, manifest).await?;
    for step in 0.. {
        // What this node knows is usually the newest, and the answer of a quorum comes while the delta is made. Without
        // a quorum nothing is proposed, as it might be committed long after the caller was told that it is not.
        let guess = head(&api.here(), set).1;
        let (now, publish) = tokio::join!(api.read_now(), checked(api, set.clone(), parent, manifest, guess));
        let now = now?;
        let newest = head(&now, set).1;
        let publish =
            if newest == guess { publish? } else { checked(api, set.clone(), parent, manifest, newest).await? };
        // It may have got its key since.
        sealed(api, &now, set, manifest).await?;
        let upon_newest = publish.delta.is_some();
        let command = Command::Publish { sets: vec![publish], author: author.clone(), message: message.clone() };
        match api.commit(write, step, Vec::new(), command).await {
            Ok((revision, reply)) => {
                let Reply::Versions(versions) = reply else {
                    return Err(problem::with_code("LW0607", "no version was published").into());
                };
                return made(&api.here(), set, versions.first().map_or(0, |(_, number)| *number), revision);
            }
            // Somebody published between the reading and the entry.
            Err(Fault::Problem(problem))
                if problem.code == "LW0412" && upon_newest && parent.is_none() && step < PUBLISH_TRIES => {}
            Err(fault) => return Err(fault),
        }
    }
    Err(problem::with_code("LW0607", "no version was published").into())
}

/// Returns a version that was committed at this revision.
fn published<'a>(state: &'a Clustered, set: &SetName, number: u64, revision: Revision) -> Result<&'a Version, Fault> {
    is_here(state, revision, &format!("{set} v{number}"))?;
    find(state, set, number)
}

/// Returns the number of the newest version, and what the next one may be built upon.
fn head(state: &Clustered, set: &SetName) -> (u64, Base) {
    match state.set(set).and_then(|set| set.newest().map(|newest| (set.head, newest))) {
        Some((head, newest)) if newest.number == head => (head, Base::Version(head, newest.manifest)),
        Some((head, _)) => (head, Base::Whole),
        None => match state.set(set).map_or(0, |set| set.head) {
            0 => (0, Base::Empty),
            head => (head, Base::Whole),
        },
    }
}

/// Returns the command's part for a manifest after everything that it names was found durable, or fits the command.
pub(crate) async fn checked(
    api: &Api,
    set: SetName,
    parent: Option<u64>,
    manifest: Digest,
    base: Base,
) -> Result<PublishSet, Fault> {
    let Ready { files, bytes, delta } = api.content.ready(base, manifest).await.map_err(content)?;
    Ok(PublishSet { set, parent, manifest, files, bytes, delta })
}

/// Refuses a version with plain files of a set whose files are encrypted, for they would stand readable on every voter, and
/// one with more of them than members open: no member would take either.
pub(crate) async fn sealed(api: &Api, state: &Clustered, set: &SetName, digest: Digest) -> Result<(), Fault> {
    let Some(known) = state.set(set).filter(|known| known.spec.key.is_some()) else { return Ok(()) };
    let published = manifest(api, digest).await?;
    secrets_fit(&published, &known.spec).map_err(|error| problem::with_code(error.code(), error.to_string()))?;
    for entry in published.entries {
        let ManifestNode::File { chunks, .. } = &entry.node else { continue };
        let first = match chunks.first() {
            Some(chunk) => api.content.get(chunk.digest).await.map_err(content)?,
            None => Some(Vec::new()),
        };
        if first.is_some_and(|bytes| !is_sealed(&bytes)) {
            return Err(plain(state, set, &entry.path));
        }
    }
    Ok(())
}

/// Returns the fault for a plain file of a set whose files are encrypted.
pub(crate) fn plain(state: &Clustered, set: &SetName, path: &str) -> Fault {
    let key = state.set(set).and_then(|known| known.spec.key.clone()).unwrap_or_default();
    let detail = format!(
        "config/{set} is encrypted with the key {key}, and {path} is not: publish it with that key (`--key FILE`)"
    );
    problem::of(Code::Invalid, detail).into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_and_not_here_yet_is_not_said_to_be_missing() {
        let (state, set) = (Clustered::default(), SetName::new("app").unwrap());
        let code = |revision| match published(&state, &set, 3, Revision(revision)) {
            Err(Fault::Problem(problem)) => problem.code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(state.revision().0 + 1), "LW0502", "committed, and this node ends before it applies it");
        assert_eq!(code(state.revision().0), "LW0404", "applied, and forgotten since");
    }
}
