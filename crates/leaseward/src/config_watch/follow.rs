//! One file of a config set, as the cluster has it for programs: hears of versions and fetches the file.
//!
//! Must stay true: every byte is verified by its name; what is held in memory is bounded, whatever a voter sends; idle, it
//! asks once in ten seconds, and a voter that is silent is left for the one with which renewals are exchanged.
//! Left out on purpose: layers. A program gets the file as it was published for all; links are not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use leaseward_raft::net::connection::CallError;
use leaseward_raft::net::wire::{Answer, Ask, SetView};
use leaseward_state::config::{Chunk, Digest, Manifest, ManifestNode};
use leaseward_state::{Revision, SetName};
use leaseward_sync::limits::{BLOB_BYTES_MAX, CORRUPT_TRIES, FRAMES_ASKED_MAX};
use leaseward_sync::member::{Blob, GivenBy, Source};
use leaseward_sync::{digest_of, frame, manifest};
use tokio::time::{interval, sleep};
use tracing::debug;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::limits::{CONFIG_FILE_BYTES_MAX, CONFIG_RETRY, VIEW_WITHIN, WRITE_WITHIN};
use crate::source::FromVoters;

/// How often it is looked whether renewals go to another node by now. Nothing is asked for it.
const LOOK_EACH: Duration = Duration::from_millis(250);

/// What a version has for a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The file.
    File(FileAt),
    /// Nothing that it could use, with code and reason.
    Unusable(&'static str, String),
}

/// A file in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileAt {
    pub(crate) digest: Digest,
    size: u64,
    chunks: Vec<Chunk>,
}

/// Follows one file.
pub(crate) struct Follow {
    client: Client,
    source: FromVoters,
    set: SetName,
    path: String,
    known: Revision,
    /// The newest that was ever known: of a set that is gone nothing is, and a voter that is behind still has it.
    newest: Revision,
    /// The manifest that was looked at last, and what it has: a set changes more often than its content.
    looked_at: Option<(Digest, Found)>,
}

impl Follow {
    pub(crate) fn new(client: Client, set: SetName, path: String) -> Self {
        let source = FromVoters::of(&client);
        Self { client, source, set, path, known: Revision(0), newest: Revision(0), looked_at: None }
    }

    /// Returns the set as it is now.
    ///
    /// # Errors
    /// [`Error`], if nobody can say it.
    pub(crate) async fn now(&self) -> Result<SetView> {
        let ask = Ask::Set { set: self.set.clone(), known: None };
        match self.client.ask(&ask, WRITE_WITHIN).await? {
            Answer::Set(view) => Ok(view),
            other => Err(Error::Failed { code: "LW0701".into(), why: format!("a strange answer: {other:?}") }),
        }
    }

