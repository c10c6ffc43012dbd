//! What there is to do about a version that is live: what its switch left, what somebody changed by hand, what the cache
//! keeps for nothing.
//!
//! Must stay true: nothing here makes another version live; what fails here costs time later, and nothing else.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use leaseward_state::config::spec::DriftRule;
use leaseward_state::config::{DriftedPath, SyncState};
use leaseward_state::token::UnixMillis;
use tokio::time::timeout;

use super::{Opened, Outcome, SetTask, wanted_manifests};
use crate::apply::{Drift, DriftKind};
use crate::limits::{DRIFTS_REPORTED_MAX, FINISH_AFTER};
use crate::member::fetch::{Failure, blocking, drop_leftovers, way_back};
use crate::member::hear::Watch;
use crate::member::{WantedSet, WantedVersion};
use crate::render;
use crate::tree::scan_some;

impl SetTask {
    /// Lets others go first, unless something else is wanted meanwhile.
    pub(super) async fn rest(&mut self, want: &WantedSet) {
        let set = &self.set;
        let _ = timeout(FINISH_AFTER, self.wanted.wait_for(|wanted| wanted.get(set) != Some(want))).await;
    }

    /// Does what a switch left to be done. To end a watch takes time, too.
    pub(super) async fn finish(&self, opened: &Opened, deaf: Option<Watch>) {
        let finished = opened.with(move |disk| {
            drop(deaf);
            disk.finish()
        });
        if let Err(error) = finished.await {
            tracing::warn!(set = %self.set, %error, "what a switch left is not cleaned up");
        }
    }

    /// Looks whether somebody changed files by hand, and does what the set's rule says.
    pub(super) async fn look(&mut self, want: &WantedSet, deep: bool) -> Result<(), Failure> {
        let (Some(opened), Some(goal)) = (self.now.opened.clone(), want.live) else { return Ok(()) };
        if self.now.settled != Some(goal) {
            return Ok(());
        }
        // Before the look, so that what is changed meanwhile is heard.
        self.listen(&opened).await;
        self.now.astray = true;
        let drifts = match opened.with(move |disk| disk.drifts(deep)).await {
            Ok(drifts) => drifts,
            Err(error) => {
                // Nobody knows what stands there: that is not "applied".
                let why = format!("cannot be looked at: {}: {error}", error.code());
                self.report(SyncState::Drifted { paths: vec![remark(&why)], all: 1 }).await;
                return Err(error.into());
            }
        };
        if drifts.is_empty() {
            (self.now.astray, self.now.not_repaired) = (false, None);
            self.now.is_given_away = false;
            self.report(SyncState::Applied).await;
            return Ok(());
        }
        if self.now.is_given_away && drifts.iter().all(|drift| drift.kind == DriftKind::Owner) {
            // The policy is to be as true as a version.
            return self.repair(want, goal, &opened).await;
        }
        tracing::warn!(set = %self.set, files = drifts.len(), first = %drifts[0].path, "files were changed by hand");
        let not_adopted = self.not_adopted(want, &drifts).await;
        self.report(self.drifted(not_adopted.as_deref(), &drifts)).await;
        // What an operator asks for by name is put right whatever the rule says.
        if want.spec.drift == DriftRule::Repair || deep {
            let repaired = self.repair(want, goal, &opened).await;
            if let Err(Failure::Local(error)) = &repaired {
                self.now.not_repaired = Some(format!("not put right: {}: {error}", error.code()));
                self.report(self.drifted(None, &drifts)).await;
            }
            repaired?;
        }
        Ok(())
    }

    /// Returns why what was changed by hand cannot be everybody's, where the set asks for that. The leader, who takes it, hears
    /// of it, too, but nobody asks him.
    async fn not_adopted(&self, want: &WantedSet, drifts: &[Drift]) -> Option<String> {
        if want.spec.drift != DriftRule::Adopt {
            return None;
        }
        if render::is_needed(&want.spec) {
            return Some("not adopted: it is made from what was published: publish its sources instead".to_owned());
        }
        let changed: BTreeSet<String> = drifts.iter().map(|drift| drift.path.clone()).collect();
        let (target, xattrs) = (self.dirs.target.clone(), want.spec.xattrs);
        let scanned = blocking(move || scan_some(&target, xattrs, &|path| changed.contains(path)).map(drop)).await;
        scanned.err().map(|error| format!("not adopted: {}: {error}", error.code()))
    }

