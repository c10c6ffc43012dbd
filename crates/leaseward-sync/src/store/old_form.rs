//! A store as it was before packs: one file for each blob, `ab/cdef…`. Its blobs are taken over when it is opened.
//!
//! Must stay true: a file is removed once its blob is durable in a pack, or is damaged. A full disk stops nobody: the rest is
//! taken over by another start.

use leaseward_state::config::Digest;
use tracing::warn;

use super::{BlobStore, is_damage};
use crate::dir::{Dir, Kind, kind};
use crate::error::{Error, Result, at};
use crate::limits::FRAMES_BYTES_MAX;

/// Takes over what stands there in the old form, if anything does.
pub(super) fn take_over(store: &BlobStore) -> Result<()> {
    store.root.remove_tree("tmp")?;
    for shard in store.root.names()? {
        let is_shard = shard.len() == 2 && store.root.stat(&shard)?.is_some_and(|stat| kind(&stat) == Kind::Directory);
        if is_shard {
            match take_shard(store, &store.root.child(&shard)?, &shard.to_string_lossy()) {
                Ok(()) => store.root.remove_tree(&shard)?,
                // A voter has more to do than to keep content.
                Err(error @ Error::DiskFull { .. }) => {
                    warn!(%error, "content in the old form is not here until a start finds room to take it over");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn take_shard(store: &BlobStore, shard: &Dir, name: &str) -> Result<()> {
    let (mut frames, mut bytes) = (Vec::new(), 0);
    for file in shard.names()? {
        let Some(digest) = file.to_str().and_then(|rest| Digest::parse(&format!("{name}{rest}"))) else { continue };
        let path = shard.path().join(&file);
        let frame = std::fs::read(&path).map_err(at("read", &path));
        let frame = match frame.and_then(|frame| crate::frame::unpack(digest, &frame, &path).map(|_| frame)) {
            Ok(frame) => frame,
            Err(error) if is_damage(&error) => {
                warn!(%error, "a blob is damaged: not taken over");
                continue;
            }
            Err(error) => return Err(error),
        };
        bytes += frame.len();
        frames.push((digest, frame));
        if bytes > FRAMES_BYTES_MAX {
            put(store, &frames)?;
            (frames, bytes) = (Vec::new(), 0);
        }
    }
    put(store, &frames)?;
    store.settle()
}

fn put(store: &BlobStore, frames: &[(Digest, Vec<u8>)]) -> Result<()> {
    // It gives back what it takes.
    store.write(frames.iter().map(|(digest, frame)| Ok((*digest, frame.into()))), store.floor / 2)
}
