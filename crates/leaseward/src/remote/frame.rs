//! What goes over a carried stream: frames, each `length u32, kind u8, channel u32, bytes`, little endian.
//!
//! Must stay true: a length is checked before anything is kept for it; a frame that is not understood ends the stream,
//! and never this program.

use crate::limits::PIECE_BYTES_MAX;

/// Kind and channel.
const HEAD: usize = 5;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Who is there, as JSON. The first one in each direction.
    Hello(Vec<u8>),
    /// The far side wants a connection to the voter of this number.
    Open { channel: u32, voter: u8 },
    /// Bytes of a connection.
    Data { channel: u32, bytes: Vec<u8> },
    /// The sender has no more bytes; it still listens.
    End { channel: u32 },
    /// The connection broke: what is under way is lost. After two ends there is none.
    Close { channel: u32 },
    /// So many bytes were passed on: as many more may be sent.
    Credit { channel: u32, bytes: u32 },
    /// The sender lives.
    Ping,
}

/// Why a stream cannot be read any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("LW0372: a frame of {0} bytes; {max} are allowed", max = HEAD + PIECE_BYTES_MAX)]
    Length(u32),
    #[error("LW0372: a frame of kind {0} that is not understood")]
    Kind(u8),
    #[error("LW0372: channel {0} is used against the rules")]
    Rules(u32),
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, channel, bytes): (u8, u32, &[u8]) = match self {
            Self::Hello(bytes) => (0, 0, bytes),
            Self::Open { channel, voter } => (1, *channel, std::slice::from_ref(voter)),
            Self::Data { channel, bytes } => (2, *channel, bytes),
            Self::End { channel } => (3, *channel, &[]),
            Self::Close { channel } => (4, *channel, &[]),
            Self::Credit { channel, bytes } => (5, *channel, &bytes.to_le_bytes()),
            Self::Ping => (6, 0, &[]),
        };
        let length = u32::try_from(HEAD + bytes.len()).expect("pieces are short");
        [&length.to_le_bytes(), [kind].as_slice(), &channel.to_le_bytes(), bytes].concat()
    }

    fn decode(kind: u8, channel: u32, bytes: &[u8]) -> Result<Self, Broken> {
        match (kind, bytes) {
            (0, bytes) => Ok(Self::Hello(bytes.to_vec())),
            (1, [voter]) => Ok(Self::Open { channel, voter: *voter }),
            (2, bytes) => Ok(Self::Data { channel, bytes: bytes.to_vec() }),
            (3, []) => Ok(Self::End { channel }),
            (4, []) => Ok(Self::Close { channel }),
            (5, [a, b, c, d]) => Ok(Self::Credit { channel, bytes: u32::from_le_bytes([*a, *b, *c, *d]) }),
            (6, []) => Ok(Self::Ping),
            _ => Err(Broken::Kind(kind)),
        }
    }
}

/// Puts frames together from pieces of a stream.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    waiting: Vec<u8>,
}

impl Decoder {
    pub(crate) fn feed(&mut self, piece: &[u8]) {
        self.waiting.extend_from_slice(piece);
    }

    /// Returns the next whole frame.
    ///
    /// # Errors
    /// [`Broken`]; nothing after it can be understood.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        let Some((length, rest)) = self.waiting.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length);
        let size = length as usize;
        if !(HEAD..=HEAD + PIECE_BYTES_MAX).contains(&size) {
            return Err(Broken::Length(length));
        }
        let Some([kind, a, b, c, d, bytes @ ..]) = rest.get(..size) else { return Ok(None) };
        let frame = Frame::decode(*kind, u32::from_le_bytes([*a, *b, *c, *d]), bytes)?;
        self.waiting.drain(..4 + size);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Frame> {
        vec![
            Frame::Hello(b"{}".to_vec()),
            Frame::Open { channel: 1, voter: 2 },
            Frame::Data { channel: u32::MAX, bytes: vec![7; PIECE_BYTES_MAX] },
            Frame::Data { channel: 1, bytes: Vec::new() },
            Frame::End { channel: 1 },
            Frame::Close { channel: 3 },
            Frame::Credit { channel: 1, bytes: 70_000 },
            Frame::Ping,
        ]
    }

    #[test]
    fn frames_are_put_together_wherever_reads_cut() {
        let bytes: Vec<u8> = every_kind().iter().flat_map(Frame::encode).collect();
        for size in [1, 2, 3, 5, 9, 10, 1_000, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut frames = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.feed(piece);
                while let Some(frame) = decoder.next().expect("they are good") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, every_kind(), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_too_long_too_short_or_unknown_is_refused_before_it_is_there() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            decoder.next().expect_err("it is bad")
        };
        let long = u32::try_from(HEAD + PIECE_BYTES_MAX + 1).expect("small");
        assert_eq!(refused(&long.to_le_bytes()), Broken::Length(long));
        assert_eq!(refused(b"HTTP"), Broken::Length(u32::from_le_bytes(*b"HTTP")));
        assert_eq!(refused(&4_u32.to_le_bytes()), Broken::Length(4));
        assert_eq!(refused(&[5, 0, 0, 0, 99, 0, 0, 0, 0]), Broken::Kind(99));
        assert_eq!(refused(&[5, 0, 0, 0, 1, 0, 0, 0, 0]), Broken::Kind(1), "no voter is named");
    }
}
