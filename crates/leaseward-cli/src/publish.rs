//! Publishing a directory: what the asked node lacks is sent first, then one small entry names it.
//!
//! Must stay true: memory for a few batches, whatever the size of the directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use leaseward_http::model::{ConfigVersion, MissingBlobs, Publish, PublishSize};
use leaseward_state::config::{Chunk, Digest, ManifestNode};
use leaseward_sync::limits::FRAMES_BYTES_MAX;
use leaseward_sync::{DigestSet, Scanned, digest_of, frame, manifest, scan_again, scan_some};
use reqwest::Method;
use tokio::task::JoinSet;

use crate::api::{Api, Key};
use crate::diagnostic::Diagnostic;
use crate::route::Route;

/// Digests in one question about what is missing.
const DIGESTS_AT_ONCE: usize = 50_000;

/// Batches that are compressed and sent at the same time.
const BATCHES_AT_ONCE: usize = 4;

/// Plain bytes of a batch at least, if there are so many: each is a request.
const BATCH_BYTES_MIN: usize = 256 << 10;

/// Plain bytes that are sent uncompressed to a node on this machine: it holds no more of them in memory at one time, and
/// soon compresses what it keeps.
const PLAIN_BYTES_MAX: usize = 8 << 20;

/// How often it is sent again when the node that had it is not the one that commits it.
pub(crate) const TRIES: usize = 3;

/// A directory that was read.
pub(crate) struct Tree {
    scanned: Scanned,
    /// Where is noted what was read, for the next time.
    seen: Option<PathBuf>,
}

impl Tree {
    /// Reads a directory, with the extended attributes of its files if the set keeps them.
    pub(crate) async fn of(from: &Path, xattrs: bool) -> Result<Self, Diagnostic> {
        let (dir, seen) = (from.to_owned(), seen_file(from));
        let known = seen.clone();
        let scanned = blocking(move || match known {
            Some(known) => scan_again(&dir, xattrs, &known),
            None => scan_some(&dir, xattrs, &|_| true),
        });
        Ok(Self { scanned: scanned.await?, seen })
    }
}

/// A directory that was read, and what of it the cluster lacks.
pub(crate) struct Prepared {
    scanned: Arc<Scanned>,
    manifest: Digest,
    encoded: Arc<Vec<u8>>,
    pieces: usize,
    missing: Vec<Digest>,
    /// Where is noted what was read, for the next time.
    seen: Option<PathBuf>,
}

/// Returns where is noted what was read of a directory; none for whoever has no home.
fn seen_file(dir: &Path) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    let whole = std::fs::canonicalize(dir).ok()?;
    Some(cache.join("leaseward/published").join(digest_of(whole.as_os_str().as_encoded_bytes()).to_string()))
}

fn failed(error: &leaseward_sync::Error) -> Diagnostic {
    Diagnostic::new(error.code(), error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> leaseward_sync::Result<T> + Send + 'static,
) -> Result<T, Diagnostic> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Diagnostic::new("LW0600", error.to_string()))?
        .map_err(|error| failed(&error))
}

impl Prepared {
    /// Asks what of a directory the cluster lacks.
    pub(crate) async fn of(api: &Api, tree: Tree) -> Result<Self, Diagnostic> {
        let Tree { scanned, seen } = tree;
        let encoded = manifest::encode(scanned.manifest());
        let manifest = digest_of(&encoded);
        let mut prepared = Self {
            scanned: Arc::new(scanned),
            manifest,
            encoded: Arc::new(encoded),
            pieces: 0,
            missing: Vec::new(),
            seen,
        };
        // What was known was published before; if the cluster lacks it after all, the commit says so.
        let read = prepared.scanned.read_now().collect();
        prepared.look(api, read).await?;
        prepared.pieces = prepared.scanned.digests().count() + 1;
        Ok(prepared)
    }

