//! What the routes share: the replica, the content store, and the way to commit and to read.
//!
//! Must stay true: a write waits for its answer and its state; a read without further words is linearizable.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use leaseward_failover::foresee::foresee;
use leaseward_raft::{Later, Replica};
use leaseward_state::command::Condition;
use leaseward_state::config::Digest;
use leaseward_state::config::delta::InlineDelta;
use leaseward_state::propose::Propose;
use leaseward_state::record::Answer;
use leaseward_state::{Command, MachineName, Refusal, Reply, Request, Revision, SessionId, SetName, State};
use tokio::net::TcpListener;
use tokio::time::{Duration, Instant};

use crate::answer::Fault;
use crate::ask::{AsOf, Consistency, Fresh, Write};
use crate::foreseen::prediction;
use crate::page::Lists;
use crate::problem;

/// The content store of the whole cluster, as publishing needs it.
pub trait Content: Send + Sync + 'static {
    /// Returns those that this node lacks, in their order. What it has, it keeps for a while.
    ///
    /// # Errors
    /// [`ContentError`] if that cannot be found out now.
    fn lacking(&self, digests: Vec<Digest>) -> Later<'_, Result<Vec<Digest>, ContentError>>;

    /// Returns a blob's plain bytes, verified, from this node or another one.
    ///
    /// # Errors
    /// [`ContentError`] if it may exist and cannot be read now; a blob that nobody has is `None`.
    fn get(&self, digest: Digest) -> Later<'_, Result<Option<Vec<u8>>, ContentError>>;

    /// Keeps blobs on this node, in their stored form, verified. They are durable when a version that names them is.
    ///
    /// # Errors
    /// [`ContentError`]; any of them may be kept then.
    fn keep(&self, frames: Vec<(Digest, Bytes)>) -> Later<'_, Result<(), ContentError>>;

    /// Keeps here what stands on a member's disk of a set. Returns the name of its manifest.
    ///
    /// # Errors
    /// [`ContentError`]: LW0404, LW0101, LW0346, or what the machine says.
    fn adopt(&self, set: SetName, machine: MachineName) -> Later<'_, Result<Digest, ContentError>>;

    /// Makes sure that a version may be committed, upon `base` if it is still the newest one then.
    ///
    /// # Errors
    /// [`ContentError`] if something of it is nowhere, or no quorum of voters keeps it.
    fn ready(&self, base: Base, manifest: Digest) -> Later<'_, Result<Ready, ContentError>>;

    /// Makes sure that a set may keep so few versions, as far as content goes. Returns the number of its newest version, for
    /// which alone that holds; 0 if it has none.
    ///
    /// # Errors
    /// As [`Content::ready`].
    fn may_keep(&self, set: SetName, keep: u32) -> Later<'_, Result<u64, ContentError>>;

    /// Returns a backup of the cluster as it is now, made while it is read.
    ///
    /// # Errors
    /// [`ContentError`] if nobody leads, or this node keeps nothing.
    fn backup(&self) -> Later<'_, Result<Backup, ContentError>> {
        let why = "this node keeps no content".to_owned();
        Box::pin(async move { Err(ContentError { code: "LW0107".to_owned(), why }) })
    }
}

/// A backup on its way.
#[derive(Debug)]
pub struct Backup {
    /// The last revision that is in it.
    pub revision: Revision,
    /// Its bytes, piece by piece. An error is the last one: then it is not whole.
    pub pieces: tokio::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>,
}

/// What a version may be built upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing: all of it must be on a quorum of voters.
    Whole,
    /// The set has no version yet.
    Empty,
    /// This version, by its number and manifest.
    Version(u64, Digest),
}

/// A version that may be committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ready {
    /// Regular files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What makes it out of its base; without it a quorum of voters holds all of it.
    pub delta: Option<InlineDelta>,
}