    /// Returns what is said of differences, with the reason why they are not adopted, or not put right if that was tried.
    fn drifted(&self, not_adopted: Option<&str>, drifts: &[Drift]) -> SyncState {
        let why = not_adopted.into_iter().chain(self.now.not_repaired.as_deref()).map(remark);
        let paths = why.chain(drifts.iter().take(DRIFTS_REPORTED_MAX).map(told)).collect();
        SyncState::Drifted { paths, all: drifts.len() as u64 }
    }

    pub(super) async fn repair(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
    ) -> Result<(), Failure> {
        let Some(prepared) = self.fetch(want, goal, opened).await? else { return Ok(()) };
        self.stage(want, &prepared, opened).await?;
        if let Outcome::Superseded = self.switch_or_again(want, goal, opened).await? {
            return Ok(());
        }
        self.now.settled = Some(goal);
        (self.now.astray, self.now.not_repaired) = (false, None);
        self.now.is_given_away = false;
        let deaf = self.now.watch.take();
        self.listen(opened).await;
        self.report(SyncState::Applied).await;
        self.finish(opened, deaf).await;
        Ok(())
    }

    /// Hears of changes from now on; what was heard before was our own.
    pub(super) async fn listen(&mut self, opened: &Opened) {
        let watched = opened.with(|disk| Ok(disk.directories())).await.ok().map(|dirs| Watch::new(&dirs));
        self.now.heard.store(false, Ordering::Relaxed);
        self.now.watch = match watched {
            Some(Ok(watch)) => Some(watch),
            Some(Err(error)) => {
                tracing::info!(set = %self.set, %error, "changes by hand are found by looking only");
                None
            }
            None => None,
        };
    }

    /// Puts what came for a version where it does not take memory: nobody knows when it is needed.
    pub(super) async fn put_down(&self) {
        let Some(opened) = self.now.opened.clone() else { return };
        if let Err(error) = blocking(move || opened.cache.put_down()).await {
            tracing::debug!(set = %self.set, %error, "what was fetched is forgotten");
        }
    }

    /// Drops what came for a version that is not wanted any more, if anything did.
    pub(super) async fn drop_unwanted(&mut self, want: &WantedSet) {
        let wanted = wanted_manifests(want);
        let Some(opened) = self.now.opened.clone().filter(|_| !wanted.is_empty()) else { return };
        if self.now.came_for.is_none_or(|came_for| wanted.contains(&came_for)) {
            return;
        }
        match blocking(move || drop_leftovers(&opened.disk, &opened.cache, &wanted)).await {
            Ok(()) => self.now.came_for = None,
            Err(error) => tracing::debug!(set = %self.set, %error, "the cache is not cleaned"),
        }
    }

    /// Forgets cached blobs that no longer help. What cannot be removed is tried after the next version.
    pub(super) async fn clean(&mut self, want: &WantedSet, goal: WantedVersion, opened: &Opened) {
        let (working, rendered) = (opened.clone(), render::is_needed(&want.spec));
        let cleaned = blocking(move || {
            // What the version was made from is read again, and what was replaced in place is the way back.
            let mut kept = if rendered { working.cache.named_by(&[goal.manifest]) } else { BTreeSet::new() };
            kept.extend(way_back(&working.disk.lock().unwrap_or_else(PoisonError::into_inner)));
            working.cache.retain(&kept)?;
            working.cache.compact()
        });
        match cleaned.await {
            // Nothing is left of it that the next version would have to look for, while everybody waits for that.
            Ok(()) if !rendered => self.now.came_for = None,
            Ok(()) => {}
            Err(error) => tracing::debug!(set = %self.set, %error, "the cache is not cleaned"),
        }
    }
}

/// Returns what is to be said of the set's directory as a whole.
fn remark(what: &str) -> DriftedPath {
    DriftedPath { path: String::new(), what: what.to_owned(), owner: None, at: None }
}

fn told(drift: &Drift) -> DriftedPath {
    DriftedPath {
        path: drift.path.clone(),
        what: drift.kind.word().to_owned(),
        owner: drift.owner,
        at: drift.at.map(UnixMillis),
    }
}
