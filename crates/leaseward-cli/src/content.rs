//! Joins the API to the content of the voter: what is put is on a quorum when the API says so.

use leaseward::QuorumContent;
use leaseward_http::{Content, ContentError};
use leaseward_raft::Later;
use leaseward_state::config::Digest;

/// The content of a voter.
pub(crate) struct FromVoter(pub(crate) QuorumContent);

fn failed(error: &leaseward::Error) -> ContentError {
    let (code, why) = (error.code(), error.to_string());
    // Some errors say their code themselves.
    let bare = why.strip_prefix(code).and_then(|rest| rest.strip_prefix(": "));
    ContentError { code: code.to_owned(), why: bare.unwrap_or(&why).to_owned() }
}

/// A blob counts as missing until a quorum holds it durably: so a publisher sends again what a voter that died had
/// alone, and no manifest is committed that names it before.
impl Content for FromVoter {
    fn missing(&self, digests: Vec<Digest>) -> Later<'_, Result<Vec<Digest>, ContentError>> {
        Box::pin(async move { self.0.missing_on_quorum(digests).await.map_err(|error| failed(&error)) })
    }

    fn get(&self, digest: Digest) -> Later<'_, Result<Option<Vec<u8>>, ContentError>> {
        Box::pin(async move {
            match self.0.get(digest).await {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.code() == "LW0801" => Ok(None),
                Err(error) => Err(failed(&error)),
            }
        })
    }

    fn put(&self, blobs: Vec<(Digest, Vec<u8>)>) -> Later<'_, Result<(), ContentError>> {
        Box::pin(async move { self.0.put(blobs).await.map_err(|error| failed(&error)) })
    }
}
