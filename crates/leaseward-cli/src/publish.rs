//! Publishing a directory: what the cluster lacks is sent first, then one small entry names it.

use std::path::Path;
use std::sync::Arc;

use leaseward_http::model::{ConfigVersion, MissingBlobs, Publish};
use leaseward_state::config::Digest;
use leaseward_sync::{Scanned, digest_of, manifest, scan};
use reqwest::Method;

use crate::api::Api;
use crate::diagnostic::Diagnostic;

/// Digests in one question about what is missing.
const DIGESTS_AT_ONCE: usize = 2_000;

/// A directory that was read, and what of it the cluster lacks.
pub(crate) struct Prepared {
    scanned: Arc<Scanned>,
    manifest: Digest,
    encoded: Vec<u8>,
    pieces: usize,
    missing: Vec<Digest>,
}

fn failed(error: &leaseward_sync::Error) -> Diagnostic {
    Diagnostic::new(error.code(), error.to_string())
}

impl Prepared {
    /// Reads a directory and asks what of it the cluster lacks.
    pub(crate) async fn of(api: &Api, from: &Path) -> Result<Self, Diagnostic> {
        let dir = from.to_owned();
        let scanned = tokio::task::spawn_blocking(move || scan(&dir))
            .await
            .map_err(|error| Diagnostic::new("LW0600", error.to_string()))?
            .map_err(|error| failed(&error))?;
        let encoded = manifest::encode(scanned.manifest());
        let manifest = digest_of(&encoded);
        let mut digests: Vec<Digest> = scanned.digests().collect();
        digests.push(manifest);
        digests.sort_unstable();
        digests.dedup();
        let mut missing = Vec::new();
        for some in digests.chunks(DIGESTS_AT_ONCE) {
            let ask = MissingBlobs { digests: some.iter().map(ToString::to_string).collect() };
            // A question, whatever its verb: it is asked also when nothing is to be done.
            let asking = api.clone().dry_run(None);
            let answer: MissingBlobs = asking.call(Method::POST, "/v1/blobs/missing", Some(&ask)).await?;
            missing.extend(answer.digests.iter().filter_map(|text| Digest::parse(text)));
        }
        Ok(Self { scanned: Arc::new(scanned), manifest, encoded, pieces: digests.len(), missing })
    }

    /// Says what there is to send.
    pub(crate) fn summary(&self) -> String {
        let (files, bytes) = self.scanned.manifest().totals();
        format!("{files} files, {bytes} bytes; {} of {} pieces are new", self.missing.len(), self.pieces)
    }

    /// Sends what the cluster lacks.
    pub(crate) async fn send(&self, api: &Api) -> Result<(), Diagnostic> {
        for digest in &self.missing {
            let bytes = if *digest == self.manifest {
                self.encoded.clone()
            } else {
                let (scanned, digest) = (Arc::clone(&self.scanned), *digest);
                tokio::task::spawn_blocking(move || scanned.read(digest))
                    .await
                    .map_err(|error| Diagnostic::new("LW0600", error.to_string()))?
                    .map_err(|error| failed(&error))?
            };
            api.put_bytes(&format!("/v1/blobs/{digest}"), bytes).await?;
        }
        Ok(())
    }

    /// Commits the version.
    pub(crate) async fn commit(
        &self,
        api: &Api,
        set: &str,
        parent: Option<u64>,
        author: String,
        message: String,
    ) -> Result<ConfigVersion, Diagnostic> {
        let ask = Publish { parent, manifest: self.manifest.to_string(), author, message };
        api.call(Method::POST, &format!("/v1/configs/{set}/publish"), Some(&ask)).await
    }
}
