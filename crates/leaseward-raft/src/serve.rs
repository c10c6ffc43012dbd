//! What a node answers to peers and clients.
//!
//! Must stay true: nobody of another cluster is answered; a second process that speaks for a node is refused while
//! the first one lives, and told to wait while that is not known; a node that does not take part yet answers nothing that counts as a vote.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use leaseward_state::config::Version;
use leaseward_state::config::rollout::WantedSet;
use leaseward_state::propose::NotCommitted;
use leaseward_state::{MachineName, Revision, SetName, State};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest};
use openraft::{Snapshot, SnapshotMeta};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::limits::SNAPSHOT_PIECE_BYTES;
use crate::net::listener::Serve;
use crate::net::wire::{
    Answer, Appended, Ask, Hello, MachineView, Outcome, PROTOCOL, Purpose, SetOrder, SetView, VersionOrder, Welcome,
};
use crate::recall::Arrival;
use crate::replica::{Core, Shared};
use crate::snapshot::{SnapshotFile, SnapshotHead};
use crate::stored::{Entry, LogPosition, StoredMembership, Vote};

/// A view is answered after this even if nothing changed, so that a lost client is noticed.
const VIEW_WITHIN: Duration = Duration::from_secs(10);

/// Answers for a node.
pub(crate) struct Server(pub(crate) Weak<Shared>);

fn failed(code: &str, why: impl Into<String>) -> Answer {
    Answer::Failed { code: code.into(), why: why.into() }
}

fn refused(code: &str, why: String) -> Welcome {
    Welcome::Refused { code: code.into(), why }
}

impl Serve for Server {
    fn welcome(&self, hello: &Hello) -> Welcome {
        let Some(shared) = self.0.upgrade() else { return refused("LW0501", "shutting down".into()) };
        if hello.protocol != PROTOCOL {
            return refused("LW0703", format!("this node speaks protocol {PROTOCOL}, not {}", hello.protocol));
        }
        let identity = &shared.identity;
        if hello.cluster.is_some_and(|cluster| cluster != identity.cluster) {
            return refused("LW0602", format!("this node belongs to cluster {:032x}", identity.cluster));
        }
        match hello.node {
            None if hello.purpose != Purpose::Client => {
                return refused("LW0701", "only nodes open such connections".into());
            }
            None => {}
            // Our own words: a node that we replaced, and that is still a voter, had our address.
            Some(node) if node == identity.node && hello.instance == shared.instance => {
                return refused("LW0501", format!("this is node {node} itself"));
            }
            Some(node) if node == identity.node => {
                return refused("LW0603", format!("this node is node {node}; another process claims to be it too"));
            }
            Some(node) => match shared.memory.arrive(node, hello.instance, Instant::now()) {
                Arrival::Welcome { after: None } => {}
                Arrival::Welcome { after: Some(old) } => shared.links.retire(node, old),
                Arrival::Unclear => {
                    return refused("LW0613", format!("another process was node {node} a moment ago: ask again"));
                }
                Arrival::Clone => {
                    let why = "one of the two runs on a copied data directory";
                    return refused("LW0603", format!("another process is node {node} already: {why}"));
                }
            },
        }
        Welcome::Welcome { cluster: identity.cluster, node: identity.node, instance: shared.instance }
    }

    async fn answer(self: Arc<Self>, from: Arc<Hello>, ask: Ask) -> Answer {
        let Some(shared) = self.0.upgrade() else { return failed("LW0501", "shutting down") };
        if ask.is_for_peers() && from.node.is_none() {
            return failed("LW0701", "only nodes of the cluster ask that");
        }
        if from.node.is_none() && shared.asks_too_much(&ask) {
            let why = "this is asked of the API, by somebody who may: the cluster has access tokens";
            return match ask {
                Ask::Propose(_) => Answer::Proposed(Err(NotCommitted::Overloaded(format!("LW0403: {why}"))).into()),
                _ => failed("LW0403", why),
            };
        }
        shared.answer(&from, ask).await
    }

    fn hears(&self, hello: &Hello) -> bool {
        match (self.0.upgrade(), hello.node) {
            (Some(shared), Some(node)) => shared.memory.hear(node, hello.instance, Instant::now()),
            _ => true,
        }
    }

    fn gone(&self, hello: &Hello) {
        if let (Some(shared), Some(node)) = (self.0.upgrade(), hello.node) {
            shared.memory.leave(node, hello.instance);
        }
    }
}

impl Shared {
    /// Returns whether somebody who is no node asks for what only the API gives, by roles: machines and programs speak for
    /// themselves here.
    fn asks_too_much(&self, ask: &Ask) -> bool {
        let is_more = match ask {
            Ask::Propose(request) => !request.command.is_of_programs(),
            Ask::Members(_) => true,
            _ => false,
        };
        is_more && self.published().borrow().state.access().is_on()
    }

