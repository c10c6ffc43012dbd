//! What nodes and clients say to each other.
//!
//! Must stay true: enums grow at the end only; mirrors of consensus types are our own (`stored.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_state::config::Digest;
use leaseward_state::config::delta::SharedBytes;
use leaseward_state::config::spec::SetSpec;
use leaseward_state::order::Order;
use leaseward_state::propose::{Committed, NotCommitted};
use leaseward_state::{FencingToken, LeaseName, MachineName, Reply, Request, Revision, ServerName, SessionId, SetName};
use serde::{Deserialize, Serialize};

use crate::stored::{Entry, LogPosition, Membership, StoredMembership, Vote};
use crate::types::{NodeId, NodeInfo};

/// The protocol of this build. Both sides must speak it.
pub const PROTOCOL: u16 = 1;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Purpose {
    /// Consensus between voters and learners.
    Control,
    /// Blobs and snapshots.
    Bulk,
    /// Agents, host programs and nodes that want to join.
    Client,
}

/// The first frame of whoever connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u16,
    /// The cluster it means; a client that does not know says `None`.
    pub cluster: Option<u128>,
    /// Its node, if it is one.
    pub node: Option<NodeId>,
    /// This run of its process.
    pub instance: u128,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// Go on.
    Welcome {
        /// The cluster.
        cluster: u128,
        /// The node that answers.
        node: NodeId,
        /// This run of its process.
        instance: u128,
    },
    /// Go away.
    Refused {
        /// The stable code of the reason.
        code: String,
        /// The reason.
        why: String,
    },
}

/// A renewal of one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The session.
    pub session: SessionId,
    /// The revision of its leases that the holder knows.
    pub known: Revision,
}

/// The answer to one renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Renewed {
    /// It lives for another whole time to live, counted from the moment the renewal was sent.
    Alive {
        /// Its leases, if they changed since the revision that the holder knows.
        leases: Option<Held>,
        /// The revision of the machine's orders, if it is a machine's session.
        orders: Revision,
    },
    /// It is over, or will be within moments.
    Over,
}

/// The leases of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The entry that changed them last.
    pub revision: Revision,
    /// Each with its token.
    pub leases: Vec<(LeaseName, FencingToken)>,
}

/// What a machine should do and have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// The state that it was derived from.
    pub revision: Revision,
    /// Its servers.
    pub orders: Vec<Order>,
    /// Its config sets.
    pub sets: BTreeMap<SetName, SetOrder>,
}

/// What a machine should have of a config set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetOrder {
    /// What should be live; `None`: what is there, untouched.
    pub live: Option<VersionOrder>,
    /// What should be ready on its disk besides.
    pub staged: Option<VersionOrder>,
    /// Raised when an operator asks it to begin anew.
    pub attempt: u64,
    /// How the set is kept.
    pub spec: Arc<SetSpec>,
}

/// A version as a machine is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionOrder {
    /// Its number.
    pub number: u64,
    /// The name of its manifest.
    pub manifest: Digest,
}

