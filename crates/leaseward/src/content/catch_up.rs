//! What was committed is made here, from its delta or from the other voters; what nothing names any more is removed.
//!
//! Must stay true: a voter that was away serves nothing that it does not have, and says that its content is complete only
//! when it is, durably. A blob is removed only by a voter whose content is complete, after a read of the state that is as
//! new as now, if no kept version of any set names it and it was not promised to anybody lately.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::machine::Published;
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::config::{Digest, Version};
use leaseward_state::{SetName, State};
use leaseward_sync::{BlobStore, delta, manifest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::QuorumContent;
use super::promises::Promises;
use super::ready::make;
use crate::error::Result;
use crate::limits::{COLLECT_EACH, MAKE_AFTER, SETTLE_AFTER};

/// A version by its set, its number and its manifest.
type Seen = BTreeSet<(SetName, u64, Digest)>;

impl QuorumContent {
    /// Makes and fetches what committed versions name, and removes what none does, until it is dropped.
    pub(crate) async fn catch_up(self) {
        let mut published = self.replica.published();
        let mut seen = Seen::new();
        let (mut unsettled, mut losses) = (None, 0);
        let started = Instant::now();
        let mut collect_at = started + self.kept_for;
        loop {
            match self.with(|store| Ok(store.losses())).await {
                Ok(now) if now != losses => {
                    // Whatever was here may be gone.
                    seen.clear();
                    losses = now;
                }
                Ok(_) | Err(_) => {}
            }
            self.let_members_go_first(&mut published, &seen).await;
            let state = Arc::clone(&published.borrow_and_update().state);
            let before = seen.clone();
            if !self.complete(&state, &mut seen).await {
                // Not at every change of the state: on a full disk nothing comes of it but load and words.
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            // Members on this disk sync their trees in this very moment, and one sync is enough for several versions.
            if !seen.is_subset(&before) || unsettled.is_some() {
                unsettled.get_or_insert_with(|| Instant::now() + SETTLE_AFTER);
            } else {
                self.replica.has_content_of(state.revision());
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return },
                () = sleep_until(unsettled.unwrap_or(collect_at)) => {}
            }
            if unsettled.is_some_and(|at| at <= Instant::now()) {
                match self.with(|store| store.settle().map(|()| store.losses())).await {
                    Ok(now) if now != losses => continue,
                    Ok(_) => {
                        unsettled = None;
                        self.replica.has_content_of(state.revision());
                    }
                    Err(error) => {
                        warn!(%error, "content cannot be made durable");
                        sleep(Duration::from_secs(1)).await;
                    }
                }
            }
            self.promises.grow(self.kept_for, Instant::now());
            if unsettled.is_none() && collect_at <= Instant::now() {
                collect_at = Instant::now() + COLLECT_EACH.min(self.kept_for / 2);
                match self.collect().await {
                    Ok(0) => {}
                    Ok(removed) => info!(removed, "removed blobs that no version names"),
                    Err(error) => debug!(%error, "nothing is collected now"),
                }
            }
        }
    }

    /// Waits while all that is new can be made of what is here, for a moment, and until somebody asks for it.
    async fn let_members_go_first(&self, published: &mut watch::Receiver<Published>, seen: &Seen) {
        let until = Instant::now() + MAKE_AFTER;
        while can_wait(&published.borrow_and_update().state, seen) {
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return },
                () = self.asked.notified() => return,
                () = sleep_until(until) => return,
            }
        }
    }

    /// Makes or fetches what kept versions name. Returns whether everything is here; it may not be durable yet.
    async fn complete(&self, state: &State, seen: &mut Seen) -> bool {
        let mut complete = true;
        let mut kept = Seen::new();
        for (name, set) in state.sets() {
            // Ascending, so that what a delta builds on is here before it.
            for version in set.versions.values() {
                let key = (name.clone(), version.number, version.manifest);
                if !seen.contains(&key) {
                    let base = version.delta.as_ref().and_then(|delta| set.versions.get(&delta.base));
                    let base = base.map(|base| (name.clone(), base.number, base.manifest));
                    let base = base.filter(|base| kept.contains(base)).map(|(_, _, manifest)| manifest);
                    match self.version(version, base).await {
                        Ok(0) => {}
                        Ok(blobs) => debug!(set = %name, version = version.number, blobs, "content is here"),
                        Err(error) => {
                            complete = false;
                            warn!(set = %name, version = version.number, %error, "content is not here yet");
                            continue;
                        }
                    }
                }
                kept.insert(key);
            }
        }
        *seen = kept;
        complete
    }

    /// Makes one version complete here; `base` is the manifest of the one that its delta builds on, if that is complete.
    /// Returns how many blobs came.
    pub(crate) async fn version(&self, version: &Version, base: Option<Digest>) -> Result<usize> {
        let mut came = 0;
        if let Some(delta) = &version.delta
            && !self.lacking(&[version.manifest]).await.is_empty()
        {
            let (bytes, next) = (delta.bytes.clone(), version.manifest);
            let _turn = self.deltas.turn().await;
            match self.with(move |store| make(store, bytes.as_slice(), next)).await {
                Ok(made) if base.is_some() => return Ok(made),
                // It made what is new, and the base may lack what is not.
                Ok(made) => came = made,
                Err(error) => info!(version = version.number, %error, "a delta does not fit what is here: fetching"),
            }
        }
        let had_manifest = self.lacking(&[version.manifest]).await.is_empty();
        if !had_manifest {
            // Kept here, and not only known.
            self.get_now(version.manifest).await?;
            came += 1;
        }
        let tree = self.manifest_now(version.manifest).await?;
        let named: Vec<Digest> = match base {
            // Thousands of files that are known to be here need not be looked at for the few that came.
            Some(base) => {
                let base = self.manifest_now(base).await?;
                delta::only_in(&tree, &base).iter().map(|chunk| chunk.digest).collect()
            }
            None => tree.chunk_names().into_iter().collect(),
        };
        let lacking = self.lacking(&named).await;
        let fetched = lacking.len();
        came += fetched;
        // What nobody gives may still be made from the delta, though the manifest was here.
        let missing = self.fetch(lacking).await?;
        if let Some(first) = missing.first() {
            let Some(delta) = &version.delta else { return Err(super::nobody_has(&missing, fetched, *first)) };
            let (bytes, next) = (delta.bytes.clone(), version.manifest);
            self.with(move |store| make(store, bytes.as_slice(), next)).await?;
            // It has what is new in this version, and what it builds on may lack something.
            let missing = self.lacking(&missing).await;
            if let Some(first) = missing.first() {
                return Err(super::nobody_has(&missing, fetched, *first));
            }
        }
        Ok(came)
    }

    /// Removes what no kept version names. Returns how many blobs.
    async fn collect(&self) -> Result<usize> {
        let read = self.replica.read().await;
        let state = read.map_err(crate::error::Error::from)?.state;
        let named: BTreeSet<Digest> =
            state.sets().flat_map(|(_, set)| set.versions.values().map(|version| version.manifest)).collect();
        let promises = Arc::clone(&self.promises);
        self.with(move |store| sweep(store, &named, &promises)).await
    }
}

