//! Where each blob of a store is: in memory, 44 bytes and some for each.
//!
//! Must stay true: a pack is known as long as something of it is needed, and not longer; nobody takes the place of a copy
//! that they did not look at.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::Arc;

use leaseward_state::config::Digest;

use super::pack::Table;
use crate::limits::PACKS_OPEN_MAX;
use crate::tables::DigestMap;

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
}

/// How far a pack is on its way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Whole, under a name that a new start forgets.
    Loose,
    /// Synced, under its last name, which may not be durable.
    Named,
    /// Nothing but damage takes it away.
    Durable,
}

#[derive(Debug)]
pub(super) struct Pack {
    pub(super) standing: Standing,
    /// Bytes of its frames.
    pub(super) bytes: u64,
    /// Bytes of its frames that are somebody's place.
    pub(super) needed: u64,
    /// A sync of it failed.
    pub(super) is_doubtful: bool,
    /// Some of its frames nobody tried to compress.
    pub(super) is_untried: bool,
    /// The file that a loose pack was written through. The kernel tells of what it could not write by the inode, and may forget an
    /// inode that nobody has open. `None` if so many are open that the whole file system is synced.
    pub(super) file: Option<Arc<File>>,
    blobs: usize,
}

/// The blobs of a store.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) places: DigestMap<Place>,
    pub(super) packs: BTreeMap<u32, Pack>,
    /// How many times something was lost that nobody removed.
    pub(super) losses: u64,
}

impl Index {
    pub(super) fn standing(&self, digest: Digest) -> Option<Standing> {
        let place = self.places.get(&digest)?;
        Some(self.packs.get(&place.pack)?.standing)
    }

    /// Returns the blobs of some packs, as they stand there one after another.
    pub(super) fn in_packs(&self, wanted: impl Fn(&Pack) -> bool) -> Vec<(Place, Digest)> {
        let packs: BTreeSet<u32> =
            self.packs.iter().filter(|(_, pack)| wanted(pack)).map(|(number, _)| *number).collect();
        if packs.is_empty() {
            return Vec::new();
        }
        let found = self.places.iter().filter(|(_, place)| packs.contains(&place.pack));
        let mut found: Vec<(Place, Digest)> = found.map(|(digest, place)| (*place, *digest)).collect();
        found.sort_unstable_by_key(|(place, _)| (place.pack, place.offset));
        found
    }

    /// Adds a pack. Each of its blobs gets its place there, if its place is still the one that `seen` says (the one that
    /// was looked at when the frame was written). Returns the packs of which nothing is needed any more, perhaps this one.
    pub(super) fn add(
        &mut self,
        number: u32,
        standing: Standing,
        (table, bytes): &(Table, u64),
        seen: impl Fn(usize, Option<Place>) -> Option<Place>,
    ) -> Vec<(u32, Standing)> {
        let mut pack =
            Pack { standing, bytes: *bytes, needed: 0, is_doubtful: false, is_untried: false, file: None, blobs: 0 };
        let (mut offset, mut left) = (0, Vec::new());
        for (i, (digest, length)) in table.iter().enumerate() {
            let before = self.places.get(digest).copied();
            // Twice in one pack: the first one stays.
            if before == seen(i, before) && before.is_none_or(|before| before.pack != number) {
                if let Some(before) = before {
                    left.extend(self.leave(before));
                }
                self.places.insert(*digest, Place { pack: number, offset, length: *length });
                pack.needed += u64::from(*length);
                pack.blobs += 1;
            }
            offset += length;
        }
        if pack.blobs == 0 {
            left.push((number, standing));
        } else {
            self.packs.insert(number, pack);
        }
        left
    }

    /// Keeps the file of a loose pack open, unless many are.
    pub(super) fn keep_open(&mut self, number: u32, file: &Arc<File>) {
        if self.packs.get(&number).is_none_or(|pack| pack.standing != Standing::Loose) {
            return;
        }
        let open = self.packs.values().filter(|pack| pack.file.is_some()).count();
        if let Some(pack) = self.packs.get_mut(&number).filter(|_| open < PACKS_OPEN_MAX) {
            pack.file = Some(Arc::clone(file));
        }
    }

    /// Forgets a blob. Returns its pack, if nothing of that is needed any more.
    pub(super) fn remove(&mut self, digest: Digest) -> Option<(u32, Standing)> {
        let place = self.places.remove(&digest)?;
        self.leave(place)
    }

    fn leave(&mut self, place: Place) -> Option<(u32, Standing)> {
        let pack = self.packs.get_mut(&place.pack)?;
        pack.needed -= u64::from(place.length);
        pack.blobs -= 1;
        if pack.blobs > 0 {
            return None;
        }
        self.packs.remove(&place.pack).map(|pack| (place.pack, pack.standing))
    }

    /// Forgets a pack that is gone, with all that it held.
    pub(super) fn forget(&mut self, number: u32) {
        self.packs.remove(&number);
        self.losses += 1;
        self.places.retain(|_, place| place.pack != number);
    }
}
