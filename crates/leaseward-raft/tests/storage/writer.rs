//! The log's thread and openraft's view of it, on a disk that fails.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use leaseward_raft::codec;
use leaseward_raft::disk::Disk;
use leaseward_raft::log_store::LogStore;
use leaseward_raft::stored::{Entry, LogPosition, Payload, Vote};
use leaseward_raft::types::TypeConfig;
use leaseward_raft::wal::{Place, Record, RecordKind, Recovered, Wal, Writer};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::{CommittedLeaderId, LogId, RaftLogReader};

use crate::crash::WHOSE;
use leaseward_raft::simulation::SimDisk;

const SEGMENT: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

fn start(disk: &SimDisk) -> (Writer, Recovered, Arc<AtomicUsize>) {
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    let (wal, recovered) = Wal::open(Arc::clone(&handle), WHOSE, SEGMENT).expect("a log always opens");
    let fatal = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fatal);
    let on_fatal = move |_: &str| {
        count.fetch_add(1, Ordering::SeqCst);
    };
    (Writer::start(wal, handle, SEGMENT, Arc::new(on_fatal)).expect("a thread"), recovered, fatal)
}

fn write(writer: &Writer, index: u64) -> io::Result<Vec<Place>> {
    let entry = Entry { position: LogPosition { term: 1, node: 1, index }, payload: Payload::Blank };
    let (done, wait) = channel();
    let then = move |outcome| done.send(outcome).expect("somebody waits");
    writer.write(vec![Record::new(RecordKind::Entry, codec::encode(&entry))], Box::new(then));
    wait.recv_timeout(PATIENCE).expect("every write is answered")
}

#[test]
fn after_an_error_of_a_sync_nothing_is_acknowledged_ever_again() {
    let disk = SimDisk::default();
    let (writer, _, fatal) = start(&disk);
    for index in 1..=5 {
        write(&writer, index).expect("durable");
    }
    assert_eq!(fatal.load(Ordering::SeqCst), 0);
    disk.break_syncs(Some(5));
    assert_eq!(write(&writer, 6).expect_err("not durable").raw_os_error().or(Some(5)), Some(5));
    // The disk works again, but what the kernel threw away is gone: acknowledging would be a lie.
    disk.break_syncs(None);
    for index in 7..10 {
        assert!(write(&writer, index).is_err());
    }
    assert_eq!(fatal.load(Ordering::SeqCst), 1, "told once");
    drop(writer);
    let (_, recovered, _) = start(&disk.after_power_cut(1));
    assert!(recovered.entries.keys().copied().eq(1..=5), "{:?}", recovered.entries.keys());
}

/// The kernel shows what it could not write, and does not say again that it could not.
#[test]
fn what_could_not_be_synced_is_made_durable_by_the_next_process_before_it_believes_it() {
    let disk = SimDisk::default();
    let (writer, ..) = start(&disk);
    (1..=5).for_each(|index| drop(write(&writer, index).expect("durable")));
    disk.break_syncs(Some(5));
    write(&writer, 6).expect_err("not durable");
    disk.break_syncs(None);
    drop(writer);
    let (writer, believed, _) = start(&disk);
    assert_eq!(believed.entries.keys().next_back(), Some(&6), "it is whole, so it is believed");
    drop(writer);
    for seed in 0..20 {
        let (_, recovered, _) = start(&disk.after_power_cut(seed));
        assert_eq!(recovered.entries.keys().next_back(), Some(&6), "seed {seed}");
    }
}