    pub(crate) async fn answer(self: Arc<Self>, from: &Hello, ask: Ask) -> Answer {
        match ask {
            Ask::Recall { node, .. } => Answer::Recalled { acknowledged: self.memory.acknowledged(node) },
            Ask::Ping => Answer::Done,
            Ask::Status => Answer::Status(Box::new(self.status())),
            Ask::MissingBlobs(digests) => match self.blobs.get() {
                Some(blobs) => Answer::Missing(blobs.missing(&digests).await),
                None => failed("LW0801", "this node keeps no blobs"),
            },
            Ask::GetBlob(digest) => match self.blobs.get() {
                Some(blobs) => Answer::Blob(blobs.get(digest).await),
                None => Answer::Blob(None),
            },
            Ask::PutBlobs(all) => match self.blobs.get() {
                Some(blobs) => match blobs.put(all).await {
                    Ok(()) => Answer::Done,
                    Err((code, why)) => failed(&code, why),
                },
                None => failed("LW0801", "this node keeps no blobs"),
            },
            Ask::GetFrames(digests) => match self.blobs.get() {
                Some(blobs) => {
                    let (frames, lacking) = blobs.frames(&digests).await;
                    Answer::Frames { frames, lacking }
                }
                None => Answer::Frames { frames: Vec::new(), lacking: digests },
            },
            Ask::PutFrames(frames) => match self.blobs.get() {
                Some(blobs) => match blobs.put_frames(frames).await {
                    Ok(()) => Answer::Done,
                    Err((code, why)) => failed(&code, why),
                },
                None => failed("LW0801", "this node keeps no blobs"),
            },
            Ask::Delta { set, base, next } => match self.blobs.get() {
                Some(blobs) => Answer::Delta(blobs.delta(&set, base, next).await),
                None => Answer::Delta(None),
            },
            Ask::Questions { machine } => Answer::Question(self.questions.next(&machine).await),
            Ask::Answered { id, told } => {
                self.questions.answered(id, told);
                Answer::Done
            }
            Ask::Told { machine, about } => Answer::Told(self.questions.ask(machine, about).await),
            other => match self.core.get() {
                Some(core) => self.answer_with_core(core, from, other).await,
                None => match self.quarantined() {
                    Some(why) => failed("LW0603", why),
                    None => failed("LW0501", "this node does not take part yet"),
                },
            },
        }
    }

    async fn answer_with_core(self: &Arc<Self>, core: &Core, from: &Hello, ask: Ask) -> Answer {
        // Whoever was forwarded to does not forward again.
        let may_forward = from.node.is_none();
        match ask {
            Ask::Append { vote, previous, entries, committed } => {
                self.heard.vote(&vote);
                self.append(core, vote, previous, entries, committed).await
            }
            Ask::Vote { vote, last } => vote_answer(core, vote, last).await,
            Ask::PreVote { last, .. } => Answer::Yes(core.elections.would_vote(last)),
            Ask::Confirm { vote, acknowledged, renewed } => {
                self.memory.learn(&acknowledged);
                self.heard.vote(&vote);
                let allowed = core.log.promise().confirms(&vote, core.log.word(), renewed.as_deref());
                if allowed {
                    self.heard.leader();
                }
                Answer::Yes(allowed)
            }
            Ask::SnapshotBegin { transfer, size, .. } => self.snapshot_begin(&transfer, size),
            Ask::SnapshotPiece { transfer, offset, bytes } => self.snapshot_piece(&transfer, offset, &bytes),
            Ask::SnapshotEnd { vote, transfer, last, membership } => {
                self.snapshot_end(core, vote, &transfer, last, membership).await
            }
            Ask::TakeOver { term } => take_over(self, core, term).await,
            Ask::Propose(request) => {
                if request.command.is_internal() {
                    return Answer::Proposed(Outcome::from(Err(NotCommitted::Overloaded(
                        "LW0206: only a leader proposes this, for itself".into(),
                    ))));
                }
                Answer::Proposed(self.propose(request, may_forward).await.into())
            }
            Ask::Renew(renewals) => Answer::Renewed(self.renew(renewals, may_forward).await),
            Ask::ReadPoint => Answer::ReadPoint(self.read_point(may_forward).await),
            Ask::View { machine, known } => self.view(&machine, known).await,
            Ask::Set { set, known } => self.set_view(&set, known).await,
            Ask::Join { info, replace, feature_level } => {
                let ask = Ask::Join { info: info.clone(), replace, feature_level };
                self.on_leader(may_forward, &ask, self.let_in(info, replace, feature_level)).await
            }
            Ask::Members(change) => {
                let ask = Ask::Members(change.clone());
                self.on_leader(may_forward, &ask, self.change_members(change)).await
            }
            Ask::Recall { .. }
            | Ask::Status
            | Ask::MissingBlobs(_)
            | Ask::GetBlob(_)
            | Ask::PutBlobs(_)
            | Ask::GetFrames(_)
            | Ask::PutFrames(_)
            | Ask::Delta { .. }
            | Ask::Ping
            | Ask::Questions { .. }
            | Ask::Answered { .. }
            | Ask::Told { .. } => failed("LW0701", "answered elsewhere"),
        }
    }

