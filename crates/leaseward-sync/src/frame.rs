//! The form of a blob on disk and on the wire: a small header and the bytes, compressed when that helps.
//!
//! Must stay true: [`unpack`] returns bytes only if they hash to the name they were asked for, and never allocates
//! more than the length bound for a hostile frame. Stored form: it grows by a new version number only.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use leaseward_state::config::Digest;
use zstd::bulk::{Compressor, Decompressor};

use crate::digest_of;
use crate::error::{Error, Result};
use crate::limits::{BLOB_BYTES_MAX, BLOB_ZSTD_LEVEL, CONTEXTS_KEPT};

const MAGIC: [u8; 4] = *b"LWBF";
const VERSION: u8 = 1;
const RAW: u8 = 0;
const ZSTD: u8 = 1;
/// As [`RAW`], and whoever keeps it compresses it when there is time, and has room for both forms meanwhile.
const UNTRIED: u8 = 2;
/// Magic 4, version 1, method 1, zero 2, plain length 4, crc32c 4 (of the first twelve bytes and the payload).
const HEADER: usize = 16;

/// Most bytes of a frame: a blob that does not compress, and the header.
pub const FRAME_BYTES_MAX: usize = BLOB_BYTES_MAX + HEADER;

static PACKERS: Spare<Compressor<'static>> = Spare(Mutex::new(Vec::new()));
static UNPACKERS: Spare<Decompressor<'static>> = Spare(Mutex::new(Vec::new()));

/// Contexts that are used again: to make one costs more than to compress a small file with it.
struct Spare<T>(Mutex<Vec<T>>);

impl<T> Spare<T> {
    fn with<R>(
        &self,
        make: impl FnOnce() -> std::io::Result<T>,
        work: impl FnOnce(&mut T) -> std::io::Result<R>,
    ) -> std::io::Result<R> {
        // A panic while it was held cannot leave the list half-changed.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let mut context = spare.map_or_else(make, Ok)?;
        let done = work(&mut context)?;
        let mut spares = lock();
        if spares.len() < CONTEXTS_KEPT {
            spares.push(context);
        }
        Ok(done)
    }
}

/// Returns the frame of these plain bytes.
///
/// # Errors
/// [`Error::TooLarge`] above [`BLOB_BYTES_MAX`].
pub fn pack(plain: &[u8]) -> Result<Vec<u8>> {
    bounded(plain)?;
    let mut frame = vec![0; HEADER + zstd::zstd_safe::compress_bound(plain.len())];
    // A failure to compress costs space, nothing else.
    let squeezed = PACKERS
        .with(|| Compressor::new(BLOB_ZSTD_LEVEL), |packer| packer.compress_to_buffer(plain, &mut frame[HEADER..]));
    let method = match squeezed.ok().filter(|size| *size < plain.len()) {
        Some(size) => {
            frame.truncate(HEADER + size);
            // Whoever gathers frames counts their bytes.
            frame.shrink_to_fit();
            ZSTD
        }
        None => {
            frame.truncate(HEADER);
            frame.extend_from_slice(plain);
            RAW
        }
    };
    seal(&mut frame, method, plain.len());
    Ok(frame)
}

/// As [`pack`], without a try to compress: for whoever is waited for, and sends to this machine only.
///
/// # Errors
/// As [`pack`].
pub fn pack_later(plain: &[u8]) -> Result<Vec<u8>> {
    bounded(plain)?;
    let mut frame = Vec::with_capacity(HEADER + plain.len());
    frame.resize(HEADER, 0);
    frame.extend_from_slice(plain);
    seal(&mut frame, UNTRIED, plain.len());
    Ok(frame)
}

/// Returns whether nobody tried yet to compress what a frame holds. It may be damaged.
pub(crate) fn is_untried(frame: &[u8]) -> bool {
    frame.get(5) == Some(&UNTRIED)
}

/// Returns a frame, which is as it was made, in the form in which it is kept and sent to others.
pub(crate) fn tried(frame: Vec<u8>) -> Result<Vec<u8>> {
    if is_untried(&frame) { pack(&frame[HEADER..]) } else { Ok(frame) }
}

fn bounded(plain: &[u8]) -> Result<()> {
    let (what, size, limit) = ("bytes of a blob", plain.len() as u64, BLOB_BYTES_MAX as u64);
    if size > limit { Err(Error::TooLarge { what, size, limit }) } else { Ok(()) }
}

/// Fills in the header of a frame whose payload stands after it.
fn seal(frame: &mut [u8], method: u8, plain_bytes: usize) {
    frame[..4].copy_from_slice(&MAGIC);
    frame[4..8].copy_from_slice(&[VERSION, method, 0, 0]);
    frame[8..12].copy_from_slice(&(plain_bytes as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..12]), &frame[HEADER..]);
    frame[12..HEADER].copy_from_slice(&crc.to_le_bytes());
}

/// Returns whether a frame is as it was made, by its checksum. It may still hold another blob than its name says.
///
/// # Errors
/// [`Error::BlobCorrupt`] for anything that is not a frame.
pub fn check(digest: Digest, frame: &[u8], origin: &Path) -> Result<()> {
    parts(digest, frame, origin).map(drop)
}

