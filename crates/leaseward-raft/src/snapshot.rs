//! Snapshots: the whole state in one file, record by record, named by the last entry in it.
//!
//! Must stay true: a file has its final name only when it is whole and durable (temporary name, checksum, fsync,
//! rename, fsync of the directory); the newest valid one is loaded at boot by us; the log is purged only behind a
//! durable one. Blobs of config sets are not in it, only their names.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use leaseward_state::State;
use leaseward_state::record::{Record, RecordKey};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::codec::{self, CodecError, ENVELOPE_BYTES, Kind};
use crate::limits::{SNAPSHOTS_KEPT, STATE_RECORD_BYTES_MAX};
use crate::store::AppliedTo;

const HEAD: Kind = Kind { name: "snapshot head", code: 0x30, version: 1, max: 1 << 20 };
const RECORD: Kind = Kind { name: "snapshot record", code: 0x31, version: 1, max: STATE_RECORD_BYTES_MAX };
const END: Kind = Kind { name: "snapshot end", code: 0x32, version: 1, max: 64 };

/// A whole snapshot on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// What a snapshot says before its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// The cluster it belongs to.
    pub cluster: u128,
    /// How far the log is applied in it.
    pub applied: AppliedTo,
    /// How many records follow.
    pub records: u64,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The operating system refused.
    #[error("the snapshot cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// It is damaged or of a newer version.
    #[error("the snapshot is not usable: {0}")]
    Codec(#[from] CodecError),
    /// It is of another cluster, or its records do not make a state.
    #[error("the snapshot is not usable: {0}")]
    Unfit(String),
}

impl SnapshotError {
    /// Returns whether there was no room for it.
    #[must_use]
    pub fn is_for_room(&self) -> bool {
        let no_room = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Io(error) if no_room.contains(&error.kind()))
    }
}

/// The snapshots of one node.
#[derive(Debug, Clone)]
pub struct Snapshots {
    dir: PathBuf,
    cluster: u128,
    /// Makes the names in a directory durable. Another one in tests.
    sync_names: fn(&Path) -> io::Result<()>,
}

