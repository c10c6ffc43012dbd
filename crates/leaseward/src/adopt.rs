//! What stands on a member's disk becomes the next version of a set, changed by hand or not: when an operator asks for
//! it, or by itself where the set says so.
//!
//! Must stay true: what the member sends is verified by its name; nothing is adopted that members do not have as it was
//! published (layers, templates, secrets), since their sources cannot be told from it; a version that somebody published
//! since is never overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leaseward_raft::Replica;
use leaseward_raft::net::wire::{About, Told};
use leaseward_state::command::PublishSet;
use leaseward_state::config::spec::{DriftRule, Layout};
use leaseward_state::config::{Digest, SyncState};
use leaseward_state::propose::Propose;
use leaseward_state::state::ConfigSet;
use leaseward_state::{Command, MachineName, SetName, State, Term};
use leaseward_sync::{digest_of, frame, manifest};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::content::QuorumContent;
use crate::error::{Error, Result};

/// Pieces in one question.
const PIECES_AT_ONCE: usize = 1_000;

/// What could not be adopted is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// What could not be adopted, from whom, and when it is tried again.
type Later = BTreeMap<(SetName, MachineName), Instant>;

impl QuorumContent {
    /// Keeps here what stands on a member's disk of a set. Returns the name of its manifest.
    ///
    /// # Errors
    /// [`Error::Failed`]: LW0404 if there is no such set, machine or directory, LW0101 for a set whose members have
    /// something else than was published, LW0346 if the machine does not answer, or what the machine says.
    pub async fn adopt(&self, set: &SetName, machine: &MachineName) -> Result<Digest> {
        let failed = |code: &str, why: String| Error::Failed { code: code.to_owned(), why };
        let missing = |what: String| failed("LW0404", format!("{what} does not exist"));
        let state = Arc::clone(&self.replica().published().borrow().state);
        let found = state.set(set).ok_or_else(|| missing(format!("config/{set}")))?;
        let at = state.machine(machine).ok_or_else(|| missing(format!("machine/{machine}")))?;
        if is_made(found) {
            let why = format!(
                "what members have of config/{set} is made from what was published (overlays, templates or a key): publish \
                 its sources instead"
            );
            return Err(failed("LW0101", why));
        }
        let unheard = |why: &str| failed("LW0346", format!("{machine} has its files of config/{set}, and {why}"));
        if at.session.is_none() {
            return Err(unheard("its agent is not connected"));
        }
        let only = match (found.spec.layout, found.newest()) {
            (Layout::Tree, _) => None,
            (Layout::Files, None) => Some(Vec::new()),
            (Layout::Files, Some(newest)) => {
                let tree = self.manifest(newest.manifest).await?;
                Some(tree.entries.iter().map(|entry| entry.path.clone()).collect())
            }
        };
        let tell = async |about| match self.replica().told(machine.clone(), about).await {
            Some(Told::Failed { code, why }) => Err(failed(&code, format!("{machine}: {why}"))),
            Some(told) => Ok(told),
            None => Err(unheard("its agent did not answer in time")),
        };
        let ask = About::Tree { set: set.clone(), ignore: found.spec.ignore.clone(), only, xattrs: found.spec.xattrs };
        let Told::Tree(encoded) = tell(ask).await? else {
            return Err(missing(format!("config/{set} on {machine}")));
        };
        let bad = |error: leaseward_sync::Error| failed(error.code(), error.to_string());
        let tree = manifest::decode(encoded.as_slice()).map_err(bad)?;
        let mut lacking = self.lacking(&tree.chunk_names().into_iter().collect::<Vec<_>>()).await;
        while !lacking.is_empty() {
            let digests: Vec<Digest> = lacking.iter().take(PIECES_AT_ONCE).copied().collect();
            let Told::Pieces(pieces) = tell(About::Pieces { set: set.clone(), digests }).await? else {
                return Err(unheard("it no longer has what it named"));
            };
            let came: BTreeSet<Digest> = pieces.iter().map(|(digest, _)| *digest).collect();
            let before = lacking.len();
            self.keep(pieces).await?;
            lacking.retain(|digest| !came.contains(digest));
            if lacking.len() == before {
                return Err(unheard("it sent other files than it was asked for"));
            }
        }
        let named = digest_of(encoded.as_slice());
        self.keep(vec![(named, frame::pack(encoded.as_slice()).map_err(bad)?)]).await?;
        Ok(named)
    }
}

