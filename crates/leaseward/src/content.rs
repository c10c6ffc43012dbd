//! The content of config sets on the voters: kept here, and on a quorum before anybody may name it.
//!
//! Must stay true: no committed manifest names a blob that a quorum of voters does not hold durably. So what is
//! published is put on a quorum first, and the proof is asked for again before the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::confirm::is_quorum;
use leaseward_raft::net::wire::{Answer, Ask, Purpose};
use leaseward_raft::{Blobs, Later, NodeId, Replica};
use leaseward_state::config::Digest;
use leaseward_sync::BlobStore;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::error::{Error, Result};
use crate::limits::BLOBS_AT_ONCE_BYTES;

/// One question to a peer about blobs; a slow disk has to sync many of them.
const PEER_WITHIN: Duration = Duration::from_secs(30);

/// A node's own content store, as the wire asks for it.
pub(crate) struct LocalBlobs(pub(crate) Arc<BlobStore>);

impl Blobs for LocalBlobs {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, Vec<Digest>> {
        let (store, digests) = (Arc::clone(&self.0), digests.to_vec());
        Box::pin(async move {
            let all = digests.clone();
            spawn_blocking(move || store.missing(&digests)).await.ok().and_then(Result::ok).unwrap_or(all)
        })
    }

    fn get(&self, digest: Digest) -> Later<'_, Option<Vec<u8>>> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            match spawn_blocking(move || store.get(digest)).await {
                Ok(Ok(bytes)) => Some(bytes),
                Ok(Err(error)) => {
                    if error.code() != "LW0801" {
                        warn!(%digest, %error, "a blob cannot be read");
                    }
                    None
                }
                Err(_) => None,
            }
        })
    }

    fn put(&self, blobs: Vec<(Digest, Vec<u8>)>) -> Later<'_, Result<(), (String, String)>> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            match spawn_blocking(move || store.put_many(&blobs)).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err((error.code().to_owned(), error.to_string())),
                Err(error) => Err(("LW0604".to_owned(), error.to_string())),
            }
        })
    }
}

/// The content of the cluster, seen from one voter.
#[derive(Clone)]
pub struct QuorumContent {
    replica: Replica,
    store: Arc<BlobStore>,
}

impl QuorumContent {
    /// Returns the content seen from this voter.
    #[must_use]
    pub fn new(replica: Replica, store: Arc<BlobStore>) -> Self {
        Self { replica, store }
    }

    /// Returns this voter's own store.
    #[must_use]
    pub fn store(&self) -> &Arc<BlobStore> {
        &self.store
    }

    /// Returns which of these blobs this voter lacks.
    ///
    /// # Errors
    /// [`Error::Failed`] with the store's code.
    pub async fn missing(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let store = Arc::clone(&self.store);
        local(spawn_blocking(move || store.missing(&digests)).await)
    }

    /// Returns which of these blobs are not held durably by a quorum of voters, as far as they answer.
    ///
    /// # Errors
    /// [`Error::Failed`] with this store's code.
    pub async fn missing_on_quorum(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let membership = self.replica.status().membership;
        let mut holders: BTreeMap<Digest, BTreeSet<NodeId>> =
            digests.iter().map(|digest| (*digest, BTreeSet::new())).collect();
        let mut note = |id: NodeId, missing: Vec<Digest>| {
            let missing: BTreeSet<Digest> = missing.into_iter().collect();
            for (digest, holders) in &mut holders {
                if !missing.contains(digest) {
                    holders.insert(id);
                }
            }
        };
        note(self.replica.node(), self.missing(digests.clone()).await?);
        let mut under_way = tokio::task::JoinSet::new();
        for id in self.others() {
            let (replica, ask) = (self.replica.clone(), Ask::MissingBlobs(digests.clone()));
            under_way.spawn(async move { (id, replica.ask(id, Purpose::Bulk, &ask, PEER_WITHIN).await) });
        }
        while let Some(answered) = under_way.join_next().await {
            if let Ok((id, Ok(Answer::Missing(missing)))) = answered {
                note(id, missing);
            }
        }
        Ok(holders
            .into_iter()
            .filter(|(_, holders)| !is_quorum(&membership, holders))
            .map(|(digest, _)| digest)
            .collect())
    }

    /// Returns a blob, from here or from another voter, verified. A fetched one is kept.
    ///
    /// # Errors
    /// [`Error::Failed`], with `LW0801` if nobody has it.
    pub async fn get(&self, digest: Digest) -> Result<Vec<u8>> {
        let store = Arc::clone(&self.store);
        let here = local(spawn_blocking(move || store.get(digest)).await);
        if let Ok(bytes) = here {
            return Ok(bytes);
        }
        for id in self.others() {
            let answer = self.replica.ask(id, Purpose::Bulk, &Ask::GetBlob(digest), PEER_WITHIN).await;
            if let Ok(Answer::Blob(Some(bytes))) = answer
                && leaseward_sync::digest_of(&bytes) == digest
            {
                let (store, kept) = (Arc::clone(&self.store), bytes.clone());
                local(spawn_blocking(move || store.put(digest, &kept)).await)?;
                return Ok(bytes);
            }
        }
        here
    }

    /// Puts blobs on a quorum of voters. Durable there when it returns.
    ///
    /// # Errors
    /// [`Error::Failed`] with this store's code, or [`Error::Unavailable`] if no quorum keeps them.
    pub async fn put(&self, blobs: Vec<(Digest, Vec<u8>)>) -> Result<()> {
        let digests: Vec<Digest> = blobs.iter().map(|(digest, _)| *digest).collect();
        let store = Arc::clone(&self.store);
        local(spawn_blocking(move || store.put_many(&blobs)).await)?;
        self.make_quorum(&digests).await
    }

