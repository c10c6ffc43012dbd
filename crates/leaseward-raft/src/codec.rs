//! Bytes of everything stored or sent: bincode inside our own envelope. The one file that names bincode.
//!
//! Must stay true: decoding never panics and never allocates more than its input is long; trailing bytes are an
//! error; a version this build does not know is an error, never skipped. Stored types carry no serde attributes.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First byte of every envelope.
const MAGIC: u8 = 0x4c;

/// Bytes of an envelope before its payload: magic, kind, version (2), length (4), crc32c (4).
pub const ENVELOPE_BYTES: usize = 12;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// They do not begin as an envelope does, or are of another kind.
    #[error("not a {0} record")]
    Foreign(&'static str),
    /// They are of a format that this build does not know.
    #[error("format {found} of {kind} is newer than {known}, the newest this version reads")]
    Newer {
        /// The kind of record.
        kind: &'static str,
        /// Its format.
        found: u16,
        /// The newest known format.
        known: u16,
    },
    /// They are longer than allowed.
    #[error("{kind} of {size} bytes; at most {max} are allowed")]
    TooLarge {
        /// The kind of record.
        kind: &'static str,
        /// What the envelope says.
        size: usize,
        /// The bound.
        max: usize,
    },
    /// They are cut off or changed.
    #[error("{0} is damaged")]
    Damaged(&'static str),
}

/// A kind of envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// For messages.
    pub name: &'static str,
    /// The kind byte.
    pub code: u8,
    /// The newest format, and the one that is written.
    pub version: u16,
    /// The largest payload, in bytes.
    pub max: usize,
}

fn options(limit: usize) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit as u64).reject_trailing_bytes()
}

/// Returns the plain bytes of `value`.
///
/// # Panics
/// If a type cannot be encoded, which is a mistake in the type.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    options(usize::MAX >> 1).serialize(value).expect("plain types without serde attributes encode")
}

/// Returns the value that the plain bytes hold.
///
/// # Errors
/// [`CodecError::Damaged`] if they hold anything else, or more.
pub fn decode<T: DeserializeOwned>(kind: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    options(bytes.len()).deserialize(bytes).map_err(|_| CodecError::Damaged(kind))
}

/// Returns how many plain bytes `value` has.
pub fn encoded_len<T: Serialize>(value: &T) -> usize {
    options(usize::MAX >> 1).serialized_size(value).map_or(usize::MAX, |size| size as usize)
}

/// Returns `payload` in an envelope.
#[must_use]
pub fn seal(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + payload.len());
    out.extend_from_slice(&[0; ENVELOPE_BYTES]);
    out.extend_from_slice(payload);
    put_head(kind, &mut out);
    out
}

/// Returns `value` in an envelope. Its bytes are written once: messages hold megabytes.
///
/// # Errors
/// [`CodecError::TooLarge`] beyond what the kind allows.
///
/// # Panics
/// As [`encode`].
pub fn seal_value<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let size = encoded_len(value);
    if size > kind.max {
        return Err(CodecError::TooLarge { kind: kind.name, size, max: kind.max });
    }
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + size);
    out.extend_from_slice(&[0; ENVELOPE_BYTES]);
    options(usize::MAX >> 1).serialize_into(&mut out, value).expect("plain types without serde attributes encode");
    put_head(kind, &mut out);
    Ok(out)
}

/// Fills in the head of an envelope, before a payload that stands there already.
fn put_head(kind: Kind, out: &mut [u8]) {
    let (head, payload) = out.split_at_mut(ENVELOPE_BYTES);
    head[0] = MAGIC;
    head[1] = kind.code;
    head[2..4].copy_from_slice(&kind.version.to_be_bytes());
    head[4..8].copy_from_slice(&(payload.len() as u32).to_be_bytes());
    let sum = checksum(&head[..8], payload);
    head[8..].copy_from_slice(&sum.to_be_bytes());
}

/// Returns the length and checksum that the head of an envelope promises.
///
/// # Errors
/// [`CodecError`] if the head is not one of this kind, of a newer format, or promises too much.
pub fn open_head(kind: Kind, head: &[u8; ENVELOPE_BYTES]) -> Result<usize, CodecError> {
    let [magic, code, v0, v1, l0, l1, l2, l3, ..] = *head;
    if magic != MAGIC || code != kind.code {
        return Err(CodecError::Foreign(kind.name));
    }
    let version = u16::from_be_bytes([v0, v1]);
    if version > kind.version {
        return Err(CodecError::Newer { kind: kind.name, found: version, known: kind.version });
    }
    let size = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if size > kind.max {
        return Err(CodecError::TooLarge { kind: kind.name, size, max: kind.max });
    }
    Ok(size)
}

/// Returns whether the payload is the one that was sealed under this head.
///
/// # Errors
/// [`CodecError::Damaged`] if it is not.
pub fn open_body(kind: Kind, head: &[u8; ENVELOPE_BYTES], payload: &[u8]) -> Result<(), CodecError> {
    let expected = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
    if checksum(&head[..8], payload) == expected { Ok(()) } else { Err(CodecError::Damaged(kind.name)) }
}

/// Returns the payload of a whole envelope.
///
/// # Errors
/// [`CodecError`] if it is anything but one whole envelope of this kind.
pub fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], CodecError> {
    let head: &[u8; ENVELOPE_BYTES] = bytes.first_chunk().ok_or(CodecError::Damaged(kind.name))?;
    let size = open_head(kind, head)?;
    let payload = &bytes[ENVELOPE_BYTES..];
    if payload.len() != size {
        return Err(CodecError::Damaged(kind.name));
    }
    open_body(kind, head, payload)?;
    Ok(payload)
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { name: "test", code: 9, version: 2, max: 64 };

    #[test]
    fn every_cut_and_every_flipped_bit_is_an_error() {
        let bytes = seal(KIND, &encode(&("hello", 7_u64)));
        assert!(open(KIND, &bytes).is_ok());
        for cut in 0..bytes.len() {
            assert!(open(KIND, &bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The version may fall to an older one; its checksum no longer fits then.
            assert!(open(KIND, &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_huge_length_in_a_short_input_allocates_nothing() {
        let bytes = (1_u64 << 40).to_le_bytes();
        assert_eq!(decode::<String>("test", &bytes), Err(CodecError::Damaged("test")));
        assert_eq!(decode::<Vec<u64>>("test", &bytes), Err(CodecError::Damaged("test")));
    }

    #[test]
    fn a_newer_format_is_named() {
        let newer = seal(Kind { version: 3, ..KIND }, b"x");
        assert_eq!(open(KIND, &newer), Err(CodecError::Newer { kind: "test", found: 3, known: 2 }));
    }
}
