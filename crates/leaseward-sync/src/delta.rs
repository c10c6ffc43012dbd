//! A version as what changed since another one: the way small changes travel and are agreed on.
//!
//! Must stay true: [`Delta::decode`] gives back exactly the manifest and the chunks that it was made from, each verified
//! by its name, or an error; equal trees make equal deltas; no input makes it panic, or allocate beyond
//! [`DELTA_PLAIN_BYTES_MAX`] twice.
//! Two compressed parts: the new manifest, which refers to the old one, and the chunks that only the new one names, in
//! its order, which refer to those that only the old one names, in its order. So it says what changed and nothing else; a
//! rename costs its lines.
//! Left out on purpose: chains of deltas, and likeness to files that stay.

use std::io::Write;
use std::ops::Range;

use leaseward_state::config::{Chunk, Digest, Manifest};
use zstd::zstd_safe::{CParameter, DCtx};

use crate::error::{Error, Result};
use crate::limits::{
    BLOB_BYTES_MAX, BLOB_ZSTD_LEVEL, DELTA_LARGE_BYTES, DELTA_PLAIN_BYTES_MAX, DELTA_TABLE_BYTES_MAX, DELTA_ZSTD_LEVEL,
};
use crate::tables::DigestSet;
use crate::{digest_of, manifest};

const MAGIC: [u8; 4] = *b"LWDL";
const VERSION: u8 = 1;
/// Magic 4, version 1, zero 3, base 32, next 32, plain length of the manifest 4, length of its frame 4, plain length of
/// the chunks 4, crc32c 4 (of everything else).
const HEADER: usize = 88;
const CRC_AT: usize = 84;

/// Entries of the table by which the level of blobs finds what repeats, as a power of two.
const HASH_LOG_USUAL: u32 = 14;

/// Gives the plain bytes of a chunk.
pub type ReadChunk<'a> = dyn FnMut(Chunk) -> Result<Vec<u8>> + 'a;

/// Returns the chunks that `one` names and `other` does not, each once, in order of `one`.
#[must_use]
pub fn only_in(one: &Manifest, other: &Manifest) -> Vec<Chunk> {
    let mut seen: DigestSet = other.chunks().map(|chunk| chunk.digest).collect();
    one.chunks().filter(|chunk| seen.insert(chunk.digest)).collect()
}

fn plain_bytes(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.size)).sum()
}

