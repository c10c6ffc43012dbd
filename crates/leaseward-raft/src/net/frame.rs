//! Frames: an envelope with a number that pairs answers with questions.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::codec::{self, CodecError, ENVELOPE_BYTES, Kind};
use crate::limits::{BULK_FRAME_BYTES_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use crate::net::wire::Purpose;

/// The first frame in each direction.
pub const HELLO: Kind = Kind { name: "hello", code: 0x40, version: 1, max: HELLO_BYTES_MAX };

/// Returns the kind of the frames that follow on a connection for `purpose`.
#[must_use]
pub fn message(purpose: Purpose) -> Kind {
    let max = match purpose {
        Purpose::Control => FRAME_BYTES_MAX,
        Purpose::Bulk | Purpose::Client => BULK_FRAME_BYTES_MAX,
    };
    Kind { name: "message", code: 0x41, version: 1, max }
}

/// Why a frame cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream is broken or at its end.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes are not a frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl FrameError {
    /// Returns the stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "LW0501",
            Self::Codec(CodecError::TooLarge { .. }) => "LW0702",
            Self::Codec(CodecError::Newer { .. }) => "LW0703",
            Self::Codec(_) => "LW0701",
        }
    }
}

/// What a frame says before its payload.
#[derive(Debug)]
pub struct Head {
    bytes: [u8; ENVELOPE_BYTES],
    /// Bytes that follow: within the kind's bound.
    pub size: usize,
}

/// Reads one frame. Not cancel safe: a dropped read leaves the stream inside a frame.
///
/// # Errors
/// [`FrameError`]; the stream must be closed then.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), kind: Kind) -> Result<T, FrameError> {
    let head = head(stream, kind).await?;
    body(stream, kind, head, None).await
}

/// Reads the beginning of a frame, and nothing of its payload. Not cancel safe.
///
/// # Errors
/// As [`read`].
pub async fn head(stream: &mut (impl AsyncRead + Unpin), kind: Kind) -> Result<Head, FrameError> {
    let mut bytes = [0; ENVELOPE_BYTES];
    stream.read_exact(&mut bytes).await?;
    // The promised length is checked before anything is allocated for it.
    let size = codec::open_head(kind, &bytes)?;
    Ok(Head { bytes, size })
}

/// Reads what follows. Not cancel safe.
///
/// # Errors
/// As [`read`]; also if nothing comes for longer than `patience`.
pub async fn body<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    kind: Kind,
    head: Head,
    patience: Option<Duration>,
) -> Result<T, FrameError> {
    // Memory grows only as bytes arrive.
    let mut payload = Vec::with_capacity(head.size.min(64 << 10));
    let mut stream = stream.take(head.size as u64);
    while payload.len() < head.size {
        let more = stream.read_buf(&mut payload);
        let read = match patience {
            Some(patience) => timeout(patience, more).await.map_err(io::Error::from)??,
            None => more.await?,
        };
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    codec::open_body(kind, &head.bytes, &payload)?;
    Ok(codec::decode(kind.name, &payload)?)
}

/// Returns the bytes of one frame.
///
/// # Errors
/// [`CodecError::TooLarge`] if the other side would refuse it.
pub fn bytes<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    codec::seal_value(kind, value)
}

/// Writes one frame. Not cancel safe.
///
/// # Errors
/// [`FrameError`]; the stream must be closed then.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    value: &T,
) -> Result<(), FrameError> {
    stream.write_all(&bytes(kind, value)?).await?;
    Ok(())
}
