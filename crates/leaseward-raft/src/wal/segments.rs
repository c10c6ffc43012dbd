//! The segments of a log: opening, appending a batch, forgetting what is purged.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::format::{HEAD_BYTES, Record, RecordKind, Tail, scan, write_batch};
use crate::codec;
use crate::disk::{Disk, DiskFile};
use crate::limits::RECORD_BYTES_MAX;
use crate::stored::{Entry, LogPosition, Membership, Payload, Vote};

/// The format of segments that this build writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// The name of a segment that is prepared for its turn.
const PREPARED: &str = "wal-next.tmp";

/// The name of a segment that is made when its turn has come already.
const UNPREPARED: &str = "wal-now.tmp";

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalIdentity {
    /// The cluster.
    pub cluster: u128,
    /// The node.
    pub node: u64,
}

/// Where an entry's bytes stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: u64,
    /// Where its payload begins, in bytes.
    pub offset: u64,
    /// The length of its payload, in bytes.
    pub length: u32,
}

/// What a log holds when it is opened.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last committed marker.
    pub committed: Option<LogPosition>,
    /// The last entry that was purged.
    pub purged: Option<LogPosition>,
    /// The entries, by index.
    pub entries: BTreeMap<u64, (LogPosition, Place)>,
    /// The members that entries name, by index.
    pub memberships: BTreeMap<u64, Membership>,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system refused.
    #[error("the log cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// A record that was durable has changed.
    #[error("{segment} is damaged at byte {offset}: what follows was written later and is whole, so this is bit rot")]
    Rotten {
        /// The segment.
        segment: String,
        /// The first byte that is not what was written.
        offset: u64,
    },
    /// It was written by a newer version.
    #[error("{0} was written by a newer version of leaseward")]
    Newer(String),
    /// It belongs to another node or cluster.
    #[error("{segment} belongs to node {found_node} of cluster {found_cluster:032x}")]
    Foreign {
        /// The segment.
        segment: String,
        /// Whose it is.
        found_node: u64,
        /// Whose cluster's it is.
        found_cluster: u128,
    },
    /// Segments or entries are missing.
    #[error("the log has a hole: {0}")]
    Hole(String),
}

/// The first record of each segment: all that older segments said which is not an entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    format: u32,
    identity: WalIdentity,
    sequence: u64,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    purged: Option<LogPosition>,
}

struct Segment {
    name: String,
    sequence: u64,
    file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    end: u64,
    /// The greatest index of an entry in it.
    last_index: u64,
}

/// A log, open for appending.
pub struct Wal {
    disk: Arc<dyn Disk>,
    identity: WalIdentity,
    segment_bytes: u64,
    segments: Vec<Segment>,
    next_batch: u64,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    purged: Option<LogPosition>,
}

fn segment_name(sequence: u64) -> String {
    format!("wal-{sequence:020}.log")
}

impl Wal {
    /// Opens a log, made if it does not exist. Cuts a torn tail.
    ///
    /// # Errors
    /// [`WalError`], with what is wrong by name. Nothing was changed then.
    pub fn open(disk: Arc<dyn Disk>, identity: WalIdentity, segment_bytes: u64) -> Result<(Self, Recovered), WalError> {
        let mut wal = Self {
            disk,
            identity,
            segment_bytes,
            segments: Vec::new(),
            next_batch: 1,
            vote: None,
            committed: None,
            purged: None,
        };
        let mut recovered = Recovered::default();
        let names: Vec<String> =
            wal.disk.list()?.into_iter().filter(|name| name.starts_with("wal-") && name.ends_with(".log")).collect();
        for (i, name) in names.iter().enumerate() {
            wal.load(name, i == 0, i + 1 == names.len(), &mut recovered)?;
        }
        recovered.vote = wal.vote;
        recovered.committed = wal.committed;
        recovered.purged = wal.purged;
        if let Some(purged) = wal.purged {
            recovered.entries = recovered.entries.split_off(&(purged.index + 1));
        }
        if let Some(first) = wal.segments.first().filter(|first| first.sequence > 1 && wal.purged.is_none()) {
            return Err(WalError::Hole(format!("the segments before {} are missing", first.name)));
        }
        check_continuous(&recovered)?;
        if wal.segments.is_empty() {
            wal.start_segment(1)?;
        }
        Ok((wal, recovered))
    }

