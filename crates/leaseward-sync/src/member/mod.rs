//! The member's loop: what is live on this machine becomes what is wanted.
//!
//! Must stay true: it compares wanted with live and never counts on having seen every change; it goes to the wanted
//! version and to no other; a set that nobody wants anything of is left alone; it reports changes only.
//! One task owns each set. Left out on purpose: who decides what is wanted, and how a machine leaves its load balancer.

mod cache;
mod disk;
mod fetch;
mod hear;
mod prepare;
mod running;
mod task;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use leaseward_state::config::delta::SharedBytes;
use leaseward_state::config::spec::SetSpec;
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::name::SetName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use self::cache::Room;
use self::task::{Now, SetTask};
use crate::apply::SetDirs;
use crate::limits::{FETCHES_PARALLEL, FETCHES_PARALLEL_MAX, RESERVE_BYTES};
use crate::render::Facts;
use crate::secret::Keys;

/// The version of a set that this machine should have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedVersion {
    /// Its number.
    pub number: u64,
    /// The blob that holds its encoded manifest.
    pub manifest: Digest,
}

/// What this machine should have of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSet {
    /// What should be live; `None`: what is there, untouched.
    pub live: Option<WantedVersion>,
    /// What should be ready on the disk besides, checked and not live.
    pub staged: Option<WantedVersion>,
    /// Raised when an operator asks for everything to be looked at and tried anew.
    pub attempt: u64,
    /// How the set is kept.
    pub spec: Arc<SetSpec>,
}

/// What this machine should have. A set that is not in it is left as it is.
pub type Wanted = BTreeMap<SetName, WantedSet>;

/// How far a set is on this machine. Sent when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The set.
    pub set: SetName,
    /// The version that is live; 0 if none.
    pub applied: u64,
    /// What is being done.
    pub state: SyncState,
}

/// A blob as a source gives it. It is verified in either form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blob {
    /// The plain bytes.
    Plain(Vec<u8>),
    /// The stored form, as [`crate::BlobStore::get_frame`] returns it.
    Frame(SharedBytes),
}

/// Why a source could not give a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("blob {digest}: {why}")]
pub struct FetchError {
    /// The blob.
    pub digest: Digest,
    /// Why, for the operator.
    pub why: String,
}

/// A fetch under way. Dropping it gives it up.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<Blob, FetchError>> + Send + 'a>>;

/// What was given, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenBy<T> {
    /// Who gave it, as [`Source::refuse`] knows him.
    pub who: String,
    /// What he gave; nobody has looked at it yet.
    pub given: T,
}

/// Several blobs under way. Dropping it gives them up.
pub type FetchingMany<'a> = Pin<Box<dyn Future<Output = Result<GivenBy<Vec<(Digest, Blob)>>, FetchError>> + Send + 'a>>;

/// A delta under way. Dropping it gives it up.
pub type FetchingDelta<'a> = Pin<Box<dyn Future<Output = Option<GivenBy<SharedBytes>>> + Send + 'a>>;

/// Where blobs come from: any voter, nearest first. Everything must end in bounded time and be cancel safe, since a newer
/// version ends it.
pub trait Source: Send + Sync + 'static {
    /// Fetches a blob.
    fn fetch(&self, digest: Digest) -> Fetching<'_>;

    /// Fetches some of these blobs, one at least. Questions with different `turn`s go to different voters where that is
    /// no longer way.
    fn fetch_many<'a>(&'a self, digests: &'a [Digest], turn: usize) -> FetchingMany<'a> {
        let _ = turn;
        Box::pin(async move {
            let given = match digests.first() {
                Some(first) => vec![(*first, self.fetch(*first).await?)],
                None => Vec::new(),
            };
            Ok(GivenBy { who: "the source".to_owned(), given })
        })
    }

    /// Returns whether this machine holds a blob that need not be fetched: [`Source::read_here`] gives it when it is needed.
    fn is_here(&self, digest: Digest) -> bool {
        let _ = digest;
        false
    }

    /// Returns a blob that this machine holds, if it still does; nobody has looked at it yet. Blocks on the disk.
    fn read_here(&self, digest: Digest) -> Option<Blob> {
        let _ = digest;
        None
    }

    /// Hears that what somebody gave is not what he was asked for: he is asked last for some time.
    fn refuse(&self, who: &str, why: &str) {
        let _ = (who, why);
    }

    /// Returns what makes the manifest `next` and its chunks out of `base`, if somebody knows.
    fn delta<'a>(&'a self, set: &'a SetName, base: Digest, next: Digest) -> FetchingDelta<'a> {
        let _ = (set, base, next);
        Box::pin(async { None })
    }
}

/// What takes this machine out of its load balancer and puts it back.
pub trait Gate: Send + Sync + 'static {
    /// Takes the machine out because of a set. Returns when its sessions have ended, or after `within`.
    fn leave<'a>(&'a self, set: &'a SetName, within: std::time::Duration) -> Leaving<'a>;

    /// Puts the machine back, as far as this set is concerned.
    fn come_back(&self, set: &SetName);
}

