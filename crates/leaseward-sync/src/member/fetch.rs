//! Getting the blobs of a version onto this machine.
//!
//! Must stay true: what is stored is verified; what was stored stays when the rest fails, so the next attempt fetches
//! only what is left. Bounded: so many fetches at one time, one blob in memory each.

use std::sync::Arc;

use leaseward_state::config::Digest;
use tokio::task::JoinSet;

use super::{Blob, Source};
use crate::BlobStore;
use crate::error::Error;
use crate::limits::CORRUPT_TRIES;

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source did not give what it should.
    Source(String),
    /// This machine could not do its part.
    Local(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Local(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(why) => f.write_str(why),
            Self::Local(error) => write!(f, "{}: {error}", error.code()),
        }
    }
}

/// Runs `work` where it may block. It is completed even if the caller is dropped.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(Error::io("work on", "a blocking thread", std::io::Error::other(error))),
    }
}

/// Fetches all of `digests` into `store`. Cancel safe: what was stored stays.
pub(crate) async fn fetch_all(
    source: &Arc<dyn Source>,
    store: &Arc<BlobStore>,
    digests: Vec<Digest>,
    parallel: usize,
) -> Result<(), Failure> {
    let mut running = JoinSet::new();
    let mut waiting = digests.into_iter();
    loop {
        while running.len() < parallel
            && let Some(digest) = waiting.next()
        {
            running.spawn(fetch_one(Arc::clone(source), Arc::clone(store), digest));
        }
        match running.join_next().await {
            None => return Ok(()),
            Some(Ok(outcome)) => outcome?,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Some(Err(error)) => return Err(Failure::Source(error.to_string())),
        }
    }
}

/// Fetches one blob into `store`, verified.
pub(crate) async fn fetch_one(source: Arc<dyn Source>, store: Arc<BlobStore>, digest: Digest) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        let blob = source.fetch(digest).await.map_err(|error| Failure::Source(error.to_string()))?;
        let keep = Arc::clone(&store);
        let stored = blocking(move || match blob {
            Blob::Plain(bytes) => keep.put(digest, &bytes),
            Blob::Frame(bytes) => keep.put_frame(digest, &bytes),
        })
        .await;
        match stored {
            Err(error @ (Error::BlobCorrupt { .. } | Error::TooLarge { .. })) => {
                tries += 1;
                tracing::warn!(%digest, %error, "the source gave wrong bytes: refused");
                if tries > CORRUPT_TRIES {
                    return Err(Failure::Source(error.to_string()));
                }
            }
            other => return Ok(other?),
        }
    }
}