    /// Asks which of these the cluster lacks, and whether it has the manifest.
    async fn look(&mut self, api: &Api, mut digests: Vec<Digest>) -> Result<(), Diagnostic> {
        digests.push(self.manifest);
        digests.sort_unstable();
        digests.dedup();
        self.missing.clear();
        for some in digests.chunks(DIGESTS_AT_ONCE) {
            let ask = MissingBlobs { digests: some.iter().map(ToString::to_string).collect() };
            // A question, whatever its verb: it is asked also when nothing is to be done.
            let asking = api.clone().dry_run(None);
            let answer: MissingBlobs = asking.call(Method::POST, "/v1/blobs/missing", Some(&ask)).await?;
            self.missing.extend(answer.digests.iter().filter_map(|text| Digest::parse(text)));
        }
        Ok(())
    }

    /// Returns whether there is nothing in it but directories.
    pub(crate) fn is_empty(&self) -> bool {
        let entries = &self.scanned.manifest().entries;
        entries.iter().all(|entry| matches!(entry.node, ManifestNode::Directory { .. }))
    }

    /// Says what there is to send.
    pub(crate) fn summary(&self) -> String {
        let (files, bytes) = self.scanned.manifest().totals();
        format!("{files} files, {bytes} bytes; {} of {} pieces are new", self.missing.len(), self.pieces)
    }

    /// Sends what the cluster lacks.
    pub(crate) async fn send(&self, api: &Api) -> Result<(), Diagnostic> {
        let mut sending = JoinSet::new();
        let (batches, bytes) = self.batches();
        let pack = form(bytes, || api.is_near());
        for batch in batches {
            if sending.len() >= BATCHES_AT_ONCE {
                joined(sending.join_next().await)?;
            }
            let (api, scanned, encoded, manifest) =
                (api.clone(), Arc::clone(&self.scanned), Arc::clone(&self.encoded), self.manifest);
            sending.spawn(async move {
                let packed = move || {
                    let mut frames = Vec::with_capacity(batch.len());
                    for digest in batch {
                        let plain = if digest == manifest { encoded.to_vec() } else { scanned.read(digest)? };
                        frames.push((digest, pack(&plain)?));
                    }
                    Ok(frame::join(&frames).into())
                };
                api.post_bytes("/v1/blobs", blocking(packed).await?).await
            });
        }
        while let Some(sent) = sending.join_next().await {
            joined(Some(sent))?;
        }
        Ok(())
    }

    /// Cuts what is missing into batches, in the order of the paths: small enough that each thread has some to compress.
    /// Returns them and their plain bytes.
    fn batches(&self) -> (Vec<Vec<Digest>>, usize) {
        let mut missing: DigestSet = self.missing.iter().copied().collect();
        let files = self.scanned.manifest().chunks();
        let whole = Chunk { digest: self.manifest, size: u32::try_from(self.encoded.len()).unwrap_or(u32::MAX) };
        let all: usize =
            files.clone().filter(|chunk| missing.contains(&chunk.digest)).map(|chunk| chunk.size as usize).sum();
        let most = (all / (2 * BATCHES_AT_ONCE)).clamp(BATCH_BYTES_MIN, FRAMES_BYTES_MAX);
        let mut batches: Vec<Vec<Digest>> = Vec::new();
        let mut left = 0;
        for chunk in files.chain([whole]) {
            if !missing.remove(&chunk.digest) {
                continue;
            }
            match batches.last_mut() {
                Some(last) if left >= chunk.size as usize => last.push(chunk.digest),
                _ => {
                    left = most;
                    batches.push(vec![chunk.digest]);
                }
            }
            left = left.saturating_sub(chunk.size as usize);
        }
        (batches, all)
    }

    /// Notes what was read, for the next time. Without it everything is read again.
    pub(crate) async fn remember(&self) {
        let Some(seen) = self.seen.clone() else { return };
        let scanned = Arc::clone(&self.scanned);
        if let Err(error) = blocking(move || scanned.remember(&seen)).await {
            tracing::debug!(?error, "cannot note what was read");
        }
    }

    /// Returns the name of its manifest.
    pub(crate) fn manifest(&self) -> Digest {
        self.manifest
    }

