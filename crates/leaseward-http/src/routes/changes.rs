//! Changing single files of a set: any number of them in one version, and what two versions differ in.
//!
//! Must stay true: all changes of a request are one version, or none is made; what the request was based on is checked
//! when it is committed.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::Response;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use leaseward_state::SetName;
use leaseward_state::config::{Chunk, Manifest, ManifestEntry, ManifestNode, check_path};
use leaseward_sync::secret::is_sealed;
use leaseward_sync::{digest_of, frame, manifest as codec, pieces};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{At, Fault};
use crate::api::Api;
use crate::ask::{Body, Fresh, Nothing, Params, Write, name, not_found};
use crate::limits::BLOB_BYTES_MAX;
use crate::model::{ChangeFiles, ConfigDiff, ConfigVersion, FileChange, FileDiff, FileDiffKind, entry};
use crate::problem::{self, Code};
use crate::routes::configs::find;
use crate::routes::publish::{again, commit, content, digest, manifest, plain};

pub(crate) fn routes() -> OpenApiRouter<Api> {
    let change = OpenApiRouter::new().routes(routes!(change)).layer(DefaultBodyLimit::max(BLOB_BYTES_MAX));
    OpenApiRouter::new().routes(routes!(diff)).merge(change)
}

/// Changes files of a set: one new version, whatever their number. A set that does not exist begins empty.
#[utoipa::path(
    post, path = "/v1/configs/{set}/changes", params(("set" = String, Path)), request_body = ChangeFiles,
    responses((status = 201, body = ConfigVersion))
)]
async fn change(
    State(api): State<Api>,
    Path(set): Path<String>,
    Params(Nothing {}): Params<Nothing>,
    write: Write,
    Body(body): Body<ChangeFiles>,
) -> Result<At<Response>, Fault> {
    let set: SetName = name(&set)?;
    if body.changes.is_empty() {
        return Err(problem::of(Code::Invalid, "`changes` names no file").into());
    }
    let asked = write.version().or(body.parent);
    let state = api.read_now().await?;
    if let Some(answer) = again(&api, &write, &state, &set) {
        return answer;
    }
    let newest = state.set(&set).and_then(|set| set.newest());
    let base = newest.map_or(0, |newest| newest.number);
    if let Some(asked) = asked
        && asked != base
    {
        // As the commit would say it: what was changed is not what is there.
        let refusal = leaseward_state::Refusal::Version {
            kind: "config".into(),
            name: set.to_string(),
            expected: asked,
            current: base,
        };
        return Err(problem::of_refusal(&refusal, &state).into());
    }
    let tree = match newest {
        Some(newest) => manifest(&api, newest.manifest).await?,
        None => Manifest::default(),
    };
    let mut xattrs = tree.xattrs;
    let mut files: BTreeMap<String, ManifestNode> =
        tree.entries.into_iter().map(|entry| (entry.path, entry.node)).collect();
    let mut blobs = Vec::new();
    let is_encrypted = state.set(&set).is_some_and(|set| set.spec.key.is_some());
    for change in body.changes {
        let (path, others) = (change.path.clone(), blobs.len());
        let says = change.content.is_some() || change.base64.is_some();
        apply(&set, &mut files, change, &mut blobs)?;
        let sealed = blobs.get(others).is_some_and(|first| is_sealed(first));
        // Nothing of it is kept then, not even for a moment.
        if is_encrypted && says && !sealed {
            return Err(plain(&state, &set, &path));
        }
        if !is_encrypted && sealed {
            let detail =
                format!("config/{set} names no key, and {path} is encrypted: its members would have it as it is");
            return Err(problem::of(Code::Invalid, detail).into());
        }
    }
    // A file that stays, with whatever content, keeps its attributes.
    if let Some(all) = &mut xattrs {
        all.retain(|path, _| matches!(files.get(path), Some(ManifestNode::File { .. })));
    }
    let entries = files.into_iter().map(|(path, node)| ManifestEntry { path, node }).collect();
    let tree = Manifest { entries, xattrs };
    codec::check(&tree).map_err(|error| problem::with_code(error.code(), error.to_string()))?;
    let encoded = codec::encode(&tree);
    let named = digest_of(&encoded);
    blobs.push(encoded);
    let frames = blobs
        .iter()
        .map(|blob| Ok((digest_of(blob), frame::pack(blob)?.into())))
        .collect::<Result<Vec<_>, leaseward_sync::Error>>()
        .map_err(|error| problem::with_code(error.code(), error.to_string()))?;
    api.content.keep(frames).await.map_err(content)?;
    // Upon exactly what was changed: somebody else's version in between is a conflict.
    commit(&api, &write, &set, Some(base), named, body.author, body.message).await
}

