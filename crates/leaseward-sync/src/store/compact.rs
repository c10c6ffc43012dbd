//! Room is given back: what is left of packs is put together.
//!
//! Must stay true: a copy is durable before the one that it replaces goes; so much is moved at one time as there is room for.

use std::sync::PoisonError;

use leaseward_state::config::Digest;
use tracing::warn;

use super::batch::Batch;
use super::index::{Place, Standing};
use super::{BlobStore, name_of};
use crate::error::{Error, Result};
use crate::limits::{MOVED_BYTES_MAX, PACK_SMALL_BYTES, PACKS_SMALL_MAX};

impl BlobStore {
    /// Puts together what is left of packs of which less than half is needed, and small packs if there are many, and removes
    /// them. A damaged blob keeps its pack.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::Io`]; then everything is where it was, or in both places.
    pub fn compact(&self) -> Result<()> {
        let mut moving = {
            let index = self.index();
            let packs = || index.packs.values().filter(|pack| pack.standing == Standing::Durable);
            let are_many = packs().filter(|pack| pack.bytes < PACK_SMALL_BYTES).count() > PACKS_SMALL_MAX;
            index.in_packs(|pack| {
                let is_small = are_many && pack.bytes < PACK_SMALL_BYTES;
                pack.standing == Standing::Durable && (is_small || pack.needed * 2 < pack.bytes)
            })
        };
        while !moving.is_empty() {
            let rest = moving.split_off(one_time(&moving));
            self.move_blobs(std::mem::replace(&mut moving, rest))?;
        }
        Ok(())
    }

    /// Writes these blobs anew, durably, and lets their packs go of which nothing else is needed.
    fn move_blobs(&self, moving: Vec<(Place, Digest)>) -> Result<()> {
        let mut batch = Batch::with_floor(self, self.floor / 2);
        for (place, digest) in moving {
            match self.get_frame(digest) {
                Ok(bytes) => batch.push(digest, &bytes, Some(place))?,
                Err(Error::BlobMissing { .. }) => {}
                Err(error) => warn!(%digest, %error, "a blob cannot be moved"),
            }
        }
        // A copy takes the place of one that is durable, so it is durable before.
        batch.finish(&mut |written| {
            if !self.durable {
                return self.add(&written, Standing::Durable);
            }
            let (from, to) = (name_of(written.number, Standing::Loose), name_of(written.number, Standing::Named));
            self.sync_pack(written.number, &written.file)?;
            // The kernel says once that a sync failed: nobody else may ask meanwhile, and hear that all is well.
            let _turn = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
            self.root.rename(&from, &to)?;
            self.root.sync().inspect_err(|_| self.doubt(&self.standing(Standing::Named)))?;
            self.add(&written, Standing::Durable)
        })
    }
}

/// Returns how many of these blobs, which stand in packs one after another, are moved at one time: those of whole packs.
pub(super) fn one_time(moving: &[(Place, Digest)]) -> usize {
    let (mut count, mut bytes) = (0, 0);
    for pack in moving.chunk_by(|(one, _), (next, _)| one.pack == next.pack) {
        bytes += pack.iter().map(|(place, _)| u64::from(place.length)).sum::<u64>();
        if count > 0 && bytes > MOVED_BYTES_MAX {
            break;
        }
        count += pack.len();
    }
    count
}