/// A machine that leaves its load balancer.
pub type Leaving<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// No load balancer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ungated;

impl Gate for Ungated {
    fn leave<'a>(&'a self, _: &'a SetName, _: std::time::Duration) -> Leaving<'a> {
        Box::pin(async {})
    }

    fn come_back(&self, _: &SetName) {}
}

/// How this machine keeps its sets.
#[derive(Debug, Clone)]
pub struct MemberConfig {
    /// What its config depends on.
    pub facts: Facts,
    /// The keys that it holds.
    pub keys: Keys,
    /// Sets live at `<config_dir>/<set>`. Made if it is not there.
    pub config_dir: PathBuf,
    /// What Leaseward knows about its trees, and chunks of versions that are not complete.
    pub state_dir: PathBuf,
    /// Sets that live elsewhere. No target may lie inside another one.
    pub targets: BTreeMap<SetName, PathBuf>,
    /// Blobs fetched at one time for one set, 1 to 64. More fills a slow link and takes memory.
    pub parallel_fetches: usize,
    /// Free bytes that applying and fetching leave on the disk.
    pub reserve_bytes: u64,
}

impl MemberConfig {
    /// Returns the usual settings for these directories.
    #[must_use]
    pub fn new(config_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            facts: Facts::default(),
            keys: Keys::default(),
            config_dir: config_dir.into(),
            state_dir: state_dir.into(),
            targets: BTreeMap::new(),
            parallel_fetches: FETCHES_PARALLEL,
            reserve_bytes: RESERVE_BYTES,
        }
    }

    /// Returns where a set lives and where its state is kept.
    #[must_use]
    pub fn dirs(&self, set: &SetName) -> SetDirs {
        let target = self.targets.get(set).cloned().unwrap_or_else(|| self.config_dir.join(set.as_str()));
        SetDirs { target, state_dir: self.state_dir.join("sets").join(set.as_str()) }
    }
}

/// The running member. Dropping it ends its loop in the background; [`Member::stop`] waits for that.
#[derive(Debug)]
pub struct Member {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    room: Arc<Room>,
}

impl Member {
    /// Starts the loop on the current tokio runtime. It ends when `wanted` loses its sender, too.
    ///
    /// A full `reports` queue makes the set that reports wait; a closed one is ignored.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn(
        config: MemberConfig,
        wanted: watch::Receiver<Wanted>,
        source: Arc<dyn Source>,
        gate: Arc<dyn Gate>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (stop, stopped) = oneshot::channel();
        let room = Arc::new(Room::default());
        let task = tokio::spawn(run(config, wanted, source, gate, reports, stopped, Arc::clone(&room)));
        Self { stop, task, room }
    }

    /// Returns the bytes of blobs that are held in memory, of all sets, because they are in no tree yet.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.room.taken()
    }

    /// Ends the loop and waits until a switch under way is complete and every set is closed. Fetched blobs are kept.
    pub async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "config sync ended badly");
        }
    }
}

async fn run(
    config: MemberConfig,
    mut wanted: watch::Receiver<Wanted>,
    source: Arc<dyn Source>,
    gate: Arc<dyn Gate>,
    reports: mpsc::Sender<Report>,
    mut stopped: oneshot::Receiver<()>,
    room: Arc<Room>,
) {
    // Sets watch this copy; when it is dropped, they end.
    let (copy, watching) = watch::channel(Wanted::new());
    let mut targets = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let (facts, keys) = (Arc::new(config.facts.clone()), Arc::new(config.keys.clone()));
    loop {
        let now = wanted.borrow_and_update().clone();
        for set in now.keys() {
            if targets.contains_key(set) {
                continue;
            }
            let dirs = config.dirs(set);
            let clash = clash(&targets, &dirs.target);
            targets.insert(set.clone(), dirs.target.clone());
            tasks.spawn(
                SetTask {
                    set: set.clone(),
                    dirs,
                    clash,
                    wanted: watching.clone(),
                    source: Arc::clone(&source),
                    reports: reports.clone(),
                    parallel: config.parallel_fetches.clamp(1, FETCHES_PARALLEL_MAX),
                    reserve: config.reserve_bytes,
                    room: Arc::clone(&room),
                    gate: Arc::clone(&gate),
                    facts: Arc::clone(&facts),
                    keys: Arc::clone(&keys),
                    now: Now::default(),
                }
                .run(),
            );
        }
        copy.send_if_modified(|copy| {
            let changed = *copy != now;
            *copy = now;
            changed
        });
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { break },
            _ = &mut stopped => break,
        }
    }
    drop(copy);
    while tasks.join_next().await.is_some() {}
}

/// Returns the set whose target is, contains or lies in `target`.
fn clash(targets: &BTreeMap<SetName, PathBuf>, target: &std::path::Path) -> Option<SetName> {
    let clashes = |other: &PathBuf| other.starts_with(target) || target.starts_with(other);
    targets.iter().find(|(_, other)| clashes(other)).map(|(set, _)| set.clone())
}