/// A directory's sync that failed is not made good for by the next one: what stands under a new name then is not acknowledged.
#[test]
fn after_an_error_of_a_directorys_sync_nothing_is_acknowledged_ever_again() {
    // A new segment's name, and the names of those that went.
    for purges in [false, true] {
        let disk = SimDisk::default();
        let (writer, _, fatal) = start(&disk);
        let mut acknowledged = 0;
        let write_on = |acknowledged: &mut u64, until: u64| {
            while *acknowledged < until && write(&writer, *acknowledged + 1).is_ok() {
                *acknowledged += 1;
            }
        };
        write_on(&mut acknowledged, 200);
        assert_eq!(acknowledged, 200, "more than one segment");
        disk.break_dir_syncs(Some(5));
        if purges {
            let purged = LogPosition { term: 1, node: 1, index: 150 };
            let (done, wait) = channel();
            let then = move |outcome| done.send(outcome).expect("somebody waits");
            writer.write(vec![Record::new(RecordKind::PurgeTo, codec::encode(&purged))], Box::new(then));
            wait.recv_timeout(PATIENCE).expect("answered").expect("a segment has room for it");
            writer.purged();
        }
        // Whoever is answered after the next one is answered after the purge.
        write_on(&mut acknowledged, if purges { 202 } else { 10_000 });
        disk.break_dir_syncs(None);
        write_on(&mut acknowledged, 10_000);
        assert!(acknowledged < 10_000, "purges: {purges}: names are lost, and it went on");
        assert_eq!(fatal.load(Ordering::SeqCst), 1, "told once");
        drop(writer);
        for seed in 0..20 {
            let (_, recovered, _) = start(&disk.after_power_cut(seed));
            let last = recovered.entries.keys().next_back().copied();
            assert!(last >= Some(acknowledged), "purges: {purges}, seed {seed}: {last:?} of {acknowledged}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let disk = SimDisk::default();
    let (writer, _, fatal) = start(&disk);
    disk.leave_room(Some(SEGMENT * 2));
    let mut acknowledged = 0;
    let error = loop {
        match write(&writer, acknowledged + 1) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 10_000, "the disk never got full");
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    drop(writer);
    let disk = disk.after_power_cut(2);
    let (writer, recovered, _) = start(&disk);
    assert!(recovered.entries.keys().copied().eq(1..=acknowledged), "all that was acknowledged");
    write(&writer, acknowledged + 1).expect("with room it goes on");
}

fn log_id(term: u64, index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn blank(term: u64, index: u64) -> openraft::Entry<TypeConfig> {
    Entry { position: log_id(term, index).into(), payload: Payload::Blank }.into()
}

#[tokio::test]
async fn openrafts_view_survives_a_restart_and_reads_from_disk() {
    let disk = SimDisk::default();
    let (writer, recovered, _) = start(&disk);
    let mut log = LogStore::new(writer, recovered);
    let vote = openraft::Vote::new_committed(2, 1);
    log.save_vote(&vote).await.expect("durable");
    for index in 1..=100 {
        log.blocking_append([blank(1, index)]).await.expect("durable");
    }
    log.truncate(log_id(1, 91)).await.expect("durable");
    log.save_committed(Some(log_id(1, 80))).await.expect("noted");
    log.blocking_append((91..=95).map(|index| blank(2, index))).await.expect("durable");
    log.purge(log_id(1, 40)).await.expect("durable");
    drop(log);

    let (writer, recovered, _) = start(&disk.after_power_cut(3));
    let mut log = LogStore::new(writer, recovered);
    let state = log.get_log_state().await.expect("readable");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 40)), Some(log_id(2, 95))));
    assert_eq!(log.read_vote().await.expect("readable"), Some(vote));
    assert_eq!(log.read_committed().await.expect("readable"), Some(log_id(1, 80)), "it went with the next batch");
    let entries = log.try_get_log_entries(1..200).await.expect("readable");
    assert!(entries.iter().map(|entry| entry.log_id.index).eq(41..=95));
    assert_eq!(entries.last().expect("some").log_id, log_id(2, 95));
    let promise = log.promise();
    assert!(!promise.allows(&Vote { term: 1, node: 9, committed: true }), "the promise outlives a restart");
}

#[tokio::test]
async fn a_vote_that_is_not_durable_is_promised_all_the_same_and_not_acknowledged() {
    let disk = SimDisk::default();
    let (writer, recovered, fatal) = start(&disk);
    let mut log = LogStore::new(writer, recovered);
    let old = Vote { term: 1, node: 2, committed: true };
    assert!(log.promise().allows(&old));
    disk.break_syncs(Some(5));
    log.save_vote(&openraft::Vote::new(2, 3)).await.expect_err("not durable");
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
    assert!(!log.promise().allows(&old), "rule R2: it may be on disk, so the old leader is not confirmed");
    log.blocking_append([blank(2, 1)]).await.expect_err("nothing is acknowledged any more");
}

#[tokio::test]
async fn a_promise_allows_its_own_vote_and_newer_ones_only() {
    let (writer, recovered, _) = start(&SimDisk::default());
    let mut log = LogStore::new(writer, recovered);
    log.save_vote(&openraft::Vote::new(5, 2)).await.expect("durable");
    let promise = log.promise();
    let vote = |term, node| Vote { term, node, committed: true };
    for (term, node, allowed) in [(5, 2, true), (6, 1, true), (5, 3, true), (5, 1, false), (4, 9, false)] {
        assert_eq!(promise.allows(&vote(term, node)), allowed, "term {term} node {node}");
    }
    // An older vote never lowers it.
    log.save_vote(&openraft::Vote::new(3, 1)).await.expect("durable");
    assert!(!promise.allows(&vote(4, 9)));
}
