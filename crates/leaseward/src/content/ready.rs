//! What must be so before a version may be committed.
//!
//! Must stay true: it is ready with a delta that fits its entry, upon the newest version, where a quorum will be able to make
//! that one whatever is forgotten (`held.rs`), or with every blob on a quorum of voters. Either way this voter has read the manifest and has every blob that the newest version does not name.
//! Left out on purpose: deltas upon older versions, and of more than one entry.

use std::sync::Arc;

use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::{Chunk, Digest, Manifest};
use leaseward_state::limits::DELTA_BYTES_MAX;
use leaseward_sync::{BlobStore, DigestSet, delta};
use tracing::{debug, warn};

use super::{QuorumContent, nobody_has};
use crate::error::Result;

/// Chunks that are read before the delta asks for them: each has up to 256 KiB.
const READ_AHEAD: usize = 64;

/// A version that may be committed.
#[derive(Debug)]
pub struct Ready {
    /// Regular files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What makes it out of the newest version. Without it, a quorum of voters holds every blob.
    pub delta: Option<InlineDelta>,
}

impl QuorumContent {
    /// Makes a version ready to be committed upon `base`, the newest one with its manifest; `Some(None)` if the set has
    /// none. With `None`, its content is put on a quorum whatever its size.
    ///
    /// # Errors
    /// [`Error::Failed`](crate::Error::Failed) with `LW0801` if nobody has a blob, or with what is wrong with the
    /// manifest; [`Error::Unavailable`](crate::Error::Unavailable) if no quorum keeps them.
    pub async fn ready(&self, base: Option<Option<(u64, Digest)>>, manifest: Digest) -> Result<Ready> {
        let next = self.manifest(manifest).await?;
        leaseward_sync::manifest::check_links(&next).map_err(super::failed)?;
        let (files, bytes) = next.totals();
        if let Some(base) = base
            && self.can_be_built_upon(base).await
            && let Some(delta) = self.inline(base, &next).await?
        {
            return Ok(Ready { files, bytes, delta: Some(delta) });
        }
        let mut named: Vec<Digest> = next.chunk_names().into_iter().collect();
        named.push(manifest);
        self.make_quorum(&named).await?;
        Ok(Ready { files, bytes, delta: None })
    }

    /// Returns the delta of a version, if it is small.
    async fn inline(&self, base: Option<(u64, Digest)>, next: &Arc<Manifest>) -> Result<Option<InlineDelta>> {
        let (number, old) = match base {
            None => (0, Arc::default()),
            // Whatever is wrong with the old version here, the new one can go without it.
            Some((number, digest)) => match self.manifest(digest).await {
                Ok(old) => (number, old),
                Err(error) => {
                    warn!(version = number, %error, "the newest version cannot be built upon");
                    return Ok(None);
                }
            },
        };
        let fresh = delta::only_in(next, &old);
        let digests: Vec<Digest> = fresh.iter().map(|chunk| chunk.digest).collect();
        let all = digests.len();
        let missing = self.fetch_or_make(self.lacking(&digests).await).await?;
        if let Some(first) = missing.first() {
            return Err(nobody_has(&missing, all, *first));
        }
        let gone: Vec<Digest> = delta::only_in(&old, next).iter().map(|chunk| chunk.digest).collect();
        if !self.fetch_or_make(self.lacking(&gone).await).await?.is_empty() {
            return Ok(None);
        }
        let next = Arc::clone(next);
        let _turn = self.deltas.turn().await;
        match self.with(move |store| encode(store, &old, &next)).await {
            Ok(bytes) => Ok(bytes.map(|bytes| InlineDelta { base: number, bytes: bytes.into() })),
            Err(error) => {
                debug!(version = number, %error, "no delta upon the newest version");
                Ok(None)
            }
        }
    }
}

/// Returns the delta of a version, if it fits its entry. Another thread reads what is new while this one reads what goes: a
/// publisher waits for it.
fn encode(store: &BlobStore, old: &Manifest, next: &Manifest) -> leaseward_sync::Result<Option<Vec<u8>>> {
    let fresh = delta::only_in(next, old);
    let is_fresh: DigestSet = fresh.iter().map(|chunk| chunk.digest).collect();
    let (give, take) = std::sync::mpsc::sync_channel(READ_AHEAD);
    std::thread::scope(|scope| {
        if fresh.len() > 1 {
            scope.spawn(move || {
                // In the order in which the delta asks for them. Nobody takes the rest of what does not fit.
                fresh.into_iter().try_for_each(|chunk| give.send((chunk.digest, store.get(chunk.digest))).ok())
            });
        } else {
            drop(give);
        }
        // Dropped with this, and with it what the other thread waits for.
        let mut read = move |chunk: Chunk| match is_fresh.contains(&chunk.digest).then(|| take.recv()) {
            Some(Ok((digest, bytes))) if digest == chunk.digest => bytes,
            _ => store.get(chunk.digest),
        };
        delta::encode(old, next, &mut read, DELTA_BYTES_MAX)
    })
}

/// Returns what an inline delta makes, read from a store that has what it builds on.
pub(super) fn make(store: &BlobStore, bytes: &[u8], next: Digest) -> leaseward_sync::Result<usize> {
    let delta = delta::Delta::open(bytes)?;
    let base = if delta.base() == leaseward_sync::empty_tree() {
        Manifest::default()
    } else {
        leaseward_sync::manifest::decode(&store.get(delta.base())?)?
    };
    if delta.next() != next {
        return Err(leaseward_sync::Error::BadDelta { why: "it is for another version".to_owned() });
    }
    let made = delta.decode(&base, &mut |chunk| store.get(chunk.digest))?;
    store.put_plain(made.chunks())?;
    store.put_plain(std::iter::once((next, made.encoded.as_slice())))?;
    Ok(1 + made.chunks().count())
}
