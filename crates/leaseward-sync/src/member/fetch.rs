//! Getting a version onto this machine: as what changed since the live one, or else the blobs that are not here.
//!
//! Must stay true: what is kept was asked for and is verified; what came stays when the rest fails, so the next attempt
//! fetches only what is left; whoever gives something else is asked last, and an attempt ends though he goes on.
//! Bounded: so many questions at one time, each for so many bytes; a delta within its own limits.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use leaseward_state::config::spec::Layout;
use leaseward_state::config::{Chunk, Digest, Manifest};
use leaseward_state::name::SetName;
use tokio::sync::RwLock;
use tokio::task::JoinSet;

use super::cache::Cache;
use super::disk::Disk;
use super::{Blob, GivenBy, Source, WantedVersion};
use crate::delta::Delta;
use crate::error::Error;
use crate::limits::{CORRUPT_TRIES, DELTA_SENT_BYTES_MAX, FRAMES_ASKED_MAX, FRAMES_BYTES_MAX};
use crate::{empty_tree, manifest};

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

/// Where the blobs of a set come from and go to.
#[derive(Clone)]
pub(crate) struct Fetch {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) set: SetName,
    /// Questions at one time.
    pub(crate) parallel: usize,
    /// Whether what the source has on this machine is left there until the tree is built.
    pub(crate) relies_on_here: bool,
    /// Of which versions, by their manifests, what the cache has is kept, once the one that is fetched is known; `None`:
    /// nothing came for any other.
    pub(crate) keeps: Option<Arc<[Digest]>>,
    pub(crate) door: Door,
    pub(crate) progress: Arc<Progress>,
}

/// How far a fetch is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Returns the bytes that came, and those that were lacking.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// What the blobs of one fetch pass on their way to the cache: what comes after it was closed is not kept, though threads may
/// still be at work for a fetch that was given up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Door(Arc<RwLock<Closed>>);

#[derive(Debug, Default)]
struct Closed(bool);

impl Door {
    /// Lets nothing through from now on; waits for what is on its way.
    pub(crate) async fn close(&self) {
        self.0.write().await.0 = true;
    }

    /// As [`blocking`], for work that keeps something.
    async fn pass<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Failure> {
        let door = Arc::clone(&self.0).read_owned().await;
        if door.0 {
            return Err(Failure::Source("it is given up".to_owned()));
        }
        let work = blocking(move || {
            let done = work();
            drop(door);
            done
        });
        Ok(work.await?)
    }
}

impl Fetch {
    /// Fetches what this machine lacks of a version and returns its manifest. Cancel safe: what came stays.
    pub(crate) async fn version(&self, want: WantedVersion) -> Result<Arc<Manifest>, Failure> {
        let tree = Arc::new(self.manifest(want).await?);
        let (fetch, manifest) = (self.clone(), Arc::clone(&tree));
        self.all(blocking(move || fetch.missing(want.manifest, &manifest)).await?).await?;
        Ok(tree)
    }

    /// Fetches the manifest of a version, if it is not here, and returns it. What comes with it goes to the cache. Cancel
    /// safe.
    pub(crate) async fn manifest(&self, want: WantedVersion) -> Result<Manifest, Failure> {
        let tree = match self.cached(want.manifest).await? {
            Some(tree) => tree,
            None => match self.by_delta(want).await {
                Some(tree) => tree,
                None => self.whole_manifest(want.manifest).await?,
            },
        };
        if let Some(keeps) = self.keeps.clone() {
            let fetch = self.clone();
            self.door.pass(move || drop_leftovers(&fetch.disk, &fetch.cache, &keeps)).await?;
        }
        Ok(tree)
    }

    /// Fetches those of these chunks that are not in the cache. Cancel safe: what came stays.
    pub(crate) async fn chunks(&self, chunks: Vec<Chunk>) -> Result<(), Failure> {
        let cache = Arc::clone(&self.cache);
        let lacking = blocking(move || {
            // Read and not only looked for, as the manifest is.
            let lacking = chunks.into_iter().filter(|chunk| cache.get(chunk.digest).is_err());
            Ok(lacking.map(|Chunk { digest, size }| Piece { digest, size }).collect())
        });
        self.all(lacking.await?).await
    }