fn is_made(set: &ConfigSet) -> bool {
    set.spec.overlays || set.spec.templates || set.spec.key.is_some()
}

/// Returns a set that is to be adopted from a member, if there is one: changed by hand there since its newest version. Not from
/// whom it is tried later.
fn drifted(state: &State, later: &Later) -> Option<(SetName, MachineName, u64)> {
    for (name, set) in state.sets() {
        if set.spec.drift != DriftRule::Adopt || is_made(set) || set.rollout.is_some() {
            continue;
        }
        for (machine, known) in state.members_of(set) {
            let Some(sync) = state.sync(name, machine) else { continue };
            let is_drift = matches!(sync.state, SyncState::Drifted { .. });
            let is_now = !later.contains_key(&(name.clone(), machine.clone()));
            if is_now
                && is_drift
                && sync.applied == set.head
                && known.session.is_some()
                && set.pin_of(machine).is_none()
            {
                return Some((name.clone(), machine.clone(), set.head));
            }
        }
    }
    None
}

/// Adopts what members changed by hand, where sets say so. Runs until the state is no longer published. Cancel safe.
pub(crate) async fn run(
    replica: Replica,
    content: QuorumContent,
    mut states: watch::Receiver<Arc<State>>,
    mut reign: watch::Receiver<Option<Term>>,
) {
    let mut later = Later::new();
    loop {
        let leads = reign.borrow_and_update().is_some();
        later.retain(|_, until| *until > Instant::now());
        let found = if leads { drifted(&states.borrow_and_update(), &later) } else { None };
        if let Some((set, machine, head)) = found {
            match take(&replica, &content, &set, &machine, head).await {
                Ok(version) => {
                    info!(%set, %machine, version, "what was changed by hand is everybody's");
                    // This node hears of it.
                    let newer = states.wait_for(|state| state.set(&set).is_none_or(|set| set.head != head));
                    tokio::time::timeout(AGAIN, newer).await.ok();
                    continue;
                }
                Err(error) => {
                    warn!(%set, %machine, %error, "what was changed by hand is not adopted");
                    // It holds nobody else up.
                    later.insert((set, machine), Instant::now() + AGAIN);
                    continue;
                }
            }
        }
        let again = later.values().min().copied();
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = reign.changed() => if changed.is_err() { return },
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
        }
    }
}

async fn take(
    replica: &Replica,
    content: &QuorumContent,
    set: &SetName,
    machine: &MachineName,
    head: u64,
) -> Result<u64> {
    let named = content.adopt(set, machine).await?;
    let base = {
        let state = Arc::clone(&replica.published().borrow().state);
        state.set(set).and_then(|set| set.newest()).map(|newest| (newest.number, newest.manifest))
    };
    let ready = content.ready(Some(base), named).await?;
    let publish = PublishSet {
        set: set.clone(),
        parent: Some(head),
        manifest: named,
        files: ready.files,
        bytes: ready.bytes,
        delta: ready.delta,
    };
    let message = format!("changed by hand on {machine}");
    let command = Command::Publish { sets: vec![publish], author: "leaseward".into(), message };
    let committed = replica.propose(command.into()).await.map_err(|error| Error::Unavailable(error.to_string()))?;
    match committed.reply {
        leaseward_state::Reply::Versions(versions) => Ok(versions.first().map_or(0, |(_, number)| *number)),
        leaseward_state::Reply::Refused(refusal) => Err(Error::Refused(refusal)),
        other => Err(Error::Unavailable(format!("a strange answer: {other:?}"))),
    }
}
