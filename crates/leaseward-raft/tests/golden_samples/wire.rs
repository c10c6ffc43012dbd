//! What nodes and clients say to each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaseward_raft::net::wire::{
    About, Answer, Appended, Ask, HeardAgo, Held, Hello, MachineView, MemberChange, NodeStatus, Outcome, Purpose,
    Question, Renewal, Renewed, SetOrder, SetView, Told, VersionOrder, Welcome,
};
use leaseward_state::config::Digest;
use leaseward_state::order::{Action, Order};
use leaseward_state::{Reply, Revision, SessionId};

use super::{
    TOKEN, entries, lease, machine, membership, node_info, position, requests, server, set, spec, stored_membership,
    votes,
};

pub(crate) fn hellos() -> Vec<Hello> {
    let hello =
        Hello { protocol: 1, cluster: Some(1 << 100), node: Some(3), instance: 1 << 99, purpose: Purpose::Control };
    vec![hello.clone(), Hello { cluster: None, node: None, purpose: Purpose::Client, ..hello }]
}

pub(crate) fn welcomes() -> Vec<Welcome> {
    vec![
        Welcome::Welcome { cluster: 1 << 100, node: 3, instance: 4 },
        Welcome::Refused { code: "LW0602".into(), why: "w".into() },
    ]
}

pub(crate) fn asks() -> Vec<Ask> {
    let vote = votes()[0];
    let transfer = || "t".to_owned();
    vec![
        Ask::Append { vote, previous: Some(position()), entries: entries(), committed: None },
        Ask::Vote { vote, last: Some(position()) },
        Ask::PreVote { term: 4, last: None },
        Ask::Confirm { vote, acknowledged: vec![(1, 2)], renewed: Some(vec![SessionId(3)]) },
        Ask::Recall { node: 1, last_index: 2 },
        Ask::SnapshotBegin { vote, transfer: transfer(), size: 3 },
        Ask::SnapshotPiece { transfer: transfer(), offset: 4, bytes: vec![5, 6] },
        Ask::SnapshotEnd { vote, transfer: transfer(), last: Some(position()), membership: stored_membership() },
        Ask::TakeOver { term: 5 },
        Ask::Propose(requests().remove(1)),
        Ask::Renew(vec![Renewal { session: SessionId(3), known: Revision(4) }]),
        Ask::ReadPoint,
        Ask::View { machine: machine(), known: Revision(5) },
        Ask::Join { info: node_info(), replace: false, feature_level: 9 },
        Ask::Members(MemberChange::Promote(2)),
        Ask::Status,
        Ask::MissingBlobs(vec![Digest([1; 32])]),
        Ask::GetBlob(Digest([2; 32])),
        Ask::PutBlobs(vec![(Digest([3; 32]), vec![4])]),
        Ask::Ping,
        Ask::Questions { machine: machine() },
        Ask::Answered { id: 1 << 98, told: told().remove(0) },
        Ask::Told { machine: machine(), about: about().remove(0) },
        Ask::GetFrames(vec![Digest([2; 32])]),
        Ask::PutFrames(vec![(Digest([3; 32]), vec![4].into())]),
        Ask::Delta { set: set(), base: Digest([5; 32]), next: Digest([6; 32]) },
        Ask::Set { set: set(), known: Some(Revision(7)) },
    ]
}

pub(crate) fn answers() -> Vec<Answer> {
    let vote = votes()[0];
    let view = MachineView {
        revision: Revision(1),
        orders: actions().into_iter().map(|action| Order { server: server(), token: TOKEN, action }).collect(),
        sets: BTreeMap::from([(
            set(),
            SetOrder {
                live: Some(VersionOrder { number: 2, manifest: Digest([3; 32]) }),
                staged: None,
                attempt: 1,
                spec: Arc::default(),
            },
        )]),
    };
    let status = NodeStatus {
        node: 1,
        name: "n".into(),
        version: "v".into(),
        term: 2,
        leader: Some(3),
        last_index: 4,
        applied_index: 5,
        revision: Revision(6),
        snapshot_index: 7,
        quarantined: Some("q".into()),
        membership: membership(),
        log_syncs: 8,
        feature_level: 9,
        content_complete: Revision(8),
    };
    vec![
        Answer::Appended(Appended::Success),
        Answer::Voted {
            vote,
            last: None,
            granted: true,
            heard_ago: HeardAgo { named_ms: vec![(SessionId(3), 1)], others_ms: 2 },
        },
        Answer::Yes(true),
        Answer::Recalled { acknowledged: Some(1) },
        Answer::SnapshotAt(2),
        Answer::Done,
        Answer::SnapshotInstalled { vote },
        Answer::Proposed(Outcome::NotLeader),
        Answer::Renewed(Some(renewed())),
        Answer::ReadPoint(Some(3)),
        Answer::View(Box::new(view)),
        Answer::Joined { cluster: 4, node: 5 },
        Answer::Status(Box::new(status)),
        Answer::Missing(vec![Digest([6; 32])]),
        Answer::Blob(Some(vec![7])),
        Answer::Failed { code: "LW0501".into(), why: "w".into() },
        Answer::Question(Some(Question { id: 1 << 98, about: about().remove(0) })),
        Answer::Told(Some(Told::NotHere)),
        Answer::Frames { frames: vec![(Digest([3; 32]), vec![4].into())], lacking: vec![Digest([2; 32])] },
        Answer::Delta(Some(vec![7].into())),
        Answer::Set(SetView {
            revision: Revision(8),
            created: Revision(7),
            version: Some(VersionOrder { number: 9, manifest: Digest([3; 32]) }),
            spec: Arc::default(),
        }),
    ]
}

pub(crate) fn about() -> Vec<About> {
    vec![
        About::Printed { server: server(), lines: 10 },
        About::Tree { set: set(), ignore: vec!["*.pid".into()], only: Some(vec!["a".into()]), xattrs: true },
        About::Pieces { set: set(), digests: vec![Digest([5; 32])] },
    ]
}

pub(crate) fn told() -> Vec<Told> {
    let failed = Told::Failed { code: "LW0320".into(), why: "w".into() };
    let pieces = Told::Pieces(vec![(Digest([6; 32]), vec![1].into())]);
    vec![Told::Lines(vec!["l".into()]), Told::NotHere, failed, Told::Tree(vec![2].into()), pieces]
}

pub(crate) fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Committed { revision: Revision(1), reply: Reply::Done },
        Outcome::NotLeader,
        Outcome::Unknown,
        Outcome::Overloaded("o".into()),
    ]
}

pub(crate) fn appended() -> Vec<Appended> {
    vec![Appended::Success, Appended::Partial(Some(position())), Appended::Conflict, Appended::HigherVote(votes()[0])]
}

pub(crate) fn renewed() -> Vec<Renewed> {
    let held = Held { revision: Revision(1), leases: vec![(lease(), TOKEN)] };
    vec![Renewed::Alive { leases: Some(held), orders: Revision(2) }, Renewed::Over]
}

pub(crate) fn member_changes() -> Vec<MemberChange> {
    vec![
        MemberChange::Promote(1),
        MemberChange::Demote(2),
        MemberChange::Remove(3),
        MemberChange::Transfer(Some(4)),
        MemberChange::FinishUpgrade,
    ]
}

pub(crate) fn actions() -> Vec<Action> {
    vec![
        Action::Run { version: 1, spec: Box::new(spec()), paused: true, clients: vec![super::connection()] },
        Action::Stop { grace_ms: 2 },
        Action::Kill,
        Action::Prepare { spec: Box::new(spec()) },
    ]
}
