//! Joins the API to the content of the voter.

use axum::body::Bytes;
use leaseward::{MachineName, QuorumContent, SetName};
use leaseward_http::{Backup, Base, Content, ContentError, Ready};
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

impl Content for FromVoter {
    fn lacking(&self, digests: Vec<Digest>) -> Later<'_, Result<Vec<Digest>, ContentError>> {
        Box::pin(async move { Ok(self.0.lacking(&digests).await) })
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

    fn keep(&self, frames: Vec<(Digest, Bytes)>) -> Later<'_, Result<(), ContentError>> {
        Box::pin(async move { self.0.keep(frames).await.map_err(|error| failed(&error)) })
    }

    fn adopt(&self, set: SetName, machine: MachineName) -> Later<'_, Result<Digest, ContentError>> {
        Box::pin(async move { self.0.adopt(&set, &machine).await.map_err(|error| failed(&error)) })
    }

    fn may_keep(&self, set: SetName, keep: u32) -> Later<'_, Result<u64, ContentError>> {
        Box::pin(async move { self.0.may_keep(&set, keep).await.map_err(|error| failed(&error)) })
    }

    fn backup(&self) -> Later<'_, Result<Backup, ContentError>> {
        Box::pin(async move {
            let backup = self.0.backup().await.map_err(|error| failed(&error))?;
            Ok(Backup { revision: backup.revision, pieces: backup.pieces })
        })
    }

    fn ready(&self, base: Base, manifest: Digest) -> Later<'_, Result<Ready, ContentError>> {
        Box::pin(async move {
            let base = match base {
                Base::Whole => None,
                Base::Empty => Some(None),
                Base::Version(number, manifest) => Some(Some((number, manifest))),
            };
            let ready = self.0.ready(base, manifest).await.map_err(|error| failed(&error))?;
            Ok(Ready { files: ready.files, bytes: ready.bytes, delta: ready.delta })
        })
    }
}
