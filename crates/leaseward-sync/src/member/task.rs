//! One set on this machine: from what is live to what is wanted.
//!
//! Must stay true: a switch that has begun is waited for; a fetch is given up as soon as another version is wanted.
//! After a failure it waits and tries again, longer each time and never longer than the limit; a version that can
//! never be applied is not tried again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaseward_state::config::{Manifest, SyncState};
use leaseward_state::name::SetName;
use tokio::sync::{mpsc, watch};

use super::fetch::{Failure, blocking, fetch_all, fetch_one};
use super::{Report, Source, Wanted, WantedVersion};
use crate::apply::{Applier, Live, SetDirs};
use crate::error::{Error, Result};
use crate::limits::{RETRY_FIRST, RETRY_LONGEST};
use crate::{BlobStore, manifest};

/// The open set. Locked on blocking threads only.
#[derive(Clone)]
pub(crate) struct Opened {
    applier: Arc<Mutex<Applier>>,
    store: Arc<BlobStore>,
}

pub(crate) struct SetTask {
    pub(crate) set: SetName,
    pub(crate) dirs: SetDirs,
    /// Another set whose target overlaps: then this one is refused.
    pub(crate) clash: Option<SetName>,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) parallel: usize,
    pub(crate) reserve: u64,
    pub(crate) opened: Option<Opened>,
    /// What is live, as the applier said last; nothing before it was opened.
    pub(crate) live: Option<Live>,
    pub(crate) last: Option<Report>,
    /// The failure that was logged last, so that a repeated one is not.
    pub(crate) said: Option<String>,
}

enum Outcome {
    Live,
    Superseded,
    Failed(Failure),
}

impl SetTask {
    pub(crate) async fn run(mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let want = self.wanted.borrow_and_update().get(&self.set).copied();
            let wait = match want {
                None => None,
                Some(want) => match self.attempt(want).await {
                    Outcome::Superseded => {
                        pause = RETRY_FIRST;
                        // Nobody wants anything any more once the sender is gone.
                        if self.wanted.has_changed().is_err() {
                            return;
                        }
                        continue;
                    }
                    Outcome::Live => None,
                    Outcome::Failed(failure) => {
                        self.failed(want, &failure).await;
                        let again = !matches!(&failure, Failure::Local(error) if !error.is_retryable());
                        again.then_some(pause)
                    }
                },
            };
            pause = if wait.is_some() { (pause * 2).min(RETRY_LONGEST) } else { RETRY_FIRST };
            match self.wait(want, wait).await {
                Waited::Again => {}
                Waited::Changed => pause = RETRY_FIRST,
                Waited::Ended => return,
            }
        }
    }

    /// Waits until something else is wanted, or for `pause`.
    async fn wait(&mut self, want: Option<WantedVersion>, pause: Option<Duration>) -> Waited {
        let set = &self.set;
        let changed = self.wanted.wait_for(|wanted| wanted.get(set).copied() != want);
        let pause = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changed => if changed.is_ok() { Waited::Changed } else { Waited::Ended },
            () = pause => Waited::Again,
        }
    }

    async fn attempt(&mut self, want: WantedVersion) -> Outcome {
        match self.try_attempt(want).await {
            Ok(outcome) => outcome,
            Err(failure) => Outcome::Failed(failure),
        }
    }

    async fn try_attempt(&mut self, want: WantedVersion) -> Result<Outcome, Failure> {
        if let Some(other) = &self.clash {
            let why = format!("its target overlaps the one of set {other}");
            return Err(Error::illegal(&self.dirs.target, why).into());
        }
        let opened = self.open().await?;
        let goal = Live { version: want.number, manifest: want.manifest };
        if self.live == Some(goal) {
            self.report(SyncState::Applied).await;
            return Ok(Outcome::Live);
        }
        self.progress(SyncState::Fetching { version: want.number }, want.number).await;
        let mut watching = self.wanted.clone();
        let fetched = tokio::select! {
            fetched = fetch_version(&self.source, &opened, want, self.parallel) => fetched?,
            _ = watching.wait_for(|wanted| wanted.get(&self.set) != Some(&want)) => return Ok(Outcome::Superseded),
        };
        self.progress(SyncState::OnDisk { version: want.number }, want.number).await;
        if self.wanted.borrow().get(&self.set) != Some(&want) {
            return Ok(Outcome::Superseded);
        }
        let done = blocking({
            let opened = opened.clone();
            move || apply(&opened, want, &fetched)
        });
        self.live = done.await?;
        tracing::info!(set = %self.set, version = want.number, "version applied");
        self.said = None;
        self.report(SyncState::Applied).await;
        Ok(Outcome::Live)
    }

    async fn open(&mut self) -> Result<Opened> {
        if let Some(opened) = &self.opened {
            return Ok(opened.clone());
        }
        let (dirs, reserve) = (self.dirs.clone(), self.reserve);
        let (opened, live) = blocking(move || {
            if let Some(parent) = dirs.target.parent() {
                std::fs::create_dir_all(parent).map_err(crate::error::at("make directory", parent))?;
            }
            let applier = Applier::open(&dirs)?.with_reserve(reserve);
            let store = BlobStore::open_cache(&dirs.state_dir.join("blobs"))?.with_floor(reserve);
            let live = applier.live();
            Ok((Opened { applier: Arc::new(Mutex::new(applier)), store: Arc::new(store) }, live))
        })
        .await?;
        self.live = live;
        self.opened = Some(opened.clone());
        Ok(opened)
    }

    async fn failed(&mut self, want: WantedVersion, failure: &Failure) {
        let why = failure.to_string();
        if self.said.as_ref() == Some(&why) {
            tracing::debug!(set = %self.set, version = want.number, why, "still not applied");
        } else {
            tracing::warn!(set = %self.set, version = want.number, why, "version not applied");
            self.said = Some(why.clone());
        }
        if matches!(failure, Failure::Local(_)) {
            self.report(SyncState::Rejected { version: want.number, why }).await;
        }
    }

    /// Reports progress, but not over a refusal of the same version: that stands until it is applied.
    async fn progress(&mut self, state: SyncState, version: u64) {
        let refused = self.last.as_ref().is_some_and(
            |last| matches!(&last.state, SyncState::Rejected { version: refused, .. } if *refused == version),
        );
        // A retry after the source failed does not go back from "on disk".
        if !refused {
            self.report(state).await;
        }
    }

    async fn report(&mut self, state: SyncState) {
        let applied = self.live.map_or(0, |live| live.version);
        let report = Report { set: self.set.clone(), applied, state };
        if self.last.as_ref() != Some(&report) {
            self.last = Some(report.clone());
            // Whoever no longer listens does not stop the sync.
            let _ = self.reports.send(report).await;
        }
    }
}