/// Returns whether there is news, and all of it can be made later of what is complete here: its deltas are in the log, and
/// so are those that they build on. The state forgets old versions with their deltas, so at most half of those that a set
/// keeps may wait.
fn can_wait(state: &State, seen: &Seen) -> bool {
    let mut is_news = false;
    for (name, set) in state.sets() {
        let (mut base, mut waiting) = (None, 0);
        for version in set.versions.values() {
            if !seen.contains(&(name.clone(), version.number, version.manifest)) {
                let can_be_made = |delta: &InlineDelta| delta.base == 0 || base == Some(delta.base);
                if !version.delta.as_ref().is_some_and(can_be_made) {
                    return false;
                }
                waiting += 1;
            }
            base = Some(version.number);
        }
        if waiting * 2 > set.spec.keep_versions {
            return false;
        }
        is_news |= waiting > 0;
    }
    is_news
}

/// Removes every blob that none of these manifests names, nor anything that they name, unless it was promised. Returns how
/// many. A manifest that is not here, or not readable, stops everything. What is left is put together. What was set aside because
/// it was damaged goes, too, once everything is here that they name.
fn sweep(store: &BlobStore, named: &BTreeSet<Digest>, promises: &Promises) -> leaseward_sync::Result<usize> {
    let mut needed: HashSet<Digest> = named.iter().copied().collect();
    for digest in named {
        needed.extend(manifest::decode(&store.get(*digest)?)?.chunk_names());
    }
    let mut removed = 0;
    for digest in store.digests() {
        if !needed.contains(&digest)
            && let Some(done) = promises.unless_kept(digest, || store.remove(digest))
        {
            done?;
            removed += 1;
        }
    }
    store.compact()?;
    if store.missing(&needed.into_iter().collect::<Vec<_>>()).is_empty() {
        store.drop_damaged()?;
    }
    Ok(removed)
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod collect_tests;

#[cfg(test)]
#[path = "made_later_tests.rs"]
mod made_later_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PROMISED_FOR;

    /// Publishes one file into a store. Returns the names of the manifest and of its only chunk.
    pub(super) fn put(store: &BlobStore, text: &str) -> [Digest; 2] {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), text).unwrap();
        let scanned = leaseward_sync::scan(temp.path()).unwrap();
        let encoded = manifest::encode(scanned.manifest());
        let (tree, chunk) = (leaseward_sync::digest_of(&encoded), leaseward_sync::digest_of(text.as_bytes()));
        store.put_many(&[(tree, encoded), (chunk, text.as_bytes().to_vec())]).unwrap();
        [tree, chunk]
    }

    pub(super) fn has(store: &BlobStore, digests: [Digest; 2]) -> [bool; 2] {
        digests.map(|digest| store.get(digest).is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_kept_version_names_stays_and_the_rest_goes_when_nobody_was_promised_it() {
        let temp = tempfile::tempdir().unwrap();
        let (store, promises, hour) = (BlobStore::open(temp.path()).unwrap(), Promises::default(), PROMISED_FOR);
        let (kept, dropped, asked) = (put(&store, "kept"), put(&store, "dropped"), put(&store, "asked for"));
        let named = BTreeSet::from([kept[0]]);
        promises.grow(hour, Instant::now());
        promises.keep(&asked);
        assert_eq!(sweep(&store, &named, &promises).unwrap(), 2);
        assert_eq!([kept, dropped, asked].map(|names| has(&store, names)), [[true; 2], [false; 2], [true; 2]]);
        // Asked for again just before the first promise has grown old: it stays for an hour from then.
        tokio::time::advance(hour * 9 / 10).await;
        promises.grow(hour, Instant::now());
        promises.keep(&asked[1..]);
        for _ in 0..9 {
            tokio::time::advance(hour / 10).await;
            promises.grow(hour, Instant::now());
            sweep(&store, &named, &promises).unwrap();
            assert!(has(&store, asked)[1]);
        }
        for _ in 0..2 {
            tokio::time::advance(hour + Duration::from_secs(1)).await;
            promises.grow(hour, Instant::now());
        }
        sweep(&store, &named, &promises).unwrap();
        assert_eq!([kept, asked].map(|names| has(&store, names)), [[true; 2], [false; 2]]);
        // And it is the same for whoever opens the store again.
        drop(store);
        let store = BlobStore::open(temp.path()).unwrap();
        assert_eq!(store.digests().len(), 2);
        assert_eq!(has(&store, kept), [true; 2]);
    }

    #[test]
    fn a_damaged_pack_stands_aside_until_all_that_is_needed_is_here_again() {
        let temp = tempfile::tempdir().unwrap();
        let promises = Promises::default();
        let store = BlobStore::open(temp.path()).unwrap();
        let (kept, needed) = (put(&store, "kept"), put(&store, "needed, too"));
        let named = BTreeSet::from([kept[0], needed[0]]);
        // The manifests stand whole in packs of their own.
        let manifests = named.iter().map(|digest| (*digest, store.get(*digest).unwrap())).collect::<Vec<_>>();
        drop(store);
        let pack = leaseward_sync::stored(temp.path()).unwrap()[&needed[1]].clone();
        let bytes = std::fs::read(&pack).unwrap();
        std::fs::write(&pack, &bytes[1..]).unwrap();
        let aside = pack.with_extension("damaged");
        let store = BlobStore::open(temp.path()).unwrap();
        store.put_many(&manifests).unwrap();
        sweep(&store, &named, &promises).unwrap();
        assert!(aside.exists(), "some of it is nowhere else yet");
        drop(store);
        let store = BlobStore::open(temp.path()).unwrap();
        assert!(aside.exists(), "nor does a start remove it");
        store.put(needed[1], b"needed, too").unwrap();
        sweep(&store, &named, &promises).unwrap();
        assert!(!aside.exists(), "it would stand there for ever");
        assert_eq!(has(&store, needed), [true; 2]);
    }

    #[test]
    fn a_kept_version_that_is_not_here_or_damaged_stops_everything() {
        let temp = tempfile::tempdir().unwrap();
        let (store, promises) = (BlobStore::open(temp.path()).unwrap(), Promises::default());
        let (kept, other) = (put(&store, "kept"), put(&store, "other"));
        let missing = Digest([9; 32]);
        assert_eq!(sweep(&store, &BTreeSet::from([kept[0], missing]), &promises).unwrap_err().code(), "LW0801");
        std::fs::write(&leaseward_sync::stored(temp.path()).unwrap()[&kept[0]], "damaged").unwrap();
        assert_eq!(sweep(&store, &BTreeSet::from([kept[0]]), &promises).unwrap_err().code(), "LW0802");
        assert_eq!(has(&store, other), [true; 2]);
    }
}
