//! What is on the disks: logs that are purged, directories that were restored.

use std::time::Duration;

use leaseward_raft::net::wire::{Answer, Ask, MemberChange};
use leaseward_raft::{Replica, Settings};
use leaseward_state::Reply;
use tokio::time::{Instant, sleep, timeout};

use crate::nodes::{Cluster, PATIENCE, acquire, eventually, open_session, put_server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_survives_a_restart_of_all_nodes_and_logs_are_purged() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let session = open_session(cluster.node(leader), 3_600_000).await;
    for i in 0..400 {
        let reply = acquire(cluster.node(leader), session, &format!("lease/{i}")).await;
        assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
    }
    eventually("a snapshot", || cluster.live().all(|(_, node)| node.status().snapshot_index > 0)).await;
    let before = cluster.node(leader).read().await.expect("readable").state.revision();
    for i in 0..3 {
        cluster.stop(i).await;
    }
    for i in 0..3 {
        cluster.start(i).await;
    }
    let leader = cluster.leader().await;
    let state = cluster.node(leader).read().await.expect("readable").state;
    assert!(state.revision() >= before);
    assert_eq!(state.leases().count(), 400);
    state.check_invariants().expect("whole");
}

/// A log that is purged early: 256 KiB are kept behind a snapshot, which is made each 512 KiB.
fn purged_early(settings: &mut Settings) {
    settings.snapshot_after_bytes = 512 << 10;
    settings.log_bytes_kept = 256 << 10;
}

/// The two above, what comes while a snapshot is made, and segments that are begun, kept or prepared.
const LOG_BYTES_AT_MOST: u64 = 3 << 20;

/// Defines servers with long environments until so many bytes were written. Returns how many there are then.
async fn fill(node: &Replica, from: usize, bytes: usize) -> usize {
    const EACH: usize = 32 << 10;
    let upto = from + bytes / EACH;
    for i in from..upto {
        put_server(node, &format!("s{i}"), EACH).await;
    }
    upto
}

fn log_bytes(cluster: &Cluster, i: usize) -> u64 {
    let entries = std::fs::read_dir(cluster.settings(i).data.join("wal")).expect("readable");
    // A segment may be purged while we look.
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_purged_by_its_bytes_and_nothing_is_lost() {
    let mut cluster = Cluster::with(3, purged_early).await;
    let leader = cluster.leader().await;
    let mut servers = 0;
    for _ in 0..4 {
        servers = fill(cluster.node(leader), servers, 1 << 20).await;
        let last = cluster.node(leader).status().last_index;
        // A snapshot is made, and the log is short again, on every node by itself.
        let purged = |i| log_bytes(&cluster, i) <= LOG_BYTES_AT_MOST;
        eventually("each node has it", || cluster.live().all(|(_, node)| node.status().applied_index >= last)).await;
        eventually("the log is short", || (0..3).all(purged)).await;
    }
    let before = cluster.node(leader).read().await.expect("readable").state.revision();
    for i in 0..3 {
        cluster.stop(i).await;
    }
    for i in 0..3 {
        assert!(log_bytes(&cluster, i) <= LOG_BYTES_AT_MOST, "n{i} keeps {} bytes of log", log_bytes(&cluster, i));
        cluster.start(i).await;
    }
    let leader = cluster.leader().await;
    for i in 0..3 {
        timeout(PATIENCE, cluster.node(i).ready()).await.expect("it comes back");
        let state = cluster.node(i).read().await.expect("readable").state;
        assert!(state.revision() >= before);
        assert_eq!(state.servers().count(), servers, "n{i}");
        state.check_invariants().expect("whole");
    }
    let session = open_session(cluster.node(leader), 3_600_000).await;
    assert!(matches!(acquire(cluster.node(leader), session, "after").await, Reply::Granted { .. }));
}

/// A node that is started again before it ever wrote enough in one life makes snapshots all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_purged_however_often_its_node_is_started_again() {
    let mut cluster = Cluster::with(1, purged_early).await;
    let mut servers = 0;
    for _ in 0..4 {
        let leader = cluster.leader().await;
        servers = fill(cluster.node(leader), servers, 384 << 10).await;
        cluster.stop(0).await;
        cluster.start(0).await;
        timeout(PATIENCE, cluster.node(0).ready()).await.expect("it comes back");
    }
    eventually("a snapshot", || cluster.node(0).status().snapshot_index > 0).await;
    let leader = cluster.leader().await;
    assert_eq!(cluster.node(leader).read().await.expect("readable").state.servers().count(), servers);
}

