//! How config sets are kept and go round.

use std::collections::BTreeMap;

use leaseward_state::config::program::{ProgramReport, ProgramSync, RejectedVersion};
use leaseward_state::config::rollout::{Pin, RolloutStep};
use leaseward_state::config::spec::{DrainRule, DriftRule, Layout, RolloutRule, SetHook, SetSpec};
use leaseward_state::event::RolloutChange;

use leaseward_state::{Revision, UnixMillis};

use super::*;

pub(crate) fn program_report() -> ProgramReport {
    let rejected = Some(RejectedVersion { version: 3, why: "w".into() });
    ProgramReport { set: set(), file: "limits.toml".into(), applied: 2, rejected }
}

pub(crate) fn program_sync() -> ProgramSync {
    ProgramSync { report: program_report(), step: 4, reported: Revision(5), at: UnixMillis(6) }
}

pub(crate) fn pin() -> Pin {
    Pin { version: Some(1), by: "w".into(), why: "x".into() }
}

pub(crate) fn set_spec() -> SetSpec {
    let hook = SetHook { command: vec!["nginx".into(), "-t".into()], timeout_ms: 1000 };
    SetSpec {
        members: BTreeMap::from([("zone".into(), "a".into())]),
        layout: Layout::Files,
        check: Some(hook.clone()),
        reload: Some(hook),
        drift: DriftRule::Repair,
        scan_each_ms: 1000,
        ignore: vec!["*.pid".into()],
        overlays: true,
        templates: true,
        key: Some("k".into()),
        owner: Some("app:app".into()),
        drain: DrainRule::Always,
        drain_ms: 2000,
        rollout: RolloutRule {
            canaries: 1,
            canary_labels: BTreeMap::from([("role".into(), "canary".into())]),
            max_unavailable: 2,
            bake_ms: 3000,
            staged: true,
            max_failed: 4,
            roll_back: true,
        },
        quota_bytes: Some(5),
        keep_versions: 6,
        xattrs: true,
    }
}

pub(crate) fn rollout_steps() -> Vec<RolloutStep> {
    let why = || "w".to_owned();
    vec![
        RolloutStep::Release(vec![machine()]),
        RolloutStep::Halt(why()),
        RolloutStep::RollBack(why()),
        RolloutStep::Finish,
    ]
}

pub(crate) fn rollout_changes() -> Vec<RolloutChange> {
    let why = || "w".to_owned();
    vec![
        RolloutChange::Begun,
        RolloutChange::Released(vec![machine()]),
        RolloutChange::Halted(why()),
        RolloutChange::Resumed(why()),
        RolloutChange::RolledBack(why()),
        RolloutChange::Finished,
    ]
}

pub(crate) fn sync_states() -> Vec<SyncState> {
    vec![
        SyncState::Behind,
        SyncState::Fetching { version: 1, done: 2, total: 3, elapsed_ms: 4 },
        SyncState::OnDisk { version: 2 },
        SyncState::Applied,
        SyncState::Rejected { version: 3, why: "w".into() },
        SyncState::Drifted {
            paths: vec![DriftedPath {
                path: "p".into(),
                what: "content".into(),
                owner: Some(1),
                at: Some(UnixMillis(2)),
            }],
            all: 3,
        },
        SyncState::Draining,
        SyncState::Disabled,
        SyncState::Running { version: 2, step: SetStep::Reload, command: "c".into(), elapsed_ms: 3, timeout_ms: 4 },
    ]
}

pub(crate) fn manifest_nodes() -> Vec<ManifestNode> {
    vec![
        ManifestNode::Directory { mode: 0o755 },
        ManifestNode::File {
            mode: 0o644,
            size: 3,
            digest: Digest([1; 32]),
            chunks: vec![Chunk { digest: Digest([2; 32]), size: 3 }],
        },
        ManifestNode::Symlink { target: "t".into() },
    ]
}

pub(crate) fn manifest() -> Manifest {
    let entries = manifest_nodes().into_iter().zip(["a", "a/b", "c"]);
    let xattrs = BTreeMap::from([("a/b".into(), BTreeMap::from([("user.a".into(), vec![1, 2])]))]);
    Manifest {
        entries: entries.map(|(node, path)| ManifestEntry { path: path.into(), node }).collect(),
        xattrs: Some(xattrs),
    }
}
