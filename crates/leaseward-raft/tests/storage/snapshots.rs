//! Snapshots that are damaged are passed over; older ones take their place.

use std::path::Path;

use leaseward_raft::snapshot::{SnapshotError, Snapshots};
use leaseward_raft::store::AppliedTo;
use leaseward_raft::stored::LogPosition;
use leaseward_state::{ClusterMillis, Command, Entry, Revision, State, Term, UnixMillis};

fn state(entries: u64) -> State {
    let mut state = State::default();
    for revision in 1..=entries {
        let request = Command::OpenSession { name: "c".into(), ttl_ms: 1_000 }.into();
        state.apply(&Entry {
            revision: Revision(revision),
            term: Term(1),
            at: UnixMillis(revision),
            elapsed: ClusterMillis(0),
            request,
        });
    }
    state
}

fn applied(index: u64) -> AppliedTo {
    AppliedTo { position: Some(LogPosition { term: 1, node: 1, index }), ..AppliedTo::default() }
}

fn newest(dir: &Path) -> Option<u64> {
    let snapshots = Snapshots::open(dir, 5).expect("a directory");
    let (_, head, state) = snapshots.newest().expect("readable")?;
    let index = head.applied.position.expect("a position").index;
    assert_eq!(state.revision(), Revision(index), "the state that belongs to the head");
    Some(index)
}

#[test]
fn two_are_kept_and_the_newest_whole_one_is_used() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(newest(dir.path()), None);
    let snapshots = Snapshots::open(dir.path(), 5).expect("a directory");
    let files: Vec<_> =
        [3, 9, 12].map(|index| snapshots.write(&state(index), &applied(index)).expect("written").path).into();
    assert!(!files[0].exists() && files[1].exists() && files[2].exists());
    assert_eq!(newest(dir.path()), Some(12));

    let whole = std::fs::read(&files[2]).expect("readable");
    let step = (whole.len() / 60).max(1);
    for cut in (0..whole.len()).step_by(step) {
        std::fs::write(&files[2], &whole[..cut]).expect("written");
        assert_eq!(newest(dir.path()), Some(9), "cut at {cut}");
    }
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x04;
        std::fs::write(&files[2], &bytes).expect("written");
        assert_eq!(newest(dir.path()), Some(9), "byte {at}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&files[2], &longer).expect("written");
    assert_eq!(newest(dir.path()), Some(9), "a byte too many");
    std::fs::write(&files[1], b"").expect("written");
    assert_eq!(newest(dir.path()), None, "none is whole");
    std::fs::write(&files[2], &whole).expect("written");
    assert_eq!(newest(dir.path()), Some(12));
}

#[test]
fn a_snapshot_of_another_cluster_is_not_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = Snapshots::open(dir.path(), 6).expect("a directory").write(&state(2), &applied(2)).expect("written");
    let found = Snapshots::open(dir.path(), 5).expect("a directory").read(&file.path);
    assert!(matches!(found, Err(SnapshotError::Unfit(_))));
    assert_eq!(newest(dir.path()), None);
}

#[test]
fn a_crash_while_one_is_written_leaves_the_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let snapshots = Snapshots::open(dir.path(), 5).expect("a directory");
    snapshots.write(&state(4), &applied(4)).expect("written");
    std::fs::write(dir.path().join("writing.tmp"), b"half").expect("written");
    std::fs::write(snapshots.incoming("1-9"), b"half").expect("written");
    assert_eq!(newest(dir.path()), Some(4));
    assert!(!dir.path().join("writing.tmp").exists(), "it keeps the room of one that was never whole");
    // Something stands where the next one is to be named.
    let taken = dir.path().join(format!("snapshot-{:020}-{:020}.lws", 5, 1));
    std::fs::create_dir_all(taken.join("in-the-way")).expect("made");
    snapshots.write(&state(5), &applied(5)).expect_err("there is no name for it");
    assert!(!dir.path().join("writing.tmp").exists(), "it keeps the room of one that was refused");
    std::fs::remove_dir_all(taken).expect("gone");
    snapshots.forget_incoming("2-2").expect("forgotten");
    assert!(!snapshots.incoming("1-9").exists());
}
