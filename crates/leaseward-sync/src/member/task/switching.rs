//! What is staged becomes live and is loaded; or it is taken back.
//!
//! Must stay true: a version whose reload fails does not stay live, unless it is the one that was loaded before; a reload that
//! somebody died in is done again. The way back leads to what was live before, never to an older one.

use std::sync::{Arc, PoisonError};

use leaseward_state::config::{Manifest, SetStep};

use super::due::Due;
use super::{Opened, Outcome, SetTask};
use crate::apply::{Given, Live};
use crate::error::{Error, Result};
use crate::member::cache::Cache;
use crate::member::disk::Disk;
use crate::member::fetch::{Failure, blocking};
use crate::member::prepare::{Member, environment};
use crate::member::{WantedSet, WantedVersion};
use crate::program::Run;

impl SetTask {
    /// As [`Self::switch`]. If somebody changed the live tree meanwhile, the version is made once more, from files that are
    /// looked at anew, and from what is fetched in place of those.
    pub(super) async fn switch_or_again(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
    ) -> Result<Outcome, Failure> {
        match self.switch(want, goal, opened).await {
            Err(Failure::Local(Error::Changed { .. })) => {}
            done => return done.map(|()| Outcome::Settled),
        }
        // What was changed may have been the only copy on this machine.
        let Some(prepared) = self.fetch(want, goal, opened).await? else { return Ok(Outcome::Superseded) };
        self.stage(want, &prepared, opened).await?;
        self.switch(want, goal, opened).await?;
        Ok(Outcome::Settled)
    }

    /// Makes what is staged live and has it loaded; takes it back if that fails.
    async fn switch(&mut self, want: &WantedSet, goal: WantedVersion, opened: &Opened) -> Result<(), Failure> {
        self.load(want, goal, opened, true).await
    }

    /// Has a version loaded once it is live, and takes it back if that fails. `switches`: what is staged becomes live first.
    async fn load(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
        switches: bool,
    ) -> Result<(), Failure> {
        let (member, working, due) = (self.member(want), opened.clone(), Due::of(&self.dirs));
        let running = member.running.clone();
        let before = self.now.live.map_or(0, |live| live.version);
        let done = blocking(move || {
            let mut disk = working.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let reloads = member.spec.reload.is_some();
            let was = if switches { way_back(&disk, &due) } else { was_loaded(&disk, &due) };
            if switches {
                if reloads {
                    due.note(was.as_ref().map(|(live, _)| *live))?;
                }
                disk.switch()?;
            }
            let Err(why) = load(&member, &disk, goal.number, before) else {
                return if reloads { due.forget().map(|()| Ok(())) } else { Ok(Ok(())) };
            };
            let stays = was.as_ref().is_some_and(|(live, _)| disk.live() == Some(*live));
            let back = was.filter(|_| !stays);
            if back.is_some_and(|back| go_back(&member, &mut disk, &working.cache, goal.number, back)) {
                due.forget()?;
            }
            Ok(Err(Error::ReloadFailed { why, stays }))
        });
        let done = self.telling(&running, goal.number, done).await;
        // What could be switched and what not is the disk's to say.
        let live = opened.with(|disk| Ok(disk.live())).await?;
        self.now.live = live;
        let Err(error) = done? else { return Ok(()) };
        // What stays is loaded once more; what was taken back is tried again when somebody asks for it.
        if let Error::ReloadFailed { why, stays: false } = &error {
            self.now.refused = Some((goal, want.attempt, why.clone()));
        }
        self.now.settled = None;
        self.finish(opened, None).await;
        Err(Failure::Local(error))
    }

    /// Takes what is live for settled. Whoever died before the reload was done left it to be done.
    pub(super) async fn settle(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
    ) -> Result<Outcome, Failure> {
        if want.spec.reload.is_some() && Due::of(&self.dirs).is_noted() {
            tracing::info!(set = %self.set, version = goal.number, "its reload was not done to its end: once more");
            self.load(want, goal, opened, false).await?;
        }
        self.now.settled = Some(goal);
        self.listen(opened).await;
        Ok(Outcome::Settled)
    }
}

/// Runs the set's reload.
fn load(member: &Member, disk: &Disk, version: u64, before: u64) -> Result<(), String> {
    let Some(hook) = &member.spec.reload else { return Ok(()) };
    let target = disk.target();
    let (environment, is_secret) = (environment(&member.set, version, before), member.spec.key.is_some());
    let _running = member.running.begin(SetStep::Reload, hook);
    Run { hook, environment, target: &target, tree: &target, state_dir: &member.state_dir, is_secret }.to_end()
}

/// Returns the version that a switch may be taken back to. After one that could not be ended that is what it noted: what was live
/// then may be the version that was to be taken back.
fn way_back(disk: &Disk, due: &Due) -> Option<(Live, Arc<Manifest>)> {
    let after_half = || noted(disk, due).or_else(|| disk.last_whole()).or_else(|| disk.previous_manifest());
    disk.whole().or_else(after_half)
}

/// Returns the version that was loaded before the reload that is due.
fn was_loaded(disk: &Disk, due: &Due) -> Option<(Live, Arc<Manifest>)> {
    if due.before().is_some() { noted(disk, due) } else { disk.previous_manifest() }
}

/// Returns the version that the note names, if it is known here.
fn noted(disk: &Disk, due: &Due) -> Option<(Live, Arc<Manifest>)> {
    let before = due.before()?;
    disk.last_whole().into_iter().chain(disk.previous_manifest()).find(|(live, _)| *live == before)
}

/// Makes the version from before live again, as it was, and returns whether it is loaded. What is left of the attempt is said
/// in the log only: the report names the reason why it was needed.
fn go_back(
    member: &Member,
    disk: &mut Disk,
    cache: &Cache,
    failed: u64,
    (before, manifest): (Live, Arc<Manifest>),
) -> bool {
    let back = disk
        .stage(before, &manifest, &mut |digest| cache.get(digest).map(Given::Proven), cache)
        .and_then(|()| disk.switch())
        .map_err(|error| error.to_string());
    match back.and_then(|_| load(member, disk, before.version, failed)) {
        Ok(()) => {
            tracing::warn!(set = %member.set, version = failed, back_to = before.version, "taken back");
            true
        }
        Err(why) => {
            tracing::error!(set = %member.set, version = failed, why, "could not be taken back");
            false
        }
    }
}

#[cfg(test)]
#[path = "switching_tests.rs"]
mod tests;