fn sync_names(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Snapshots {
    /// Returns the snapshots in `dir`, made if need be.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(dir: &Path, cluster: u128) -> io::Result<Self> {
        Self::open_with(dir, cluster, sync_names)
    }

    fn open_with(dir: &Path, cluster: u128, sync_names: fn(&Path) -> io::Result<()>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // Whoever named what is here may have died before the name was durable, and the log is purged behind it.
        sync_names(dir)?;
        let snapshots = Self { dir: dir.to_owned(), cluster, sync_names };
        snapshots.forget_half()?;
        Ok(snapshots)
    }

    /// The one that is being written.
    fn temporary(&self) -> PathBuf {
        self.dir.join("writing.tmp")
    }

    /// Gives back the room of one that was never whole.
    fn forget_half(&self) -> io::Result<()> {
        match fs::remove_file(self.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes a snapshot and makes it durable. Forgets all but the newest few.
    ///
    /// # Errors
    /// [`SnapshotError::Io`]; then the older ones are still there, and it takes no room.
    pub fn write(&self, state: &State, applied: &AppliedTo) -> Result<SnapshotFile, SnapshotError> {
        let written = self.write_whole(state, applied);
        if written.is_err() {
            self.forget_half().ok();
        }
        written
    }

    fn write_whole(&self, state: &State, applied: &AppliedTo) -> Result<SnapshotFile, SnapshotError> {
        let temporary = self.temporary();
        let file = File::create(&temporary)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let head =
            SnapshotHead { cluster: self.cluster, applied: applied.clone(), records: state.keys().count() as u64 };
        out.write_all(&codec::seal(HEAD, &codec::encode(&head)))?;
        for record in state.records() {
            out.write_all(&codec::seal(RECORD, &codec::encode(&record)))?;
        }
        out.write_all(&codec::seal(END, &codec::encode(&head.records)))?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let snapshot = self.adopt(&temporary, applied)?;
        Ok(snapshot)
    }

    /// Gives a whole and durable file its final name.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn adopt(&self, temporary: &Path, applied: &AppliedTo) -> io::Result<SnapshotFile> {
        let (term, index) = applied.position.map_or((0, 0), |position| (position.term, position.index));
        let path = self.dir.join(format!("snapshot-{index:020}-{term:020}.lws"));
        fs::rename(temporary, &path)?;
        if let Err(error) = (self.sync_names)(&self.dir) {
            // Nobody may find it and count on it: the next sync would prove nothing.
            fs::remove_file(&path).ok();
            return Err(error);
        }
        let names = self.names()?;
        for old in &names[..names.len().saturating_sub(SNAPSHOTS_KEPT)] {
            fs::remove_file(self.dir.join(old))?;
        }
        let size = fs::metadata(&path)?.len();
        Ok(SnapshotFile { path, size })
    }

    /// Returns where a snapshot that comes from a peer is gathered. The name of the transfer is part of it, so that
    /// it can be resumed.
    #[must_use]
    pub fn incoming(&self, transfer: &str) -> PathBuf {
        self.dir.join(format!("incoming-{transfer}.part"))
    }

    /// Forgets gathered pieces of other transfers.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn forget_incoming(&self, keep: &str) -> io::Result<()> {
        let keep = self.incoming(keep);
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path != keep && path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Returns the newest snapshot that is whole, with what it holds. Damaged ones are passed over with a warning.
    ///
    /// # Errors
    /// What the operating system says of the directory.
    pub fn newest(&self) -> io::Result<Option<(SnapshotFile, SnapshotHead, State)>> {
        for name in self.names()?.iter().rev() {
            let path = self.dir.join(name);
            match self.read(&path) {
                Ok((head, state)) => {
                    let size = fs::metadata(&path)?.len();
                    return Ok(Some((SnapshotFile { path, size }, head, state)));
                }
                Err(error) => warn!(snapshot = name, %error, "passed over a snapshot"),
            }
        }
        Ok(None)
    }

    /// Returns the newest snapshot with its head alone, without looking at its records.
    ///
    /// # Errors
    /// What the operating system says of the directory.
    pub fn newest_head(&self) -> io::Result<Option<(SnapshotFile, SnapshotHead)>> {
        for name in self.names()?.iter().rev() {
            let path = self.dir.join(name);
            let head = File::open(&path)
                .map_err(SnapshotError::Io)
                .and_then(|mut file| Ok(codec::decode::<SnapshotHead>(HEAD.name, &read_envelope(&mut file, HEAD)?)?));
            if let Ok(head) = head {
                let size = fs::metadata(&path)?.len();
                return Ok(Some((SnapshotFile { path, size }, head)));
            }
        }
        Ok(None)
    }

    /// Returns what a snapshot holds.
    ///
    /// # Errors
    /// [`SnapshotError`], with what is wrong with it.
    pub fn read(&self, path: &Path) -> Result<(SnapshotHead, State), SnapshotError> {
        let mut from = BufReader::with_capacity(1 << 20, File::open(path)?);
        let head: SnapshotHead = codec::decode(HEAD.name, &read_envelope(&mut from, HEAD)?)?;
        if head.cluster != self.cluster {
            return Err(SnapshotError::Unfit(format!("it belongs to cluster {:032x}", head.cluster)));
        }
        let mut records: Vec<(RecordKey, Record)> = Vec::new();
        for _ in 0..head.records {
            records.push(codec::decode(RECORD.name, &read_envelope(&mut from, RECORD)?)?);
        }
        let ended: u64 = codec::decode(END.name, &read_envelope(&mut from, END)?)?;
        if ended != head.records || from.read(&mut [0])? != 0 {
            return Err(SnapshotError::Codec(CodecError::Damaged(END.name)));
        }
        let state = State::restore(records).map_err(|error| SnapshotError::Unfit(error.to_string()))?;
        Ok((head, state))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("snapshot-") && name.ends_with(".lws") {
                names.push(name);
            }
        }
        // Indices are zero-padded, so the order of names is the order of time.
        names.sort();
        Ok(names)
    }
}

fn read_envelope(from: &mut impl Read, kind: Kind) -> Result<Vec<u8>, SnapshotError> {
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Codec(CodecError::Damaged(kind.name)),
        _ => SnapshotError::Io(error),
    };
    let mut head = [0; ENVELOPE_BYTES];
    from.read_exact(&mut head).map_err(cut)?;
    let mut payload = vec![0; codec::open_head(kind, &head)?];
    from.read_exact(&mut payload).map_err(cut)?;
    codec::open_body(kind, &head, &payload)?;
    Ok(payload)
}

#[cfg(test)]
impl Snapshots {
    /// Returns it with a disk that is full when the next one is written, and has room then.
    pub(crate) fn without_room_once(self) -> Self {
        use std::sync::atomic::{AtomicBool, Ordering};
        static FULL: AtomicBool = AtomicBool::new(true);
        let sync_names = |dir: &Path| match FULL.swap(false, Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => sync_names(dir),
        };
        Self { sync_names, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored::LogPosition;

    fn broken(_: &Path) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(5))
    }

    #[test]
    fn a_snapshot_whose_name_is_not_durable_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |index| AppliedTo { position: Some(LogPosition { term: 1, node: 1, index }), ..AppliedTo::default() };
        let newest = |snapshots: &Snapshots| {
            let found = snapshots.newest_head().unwrap();
            found.and_then(|(_, head)| head.applied.position).map(|position| position.index)
        };
        let snapshots = Snapshots::open(dir.path(), 5).unwrap();
        snapshots.write(&State::default(), &at(3)).unwrap();
        let failing = Snapshots { sync_names: broken, ..snapshots.clone() };
        failing.write(&State::default(), &at(9)).unwrap_err();
        assert_eq!(newest(&snapshots), Some(3));
        snapshots.write(&State::default(), &at(9)).unwrap();
        assert_eq!(newest(&snapshots), Some(9));
        // What somebody left who died is believed once its name is durable.
        Snapshots::open_with(dir.path(), 5, broken).unwrap_err();
    }
}