/// What programs that follow a config set should have of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetView {
    /// The entry that changed the set last; 0: there is no such set.
    pub revision: Revision,
    /// The entry that made it: a set that was forgotten and made anew is another one, though its numbers begin alike.
    pub created: Revision,
    /// The version; `None` while no version is for everybody.
    pub version: Option<VersionOrder>,
    /// How the set is kept.
    pub spec: Arc<SetSpec>,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its term.
    pub term: u64,
    /// The leader it follows, if it knows one.
    pub leader: Option<NodeId>,
    /// The index of its last entry.
    pub last_index: u64,
    /// The index of the last entry it applied.
    pub applied_index: u64,
    /// The revision of its state.
    pub revision: Revision,
    /// The index that its newest snapshot covers.
    pub snapshot_index: u64,
    /// Why it takes no part, if so.
    pub quarantined: Option<String>,
    /// The members as it knows them.
    pub membership: Membership,
    /// Syncs of its log so far.
    pub log_syncs: u64,
    /// The feature level that it can read.
    pub feature_level: u32,
    /// The content of every config version up to here is in its store.
    pub content_complete: Revision,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Append entries.
    Append {
        /// The leader's vote.
        vote: Vote,
        /// The entry before them.
        previous: Option<LogPosition>,
        /// The entries.
        entries: Vec<Entry>,
        /// How far they are committed.
        committed: Option<LogPosition>,
    },
    /// Vote for me.
    Vote {
        /// The candidate's vote.
        vote: Vote,
        /// Its last entry.
        last: Option<LogPosition>,
    },
    /// Would you vote for me?
    PreVote {
        /// The term it would campaign in.
        term: u64,
        /// Its last entry.
        last: Option<LogPosition>,
    },
    /// Is this still the newest vote that you know of?
    Confirm {
        /// The leader's vote.
        vote: Vote,
        /// What the leader knows each node to have acknowledged, by index.
        acknowledged: Vec<(NodeId, u64)>,
        /// The sessions whose renewals wait for the answer; `None`: too many to name them.
        renewed: Option<Vec<SessionId>>,
    },
    /// What do you remember of me?
    Recall {
        /// The asking node.
        node: NodeId,
        /// The index of its last entry.
        last_index: u64,
    },
    /// A snapshot comes. How much of it do you have?
    SnapshotBegin {
        /// The leader's vote.
        vote: Vote,
        /// Names this snapshot.
        transfer: String,
        /// Its size in bytes.
        size: u64,
    },
    /// A piece of it.
    SnapshotPiece {
        /// Names this snapshot.
        transfer: String,
        /// Where the piece goes.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// It is whole: install it.
    SnapshotEnd {
        /// The leader's vote.
        vote: Vote,
        /// Names this snapshot.
        transfer: String,
        /// The last entry in it.
        last: Option<LogPosition>,
        /// The membership in it.
        membership: StoredMembership,
    },
    /// Campaign now: the leader wants you to take over.
    TakeOver {
        /// The term that ends with it.
        term: u64,
    },
    /// Commit this.
    Propose(Request),
    /// Renew these sessions.
    Renew(Vec<Renewal>),
    /// Up to where must a read now look?
    ReadPoint,
    /// What should this machine do? Answered at once if anything changed since `known`, else within ten seconds.
    View {
        /// The machine.
        machine: MachineName,
        /// The view that the machine knows.
        known: Revision,
    },
    /// Let me in.
    Join {
        /// What everybody should know of the new node.
        info: NodeInfo,
        /// Whether it takes the place of the node of that name, whose disk is gone.
        replace: bool,
        /// The feature level that it can read.
        feature_level: u32,
    },
    /// Change the members.
    Members(MemberChange),
    /// How are you?
    Status,
    /// Which of these blobs do you not hold durably?
    MissingBlobs(Vec<Digest>),
    /// Give me this blob.
    GetBlob(Digest),
    /// Keep these blobs: each with its name, durable before you answer.
    PutBlobs(Vec<(Digest, Vec<u8>)>),
    /// I live. Nothing is asked.
    Ping,
    /// Does anybody have a question to this machine? Answered when somebody has, or after a while.
    Questions {
        /// The machine.
        machine: MachineName,
    },
    /// What a machine answers to a question.
    Answered {
        /// The question.
        id: u128,
        /// The answer.
        told: Told,
    },
    /// What does this machine say to that? Answered if its agent speaks with you.
    Told {
        /// The machine.
        machine: MachineName,
        /// The question.
        about: About,
    },
    /// Give me these blobs in their stored form, as many of the first ones as fit one answer.
    GetFrames(Vec<Digest>),
    /// Keep these blobs, in their stored form: each with its name, which I have verified. They are durable once
    /// [`Ask::MissingBlobs`] does not name them any more.
    PutFrames(Vec<(Digest, SharedBytes)>),
    /// What makes one manifest and its chunks out of another one of this set?
    Delta {
        /// The set.
        set: SetName,
        /// The manifest that is there.
        base: Digest,
        /// The manifest that is wanted.
        next: Digest,
    },
    /// What should programs have of this set? Answered at once if the set changed since `known`, else within ten seconds.
    Set {
        /// The set.
        set: SetName,
        /// The view that is known; `None`: none, and the answer is to be as new as now.
        known: Option<Revision>,
    },
}

impl Ask {
    /// Returns whether the answer has content, up to a whole frame of it, and comes as soon as it is read.
    #[must_use]
    pub fn is_for_content(&self) -> bool {
        matches!(self, Self::GetBlob(_) | Self::GetFrames(_) | Self::Delta { .. })
    }
}

/// A question to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Names the question.
    pub id: u128,
    /// What is asked.
    pub about: About,
}

/// What a machine is asked, because only its agent can say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum About {
    /// What did a server print there?
    Printed {
        /// The server.
        server: ServerName,
        /// The last so many lines.
        lines: u32,
    },
    /// What stands in a config set's directory?
    Tree {
        /// The set.
        set: SetName,
        /// Patterns of paths that are none of it.
        ignore: Vec<String>,
        /// Only these paths, where others have files in the directory.
        only: Option<Vec<String>>,
        /// Whether the extended attributes of files are part of it.
        xattrs: bool,
    },
    /// Some pieces of what the last [`About::Tree`] named, as many of the first ones as fit one answer.
    Pieces {
        /// The set.
        set: SetName,
        /// Which.
        digests: Vec<Digest>,
    },
}

/// What a machine says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The last lines, oldest first.
    Lines(Vec<String>),
    /// There is nothing of it there.
    NotHere,
    /// It cannot be said.
    Failed {
        /// The stable code of the reason.
        code: String,
        /// The reason.
        why: String,
    },
    /// The encoded manifest of what stands there.
    Tree(SharedBytes),
    /// Blobs in their stored form.
    Pieces(Vec<(Digest, SharedBytes)>),
}

/// A change of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// A learner may vote from now on.
    Promote(NodeId),
    /// A node may not vote any more.
    Demote(NodeId),
    /// A node is no longer part of the cluster.
    Remove(NodeId),
    /// Another voter leads.
    Transfer(Option<NodeId>),
    /// Every node runs the new release: the feature level rises to what all of them can read.
    FinishUpgrade,
}

