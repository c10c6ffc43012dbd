//! One set on this machine: from what is live to what is wanted, and what somebody changed by hand meanwhile.
//!
//! Must stay true: a switch that has begun is waited for; a fetch is given up as soon as something else is wanted.
//! After a failure it waits and tries again, longer each time and never longer than the limit. A version that can never
//! be applied, or that its reload refused, is not tried again until an operator asks or something else is wanted.
//! A version whose reload fails is taken back at once.
//! `switching.rs` makes it live and has it loaded, `telling.rs` says what runs meanwhile, `upkeep.rs` does what is left to do about
//! what is live.

mod due;
mod switching;
mod telling;
mod upkeep;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use leaseward_state::config::spec::DrainRule;
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::name::SetName;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::cache::{Cache, Room};
use super::disk::Disk;
use super::fetch::{Door, Failure, Fetch, Progress, blocking};
use super::hear::Watch;
use super::prepare::{Member, Prepared};
use super::running::Running;
use super::{Gate, Report, Source, Wanted, WantedSet, WantedVersion};
use crate::apply::{Live, SetDirs};
use crate::error::{Error, Result};
use crate::limits::{HELD_FOR, PROGRESS_AFTER, PROGRESS_EACH, RETRY_FIRST, RETRY_LONGEST, WATCH_SETTLES};
use crate::patterns::Patterns;
use crate::program::end_left;
use crate::render::{self, Facts};
use crate::secret::Keys;

/// The open set. Locked on blocking threads only.
#[derive(Clone)]
pub(crate) struct Opened {
    pub(crate) disk: Arc<Mutex<Disk>>,
    pub(crate) cache: Arc<Cache>,
}

impl Opened {
    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Disk) -> Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T>> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&mut disk.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

pub(crate) struct SetTask {
    pub(crate) set: SetName,
    pub(crate) dirs: SetDirs,
    /// Another set whose target overlaps: then this one is refused.
    pub(crate) clash: Option<SetName>,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) parallel: usize,
    pub(crate) reserve: u64,
    /// What the caches of all sets may hold in memory.
    pub(crate) room: Arc<Room>,
    pub(crate) now: Now,
}

/// What the task knows.
#[derive(Default)]
pub(crate) struct Now {
    opened: Option<Opened>,
    /// What is live; nothing before the set was opened.
    live: Option<Live>,
    /// The published version that is known to be live as this member should have it.
    settled: Option<WantedVersion>,
    /// The operator's attempt that was made last.
    attempt: Option<u64>,
    /// The version whose reload failed here, in which attempt, and why.
    refused: Option<(WantedVersion, u64, String)>,
    last: Option<Report>,
    /// The last attempt failed: what this machine was said to hold may have been the reason.
    has_failed: bool,
    /// The manifest for which the cache was filled last, by this run or an earlier one.
    came_for: Option<Digest>,
    /// The failure that was logged last, so that a repeated one is not.
    said: Option<String>,
    watch: Option<Watch>,
    /// Something was heard, and nobody has looked since.
    heard: AtomicBool,
    /// The last look found something else than what is live, or nothing could be found out.
    astray: bool,
    /// Why what was changed by hand could not be put right.
    not_repaired: Option<String>,
    /// Whom everything should belong to, when that was looked at last.
    owner: Option<String>,
    /// Somebody else is named since: what belongs to the one before is nobody's change by hand.
    is_given_away: bool,
    /// The set asked its machine to leave the load balancer, and has not let it come back since.
    is_out: bool,
}

enum Outcome {
    /// Nothing is left to do but to look now and then.
    Settled,
    Superseded,
    Failed(Failure),
    /// What was changed by hand could not be put right, which was said.
    NotRepaired(Failure),
}

enum Waited {
    Again,
    Changed,
    Look,
    Ended,
}

impl SetTask {
    pub(crate) async fn run(mut self) {
        self.follow().await;
        self.put_down().await;
    }