    fn load(&mut self, name: &str, first: bool, last: bool, recovered: &mut Recovered) -> Result<(), WalError> {
        let file: Arc<dyn DiskFile> = Arc::from(self.disk.open(name)?);
        let mut bytes = vec![0; file.size()? as usize];
        file.read_at(&mut bytes, 0)?;
        let found = scan(&bytes);
        match found.tail {
            Tail::Clean => {}
            Tail::Newer => return Err(WalError::Newer(name.to_owned())),
            Tail::Torn if last => {
                warn!(segment = name, at = found.end, "cut a batch that was never acknowledged");
                let zeros = vec![0; bytes.len() - found.end];
                file.write_at(&zeros, found.end as u64)?;
            }
            Tail::Torn | Tail::Rotten => {
                return Err(WalError::Rotten { segment: name.to_owned(), offset: found.end as u64 });
            }
        }
        if let (Some(newest), true) = (found.records.last(), last) {
            // Whoever wrote it may have died before it was durable, or because it could not be made so; then the kernel shows what it will
            // not write any more. What is believed from here on is written once more: a batch is the most that can be so.
            let of_batch = found.records.iter().find(|record| record.batch == newest.batch);
            let start = of_batch.map_or(found.end, |first| first.payload.start - HEAD_BYTES);
            file.write_at(&bytes[start..found.end], start as u64)?;
            file.sync()?;
        }
        let Some((head, records)) = found.records.split_first() else {
            if last {
                // It was named and never written to: the crash came in between.
                self.disk.remove(name)?;
                return Ok(());
            }
            return Err(WalError::Hole(format!("{name} is empty")));
        };
        let head: Head = codec::decode("segment head", &bytes[head.payload.clone()])
            .map_err(|_| WalError::Newer(name.to_owned()))?;
        self.check_head(name, &head, first)?;
        if first {
            self.vote = head.vote;
            self.committed = head.committed;
            self.purged = head.purged;
        }
        let mut segment =
            Segment { name: name.to_owned(), sequence: head.sequence, file, end: found.end as u64, last_index: 0 };
        for record in records {
            self.next_batch = record.batch + 1;
            let payload = &bytes[record.payload.clone()];
            let damaged = |_| WalError::Rotten { segment: name.to_owned(), offset: record.payload.start as u64 };
            match record.kind {
                RecordKind::Head => return Err(WalError::Hole(format!("{name} has two heads"))),
                RecordKind::Entry => {
                    let entry: Entry = codec::decode("entry", payload).map_err(damaged)?;
                    let place = Place {
                        segment: head.sequence,
                        offset: record.payload.start as u64,
                        length: payload.len() as u32,
                    };
                    segment.last_index = segment.last_index.max(entry.position.index);
                    let index = entry.position.index;
                    recovered.entries.insert(index, (entry.position, place));
                    recovered.memberships.remove(&index);
                    if let Payload::Membership(membership) = entry.payload {
                        recovered.memberships.insert(index, membership);
                    }
                }
                RecordKind::Vote => self.vote = Some(codec::decode("vote", payload).map_err(damaged)?),
                RecordKind::Committed => {
                    self.committed = codec::decode("committed", payload).map_err(damaged)?;
                }
                RecordKind::TruncateFrom => {
                    let from: u64 = codec::decode("truncate", payload).map_err(damaged)?;
                    recovered.entries.split_off(&from);
                    recovered.memberships.split_off(&from);
                }
                RecordKind::PurgeTo => self.purged = Some(codec::decode("purge", payload).map_err(damaged)?),
            }
        }
        self.next_batch = self.next_batch.max(found.records.last().map_or(1, |record| record.batch + 1));
        self.segments.push(segment);
        Ok(())
    }

    fn check_head(&self, name: &str, head: &Head, first: bool) -> Result<(), WalError> {
        if head.format > FORMAT {
            return Err(WalError::Newer(name.to_owned()));
        }
        if head.identity != self.identity {
            return Err(WalError::Foreign {
                segment: name.to_owned(),
                found_node: head.identity.node,
                found_cluster: head.identity.cluster,
            });
        }
        if segment_name(head.sequence) != name {
            return Err(WalError::Hole(format!("{name} says that it is number {}", head.sequence)));
        }
        let expected = self.segments.last().map(|segment| segment.sequence + 1);
        if !first && expected != Some(head.sequence) {
            return Err(WalError::Hole(format!("the segment before {name} is missing")));
        }
        Ok(())
    }

