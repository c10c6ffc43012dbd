//! The file: one zstd stream of envelopes. First the head, then each record of the state, then each blob in its stored
//! form, then the end with the counts. Behind the stream stands the blake3 hash of every byte before it.
//!
//! Must stay true: nothing of it is believed before its checksum, nothing is restored before the end was read and its
//! hash is right; the reader allocates no more than a bound for a hostile file. A stored form: it grows by versions of
//! the envelopes only.

use std::io::{self, Read, Write};

use blake3::Hasher;
use leaseward_raft::codec::{self, CodecError, ENVELOPE_BYTES, Kind};
use leaseward_raft::limits::STATE_RECORD_BYTES_MAX;
use leaseward_state::config::Digest;
use leaseward_state::record::{Record, RecordKey};
use leaseward_state::{Generation, Revision, UnixMillis};
use leaseward_sync::frame::FRAME_BYTES_MAX;
use serde::{Deserialize, Serialize};

const HEAD: Kind = Kind { name: "backup head", code: 0x50, version: 1, max: 64 << 10 };
const RECORD: Kind = Kind { name: "backup record", code: 0x51, version: 1, max: STATE_RECORD_BYTES_MAX };
const BLOB: Kind = Kind { name: "backup blob", code: 0x52, version: 1, max: FRAME_BYTES_MAX + DIGEST_BYTES };
const END: Kind = Kind { name: "backup end", code: 0x53, version: 1, max: 256 };

const DIGEST_BYTES: usize = 32;

/// Blobs are compressed already; records compress well at any level.
const ZSTD_LEVEL: i32 = 1;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The version of the program that wrote it.
    pub version: String,
    /// The cluster.
    pub cluster: u128,
    /// How often it was restored by then.
    pub generation: Generation,
    /// The last revision that is in it.
    pub revision: Revision,
    /// What a node must be able to read.
    pub feature_level: u32,
    /// When it was made, by the wall clock of the voter that made it.
    pub at: UnixMillis,
}

/// What stands at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    records: u64,
    blobs: u64,
}

/// Why a backup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The operating system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is cut off, changed, or lacks something.
    #[error("the backup is not whole: {0}")]
    NotWhole(String),
    /// It was made by a newer version.
    #[error("the backup was made by a newer version: {0}")]
    Newer(String),
    /// The directory cannot be made a voter's.
    #[error("{why}")]
    Directory {
        /// The stable code.
        code: String,
        /// The reason.
        why: String,
    },
}

impl BackupError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::StorageFull => "LW0605",
            Self::Io(_) => "LW0600",
            Self::NotWhole(_) => "LW0615",
            Self::Newer(_) => "LW0601",
            Self::Directory { code, .. } => code,
        }
    }
}

fn not_whole(error: CodecError) -> BackupError {
    match error {
        CodecError::Newer { .. } => BackupError::Newer(error.to_string()),
        other => BackupError::NotWhole(other.to_string()),
    }
}

/// Writes a backup.
pub(super) struct Writer<W: Write> {
    out: zstd::stream::write::Encoder<'static, Hashing<W>>,
    records: u64,
    blobs: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, head: &Head) -> io::Result<Self> {
        let out = zstd::stream::write::Encoder::new(Hashing { out, hasher: Hasher::new() }, ZSTD_LEVEL)?;
        let mut writer = Self { out, records: 0, blobs: 0 };
        writer.put(HEAD, &codec::encode(head))?;
        Ok(writer)
    }

    pub(super) fn record(&mut self, record: &(RecordKey, Record)) -> io::Result<()> {
        self.records += 1;
        self.put(RECORD, &codec::encode(record))
    }

    pub(super) fn blob(&mut self, digest: Digest, frame: &[u8]) -> io::Result<()> {
        self.blobs += 1;
        self.put(BLOB, &[&digest.0, frame].concat())
    }

    /// Writes the end. Returns what was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let end = End { records: self.records, blobs: self.blobs };
        self.put(END, &codec::encode(&end))?;
        let Hashing { mut out, hasher } = self.out.finish()?;
        out.write_all(hasher.finalize().as_bytes())?;
        Ok(out)
    }

    fn put(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.out.write_all(&codec::seal(kind, payload))
    }
}