/// The method, the plain length and the payload of a frame.
fn parts<'a>(digest: Digest, frame: &'a [u8], origin: &Path) -> Result<(u8, usize, &'a [u8])> {
    let corrupt = |why| Error::BlobCorrupt { path: origin.to_owned(), digest, why };
    let Some((header, payload)) = frame.split_at_checked(HEADER) else {
        return Err(corrupt("it is shorter than its header"));
    };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..4] != MAGIC || header[4] != VERSION || header[6..8] != [0, 0] {
        return Err(corrupt("its header is not one of ours"));
    }
    let length = word(8) as usize;
    if length > BLOB_BYTES_MAX {
        return Err(corrupt("it claims to be larger than a blob may be"));
    }
    if word(12) != crc32c::crc32c_append(crc32c::crc32c(&header[..12]), payload) {
        return Err(corrupt("its checksum is wrong"));
    }
    Ok((header[5], length, payload))
}

/// Returns the plain bytes of a frame that should hold `digest`. `origin` names the file or peer for the error.
///
/// # Errors
/// [`Error::BlobCorrupt`] for anything that is not exactly the frame of that content.
pub fn unpack(digest: Digest, frame: &[u8], origin: &Path) -> Result<Vec<u8>> {
    let corrupt = |why| Error::BlobCorrupt { path: origin.to_owned(), digest, why };
    let (method, length, payload) = parts(digest, frame, origin)?;
    let plain = match method {
        RAW | UNTRIED => payload.to_vec(),
        ZSTD => UNPACKERS
            .with(Decompressor::new, |unpacker| unpacker.decompress(payload, length))
            .map_err(|_| corrupt("it does not decompress"))?,
        _ => return Err(corrupt("its compression is unknown")),
    };
    if plain.len() != length {
        return Err(corrupt("its length is wrong"));
    }
    if digest_of(&plain) != digest {
        return Err(corrupt("its content has another name"));
    }
    Ok(plain)
}

/// Returns whether a frame holds `digest`, as [`unpack`] does, and none of its bytes.
///
/// # Errors
/// As [`unpack`].
pub fn verify(digest: Digest, frame: &[u8], origin: &Path) -> Result<()> {
    match parts(digest, frame, origin)? {
        (RAW | UNTRIED, length, plain) if plain.len() == length && digest_of(plain) == digest => Ok(()),
        _ => unpack(digest, frame, origin).map(drop),
    }
}

/// Returns several frames as one run of bytes: each with its name and its length before it.
#[must_use]
pub fn join<B: AsRef<[u8]>>(frames: &[(Digest, B)]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(frames.iter().map(|(_, frame)| 36 + frame.as_ref().len()).sum());
    for (digest, frame) in frames {
        let frame = frame.as_ref();
        joined.extend_from_slice(&digest.0);
        joined.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        joined.extend_from_slice(frame);
    }
    joined
}

/// Returns the frames that [`join`] put together; `None` for other bytes. They are not verified.
#[must_use]
pub fn split(mut joined: &[u8]) -> Option<Vec<(Digest, &[u8])>> {
    let mut frames = Vec::new();
    while !joined.is_empty() {
        let (digest, rest) = joined.split_first_chunk::<32>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (frame, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        frames.push((Digest(*digest), frame));
        joined = rest;
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> [Vec<u8>; 4] {
        let noise = (0..2000u32).flat_map(|i| *blake3::hash(&i.to_le_bytes()).as_bytes()).collect();
        [vec![], b"x".to_vec(), b"same ".repeat(4000), noise]
    }

    #[test]
    fn a_frame_gives_back_its_bytes_and_is_small() {
        for plain in blobs() {
            let frame = pack(&plain).unwrap();
            assert!(frame.len() <= plain.len() + HEADER);
            assert!(
                frame.capacity() <= plain.len().min(frame.len() * 2) + plain.len() / 64 + 1024,
                "nor does it hold more"
            );
            assert_eq!(unpack(digest_of(&plain), &frame, Path::new("here")).unwrap(), plain);
        }
        assert!(pack(&vec![0; BLOB_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        for plain in &blobs()[1..3] {
            let (digest, frame) = (digest_of(plain), pack(plain).unwrap());
            for length in 0..frame.len() {
                assert!(unpack(digest, &frame[..length], Path::new("here")).is_err());
            }
            for bit in 0..frame.len() * 8 {
                let mut bad = frame.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(unpack(digest, &bad, Path::new("here")).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn joined_frames_come_apart_and_cut_ones_do_not() {
        let frames: Vec<_> = blobs().iter().map(|plain| (digest_of(plain), pack(plain).unwrap())).collect();
        let joined = join(&frames);
        let back: Vec<_> =
            split(&joined).unwrap().into_iter().map(|(digest, frame)| (digest, frame.to_vec())).collect();
        assert_eq!(back, frames);
        assert_eq!(split(&[]), Some(Vec::new()));
        for length in (1..joined.len()).filter(|length| length % 97 == 0) {
            assert!(split(&joined[..length]).is_none_or(|some| some.len() < frames.len()));
        }
    }

    #[test]
    fn the_stored_form_stays() {
        let hex: String = pack(b"leaseward").unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["4c57424601000000090000008aaa81d66c6561736577617264"].assert_eq(&hex);
    }
}