    /// Brings about what is wanted until nobody wants anything any more.
    async fn follow(&mut self) {
        let mut pause = RETRY_FIRST;
        loop {
            let want = self.wanted.borrow_and_update().get(&self.set).cloned();
            let mut again = None;
            let mut look = None;
            if want.is_none() {
                // Who forgot the set forgot what was said of it, too, and nobody looks at it until it is wanted again.
                (self.now.last, self.now.settled, self.now.astray) = (None, None, true);
                self.come_back();
            }
            if let Some(want) = &want {
                match self.attempt(want).await {
                    Ok(Outcome::Superseded) => {
                        pause = RETRY_FIRST;
                        // Nobody wants anything any more once the sender is gone.
                        if self.wanted.has_changed().is_err() {
                            return;
                        }
                        continue;
                    }
                    Ok(Outcome::Settled) => {
                        self.now.has_failed = false;
                        look = want.live.map(|_| Duration::from_millis(want.spec.scan_each_ms));
                        self.drop_unwanted(want).await;
                        self.put_down().await;
                    }
                    Ok(Outcome::NotRepaired(failure)) => {
                        tracing::debug!(set = %self.set, %failure, "what was changed by hand is not put right");
                        again = Some(pause);
                    }
                    Ok(Outcome::Failed(failure)) | Err(failure) => {
                        self.now.has_failed = true;
                        self.failed(want, &failure).await;
                        let for_ever = matches!(&failure, Failure::Local(error) if !error.is_retryable());
                        // Other sets need the memory, too, while this one waits.
                        if for_ever || pause > HELD_FOR {
                            self.put_down().await;
                        }
                        again = (!for_ever).then_some(pause);
                    }
                }
            }
            pause = if again.is_some() { (pause * 2).min(RETRY_LONGEST) } else { RETRY_FIRST };
            let next_look = look.map(|each| Instant::now() + each);
            match self.wait(want.as_ref(), again, next_look).await {
                Waited::Again => {}
                Waited::Changed => pause = RETRY_FIRST,
                Waited::Ended => return,
                Waited::Look => {
                    if let Some(want) = &want
                        && let Err(failure) = self.look(want, false).await
                    {
                        tracing::warn!(set = %self.set, %failure, "cannot look for changes");
                    }
                }
            }
        }
    }

