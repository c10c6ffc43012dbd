//! A store as it was before packs: one file for each blob, `ab/cdef…`. Its blobs are taken over when it is opened.
//!
//! Must stay true: a file is removed once its blob is durable in a pack, or is damaged.

use std::path::Path;

use leaseward_state::config::Digest;
use tracing::warn;

use super::BlobStore;
use crate::dir::{Dir, Kind, kind};
use crate::error::{Result, at};
use crate::limits::FRAMES_BYTES_MAX;

/// Takes over what stands there in the old form, if anything does.
pub(super) fn take_over(store: &BlobStore) -> Result<()> {
    store.root.remove_tree("tmp")?;
    for shard in store.root.names()? {
        let is_shard = shard.len() == 2 && store.root.stat(&shard)?.is_some_and(|stat| kind(&stat) == Kind::Directory);
        if is_shard {
            take_shard(store, &store.root.child(&shard)?, &shard.to_string_lossy())?;
            store.root.remove_tree(&shard)?;
        }
    }
    Ok(())
}

fn take_shard(store: &BlobStore, shard: &Dir, name: &str) -> Result<()> {
    let (mut frames, mut bytes) = (Vec::new(), 0);
    for file in shard.names()? {
        let Some(digest) = file.to_str().and_then(|rest| Digest::parse(&format!("{name}{rest}"))) else { continue };
        let path = shard.path().join(&file);
        let frame = std::fs::read(&path).map_err(at("read", &path))?;
        if let Err(error) = crate::frame::unpack(digest, &frame, Path::new(&path)) {
            warn!(%error, "a blob is damaged: not taken over");
            continue;
        }
        bytes += frame.len();
        frames.push((digest, frame));
        if bytes > FRAMES_BYTES_MAX {
            store.put_loose(&frames)?;
            (frames, bytes) = (Vec::new(), 0);
        }
    }
    store.put_loose(&frames)?;
    store.settle()
}
