//! Finds the line after which a stream is ours.
//!
//! Login scripts greet, warn and tell fortunes before the program that was asked for says its first word.
//!
//! Must stay true: what comes before the sentinel is skipped, wherever reads cut it, and is bounded; not a byte after
//! it is lost.

use crate::limits::NOISE_BYTES_MAX;

/// What the far side prints first, once it is ours to speak.
pub(crate) const STREAM: &[u8] = b"-----LEASEWARD STREAM 1-----\n";

/// Looks for a sentinel in what is read, piece by piece.
#[derive(Debug)]
pub(crate) struct Scanner {
    sentinel: Vec<u8>,
    seen: Vec<u8>,
}

impl Scanner {
    pub(crate) fn new(sentinel: impl Into<Vec<u8>>) -> Self {
        Self { sentinel: sentinel.into(), seen: Vec::new() }
    }

    /// Takes the next piece. Returns what follows the sentinel, once it is found.
    ///
    /// # Errors
    /// [`NoSentinel`] if there was more noise than [`NOISE_BYTES_MAX`].
    pub(crate) fn feed(&mut self, piece: &[u8]) -> Result<Option<Vec<u8>>, NoSentinel> {
        // The sentinel may lie across two pieces.
        let from = self.seen.len().saturating_sub(self.sentinel.len());
        self.seen.extend_from_slice(piece);
        if let Some(at) = find(&self.seen[from..], &self.sentinel) {
            return Ok(Some(self.seen.split_off(from + at + self.sentinel.len())));
        }
        if self.seen.len() > NOISE_BYTES_MAX { Err(NoSentinel) } else { Ok(None) }
    }

    /// Returns the last words of the noise, for people.
    pub(crate) fn noise(&self) -> String {
        last_words(&self.seen)
    }
}

/// There was too much noise.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoSentinel;

/// Returns where `word` begins in `text`.
pub(crate) fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// Returns the end of a text, in one line that a log can bear.
pub(crate) fn last_words(text: &[u8]) -> String {
    let tail = &text[text.len().saturating_sub(300)..];
    let words = String::from_utf8_lossy(tail);
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_skipped_wherever_reads_cut() {
        let text = [b"Welcome!\n-----LEASEWARD STREA\nno newline: ".as_slice(), STREAM, b"\x00rest"].concat();
        for size in 1..text.len() {
            let mut scanner = Scanner::new(STREAM);
            let mut rest: Option<Vec<u8>> = None;
            for piece in text.chunks(size) {
                match &mut rest {
                    Some(rest) => rest.extend_from_slice(piece),
                    None => rest = scanner.feed(piece).expect("not much noise"),
                }
            }
            assert_eq!(rest.as_deref(), Some(b"\x00rest".as_slice()), "pieces of {size}");
        }
    }

    #[test]
    fn endless_noise_is_given_up() {
        let mut scanner = Scanner::new(STREAM);
        let fed = (0..=NOISE_BYTES_MAX / 1_000).find_map(|_| scanner.feed(&[b'x'; 1_000]).err());
        assert_eq!(fed, Some(NoSentinel));
        assert!(scanner.noise().len() <= 300);
    }
}
