//! From loose to durable: synced, named, and the names synced.
//!
//! Must stay true: what is durable was synced without a failure, and so was its name; a sync that failed is not tried again on the same
//! file, as the kernel tells of what it lost once.

use std::fs::File;
use std::sync::PoisonError;

use tracing::{debug, warn};

use super::batch::Batch;
use super::index::{Pack, Standing};
use super::{BlobStore, is_damage, name_of};
use crate::error::{Error, Result, at};

impl BlobStore {
    /// Makes every loose blob durable, also those that another thread has begun with. After a sync that failed, what it was
    /// about is written once more, by the next one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DiskFull`]; what is not durable then is done by the next one.
    pub fn settle(&self) -> Result<()> {
        if !self.durable {
            return Ok(());
        }
        let _turn = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_again(|pack| pack.is_doubtful)?;
        if let Err(error) = self.write_again(|pack| pack.standing == Standing::Loose && pack.is_untried) {
            // It takes more room as it is, and is as good.
            debug!(%error, "blobs stay as they came");
        }
        let loose = self.standing(Standing::Loose);
        let open: Vec<_> =
            loose.iter().filter_map(|number| Some((*number, self.index().packs.get(number)?.file.clone()?))).collect();
        if open.len() == loose.len() {
            for (number, file) in open {
                self.sync_pack(number, &file).inspect_err(|_| self.doubt(&[number]))?;
            }
        } else {
            self.root.sync_file_system().inspect_err(|_| self.doubt(&loose))?;
        }
        for number in loose {
            self.name(number)?;
        }
        let named = self.standing(Standing::Named);
        if named.is_empty() {
            return Ok(());
        }
        self.root.sync().inspect_err(|_| self.doubt(&named))?;
        let mut index = self.index();
        for number in named {
            if let Some(pack) = index.packs.get_mut(&number) {
                pack.standing = Standing::Durable;
            }
        }
        Ok(())
    }

    /// Returns the packs that are so far on their way.
    pub(super) fn standing(&self, wanted: Standing) -> Vec<u32> {
        self.index().packs.iter().filter(|(_, pack)| pack.standing == wanted).map(|(number, _)| *number).collect()
    }

    /// Notes packs of which a sync failed. The kernel says so once, and forgets what it could not write: another sync of
    /// the same file proves nothing.
    pub(super) fn doubt(&self, numbers: &[u32]) {
        let mut index = self.index();
        for number in numbers {
            if let Some(pack) = index.packs.get_mut(number) {
                pack.is_doubtful = true;
            }
        }
    }

    /// Writes what stands in some packs, doubtful ones for example, into new ones, as far as it can be read.
    fn write_again(&self, wanted: impl Fn(&Pack) -> bool) -> Result<()> {
        let again = self.index().in_packs(wanted);
        let mut batch = Batch::new(self);
        for (place, digest) in again {
            match self.get_frame(digest) {
                Ok(bytes) => batch.push(digest, &bytes, Some(place))?,
                Err(Error::BlobMissing { .. }) => {}
                Err(error) if is_damage(&error) => {
                    warn!(%digest, %error, "a blob was lost before it was durable");
                    let mut index = self.index();
                    if index.places.get(&digest) == Some(&place) {
                        index.losses += 1;
                        let left = index.remove(digest);
                        self.drop_packs(left)?;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        batch.finish(&mut |written| self.add(&written, Standing::Loose))
    }

    pub(super) fn sync_pack(&self, number: u32, file: &File) -> Result<()> {
        file.sync_data().map_err(at("sync", self.root.path().join(name_of(number, Standing::Loose))))
    }

    /// Gives a pack that is synced its last name, unless it is gone.
    pub(super) fn name(&self, number: u32) -> Result<()> {
        let mut index = self.index();
        let Some(pack) = index.packs.get_mut(&number) else { return Ok(()) };
        self.root.rename(&name_of(number, Standing::Loose), &name_of(number, Standing::Named))?;
        pack.standing = Standing::Named;
        pack.file = None;
        Ok(())
    }
}