/// Returns the delta that makes `next` of `base`, or `None` if it would be longer than `most` bytes or would take more
/// memory than the limit. `read` is asked for chunks of both.
///
/// # Errors
/// What `read` returns; [`Error::TooLarge`] for a manifest that is.
pub fn encode(base: &Manifest, next: &Manifest, read: &mut ReadChunk<'_>, most: usize) -> Result<Option<Vec<u8>>> {
    let (old_text, new_text) = (manifest::encode(base), manifest::encode(next));
    let (gone, fresh) = (only_in(base, next), only_in(next, base));
    let total = (old_text.len().max(new_text.len()) as u64).max(plain_bytes(&gone) + plain_bytes(&fresh));
    if new_text.len() > BLOB_BYTES_MAX || total > DELTA_PLAIN_BYTES_MAX as u64 {
        return Ok(None);
    }
    let mut out = Vec::with_capacity(HEADER + 4096);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, 0, 0, 0]);
    out.extend_from_slice(&digest_of(&old_text).0);
    out.extend_from_slice(&digest_of(&new_text).0);
    out.extend_from_slice(&(new_text.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    let mut new_text = Some(new_text);
    let size = new_text.as_ref().map_or(0, Vec::len);
    if !squeeze(&mut out, most, &old_text, size, &mut || Ok(new_text.take()))? {
        return Ok(None);
    }
    let frame = out.len() - HEADER;
    let mut prefix = Vec::with_capacity(plain_bytes(&gone) as usize);
    for chunk in gone {
        prefix.extend_from_slice(&read(chunk)?);
    }
    let size = plain_bytes(&fresh) as usize;
    let mut fresh = fresh.into_iter();
    if size > 0 && !squeeze(&mut out, most, &prefix, size, &mut || fresh.next().map(&mut *read).transpose())? {
        return Ok(None);
    }
    out[76..80].copy_from_slice(&(frame as u32).to_le_bytes());
    out[80..84].copy_from_slice(&(size as u32).to_le_bytes());
    let crc = checksum(&out);
    out[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
    Ok((out.len() <= most).then_some(out))
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[HEADER..])
}

/// Compresses what `pieces` give, of `size` bytes together, with `prefix` to refer to. Returns false if that does not
/// fit, as soon as that is known.
fn squeeze(
    out: &mut Vec<u8>,
    most: usize,
    prefix: &[u8],
    size: usize,
    pieces: &mut dyn FnMut() -> Result<Option<Vec<u8>>>,
) -> Result<bool> {
    let failed = |error| Error::io("compress", "a delta", error);
    let bounded = Bounded { out, most, full: false };
    let is_large = prefix.len() + size > DELTA_LARGE_BYTES;
    let level = if is_large { BLOB_ZSTD_LEVEL } else { DELTA_ZSTD_LEVEL };
    let mut encoder = zstd::stream::write::Encoder::with_ref_prefix(bounded, level, prefix).map_err(failed)?;
    // The window reaches from the last byte back to the first one of the prefix.
    let window = (prefix.len() + size).max(1 << 10).next_power_of_two().trailing_zeros();
    encoder.set_pledged_src_size(Some(size as u64)).map_err(failed)?;
    encoder.window_log(window).map_err(failed)?;
    // The table of the level covers some hundred kilobytes. Up to some megabytes a larger one is quick, and finds more than
    // a search for long matches, which is what is left beyond that.
    if prefix.len() > DELTA_TABLE_BYTES_MAX {
        encoder.long_distance_matching(true).map_err(failed)?;
    } else if is_large {
        // Every third place of the prefix has an entry.
        let entries = (prefix.len() / 4).next_power_of_two().trailing_zeros();
        encoder.set_parameter(CParameter::HashLog(entries.max(HASH_LOG_USUAL))).map_err(failed)?;
    }
    while let Some(piece) = pieces()? {
        if let Err(error) = encoder.write_all(&piece) {
            return if encoder.get_ref().full { Ok(false) } else { Err(failed(error)) };
        }
    }
    match encoder.try_finish() {
        Ok(_) => Ok(true),
        Err((encoder, _)) if encoder.get_ref().full => Ok(false),
        Err((_, error)) => Err(failed(error)),
    }
}

/// Takes so many bytes and no more.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    most: usize,
    full: bool,
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.out.len() + bytes.len() > self.most {
            self.full = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A delta that was read as far as its header.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    base: Digest,
    next: Digest,
    manifest_bytes: usize,
    chunk_bytes: usize,
    manifest: &'a [u8],
    chunks: &'a [u8],
}

/// What a delta gave: a manifest, and every chunk that its base does not name.
#[derive(Debug)]
pub struct Decoded {
    /// The manifest.
    pub manifest: Manifest,
    /// Its encoded form: the blob that a version names.
    pub encoded: Vec<u8>,
    chunks: Vec<(Digest, Range<usize>)>,
    plain: Vec<u8>,
}

impl Decoded {
    /// Returns the chunks, each with its plain bytes, in order of the manifest. The manifest itself is not among them.
    pub fn chunks(&self) -> impl Iterator<Item = (Digest, &[u8])> {
        self.chunks.iter().map(|(digest, range)| (*digest, &self.plain[range.clone()]))
    }
}

fn bad(why: impl Into<String>) -> Error {
    Error::BadDelta { why: why.into() }
}

impl<'a> Delta<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::BadDelta`] for bytes that [`encode`] would not write.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(|| bad("it is shorter than its header"))?;
        if header[..4] != MAGIC || header[4..8] != [VERSION, 0, 0, 0] {
            return Err(bad("its header is not one of ours"));
        }
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(CRC_AT) != checksum(bytes) {
            return Err(bad("its checksum is wrong"));
        }
        let digest = |at: usize| {
            let mut digest = [0; 32];
            digest.copy_from_slice(&header[at..at + 32]);
            Digest(digest)
        };
        let (manifest_bytes, chunk_bytes) = (word(72) as usize, word(80) as usize);
        if manifest_bytes > BLOB_BYTES_MAX || chunk_bytes > DELTA_PLAIN_BYTES_MAX {
            return Err(bad("it claims to hold more than it may"));
        }
        let (manifest, chunks) =
            body.split_at_checked(word(76) as usize).ok_or_else(|| bad("its manifest is cut off"))?;
        Ok(Self { base: digest(8), next: digest(40), manifest_bytes, chunk_bytes, manifest, chunks })
    }

    /// Returns the name of the manifest that it builds on.
    #[must_use]
    pub fn base(&self) -> Digest {
        self.base
    }

    /// Returns the name of the manifest that comes of it.
    #[must_use]
    pub fn next(&self) -> Digest {
        self.next
    }

    /// Returns what it makes of `base`. `read` is asked for chunks of `base` that the result does not name.
    ///
    /// # Errors
    /// [`Error::BadDelta`] if `base` is another tree or anything does not match its name; what `read` returns;
    /// [`Error::BadManifest`], [`Error::IllegalTree`], [`Error::TooLarge`] for what it makes.
    pub fn decode(&self, base: &Manifest, read: &mut ReadChunk<'_>) -> Result<Decoded> {
        let old_text = manifest::encode(base);
        if digest_of(&old_text) != self.base {
            return Err(bad("it builds on another version"));
        }
        let encoded = expand(self.manifest, &old_text, self.manifest_bytes)?;
        if digest_of(&encoded) != self.next {
            return Err(bad("its manifest has another name"));
        }
        drop(old_text);
        let manifest = manifest::decode(&encoded)?;
        let (gone, fresh) = (only_in(base, &manifest), only_in(&manifest, base));
        let total = plain_bytes(&gone) + plain_bytes(&fresh);
        if plain_bytes(&fresh) != self.chunk_bytes as u64 || total > DELTA_PLAIN_BYTES_MAX as u64 {
            return Err(bad("its chunks are not those of its manifest"));
        }
        if fresh.is_empty() {
            return match self.chunks {
                [] => Ok(Decoded { manifest, encoded, chunks: Vec::new(), plain: Vec::new() }),
                _ => Err(bad("it holds chunks that nothing names")),
            };
        }
        let mut prefix = Vec::with_capacity(plain_bytes(&gone) as usize);
        for chunk in gone {
            let bytes = read(chunk)?;
            if bytes.len() != chunk.size as usize {
                return Err(bad("a chunk of the old version has another length"));
            }
            prefix.extend_from_slice(&bytes);
        }
        let plain = expand(self.chunks, &prefix, self.chunk_bytes)?;
        let mut at = 0;
        let mut chunks = Vec::with_capacity(fresh.len());
        for chunk in fresh {
            let range = at..at + chunk.size as usize;
            at = range.end;
            if digest_of(&plain[range.clone()]) != chunk.digest {
                return Err(bad(format!("chunk {} has another name", chunk.digest)));
            }
            chunks.push((chunk.digest, range));
        }
        Ok(Decoded { manifest, encoded, chunks, plain })
    }
}

fn expand(frame: &[u8], prefix: &[u8], size: usize) -> Result<Vec<u8>> {
    let mut context = DCtx::try_create().ok_or_else(|| bad("no memory to decompress it"))?;
    context.ref_prefix(prefix).map_err(|_| bad("it does not decompress"))?;
    let mut plain = Vec::with_capacity(size);
    context.decompress(&mut plain, frame).map_err(|_| bad("it does not decompress"))?;
    if plain.len() != size {
        return Err(bad("its length is wrong"));
    }
    Ok(plain)
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
