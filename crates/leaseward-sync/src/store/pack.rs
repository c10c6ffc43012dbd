//! The form of a pack on disk: frames one after another, then a table of their names and lengths.
//!
//! Must stay true: a table is believed only if its checksum is right and it accounts for every byte of the file; a frame has
//! a checksum of its own. Stored form: it grows by a new magic only.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use leaseward_state::config::Digest;

use crate::dir::{Dir, begin_to_sync};
use crate::error::{Result, at};
use crate::frame;
use crate::limits::{PACK_BUFFER_BYTES, PACK_SMALL_BYTES};

const MAGIC: [u8; 4] = *b"LWP1";
/// Name 32, length 4.
const ROW: usize = 36;
/// Rows 4, crc32c 4 (of all rows and their number), magic 4.
const FOOTER: usize = 12;

/// Names and lengths, in the order in which the frames stand.
pub(super) type Table = Vec<(Digest, u32)>;

/// A pack that is being written. It is removed again unless it is finished.
pub(super) struct Writer<'a> {
    dir: &'a Dir,
    name: String,
    file: BufWriter<Arc<File>>,
    table: Table,
    bytes: u64,
    is_untried: bool,
    is_finished: bool,
}

impl<'a> Writer<'a> {
    /// Creates the file `name`, which must not exist.
    pub(super) fn create(dir: &'a Dir, name: String) -> Result<Self> {
        let file = BufWriter::with_capacity(PACK_BUFFER_BYTES, Arc::new(dir.create(&name)?));
        Ok(Self { dir, name, file, table: Table::new(), bytes: 0, is_untried: false, is_finished: false })
    }

    /// Returns how many bytes its frames have.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn push(&mut self, digest: Digest, frame: &[u8]) -> Result<()> {
        self.file.write_all(frame).map_err(at("write", self.dir.path().join(&self.name)))?;
        self.table.push((digest, frame.len() as u32));
        self.bytes += frame.len() as u64;
        self.is_untried |= frame::is_untried(frame);
        Ok(())
    }

    /// Returns whether somebody should still try to compress some of its frames.
    pub(super) fn is_untried(&self) -> bool {
        self.is_untried
    }

    /// Writes the table and returns it with the bytes of all frames, and the file. Nothing is synced.
    pub(super) fn finish(mut self) -> Result<((Table, u64), Arc<File>)> {
        let mut rows = Vec::with_capacity(self.table.len() * ROW + FOOTER);
        for (digest, length) in &self.table {
            rows.extend_from_slice(&digest.0);
            rows.extend_from_slice(&length.to_le_bytes());
        }
        rows.extend_from_slice(&(self.table.len() as u32).to_le_bytes());
        rows.extend_from_slice(&crc32c::crc32c(&rows).to_le_bytes());
        rows.extend_from_slice(&MAGIC);
        let written = self.file.write_all(&rows).and_then(|()| self.file.flush());
        written.map_err(at("write", self.dir.path().join(&self.name)))?;
        // A small one is mostly of an edit, whose members are about to sync their trees: it waits for its turn. One that is
        // written once more goes before it is synced.
        if self.bytes >= PACK_SMALL_BYTES && !self.is_untried {
            begin_to_sync(self.file.get_ref());
        }
        self.is_finished = true;
        Ok(((std::mem::take(&mut self.table), self.bytes), Arc::clone(self.file.get_ref())))
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // What cannot be removed now is removed when the store is opened again.
            let _ = self.dir.unlink(&self.name);
        }
    }
}

/// Returns the table of a pack and the bytes of its frames; `None` if it is not whole.
pub(super) fn read(file: &File, path: &Path) -> Result<Option<(Table, u64)>> {
    let bytes = file.metadata().map_err(at("look at", path))?.len();
    let Some(before) = bytes.checked_sub(FOOTER as u64) else { return Ok(None) };
    let mut footer = [0; FOOTER];
    file.read_exact_at(&mut footer, before).map_err(at("read", path))?;
    let word = |i: usize| u32::from_le_bytes([footer[i], footer[i + 1], footer[i + 2], footer[i + 3]]);
    let count = word(0) as usize;
    let Some(start) = before.checked_sub(count as u64 * ROW as u64).filter(|_| footer[8..] == MAGIC) else {
        return Ok(None);
    };
    let mut rows = vec![0; count * ROW];
    file.read_exact_at(&mut rows, start).map_err(at("read", path))?;
    if crc32c::crc32c_append(crc32c::crc32c(&rows), &footer[..4]) != word(4) {
        return Ok(None);
    }
    let row = |row: &[u8; ROW]| {
        let (name, length) = row.split_first_chunk::<32>().expect("a row is longer");
        (Digest(*name), u32::from_le_bytes([length[0], length[1], length[2], length[3]]))
    };
    let table: Table = rows.as_chunks::<ROW>().0.iter().map(row).collect();
    let all: u64 = table.iter().map(|(_, length)| u64::from(*length)).sum();
    Ok((all == start && u32::try_from(all).is_ok()).then_some((table, all)))
}