    /// Waits until something else is wanted, for `pause`, or until it is time to look.
    async fn wait(&mut self, want: Option<&WantedSet>, pause: Option<Duration>, look: Option<Instant>) -> Waited {
        let set = &self.set;
        let changed = self.wanted.wait_for(|wanted| wanted.get(set) != want);
        let pause = async {
            match pause {
                Some(pause) => sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let (watch, unlooked) = (&self.now.watch, &self.now.heard);
        let look = async {
            let Some(look) = look else { return std::future::pending().await };
            let heard = async {
                // What was heard when something else came up is not said twice.
                if !unlooked.load(Ordering::Relaxed) {
                    match watch {
                        Some(watch) if watch.changed().await.is_ok() => unlooked.store(true, Ordering::Relaxed),
                        _ => std::future::pending().await,
                    }
                }
                // Who edits one file edits the next.
                sleep(WATCH_SETTLES).await;
            };
            tokio::select! {
                () = heard => {}
                () = sleep_until(look) => {}
            }
        };
        tokio::select! {
            changed = changed => if changed.is_ok() { Waited::Changed } else { Waited::Ended },
            () = pause => Waited::Again,
            () = look => Waited::Look,
        }
    }

    async fn attempt(&mut self, want: &WantedSet) -> Result<Outcome, Failure> {
        if let Some(other) = &self.clash {
            let why = format!("its target overlaps the one of set {other}");
            return Err(Error::illegal(&self.dirs.target, why).into());
        }
        if want.live.is_none() && want.staged.is_none() {
            self.now.settled = None;
            // Nobody waits for a version here.
            self.come_back();
            self.report(SyncState::Disabled).await;
            return Ok(Outcome::Settled);
        }
        let opened = self.open(want).await?;
        if self.now.live.is_none() && want.spec.drain != DrainRule::Never {
            // A machine without any version is of no use to anybody yet.
            self.leave(Duration::ZERO).await;
        }
        // The first attempt of this run is no request: it was answered by an earlier one, or there was none.
        let asked = self.now.attempt.replace(want.attempt).is_some_and(|last| last != want.attempt);
        if asked {
            // What is said now is an answer, also if it was said before.
            self.now.last = None;
        }
        if want.spec.owner.is_some() && self.now.owner != want.spec.owner {
            self.now.is_given_away = true;
        }
        self.now.owner.clone_from(&want.spec.owner);
        if want.staged.is_none() || want.staged == want.live {
            let live = want.live.map_or(0, |live| live.number);
            opened.with(move |disk| disk.unstage_other(live)).await?;
        }
        if let Some(goal) = want.live {
            if self.now.settled != Some(goal) || asked {
                match self.bring(want, goal, &opened, asked).await? {
                    Outcome::Settled => {}
                    other => return Ok(other),
                }
            }
            if asked || self.now.astray || self.now.is_given_away {
                if let Err(failure) = self.look(want, asked).await {
                    return Ok(Outcome::NotRepaired(failure));
                }
            } else {
                match want.staged.filter(|staged| *staged != goal) {
                    // That what is live is as it should be is no news while the next one is refused.
                    Some(staged) => self.progress(SyncState::Applied, staged.number).await,
                    None => self.report(SyncState::Applied).await,
                }
            }
        }
        match want.staged {
            Some(staged) if want.live != Some(staged) => self.hold_ready(want, staged, &opened).await,
            _ => Ok(Outcome::Settled),
        }
    }

    /// Makes a version live.
    async fn bring(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
        asked: bool,
    ) -> Result<Outcome, Failure> {
        let plain = Live { version: goal.number, manifest: goal.manifest };
        if !render::is_needed(&want.spec) && self.now.live == Some(plain) {
            return self.settle(want, goal, opened).await;
        }
        if let Some((refused, attempt, why)) = &self.now.refused
            && (*refused, *attempt) == (goal, want.attempt)
            && !asked
        {
            return Err(Error::ReloadFailed { why: why.clone(), stays: false }.into());
        }
        let Some(prepared) = self.fetch(want, goal, opened).await? else { return Ok(Outcome::Superseded) };
        if self.now.live == Some(prepared.wanted) {
            return self.settle(want, goal, opened).await;
        }
        self.stage(want, &prepared, opened).await?;
        if want.spec.reload.is_some() && !self.drains(want) {
            // What comes now may take its time.
            self.progress(SyncState::OnDisk { version: goal.number }, goal.number).await;
        }
        if !self.still_wanted(|wanted| wanted.live == Some(goal)) {
            return Ok(Outcome::Superseded);
        }
        if self.drains(want) {
            self.report(SyncState::Draining).await;
            // A machine without any version was never in.
            let within = if self.now.live.is_some() { want.spec.drain_ms } else { 0 };
            self.leave(Duration::from_millis(within)).await;
        }
        let switched = self.switch_or_again(want, goal, opened).await;
        if self.drains(want) || self.now.live.is_some() {
            self.come_back();
        }
        if let Outcome::Superseded = switched? {
            return Ok(Outcome::Superseded);
        }
        tracing::info!(set = %self.set, version = goal.number, "version applied");
        // A set that was forgotten and made anew has the same numbers again: nothing was said of this version.
        self.now.last = None;
        self.now.said = None;
        self.now.refused = None;
        self.now.settled = Some(goal);
        (self.now.astray, self.now.not_repaired) = (false, None);
        let deaf = self.now.watch.take();
        self.listen(opened).await;
        if !asked {
            // Before what can wait.
            self.report(SyncState::Applied).await;
            self.rest(want).await;
        }
        self.finish(opened, deaf).await;
        self.clean(want, goal, opened).await;
        Ok(Outcome::Settled)
    }

    fn drains(&self, want: &WantedSet) -> bool {
        match want.spec.drain {
            DrainRule::Never => false,
            DrainRule::First => self.now.live.is_none(),
            DrainRule::Always => true,
        }
    }

    /// Has a version ready beside the live one.
    async fn hold_ready(
        &mut self,
        want: &WantedSet,
        staged: WantedVersion,
        opened: &Opened,
    ) -> Result<Outcome, Failure> {
        if opened.with(|disk| Ok(disk.staged())).await?.is_some_and(|ready| ready.version == staged.number) {
            self.report(SyncState::OnDisk { version: staged.number }).await;
            return Ok(Outcome::Settled);
        }
        let Some(prepared) = self.fetch(want, staged, opened).await? else { return Ok(Outcome::Superseded) };
        if let Err(failure) = self.stage(want, &prepared, opened).await {
            return Ok(Outcome::Failed(failure));
        }
        self.now.said = None;
        self.report(SyncState::OnDisk { version: staged.number }).await;
        Ok(Outcome::Settled)
    }

    /// Fetches a version, and says how far it is; `None` if something else is wanted meanwhile.
    async fn fetch(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        opened: &Opened,
    ) -> Result<Option<Prepared>, Failure> {
        let keeps = self.now.came_for.replace(goal.manifest).is_some_and(|other| other != goal.manifest);
        let progress = Arc::new(Progress::default());
        let fetch = Fetch {
            source: Arc::clone(&self.source),
            disk: Arc::clone(&opened.disk),
            cache: Arc::clone(&opened.cache),
            set: self.set.clone(),
            parallel: self.parallel,
            // What puts a live version right is tried once, and little: it must not fail for a copy that is gone.
            relies_on_here: !self.now.has_failed && self.now.live.is_none_or(|live| live.version != goal.number),
            keeps: keeps.then(|| wanted_manifests(want)),
            door: Door::default(),
            progress: Arc::clone(&progress),
        };
        let fetched = self.fetch_unless_superseded(want, goal, &fetch, &progress).await;
        // Threads may still be at work for what was given up.
        fetch.door.close().await;
        fetched
    }

    async fn fetch_unless_superseded(
        &mut self,
        want: &WantedSet,
        goal: WantedVersion,
        fetch: &Fetch,
        progress: &Progress,
    ) -> Result<Option<Prepared>, Failure> {
        let member = self.member(want);
        let began = Instant::now();
        let mut watching = self.wanted.clone();
        let set = self.set.clone();
        let mut fetching = std::pin::pin!(member.fetch(fetch, goal));
        // Without the lock that it returns.
        let mut superseded =
            std::pin::pin!(async { drop(watching.wait_for(|wanted| wanted.get(&set) != Some(want)).await) });
        let mut tick = interval_at(began + PROGRESS_AFTER, PROGRESS_EACH);
        loop {
            tokio::select! {
                fetched = &mut fetching => return fetched.map(Some),
                () = &mut superseded => return Ok(None),
                _ = tick.tick() => {
                    let (done, total) = progress.read();
                    let elapsed_ms = began.elapsed().as_millis() as u64;
                    let state = SyncState::Fetching { version: goal.number, done, total, elapsed_ms };
                    self.progress(state, goal.number).await;
                }
            }
        }
    }

    fn member(&self, want: &WantedSet) -> Member {
        Member {
            set: self.set.clone(),
            spec: Arc::clone(&want.spec),
            facts: Arc::clone(&self.facts),
            keys: Arc::clone(&self.keys),
            running: Running::default(),
            state_dir: self.dirs.state_dir.clone(),
        }
    }

    async fn stage(&mut self, want: &WantedSet, prepared: &Prepared, opened: &Opened) -> Result<(), Failure> {
        let (member, prepared, opened) = (self.member(want), prepared.clone(), opened.clone());
        let (running, version) = (member.running.clone(), prepared.wanted.version);
        let staged = blocking(move || prepared.stage(&opened, &member));
        Ok(self.telling(&running, version, staged).await?)
    }

    async fn open(&mut self, want: &WantedSet) -> Result<Opened> {
        let layout = want.spec.layout;
        if let Some(opened) = &self.now.opened {
            if opened.with(|disk| Ok(disk.layout())).await? == layout {
                let opened = opened.clone();
                self.keep(want, &opened).await?;
                return Ok(opened);
            }
            // The set is kept in another way from now on. The lock goes with the old one.
            self.now = Now { last: self.now.last.take(), is_out: self.now.is_out, ..Now::default() };
        }
        let (dirs, reserve, room) = (self.dirs.clone(), self.reserve, Arc::clone(&self.room));
        let ignore = Patterns::new(&want.spec.ignore)?;
        let (opened, live) = blocking(move || {
            if let Some(parent) = dirs.target.parent() {
                std::fs::create_dir_all(parent).map_err(crate::error::at("make directory", parent))?;
            }
            let disk = Disk::open(&dirs, layout, &ignore, reserve)?;
            end_left(&dirs.state_dir);
            let cache = Cache::open(&dirs.state_dir.join("blobs"), reserve, room)?;
            let live = disk.live();
            Ok((Opened { disk: Arc::new(Mutex::new(disk)), cache: Arc::new(cache) }, live))
        })
        .await?;
        self.now.live = live;
        // What became of it while nobody had it open is not known.
        self.now.astray = true;
        // An earlier run may have left something.
        self.now.came_for = Some(Digest([0; 32]));
        self.keep(want, &opened).await?;
        self.now.opened = Some(opened.clone());
        Ok(opened)
    }

    async fn keep(&self, want: &WantedSet, opened: &Opened) -> Result<()> {
        let ignore = Patterns::new(&want.spec.ignore)?;
        let owner = match &want.spec.owner {
            None => None,
            Some(owner) => Some(crate::owner::find(owner)?),
        };
        opened
            .with(move |disk| {
                disk.keep(ignore, owner);
                Ok(())
            })
            .await
    }

    async fn leave(&mut self, within: Duration) {
        self.now.is_out = true;
        self.gate.leave(&self.set, within).await;
    }

    fn come_back(&mut self) {
        if std::mem::take(&mut self.now.is_out) {
            self.gate.come_back(&self.set);
        }
    }

    fn still_wanted(&self, is: impl Fn(&WantedSet) -> bool) -> bool {
        self.wanted.borrow().get(&self.set).is_some_and(is)
    }

    async fn failed(&mut self, want: &WantedSet, failure: &Failure) {
        let version = match (want.live, want.staged) {
            (Some(live), Some(staged)) if self.now.settled == Some(live) => staged.number,
            (Some(live), _) => live.number,
            (None, staged) => staged.map_or(0, |staged| staged.number),
        };
        let why = failure.to_string();
        if self.now.said.as_ref() == Some(&why) {
            tracing::debug!(set = %self.set, version, why, "still not applied");
        } else {
            tracing::warn!(set = %self.set, version, why, "version not applied");
            self.now.said = Some(why.clone());
        }
        if matches!(failure, Failure::Local(_)) {
            self.report(SyncState::Rejected { version, why }).await;
        }
    }

    /// Reports progress, but not over a refusal of the same version: that stands until it is applied.
    async fn progress(&mut self, state: SyncState, version: u64) {
        let refused = self.now.last.as_ref().is_some_and(
            |last| matches!(&last.state, SyncState::Rejected { version: refused, .. } if *refused == version),
        );
        // A retry after the source failed does not go back from "on disk".
        if !refused {
            self.report(state).await;
        }
    }

    async fn report(&mut self, state: SyncState) {
        let applied = self.now.live.map_or(0, |live| live.version);
        let report = Report { set: self.set.clone(), applied, state };
        if self.now.last.as_ref() != Some(&report) {
            self.now.last = Some(report.clone());
            // Whoever no longer listens does not stop the sync.
            let _ = self.reports.send(report).await;
        }
    }
}

/// Returns the manifests of what a set should have.
fn wanted_manifests(want: &WantedSet) -> Arc<[Digest]> {
    want.live.iter().chain(&want.staged).map(|version| version.manifest).collect()
}