/// How long ago a voter last gave its word to a leader, in milliseconds, rather less (`last_word.rs`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeardAgo {
    /// For these sessions.
    pub named_ms: Vec<(SessionId, u64)>,
    /// For all others.
    pub others_ms: u64,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Append`].
    Appended(Appended),
    /// To [`Ask::Vote`].
    Voted {
        /// The voter's vote.
        vote: Vote,
        /// Its last entry.
        last: Option<LogPosition>,
        /// Whether the candidate has it.
        granted: bool,
        /// If so: how long before this answer the voter last gave its word to a leader.
        heard_ago: HeardAgo,
    },
    /// To [`Ask::PreVote`] and [`Ask::Confirm`]: yes or no.
    Yes(bool),
    /// To [`Ask::Recall`]: the greatest index that it is known to have acknowledged.
    Recalled {
        /// By what is remembered.
        acknowledged: Option<u64>,
    },
    /// To [`Ask::SnapshotBegin`]: so many bytes are there.
    SnapshotAt(u64),
    /// To [`Ask::SnapshotPiece`], [`Ask::TakeOver`], [`Ask::Members`], [`Ask::PutBlobs`], [`Ask::Ping`],
    /// [`Ask::Answered`], [`Ask::PutFrames`].
    Done,
    /// To [`Ask::SnapshotEnd`].
    SnapshotInstalled {
        /// The follower's vote.
        vote: Vote,
    },
    /// To [`Ask::Propose`].
    Proposed(Outcome),
    /// To [`Ask::Renew`], in the order of the renewals; `None` if nobody can confirm now.
    Renewed(Option<Vec<Renewed>>),
    /// To [`Ask::ReadPoint`]: the index to look at least as far as; `None` if nobody can confirm now.
    ReadPoint(Option<u64>),
    /// To [`Ask::View`].
    View(Box<MachineView>),
    /// To [`Ask::Join`].
    Joined {
        /// The cluster.
        cluster: u128,
        /// The new node.
        node: NodeId,
    },
    /// To [`Ask::Status`].
    Status(Box<NodeStatus>),
    /// To [`Ask::MissingBlobs`].
    Missing(Vec<Digest>),
    /// To [`Ask::GetBlob`].
    Blob(Option<Vec<u8>>),
    /// It cannot be answered.
    Failed {
        /// The stable code of the reason.
        code: String,
        /// The reason.
        why: String,
    },
    /// To [`Ask::Questions`]; `None`: nobody has one now.
    Question(Option<Question>),
    /// To [`Ask::Told`]; `None`: the machine did not answer here.
    Told(Option<Told>),
    /// To [`Ask::GetFrames`]. What is in neither list did not fit: ask again.
    Frames {
        /// What is here.
        frames: Vec<(Digest, SharedBytes)>,
        /// What is not.
        lacking: Vec<Digest>,
    },
    /// To [`Ask::Delta`]; `None`: fetch what you lack.
    Delta(Option<SharedBytes>),
    /// To [`Ask::Set`].
    Set(SetView),
}

/// The answer to a proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is committed and applied.
    Committed {
        /// Its revision.
        revision: Revision,
        /// Its answer.
        reply: Reply,
    },
    /// This node does not lead.
    NotLeader,
    /// The outcome is unknown.
    Unknown,
    /// It was not accepted.
    Overloaded(String),
}

/// The answer to an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Appended {
    /// All of it.
    Success,
    /// As far as this.
    Partial(Option<LogPosition>),
    /// The entry before it is not there.
    Conflict,
    /// A newer vote was given.
    HigherVote(Vote),
}

impl From<Result<Committed, NotCommitted>> for Outcome {
    fn from(result: Result<Committed, NotCommitted>) -> Self {
        match result {
            Ok(committed) => Self::Committed { revision: committed.revision, reply: committed.reply },
            Err(NotCommitted::NoLeader) => Self::NotLeader,
            Err(NotCommitted::Unknown) => Self::Unknown,
            Err(NotCommitted::Overloaded(why)) => Self::Overloaded(why),
        }
    }
}

impl From<Outcome> for Result<Committed, NotCommitted> {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Committed { revision, reply } => Ok(Committed { revision, reply }),
            Outcome::NotLeader => Err(NotCommitted::NoLeader),
            Outcome::Unknown => Err(NotCommitted::Unknown),
            Outcome::Overloaded(why) => Err(NotCommitted::Overloaded(why)),
        }
    }
}

impl Ask {
    /// Returns whether only nodes of the cluster may ask this.
    #[must_use]
    pub fn is_for_peers(&self) -> bool {
        matches!(
            self,
            Self::Append { .. }
                | Self::Vote { .. }
                | Self::PreVote { .. }
                | Self::Confirm { .. }
                | Self::Recall { .. }
                | Self::SnapshotBegin { .. }
                | Self::SnapshotPiece { .. }
                | Self::SnapshotEnd { .. }
                | Self::TakeOver { .. }
                | Self::PutFrames(_)
                | Self::Told { .. }
        )
    }
}
