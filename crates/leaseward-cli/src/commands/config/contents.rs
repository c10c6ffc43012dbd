//! What the files of a version say, as it comes from the cluster.
//!
//! Must stay true: what is written out was listed, byte for byte, or the command fails; memory for the pieces of a file
//! that are on their way, whatever its size. A secret is opened as a whole: no member takes one of more than
//! [`RENDERED_BYTES_MAX`](leaseward_sync::limits::RENDERED_BYTES_MAX) bytes.

use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use futures_util::stream::{self, LocalBoxStream, StreamExt};
use leaseward_http::model::{FileEntry, FileKind, ManifestListing};
use leaseward_state::config::Digest;
use leaseward_sync::digest_of;
use leaseward_sync::secret::{self, Key, is_sealed};

use super::files::failed;
use crate::diagnostic::Diagnostic;
use crate::printer;
use crate::route::Route;
use crate::session::Session;

/// Small files that are fetched at one time.
const FILES_AT_ONCE: usize = 16;

/// Bytes of the largest file that is fetched before its turn.
const AHEAD_BYTES_MAX: u64 = 1 << 20;

/// Reads a key file, if one is named.
pub(super) fn key_of(path: Option<PathBuf>) -> Result<Option<Key>, Diagnostic> {
    path.map(|path| Key::read(&path)).transpose().map_err(|error| Diagnostic::new(error.code(), error.to_string()))
}

/// Returns what a file says, with the key of its set if it has one.
pub(super) fn opened(key: Option<&Key>, path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Diagnostic> {
    match key {
        Some(key) => key.open(path, bytes).map_err(|error| Diagnostic::new(error.code(), error.to_string())),
        None => Ok(bytes),
    }
}

/// Returns the bytes of a listed file, if they are those that were listed.
pub(super) async fn file(session: &Session, set: &str, version: u64, entry: &FileEntry) -> Result<Vec<u8>, Diagnostic> {
    let bytes = session.api.get_bytes(Route::file(set, version, &entry.path)?).await?;
    is_listed(set, version, entry, digest_of(&bytes))?;
    Ok(bytes)
}

fn is_listed(set: &str, version: u64, entry: &FileEntry, came: Digest) -> Result<(), Diagnostic> {
    if entry.digest.as_deref() == Some(came.to_string().as_str()) {
        return Ok(());
    }
    Err(Diagnostic::new("LW0802", format!("{}: what came is not what {set} v{version} holds", entry.path))
        .hint("--addr host:port      ask another node"))
}

/// Prints what a file says.
pub(super) async fn show(
    session: &Session,
    (set, version): (&str, u64),
    path: &str,
    key: Option<&Key>,
) -> Result<(), Diagnostic> {
    // What is opened or shown on a terminal is looked at as a whole; the rest goes by.
    let is_whole = key.is_some() || stdout().is_terminal();
    let (mut first, mut is_begun) = (Vec::new(), false);
    let look = |first: &[u8]| match key {
        None if is_sealed(first) => {
            let why = Diagnostic::new("LW0804", format!("{path} is encrypted"));
            Err(why.hint("--key FILE      show it with the set's key"))
        }
        _ => Ok(()),
    };
    let mut take = |piece: &[u8]| {
        if is_begun {
            printer::bytes(piece);
            return Ok(());
        }
        first.extend_from_slice(piece);
        if !is_whole && first.len() as u64 >= secret::MORE_BYTES {
            look(&first)?;
            printer::bytes(&first);
            (first, is_begun) = (Vec::new(), true);
        }
        Ok(())
    };
    session.api.download(Route::file(set, version, path)?, &mut take).await?;
    look(&first)?;
    printer::content(&opened(key, path, first)?);
    Ok(())
}

fn is_ahead(entry: &FileEntry) -> bool {
    entry.size.is_none_or(|size| size <= AHEAD_BYTES_MAX)
}

/// The files of a version, each once and in the order of their paths.
pub(super) struct Contents<'a> {
    session: &'a Session,
    set: &'a str,
    version: u64,
    key: Option<&'a Key>,
    /// The small ones, some of them ahead of their turn.
    small: LocalBoxStream<'a, Result<Vec<u8>, Diagnostic>>,
}

impl<'a> Contents<'a> {
    /// Begins to fetch them.
    pub(super) fn of(
        session: &'a Session,
        (set, version): (&'a str, u64),
        listing: &'a ManifestListing,
        key: Option<&'a Key>,
    ) -> Self {
        let files = listing.entries.iter().filter(|entry| entry.kind == FileKind::File && is_ahead(entry));
        let small = stream::iter(files).map(move |entry| file(session, set, version, entry)).buffered(FILES_AT_ONCE);
        Self { session, set, version, key, small: small.boxed_local() }
    }

    /// Returns how many bytes are written for a file.
    pub(super) fn size(&self, entry: &FileEntry) -> u64 {
        let size = entry.size.unwrap_or(0);
        if self.key.is_some() { size.saturating_sub(secret::MORE_BYTES) } else { size }
    }

    /// Writes the next file.
    pub(super) async fn write(
        &mut self,
        entry: &FileEntry,
        out: &mut dyn Write,
        place: &Path,
    ) -> Result<(), Diagnostic> {
        if !is_ahead(entry) && self.key.is_none() {
            return self.stream(entry, out, place).await;
        }
        let bytes = if is_ahead(entry) {
            let none = || Diagnostic::new("LW0701", format!("{}: it did not come", entry.path));
            self.small.next().await.ok_or_else(none)??
        } else {
            let mut bytes = Vec::new();
            self.stream(entry, &mut bytes, place).await?;
            bytes
        };
        out.write_all(&opened(self.key, &entry.path, bytes)?).map_err(failed(place))
    }

    async fn stream(&self, entry: &FileEntry, out: &mut dyn Write, place: &Path) -> Result<(), Diagnostic> {
        let mut hasher = blake3::Hasher::new();
        let mut take = |piece: &[u8]| {
            hasher.update(piece);
            out.write_all(piece).map_err(failed(place))
        };
        self.session.api.download(Route::file(self.set, self.version, &entry.path)?, &mut take).await?;
        is_listed(self.set, self.version, entry, Digest(*hasher.finalize().as_bytes()))
    }
}
