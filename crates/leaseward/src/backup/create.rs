//! Making a backup on a voter, piece by piece, while the cluster goes on.
//!
//! Must stay true: it is one moment of the state, as new as the question; blobs of that moment are promised to us before
//! we count on them, so that none is collected on the way; memory holds a few pieces and the names of blobs, whatever the
//! size. An error ends the stream without its end, so nobody takes it for whole.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;

use leaseward_raft::clock::wall_millis;
use leaseward_state::config::Version;
use leaseward_state::{Revision, State, UnixMillis};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::format::{Head, Writer};
use crate::content::QuorumContent;
use crate::error::Result;

/// Bytes of a piece.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces that wait for who reads them.
const PIECES_WAITING: usize = 4;

/// A backup on its way.
#[derive(Debug)]
pub struct Backup {
    /// The last revision that is in it.
    pub revision: Revision,
    /// Its bytes, piece by piece. An error is the last one.
    pub pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
}

impl QuorumContent {
    /// Returns a backup of the cluster as it is now. Dropping it ends the making of it.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] if nobody leads.
    pub async fn backup(&self) -> Result<Backup> {
        let state = self.replica().read().await?.state;
        let head = Head {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.replica().cluster(),
            generation: state.generation(),
            revision: state.revision(),
            feature_level: state.feature_level(),
            at: UnixMillis(wall_millis()),
        };
        let (send, pieces) = mpsc::channel(PIECES_WAITING);
        let (content, handle, revision) = (self.clone(), Handle::current(), state.revision());
        tokio::task::spawn_blocking(move || {
            let pieces = Pieces { send: send.clone(), piece: Vec::new() };
            match content.write_backup(pieces, &head, &state, &handle) {
                Ok(()) => info!(%revision, "made a backup"),
                Err(error) => {
                    warn!(%revision, %error, "a backup was not made");
                    send.blocking_send(Err(error)).ok();
                }
            }
        });
        Ok(Backup { revision, pieces })
    }

    fn write_backup(&self, out: Pieces, head: &Head, state: &Arc<State>, handle: &Handle) -> io::Result<()> {
        let mut writer = Writer::new(out, head)?;
        for record in state.records() {
            writer.record(&record)?;
        }
        let mut written = HashSet::new();
        for (_, set) in state.sets() {
            // Ascending, so that what a delta builds on is here before it.
            for version in set.versions.values() {
                if !written.contains(&version.manifest) {
                    self.write_version(&mut writer, version, &mut written, handle)?;
                }
            }
        }
        writer.finish()?.flush_last()
    }

    fn write_version(
        &self,
        writer: &mut Writer<Pieces>,
        version: &Version,
        written: &mut HashSet<leaseward_state::config::Digest>,
        handle: &Handle,
    ) -> io::Result<()> {
        let failed = |error: crate::Error| io::Error::other(error.to_string());
        handle.block_on(self.version(version, None)).map_err(failed)?;
        let tree = handle.block_on(self.manifest(version.manifest)).map_err(failed)?;
        for digest in std::iter::once(version.manifest).chain(tree.chunk_names()) {
            if !written.insert(digest) {
                continue;
            }
            let stored = match self.store().get_frame(digest) {
                Ok(stored) => stored,
                // Damaged here: another voter has it.
                Err(_) => {
                    handle.block_on(self.get(digest)).map_err(failed)?;
                    self.store().get_frame(digest).map_err(|error| io::Error::other(error.to_string()))?
                }
            };
            writer.blob(digest, &stored)?;
        }
        Ok(())
    }
}

/// Gathers bytes into pieces, and waits while nobody takes them.
struct Pieces {
    send: mpsc::Sender<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody takes the backup any more");
        self.send.blocking_send(Ok(piece)).map_err(gone)
    }

    fn flush_last(mut self) -> io::Result<()> {
        if self.piece.is_empty() { Ok(()) } else { self.send() }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE_BYTES {
            self.send()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