/// Why the content store cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {why}")]
pub struct ContentError {
    /// The stable code, such as LW0605.
    pub code: String,
    /// The reason.
    pub why: String,
}

/// Everything that the routes need. Clones share it.
#[derive(Clone)]
pub struct Api {
    pub(crate) replica: Replica,
    pub(crate) content: Arc<dyn Content>,
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// What people call this node.
    pub(crate) name: String,
    pub(crate) lists: Mutex<Lists>,
    started: u64,
    requests: AtomicU64,
    /// Whether this node has heard, in this run, what everybody knew.
    caught_up: AtomicBool,
}

impl Shared {
    pub(crate) fn has_caught_up(&self) -> bool {
        self.caught_up.load(Ordering::Relaxed)
    }

    pub(crate) fn note_caught_up(&self) {
        self.caught_up.store(true, Ordering::Relaxed);
    }
}

impl Api {
    /// Returns the API of a replica with this content store.
    #[must_use]
    pub fn new(replica: Replica, content: Arc<dyn Content>) -> Self {
        let started = leaseward_raft::clock::wall_millis();
        let name = replica.status().name;
        let shared = Shared {
            name,
            lists: Mutex::default(),
            started,
            requests: AtomicU64::new(0),
            caught_up: AtomicBool::new(false),
        };
        Self { replica, content, shared: Arc::new(shared) }
    }

    /// Returns a name for a request: this node, this run, and its count.
    pub(crate) fn new_request(&self) -> String {
        let count = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        format!("{}-{:x}-{count}", self.replica.node(), self.shared.started)
    }

    /// Returns the state of this node, without asking anybody.
    pub(crate) fn here(&self) -> Arc<State> {
        Arc::clone(&self.replica.published().borrow().state)
    }

    /// Returns a state that is as new as asked for, and notes how new it is.
    pub(crate) async fn read(&self, fresh: &Fresh) -> Result<Arc<State>, Fault> {
        match fresh.consistency() {
            // A read by the leader's lease would save one round, and trust its clock.
            Consistency::Linearizable | Consistency::Leader => {
                let state = self.read_now().await?;
                fresh.note(AsOf::Request);
                Ok(state)
            }
            Consistency::Stale => self.read_here(fresh),
        }
    }

    /// Returns the state of this node, unless it is older than asked for.
    pub(crate) fn read_here(&self, fresh: &Fresh) -> Result<Arc<State>, Fault> {
        // The clock first: the state may only be newer than we say.
        let as_of = self.heard();
        fresh.allows(as_of)?;
        fresh.note(AsOf::Moment(as_of));
        Ok(self.here())
    }

    /// Returns a state with everything that was acknowledged before the call.
    pub(crate) async fn read_now(&self) -> Result<Arc<State>, Fault> {
        let read = self.replica.read().await;
        read.map(|published| published.state).map_err(|error| problem::of_not_committed(&error).into())
    }

    /// Returns when this node heard its leader last.
    pub(crate) fn heard(&self) -> Option<Instant> {
        Instant::now().checked_sub(self.replica.heard_leader_ago()?)
    }

    /// Commits one command under the request's fence and the conditions, and returns its revision and reply.
    ///
    /// `step` tells the commands of one request apart, so that each is the same command when the request is sent
    /// again under its `Idempotency-Key`.
    pub(crate) async fn commit(
        &self,
        write: &Write,
        step: u64,
        mut conditions: Vec<Condition>,
        command: Command,
    ) -> Result<(Revision, Reply), Fault> {
        conditions.extend(write.fence.clone());
        let wrapped = !conditions.is_empty() && !matches!(command, Command::Atomic { .. });
        let command = match command {
            Command::Atomic { conditions: mut own, commands } => {
                own.append(&mut conditions);
                Command::Atomic { conditions: own, commands }
            }
            command if wrapped => Command::Atomic { conditions, commands: vec![command] },
            command => command,
        };
        let mut command = command;
        if let Some(caller) = &write.caller {
            caller.may_all(&self.here(), &command)?;
            caller.signs(&mut command);
        }
        if write.dry_run {
            return Err(self.foresee(command, wrapped).await);
        }
        let request = Request { key: write.key(step, self.here().feature_level()), named: write.is_named(), command };
        let committed =
            self.replica.propose(request).await.map_err(|error| Fault::from(problem::of_not_committed(&error)))?;
        let reply = match committed.reply {
            Reply::Atomic(mut replies) if wrapped => replies.pop().unwrap_or(Reply::Done),
            reply => reply,
        };
        match reply {
            Reply::Refused(refusal) => Err(self.refused(unwrapped(&refusal, wrapped))),
            reply => Ok((committed.revision, reply)),
        }
    }

