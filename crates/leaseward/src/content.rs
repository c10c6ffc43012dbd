//! The content of config sets on the voters: kept here, and on a quorum before anybody may name it.
//!
//! Must stay true: no committed manifest names a blob that a quorum of voters does not hold durably, or hold durably what
//! it is made of: the entry with the version's delta, and the blobs of the version that it builds on. So what is
//! published goes into its entry, or is put on a quorum first, and the proof is asked for again before the commit.
//! A blob goes to each voter once, in its stored form, and many at a time.
//!
//! `ready.rs` prepares a commit, `held.rs` knows what may build on deltas alone, `deltas.rs` gives members what changed,
//! `catch_up.rs` makes what was committed and forgets what nothing names.

mod catch_up;
mod deltas;
mod held;
mod promises;
mod ready;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaseward_raft::confirm::is_quorum;
use leaseward_raft::machine::Published;
use leaseward_raft::net::wire::{Answer, Ask, Purpose};
use leaseward_raft::{Blobs, Frames, Later, NodeId, Replica};
use leaseward_state::SetName;
use leaseward_state::config::delta::SharedBytes;
use leaseward_state::config::{Digest, Manifest};
use leaseward_sync::limits::{FRAMES_ASKED_MAX, FRAMES_BYTES_MAX};
use leaseward_sync::{BlobStore, manifest};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::warn;

use self::deltas::Deltas;
use self::held::Held;
use self::promises::Promises;
pub use self::ready::Ready;
use crate::error::{Error, Result};
use crate::limits::{MADE_LOOK_EACH, MADE_WITHIN, PROMISED_FOR, RECENT_ENTRIES_MAX, RECENT_KEPT, SENDINGS_AT_ONCE};

/// One question to a peer about blobs; a slow disk has to sync many of them.
const PEER_WITHIN: Duration = Duration::from_secs(30);

/// A node's own content store, as the wire asks for it.
pub(crate) struct LocalBlobs {
    store: Arc<BlobStore>,
    promises: Arc<Promises>,
    deltas: Arc<Deltas>,
    published: watch::Receiver<Published>,
    asked: Arc<Notify>,
}

impl Blobs for LocalBlobs {
    fn missing<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, Vec<Digest>> {
        let (store, digests) = (Arc::clone(&self.store), digests.to_vec());
        // Before they are looked for: what is said to be here stays.
        self.promises.keep(&digests);
        Box::pin(async move {
            let all = digests.clone();
            let look = move || store.settle().map(|()| store.missing(&digests));
            spawn_blocking(look).await.ok().and_then(Result::ok).unwrap_or(all)
        })
    }

    fn get(&self, digest: Digest) -> Later<'_, Option<Vec<u8>>> {
        let store = Arc::clone(&self.store);
        Box::pin(async move {
            match spawn_blocking(move || store.get(digest)).await {
                Ok(Ok(bytes)) => Some(bytes),
                Ok(Err(error)) => {
                    if error.code() != "LW0801" {
                        warn!(%digest, %error, "a blob cannot be read");
                    }
                    self.asked.notify_one();
                    None
                }
                Err(_) => None,
            }
        })
    }

    fn put(&self, blobs: Vec<(Digest, Vec<u8>)>) -> Later<'_, Result<(), (String, String)>> {
        let store = Arc::clone(&self.store);
        self.promises.keep(blobs.iter().map(|(digest, _)| digest));
        Box::pin(async move { answered(spawn_blocking(move || store.put_many(&blobs)).await) })
    }

    fn frames<'a>(&'a self, digests: &'a [Digest]) -> Later<'a, (Frames, Vec<Digest>)> {
        let (store, digests) = (Arc::clone(&self.store), digests.to_vec());
        Box::pin(async move {
            let all = digests.clone();
            let read = spawn_blocking(move || read_frames(&store, &digests)).await.unwrap_or((Vec::new(), all));
            if !read.1.is_empty() {
                self.asked.notify_one();
            }
            read
        })
    }

    fn put_frames(&self, frames: Frames) -> Later<'_, Result<(), (String, String)>> {
        let store = Arc::clone(&self.store);
        self.promises.keep(frames.iter().map(|(digest, _)| digest));
        Box::pin(async move { answered(spawn_blocking(move || store.put_checked(&frames)).await) })
    }

    fn delta<'a>(&'a self, set: &'a SetName, base: Digest, next: Digest) -> Later<'a, Option<SharedBytes>> {
        Box::pin(async move {
            let found = self.deltas.find(&self.store, self.published.clone(), set, base, next).await;
            if found.is_none() {
                self.asked.notify_one();
            }
            found
        })
    }
}

