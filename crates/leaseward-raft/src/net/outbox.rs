//! Frames that wait to be written on one connection: bounded in number, and in bytes.
//!
//! Must stay true: whoever has a frame to send waits while there is no room, in the order of asking; a frame keeps its room until it
//! is written. One that is larger than all the room goes alone, so that none waits for ever.

use std::sync::Arc;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::limits::{FRAMES_WAITING_BYTES_MAX, FRAMES_WAITING_MAX};

/// Where frames are put. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    frames: mpsc::Sender<Frame>,
    room: Arc<Semaphore>,
}

/// Where they come out.
#[derive(Debug)]
pub(crate) struct Outgoing(mpsc::Receiver<Frame>);

/// A frame that waits.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Nobody writes any more: the connection is closed.
#[derive(Debug)]
pub(crate) struct Closed;

/// Returns both ends for one connection.
pub(crate) fn outbox() -> (Outbox, Outgoing) {
    let (frames, queue) = mpsc::channel(FRAMES_WAITING_MAX);
    (Outbox { frames, room: Arc::new(Semaphore::new(FRAMES_WAITING_BYTES_MAX)) }, Outgoing(queue))
}

impl Outbox {
    /// Waits for room, and leaves a frame there. Dropping the future leaves nothing.
    pub(crate) async fn send(&self, bytes: Vec<u8>) -> Result<(), Closed> {
        let wanted = bytes.len().min(FRAMES_WAITING_BYTES_MAX) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.map_err(|_| Closed)?;
        self.frames.send(Frame { bytes, _room: room }).await.map_err(|_| Closed)
    }
}

impl Outgoing {
    /// Writes what is put there, until the stream breaks or nobody is left who could put something there.
    pub(crate) async fn write_to(mut self, mut stream: impl AsyncWrite + Unpin) {
        while let Some(frame) = self.0.recv().await {
            if stream.write_all(&frame.bytes).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    const FRAME: usize = 1 << 20;

    #[tokio::test]
    async fn frames_that_nobody_writes_are_bounded_in_bytes_and_whoever_is_gone_left_nothing() {
        let (outbox, outgoing) = outbox();
        let mut taken = 0;
        while outbox.send(vec![0; FRAME]).now_or_never().is_some() {
            taken += 1;
        }
        assert_eq!(taken, FRAMES_WAITING_BYTES_MAX / FRAME);
        // The last one did not stay, and a small one waits its turn.
        assert!(outbox.send(vec![0; 1]).now_or_never().is_none());
        let (mut reads, writes) = duplex(FRAME / 2);
        let writing = tokio::spawn(outgoing.write_to(writes));
        let larger_than_all = outbox.send(vec![1; FRAMES_WAITING_BYTES_MAX + 1]);
        let reading = async {
            let mut all = vec![0; taken * FRAME + FRAMES_WAITING_BYTES_MAX + 1];
            reads.read_exact(&mut all).await.expect("all of it");
            assert!(
                all[..taken * FRAME].iter().all(|byte| *byte == 0)
                    && all[taken * FRAME..].iter().all(|byte| *byte == 1)
            );
        };
        let (sent, ()) = tokio::join!(larger_than_all, reading);
        sent.expect("alone, and not never");
        // Whoever waits for room learns that nobody will ever write.
        writing.abort();
        writing.await.expect_err("it was aborted");
        outbox.send(vec![0; FRAME]).await.expect_err("closed");
    }
}