    /// Waits until the set is another one than what was [`Follow::done`] with. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Failed`] if the cluster refuses to speak with this program.
    pub(crate) async fn news(&self) -> Result<SetView> {
        let ask = Ask::Set { set: self.set.clone(), known: Some(self.known) };
        let mut pause = CONFIG_RETRY.0;
        loop {
            let turn = self.client.turn();
            let answer = tokio::select! {
                answer = self.client.ask_once(&ask, VIEW_WITHIN) => answer,
                () = self.moved_on(turn) => continue,
            };
            match answer {
                Ok(Answer::Set(view)) => {
                    // A voter that is behind must not take us back; a set that is gone has no revision.
                    if is_news(view.revision, self.known, self.newest) {
                        return Ok(view);
                    }
                    if view.revision <= self.known {
                        pause = CONFIG_RETRY.0;
                        continue;
                    }
                    debug!(set = %self.set, "a voter has not heard that the set is gone");
                    self.client.rotate().await;
                }
                // It speaks another protocol, and will tomorrow. Other refusals are those of a node that stops.
                Err(CallError::Refused { code, why }) if code == "LW0703" => return Err(Error::Failed { code, why }),
                Ok(other) => {
                    debug!(set = %self.set, ?other, "a voter cannot say what programs should have");
                    self.client.rotate().await;
                }
                Err(error) => debug!(set = %self.set, %error, "no voter says what programs should have"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(CONFIG_RETRY.1);
        }
    }

    /// Says that a view has been dealt with: the next news are later ones.
    pub(crate) fn done(&mut self, view: &SetView) {
        self.known = view.revision;
        self.newest = self.newest.max(view.revision);
    }

    /// Waits until the client speaks with another node than it did.
    async fn moved_on(&self, turn: usize) {
        let mut look = interval(LOOK_EACH);
        while self.client.turn() == turn {
            look.tick().await;
        }
    }

    /// Returns what a version has for this program. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Failed`] if nobody gives its manifest now.
    pub(crate) async fn find(&mut self, view: &SetView, version: Digest) -> Result<Found> {
        if view.spec.templates || view.spec.key.is_some() {
            let what =
                if view.spec.key.is_some() { "is encrypted" } else { "is filled in from templates on each machine" };
            let why = format!("config/{} {what}: a program would get what nobody else has", self.set);
            return Ok(Found::Unusable("LW0814", why));
        }
        if let Some((digest, found)) = &self.looked_at
            && *digest == version
        {
            return Ok(found.clone());
        }
        let found = match manifest::decode(&self.blob(version).await?) {
            Ok(tree) => look(&tree, &self.path),
            Err(error) => Found::Unusable(error.code(), error.to_string()),
        };
        self.looked_at = Some((version, found.clone()));
        Ok(found)
    }

    /// Fetches a file and verifies it. Cancel safe.
    ///
    /// # Errors
    /// [`Error::Failed`] if nobody gives it now.
    pub(crate) async fn fetch(&self, file: &FileAt) -> Result<Vec<u8>> {
        let pieces = self.blobs(file.chunks.iter().map(|chunk| chunk.digest).collect(), CONFIG_FILE_BYTES_MAX).await?;
        joined(file, &pieces).ok_or_else(|| {
            let why = format!("the pieces of `{}` in config/{} do not make it", self.path, self.set);
            Error::Failed { code: "LW0802".into(), why }
        })
    }

    async fn blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let mut got = self.blobs(BTreeSet::from([digest]), BLOB_BYTES_MAX as u64).await?;
        Ok(got.remove(&digest).unwrap_or_default())
    }

    /// Fetches blobs and verifies them. All of them together have at most so many bytes.
    async fn blobs(&self, wanted: BTreeSet<Digest>, bytes_max: u64) -> Result<BTreeMap<Digest, Vec<u8>>> {
        let failed = |code: &str, why: String| Error::Failed { code: code.to_owned(), why };
        let mut left: Vec<Digest> = wanted.into_iter().collect();
        let mut got = BTreeMap::new();
        let (mut turn, mut all) = (0, 0);
        while !left.is_empty() {
            let some = &left[..left.len().min(FRAMES_ASKED_MAX)];
            let asked = self.source.fetch_many(some, turn).await;
            let GivenBy { who, given } = asked.map_err(|error| failed("LW0801", error.to_string()))?;
            if given.is_empty() {
                return Err(failed("LW0801", format!("{who} gives nothing of it")));
            }
            for (digest, blob) in given {
                match opened(digest, blob) {
                    Ok(bytes) => {
                        all += bytes.len() as u64;
                        if all > bytes_max {
                            return Err(failed(
                                "LW0808",
                                format!("it is longer than the {bytes_max} bytes it may have"),
                            ));
                        }
                        got.insert(digest, bytes);
                    }
                    Err(error) => {
                        // Another voter may have a good copy.
                        debug!(set = %self.set, %error, "a voter gave wrong bytes: refused");
                        self.source.refuse(&who, &error.to_string());
                        turn += 1;
                        if turn > CORRUPT_TRIES {
                            return Err(failed(error.code(), error.to_string()));
                        }
                    }
                }
            }
            left.retain(|digest| !got.contains_key(digest));
        }
        Ok(got)
    }
}

/// Returns a file from its pieces, if they make it.
fn joined(file: &FileAt, pieces: &BTreeMap<Digest, Vec<u8>>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(file.size as usize);
    for chunk in &file.chunks {
        // A piece may stand in a file many times: only as long as it says it cannot fill the memory.
        let piece = pieces.get(&chunk.digest).filter(|piece| piece.len() as u64 == u64::from(chunk.size))?;
        bytes.extend_from_slice(piece);
    }
    (digest_of(&bytes) == file.digest).then_some(bytes)
}

/// Returns the plain bytes of a blob, if they are what its name says.
fn opened(digest: Digest, blob: Blob) -> leaseward_sync::Result<Vec<u8>> {
    let origin = Path::new("a voter");
    match blob {
        Blob::Frame(bytes) => frame::unpack(digest, bytes.as_slice(), origin),
        Blob::Plain(bytes) if digest_of(&bytes) == digest => Ok(bytes),
        Blob::Plain(_) => {
            let why = "its content has another name";
            Err(leaseward_sync::Error::BlobCorrupt { path: origin.to_owned(), digest, why })
        }
    }
}

/// Returns what a tree has at a path for a program.
fn look(tree: &Manifest, path: &str) -> Found {
    match tree.entries.iter().find(|entry| entry.path == path).map(|entry| &entry.node) {
        Some(ManifestNode::File { size, .. }) if *size > CONFIG_FILE_BYTES_MAX => Found::Unusable(
            "LW0808",
            format!("`{path}` has {size} bytes; a program follows a file of at most {CONFIG_FILE_BYTES_MAX}"),
        ),
        Some(ManifestNode::File { size, digest, chunks, .. }) => {
            Found::File(FileAt { digest: *digest, size: *size, chunks: chunks.clone() })
        }
        Some(ManifestNode::Directory { .. }) => Found::Unusable("LW0815", format!("`{path}` is a directory")),
        Some(ManifestNode::Symlink { target }) => {
            Found::Unusable("LW0815", format!("`{path}` is a link to `{target}`: follow that file"))
        }
        None => Found::Unusable("LW0404", format!("it has no file `{path}`")),
    }
}

/// Returns whether a view of this revision says something later than what is `known`: zero of a set that is gone.
fn is_news(revision: Revision, known: Revision, newest: Revision) -> bool {
    let is_gone = revision == Revision(0) && known > Revision(0);
    is_gone || revision > newest
}

#[cfg(test)]
mod tests {
    use leaseward_state::config::ManifestEntry;