    /// Sends what the node that commits it lacks: the one that took it is gone.
    pub(crate) async fn send_again(&mut self, api: &Api) -> Result<(), Diagnostic> {
        self.look(api, self.scanned.digests().collect()).await?;
        self.send(api).await
    }

    /// Commits the version; sends again what the node that commits it does not find.
    pub(crate) async fn commit(
        &mut self,
        api: &Api,
        set: &str,
        parent: Option<u64>,
        author: String,
        message: String,
    ) -> Result<ConfigVersion, Diagnostic> {
        let size = api.is_dry_run().then(|| {
            let (files, bytes) = self.scanned.manifest().totals();
            PublishSize { files, bytes }
        });
        let ask = Publish { parent, manifest: self.manifest.to_string(), author, message, size };
        let route = Route::set(set)?.then("publish");
        // A node that is gone may have committed it before the next one said that it lacks the content.
        let key = Key::new();
        for _ in 1..TRIES {
            match api.call_again(&key, Method::POST, &route, Some(&ask)).await {
                Err(diagnostic) if diagnostic.code == "LW0801" && !api.is_dry_run() => self.send_again(api).await?,
                done => return done,
            }
        }
        api.call_again(&key, Method::POST, &route, Some(&ask)).await
    }
}

/// Makes a frame.
type Pack = fn(&[u8]) -> leaseward_sync::Result<Vec<u8>>;

/// Returns in which form so many bytes are sent. A node on this machine compresses what it keeps when nobody waits for it.
fn form(bytes: usize, is_near: impl FnOnce() -> bool) -> Pack {
    if bytes <= PLAIN_BYTES_MAX && is_near() { frame::pack_later } else { frame::pack }
}

