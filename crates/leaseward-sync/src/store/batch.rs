//! Frames on their way into packs.
//!
//! Must stay true: a pack that nobody took leaves nothing behind, under none of its names; so much stays free on the file
//! system as the writer was told.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use leaseward_state::config::Digest;

use super::index::{Place, Standing};
use super::pack::{Table, Writer};
use super::{BlobStore, name_of};
use crate::error::{Error, Result};
use crate::limits::{FLOOR_LOOK_EACH, PACK_BYTES_MAX};
use crate::space;

/// A pack that is whole and loose.
pub(super) struct Written {
    pub(super) number: u32,
    pub(super) pack: (Table, u64),
    /// What it was written through.
    pub(super) file: Arc<File>,
    /// Some of its frames nobody tried to compress.
    pub(super) is_untried: bool,
    /// The place of each blob when its frame was written.
    pub(super) seen: Vec<Option<Place>>,
}

/// Frames on their way into packs. What is not finished is removed.
pub(super) struct Batch<'a> {
    store: &'a BlobStore,
    writing: Option<(u32, Writer<'a>, Vec<Option<Place>>)>,
    full: Vec<Written>,
    floor: u64,
    /// Bytes that may be written before the free space is looked at again.
    checked: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(store: &'a BlobStore) -> Self {
        Self::with_floor(store, store.floor)
    }

    pub(super) fn with_floor(store: &'a BlobStore, floor: u64) -> Self {
        Self { store, writing: None, full: Vec::new(), floor, checked: 0 }
    }

    pub(super) fn push(&mut self, digest: Digest, bytes: &[u8], seen: Option<Place>) -> Result<()> {
        if self.checked < bytes.len() {
            let room = self.room_for(bytes.len())?;
            self.checked = bytes.len() + room.min(FLOOR_LOOK_EACH);
        }
        self.checked -= bytes.len();
        if self.writing.as_ref().is_some_and(|(_, writer, _)| writer.bytes() + bytes.len() as u64 > PACK_BYTES_MAX) {
            self.close()?;
        }
        if self.writing.is_none() {
            let number = self.store.next.fetch_add(1, Ordering::Relaxed);
            let standing = if self.store.durable { Standing::Loose } else { Standing::Named };
            self.writing = Some((number, Writer::create(&self.store.root, name_of(number, standing))?, Vec::new()));
        }
        let (_, writer, places) = self.writing.as_mut().expect("it was made above");
        writer.push(digest, bytes)?;
        places.push(seen);
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<()> {
        if let Some((number, writer, seen)) = self.writing.take() {
            let is_untried = writer.is_untried();
            let (pack, file) = writer.finish()?;
            self.full.push(Written { number, pack, file, is_untried, seen });
        }
        Ok(())
    }

    /// Hands over every pack, one after another.
    pub(super) fn finish(mut self, taken: &mut dyn FnMut(Written) -> Result<()>) -> Result<()> {
        self.close()?;
        while let Some(written) = self.full.pop() {
            let number = written.number;
            if let Err(error) = taken(written) {
                self.forget(number);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns how many bytes more than `need` may be written.
    fn room_for(&self, need: usize) -> Result<usize> {
        let (path, floor) = (self.store.root.path(), self.floor);
        let free = space::free(&self.store.root, path, 0)?.bytes;
        match free.checked_sub(floor.saturating_add(need as u64)) {
            Some(room) => Ok(usize::try_from(room).unwrap_or(usize::MAX)),
            None => Err(Error::DiskFull { path: path.to_owned(), free, floor }),
        }
    }

    fn forget(&self, number: u32) {
        // What cannot be removed now is removed, or found again, when the store is opened again.
        if !self.store.index().packs.contains_key(&number) {
            for standing in [Standing::Loose, Standing::Named] {
                let _ = self.store.root.unlink(name_of(number, standing));
            }
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for written in &self.full {
            self.forget(written.number);
        }
    }
}