/// Returns the first ones that fit one answer, and those that are not here.
fn read_frames(store: &BlobStore, digests: &[Digest]) -> (Frames, Vec<Digest>) {
    let (mut frames, mut lacking, mut bytes) = (Vec::new(), Vec::new(), 0);
    for digest in digests {
        match store.get_frame(*digest) {
            Ok(frame) => {
                bytes += frame.len();
                if bytes > FRAMES_BYTES_MAX && !frames.is_empty() {
                    break;
                }
                frames.push((*digest, frame.into()));
            }
            Err(error) => {
                if error.code() != "LW0801" {
                    warn!(%digest, %error, "a blob cannot be read");
                }
                lacking.push(*digest);
            }
        }
    }
    (frames, lacking)
}

fn answered(
    done: Result<leaseward_sync::Result<()>, tokio::task::JoinError>,
) -> std::result::Result<(), (String, String)> {
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err((error.code().to_owned(), error.to_string())),
        Err(error) => Err(("LW0604".to_owned(), error.to_string())),
    }
}

/// Manifests by their names, the one that was read last at the end.
type Recent = VecDeque<(Digest, Arc<Manifest>)>;

/// The content of the cluster, seen from one voter.
#[derive(Clone)]
pub struct QuorumContent {
    replica: Replica,
    store: Arc<BlobStore>,
    promises: Arc<Promises>,
    /// For how long content that no version names stays.
    kept_for: Duration,
    deltas: Arc<Deltas>,
    /// Told when somebody asks for what is not here yet.
    asked: Arc<Notify>,
    /// The manifests that were read last: the next version builds on them.
    recent: Arc<Mutex<Recent>>,
    held: Arc<Held>,
}

impl QuorumContent {
    /// Returns the content seen from this voter.
    #[must_use]
    pub fn new(replica: Replica, store: Arc<BlobStore>) -> Self {
        Self {
            replica,
            store,
            promises: Arc::default(),
            kept_for: PROMISED_FOR,
            deltas: Arc::default(),
            asked: Arc::default(),
            recent: Arc::default(),
            held: Arc::default(),
        }
    }

    /// Sets for how long content that no version names stays.
    #[must_use]
    pub fn keeping(self, kept_for: Duration) -> Self {
        Self { kept_for, ..self }
    }

    /// Returns what answers peers and clients.
    pub(crate) fn local(&self) -> LocalBlobs {
        LocalBlobs {
            store: Arc::clone(&self.store),
            promises: Arc::clone(&self.promises),
            deltas: Arc::clone(&self.deltas),
            published: self.replica.published(),
            asked: Arc::clone(&self.asked),
        }
    }

    /// Returns the replica of this voter.
    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Returns this voter's own store.
    #[must_use]
    pub fn store(&self) -> &Arc<BlobStore> {
        &self.store
    }