    /// Answers here if this node leads, else asks the leader, once.
    pub(crate) async fn on_leader(&self, may_forward: bool, ask: &Ask, here: impl Future<Output = Answer>) -> Answer {
        let leader = self.leader();
        let me = self.identity.node;
        if self.leading().is_some() && leader.as_ref().is_none_or(|(id, _)| *id == me) {
            return here.await;
        }
        match leader.filter(|(id, _)| *id != me) {
            Some((id, info)) if may_forward => {
                let within = Duration::from_secs(12);
                self.links
                    .call(id, &info.peer_address, Purpose::Control, ask, within)
                    .await
                    .unwrap_or_else(|error| failed("LW0501", error.to_string()))
            }
            _ => failed("LW0501", "the cluster has no leader that answers"),
        }
    }

    async fn append(
        &self,
        core: &Core,
        vote: Vote,
        previous: Option<LogPosition>,
        entries: Vec<Entry>,
        committed: Option<LogPosition>,
    ) -> Answer {
        let request = AppendEntriesRequest {
            vote: vote.into(),
            prev_log_id: previous.map(Into::into),
            entries: entries.into_iter().map(Into::into).collect(),
            leader_commit: committed.map(Into::into),
        };
        match core.raft.append_entries(request).await {
            Ok(answer) => Answer::Appended(match answer {
                AppendEntriesResponse::Success => self.heard_leader(Appended::Success),
                AppendEntriesResponse::PartialSuccess(at) => self.heard_leader(Appended::Partial(at.map(Into::into))),
                AppendEntriesResponse::Conflict => self.heard_leader(Appended::Conflict),
                AppendEntriesResponse::HigherVote(vote) => Appended::HigherVote(vote.into()),
            }),
            Err(error) => failed("LW0607", error.to_string()),
        }
    }

    fn heard_leader(&self, answer: Appended) -> Appended {
        self.heard.leader();
        answer
    }

    fn snapshot_begin(&self, transfer: &str, size: u64) -> Answer {
        if !is_plain(transfer) {
            return failed("LW0701", "a strange name for a transfer");
        }
        self.snapshots.forget_incoming(transfer).ok();
        let have = std::fs::metadata(self.snapshots.incoming(transfer)).map_or(0, |meta| meta.len());
        Answer::SnapshotAt(if have <= size { have } else { 0 })
    }

    fn snapshot_piece(&self, transfer: &str, offset: u64, bytes: &[u8]) -> Answer {
        if !is_plain(transfer) || bytes.len() > SNAPSHOT_PIECE_BYTES {
            return failed("LW0701", "a strange piece");
        }
        let write = || -> io::Result<()> {
            use std::os::unix::fs::FileExt;
            let file = std::fs::OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(self.snapshots.incoming(transfer))?;
            file.write_all_at(bytes, offset)?;
            // Only what is durable is counted as received after a restart.
            file.sync_data()
        };
        match write() {
            Ok(()) => Answer::Done,
            Err(error) => failed("LW0605", error.to_string()),
        }
    }

    async fn snapshot_end(
        &self,
        core: &Core,
        vote: Vote,
        transfer: &str,
        last: Option<LogPosition>,
        membership: StoredMembership,
    ) -> Answer {
        if !is_plain(transfer) {
            return failed("LW0701", "a strange name for a transfer");
        }
        let path = self.snapshots.incoming(transfer);
        let head = match self.snapshots.read(&path) {
            Ok((head, _)) => head,
            Err(error) => {
                warn!(%error, "a snapshot from the leader is not whole; it is fetched again");
                std::fs::remove_file(&path).ok();
                return failed("LW0604", error.to_string());
            }
        };
        // The core purges the log while the state machine still installs: the snapshot has its final name before, or
        // a crash between the two would leave neither. An old one is not needed, and the core says so.
        let newer = |(_, newest): (_, SnapshotHead)| head.applied.position > newest.applied.position;
        let adopted = self.snapshots.newest_head().and_then(|newest| match newest.is_none_or(newer) {
            true => self.snapshots.adopt(&path, &head.applied),
            false => Ok(SnapshotFile { size: std::fs::metadata(&path)?.len(), path }),
        });
        let snapshot = match adopted {
            Ok(snapshot) => snapshot,
            Err(error) => return failed("LW0605", error.to_string()),
        };
        let meta = SnapshotMeta {
            last_log_id: last.map(Into::into),
            last_membership: membership.into(),
            snapshot_id: transfer.to_owned(),
        };
        let snapshot = Snapshot { meta, snapshot: Box::new(snapshot) };
        core.log.word().give_to_all();
        match core.raft.install_full_snapshot(vote.into(), snapshot).await {
            Ok(response) => Answer::SnapshotInstalled { vote: response.vote.into() },
            Err(error) => failed("LW0607", error.to_string()),
        }
    }

