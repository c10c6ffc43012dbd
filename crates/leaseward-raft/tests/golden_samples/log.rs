//! The log: positions, members, entries, votes.

use super::*;

pub(crate) fn position() -> LogPosition {
    LogPosition { term: 2, node: 3, index: 9 }
}

pub(crate) fn node_info() -> NodeInfo {
    NodeInfo {
        name: "n1".into(),
        peer_address: "127.0.0.1:7421".into(),
        api_address: "127.0.0.1:7420".into(),
        standing: Standing::Witness,
        replaces: Some(2),
    }
}

pub(crate) fn membership() -> Membership {
    Membership {
        voters: vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
        nodes: BTreeMap::from([(1, node_info())]),
    }
}

pub(crate) fn stored_membership() -> StoredMembership {
    StoredMembership { at: Some(position()), membership: membership() }
}

pub(crate) fn applied_to() -> AppliedTo {
    AppliedTo { position: Some(position()), membership: stored_membership() }
}

pub(crate) fn payloads() -> Vec<Payload> {
    vec![
        Payload::Blank,
        Payload::Commands { at: UnixMillis(5), requests: requests(), elapsed: ClusterMillis(6) },
        Payload::Membership(membership()),
    ]
}

pub(crate) fn entries() -> Vec<Entry> {
    payloads().into_iter().map(|payload| Entry { position: position(), payload }).collect()
}

pub(crate) fn votes() -> Vec<Vote> {
    vec![Vote { term: 2, node: 3, committed: true }, Vote { term: 2, node: 3, committed: false }]
}
