//! Records of a segment, and how to tell a torn tail from bit rot.
//!
//! A record: length (4), crc32c (4), batch (8), kind (1), version (1), flags (1), payload; little-endian. A batch is
//! what one sync made durable; its last record says so. A segment begins with zeros everywhere, so a length of zero
//! ends it.
//!
//! The rule of the tail: batch b+1 is written only after the sync of batch b returned. So if some record of batch b
//! is damaged and a record of a later batch is valid, the damage came after the sync: bit rot. If nothing later is
//! valid, the sync never returned: a torn tail, and nobody was told that it is durable.

use std::ops::Range;

use crate::limits::RECORD_BYTES_MAX;

/// Bytes of a record before its payload.
pub(super) const HEAD_BYTES: usize = 19;

/// Set on the last record of a batch.
const LAST: u8 = 1;

/// The only version of every kind so far.
const VERSION: u8 = 1;

/// What a record holds. Stored by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The head of a segment.
    Head = 1,
    /// An entry.
    Entry = 2,
    /// A vote.
    Vote = 3,
    /// How far entries are known to be committed.
    Committed = 4,
    /// Entries from here on are no longer part of the log.
    TruncateFrom = 5,
    /// Entries up to here are no longer needed.
    PurgeTo = 6,
}

impl RecordKind {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Head,
            2 => Self::Entry,
            3 => Self::Vote,
            4 => Self::Committed,
            5 => Self::TruncateFrom,
            6 => Self::PurgeTo,
            _ => return None,
        })
    }
}

/// A record to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it holds.
    pub kind: RecordKind,
    /// Its encoded content.
    pub payload: Vec<u8>,
}

impl Record {
    /// Returns a record.
    #[must_use]
    pub fn new(kind: RecordKind, payload: Vec<u8>) -> Self {
        Self { kind, payload }
    }

    pub(super) fn len(&self) -> usize {
        HEAD_BYTES + self.payload.len()
    }
}

/// Appends the records of one batch to `out`. Returns where each payload stands in `out`.
pub(super) fn write_batch(out: &mut Vec<u8>, batch: u64, records: &[Record]) -> Vec<Range<usize>> {
    let mut places = Vec::with_capacity(records.len());
    for (i, record) in records.iter().enumerate() {
        let flags = if i + 1 == records.len() { LAST } else { 0 };
        let length = (record.payload.len() as u32).to_le_bytes();
        let mut rest = [0; 11];
        rest[..8].copy_from_slice(&batch.to_le_bytes());
        rest[8] = record.kind as u8;
        rest[9] = VERSION;
        rest[10] = flags;
        out.extend_from_slice(&length);
        out.extend_from_slice(&checksum(&length, &rest, &record.payload).to_le_bytes());
        out.extend_from_slice(&rest);
        let start = out.len();
        out.extend_from_slice(&record.payload);
        places.push(start..out.len());
    }
    places
}

fn checksum(length: &[u8], rest: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(length), rest), payload)
}

/// A record as it stands in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) kind: RecordKind,
    pub(super) batch: u64,
    pub(super) last: bool,
    pub(super) payload: Range<usize>,
}

/// How a segment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// In zeros, or full.
    Clean,
    /// In a batch that was never acknowledged.
    Torn,
    /// In damage that came after the sync.
    Rotten,
    /// In a record of a version this build does not know.
    Newer,
}

/// Everything valid at the beginning of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) records: Vec<Found>,
    /// Where the next record would stand, in bytes.
    pub(super) end: usize,
    pub(super) tail: Tail,
}

enum Parsed {
    Record(Found, usize),
    Newer,
    Nothing,
}

fn parse(bytes: &[u8], at: usize) -> Parsed {
    let Some(head) = bytes.get(at..at + HEAD_BYTES) else { return Parsed::Nothing };
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > RECORD_BYTES_MAX || head[..HEAD_BYTES].iter().all(|byte| *byte == 0) {
        return Parsed::Nothing;
    }
    let start = at + HEAD_BYTES;
    let Some(payload) = bytes.get(start..start + length) else { return Parsed::Nothing };
    let expected = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if checksum(&head[..4], &head[8..], payload) != expected {
        return Parsed::Nothing;
    }
    let batch = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
    match RecordKind::from_code(head[16]) {
        Some(kind) if head[17] == VERSION => {
            let found = Found { kind, batch, last: head[18] & LAST != 0, payload: start..start + length };
            Parsed::Record(found, start + length)
        }
        _ => Parsed::Newer,
    }
}

/// Returns everything valid at the beginning of a segment, and how it ends.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut records: Vec<Found> = Vec::new();
    let mut end = 0;
    let tail = loop {
        match parse(bytes, end) {
            Parsed::Record(found, next) => {
                records.push(found);
                end = next;
            }
            Parsed::Newer => break Tail::Newer,
            Parsed::Nothing if bytes[end..].iter().all(|byte| *byte == 0) => break unfinished(&records),
            Parsed::Nothing => break judge(bytes, end, &records),
        }
    };
    if tail == Tail::Torn {
        // A batch is acknowledged whole or not at all: drop what stands of the unfinished one.
        while records.last().is_some_and(|found| !found.last) {
            let dropped = records.pop().expect("it was looked at just now");
            end = dropped.payload.start - HEAD_BYTES;
        }
    }
    Scan { records, end, tail }
}

/// A segment that ends in zeros may still end inside a batch.
fn unfinished(records: &[Found]) -> Tail {
    if records.last().is_some_and(|found| !found.last) { Tail::Torn } else { Tail::Clean }
}

fn judge(bytes: &[u8], hole: usize, records: &[Found]) -> Tail {
    // The batch that the damaged record belongs to.
    let damaged = records.last().map_or(0, |found| if found.last { found.batch + 1 } else { found.batch });
    for at in hole + 1..bytes.len().saturating_sub(HEAD_BYTES) {
        if let Parsed::Record(found, _) = parse(bytes, at)
            && found.batch > damaged
        {
            return Tail::Rotten;
        }
    }
    Tail::Torn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(batches: &[&[&str]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (batch, texts) in (1..).zip(batches) {
            let records: Vec<_> =
                texts.iter().map(|text| Record::new(RecordKind::Entry, text.as_bytes().to_vec())).collect();
            write_batch(&mut bytes, batch, &records);
        }
        bytes.resize(bytes.len() + 512, 0);
        bytes
    }

    #[test]
    fn damage_before_a_later_batch_is_rot_and_in_the_last_batch_a_torn_tail() {
        let whole = segment(&[&["a", "bb"], &["ccc"], &["d", "e"]]);
        let clean = scan(&whole);
        assert_eq!((clean.records.len(), clean.tail), (5, Tail::Clean));
        let last_batch = clean.records[3].payload.start - HEAD_BYTES;
        for at in 0..clean.end {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x40;
            let found = scan(&damaged);
            if at < last_batch {
                assert_eq!(found.tail, Tail::Rotten, "byte {at}");
            } else {
                assert_eq!((found.tail, found.records.len()), (Tail::Torn, 3), "byte {at}");
            }
        }
    }

    #[test]
    fn a_batch_counts_whole_or_not_at_all() {
        let whole = segment(&[&["a"], &["b", "c"]]);
        let end = scan(&whole).end;
        for cut in 0..end {
            let mut torn = whole.clone();
            torn[cut..].fill(0);
            let found = scan(&torn);
            assert!(found.records.len() != 2, "half a batch after a cut at {cut}");
            assert!(matches!(found.tail, Tail::Torn | Tail::Clean));
        }
    }
}