    /// Returns what a step of this very request was answered before, if it was sent under a key and that is still known.
    pub(crate) fn kept<'a>(&self, write: &Write, step: u64, state: &'a State) -> Option<&'a Answer> {
        state.answer(write.key(step, state.feature_level())?)
    }

    /// Returns what would come of a command, or why it would be refused.
    async fn foresee(&self, command: Command, wrapped: bool) -> Fault {
        let state = match self.read_now().await {
            Ok(state) => state,
            Err(fault) => return fault,
        };
        match foresee(&state, &command) {
            Err(Reply::Refused(refusal)) => self.refused(unwrapped(&refusal, wrapped)),
            Err(_) => Fault::Foreseen(Box::new(prediction(&state, command.name().to_owned(), &[]))),
            Ok(foreseen) => {
                let name = match &command {
                    Command::Atomic { commands, .. } => commands.first().map_or("nothing", Command::name),
                    command => command.name(),
                };
                Fault::Foreseen(Box::new(prediction(&state, name.to_owned(), &foreseen)))
            }
        }
    }

    /// Returns the fault for a refusal, with what this node knows.
    pub(crate) fn refused(&self, refusal: &Refusal) -> Fault {
        problem::of_refusal(refusal, &self.here()).into()
    }

    /// Returns what the leader's timers say; empty elsewhere.
    pub(crate) fn remaining(&self) -> BTreeMap<SessionId, Duration> {
        self.replica.sessions().map(leaseward_raft::sessions::Sessions::remaining).unwrap_or_default()
    }

    /// Returns the name of the leader that this node knows of.
    pub(crate) fn leader_name(&self) -> Option<String> {
        self.replica.leader().map(|(_, info)| info.name)
    }
}

fn unwrapped(refusal: &Refusal, wrapped: bool) -> &Refusal {
    match refusal {
        Refusal::Part { refusal, .. } if wrapped => refusal,
        refusal => refusal,
    }
}

/// Returns every route and the console, with the headers that every answer carries, for those who may ask.
pub fn router(api: Api) -> Router {
    let (router, document) = crate::openapi::routes().split_for_parts();
    let document = Arc::new(crate::openapi::finish(document));
    router
        .merge(crate::console::routes())
        .fallback(crate::answer::no_route)
        .method_not_allowed_fallback(crate::answer::no_method)
        .layer(axum::extract::DefaultBodyLimit::max(crate::limits::BODY_BYTES_MAX))
        .layer(axum::Extension(document))
        .layer(axum::middleware::from_fn_with_state(api.clone(), crate::access::check))
        .layer(axum::middleware::from_fn_with_state(api.clone(), crate::answer::finish))
        .with_state(api)
}

/// Serves the API until the future is dropped.
///
/// # Errors
/// Those of the listener; none in practice, as failed connections are skipped.
pub async fn serve(listener: TcpListener, api: Api) -> std::io::Result<()> {
    // Made ready once: a router that is served as it is builds its tables anew for each connection, and keeps them.
    axum::serve(listener, router(api).into_make_service()).await
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("node", &self.replica.node()).finish_non_exhaustive()
    }
}