    /// Returns a manifest from the cache, if it is there and whole: the cache is not synced, so a power cut may have damaged
    /// it.
    async fn cached(&self, digest: Digest) -> Result<Option<Manifest>, Failure> {
        let cache = Arc::clone(&self.cache);
        match blocking(move || manifest::decode(&cache.get(digest)?)).await {
            Ok(tree) => Ok(Some(tree)),
            Err(Error::BlobMissing { .. } | Error::BlobCorrupt { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn whole_manifest(&self, digest: Digest) -> Result<Manifest, Failure> {
        self.pieces(vec![Piece { digest, size: 0 }], 0).await?;
        let cache = Arc::clone(&self.cache);
        Ok(blocking(move || manifest::decode(&cache.get(digest)?)).await?)
    }

    /// Returns the manifest, if the source gives a delta that fits what is live. What it makes is in the cache then.
    async fn by_delta(&self, want: WantedVersion) -> Option<Manifest> {
        let disk = Arc::clone(&self.disk);
        let live = blocking(move || Ok(disk.lock().unwrap_or_else(PoisonError::into_inner).live())).await;
        let base = match live {
            Ok(Some(live)) => live.manifest,
            // Nothing is live: what can be made out of nothing, is.
            _ => empty_tree(),
        };
        let GivenBy { who, given: bytes } = self.source.delta(&self.set, base, want.manifest).await?;
        let (fetch, set) = (self.clone(), &self.set);
        match self.door.pass(move || fetch.take_delta(bytes.as_slice(), base, want.manifest)).await {
            Ok(got) => Some(got),
            Err(Failure::Source(_)) => None,
            Err(Failure::Local(error)) => {
                // Anything else may be due to what stands here.
                if matches!(error, Error::BadDelta { .. }) {
                    self.source.refuse(&who, &error.to_string());
                }
                tracing::info!(%set, version = want.number, %error, "the delta does not fit what is here: fetching");
                None
            }
        }
    }

    fn take_delta(&self, bytes: &[u8], base: Digest, next: Digest) -> Result<Manifest, Error> {
        let why = |why: &str| Error::BadDelta { why: why.to_owned() };
        if bytes.len() > DELTA_SENT_BYTES_MAX {
            return Err(why("it is longer than it may be"));
        }
        let delta = Delta::open(bytes)?;
        if (delta.base(), delta.next()) != (base, next) {
            return Err(why("it is for other versions"));
        }
        let lent = self.disk.lock().unwrap_or_else(PoisonError::into_inner).live_tree()?;
        let decoded = match &lent {
            Some(lent) => delta.decode(lent.manifest(), &mut |chunk: Chunk| lent.read(chunk.digest))?,
            None => {
                delta.decode(&Manifest::default(), &mut |chunk| Err(Error::BlobMissing { digest: chunk.digest }))?
            }
        };
        self.cache.keep_proven(decoded.chunks())?;
        // The manifest last: it says that the rest is here.
        self.cache.keep_proven(std::iter::once((next, decoded.encoded.as_slice())))?;
        Ok(decoded.manifest)
    }

    /// Returns the chunks of a version that are nowhere on this machine.
    fn missing(&self, name: Digest, tree: &Manifest) -> Result<Vec<Piece>, Error> {
        let is_held = |digest: Digest| self.cache.holds(digest);
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let needs = disk.needs(name, tree, &is_held)?;
        // Single files are switched one by one: what they need must not go meanwhile.
        let relies_on_here = self.relies_on_here && disk.layout() == Layout::Tree;
        drop(disk);
        let mut missing = Vec::new();
        for Chunk { digest, size } in needs.fetch {
            // Read and not only looked for, as the manifest is.
            let is_here = || relies_on_here && self.source.is_here(digest);
            if !self.cache.holds(digest) && !is_here() && self.cache.get(digest).is_err() {
                missing.push(Piece { digest, size });
            }
        }
        Ok(missing)
    }

    /// Fetches all of `pieces`. Cancel safe: what came stays.
    async fn all(&self, pieces: Vec<Piece>) -> Result<(), Failure> {
        let bytes = |pieces: &[Piece]| pieces.iter().map(|piece| u64::from(piece.size)).sum::<u64>();
        self.progress.total.fetch_add(bytes(&pieces), Ordering::Relaxed);
        let mut running: JoinSet<Result<(), Failure>> = JoinSet::new();
        let mut waiting = batches(pieces, FRAMES_BYTES_MAX / 2).into_iter().enumerate();
        loop {
            while running.len() < self.parallel
                && let Some((turn, batch)) = waiting.next()
            {
                let (fetch, size) = (self.clone(), bytes(&batch));
                running.spawn(async move {
                    fetch.pieces(batch, turn).await?;
                    fetch.progress.done.fetch_add(size, Ordering::Relaxed);
                    Ok(())
                });
            }
            match running.join_next().await {
                None => return Ok(()),
                Some(Ok(outcome)) => outcome?,
                Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Some(Err(error)) => return Err(Failure::Source(error.to_string())),
            }
        }
    }

    /// Fetches some blobs into the cache, verified. `turn` says which voter is asked first.
    async fn pieces(&self, pieces: Vec<Piece>, mut turn: usize) -> Result<(), Failure> {
        let mut left: BTreeSet<Digest> = pieces.iter().map(|piece| piece.digest).collect();
        let mut tries = 0;
        while !left.is_empty() {
            let ask: Vec<Digest> = left.iter().copied().collect();
            let asked = self.source.fetch_many(&ask, turn).await;
            let GivenBy { who, given } = asked.map_err(|error| Failure::Source(error.to_string()))?;
            let (cache, wanted) = (Arc::clone(&self.cache), left.clone());
            let (kept, wrong) = self.door.pass(move || keep_wanted(&cache, &wanted, &given)).await?;
            left.retain(|digest| !kept.contains(digest));
            if let Some(why) = wrong {
                tracing::warn!(set = %self.set, who, why, "refused what was given: others are asked first");
                self.source.refuse(&who, &why);
                (tries, turn) = (tries + 1, turn + 1);
                if tries > CORRUPT_TRIES {
                    return Err(Failure::Source(format!("{who}: {why}")));
                }
            }
        }
        Ok(())
    }
}

/// Drops from the cache what none of these versions needs, by their manifests, nor the way back.
pub(crate) fn drop_leftovers(disk: &Mutex<Disk>, cache: &Cache, keeps: &[Digest]) -> Result<(), Error> {
    let mut kept = cache.named_by(keeps);
    kept.extend(way_back(&disk.lock().unwrap_or_else(PoisonError::into_inner)));
    cache.drop_others(&kept)
}

/// Returns the chunks of what was replaced in place: they are in the cache only.
pub(crate) fn way_back(disk: &Disk) -> BTreeSet<Digest> {
    match disk.layout() {
        Layout::Tree => BTreeSet::new(),
        Layout::Files => disk.previous_manifest().map(|(_, tree)| tree.chunk_names()).unwrap_or_default(),
    }
}

/// A blob that is wanted, and its plain size as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    digest: Digest,
    size: u32,
}

/// Cuts what is wanted into questions of about so many plain bytes, in order.
fn batches(pieces: Vec<Piece>, bytes: usize) -> Vec<Vec<Piece>> {
    let mut batches: Vec<Vec<Piece>> = Vec::new();
    let mut left = 0;
    for piece in pieces {
        match batches.last_mut() {
            Some(last) if left >= piece.size as usize && last.len() < FRAMES_ASKED_MAX => last.push(piece),
            _ => {
                left = bytes;
                batches.push(vec![piece]);
            }
        }
        left = left.saturating_sub(piece.size as usize);
    }
    batches
}

/// Keeps what is wanted of what was given, and returns the names. Also what is wrong with the rest, if anything is.
fn keep_wanted(
    cache: &Cache,
    wanted: &BTreeSet<Digest>,
    given: &[(Digest, Blob)],
) -> Result<(BTreeSet<Digest>, Option<String>), Error> {
    let (mut kept, mut wrong) = (BTreeSet::new(), None);
    let asked = given.iter().filter(|(digest, _)| wanted.contains(digest)).map(|(digest, blob)| (*digest, blob));
    cache.keep(asked, &mut |digest, taken| match taken {
        Ok(()) => drop(kept.insert(digest)),
        Err(error) => wrong = Some(error.to_string()),
    })?;
    if kept.is_empty() && wrong.is_none() {
        wrong = Some("it gives nothing of what it was asked for".to_owned());
    }
    Ok((kept, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest_of;

    #[tokio::test]
    async fn what_is_on_its_way_when_a_fetch_is_given_up_is_waited_for_and_nothing_is_kept_afterwards() {
        let (door, (begin, begun), (go_on, goes_on)) =
            (Door::default(), tokio::sync::oneshot::channel(), std::sync::mpsc::channel());
        let kept = Arc::new(AtomicU64::new(0));
        let keep = |kept: &Arc<AtomicU64>| {
            let kept = Arc::clone(kept);
            move || {
                kept.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        };
        let (passing, first) = (door.clone(), keep(&kept));
        let slow = tokio::spawn(async move {
            let work = move || {
                begin.send(()).expect("the test waits");
                goes_on.recv().expect("the test goes on");
                first()
            };
            passing.pass(work).await.is_ok()
        });
        begun.await.unwrap();
        // Whoever waits for it is gone; the thread is not.
        slow.abort();
        let mut closing = std::pin::pin!(door.close());
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, &mut closing).await.is_err(),
            "something is on its way"
        );
        go_on.send(()).unwrap();
        closing.await;
        assert_eq!(kept.load(Ordering::Relaxed), 1);
        assert!(door.pass(keep(&kept)).await.is_err());
        assert_eq!(kept.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn questions_are_of_about_equal_bytes() {
        let piece = |size: u32| Piece { digest: digest_of(&size.to_le_bytes()), size };
        let sizes = |batches: Vec<Vec<Piece>>| -> Vec<Vec<u32>> {
            batches.iter().map(|batch| batch.iter().map(|piece| piece.size).collect()).collect()
        };
        let pieces = [3, 4, 5, 20, 1, 1].map(piece).to_vec();
        assert_eq!(sizes(batches(pieces, 10)), [vec![3, 4], vec![5], vec![20], vec![1, 1]]);
        assert_eq!(batches(Vec::new(), 10), Vec::<Vec<Piece>>::new());
    }
}