    /// Makes sure that a quorum of voters holds these blobs durably, this one included.
    ///
    /// # Errors
    /// [`Error::Failed`] with `LW0801` if this voter lacks one, [`Error::Unavailable`] if no quorum keeps them.
    pub async fn make_quorum(&self, digests: &[Digest]) -> Result<()> {
        let lacking = self.missing(digests.to_vec()).await?;
        for digest in lacking {
            self.get(digest).await?;
        }
        let membership = self.replica.status().membership;
        let mut holders = BTreeSet::from([self.replica.node()]);
        let mut under_way = tokio::task::JoinSet::new();
        for id in self.others() {
            let (content, digests) = (self.clone(), digests.to_vec());
            under_way.spawn(async move { (id, content.give(id, &digests).await) });
        }
        while !is_quorum(&membership, &holders) {
            match under_way.join_next().await {
                Some(Ok((id, Ok(())))) => {
                    holders.insert(id);
                }
                Some(Ok((id, Err(error)))) => warn!(node = id, %error, "a voter does not keep blobs"),
                Some(Err(_)) => {}
                None => return Err(Error::Unavailable("no quorum of voters keeps the content".into())),
            }
        }
        // The others go on: every voter should have everything.
        tokio::spawn(async move { while under_way.join_next().await.is_some() {} });
        Ok(())
    }

    /// Gives a voter what it lacks.
    async fn give(&self, id: NodeId, digests: &[Digest]) -> Result<()> {
        for some in digests.chunks(4_096) {
            let ask = Ask::MissingBlobs(some.to_vec());
            let missing = match self.replica.ask(id, Purpose::Bulk, &ask, PEER_WITHIN).await? {
                Answer::Missing(missing) => missing,
                other => return Err(refused(other)),
            };
            let mut batch = Vec::new();
            let mut bytes = 0;
            for digest in missing {
                let store = Arc::clone(&self.store);
                let blob = local(spawn_blocking(move || store.get(digest)).await)?;
                bytes += blob.len();
                batch.push((digest, blob));
                if bytes >= BLOBS_AT_ONCE_BYTES {
                    self.send(id, std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
            }
            if !batch.is_empty() {
                self.send(id, batch).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, id: NodeId, blobs: Vec<(Digest, Vec<u8>)>) -> Result<()> {
        match self.replica.ask(id, Purpose::Bulk, &Ask::PutBlobs(blobs), PEER_WITHIN).await? {
            Answer::Done => Ok(()),
            other => Err(refused(other)),
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let membership = self.replica.status().membership;
        let me = self.replica.node();
        let voters: BTreeSet<NodeId> = membership.voters.iter().flatten().copied().filter(|id| *id != me).collect();
        voters.into_iter().collect()
    }

    /// Fetches what committed versions name and this voter lacks, until it is told to stop by being dropped: a voter
    /// that was away serves nothing that it does not have.
    pub(crate) async fn catch_up(self) {
        let mut published = self.replica.published();
        let mut seen = std::collections::BTreeMap::new();
        loop {
            let state = Arc::clone(&published.borrow_and_update().state);
            let mut incomplete = false;
            for (name, set) in state.sets() {
                let newest = (set.head, set.newest().manifest);
                if seen.get(name) == Some(&newest) {
                    continue;
                }
                match self.fetch_version(newest.1).await {
                    Ok(fetched) => {
                        if fetched > 0 {
                            info!(set = %name, version = newest.0, blobs = fetched, "fetched content from other voters");
                        }
                        seen.insert(name.clone(), newest);
                    }
                    Err(error) => {
                        incomplete = true;
                        warn!(set = %name, version = newest.0, %error, "content is not here yet");
                    }
                }
            }
            if !incomplete {
                self.replica.has_content_of(state.revision());
            }
            if incomplete {
                // Not at every change of the state: on a full disk nothing comes of it but load and words.
                tokio::time::sleep(Duration::from_secs(1)).await;
            } else if published.changed().await.is_err() {
                return;
            }
        }
    }

    async fn fetch_version(&self, manifest: Digest) -> Result<usize> {
        let had_manifest = self.missing(vec![manifest]).await?.is_empty();
        let bytes = self.get(manifest).await?;
        let manifest = leaseward_sync::manifest::decode(&bytes)
            .map_err(|error| Error::Failed { code: error.code().into(), why: error.to_string() })?;
        let mut chunks = BTreeSet::new();
        for entry in &manifest.entries {
            if let leaseward_state::config::ManifestNode::File { chunks: parts, .. } = &entry.node {
                chunks.extend(parts.iter().map(|chunk| chunk.digest));
            }
        }
        let lacking = self.missing(chunks.into_iter().collect()).await?;
        let fetched = lacking.len() + usize::from(!had_manifest);
        for digest in lacking {
            self.get(digest).await?;
        }
        Ok(fetched)
    }
}

fn refused(answer: Answer) -> Error {
    match answer {
        Answer::Failed { code, why } => Error::Failed { code, why },
        other => Error::Failed { code: "LW0701".into(), why: format!("a strange answer: {other:?}") },
    }
}

fn local<T>(done: Result<Result<T, leaseward_sync::Error>, tokio::task::JoinError>) -> Result<T> {
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Failed { code: error.code().into(), why: error.to_string() }),
        Err(error) => Err(Error::Failed { code: "LW0604".into(), why: error.to_string() }),
    }
}