fn apply(
    set: &SetName,
    files: &mut BTreeMap<String, ManifestNode>,
    change: FileChange,
    blobs: &mut Vec<Vec<u8>>,
) -> Result<(), Fault> {
    let path = change.path;
    check_path(&path).map_err(|bad| problem::of(Code::Path, bad.to_string()))?;
    let before = files.get(&path).cloned();
    let below = format!("{path}/");
    if change.remove {
        let count = files.len();
        files.retain(|other, _| *other != path && !other.starts_with(&below));
        if files.len() == count {
            let detail = format!("config/{set} has no {path} that could be removed");
            return Err(problem::of(Code::NotFound, detail).into());
        }
        return Ok(());
    }
    let mode = match (&change.mode, &before) {
        (Some(mode), _) => u32::from_str_radix(mode, 8).ok().filter(|mode| mode & !0o777 == 0).ok_or_else(|| {
            problem::of(Code::Invalid, format!("`mode` of {path} is three octal digits, such as 644"))
        })?,
        (None, Some(ManifestNode::File { mode, .. })) => *mode,
        (None, _) => 0o644,
    };
    let node = match (change.content, change.base64, change.blob, change.target, before) {
        (Some(text), None, None, None, _) => file(text.into_bytes(), mode, blobs),
        (None, Some(text), None, None, _) => {
            let bytes = BASE64_STANDARD
                .decode(text)
                .map_err(|error| problem::of(Code::Invalid, format!("`base64` of {path}: {error}")))?;
            file(bytes, mode, blobs)
        }
        (None, None, Some(blob), None, _) => {
            let (digest, size) = (digest(&blob.digest)?, blob.size);
            let chunks = if size == 0 { Vec::new() } else { vec![Chunk { digest, size }] };
            ManifestNode::File { mode, size: u64::from(size), digest, chunks }
        }
        (None, None, None, Some(target), _) => ManifestNode::Symlink { target },
        (None, None, None, None, Some(ManifestNode::File { size, digest, chunks, .. })) if change.mode.is_some() => {
            ManifestNode::File { mode, size, digest, chunks }
        }
        (None, None, None, None, _) => {
            let detail = format!("{path}: give `content`, `base64`, `blob`, `target` or `remove`");
            return Err(problem::of(Code::Invalid, detail).into());
        }
        _ => {
            let detail = format!("{path}: only one of `content`, `base64`, `blob` and `target`");
            return Err(problem::of(Code::Invalid, detail).into());
        }
    };
    files.retain(|other, _| !other.starts_with(&below));
    for (end, _) in path.match_indices('/') {
        files.entry(path[..end].to_owned()).or_insert(ManifestNode::Directory { mode: 0o755 });
    }
    files.insert(path, node);
    Ok(())
}

fn file(bytes: Vec<u8>, mode: u32, blobs: &mut Vec<Vec<u8>>) -> ManifestNode {
    let (size, digest) = (bytes.len() as u64, digest_of(&bytes));
    let mut chunks = Vec::new();
    for piece in pieces(&bytes) {
        chunks.push(Chunk { digest: digest_of(piece), size: piece.len() as u32 });
        blobs.push(piece.to_vec());
    }
    ManifestNode::File { mode, size, digest, chunks }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DiffParams {
    /// The older version; 0: nothing.
    from: u64,
    /// The newer version; the newest if not given.
    #[serde(default)]
    to: Option<u64>,
}

/// Returns what two versions of a set differ in, by path.
#[utoipa::path(
    get, path = "/v1/configs/{set}/diff", params(("set" = String, Path), DiffParams),
    responses((status = 200, body = ConfigDiff))
)]
async fn diff(
    State(api): State<Api>,
    fresh: Fresh,
    Path(set): Path<String>,
    Params(params): Params<DiffParams>,
) -> Result<At<Json<ConfigDiff>>, Fault> {
    let set: SetName = name(&set)?;
    let state = api.read(&fresh).await?;
    let head = state.set(&set).ok_or_else(|| not_found("config", &set))?.head;
    let to = params.to.unwrap_or(head);
    let tree = async |number: u64| match number {
        0 => Ok(Manifest::default()),
        number => manifest(&api, find(&state, &set, number)?.manifest).await,
    };
    let (old, new) = (tree(params.from).await?, tree(to).await?);
    Ok(At(
        state.revision(),
        Json(ConfigDiff { set: set.to_string(), from: params.from, to, files: differences(&old, &new) }),
    ))
}

fn differences(old: &Manifest, new: &Manifest) -> Vec<FileDiff> {
    let mut before: BTreeMap<&str, &ManifestEntry> =
        old.entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let mut files = Vec::new();
    for now in &new.entries {
        let was = before.remove(now.path.as_str());
        let kind = match was {
            None => FileDiffKind::Added,
            Some(was) if was.node != now.node || old.xattrs_of(&was.path) != new.xattrs_of(&now.path) => {
                FileDiffKind::Changed
            }
            Some(_) => continue,
        };
        files.push(FileDiff {
            path: now.path.clone(),
            kind,
            old: was.map(|was| entry(old, was)),
            new: Some(entry(new, now)),
        });
    }
    files.extend(before.into_values().map(|was| FileDiff {
        path: was.path.clone(),
        kind: FileDiffKind::Removed,
        old: Some(entry(old, was)),
        new: None,
    }));
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}