/// Hashes what goes through it.
struct Hashing<W> {
    out: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Holds the last bytes back, which are the hash of the others, and looks at the end whether they are.
struct Hashed<R> {
    from: R,
    hasher: Hasher,
    held: Vec<u8>,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let mut more = vec![0; into.len()];
        loop {
            let came = match self.from.read(&mut more) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if came == 0 {
                return match self.held == self.hasher.finalize().as_bytes() {
                    true => Ok(0),
                    false => Err(io::Error::new(io::ErrorKind::InvalidData, WRONG_HASH)),
                };
            }
            self.held.extend_from_slice(&more[..came]);
            // Never more than came now, so it fits.
            let free = self.held.len().saturating_sub(DIGEST_BYTES);
            if free > 0 {
                let taken = free.min(into.len());
                into[..taken].copy_from_slice(&self.held[..taken]);
                self.hasher.update(&self.held[..taken]);
                self.held.drain(..taken);
                return Ok(taken);
            }
        }
    }
}

const WRONG_HASH: &str = "its hash is wrong: it was changed or cut off";

/// A part of a backup.
#[derive(Debug)]
pub(super) enum Part {
    Record(Box<(RecordKey, Record)>),
    Blob(Digest, Vec<u8>),
}

/// Reads a backup, part by part.
pub(super) struct Reader<'a> {
    from: Box<dyn Read + 'a>,
    records: u64,
    blobs: u64,
}

impl<'a> Reader<'a> {
    /// Reads the head.
    pub(super) fn open(from: impl Read + 'a) -> Result<(Self, Head), BackupError> {
        let hashed = Hashed { from, hasher: Hasher::new(), held: Vec::new() };
        let decoder = zstd::stream::read::Decoder::new(hashed)?;
        let mut reader = Self { from: Box::new(decoder), records: 0, blobs: 0 };
        let (head, payload) = reader.envelope()?;
        codec::open_head(HEAD, &head).map_err(not_whole)?;
        Ok((reader, codec::decode(HEAD.name, &payload).map_err(not_whole)?))
    }

    /// Returns the next part; `None` after the end, whose counts and hash are right.
    pub(super) fn next(&mut self) -> Result<Option<Part>, BackupError> {
        let (head, payload) = self.envelope()?;
        match head[1] {
            code if code == RECORD.code => {
                self.records += 1;
                Ok(Some(Part::Record(Box::new(codec::decode(RECORD.name, &payload).map_err(not_whole)?))))
            }
            code if code == BLOB.code => {
                self.blobs += 1;
                let (digest, frame) = payload
                    .split_first_chunk::<DIGEST_BYTES>()
                    .ok_or_else(|| BackupError::NotWhole("a blob has no name".into()))?;
                Ok(Some(Part::Blob(Digest(*digest), frame.to_vec())))
            }
            code if code == END.code => {
                let end: End = codec::decode(END.name, &payload).map_err(not_whole)?;
                if (end.records, end.blobs) != (self.records, self.blobs) {
                    return Err(BackupError::NotWhole("its counts are wrong".into()));
                }
                // Here the hash is looked at.
                match self.from.read(&mut [0]).map_err(cut)? {
                    0 => Ok(None),
                    _ => Err(BackupError::NotWhole("something stands behind its end".into())),
                }
            }
            other => Err(BackupError::NotWhole(format!("a part of the unknown kind {other:#x}"))),
        }
    }

    fn envelope(&mut self) -> Result<([u8; ENVELOPE_BYTES], Vec<u8>), BackupError> {
        let mut head = [0; ENVELOPE_BYTES];
        self.from.read_exact(&mut head).map_err(cut)?;
        let kind = [RECORD, BLOB, END].into_iter().find(|kind| kind.code == head[1]).unwrap_or(HEAD);
        let mut payload = vec![0; codec::open_head(kind, &head).map_err(not_whole)?];
        self.from.read_exact(&mut payload).map_err(cut)?;
        codec::open_body(kind, &head, &payload).map_err(not_whole)?;
        Ok((head, payload))
    }
}

/// A stream that ends early, or does not decompress, is damage; the rest is the operating system's.
fn cut(error: io::Error) -> BackupError {
    if error.raw_os_error().is_some() {
        return BackupError::Io(error);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::NotWhole("it ends early".into()),
        io::ErrorKind::InvalidData => BackupError::NotWhole(error.to_string()),
        _ => BackupError::NotWhole(format!("it does not decompress: {error}")),
    }
}
