//! What is staged becomes live and is loaded; or it is taken back.
//!
//! Must stay true: a version whose reload fails does not stay live; a reload that somebody died in is done again.

use std::sync::PoisonError;

use leaseward_state::config::SetStep;

use super::due::Due;
use super::{Opened, Outcome, SetTask};
use crate::apply::Given;
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
        self.load(want, goal, opened, |disk| disk.switch().map(drop)).await
    }

    /// Has a version loaded once it is live, and takes it back if that fails.
    async fn load(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
        make_live: impl FnOnce(&mut Disk) -> Result<()> + Send + 'static,
    ) -> Result<(), Failure> {
        let (member, working, due) = (self.member(want), opened.clone(), Due::of(&self.dirs));
        let running = member.running.clone();
        let before = self.now.live.map_or(0, |live| live.version);
        let done = blocking(move || {
            let mut disk = working.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let reloads = member.spec.reload.is_some();
            if reloads {
                due.note()?;
            }
            make_live(&mut disk)?;
            let loaded = load(&member, &disk, goal.number, before);
            let is_done = loaded.is_ok() || go_back(&member, &mut disk, &working.cache, goal.number);
            if reloads && is_done {
                due.forget()?;
            }
            Ok(loaded)
        });
        let done = self.telling(&running, goal.number, done).await;
        // What could be switched and what not is the disk's to say.
        let live = opened.with(|disk| Ok(disk.live())).await?;
        self.now.live = live;
        let Err(why) = done? else { return Ok(()) };
        self.now.refused = Some((goal, want.attempt));
        self.now.settled = None;
        self.finish(opened, None).await;
        Err(Failure::Local(Error::ReloadFailed { why }))
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
            self.load(want, goal, opened, |_| Ok(())).await?;
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

/// Makes the version from before live again, as it was, and returns whether it is loaded. What is left of the attempt is said
/// in the log only: the report names the reason why it was needed.
fn go_back(member: &Member, disk: &mut Disk, cache: &Cache, failed: u64) -> bool {
    let Some((before, manifest)) = disk.previous_manifest() else { return false };
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
