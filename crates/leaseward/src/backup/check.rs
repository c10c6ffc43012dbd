//! Reading a whole backup: does it hold what it says, and everything that a cluster needs?
//!
//! Must stay true: it holds if and only if a restore of it would: records that make a state, every manifest that a kept
//! version names, every chunk that those name, each of them the bytes that its name says. Names are kept in memory, bytes
//! are not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use leaseward_raft::life::Life;
use leaseward_state::State;
use leaseward_state::config::Digest;
use leaseward_state::record::{Record, RecordKey};
use leaseward_sync::{frame, manifest};

use super::format::{BackupError, Head, Part, Reader};

/// What a backup that is whole holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// What it says of itself.
    pub head: Head,
    /// Records of the state.
    pub records: u64,
    /// Config sets.
    pub sets: u64,
    /// Versions of them.
    pub versions: u64,
    /// Servers.
    pub servers: u64,
    /// Leases that somebody held.
    pub leases: u64,
    /// Manifests and chunks.
    pub blobs: u64,
    /// Their plain bytes.
    pub bytes: u64,
}

/// Reads a backup to its end and checks all of it. Blocks.
///
/// # Errors
/// [`BackupError`], with the first thing that is wrong.
pub fn verify(file: &Path) -> Result<Contents, BackupError> {
    let named = |error| BackupError::Io(std::io::Error::other(format!("{}: {error}", file.display())));
    read(BufReader::with_capacity(1 << 20, File::open(file).map_err(named)?), file, |_| Ok(()))
        .map(|(contents, _)| contents)
}

/// Reads and checks all of it, and shows some blobs at a time in their stored form.
pub(super) fn read(
    from: impl Read,
    origin: &Path,
    mut keep: impl FnMut(Vec<(Digest, Vec<u8>)>) -> Result<(), BackupError>,
) -> Result<(Contents, State), BackupError> {
    let (mut reader, head) = Reader::open(from)?;
    let mut records: Vec<(RecordKey, Record)> = Vec::new();
    let mut state: Option<State> = None;
    let (mut manifests, mut needed, mut found) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut bytes, mut kept, mut waiting) = (0, Vec::new(), 0);
    while let Some(part) = reader.next()? {
        match part {
            Part::Record(record) if state.is_none() => records.push(*record),
            Part::Record(_) => return Err(BackupError::NotWhole("a record stands among the blobs".into())),
            Part::Blob(digest, stored) => {
                if state.is_none() {
                    let whole = whole_state(std::mem::take(&mut records), &head)?;
                    manifests = manifests_of(&whole);
                    state = Some(whole);
                }
                let plain = frame::unpack(digest, &stored, origin)
                    .map_err(|error| BackupError::NotWhole(format!("blob {digest}: {error}")))?;
                if manifests.contains(&digest) {
                    let tree = manifest::decode(&plain)
                        .map_err(|error| BackupError::NotWhole(format!("manifest {digest}: {error}")))?;
                    needed.extend(tree.chunks().map(|chunk| chunk.digest));
                }
                bytes += plain.len() as u64;
                found.insert(digest);
                waiting += stored.len();
                kept.push((digest, stored));
                if waiting > KEPT_BYTES_MAX || kept.len() >= KEPT_MAX {
                    keep(std::mem::take(&mut kept))?;
                    waiting = 0;
                }
            }
        }
    }
    keep(kept)?;
    let state = match state {
        Some(state) => state,
        None => whole_state(records, &head)?,
    };
    needed.extend(manifests_of(&state));
    let missing: Vec<_> = needed.difference(&found).collect();
    if let Some(first) = missing.first() {
        let why =
            format!("{} of {} blobs that its versions name are missing, first: {first}", missing.len(), needed.len());
        return Err(BackupError::NotWhole(why));
    }
    let contents = Contents {
        head,
        records: state.keys().count() as u64,
        sets: state.sets().count() as u64,
        versions: state.sets().map(|(_, set)| set.versions.len() as u64).sum(),
        servers: state.servers().count() as u64,
        leases: state.leases().filter(|(_, lease)| lease.grant().is_some()).count() as u64,
        blobs: found.len() as u64,
        bytes,
    };
    Ok((contents, state))
}

/// Blobs that are shown at a time: as many as one wait for the disk is good for.
const KEPT_MAX: usize = 512;
const KEPT_BYTES_MAX: usize = 8 << 20;

fn whole_state(records: Vec<(RecordKey, Record)>, head: &Head) -> Result<State, BackupError> {
    let state = State::restore(records).map_err(|error| BackupError::NotWhole(error.to_string()))?;
    let says = (head.revision, head.generation, head.feature_level);
    if (state.revision(), state.generation(), state.feature_level()) != says
        || Life::of(head.cluster).generation() != head.generation
    {
        return Err(BackupError::NotWhole("its head and its records contradict each other".into()));
    }
    Ok(state)
}

fn manifests_of(state: &State) -> BTreeSet<Digest> {
    state.sets().flat_map(|(_, set)| set.versions.values().map(|version| version.manifest)).collect()
}