    use super::*;

    #[test]
    fn only_a_plain_file_of_a_bounded_size_is_for_a_program() {
        let digest = Digest([1; 32]);
        let file = |size: u64| ManifestNode::File { mode: 0o644, size, digest, chunks: Vec::new() };
        let at = |path: &str, node: ManifestNode| ManifestEntry { path: path.into(), node };
        let tree = Manifest {
            xattrs: None,
            entries: vec![
                at("d", ManifestNode::Directory { mode: 0o755 }),
                at("d/a.toml", file(CONFIG_FILE_BYTES_MAX)),
                at("large.toml", file(CONFIG_FILE_BYTES_MAX + 1)),
                at("link.toml", ManifestNode::Symlink { target: "d/a.toml".into() }),
            ],
        };
        assert!(matches!(look(&tree, "d/a.toml"), Found::File(found) if found.digest == digest));
        for (path, code) in [("d", "LW0815"), ("link.toml", "LW0815"), ("large.toml", "LW0808"), ("a.toml", "LW0404")] {
            assert!(matches!(look(&tree, path), Found::Unusable(found, _) if found == code), "{path}");
        }
    }

    #[test]
    fn only_the_right_pieces_make_a_file() {
        let chunk = |text: &str, size: u32| Chunk { digest: digest_of(text.as_bytes()), size };
        let file = |chunks: Vec<Chunk>| FileAt { digest: digest_of(b"abab"), size: 4, chunks };
        let pieces = |all: &[&str]| {
            all.iter().map(|text| (digest_of(text.as_bytes()), text.as_bytes().to_vec())).collect::<BTreeMap<_, _>>()
        };
        let ab = pieces(&["ab"]);
        assert_eq!(joined(&file(vec![chunk("ab", 2), chunk("ab", 2)]), &ab).unwrap(), b"abab");
        assert_eq!(joined(&file(vec![chunk("ab", 2)]), &ab), None, "half of it");
        assert_eq!(joined(&file(vec![chunk("ab", 2), chunk("x", 2)]), &ab), None, "one is not there");
        assert_eq!(joined(&file(vec![chunk("abab", 1)]), &pieces(&["abab"])), None, "longer than it says");
    }

    #[test]
    fn bytes_with_another_name_are_refused() {
        let (right, wrong) = (digest_of(b"right"), Digest([9; 32]));
        let frame = || Blob::Frame(frame::pack(b"right").unwrap().into());
        assert_eq!(opened(right, frame()).unwrap(), b"right");
        assert_eq!(opened(right, Blob::Plain(b"right".to_vec())).unwrap(), b"right");
        for blob in [frame(), Blob::Plain(b"right".to_vec()), Blob::Frame(vec![1, 2, 3].into())] {
            assert_eq!(opened(wrong, blob).unwrap_err().code(), "LW0802");
        }
    }

    #[test]
    fn after_a_removal_a_voter_that_is_behind_takes_nobody_back() {
        let [none, five, six] = [0, 5, 6].map(Revision);
        assert!(is_news(five, none, none) && is_news(six, five, five) && !is_news(five, five, five));
        assert!(is_news(none, five, five), "it is gone");
        assert!(!is_news(none, none, five) && !is_news(five, none, five), "what was removed is heard of again");
        assert!(is_news(six, none, five), "it was made anew");
    }
}
