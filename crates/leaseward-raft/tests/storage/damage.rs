//! Bytes that changed after they were durable, logs of others, and logs of the future: refused, by name.

use std::sync::Arc;

use leaseward_raft::codec;
use leaseward_raft::disk::Disk;
use leaseward_raft::stored::{Entry, LogPosition, Payload, Vote};
use leaseward_raft::wal::{Record, RecordKind, Wal, WalError, WalIdentity};

use crate::crash::WHOSE;
use leaseward_raft::simulation::SimDisk;

const SEGMENT: u64 = 1024;
const FIRST: &str = "wal-00000000000000000001.log";
/// Length, checksum, batch, kind, version, flags.
const HEAD_BYTES: usize = 19;

fn open(disk: &SimDisk, whose: WalIdentity) -> Result<usize, WalError> {
    let handle: Arc<dyn Disk> = Arc::new(disk.clone());
    Wal::open(handle, whose, SEGMENT).map(|(_, recovered)| recovered.entries.len())
}

/// A log of two segments, one entry in each batch.
fn filled() -> (SimDisk, usize) {
    let disk = SimDisk::default();
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
    let mut index = 0;
    while wal.segment_count() < 2 || index % 4 != 0 {
        index += 1;
        let entry = Entry { position: LogPosition { term: 1, node: 1, index }, payload: Payload::Blank };
        wal.commit(&[Record::new(RecordKind::Entry, codec::encode(&entry))]).expect("written");
    }
    (disk, index as usize)
}

/// Where each record of a segment begins.
fn starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![];
    let mut at = 0;
    loop {
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
        if length == 0 {
            return starts;
        }
        starts.push(at);
        at += HEAD_BYTES + length;
    }
}

#[test]
fn rot_in_an_earlier_segment_is_named_wherever_it_is() {
    let (disk, count) = filled();
    assert_eq!(open(&disk, WHOSE).expect("whole"), count);
    let end = disk.bytes(FIRST).iter().rposition(|byte| *byte != 0).expect("not empty");
    for at in 0..end {
        disk.flip(FIRST, at, 0x10);
        match open(&disk, WHOSE) {
            Err(WalError::Rotten { segment, offset }) => {
                assert_eq!(segment, FIRST);
                assert!(offset as usize <= at, "it is at {at}, not at {offset}");
            }
            other => panic!("byte {at}: {other:?}"),
        }
        disk.flip(FIRST, at, 0x10);
    }
    assert_eq!(open(&disk, WHOSE).expect("whole again"), count);
}

#[test]
fn rot_before_the_last_batch_is_not_taken_for_a_torn_tail() {
    let disk = SimDisk::default();
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), WHOSE, 1 << 16).expect("a log");
    for index in 1..=5 {
        let entry = Entry { position: LogPosition { term: 1, node: 1, index }, payload: Payload::Blank };
        wal.commit(&[Record::new(RecordKind::Entry, codec::encode(&entry))]).expect("written");
    }
    let starts = starts(&disk.bytes(FIRST));
    assert_eq!(starts.len(), 6, "a head and five entries");
    for (number, start) in starts.iter().enumerate() {
        disk.flip(FIRST, start + HEAD_BYTES + 2, 1);
        let found = open(&disk.after_power_cut(0), WHOSE);
        if number < 5 {
            assert!(matches!(found, Err(WalError::Rotten { .. })), "record {number}: {found:?}");
        } else {
            // Nothing later is valid: the log cannot tell it from a write that was never acknowledged.
            assert_eq!(found.expect("cut"), 4);
        }
        disk.flip(FIRST, start + HEAD_BYTES + 2, 1);
    }
}

#[test]
fn a_missing_segment_is_a_hole() {
    let (disk, _) = filled();
    disk.remove(FIRST).expect("removed");
    // What is left begins in the middle, and its head does not say that the rest was purged.
    let second = open(&disk, WHOSE);
    assert!(matches!(second, Err(WalError::Hole(_))), "{second:?}");
}

#[test]
fn a_log_of_another_node_or_cluster_is_refused() {
    let (disk, _) = filled();
    for whose in [WalIdentity { node: 4, ..WHOSE }, WalIdentity { cluster: 8, ..WHOSE }] {
        match open(&disk, whose) {
            Err(WalError::Foreign { segment, found_node: 3, found_cluster: 7 }) => assert_eq!(segment, FIRST),
            other => panic!("{other:?}"),
        }
    }
}

fn reseal(bytes: &mut [u8], start: usize) {
    let length = u32::from_le_bytes(bytes[start..start + 4].try_into().expect("four")) as usize;
    let checked = [&bytes[start..start + 4], &bytes[start + 8..start + HEAD_BYTES + length]].concat();
    bytes[start + 4..start + 8].copy_from_slice(&crc32c::crc32c(&checked).to_le_bytes());
}

#[test]
fn records_and_segments_of_a_newer_version_stop_the_node() {
    let (disk, _) = filled();
    let whole = disk.bytes(FIRST);
    let entry = starts(&whole)[2];
    // A kind of record, a version of a record, and a format of segments that nobody knows yet.
    for (offset, value) in [(entry + 16, 77), (entry + 17, 2), (HEAD_BYTES, 2)] {
        let mut bytes = whole.clone();
        bytes[offset] = value;
        reseal(&mut bytes, if offset == HEAD_BYTES { 0 } else { entry });
        disk.put(FIRST, bytes);
        match open(&disk, WHOSE) {
            Err(WalError::Newer(segment)) => assert_eq!(segment, FIRST),
            other => panic!("{offset}: {other:?}"),
        }
    }
}

#[test]
fn a_whole_record_that_makes_no_sense_is_refused() {
    let disk = SimDisk::default();
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), WHOSE, SEGMENT).expect("a log");
    let vote = Vote { term: 1, node: 1, committed: true };
    let mut payload = codec::encode(&vote);
    wal.commit(&[Record::new(RecordKind::Vote, payload.clone())]).expect("written");
    payload.push(7);
    let mut bytes = disk.bytes(FIRST);
    let start = starts(&bytes)[1];
    bytes[start + HEAD_BYTES + payload.len() - 2] = 9;
    reseal(&mut bytes, start);
    disk.put(FIRST, bytes);
    assert!(matches!(open(&disk, WHOSE), Err(WalError::Rotten { .. })), "a vote that is neither true nor false");
}