    async fn view(&self, machine: &MachineName, known: Revision) -> Answer {
        // Whoever knows nothing may have known more before it was started again: it is told what is so now, and not what
        // a voter that is behind believes.
        if known == Revision(0)
            && let Err(error) = self.read(self.settings.propose_within).await
        {
            return failed("LW0501", error.to_string());
        }
        let mut published = self.published();
        let changed = async {
            loop {
                {
                    // Thousands of machines look at each change: what they should have is made only if it is news.
                    let state = &published.borrow_and_update().state;
                    if view_revision(state, machine) > known {
                        return machine_view(state, machine);
                    }
                }
                if published.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let view = timeout(VIEW_WITHIN, changed).await;
        let view = view.unwrap_or_else(|_| machine_view(&self.published().borrow().state, machine));
        Answer::View(Box::new(view))
    }

    async fn set_view(&self, set: &SetName, known: Option<Revision>) -> Answer {
        let Some(known) = known else {
            return match self.read(self.settings.propose_within).await {
                Ok(published) => Answer::Set(set_view(&published.state, set)),
                Err(error) => failed("LW0501", error.to_string()),
            };
        };
        let mut published = self.published();
        // A set that is gone is news, too. Whoever knows more than this node is not taken back.
        let is_news = |state: &State| match state.set(set) {
            Some(found) => found.modified > known,
            None => known > Revision(0) && state.revision() > known,
        };
        let changed = published.wait_for(|published| is_news(&published.state));
        if let Ok(Err(_)) = timeout(VIEW_WITHIN, changed).await {
            return failed("LW0501", "shutting down");
        }
        let state = Arc::clone(&self.published().borrow().state);
        Answer::Set(set_view(&state, set))
    }
}

/// Returns what programs should have of a set.
fn set_view(state: &State, name: &SetName) -> SetView {
    let Some(set) = state.set(name) else { return SetView::default() };
    let version = set.for_programs().map(|version| VersionOrder { number: version.number, manifest: version.manifest });
    SetView { revision: set.modified, created: set.created, version, spec: Arc::clone(&set.spec) }
}

/// Returns what a machine should do and have, under the revision that changed it last.
#[must_use]
pub fn machine_view(state: &State, machine: &MachineName) -> MachineView {
    let version = |version: &Version| VersionOrder { number: version.number, manifest: version.manifest };
    let order = |wanted: WantedSet<'_>| SetOrder {
        live: wanted.live.map(version),
        staged: wanted.staged.map(version),
        attempt: wanted.attempt,
        spec: Arc::clone(wanted.spec),
    };
    let sets: BTreeMap<_, _> = state.wanted_sets(machine).map(|(name, wanted)| (name.clone(), order(wanted))).collect();
    MachineView { revision: view_revision(state, machine), orders: state.orders(machine), sets }
}

fn view_revision(state: &State, machine: &MachineName) -> Revision {
    let orders = state.machine(machine).map_or(Revision(0), |machine| machine.orders_revision);
    state.sets().map(|(_, set)| set.modified).fold(orders, Revision::max)
}

async fn vote_answer(core: &Core, vote: Vote, last: Option<LogPosition>) -> Answer {
    let request = VoteRequest { vote: vote.into(), last_log_id: last.map(Into::into) };
    match core.raft.vote(request).await {
        Ok(answer) => Answer::Voted {
            vote: answer.vote.into(),
            last: answer.last_log_id.map(Into::into),
            granted: answer.vote_granted,
            // Rule R4: read after the vote is promised, so no older leader has this node's word later.
            heard_ago: core.log.word().ago(),
        },
        Err(error) => failed("LW0607", error.to_string()),
    }
}

/// The leader wants this node to lead: campaign as soon as the others no longer protect the old leader.
async fn take_over(shared: &Shared, core: &Core, term: u64) -> Answer {
    if core.raft.metrics().borrow().current_term != term {
        return failed("LW0611", "that term is over");
    }
    sleep(shared.settings.timing.heartbeat + Duration::from_millis(10)).await;
    match core.raft.trigger().elect().await {
        Ok(()) => Answer::Done,
        Err(error) => failed("LW0607", error.to_string()),
    }
}

/// Names of transfers become file names.
fn is_plain(name: &str) -> bool {
    name.len() < 100 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