/// Its power went when the snapshot from the leader had its name and nothing else had been done about it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_was_not_installed_to_its_end_is_installed_at_the_next_start() {
    let mut cluster = Cluster::with(3, purged_early).await;
    let leader = cluster.leader().await;
    let mut servers = fill(cluster.node(leader), 0, 128 << 10).await;
    let victim = (leader + 1) % 3;
    let behind = cluster.node(leader).status().last_index;
    eventually("it follows", || cluster.node(victim).status().applied_index >= behind).await;
    cluster.stop(victim).await;
    while cluster.node(leader).status().snapshot_index <= behind {
        servers = fill(cluster.node(leader), servers, 512 << 10).await;
    }
    // More than is kept behind it: the log alone takes nobody on from where the victim was.
    servers = fill(cluster.node(leader), servers, 512 << 10).await;
    let snapshots = |i: usize| cluster.settings(i).data.join("snapshots");
    for file in std::fs::read_dir(snapshots(leader)).expect("readable") {
        let file = file.expect("readable");
        std::fs::copy(file.path(), snapshots(victim).join(file.file_name())).expect("copied");
    }
    cluster.start(victim).await;
    let last = cluster.node(leader).status().last_index;
    eventually("it follows", || cluster.node(victim).status().applied_index >= last).await;
    servers = fill(cluster.node(leader), servers, 128 << 10).await;
    let state = cluster.node(victim).read().await.expect("readable").state;
    assert_eq!(state.servers().count(), servers);
    // And again from what it has on its disk since.
    cluster.stop(victim).await;
    cluster.start(victim).await;
    let state = cluster.node(victim).read().await.expect("readable").state;
    assert_eq!(state.servers().count(), servers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_data_directory_is_recognised_and_takes_no_part() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    let data = cluster.settings(victim).data;
    cluster.stop(victim).await;
    let backup = cluster.dir.path().join("backup");
    copy_tree(&data, &backup);
    cluster.start(victim).await;
    timeout(PATIENCE, cluster.node(victim).ready()).await.expect("it comes back");
    let session = open_session(cluster.node(leader), 3_600_000).await;
    for i in 0..20 {
        acquire(cluster.node(leader), session, &format!("after/{i}")).await;
    }
    let last = cluster.node(leader).status().last_index;
    eventually("the victim acknowledged them", || cluster.node(victim).status().last_index >= last).await;
    // A confirmation round carries to everybody what the leader knows of everybody.
    sleep(Duration::from_millis(100)).await;
    cluster.node(leader).read().await.expect("readable");
    cluster.stop(victim).await;
    std::fs::remove_dir_all(&data).expect("removed");
    copy_tree(&backup, &data);
    cluster.start(victim).await;
    eventually("it is quarantined", || cluster.node(victim).status().quarantined.is_some()).await;
    assert!(timeout(Duration::from_millis(500), cluster.node(victim).ready()).await.is_err(), "it takes no part");
}

/// Returns what one node remembers of another one.
async fn remembered(cluster: &Cluster, node: usize, of: usize) -> Option<u64> {
    let ask = Ask::Recall { node: cluster.node(of).node(), last_index: 0 };
    match cluster.node(node).ask_self(ask).await {
        Answer::Recalled { acknowledged } => acknowledged,
        other => panic!("{other:?}"),
    }
}

/// Makes a node the leader.
async fn lead(cluster: &Cluster, node: usize) {
    let began = Instant::now();
    while cluster.leader().await != node {
        assert!(began.elapsed() < PATIENCE, "it never leads");
        let ask = Ask::Members(MemberChange::Transfer(Some(cluster.node(node).node())));
        cluster.node(cluster.leader().await).ask_self(ask).await;
    }
}

/// The memory of a cluster that was stopped as a whole is on its disks.
async fn restored_while_all_were_stopped(follows: bool) {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let victim = if follows { (leader + 1) % 3 } else { leader };
    let data = cluster.settings(victim).data;
    cluster.stop(victim).await;
    let backup = cluster.dir.path().join("backup");
    copy_tree(&data, &backup);
    cluster.start(victim).await;
    timeout(PATIENCE, cluster.node(victim).ready()).await.expect("it comes back");
    if !follows {
        lead(&cluster, victim).await;
    }
    let leader = cluster.leader().await;
    let session = open_session(cluster.node(leader), 3_600_000).await;
    for i in 0..20 {
        acquire(cluster.node(leader), session, &format!("after/{i}")).await;
    }
    let last = cluster.node(leader).status().last_index;
    let has = |node: &Replica| node.status().applied_index >= last;
    eventually("all acknowledged them", || cluster.live().all(|(_, node)| has(node))).await;
    // A confirmation round carries to everybody what the leader knows of everybody.
    let told = async || {
        cluster.node(leader).read().await.expect("readable");
        remembered(&cluster, (victim + 1) % 3, victim).await >= Some(last)
    };
    let began = Instant::now();
    while !told().await {
        assert!(began.elapsed() < PATIENCE, "the others never hear of it");
    }
    for i in 0..3 {
        cluster.stop(i).await;
    }
    std::fs::remove_dir_all(&data).expect("removed");
    copy_tree(&backup, &data);
    for i in 0..3 {
        cluster.start(i).await;
    }
    eventually("it is quarantined", || cluster.node(victim).status().quarantined.is_some()).await;
    // The other two go on, and they are not suspected.
    let leader = cluster.leader().await;
    assert_ne!(leader, victim);
    let state = cluster.node(leader).read().await.expect("readable").state;
    assert_eq!(state.leases().count(), 20, "what was acknowledged is there");
    assert!((0..3).all(|i| i == victim || cluster.node(i).status().quarantined.is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_restored_while_all_were_stopped_is_recognised() {
    restored_while_all_were_stopped(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_restored_while_all_were_stopped_is_recognised() {
    restored_while_all_were_stopped(false).await;
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("readable") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("typed").is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}