fn joined(done: Option<Result<Result<(), Diagnostic>, tokio::task::JoinError>>) -> Result<(), Diagnostic> {
    match done {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Diagnostic::new("LW0600", error.to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;
    use crate::target::Target;

    /// The first answer is what a second node says after the first one committed and died.
    async fn commit(keys: &Mutex<Vec<String>>, headers: &HeaderMap) -> (StatusCode, Json<Value>) {
        let mut keys = keys.lock().expect("no panic");
        keys.push(headers["idempotency-key"].to_str().expect("text").to_owned());
        if keys.len() == 1 {
            let lacks = json!({ "type": "", "code": "LW0801", "title": "content is missing", "detail": "x", "status": 422,
                                "retryable": true, "hint": "" });
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(lacks));
        }
        let version = json!({ "set": "web", "version": 1, "parent": 0, "manifest": "", "files": 1, "bytes": 1,
                              "author": "", "message": "", "at": "2026-01-01T00:00:00Z", "revision": "9" });
        (StatusCode::CREATED, Json(version))
    }

    #[test]
    fn only_what_is_little_and_stays_on_this_machine_is_sent_uncompressed() {
        let text = b"timeout = 30\n".repeat(1000);
        let sent = |bytes, near| form(bytes, || near)(&text).expect("a frame").len();
        assert!(sent(PLAIN_BYTES_MAX, true) > text.len());
        assert!(sent(PLAIN_BYTES_MAX, false) < text.len() / 4, "a link would carry it");
        assert!(sent(PLAIN_BYTES_MAX + 1, true) < text.len() / 4, "the node would hold it");
    }

    #[tokio::test]
    async fn a_version_that_is_sent_again_is_the_same_request() {
        let keys: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked = Arc::clone(&keys);
        let router = Router::new()
            .route("/v1/blobs/missing", post(async || Json(json!({ "digests": [] }))))
            .route("/v1/configs/web/publish", post(async move |headers: HeaderMap| commit(&asked, &headers).await));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let server = tokio::spawn(axum::serve(listener, router).into_future());
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("a"), "a").expect("written");

        let api = Api::new(&Target { api: vec![address], token: None, timeout: Duration::from_secs(10) });
        let tree = Tree::of(dir.path(), false).await.expect("it is read");
        let mut prepared = Prepared::of(&api, tree).await.expect("it is asked about");
        let version = prepared.commit(&api, "web", None, String::new(), String::new()).await.expect("it is published");
        server.abort();

        assert_eq!(version.version, 1);
        let keys = keys.lock().expect("no panic");
        assert_eq!((keys.len(), &keys[0]), (2, &keys[1]), "the second would be another version");
    }

    /// A node that keeps blobs until it is gone, at the first word of a version, or commits what it has.
    async fn node(goes: bool, names: Arc<Mutex<Vec<(bool, String)>>>) -> String {
        let (has, gone) = (Arc::new(Mutex::new(Vec::<String>::new())), Arc::new(tokio::sync::Notify::new()));
        let (missing, kept, looked) = (Arc::clone(&has), Arc::clone(&has), Arc::clone(&has));
        let leaves = Arc::clone(&gone);
        let lack = move |names: &Value, has: &[String]| -> Vec<Value> {
            let is_here = |name: &Value| has.iter().any(|had| name == had.as_str());
            names["digests"].as_array().expect("names").iter().filter(|name| !is_here(name)).cloned().collect()
        };
        let router = Router::new()
            .route(
                "/v1/blobs/missing",
                post(async move |Json(ask): Json<Value>| {
                    let has = missing.lock().expect("no panic");
                    Json(json!({ "digests": lack(&ask, &has) }))
                }),
            )
            .route(
                "/v1/blobs",
                post(async move |body: axum::body::Bytes| {
                    let frames = frame::split(&body).expect("frames");
                    kept.lock().expect("no panic").extend(frames.iter().map(|(digest, _)| digest.to_string()));
                    StatusCode::NO_CONTENT
                }),
            )
            .route(
                "/v1/configs/web/publish",
                post(async move |headers: HeaderMap, Json(ask): Json<Value>| {
                    let key = headers["idempotency-key"].to_str().expect("text").to_owned();
                    names.lock().expect("no panic").push((goes, key));
                    if goes {
                        leaves.notify_one();
                        std::future::pending::<()>().await;
                    }
                    let has = looked.lock().expect("no panic");
                    let version = json!({ "set": "web", "version": 1, "parent": 0, "manifest": "", "files": 1, "bytes": 1,
                                          "author": "", "message": "", "at": "2026-01-01T00:00:00Z", "revision": "9" });
                    let lacks = json!({ "type": "", "code": "LW0801", "title": "content is missing", "detail": "x",
                                        "status": 422, "retryable": true, "hint": "" });
                    let (manifest, whole) = (ask["manifest"].as_str().expect("a name"), has.len() > 1);
                    match whole && has.iter().any(|had| had == manifest) {
                        true => (StatusCode::CREATED, Json(version)),
                        false => (StatusCode::UNPROCESSABLE_ENTITY, Json(lacks)),
                    }
                }),
            );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        tokio::spawn(async move {
            tokio::select! {
                served = axum::serve(listener, router).into_future() => served.expect("it serves"),
                () = gone.notified() => {}
            }
        });
        address
    }

    #[tokio::test]
    async fn a_node_that_goes_away_between_the_blobs_and_the_commit_is_nothing_that_a_user_hears_of() {
        let said = Arc::default();
        let nodes = vec![node(true, Arc::clone(&said)).await, node(false, Arc::clone(&said)).await];
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("a"), "a").expect("written");
        let api = Api::new(&Target { api: nodes, token: None, timeout: Duration::from_secs(10) });
        let tree = Tree::of(dir.path(), false).await.expect("it is read");
        let mut prepared = Prepared::of(&api, tree).await.expect("it is asked about");
        prepared.send(&api).await.expect("it is sent to the first one");
        let version = prepared.commit(&api, "web", None, String::new(), String::new()).await.expect("it is published");
        assert_eq!(version.version, 1);
        let said = said.lock().expect("no panic");
        let asked: Vec<bool> = said.iter().map(|(goes, _)| *goes).collect();
        assert_eq!(asked, [true, false, false], "the second one lacks it at first");
        assert!(said.iter().all(|(_, key)| *key == said[0].1), "it would be another version");
    }
}