enum Waited {
    Again,
    Changed,
    Ended,
}

/// Fetches what this machine lacks of a version and returns its manifest. Cancel safe.
async fn fetch_version(
    source: &Arc<dyn Source>,
    opened: &Opened,
    want: WantedVersion,
    parallel: usize,
) -> Result<Manifest, Failure> {
    let store = &opened.store;
    let read = |store: &Arc<BlobStore>| {
        let store = Arc::clone(store);
        blocking(move || store.get(want.manifest))
    };
    let bytes = match read(store).await {
        Err(Error::BlobMissing { .. } | Error::BlobCorrupt { .. }) => {
            fetch_one(Arc::clone(source), Arc::clone(store), want.manifest).await?;
            read(store).await?
        }
        other => other?,
    };
    let cached = opened.clone();
    let (tree, missing) = blocking(move || {
        let tree = manifest::decode(&bytes)?;
        let applier = cached.applier.lock().unwrap_or_else(PoisonError::into_inner);
        let needs = applier.needs(&tree)?;
        let mut missing = Vec::new();
        for chunk in needs.fetch {
            // Read and not only looked for: the cache is not synced, so a power cut may have damaged it.
            if cached.store.get(chunk.digest).is_err() {
                missing.push(chunk.digest);
            }
        }
        Ok((tree, missing))
    })
    .await?;
    fetch_all(source, store, missing, parallel).await?;
    Ok(tree)
}

fn apply(opened: &Opened, want: WantedVersion, tree: &Manifest) -> Result<Option<Live>> {
    let mut applier = opened.applier.lock().unwrap_or_else(PoisonError::into_inner);
    applier.apply_from(want.number, tree, &opened.store)?;
    // The tree holds them all now. What cannot be removed is tried after the next version.
    for digest in opened.store.digests()?.flatten() {
        let _ = opened.store.remove(digest);
    }
    Ok(applier.live())
}