    /// Writes one batch and makes it durable. Returns where each record's payload stands.
    ///
    /// # Errors
    /// What the operating system says. The log must not be used any more then: what is durable is unknown.
    pub fn commit(&mut self, records: &[Record]) -> io::Result<Vec<Place>> {
        let size: u64 = records.iter().map(|record| record.len() as u64).sum();
        if let Some(record) = records.iter().find(|record| record.payload.len() > RECORD_BYTES_MAX) {
            return Err(io::Error::other(format!("a record of {} bytes is too large", record.payload.len())));
        }
        let current = self.segments.last().expect("a log has a segment");
        if current.end + size > self.segment_bytes.max(size) && current.end > 0 {
            self.start_segment(size)?;
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        let mut bytes = Vec::with_capacity(size as usize);
        let places = write_batch(&mut bytes, batch, records);

        let segment = self.segments.last_mut().expect("a log has a segment");
        segment.file.write_at(&bytes, segment.end)?;
        segment.file.sync()?;
        let places = places
            .into_iter()
            .map(|payload| Place {
                segment: segment.sequence,
                offset: segment.end + payload.start as u64,
                length: payload.len() as u32,
            })
            .collect();
        segment.end += bytes.len() as u64;
        self.note(records);
        Ok(places)
    }

    /// Remembers what the next segment's head must say.
    fn note(&mut self, records: &[Record]) {
        let own = "our own record decodes";
        for record in records {
            match record.kind {
                RecordKind::Head | RecordKind::TruncateFrom => {}
                RecordKind::Entry => {
                    let position: LogPosition = codec::decode("position", &record.payload[..24]).expect(own);
                    let segment = self.segments.last_mut().expect("a log has a segment");
                    segment.last_index = segment.last_index.max(position.index);
                }
                RecordKind::Vote => self.vote = Some(codec::decode("vote", &record.payload).expect(own)),
                RecordKind::Committed => self.committed = codec::decode("committed", &record.payload).expect(own),
                RecordKind::PurgeTo => self.purged = Some(codec::decode("purge", &record.payload).expect(own)),
            }
        }
    }

    fn start_segment(&mut self, room: u64) -> io::Result<()> {
        let sequence = self.segments.last().map_or(1, |segment| segment.sequence + 1);
        let name = segment_name(sequence);
        let size = self.segment_bytes.max(room + 4096);
        // Its own name for a file made here: a preparation that ends just now must not take its place.
        let prepared = self.disk.open(PREPARED).ok().filter(|file| file.size().is_ok_and(|found| found >= size));
        let (file, from) = match prepared {
            Some(file) => (file, PREPARED),
            None => (self.disk.create_zeroed(UNPREPARED, size)?, UNPREPARED),
        };
        let file: Arc<dyn DiskFile> = Arc::from(file);
        self.disk.rename(from, &name)?;
        self.disk.sync_dir()?;
        let head = Head {
            format: FORMAT,
            identity: self.identity,
            sequence,
            vote: self.vote,
            committed: self.committed,
            purged: self.purged,
        };
        let batch = self.next_batch;
        self.next_batch += 1;
        let mut bytes = Vec::new();
        write_batch(&mut bytes, batch, &[Record::new(RecordKind::Head, codec::encode(&head))]);
        file.write_at(&bytes, 0)?;
        file.sync()?;
        self.segments.push(Segment { name, sequence, file, end: bytes.len() as u64, last_index: 0 });
        Ok(())
    }

    /// Makes the file of the next segment, so that its turn costs no wait. Safe to call from another thread.
    pub fn prepare_segment(disk: &dyn Disk, segment_bytes: u64) {
        let exists = disk.open(PREPARED).is_ok_and(|file| file.size().is_ok_and(|size| size >= segment_bytes));
        if !exists {
            // Written under another name first: a half-written one must never be taken.
            let half = "wal-half.tmp";
            if disk.create_zeroed(half, segment_bytes).is_ok() {
                disk.rename(half, PREPARED).ok();
            }
        }
    }

    /// Returns whether the present segment is so full that the next one should be prepared.
    #[must_use]
    pub fn wants_preparation(&self) -> bool {
        self.segments.last().is_some_and(|segment| segment.end > self.segment_bytes / 2)
    }

    /// Removes the oldest segments that hold nothing but purged entries. Call it after the purge is durable. Those that cannot be
    /// removed now are removed another time.
    ///
    /// # Errors
    /// What the operating system says of the directory's sync. The log must not be used any more then: names may be lost that a later
    /// sync does not bring back, and not only those of what was removed.
    pub fn remove_purged(&mut self) -> io::Result<Vec<u64>> {
        let Some(purged) = self.purged else { return Ok(Vec::new()) };
        let mut removed = Vec::new();
        while self.segments.len() > 1 && self.segments[0].last_index <= purged.index {
            // The next segment's head must already say what this one's records said.
            if let Err(error) = self.disk.remove(&self.segments[0].name) {
                error!(%error, segment = self.segments[0].name, "cannot remove an old segment of the log");
                break;
            }
            removed.push(self.segments.remove(0).sequence);
        }
        if !removed.is_empty() {
            self.disk.sync_dir()?;
        }
        Ok(removed)
    }

    /// Returns the files of the segments, for readers.
    #[must_use]
    pub fn files(&self) -> BTreeMap<u64, Arc<dyn DiskFile>> {
        self.segments.iter().map(|segment| (segment.sequence, Arc::clone(&segment.file))).collect()
    }

    /// Returns how many segments there are.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Returns the bytes that the log takes on disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.segments.len() as u64 * self.segment_bytes
    }
}

fn check_continuous(recovered: &Recovered) -> Result<(), WalError> {
    let mut expected = recovered.purged.map(|purged| purged.index + 1);
    for index in recovered.entries.keys() {
        if expected.is_some_and(|expected| expected != *index) {
            return Err(WalError::Hole(format!("entry {} is missing", expected.unwrap_or_default())));
        }
        expected = Some(index + 1);
    }
    Ok(())
}