    /// Does something with the store, where it may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&BlobStore) -> leaseward_sync::Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.store);
        match spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(failed),
            Err(error) => Err(Error::Failed { code: "LW0604".into(), why: error.to_string() }),
        }
    }

    /// Returns which of these blobs this voter lacks. What it has, it keeps for an hour at least. Waits where it may block:
    /// whoever gives a pack its name has the store's index meanwhile, on a disk that may stall.
    pub async fn lacking(&self, digests: &[Digest]) -> Vec<Digest> {
        let (promises, wanted) = (Arc::clone(&self.promises), digests.to_vec());
        let look = move |store: &BlobStore| {
            promises.keep(&wanted);
            Ok(store.lacking(&wanted))
        };
        self.with(look).await.unwrap_or_else(|_| digests.to_vec())
    }

    /// Keeps blobs in their stored form, verified. They are not durable yet: a crash of this voter forgets them.
    ///
    /// # Errors
    /// [`Error::Failed`] with the store's code.
    pub async fn keep<B: AsRef<[u8]> + Send + 'static>(&self, frames: Vec<(Digest, B)>) -> Result<()> {
        self.promises.keep(frames.iter().map(|(digest, _)| digest));
        self.with(move |store| store.put_loose(&frames)).await
    }

    /// Returns a blob, from here or from another voter, verified. A fetched one is kept. What was committed and is yet to
    /// be made is waited for.
    ///
    /// # Errors
    /// [`Error::Failed`], with `LW0801` if nobody has it.
    pub async fn get(&self, digest: Digest) -> Result<Vec<u8>> {
        match self.get_now(digest).await {
            Err(error) if error.code() == "LW0801" => {
                self.made().await;
                self.with(move |store| store.get(digest)).await
            }
            done => done,
        }
    }

    /// As [`QuorumContent::get`], and waits for nothing to be made.
    async fn get_now(&self, digest: Digest) -> Result<Vec<u8>> {
        match self.with(move |store| store.get(digest)).await {
            Err(error) if matches!(error.code(), "LW0801" | "LW0802") => {}
            here => return here,
        }
        self.fetch(vec![digest]).await?;
        self.with(move |store| store.get(digest)).await
    }

    /// Waits until this voter has made what was committed with its delta. Returns at once if nothing is left to be made,
    /// and after a while whatever is.
    async fn made(&self) {
        let until = tokio::time::Instant::now() + MADE_WITHIN;
        loop {
            let state = Arc::clone(&self.replica.published().borrow().state);
            let versions = state.sets().flat_map(|(_, set)| set.versions.values());
            let made = versions.filter(|version| version.delta.is_some()).map(|version| version.manifest);
            if self.lacking(&made.collect::<Vec<_>>()).await.is_empty() || until <= tokio::time::Instant::now() {
                return;
            }
            self.asked.notify_one();
            tokio::time::sleep(MADE_LOOK_EACH).await;
        }
    }

    /// Returns a manifest, from here or from another voter.
    ///
    /// # Errors
    /// As [`QuorumContent::get`], and [`Error::Failed`] for what is no manifest or may be on no disk.
    pub async fn manifest(&self, digest: Digest) -> Result<Arc<Manifest>> {
        match self.manifest_now(digest).await {
            Err(error) if error.code() == "LW0801" => {
                self.made().await;
                self.manifest_now(digest).await
            }
            done => done,
        }
    }

    /// As [`QuorumContent::manifest`], and waits for nothing to be made.
    async fn manifest_now(&self, digest: Digest) -> Result<Arc<Manifest>> {
        let recent = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tree)) = recent().iter().find(|(name, _)| *name == digest) {
            return Ok(Arc::clone(tree));
        }
        let bytes = self.get_now(digest).await?;
        let tree = Arc::new(manifest::decode(&bytes).map_err(failed)?);
        if tree.entries.len() <= RECENT_ENTRIES_MAX {
            let mut recent = recent();
            recent.push_back((digest, Arc::clone(&tree)));
            if recent.len() > RECENT_KEPT {
                recent.pop_front();
            }
        }
        Ok(tree)
    }

    /// Fetches blobs from the other voters, many at a time and from each of them. They are kept, and not durable yet.
    /// Returns those that nobody gave.
    async fn fetch(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        self.promises.keep(&digests);
        let others = self.others();
        let mut running = JoinSet::new();
        let mut waiting: Vec<Vec<Digest>> = digests.chunks(FRAMES_ASKED_MAX / 8).map(<[_]>::to_vec).collect();
        waiting.reverse();
        let (mut turn, mut lacking) = (0, Vec::new());
        loop {
            while running.len() < SENDINGS_AT_ONCE
                && let Some(some) = waiting.pop()
            {
                let (content, mut order) = (self.clone(), others.clone());
                if !order.is_empty() {
                    order.rotate_left(turn % others.len());
                }
                turn += 1;
                running.spawn(async move { content.fetch_some(&order, some).await });
            }
            match running.join_next().await {
                None => return Ok(lacking),
                Some(Ok(left)) => lacking.extend(left?),
                Some(Err(error)) => return Err(Error::Failed { code: "LW0604".into(), why: error.to_string() }),
            }
        }
    }

    /// As [`QuorumContent::fetch`]; what nobody gives may have to be made here first.
    async fn fetch_or_make(&self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        let missing = self.fetch(digests).await?;
        if missing.is_empty() {
            return Ok(missing);
        }
        self.made().await;
        Ok(self.lacking(&missing).await)
    }

    async fn fetch_some(&self, order: &[NodeId], mut left: Vec<Digest>) -> Result<Vec<Digest>> {
        for id in order {
            let mut here = left.clone();
            while !here.is_empty() {
                let ask = Ask::GetFrames(here.clone());
                let Ok(Answer::Frames { frames, lacking }) =
                    self.replica.ask(*id, Purpose::Bulk, &ask, PEER_WITHIN).await
                else {
                    break;
                };
                let wanted: BTreeSet<Digest> = here.iter().copied().collect();
                let all = frames.len();
                let frames: Frames = frames.into_iter().filter(|(digest, _)| wanted.contains(digest)).collect();
                if frames.len() < all {
                    warn!(node = id, "a voter gave what nobody asked for: refused");
                }
                if frames.is_empty() {
                    break;
                }
                let got: BTreeSet<Digest> = frames.iter().map(|(digest, _)| *digest).collect();
                if let Err(error) = self.with(move |store| store.put_loose(&frames)).await {
                    if error.code() != "LW0802" {
                        return Err(error);
                    }
                    warn!(node = id, %error, "a voter gave wrong bytes: refused");
                    break;
                }
                here.retain(|digest| !got.contains(digest) && !lacking.contains(digest));
                left.retain(|digest| !got.contains(digest));
            }
            if left.is_empty() {
                break;
            }
        }
        Ok(left)
    }

    /// Makes sure that a quorum of voters holds these blobs durably, this one included. Waits a moment for the others,
    /// too: every voter should have everything before somebody asks it.
    ///
    /// # Errors
    /// [`Error::Failed`] with `LW0801` if this voter lacks one, [`Error::Unavailable`] if no quorum keeps them.
    pub async fn make_quorum(&self, digests: &[Digest]) -> Result<()> {
        let lacking = self.lacking(digests).await;
        let missing = self.fetch_or_make(lacking).await?;
        if let Some(first) = missing.first() {
            return Err(nobody_has(&missing, digests.len(), *first));
        }
        let mut under_way = JoinSet::new();
        for id in self.others() {
            let (content, digests) = (self.clone(), digests.to_vec());
            under_way.spawn(async move { (Some(id), content.give(id, &digests).await) });
        }
        let (content, all) = (self.clone(), digests.to_vec());
        under_way.spawn(async move { (None, content.hold(all).await) });
        let (membership, me) = (self.replica.status().membership, self.replica.node());
        let began = tokio::time::Instant::now();
        let (mut holders, mut held) = (BTreeSet::new(), BTreeMap::new());
        while !(is_quorum(&membership, &holders) && holders.contains(&me)) {
            match under_way.join_next().await {
                Some(Ok((id, Ok(())))) => drop(holders.insert(id.unwrap_or(me))),
                Some(Ok((None, Err(error)))) => return Err(error),
                Some(Ok((Some(id), Err(error)))) => drop(held.insert(id, error.to_string())),
                Some(Err(_)) => {}
                None => {
                    let why = held.into_iter().map(|(id, why)| format!("; node {id}: {why}")).collect::<String>();
                    return Err(Error::Unavailable(format!("no quorum of voters keeps the content{why}")));
                }
            }
        }
        let rest = async { while under_way.join_next().await.is_some() {} };
        let patience = (began.elapsed() / 2).max(Duration::from_millis(50));
        if tokio::time::timeout(patience, rest).await.is_err() {
            tokio::spawn(async move { while under_way.join_next().await.is_some() {} });
        }
        Ok(())
    }

    /// Makes these blobs durable here.
    async fn hold(&self, digests: Vec<Digest>) -> Result<()> {
        let missing = self.with(move |store| store.settle().map(|()| store.missing(&digests))).await?;
        missing.first().map_or(Ok(()), |first| Err(nobody_has(&missing, missing.len(), *first)))
    }

    /// Gives a voter what it lacks, and returns when it says that all of it is durable.
    async fn give(&self, id: NodeId, digests: &[Digest]) -> Result<()> {
        for some in digests.chunks(FRAMES_ASKED_MAX) {
            let missing = self.missing_at(id, some).await?;
            if missing.is_empty() {
                continue;
            }
            let mut sending = JoinSet::new();
            let mut left = missing.as_slice();
            while !left.is_empty() {
                let all = left.to_vec();
                let (frames, lacking) = self.with(move |store| Ok(read_frames(store, &all))).await?;
                if let Some(first) = lacking.first() {
                    return Err(nobody_has(&lacking, missing.len(), *first));
                }
                left = &left[frames.len()..];
                let replica = self.replica.clone();
                sending.spawn(async move {
                    match replica.ask(id, Purpose::Bulk, &Ask::PutFrames(frames), PEER_WITHIN).await? {
                        Answer::Done => Ok(()),
                        other => Err(refused(other)),
                    }
                });
                // One is read while another is on its way.
                while sending.len() >= 2 {
                    joined(sending.join_next().await)?;
                }
            }
            while let Some(sent) = sending.join_next().await {
                joined(Some(sent))?;
            }
            if let Some(first) = self.missing_at(id, some).await?.first() {
                let why = format!("node {id} does not hold blob {first}");
                return Err(Error::Failed { code: "LW0801".into(), why });
            }
        }
        Ok(())
    }

    /// Returns which of these blobs a voter does not hold durably.
    async fn missing_at(&self, id: NodeId, digests: &[Digest]) -> Result<Vec<Digest>> {
        let ask = Ask::MissingBlobs(digests.to_vec());
        match self.replica.ask(id, Purpose::Bulk, &ask, PEER_WITHIN).await? {
            Answer::Missing(missing) => Ok(missing),
            other => Err(refused(other)),
        }
    }

    fn others(&self) -> Vec<NodeId> {
        let membership = self.replica.status().membership;
        let me = self.replica.node();
        let voters: BTreeSet<NodeId> = membership.voters.iter().flatten().copied().filter(|id| *id != me).collect();
        voters.into_iter().collect()
    }
}

fn joined(done: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match done {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Error::Failed { code: "LW0604".into(), why: error.to_string() }),
        None => Ok(()),
    }
}

fn nobody_has(missing: &[Digest], all: usize, first: Digest) -> Error {
    let why = format!("{} of {all} blobs are on no voter that answers, first: {first}", missing.len());
    Error::Failed { code: "LW0801".into(), why }
}

fn failed(error: leaseward_sync::Error) -> Error {
    Error::Failed { code: error.code().into(), why: error.to_string() }
}

fn refused(answer: Answer) -> Error {
    match answer {
        Answer::Failed { code, why } => Error::Failed { code, why },
        other => Error::Failed { code: "LW0701".into(), why: format!("a strange answer: {other:?}") },
    }
}
